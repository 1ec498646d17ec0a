"""Train the judge: python tools/train_judge.py FOLDER. Goes on where it stopped; some minutes on two CPU cores."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch

from slug_lite.pretrain.judge import train_judge


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    try:
        train_judge(given.folder)
    except KeyboardInterrupt:
        print(f"stopped; the same command goes on from the checkpoint in {given.folder}")


if __name__ == "__main__":
    main()
