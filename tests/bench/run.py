"""Every benchmark, each in a process of its own; results to slug_lite/assets/results/bench.json, a table to look at.

make bench                          about twenty-five minutes on two cores; 10 GB of memory
make bench BENCH="unlearn mini"     only the lines that hold all these words; the file's other rows stay
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch

import slug_lite
from slug_lite.book.results import save_results

CASES = Path(__file__).with_name("cases.py")
L14 = "forget=4 retain=4 images=6 prompts=72 tries=1 text=1"
MATRIX = [
    "gradients_time mini forget=48 retain=128 batch=128 repeats=5",
    "gradients_time mini forget=48 retain=512 batch=128 repeats=3",
    "gradients_time ViT-B-32 forget=8 retain=16 batch=16 repeats=3",
    "gradients_time ViT-B-32 forget=8 retain=32 batch=16 repeats=3",
    "gradients_memory ViT-B-32 forget=8 retain=32 batch=8 what=bare",
    "gradients_memory ViT-B-32 forget=8 retain=32 batch=8 what=ours",
    "search mini images=500 prompts=500",
    "tries ViT-B-32 images=500 prompts=500",
    # 500 validation pictures as above, and 2,500 as many as the official code looks at
    *[
        f"unlearn mini what={what} forget=48 retain=512 images={images} prompts=500 batch=128 tries=10"
        for images in (500, 2500)
        for what in ("plain", "ours")
    ],
    f"unlearn ViT-L-14 what=plain batch=2 most=2 {L14}",
    f"unlearn ViT-L-14 what=ours batch=2 passes=1 {L14}",
    f"unlearn ViT-L-14 what=ours batch=2 passes=8 {L14}",
    "pipeline mini what=whole",
    *[f"pipeline {model} what=on" for model in ("mini", "ViT-L-14", "ViT-H-14")],
    *[f"growth mini forget=48 retain={128 * k} batch=128" for k in (1, 2, 4, 8)],
    *[f"growth ViT-B-32 forget=4 retain={8 * k} batch=8" for k in (1, 2, 4, 8)],
    *[f"growth {model} forget=4 retain=8 batch=4" for model in ("ViT-B-32", "ViT-L-14", "ViT-H-14")],
]


def options(line: str) -> dict:
    """What the row of a line says of itself: its case, model and options."""
    case, model, *rest = line.split()
    return {"case": case, "model": model} | {k: int(v) if v.isdigit() else v for k, v in (w.split("=") for w in rest)}


def chosen(line: str, only: list[str]) -> bool:
    return all(word in line for word in only)


def place(row: dict) -> int | None:
    """Which line of the matrix a row comes from; prompts: the line says how many at least, the row how many."""
    lines = [{k: v for k, v in options(line).items() if k != "prompts"} for line in MATRIX]
    return next((k for k, line in enumerate(lines) if line.items() <= row.items()), None)


def kept(only: list[str]) -> list[dict]:
    """Rows of the results file that are in the matrix and are not measured anew."""
    file = Path(slug_lite.__file__).parent / "assets" / "results" / "bench.json"
    rows = json.loads(file.read_text())["rows"] if only and file.exists() else []
    return [row for row in rows if (k := place(row)) is not None and not chosen(MATRIX[k], only)]


def main(only: list[str]) -> None:
    rows, start = kept(only), time.perf_counter()
    for line in MATRIX:
        if not chosen(line, only):
            continue
        done = subprocess.run([sys.executable, CASES, *line.split()], capture_output=True, text=True)
        if done.returncode:  # a model that does not fit into this machine's memory is reported, not hidden
            rows.append(options(line) | {"failed": done.returncode})
            print(line, "FAILED", done.stderr[-500:], flush=True)
            continue
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(json.dumps(rows[-1])[:300], flush=True)
    rows.sort(key=place)
    about = {"cores": os.cpu_count(), "threads": torch.get_num_threads(), "machine": platform.machine()}
    print(save_results("bench", rows, script="make bench", seed=0, **about))
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
