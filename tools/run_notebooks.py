"""Run notebooks from top to bottom in a fresh kernel and write their outputs back: what is committed.

python tools/run_notebooks.py                 all of them
python tools/run_notebooks.py notebooks/00*   some
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import nbformat
from check_notebooks import notebooks, problems_of
from nbclient import NotebookClient

os.environ["TQDM_DISABLE"] = "1"


def run(file: Path) -> float:
    """Execute one notebook in place, without timestamps or warnings in what is kept; seconds taken."""
    book = nbformat.read(file, as_version=4)
    start = time.perf_counter()
    NotebookClient(book, timeout=300, record_timing=False, resources={"metadata": {"path": str(file.parent)}}).execute()
    seconds = time.perf_counter() - start
    for number, cell in enumerate(book.cells):
        cell["id"] = f"cell-{number:03d}"
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
    book.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    nbformat.write(book, file)
    return seconds


if __name__ == "__main__":
    bad = False
    for path in [Path(p).resolve() for p in sys.argv[1:]] or notebooks():
        seconds = run(path)
        found = problems_of(path)
        bad |= bool(found)
        print(f"{path.name}: {seconds:.0f} s, {path.stat().st_size / 1000:.0f} kB", *found, sep="\n  ")
    sys.exit(bad)
