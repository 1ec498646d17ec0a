"""What every notebook of the book must be like; used by the build and by the tests."""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "slug_lite"
SETUP = (ROOT / "notebooks" / "setup_cell.py").read_text().strip()
LIMIT = 1_500_000


def notebooks() -> list[Path]:
    return sorted((ROOT / "notebooks").rglob("*.ipynb"))


def library_source() -> str:
    """All code of the package, of trunk and wings, white space evened out."""
    return " ".join(" ".join(f.read_text(encoding="utf-8") for f in sorted(PACKAGE.rglob("*.py"))).split())


def stale(cell: dict) -> bool:
    """Does the cell's output show code, by `plots.show_source`, that the package does not hold any more?"""
    shown = ["".join(o.get("data", {}).get("text/markdown", "")) for o in cell["outputs"]]
    code = [text.removeprefix("```python").rstrip("`") for text in shown if text.startswith("```python")]
    return any(" ".join(text.split()) not in library_source() for text in code)


def problems_of(file: Path, outputs: bool = True) -> list[str]:
    """Everything wrong with one notebook; `outputs`: look at the committed outputs too."""
    say = []
    code = [c for c in json.loads(file.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
    if not code or "".join(code[0]["source"]).strip() != SETUP:
        say.append("its first code cell is not the common one of notebooks/setup_cell.py")
    for number, cell in enumerate(code, 1):
        alt = cell["metadata"].get("mystnb", {}).get("image", {}).get("alt", "")
        draws = "plt.show()" in "".join(cell["source"])
        images = [o for o in cell["outputs"] if any(m.startswith("image/") for m in o.get("data", {}))]
        if (draws or images) and len(alt) < 20:
            say.append(f"code cell {number} draws a picture without alt text (mystnb: image: alt)")
        if outputs and draws and not images:
            say.append(f"code cell {number} should have drawn a picture")
        if any(o["output_type"] == "error" for o in cell["outputs"]):
            say.append(f"code cell {number} ended in an error")
        if outputs and stale(cell):
            say.append(f"code cell {number} shows code that the library no longer has; run it again")
        if any("application/vnd.jupyter.widget-view+json" in o.get("data", {}) for o in cell["outputs"]):
            say.append(f"code cell {number} has a widget in its output")
    if outputs and not any(c["outputs"] for c in code):
        say.append("it was committed without outputs")
    counts = [c["execution_count"] for c in code if c["execution_count"]]
    if outputs and counts != list(range(1, len(counts) + 1)):
        say.append("its cells were not run once, from top to bottom")
    if file.stat().st_size > LIMIT:
        say.append(f"it is {file.stat().st_size / 1e6:.1f} MB; at most {LIMIT / 1e6} MB")
    return [f"{file.relative_to(ROOT)}: {line}" for line in say]


def problems(outputs: bool = True) -> list[str]:
    return [line for file in notebooks() for line in problems_of(file, outputs)]


if __name__ == "__main__":
    found = problems()
    print("\n".join(found))
    sys.exit(bool(found))
