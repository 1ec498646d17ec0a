"""Results that take longer than a page may: written by a script in tools/, shipped, and drawn by the chapters."""

from __future__ import annotations

import datetime
import json
import os
import platform
import secrets
import subprocess
from importlib import metadata, resources
from pathlib import Path

import open_clip
import pandas as pd
import torch

from ..runtime.checks import unknown

_FOLDER = resources.files("slug_lite") / "assets" / "results"


def names() -> list[str]:
    """Of the shipped results files."""
    return sorted(f.name.removesuffix(".json") for f in _FOLDER.iterdir() if f.name.endswith(".json"))


def load_rows(name: str) -> tuple[list[dict], dict]:
    """The rows of a shipped results file, and what it says of itself: script, seed, date, versions."""
    if name not in names():
        raise unknown(name, names(), "results file")
    content = json.loads((_FOLDER / f"{name}.json").read_text())
    return content["rows"], content["about"]


def load_results(name: str) -> tuple[pd.DataFrame, dict]:
    """`load_rows`, the rows as a table."""
    rows, about = load_rows(name)
    return pd.DataFrame(rows), about


def versions() -> dict[str, str]:
    """Of Python and of the libraries that figures depend on."""
    own = {"python": platform.python_version(), "torch": torch.__version__, "open_clip": open_clip.__version__}
    return own | {name: metadata.version(name) for name in ("diffusers", "transformers")}  # slow to import


def this_commit() -> str:
    """The commit of these very sources, and whether anything but results was changed since; "unknown" without git."""

    def git(*words: str) -> str:
        asked = ["git", "-C", str(Path(__file__).parent), *words]
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # a package may be installed in a foreign repository
        changed = git("status", "--porcelain", "--", ":/", ":(top,exclude)slug_lite/assets/results")
        return git("rev-parse", "HEAD") + (", and uncommitted changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def write(file: Path, text: str) -> Path:
    """Put a file in place in one go: an interrupt or a full disk leaves the old one as it was."""
    part = file.with_name(f".{secrets.token_hex(8)}.part")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, file)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return file


def stated(*, script: str, seed: int, commit: str | None = None, **about: object) -> dict[str, object]:
    """What every results file says of itself. A script that runs for long gives the commit that it was started at."""
    now = {"date": datetime.date.today().isoformat(), "versions": versions(), "commit": commit or this_commit()}
    return {"script": script, "seed": seed, **about, **now}


def save_results(name: str, rows: list[dict], **about: object) -> Path:
    """Write rows with what `stated` makes of `about`."""
    lines = ",\n".join(json.dumps(row) for row in rows)
    text = f'{{"about": {json.dumps(stated(**about))},\n"rows": [\n{lines}\n]}}\n'
    return write(Path(str(_FOLDER)) / f"{name}.json", text)
