"""Several processes: each does its part of the work, and all find what one would find."""

import json
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
import json
import sys
from pathlib import Path

import torch.distributed as dist
from safetensors.torch import save_file
import slug_lite as slug
from slug_lite.pretrain.clip import build_clip

sys.path.insert(0, sys.argv[1])
from small_clips import TINY

dist.init_process_group("gloo")
clip, world = build_clip(TINY, seed=1), slug.toonworld
forget, retain = world.pairs("Ada Sunfield", n=7, size=32), world.retain(["Ada Sunfield"], n=21, size=32)
for name, settings in json.loads(sys.argv[3]).items():
    found = slug.one_shot_gradients(clip, forget, retain, progress=False, **settings)
    folder = Path(sys.argv[2], name, str(dist.get_rank()))
    folder.mkdir(parents=True)
    found.stats.to_json(folder / "stats.json")
    save_file(found.forget, folder / "forget.safetensors")
    (folder / "losses.json").write_text(json.dumps([found.forget_loss, found.retain_loss]))
dist.destroy_process_group()
"""
# a process's share in several micro-batches, in one (as with the defaults), and a contrastive loss over parts
SETTINGS = {"pieces": {"batch_size": 4}, "whole": {}, "parts": {"contrastive_batch": 8}}


@pytest.fixture(scope="module")
def by_two(tmp_path_factory):
    """What two processes find: a folder for each of SETTINGS, and in it one for each process."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "worker.py").write_text(WORKER)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d",
               "--rdzv-endpoint=localhost:0", folder / "worker.py", Path(__file__).parents[1], folder,
               json.dumps(SETTINGS)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("name", SETTINGS)
def test_two_processes_find_what_one_finds(by_two, name):
    """Each takes its share, an odd one here; the contrastive loss is over the pairs of both."""
    world, clip = slug.toonworld, build_clip(TINY, seed=1)
    forget, retain = world.pairs("Ada Sunfield", n=7, size=32), world.retain(["Ada Sunfield"], n=21, size=32)
    one = slug.one_shot_gradients(clip, forget, retain, **SETTINGS[name])
    for rank in range(2):
        folder = by_two / name / str(rank)
        losses = json.loads((folder / "losses.json").read_text())
        assert losses == pytest.approx([one.forget_loss, one.retain_loss], rel=1e-5)
        stats = pd.read_json(folder / "stats.json")
        for column in ("importance", "retain_norm", "cosine"):
            assert np.allclose(stats[column], one.stats[column], rtol=1e-5, atol=1e-5), column
        for layer, gradient in load_file(folder / "forget.safetensors").items():
            torch.testing.assert_close(gradient, one.forget[layer], rtol=1e-4, atol=1e-6)


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
