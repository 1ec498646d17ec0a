"""Signals at random times, one or two, in every context manager of the package: nothing is left changed."""

import ast
import random
import signal
import sys
import time
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from torch import nn

import slug_lite as slug
from slug_lite.diffusion import attention
from slug_lite.diffusion.drawing import generated_pairs
from slug_lite.pretrain import loop
from slug_lite.runtime import modes, progress, replay, short_texts, so_far, stacks
from slug_lite.search import search_step

TRIES = 1000
HOUSE = Path(slug.__file__).parent
# Of whatever is made by `undone`: what it is tried by, below
COVERED = {
    "eval_mode": "eval_mode", "only_gradients_of": "only_gradients_of", "hooked": "short_texts",
    "edited": "Edit.on", "_shifted": "Edit.apply", "kept": "search_step", "together": "together",
    "silent": "silent", "_recorded": "record", "_played": "play", "attention._recorded": "attention",
    "_without_bar": "generated_pairs", "loop._interrupts": "training", "loop._begun": "optimizer",
    "telling": "telling", "remark": "remark", "no_gradients": "fingerprint",
}  # fmt: skip
LAYERS = ("visual.proj", "transformer.resblocks.0.mlp.c_fc.weight")


@cache
def clip():
    torch.manual_seed(0)
    vision = {"image_size": 16, "patch_size": 8, "layers": 1, "width": 16, "head_width": 8}
    text = {"context_length": 16, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1}
    model = open_clip.CLIP(embed_dim=8, vision_cfg=vision, text_cfg=text).eval()
    model.visual.train()
    model.visual.proj.requires_grad_(False)
    model.text_projection.grad = torch.ones_like(model.text_projection)
    return slug.Clip(model, None, None)


@cache
def edit():
    deltas = {layer: torch.full_like(clip().weights()[layer], 0.5).half() for layer in LAYERS}
    return slug.Edit(deltas, dict.fromkeys(LAYERS, 1.0), "x", slug.fingerprint(clip()))


class Attention(nn.Module):
    """As much of diffusers' as is looked at."""

    def __init__(self):
        super().__init__()
        self.heads, self.processor = 2, "its own"

    def set_processor(self, processor):
        self.processor = processor

    def get_attention_scores(self, *given):
        return given


class CLIPTextModel(nn.Module):
    pass


class DiffusionPipeline:
    text_encoder, unet, vae = CLIPTextModel(), CLIPTextModel(), CLIPTextModel()

    def __init__(self):
        self._progress_bar_config = {"desc": "own"}

    def set_progress_bar_config(self, **given):
        self._progress_bar_config = given

    def __call__(self, prompts, generator, output_type):
        return type("Drawn", (), {"images": np.stack([np.eye(2)[..., None].repeat(3, 2) for _ in prompts])})()


class StableDiffusionPipeline(DiffusionPipeline):
    pass


UNET, PIPE, BLOCKS = (
    nn.ModuleDict({"attn2": Attention()}),
    StableDiffusionPipeline(),
    [nn.Linear(2, 2), nn.Linear(2, 2)],
)
OPTIMIZER = torch.optim.AdamW(BLOCKS[0].parameters())
TOKENS = torch.tensor([[1, 2, 49, *[0] * 13]])
NUMBERS = torch.zeros(2, 2)


def body():
    """Ends in work that looks for no signals: what comes meanwhile is noticed where the with-block is left."""
    torch.zeros(100)
    x = NUMBERS + NUMBERS
    x += x @ x


def in_block(make):
    def run():
        with make():
            torch.zeros(100)
            x = NUMBERS + NUMBERS
            x += x @ x

    return run


def played():
    kept = replay.Replay(BLOCKS)
    kept.outputs = [NUMBERS]
    return kept.play()


def scores(clip):
    body()
    return {"forget_accuracy": 0.0, "retain_accuracy": 1.0}


def a_search():
    search_step(clip(), LAYERS[0], torch.ones_like(clip().weights()[LAYERS[0]]), scores, slug.StepSearch("top1"))


def both():
    from slug_lite.runtime.undo import together

    return together([edit().on(clip(), force=True), edit().on(clip().model, force=True)])


OPERATIONS = {
    "Edit.on": in_block(lambda: edit().on(clip(), force=True)),
    "Edit.apply": lambda: edit().apply(clip(), force=True),
    "eval_mode": in_block(lambda: modes.eval_mode(clip().model)),
    "only_gradients_of": in_block(lambda: modes.only_gradients_of(clip(), LAYERS)),
    "search_step": a_search,
    "together": in_block(both),
    "short_texts": in_block(lambda: short_texts.short_texts(clip().model, TOKENS)),
    "record": in_block(lambda: replay.Replay(BLOCKS).record()),
    "play": in_block(played),
    "silent": in_block(progress.silent),
    "attention": in_block(lambda: attention._recorded(UNET, {}, Counter())),
    "generated_pairs": lambda: generated_pairs(PIPE, "a", 1, progress=False),
    "training": in_block(loop._interrupts),
    "telling": in_block(lambda: so_far.telling({})),
    "remark": in_block(lambda: so_far.remark("stopped")),
    "fingerprint": lambda: slug.fingerprint(clip()),  # gradients off, and on again
    "optimizer": in_block(lambda: loop._begun(OPTIMIZER)),
}


def state():
    """All that any of them changes."""
    out = [
        torch.is_grad_enabled(),
        len(stacks.STACKS),
        progress._SILENT.get(),
        UNET["attn2"].processor,
        sorted(UNET["attn2"].__dict__),
    ]
    out += [PIPE._progress_bar_config, signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)]
    for module in (*clip().model.modules(), *BLOCKS):
        out += [module.training, len(module._forward_hooks), len(module._forward_pre_hooks), "forward" in vars(module)]
        out += [len(module._forward_pre_hooks_with_kwargs), len(module._forward_hooks_with_kwargs)]
    for p in clip().model.parameters():
        out += [p.requires_grad, id(p.grad), p.detach().numpy().tobytes()]
        out += [] if p.grad is None else [p.grad.numpy().tobytes()]
    return out


WAITING = []  # seconds to each of the signals that may still come


def raises(*_):
    if WAITING:
        WAITING.pop(0)
        if WAITING:
            signal.setitimer(signal.ITIMER_REAL, WAITING[0])
        raise KeyboardInterrupt


@pytest.fixture
def alarm(monkeypatch):
    """Signals raise. What Python itself loses, in callbacks of weak references (tqdm has them), is not to be reported:
    pytest's hook would be interrupted as well, so that nothing written in Python is put in its place."""
    monkeypatch.setattr(sys, "unraisablehook", bool)
    kept = signal.signal(signal.SIGALRM, raises)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, kept)


def attempt(run, *delays):
    """Run with a signal after so many seconds, another so many later; what it was ended by."""
    error, WAITING[:] = None, delays
    try:
        signal.setitimer(signal.ITIMER_REAL, delays[0])
        run()
        WAITING[:] = []
    except KeyboardInterrupt as one:
        WAITING[:] = []
        error = one  # held while the model is looked at: with its traceback a generator, never ended, would be ended
    signal.setitimer(signal.ITIMER_REAL, 0)
    return error


def left_changed(name, tries, seed=0, most=2, apart=0.2):
    """Of so many tries, with one to `most` signals, how many were interrupted and how many left something changed.

    apart: how long after one signal the next may come, as a part of the time that the whole takes.
    """
    run, rng, before = OPERATIONS[name], random.Random(seed), state()
    allowed, weights = [before], {n: p.detach().clone() for n, p in clip().weights().items()}
    times = []
    for _ in range(20):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
        if name == "Edit.apply":  # all of it is as good as nothing
            allowed = [before, state()] if len(allowed) == 1 else allowed
            for n, p in clip().weights().items():
                p.detach().copy_(weights[n])
        assert state() == before
    span, interrupted, changed = np.median(times), 0, 0
    for k in range(tries):
        more = [rng.uniform(2e-6, apart * span) for _ in range(k % most)]  # 0 would be none
        error = attempt(run, rng.uniform(2e-6, 1.1 * span), *more)
        interrupted += error is not None
        after = state()
        changed += after not in allowed
        del error
        if after != before:
            for n, p in clip().weights().items():
                p.detach().copy_(weights[n])
        if after not in allowed and state() != before:
            before = state()  # what it left behind is where the next try begins
            allowed[0] = before
    return interrupted, changed


@pytest.mark.parametrize("name", OPERATIONS)
def test_nothing_is_left_changed(name, alarm):
    interrupted, changed = left_changed(name, TRIES)
    assert changed == 0 and interrupted > TRIES / 4, (interrupted, changed)


def test_nothing_is_left_changed_by_bursts(alarm):
    """One signal while another is dealt with, and so on: as a key that is held down."""
    interrupted, changed = left_changed("Edit.on", 3 * TRIES, most=8, apart=0.05)
    assert changed == 0 and interrupted > TRIES, (interrupted, changed)


def parsed():
    return {
        file.relative_to(HOUSE).as_posix(): ast.parse(file.read_text(encoding="utf-8")) for file in HOUSE.rglob("*.py")
    }


def test_every_context_manager_of_the_package_is_in_this_test():
    found = []
    for tree in parsed().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and any(ast.unparse(d) == "undone" for d in node.decorator_list):
                found.append(node.name)
    assert sorted(found) == sorted(name.rpartition(".")[2] for name in COVERED)
    assert set(COVERED.values()) == set(OPERATIONS)


def test_there_is_one_way_to_write_a_context_manager():
    """What an interrupt can leave undone: generators, `__exit__` in Python, `finally`, hooks of one's own."""
    wrong = []
    for file, tree in parsed().items():
        for node in ast.walk(tree):
            text = ast.unparse(node) if isinstance(node, (ast.ImportFrom, ast.Attribute, ast.Call)) else ""
            if "contextmanager" in text.lower() and "AbstractContextManager" not in text:
                wrong.append((file, text))
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and file != "runtime/undo.py":
                wrong += [(file, node.name)] if node.name in ("__enter__", "__exit__", "__aexit__") else []
            if isinstance(node, ast.Try) and node.finalbody and file not in ("runtime/undo.py", "runtime/files.py"):
                wrong.append((file, ast.unparse(node.finalbody[0])))
            if (
                isinstance(node, ast.Call)
                and "register_forward" in ast.unparse(node.func)
                and file != "runtime/modes.py"
            ):
                wrong.append((file, text))
            if text.startswith("torch.no_grad") and not file.startswith("pretrain/"):  # trainings have their process
                wrong.append((file, text))
            if isinstance(node, (ast.Name, ast.Attribute)) and ast.unparse(node).endswith("ExitStack"):
                wrong.append((file, "ExitStack"))
    assert wrong == []
