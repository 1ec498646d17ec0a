"""The house: a trunk to be read in a row, wings that it leans on or that lean on it, and one door."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import slug_lite as slug

HOUSE = Path(slug.__file__).parent
TRUNK = (
    "pairs", "models", "losses", "gradients", "selection", "validation", "search", "targets", "edit", "algorithm",
    "several",
)  # fmt: skip
WINGS = sorted(folder.name for folder in HOUSE.iterdir() if (folder / "__init__.py").is_file())
CONTRACT = (
    "load_clip", "Clip", "toonworld", "Pairs", "one_shot_gradients", "pareto_front", "unlearn", "unlearn_several",
    "unlearn_pipeline", "evaluate", "merge", "Edit", "Validation", "StepSearch", "Memory", "load_diffusion",
    "load_judge", "generated_pairs", "attention_maps", "canvas", "frechet", "zero_shot_classifier", "fingerprint",
    "forget_loss", "retain_loss", "NothingForgets",
)  # fmt: skip


def imports(source, room):
    """What a module of the package `room` imports, as (full dotted name, is it for type checkers alone?).

    Also inside functions, classes and conditions; of `from x import y` both x and x.y, as y may be a module. Strings
    that a call of import_module or __import__ is given count, and a string that is put together counts as "?".
    """
    found = []

    def absolute(level, name):
        base = room.split(".")[: len(room.split(".")) - level + 1] if level else []
        return ".".join([*base, *([name] if name else [])])

    def look(node, typing):
        if isinstance(node, ast.Import):
            found.extend((alias.name, typing) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = absolute(node.level, node.module)
            found.append((origin, typing))
            found.extend((f"{origin}.{alias.name}", typing) for alias in node.names)
        elif isinstance(node, ast.Call):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if called in ("import_module", "__import__"):
                text = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else "?"
                dots = len(text) - len(text.lstrip("."))
                found.append((absolute(dots, text.lstrip(".")) if dots else text, typing))
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for child in node.body:
                look(child, True)
            for child in node.orelse:
                look(child, typing)
            return
        for child in ast.iter_child_nodes(node):
            look(child, typing)

    look(ast.parse(source), False)
    return found


def inside(name, *parts):
    """Is a dotted name one of the package's `parts`, or in one?"""
    return any(name == f"slug_lite.{part}" or name.startswith(f"slug_lite.{part}.") for part in parts)


def forbidden_in_trunk(source):
    """Imports of wings but the runtime, for type checkers too, and of the door, which opens on all of them."""
    wings = [wing for wing in WINGS if wing != "runtime"]
    return [name for name, _ in imports(source, "slug_lite") if inside(name, *wings) or name in ("?", "slug_lite")]


def forbidden_in_runtime(source):
    """Imports of anything else of the package; types of the trunk may be named for type checkers."""
    return [
        name for name, typing in imports(source, "slug_lite.runtime")
        if name == "?" or (name.split(".")[0] == "slug_lite" and not inside(name, "runtime")
                           and not (typing and (inside(name, *TRUNK) or name == "slug_lite")))
    ]  # fmt: skip


def trunk(name):
    return (HOUSE / f"{name}.py").read_text(encoding="utf-8")


def test_the_flat_modules_are_the_trunk():
    assert {file.stem for file in HOUSE.glob("*.py")} == {*TRUNK, "__init__"}
    assert {"runtime", "world", "diffusion", "book", "pretrain"} == set(WINGS)


@pytest.mark.parametrize("name", TRUNK)
def test_the_trunk_leans_on_the_runtime_alone(name):
    assert forbidden_in_trunk(trunk(name)) == []


@pytest.mark.parametrize("file", sorted((HOUSE / "runtime").glob("**/*.py")), ids=lambda file: file.stem)
def test_the_runtime_leans_on_nothing(file):
    assert forbidden_in_runtime(file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "line",
    [
        "from .world import toonworld", "from . import world", "import slug_lite.world.tasks",
        "from slug_lite import diffusion",
        "from .diffusion.drawing import generated_pairs", "import slug_lite", "from .book import plots as p, widgets",
        "def later():\n    from .pretrain.clip import build_clip",
        "class Late:\n    def go(self):\n        if self:\n            from .world.judge import Judge",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .world.tasks import task",
        "try:\n    import slug_lite.book\nexcept ImportError:\n    pass",
        "import importlib\nimportlib.import_module('slug_lite.world')",
        "from importlib import import_module\nimport_module('.diffusion', 'slug_lite')",
        "__import__('slug_lite.book.plots')", "import importlib\nimportlib.import_module('slug_lite.' + 'world')",
    ],
)  # fmt: skip
def test_a_wing_in_the_trunk_is_noticed(line):
    for name in ("losses", "algorithm"):
        source = trunk(name)
        assert forbidden_in_trunk(source) == [] != forbidden_in_trunk(f"{source}\n{line}\n")


@pytest.mark.parametrize(
    ("line", "allowed"),
    [
        ("from ..models import Clip", False), ("from .. import models", False), ("import slug_lite.pairs", False),
        ("from ..world import toonworld", False), ("def later():\n    from ..search import StepSearch", False),
        ("from slug_lite.runtime.names import tower_of", True), ("from .checks import unknown", True),
        ("from . import checks", True), ("import torch", True), ("from importlib import resources", True),
        ("if TYPE_CHECKING:\n    from ..models import Clip", True),
        ("if typing.TYPE_CHECKING:\n    from ..pairs import Pairs", True),
        ("if TYPE_CHECKING:\n    from ..world.judge import Judge", False),
        ("if TYPE_CHECKING:\n    pass\nelse:\n    from ..models import Clip", False),
        ("if not TYPE_CHECKING:\n    from ..models import Clip", False),
        ("importlib.import_module('..models', 'slug_lite.runtime')", False),
    ],
)  # fmt: skip
def test_the_trunk_in_the_runtime_is_noticed(line, allowed):
    source = (HOUSE / "runtime" / "modes.py").read_text(encoding="utf-8")
    assert (forbidden_in_runtime(f"{source}\n{line}\n") == []) is allowed


def test_what_is_loaded_is_what_the_source_says():
    """The runtime loads alone: with the door shut, nothing of the trunk or of another wing is loaded with it."""
    code = f"""
import importlib, pkgutil, sys, types
door = types.ModuleType("slug_lite")
door.__path__ = [{str(HOUSE)!r}]
sys.modules["slug_lite"] = door
room = importlib.import_module("slug_lite.runtime")
for one in pkgutil.iter_modules(room.__path__):
    importlib.import_module(f"slug_lite.runtime.{{one.name}}")
others = [n for n in sys.modules if n.startswith("slug_lite.") and not n.startswith("slug_lite.runtime")]
assert not others, others
for name in {TRUNK!r}:
    importlib.import_module(f"slug_lite.{{name}}")
wings = [n for n in sys.modules if n.split(".")[0] == "slug_lite" and n.split(".")[1:2] not in
         ([], ["runtime"], *([name] for name in {TRUNK!r}))]
assert not wings, wings
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def functions(source):
    """The functions and methods of a module, with how many lines each has."""
    found = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return {f"{node.name} at {node.lineno}": node.end_lineno - node.lineno + 1 for node in found}


@pytest.mark.parametrize("name", TRUNK)
def test_no_function_of_the_trunk_is_longer_than_a_screen(name):
    assert {function: lines for function, lines in functions(trunk(name)).items() if lines > 45} == {}


def test_long_functions_are_noticed():
    source = "def f():\n" + "    x = 1\n" * 45 + "class A:\n    async def g(self):\n" + "        x = 1\n" * 44
    assert functions(source) == {"f at 1": 46, "g at 48": 45}


def test_the_trunk_is_read_in_an_hour():
    lines = {name: len(trunk(name).splitlines()) for name in TRUNK}
    assert sum(lines.values()) <= 1300, lines


def test_unlearn_asks_for_little():
    assert len(inspect.signature(slug.unlearn).parameters) <= 8


@pytest.mark.parametrize("name", CONTRACT)
def test_what_is_promised_comes_through_the_door(name):
    assert getattr(slug, name) is not None and name in slug.__all__


def test_the_door_promises_nothing_that_is_not_there():
    assert all(hasattr(slug, name) for name in slug.__all__) and len(set(slug.__all__)) == len(slug.__all__)


def test_importing_needs_no_diffusers_and_no_widgets():
    heavy = {"diffusers", "ipywidgets", "slug_lite.book.widgets"}
    code = f"import sys, slug_lite; found = {heavy!r} & {{*sys.modules}}; assert not found, found"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
