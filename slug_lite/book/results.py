"""Results that take longer than a page may: written by a script in tools/, shipped, and drawn by the chapters."""

from __future__ import annotations

import datetime
import json
import platform
from importlib import resources
from pathlib import Path

import open_clip
import pandas as pd
import torch

from ..runtime.checks import unknown

_FOLDER = resources.files("slug_lite") / "assets" / "results"


def load_results(name: str) -> tuple[pd.DataFrame, dict]:
    """The rows of a shipped results file, and what it says of itself: script, seed, date, versions."""
    names = sorted(f.name.removesuffix(".json") for f in _FOLDER.iterdir() if f.name.endswith(".json"))
    if name not in names:
        raise unknown(name, names, "results file")
    content = json.loads((_FOLDER / f"{name}.json").read_text())
    return pd.DataFrame(content["rows"]), content["about"]


def save_results(name: str, rows: list[dict], **about: object) -> Path:
    """Write rows with the date, the versions and whatever else `about` says (the script's name, the seed)."""
    about |= {
        "date": datetime.date.today().isoformat(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "open_clip": open_clip.__version__,
        },
    }
    file = Path(str(_FOLDER)) / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(row) for row in rows)
    file.write_text(f'{{"about": {json.dumps(about)},\n"rows": [\n{lines}\n]}}\n')
    return file
