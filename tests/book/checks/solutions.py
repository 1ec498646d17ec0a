"""Run the solutions of a notebook's exercises after those of its code cells that they need.

    chapter = Chapter("00_forget_in_sixty_seconds")
    said, names = chapter.solve("ex-wrong-way")     # what it printed, and all names as the solution left them

Which cells are needed is read from their source: those that set a name that the solutions use, those that these need,
and so on. They are run once, in order, for all solutions of the chapter; a solution cannot change another's names.
"""

import ast
import builtins
import contextlib
import copy
import io
import os
import re
import symtable
import warnings
from functools import cached_property
from pathlib import Path

import nbformat

from slug_lite.book import checks

ROOT = Path(__file__).parents[3]
BLOCK = re.compile(r"^(`{3,})\{(exercise|solution)\}([^\n]*)\n(.*?)^\1", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def names_in(source):
    """The names that code sets for what comes after it, those that it changes in place, and those that it needs."""
    changes, grown, stored = set(), set(), set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Subscript | ast.Attribute) and not isinstance(node.ctx, ast.Load):
            while isinstance(node, ast.Subscript | ast.Attribute):
                node = node.value
            changes.update({node.id} if isinstance(node, ast.Name) else ())
        elif isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
            grown.add(node.target)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node not in grown:
            stored.add(node.id)
    top = symtable.symtable(source, "<cell>", "exec")
    sets = {one.get_name() for one in top.get_symbols() if one.is_assigned() or one.is_imported()}
    tables, uses = [top], {one.get_name() for one in top.get_symbols() if one.is_referenced()}
    while tables:
        tables += (inner := tables.pop().get_children())
        uses.update(one.get_name() for table in inner for one in table.get_symbols() if one.is_global())
    changes |= {target.id for target in grown} - stored  # such as x += 1 for an x of another cell
    sets -= changes - stored
    needs = (uses | changes) - sets - set(dir(builtins))
    return sets, changes, needs


def needed(cells, wanted):
    """Which of the cells, all sources, have to run for the names `wanted`, in order."""
    told, todo = set(), [(name, len(cells)) for name in wanted]
    seen = set()
    while todo:
        name, before = todo.pop()
        if (name, before) in seen:
            continue
        seen.add((name, before))
        for place in range(before - 1, -1, -1):
            sets, changes, needs = names_in(cells[place])
            if name not in sets | changes:
                continue
            told.add(place)
            todo += [(one, place) for one in needs]
            if name in sets:
                break
    return sorted(told)


class Chapter:
    """A notebook of the book, by the stem of its file; names that will be `given` are not looked for in its cells."""

    def __init__(self, stem, given=()):
        self.given = set(given)
        book = nbformat.read(ROOT / "notebooks" / f"{stem}.ipynb", as_version=4)
        self.cells = [cell.source for cell in book.cells if cell.cell_type == "code"]
        text = "\n".join(cell.source for cell in book.cells if cell.cell_type == "markdown")
        self.exercises, self.texts = {}, {}
        for _, kind, argument, inside in BLOCK.findall(text):
            if kind == "exercise":
                self.exercises[re.search(r":label: (\S+)", inside)[1]] = inside
            else:
                self.texts[argument.strip()] = inside

    def code(self, label):
        """The code of the solution of an exercise."""
        return "\n".join(CODE.findall(self.texts[label]))

    def checked(self):
        """The labels of its exercises, in order; each names its check, in its own text and in its solution's code."""
        for label, text in self.exercises.items():
            name = f"check_{label.replace('-', '_')}"
            assert callable(getattr(checks, name))
            assert f"checks.{name}(" in text and f"checks.{name}(" in self.code(label), label
        return list(self.exercises)

    @cached_property
    def names(self):
        """All that the chapter's own cells define and its solutions need."""
        os.environ.setdefault("MPLBACKEND", "Agg")
        wanted = set().union(*(names_in(self.code(label))[2] for label in self.exercises)) - self.given
        found = {"__name__": "__main__"}
        for place in sorted({1, *needed(self.cells, wanted)} - {0}):  # 0 is for Colab, 1 imports
            run(self.cells[place], found)
        return found

    def solve(self, label, **given):
        """Run the solution of an exercise: what it prints, and the names that it leaves."""
        found = dict(self.names) | given
        return run(self.code(label), found), found

    def cell(self, start):
        """The code cell that begins with `start`, run anew: what it prints."""
        (source,) = (cell for cell in self.cells if cell.startswith(start))
        return run(source, dict(self.names))


def run(source, names):
    """Run code in a namespace; what it printed."""
    with contextlib.redirect_stdout(io.StringIO()) as said, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(source, "<cell>", "exec"), names)
    return said.getvalue()


OTHER_TYPES = ("a word", None, object(), print, {"a": 1}, [], float("nan"), 10**9, True, b"x", [[1], [2, 3]])


def never_raises(check, *arguments):
    """A check says something of any answer, right of none of these, and raises for none."""
    for answer in OTHER_TYPES:
        said = check(copy.copy(answer), *arguments)
        assert isinstance(said, str) and said and not said.startswith("right"), (answer, said)


def refused(check, *good):
    """Each part of an answer replaced by things of other types: a sentence each time, and never right."""
    for place in range(len(good)):
        for other in OTHER_TYPES:
            said = check(*good[:place], other, *good[place + 1 :])
            assert isinstance(said, str) and said and not said.startswith("right"), (place, other, said)
