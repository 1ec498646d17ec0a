"""The loop that all trainings share, on a model of three weights: its log, its checkpoints, what a run may change."""

import threading
from dataclasses import dataclass, replace

import pytest
import torch
from safetensors import safe_open

from slug_lite.pretrain import loop
from slug_lite.pretrain.loop import Training, When, read_log
from slug_lite.pretrain.unet import UnetRecipe


@dataclass(frozen=True)
class Plain:
    """A recipe whose learning rate knows the last step from the first on."""

    steps: int = 6
    lr: float = 0.1
    warmup: int = 2
    weight_decay: float = 0.0


@dataclass(frozen=True)
class Cooled(Plain):
    cooldown: float = 0.5


def training(recipe, stumble=lambda step: None):
    """Weights that learn to be ones, pulled about by noise that follows from the step."""
    model = torch.nn.Linear(3, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    optimizer = loop.adamw(model, recipe)

    def one_step(step):
        stumble(step)
        noise = torch.randn(3, generator=torch.Generator().manual_seed(step))
        loss = (model.weight - 1 + 0.1 * noise).square().mean()
        loop.descend(model, loss, optimizer, 0.1 / (step + 1))
        return loss.item()

    return Training(recipe, model, optimizer, one_step, lambda step: {"seen": step} if step % 4 == 0 else {})


def step_of(folder):
    with safe_open(folder / "x-checkpoint.safetensors", "pt") as file:
        return int(file.metadata()["step"])


def test_rows_hold_the_mean_loss_the_rate_of_the_last_step_and_what_was_looked_at(tmp_path):
    taken, work = [], training(Plain())

    def one_step(step):
        taken.append(work.one_step(step))
        return taken[-1]

    assert loop.train(tmp_path, "x", replace(work, one_step=one_step), When(log_every=4)) == 6
    rows = read_log(tmp_path, "x_log.jsonl")
    assert [row["step"] for row in rows] == [4, 6] and [row.get("seen") for row in rows] == [4, None]
    assert [row["lr"] for row in rows] == [0.1 / 4, 0.1 / 6]
    for row, losses in zip(rows, (taken[:4], taken[4:]), strict=True):
        assert row["loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-5)


def test_stopped_resumed_and_logged_as_if_in_one_go(tmp_path):
    folders = [tmp_path / "whole", tmp_path / "parts"]
    for folder in folders:
        folder.mkdir()
    whole, done = training(Plain()), []
    loop.train(folders[0], "x", whole, When(log_every=1))
    for until in (2, 2, None):
        part = training(Plain())
        done.append(loop.train(folders[1], "x", part, When(until, log_every=1)))
    assert done == [2, 2, 6] and step_of(folders[1]) == 6 and torch.equal(whole.model.weight, part.model.weight)
    first, second = ([(row["step"], row["loss"], row["lr"]) for row in read_log(f, "x_log.jsonl")] for f in folders)
    assert first == second


def test_an_exception_leaves_the_last_checkpoint_and_its_rows_are_written_anew(tmp_path):
    def stumble(step):
        if step == 5:
            raise RuntimeError("no memory")

    loop.train(tmp_path, "x", training(Plain()), When(2, log_every=1))
    with pytest.raises(RuntimeError, match="no memory"):
        loop.train(tmp_path, "x", training(Plain(), stumble), When(log_every=1))
    assert step_of(tmp_path) == 2 and len(read_log(tmp_path, "x_log.jsonl")) == 5
    loop.train(tmp_path, "x", training(Plain()), When(log_every=1))
    assert [row["step"] for row in read_log(tmp_path, "x_log.jsonl")] == [1, 2, 3, 4, 5, 6]


def test_checkpoints_are_written_on_the_way(tmp_path):
    seen = []
    loop.train(tmp_path, "x", training(Plain(), lambda step: seen.append(step and step_of(tmp_path))), When(minutes=0))
    assert seen == [0, 1, 2, 3, 4, 5]


def test_steps_may_change_where_there_is_a_cooldown_and_nothing_else_may(tmp_path):
    for recipe, others in ((Plain(), [Plain(steps=8), Plain(lr=0.2)]), (Cooled(), [Cooled(cooldown=0.4)])):
        folder = tmp_path / type(recipe).__name__
        folder.mkdir()
        loop.train(folder, "x", training(recipe), When(2))
        for other in others:
            with pytest.raises(ValueError, match="another recipe"):
                loop.train(folder, "x", training(other))
    assert loop.train(tmp_path / "Cooled", "x", training(Cooled(steps=8))) == 8


def test_trains_in_a_thread_too(tmp_path):
    done = []
    thread = threading.Thread(target=lambda: done.append(loop.train(tmp_path, "x", training(Plain()))))
    thread.start()
    thread.join()
    assert done == [6]


def test_learning_rate_warms_up_holds_and_falls_to_zero():
    rates = [loop.learning_rate(UnetRecipe(steps=1000, warmup=100, cooldown=0.25), s) for s in range(1001)]
    assert rates[0] == pytest.approx(1e-5) and rates[100:750] == [1e-3] * 650
    assert rates[-1] == 0 and rates[875] == pytest.approx(5e-4)
