"""Checks of the exercises: give one your result, and it says what is wrong with it by the name of the mistake.

    from slug_lite.book import checks
    print(checks.check_ex_forget_three(my_numbers))

The check of the exercise with the label `ex-some-thing` is `check_ex_some_thing`. It returns one sentence, which begins
with "right" where the answer is right, and else says which mistake gives such an answer and what the right one is near.
It never raises for an answer of another type. What is right is worked out when it is asked, from the models and data
that are given; no check holds a table of answers. `dir(checks)` lists them; each lies in the module of its chapter's
topic, which is loaded when one of its checks is first asked for.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path


@cache
def rooms() -> dict[str, str]:
    """The name of each check, and of the module of this package that holds it; read from the source, not imported."""
    found = {}
    for file in sorted(Path(__file__).parent.glob("[!_]*.py")):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("check_"):
                found[node.name] = file.stem
    return found


def __getattr__(name: str) -> Callable[..., str]:
    if name not in rooms():
        raise AttributeError(f"there is no {name} among the checks; there are {', '.join(rooms())}")
    return getattr(import_module(f"{__name__}.{rooms()[name]}"), name)


def __dir__() -> list[str]:
    return sorted(rooms())
