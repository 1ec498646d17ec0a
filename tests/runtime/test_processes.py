"""Several processes: each does its part of the work, and all find what one would find."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from small_clips import TINY

import slug_lite as slug
from slug_lite.pretrain.clip import build_clip
from slug_lite.runtime import processes as P
from slug_lite.runtime.batches import contrastive_batches

WORKER = """
import sys
import torch.distributed as dist
from safetensors.torch import save_file
import slug_lite as slug
from slug_lite.pretrain.clip import build_clip

sys.path.insert(0, sys.argv[1])
from small_clips import TINY

dist.init_process_group("gloo")
clip, world = build_clip(TINY, seed=1), slug.toonworld
forget, retain = world.pairs("Ada Sunfield", n=7, size=32), world.retain(["Ada Sunfield"], n=21, size=32)
found = slug.one_shot_gradients(clip, forget, retain, batch_size=4, progress=False)
found.stats.to_json(f"{sys.argv[2]}/stats-{dist.get_rank()}.json")
save_file(found.forget, f"{sys.argv[2]}/forget-{dist.get_rank()}.safetensors")
dist.destroy_process_group()
"""


def test_two_processes_find_what_one_finds(tmp_path):
    """Each takes its share, an odd one here; the contrastive loss is over the pairs of both."""
    (tmp_path / "worker.py").write_text(WORKER)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d",
               "--rdzv-endpoint=localhost:0", tmp_path / "worker.py", Path(__file__).parents[1], tmp_path]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    world, clip = slug.toonworld, build_clip(TINY, seed=1)
    one = slug.one_shot_gradients(
        clip, world.pairs("Ada Sunfield", n=7, size=32), world.retain(["Ada Sunfield"], n=21, size=32)
    )
    for rank in range(2):
        stats = pd.read_json(tmp_path / f"stats-{rank}.json")
        for column in ("importance", "retain_norm", "cosine"):
            assert np.allclose(stats[column], one.stats[column], rtol=1e-5, atol=1e-5), column
        for name, gradient in load_file(tmp_path / f"forget-{rank}.safetensors").items():
            torch.testing.assert_close(gradient, one.forget[name], rtol=1e-4, atol=1e-6)


def test_one_process_does_everything_itself():
    rows = torch.randn(3, 2)
    assert P.processes() == 1 and P.shard(7) == slice(0, 7)
    assert P.all_reduce(rows) is rows and P.all_reduce_number(2.5) == 2.5
    gathered, own = P.all_gather(rows)
    assert gathered is rows and own == slice(0, 3)


def test_every_row_is_in_one_shard(monkeypatch):
    monkeypatch.setattr(P, "processes", lambda: 3)
    shards = []
    for rank in range(3):
        monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
        shards.append(range(7)[P.shard(7)])
    assert sorted(row for rows in shards for row in rows) == list(range(7)) and {*map(len, shards)} == {2, 3}


def test_a_contrastive_batch_needs_a_pair_for_every_process(monkeypatch):
    monkeypatch.setattr("slug_lite.runtime.batches.processes", lambda: 4)
    assert len(contrastive_batches(8, 4)) == 2
    with pytest.raises(ValueError, match="fewer pairs than the 4 processes"):
        contrastive_batches(8, 3)
