"""What every notebook must be like, and that the check itself can fail. Their cells run through nbval."""

import json
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import check_notebooks  # noqa: E402


def test_there_are_notebooks_and_the_table_of_contents_lists_them():
    toc = (ROOT / "_toc.yml").read_text()
    chapters = {str(f.relative_to(ROOT).with_suffix("")) for f in check_notebooks.notebooks()}
    listed = {c["file"] for part in yaml.safe_load(toc)["parts"] for c in part["chapters"]}
    assert chapters and chapters <= listed
    assert all(any((ROOT / f"{name}{suffix}").is_file() for suffix in (".md", ".ipynb")) for name in listed)


@pytest.mark.parametrize("file", check_notebooks.notebooks(), ids=lambda f: f.stem)
def test_notebook_is_fit_to_be_read(file):
    assert check_notebooks.problems_of(file) == []


@pytest.mark.parametrize("file", check_notebooks.notebooks(), ids=lambda f: f.stem)
def test_notebook_compares_some_output(file):
    code = ["".join(c["source"]) for c in json.loads(file.read_text())["cells"] if c["cell_type"] == "code"]
    assert any("# NBVAL_CHECK_OUTPUT" in source for source in code)


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """A good notebook in a folder of its own, and a function that spoils it."""
    monkeypatch.setattr(check_notebooks, "ROOT", tmp_path)
    book = json.loads(check_notebooks.notebooks()[0].read_text()) if check_notebooks.notebooks() else None
    source = json.loads((ROOT / "notebooks" / "00_forget_in_sixty_seconds.ipynb").read_text()) if book is None else book

    def spoil(change):
        copy = json.loads(json.dumps(source))
        change([c for c in copy["cells"] if c["cell_type"] == "code"])
        file = tmp_path / "spoilt.ipynb"
        file.write_text(json.dumps(copy))
        return check_notebooks.problems_of(file)

    return spoil


def picture(cells):
    return next(c for c in cells if any("image/png" in o.get("data", {}) for o in c["outputs"]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda cells: cells[0].update(source="import slug_lite"), "first code cell"),
        (lambda cells: picture(cells).update(metadata={}), "without alt text"),
        (lambda cells: picture(cells).update(outputs=[]), "should have drawn"),
        (lambda cells: cells[3].update(outputs=[{"output_type": "error"}]), "ended in an error"),
        (lambda cells: [c.update(outputs=[]) for c in cells], "without outputs"),
        (lambda cells: cells[2].update(execution_count=99), "top to bottom"),
        (
            lambda cells: cells[3].update(
                outputs=[{"output_type": "display_data", "data": {"application/vnd.jupyter.widget-view+json": {}}}]
            ),
            "widget",
        ),
        (
            lambda cells: cells[3].update(
                outputs=[{"output_type": "execute_result", "data": {"text/markdown": "```python\ndef old(): ...\n```"}}]
            ),
            "no longer has",
        ),
        (lambda cells: cells[3].update(source="#" * 1_600_000), "MB"),
    ],
)
def test_the_check_notices(broken, change, message):
    assert broken(lambda cells: None) == []
    assert any(message in line for line in broken(change))


@pytest.mark.parametrize(
    "room", ["search", "runtime/bracket", "world/evaluation", "diffusion/precondition", "book/plots"]
)
def test_code_of_trunk_and_wings_is_known(room):
    source = (check_notebooks.PACKAGE / f"{room}.py").read_text()
    shown = source[source.index("\ndef ") :].split("\n\n\n")[0]
    cell = {"outputs": [{"data": {"text/markdown": f"```python{shown}\n```"}}]}
    assert not check_notebooks.stale(cell)
    cell["outputs"][0]["data"]["text/markdown"] = f"```python{shown} # of another day\n```"
    assert check_notebooks.stale(cell)


def test_the_setup_cell_does_nothing_here():
    before = set(sys.modules)
    exec(check_notebooks.SETUP, {})
    assert "google.colab" not in sys.modules and set(sys.modules) == before


def test_the_setup_cell_on_colab_keeps_torch(monkeypatch, tmp_path):
    import subprocess
    from importlib.metadata import version

    calls = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "google.colab", sys)
    monkeypatch.setattr(subprocess, "check_call", calls.append)
    exec(check_notebooks.SETUP, {})
    # pip compares with the version in the package's metadata; torch.__version__ may add the build (+cu132) to it
    kept = (tmp_path / "keep.txt").read_text().splitlines()
    assert {f"torch=={version('torch')}", f"torchvision=={version('torchvision')}"} <= set(kept)
    (command,) = calls
    assert command[:4] == [sys.executable, "-m", "pip", "install"] and "--constraint" in command


@pytest.mark.parametrize("file", check_notebooks.notebooks(), ids=lambda f: f.stem)
def test_a_title_begins_with_the_chapters_number(file):
    """As its file does, and so navigation, and links that say "chapter 5"."""
    title = "".join(json.loads(file.read_text())["cells"][0]["source"]).splitlines()[0]
    assert title.startswith(f"# {file.stem.partition('_')[0].removeprefix('0')}. ")
