"""Build the book: check the notebooks, run those whose code or package changed, write HTML to _build/html.

With --as-committed nothing is run: pages with the outputs that the notebooks were committed with, for the tests of
the pages (the notebooks themselves run under nbval), in _build/as_committed/_build/html.

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


def build(*options: str | Path) -> int:
    program = Path(sys.executable).with_name("jupyter-book")
    return subprocess.call([program, "build", ROOT, "--warningiserror", "--keep-going", *options])


def as_committed() -> int:
    out, config = BUILD / "as_committed", (ROOT / "_config.yml").read_text()
    line = "execute_notebooks: cache"
    assert line in config, f"_config.yml no longer says {line!r}"
    out.mkdir(parents=True, exist_ok=True)
    for file in ("index", "how_to_use"):  # pages of a former run must not pass for those of this one
        (out / "_build" / "html" / "book" / f"{file}.html").unlink(missing_ok=True)
    (out / "_config.yml").write_text(config.replace(line, 'execute_notebooks: "off"'))
    return build("--path-output", out, "--config", out / "_config.yml", "--toc", ROOT / "_toc.yml")


def main() -> int:
    from check_notebooks import problems

    if found := problems(outputs=False):
        print("\n".join(found), file=sys.stderr)
        return 1
    if "--as-committed" in sys.argv[1:]:
        return as_committed()
    mark, now = CACHE / "slug_lite.key", key()
    if not mark.is_file() or mark.read_text() != now:
        shutil.rmtree(BUILD, ignore_errors=True)
        CACHE.mkdir(parents=True)
        mark.write_text(now)
    code = build()
    if code:
        # pages of a failed build would look like a good one
        shutil.rmtree(BUILD / "html", ignore_errors=True)
        shutil.rmtree(BUILD / ".doctrees", ignore_errors=True)
        print("The build failed; see the messages above.", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
