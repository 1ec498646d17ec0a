"""Common to the builders of part III."""
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

ROOT = Path(__file__).parents[1]


class Book:
    def __init__(self):
        self.cells = []

    def md(self, text):
        self.cells.append(new_markdown_cell(text.strip("\n")))

    def code(self, text, alt=None, tags=None):
        cell = new_code_cell(text.strip("\n"))
        if alt:
            cell.metadata["mystnb"] = {"image": {"alt": alt}}
        if tags:
            cell.metadata["tags"] = tags
        self.cells.append(cell)

    def setup(self):
        self.code((ROOT / "notebooks/setup_cell.py").read_text(), tags=["hide-input"])

    def write(self, name):
        nb = new_notebook(cells=self.cells)
        old = ROOT / "notebooks/05_how_far.ipynb"
        nb.metadata = nbformat.read(old, 4).metadata
        for k, cell in enumerate(nb.cells):
            cell["id"] = f"c{k:03d}"
        nbformat.write(nb, ROOT / "notebooks" / name)
