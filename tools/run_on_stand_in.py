"""Run chapters on the stand-in for a GPU (tests/device): all their cells, and then their exercises' solutions.

python tools/run_on_stand_in.py                              all notebooks
python tools/run_on_stand_in.py notebooks/00* --solutions    some, and the code of their exercises' solutions
python tools/run_on_stand_in.py --solutions --trunk          all of it, and the tests of the trunk
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import nbformat
from check_notebooks import PACKAGE, ROOT, notebooks
from nbclient import NotebookClient
from nbclient.exceptions import CellTimeoutError, DeadKernelError

SOLUTION = re.compile(r"^(`{3,})\{solution\}[^\n]*\n(.*?)^\1", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
BEGIN = f"""
import sys
sys.path.insert(0, {str(ROOT / "tests" / "device")!r})
from stand_in import stand_in
_stand_in = stand_in()
_watching = _stand_in.__enter__()
"""
END = "print(_watching.calls)"
TIMEOUT = 1800  # seconds a cell


def parts(file: Path, solutions: bool) -> dict[str, nbformat.NotebookNode]:
    """What is to be run of a notebook, each cell by what it is called in reports."""
    book = nbformat.read(file, as_version=4)
    found = [cell for cell in book.cells if cell.cell_type == "code"]
    named = {f"cell {number}": cell for number, cell in enumerate(found, 1)}
    text = "\n".join(cell.source for cell in book.cells if cell.cell_type == "markdown")
    blocks = [code for _, inside in SOLUTION.findall(text) for code in CODE.findall(inside)] if solutions else []
    return named | {f"solution {number}": nbformat.v4.new_code_cell(code) for number, code in enumerate(blocks, 1)}


def errors(cell: nbformat.NotebookNode) -> list[str]:
    """What a cell that has run stopped at, unless it is tagged to raise."""
    if "raises-exception" in cell.metadata.get("tags", ()):
        return []
    return [f"{o.ename}: {o.evalue}" for o in cell.outputs if o.output_type == "error"]


def run(file: Path, solutions: bool) -> list[str]:
    """Run a notebook in a kernel of its own, past errors too; one line on all of it, and one for each error."""
    named, start = parts(file, solutions), time.perf_counter()
    begin, end = (nbformat.v4.new_code_cell(code) for code in (BEGIN, END))
    book, said = nbformat.v4.new_notebook(cells=[begin, *named.values(), end]), []
    settings = {"timeout": TIMEOUT, "allow_errors": True, "kernel_name": "python3"}
    where, quiet = {"metadata": {"path": str(file.parent)}}, ["--IPKernelApp.log_level=40"]
    try:
        NotebookClient(book, **settings, resources=where, extra_arguments=quiet).execute()
    except (CellTimeoutError, DeadKernelError) as error:
        said = [f"{type(error).__name__}: {str(error).splitlines()[0]}"]
    said += [f"{name}: {line}" for name, cell in {"begin": begin, **named, "end": end}.items() for line in errors(cell)]
    ran = [f"{sum(name.startswith(kind) for name in named)} {kind}s" for kind in ("cell", "solution")]
    ran.append(f"{''.join(o.get('text', '') for o in end.get('outputs', ())).strip()} calls with tensors on the device")
    ran.append(f"{time.perf_counter() - start:.0f} s")
    return [f"{file.name}: {', '.join(ran)}, {f'{len(said)} errors' if said else 'ok'}", *said]


def trunk() -> int:
    """The tests of the trunk's rooms, with their models on the stand-in; pytest's exit status."""
    tests = [ROOT / "tests" / f"test_{room.stem}.py" for room in sorted(PACKAGE.glob("[!_]*.py"))]
    tests.append(ROOT / "tests" / "test_architectures.py")
    return subprocess.run([sys.executable, "-m", "pytest", "-q", "--stand-in", *map(str, tests)], cwd=ROOT).returncode


if __name__ == "__main__":
    os.environ |= {"TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1", "JUPYTER_PREFER_ENV_PATH": "1"}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", type=Path, help="all, where none is given")
    parser.add_argument("--solutions", action="store_true", help="the code of the exercises' solutions too")
    parser.add_argument("--trunk", action="store_true", help="the tests of the trunk too")
    given, bad = parser.parse_args(), False
    for path in [p.resolve() for p in given.notebooks] or notebooks():
        lines = run(path, given.solutions)
        bad |= len(lines) > 1
        print(*lines, sep="\n  ", flush=True)
    sys.exit(bool(trunk() if given.trunk else 0) or bad)
