"""The loop that all trainings share, on a model of three weights: its log, its checkpoints, what a run may change."""

import os
import threading
from dataclasses import dataclass, replace

import pytest
import torch
from safetensors import safe_open

from slug_lite.pretrain import loop
from slug_lite.pretrain.loop import Training, When, read_log
from slug_lite.pretrain.unet import UnetRecipe
from slug_lite.runtime.files import TEXT_LIMIT, write_signed


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


def training(recipe, stumble=lambda step: None, look=lambda step: {"seen": step} if step % 4 == 0 else {}):
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

    return Training(recipe, model, optimizer, one_step, look)


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


@pytest.mark.parametrize("where", ["before", "in the optimizer", "after", "look", "log"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_whatever_ends_a_run_it_goes_on_as_if_in_one_go(tmp_path, monkeypatch, where, error):
    """What comes while a step changes weights leaves the last checkpoint; anything else saves the last whole step."""
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    whole = training(Plain(), look=lambda step: {})
    loop.train(tmp_path / "a", "x", whole, When(log_every=1))
    loop.train(tmp_path / "b", "x", training(Plain()), When(2, log_every=1))

    def stumble(*_):
        raise error("no memory")

    def at_five(step):
        if step == 5:
            stumble()

    broken = training(Plain(), at_five if where == "before" else lambda step: None)
    take = broken.one_step
    if where == "in the optimizer":
        done = []
        broken.optimizer.register_step_post_hook(lambda *_: (done.append(1), at_five(len(done) + 1)))
    elif where == "after":
        broken = replace(broken, one_step=lambda step: (take(step), at_five(step))[0])
    elif where == "look":
        broken = replace(broken, look=lambda step: at_five(step) or {})
    elif where == "log":
        rows = loop.log_row
        monkeypatch.setattr(loop, "log_row", lambda f, row, n: (at_five(row["step"]), rows(f, row, n)))
    with pytest.raises(error, match="no memory"):
        loop.train(tmp_path / "b", "x", broken, When(log_every=1))
    assert step_of(tmp_path / "b") == (2 if where in ("in the optimizer", "after") else 5)
    assert not broken.optimizer._optimizer_step_pre_hooks
    monkeypatch.undo()
    resumed = training(Plain(), look=lambda step: {})
    loop.train(tmp_path / "b", "x", resumed, When(log_every=1))
    assert torch.equal(resumed.model.weight, whole.model.weight)
    assert [row["step"] for row in read_log(tmp_path / "b", "x_log.jsonl")][-1] == 6


def test_a_log_that_is_no_log_is_refused(tmp_path):
    """Longer than any run writes, of JSON that no parser comes out of, and a pipe, which nobody writes into."""
    log, row = tmp_path / "x_log.jsonl", '{"step": 1}\n'
    log.write_text("[" * 200_000 + "\n" + row)
    with pytest.raises(ValueError, match=r"line 1 of .* is no row of a log"):
        read_log(tmp_path, log.name)
    for bad in ('{"step": null}', '{"step": "5"}', '{"step": true}', '{"step": [%s0]}' % ("[]," * 50_000), "null"):
        log.write_text(bad + "\n" + row)
        with pytest.raises(ValueError, match=r"line 1 of .* is no row of a log"):
            read_log(tmp_path, log.name)
    log.write_text(row + "\n \n" + row.replace("1", "2") + '{"step": 3, "lo\n\n')
    assert [one["step"] for one in read_log(tmp_path, log.name)] == [1, 2]  # lines that are empty say nothing
    with log.open("wb") as opened:
        opened.truncate(TEXT_LIMIT + 1)
    with pytest.raises(ValueError, match="longer than 67,108,864 bytes"):
        read_log(tmp_path, log.name)
    log.unlink()
    os.mkfifo(log)
    with pytest.raises(ValueError, match="no regular file"):
        read_log(tmp_path, log.name)


def test_a_log_whose_last_line_is_cut_does_not_stop_the_run(tmp_path):
    loop.train(tmp_path, "x", training(Plain()), When(2, log_every=1))
    log = tmp_path / "x_log.jsonl"
    whole = log.read_text()
    for cut in (whole[:-9], whole + "{", whole + '{"step": 3, "lo', whole + "3", whole + "\0\0\0"):
        log.write_text(cut)
        assert [row["step"] for row in read_log(tmp_path, "x_log.jsonl")] == ([1] if len(cut) < len(whole) else [1, 2])
    loop.train(tmp_path, "x", training(Plain()), When(4, log_every=1))
    assert [row["step"] for row in read_log(tmp_path, "x_log.jsonl")] == [1, 2, 3, 4]
    log.write_text('{"step": 1, "lo\n' + whole)
    with pytest.raises(ValueError, match=r"line 1 of .* is no row"):
        read_log(tmp_path, "x_log.jsonl")


def two_layers():
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1))
    optimizer = loop.adamw(model, Plain())
    model(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


def change(tensors, meta, what):
    if what == "broadcast":
        tensors["model.1.bias"], tensors["model.0.bias"] = tensors["model.1.bias"], torch.ones(1)
    elif what == "nan":
        tensors["model.0.weight"] = torch.full((2, 3), torch.nan)
    elif what == "missing":
        del tensors["model.1.bias"]
    elif what == "strange":
        tensors["model.2.bias"] = torch.ones(1)
    elif what == "half":
        del tensors["exp_avg_sq.0.weight"]
    elif what == "dtype":
        tensors["exp_avg.0.weight"] = tensors["exp_avg.0.weight"].half()
    elif what == "below zero":
        tensors["exp_avg_sq.0.weight"] = -torch.ones(2, 3)
    elif what == "nested":
        meta["recipe"] = "[" * 100_000
    elif what == "no json":
        meta["recipe"] = "{"
    elif what in STEPS:
        meta["step"] = what.removesuffix(" steps")


# whole numbers that no float holds, that none of 32 bits counts on from, that are no digits of ASCII
STEPS = ["-5", "1.5", "nan steps", "1" + "0" * 400, "9" * 5_000, "99999999999", "16777217", "\u0663", "+1", ""]
WRONG = ["broadcast", "nan", "missing", "strange", "half", "dtype", "digest", "cut", "below zero", "nested", "no json"]


@pytest.mark.parametrize("what", WRONG + STEPS, ids=lambda what: ascii(what)[:20])
def test_a_checkpoint_is_checked_before_anything_is_overwritten(tmp_path, what):
    file, (model, optimizer) = tmp_path / "x-checkpoint.safetensors", two_layers()
    loop.save_checkpoint(file, model, optimizer, 1, {})
    assert loop.load_checkpoint(file, *two_layers(), {}) == 1
    with safe_open(file, "pt") as saved:
        meta, tensors = saved.metadata(), {name: saved.get_tensor(name).clone() for name in saved.keys()}  # noqa: SIM118
    meta.pop("digest", None)
    change(tensors, meta, what)
    if what == "digest":
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    elif what == "cut":
        file.write_bytes(file.read_bytes()[:-8])
    else:
        write_signed(file, tensors, meta)
    model, optimizer = two_layers()
    before = [p.detach().clone() for p in model.parameters()]
    state = [{key: value.clone() for key, value in optimizer.state[p].items()} for p in model.parameters()]
    with pytest.raises(ValueError, match="x-checkpoint"):
        loop.load_checkpoint(file, model, optimizer, {})
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    for own, p in zip(state, model.parameters(), strict=True):
        assert all(torch.equal(value, optimizer.state[p][key]) for key, value in own.items())


def test_weights_that_are_not_finite_do_not_replace_a_checkpoint(tmp_path):
    loop.train(tmp_path, "x", training(Plain()), When(2))
    broken = training(Plain())
    take = broken.one_step

    def diverge(step):
        loss = take(step)
        with torch.no_grad():
            broken.model.weight.fill_(torch.nan)
        return loss

    with pytest.raises(ValueError, match=r"after 6 steps 'model\.weight' is not finite"):
        loop.train(tmp_path, "x", replace(broken, one_step=diverge))
    assert step_of(tmp_path) == 2


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
