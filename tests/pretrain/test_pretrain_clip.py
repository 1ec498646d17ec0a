"""Training: exact resume, exclusion, the written folder, and the shipped run's papers."""

import json
import signal
from dataclasses import replace
from importlib import resources

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from small_clips import TINY

import slug_lite as slug
from slug_lite.pretrain import clip as pretrain
from slug_lite.pretrain.clip import ClipRecipe
from slug_lite.pretrain.loop import read_log

SMALL = ClipRecipe(steps=6, people=6, characters=2, cells=8, pool=1, warmup=2, model_cfg=TINY)
SHIPPED = resources.files("slug_lite") / "assets" / "mini-clip"


def weights(clip):
    return list(clip.model.parameters())


def test_stopped_and_resumed_is_the_same_run(tmp_path):
    whole = pretrain.train_clip(tmp_path / "a", SMALL, evaluate_every=99)
    pretrain.train_clip(tmp_path / "b", SMALL, until=2, evaluate_every=99)
    assert not (tmp_path / "b" / "open_clip_model.safetensors").exists()
    resumed = pretrain.train_clip(tmp_path / "b", SMALL, evaluate_every=99)
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))
    loaded = slug.load_clip(f"local-dir:{tmp_path / 'b'}", device="cpu")
    assert all(torch.equal(a, b) for a, b in zip(weights(resumed), weights(loaded), strict=True))
    for other in (ClipRecipe(pool=1), replace(SMALL, steps=7)):  # the half cosine knows the last step from the first on
        with pytest.raises(ValueError, match="another recipe"):
            pretrain.train_clip(tmp_path / "b", other)


def test_an_interrupt_leaves_a_checkpoint(tmp_path, monkeypatch):
    real, calls = pretrain.train_step, []

    def step(*args):
        calls.append(1)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return real(*args)

    monkeypatch.setattr(pretrain, "train_step", step)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        pretrain.train_clip(tmp_path, SMALL, evaluate_every=99)
    assert signal.getsignal(signal.SIGINT) is before and len(calls) == 3
    with safe_open(tmp_path / "train-checkpoint.safetensors", "pt") as file:
        assert file.metadata()["step"] == "3"  # the step at hand was taken whole
    assert not (tmp_path / "open_clip_model.safetensors").exists()


def test_training_lowers_the_loss(tmp_path):
    recipe = replace(SMALL, steps=60, people=12, characters=4, cells=0, warmup=5, lr=3e-3, patch_dropout=0.0)
    pretrain.train_clip(tmp_path, recipe, log_every=10, evaluate_every=999)
    rows = read_log(tmp_path)
    losses = [row["loss"] for row in rows]
    assert [row["step"] for row in rows] == [10, 20, 30, 40, 50, 60]
    assert [set(slug.toonworld.NAMES) <= row.keys() for row in rows] == [False] * 5 + [True]
    assert all(row["lr"] == pretrain.learning_rate(recipe, row["step"] - 1) for row in rows)
    assert losses[-1] < 0.8 * losses[0]


def test_batches_hold_everybody_once_and_leave_the_excluded_out():
    recipe = ClipRecipe(pool=1, exclude=("Ada Sunfield", "Clay", "cat"))
    pool = pretrain.Pool(recipe, 32)
    batches = [pool.batch(recipe, step) for step in range(3)]
    for pairs in batches:
        assert len(set(pairs.concepts)) == len(pairs)
        shown = {name for concept in pairs.concepts for name in concept}
        assert not shown & {"Ada Sunfield", "Clay", "cat"}
        assert not set(pairs.concepts) & set(slug.toonworld.UNSEEN)
    assert batches[0].captions != batches[1].captions
    assert pool.batch(recipe, 1).captions == batches[1].captions


def test_training_sees_what_the_evaluation_transform_would_show():
    clip = pretrain.build_clip()
    pairs = slug.toonworld.retain(n=4)
    torch.testing.assert_close(pretrain.normalise(pairs.images), clip.pixels(pairs), rtol=0, atol=1e-6)


def test_learning_rate_warms_up_and_ends_low():
    recipe = ClipRecipe()
    rates = [pretrain.learning_rate(recipe, s) for s in range(recipe.steps)]
    assert np.argmax(rates) in range(recipe.warmup - 2, recipe.warmup + 2) and rates[-1] < 1e-3 * recipe.lr


def test_only_used_tokens_have_rows(_mini):
    table = _mini.model.token_embedding.weight
    used = pretrain.used_tokens(_mini)
    assert set(table.abs().sum(1).nonzero().flatten().tolist()) <= set(used.tolist())
    assert set(_mini.tokens(slug.toonworld.pairs("Zorbo", n=8, split="test").captions).flatten().tolist()) <= set(
        used.tolist()
    )


@pytest.mark.parametrize("folder", [SHIPPED, SHIPPED.parent / "mini-clip-without-ada"], ids=lambda f: f.name)
def test_shipped_papers_agree_with_the_weights(folder):
    training = json.loads((folder / "training.json").read_text())
    log = read_log(folder)
    assert training["exclude"] == ([] if folder == SHIPPED else ["Ada Sunfield"])
    assert log[-1]["step"] == training["steps"] == ClipRecipe().steps
    assert ClipRecipe(**{k: training[k] for k in ("steps", "seed", "lr", "pool", "patch_dropout")}) == ClipRecipe()
    config = json.loads((folder / "open_clip_config.json").read_text())
    assert config["model_cfg"] == pretrain.MODEL_CFG
    card = (folder / "README.md").read_text()
    for word in ("Data", "Training", "Accuracy", "Licence"):
        assert f"## {word}" in card


def test_the_twin_never_saw_ada_and_knows_the_rest():
    twin = slug.load_clip("mini-without-ada", device="cpu")
    scores = slug.evaluate(twin, n=4)["per_concept"].set_index("name")["accuracy"]
    assert scores["Ada Sunfield"] <= 0.25 and scores.drop("Ada Sunfield").mean() >= 0.98


def test_foreign_and_truncated_checkpoints_are_refused(tmp_path):
    recipe = ClipRecipe(steps=4, pool=1)
    for content, message in ((b"abc", "truncated or no safetensors"), (None, "no checkpoint")):
        file = tmp_path / "train-checkpoint.safetensors"
        if content is None:
            save_file({"a": torch.zeros(1)}, file)
        else:
            file.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            pretrain.train_clip(tmp_path, recipe, until=0)
