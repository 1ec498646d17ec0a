"""Build the book: check the notebooks, run those whose code or package changed, write HTML to _build/html.

jupyter-cache looks at code cells alone, so its cache is emptied whenever the package, its weights or the pinned
requirements differ from those that filled it. A failing cell, a warning or a missing file fails the build.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "_build"
CACHE = BUILD / ".jupyter_cache"


def key() -> str:
    """Hash of everything but the notebooks that decides what their cells print."""
    digest = hashlib.sha256()
    files = [p for p in (ROOT / "slug_lite").rglob("*") if p.is_file() and p.suffix != ".pyc"]
    for file in [*sorted(files), ROOT / "requirements.txt"]:
        digest.update(str(file.relative_to(ROOT)).encode() + file.read_bytes())
    return digest.hexdigest()


def main() -> int:
    from check_notebooks import problems

    if found := problems(outputs=False):
        print("\n".join(found), file=sys.stderr)
        return 1
    mark, now = CACHE / "slug_lite.key", key()
    if not mark.is_file() or mark.read_text() != now:
        shutil.rmtree(BUILD, ignore_errors=True)
        CACHE.mkdir(parents=True)
        mark.write_text(now)
    program = Path(sys.executable).with_name("jupyter-book")
    command = [program, "build", ROOT, "--warningiserror", "--keep-going"]
    code = subprocess.call(command)
    if code:
        # pages of a failed build would look like a good one
        shutil.rmtree(BUILD / "html", ignore_errors=True)
        shutil.rmtree(BUILD / ".doctrees", ignore_errors=True)
        print("The build failed; see the messages above.", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
