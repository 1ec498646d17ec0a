"""One measurement in a process of its own: python tests/bench/cases.py CASE MODEL [key=value ...], a JSON line out.

Memory is the process's peak resident size above what the imports left, so every case starts fresh. Models other than
mini have random weights: neither time nor memory depends on their values.
"""

from __future__ import annotations

import copy
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from unittest.mock import patch

import open_clip
import psutil
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

import slug_lite as slug
from slug_lite.diffusion.text_encoder import text_encoder_from
from slug_lite.gradients import layer_stats
from slug_lite.runtime import bracket
from slug_lite.runtime.progress import silent
from slug_lite.runtime.stacks import add_delta
from slug_lite.runtime.zero_shot import embed_images
from slug_lite.search import first_step, make_delta, search_step
from slug_lite.validation import scorer_of

world = slug.toonworld
NAME = "Ada Sunfield"
BY_MARGIN = slug.StepSearch("margin")  # which may stop before all tries are used


def peak() -> float:
    """Peak resident size so far, in MB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


BASELINE = peak()


def load(name: str) -> slug.Clip:
    if name == "mini":
        return slug.load_clip("mini", device="cpu")
    torch.manual_seed(0)
    model, _, preprocess = open_clip.create_model_and_transforms(name, pretrained=None)
    return slug.Clip(model.eval(), open_clip.get_tokenizer(name), preprocess)


class Plain(slug.Clip):
    """The model's own functions and nothing else: texts run at their full context length."""

    def text_features(self, tokens: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.model.encode_text(tokens), dim=-1)


def sizes(clip: slug.Clip) -> dict:
    """Megabytes of all weights, and of those that gradients are taken of."""
    weights = clip.weights()
    layers = [w for n, w in weights.items() if clip.tower(n) and slug.editable(n, w)]
    return {
        "weights_mb": sum(w.numel() * w.element_size() for w in weights.values()) / 1e6,
        "layers_mb": sum(w.numel() * w.element_size() for w in layers) / 1e6,
    }


def seconds(call: Callable[[], object], repeats: int = 1) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def bare(clip: slug.Clip, forget: list, retain: list) -> None:
    """Forward and backward of both losses over micro-batches of (pixels, tokens), into .grad, and nothing else."""
    scale = clip.logit_scale().detach()
    for part, loss in ((forget, slug.forget_loss), (retain, lambda x, y: slug.retain_loss(x, y, scale))):
        clip.model.zero_grad(set_to_none=True)
        for pixels, tokens in part:
            loss(clip.image_features(pixels), clip.text_features(tokens)).backward()
    clip.model.zero_grad(set_to_none=True)


def ready(clip: slug.Clip, pairs: slug.Pairs, batch: int) -> list:
    parts = [pairs[k : k + batch] for k in range(0, len(pairs), batch)]
    return [(clip.pixels(part), clip.tokens(part.captions)) for part in parts]


def gradients_time(clip: slug.Clip, forget: int, retain: int, batch: int, repeats: int) -> dict:
    """one_shot_gradients against the bare passes on the same batches, in turns; these with and without padding."""
    f, r = world.pairs(NAME, n=forget), world.retain([NAME], n=retain)
    parts, whole = (ready(clip, f, batch), ready(clip, r, batch)), Plain(clip.model, clip.tokenizer, clip.preprocess)
    ours, plain, short = [], [], []
    for k in range(repeats + 1):
        times = seconds(lambda: bare(whole, *parts)), seconds(lambda: one_shot(clip, f, r, batch))
        also = seconds(lambda: bare(clip, *parts))
        if k:  # the first round warms up
            plain.append(times[0])
            ours.append(times[1])
            short.append(also)
    return {
        "plain_s": statistics.median(plain), "short_s": statistics.median(short), "ours_s": statistics.median(ours),
        "ratio": statistics.median(o / p for o, p in zip(ours, plain, strict=True)),
        "ratio_short": statistics.median(o / p for o, p in zip(ours, short, strict=True)),
    }  # fmt: skip


def one_shot(clip: slug.Clip, f: slug.Pairs, r: slug.Pairs, batch: int) -> slug.Gradients:
    return slug.one_shot_gradients(clip, f, r, batch_size=batch)


def gradients_memory(clip: slug.Clip, forget: int, retain: int, batch: int, what: str) -> dict:
    """Peak memory: what="bare" of one micro-batch, forward and backward; what="ours" of one_shot_gradients."""
    f, r = world.pairs(NAME, n=forget), world.retain([NAME], n=retain)
    if what == "bare":
        bare(clip, [], ready(clip, r[:batch], batch))
    else:
        one_shot(clip, f, r, batch)
    return {"peak_mb": peak() - BASELINE} | sizes(clip)


def growth(clip: slug.Clip, forget: int, retain: int, batch: int) -> dict:
    f, r = world.pairs(NAME, n=forget), world.retain([NAME], n=retain)
    return {"seconds": seconds(lambda: one_shot(clip, f, r, batch)), "peak_mb": peak() - BASELINE} | sizes(clip)


def validation(images: int, prompts: int) -> slug.Validation:
    """The first so many pictures, a tenth of them of the concept (at most 48), and so many prompts or more, of all
    names."""
    of_concept = min(48, max(2, images // 10))
    full = world.validation(NAME, n=of_concept, others=8 * max(1, images // 500))
    each = max(1, -(-prompts // sum(map(len, world.NAMES.values()))))
    templates = {kind: world.templates(kind, "train")[:each] for kind in world.NAMES}
    return slug.Validation(full.pairs[:images], NAME, world.NAMES, templates)


def a_layer_each(clip: slug.Clip) -> list[str]:
    """First, middle and last block of both towers (the second matrix of the MLP), and both output projections."""
    found = []
    for start, last in (("visual.", "visual.proj"), ("transformer.", "text_projection")):
        names = [n for n in clip.weights() if n.startswith(start) and n.endswith("mlp.c_proj.weight")]
        found += [names[0], names[len(names) // 2], names[-1], last]
    return found


def plain_try(clip: slug.Clip, layer: str, delta: torch.Tensor, score: slug.Validation) -> dict:
    """What the plain procedure does at every step: copy the model, change the copy, evaluate both towers in full."""
    changed = Plain(copy.deepcopy(clip.model), clip.tokenizer, clip.preprocess)
    with torch.no_grad():
        weight = changed.weights()[layer]
        weight.copy_(add_delta(weight, delta))
        return score(changed)


def search(clip: slug.Clip, images: int, prompts: int) -> dict:
    """The step search, plain and ours, each to its end, in every layer of a front.

    Of the plain search two tries are timed and ten reckoned: they all do the same.
    """
    score, rows = validation(images, prompts), []
    prepare = seconds(lambda: scorer_of(score, clip))
    scorer = scorer_of(score, clip)
    found = slug.one_shot_gradients(clip, world.pairs(NAME, n=48), world.retain([NAME], n=512))
    for layer in slug.pareto_front(found.stats):
        gradient = found.forget[layer]
        start = time.perf_counter()
        ours = search_step(clip, layer, gradient, scorer, BY_MARGIN)
        taken = time.perf_counter() - start
        steps = [k * first_step(clip.weights()[layer], gradient) for k in (1, 2)]
        plain = sum(seconds(partial(plain_try, clip, layer, make_delta(gradient, x), score)) for x in steps) / 2
        with patch.object(bracket, "PRECISION", 0.0):  # all tries are used
            longest = search_step(clip, layer, gradient, scorer, BY_MARGIN)
        rows.append({
            "layer": layer, "tower": clip.tower(layer), "ours_s": taken, "plain_s": 10 * plain,
            "ratio": 10 * plain / taken, "tries": len(ours.trace), "step": ours.step, "plain_step": longest.step,
        })  # fmt: skip
    return described(score) | {"prepare_s": prepare, "layers": rows}


def described(score: slug.Validation) -> dict:
    counts = {k: len(score.names[k]) * len(score.templates[k]) for k in score.names}
    kind = next(k for k, names in score.names.items() if score.forget in names)
    return {"images": len(score.pairs), "prompts": sum(counts.values()), "own_prompts": counts[kind]}


@torch.no_grad()
def tries(clip: slug.Clip, images: int, prompts: int) -> dict:
    """What one try costs, plain and ours, layer by layer, and what it costs to ask once what the rest keeps."""
    score = validation(images, prompts)
    start = time.perf_counter()
    scorer = scorer_of(score, clip)
    prepare = time.perf_counter() - start
    rest = {"vision": seconds(lambda: embed_images(clip, scorer.pixels["rest"]))}
    asked = [(names, score.templates[kind]) for kind, names in score.names.items()]
    rest["text"] = seconds(lambda: [slug.zero_shot_classifier(clip, *some) for some in asked])
    zero = torch.zeros_like(clip.weights()["text_projection"])
    plain, rows = seconds(partial(plain_try, clip, "text_projection", zero, score)), []
    for layer in a_layer_each(clip):
        ours = scorer.at(layer)
        first = seconds(ours.forgetting)  # runs the tower from its beginning, and keeps what comes before the layer
        again, tower = seconds(ours.forgetting), clip.tower(layer)
        times = {"first_s": first, "try_s": again, "rest_s": rest[tower], "plain_s": plain}
        rows.append({"layer": layer, "tower": tower, **times})
    return described(score) | {"prepare_s": prepare, "layers": rows}


def plain_gradients(clip: slug.Clip, forget: slug.Pairs, retain: slug.Pairs, batch: int, folder: Path) -> None:
    """Gradients of every parameter, averaged over batches, one file a set: the shape of the official code."""
    scale = clip.logit_scale().detach()
    for name, pairs in (("forget", forget), ("retain", retain)):
        total = {n: torch.zeros_like(p) for n, p in clip.weights().items()}
        parts = [pairs[k : k + batch] for k in range(0, len(pairs), batch)]
        for part in parts:
            clip.model.zero_grad(set_to_none=True)
            x, y = clip.image_features(clip.pixels(part)), clip.text_features(clip.tokens(part.captions))
            (slug.forget_loss(x, y) if name == "forget" else slug.retain_loss(x, y, scale)).backward()
            for n, p in clip.weights().items():
                if p.grad is not None:
                    total[n] += p.grad / len(parts)
        save_file(total, folder / f"{name}.safetensors")
    clip.model.zero_grad(set_to_none=True)


def plain_unlearn(
    clip: slug.Clip, forget: slug.Pairs, retain: slug.Pairs, score: slug.Validation, batch: int, tower: str | None,
    tries: int, most: int | None,
) -> None:  # fmt: skip
    """The plain procedure, end to end: both gradients to disk and back, the front, a deep copy and a full evaluation
    at every step of every layer of the front."""
    with tempfile.TemporaryDirectory() as folder:
        plain_gradients(clip, forget, retain, batch, Path(folder))
        g_f, g_r = (load_file(f"{folder}/{name}.safetensors") for name in ("forget", "retain"))
    names = [n for n, w in clip.weights().items() if clip.tower(n) and slug.editable(n, w)]
    stats = layer_stats(clip, {n: g_f[n] for n in names}, g_r)
    del g_r
    original = copy.deepcopy(clip.model)
    front = [n for n in slug.pareto_front(stats) if tower in (None, clip.tower(n))][:most]
    model = clip.model
    for layer in front:
        weight = dict(original.named_parameters())[layer]
        step, low, high = (weight.norm() / g_f[layer].norm()).item() / 10, 0.0, None
        for _ in range(tries):
            model = copy.deepcopy(original)
            with torch.no_grad():
                dict(model.named_parameters())[layer].add_(g_f[layer], alpha=step)
                gone = score(Plain(model, clip.tokenizer, clip.preprocess))["forget_accuracy"] == 0
            low, high = (low, step) if gone else (step, high)
            step = 2 * step if high is None else (low + high) / 2


def unlearn(
    clip: slug.Clip, what: str, forget: int, retain: int, images: int, prompts: int, batch: int, tries: int,
    passes: int = 1, most: int = 0, text: int = 0,
) -> dict:  # fmt: skip
    """End to end: what="plain" or "ours". text=1 searches the text tower alone, most: in so many layers (plain)."""
    tower = "text" if text else None
    score, f, r = validation(images, prompts), world.pairs(NAME, n=forget), world.retain([NAME], n=retain)
    start = time.perf_counter()  # pictures are drawn before: both need them
    if what == "plain":
        clip = Plain(clip.model, clip.tokenizer, clip.preprocess)
        plain_unlearn(clip, f, r, score, batch, tower, tries, most or None)
    else:
        with suppress(slug.NothingForgets):  # random weights know nobody; time and memory are what is asked
            slug.unlearn(
                clip, f, r, validate=score, tower=tower, memory=slug.Memory(batch, passes),
                search=slug.StepSearch("margin", evaluations=tries, fronts=3 if tries > 1 else 1),
            )  # fmt: skip
    return {"seconds": time.perf_counter() - start, "peak_mb": peak() - BASELINE} | sizes(clip)


def resident() -> float:
    """Resident size now, in MB."""
    return psutil.Process().memory_info().rss / 1e6


def pipeline(clip: slug.Clip, what: str) -> dict:
    """what="whole": find the edit for mini Stable Diffusion. what="on": put an edit of the middle of the text tower on
    a text encoder of its shape, and take it off again; held_mb is what it takes while it is on."""
    if what == "whole":
        pipe = slug.load_diffusion("mini", device="cpu")
        base, start = peak(), time.perf_counter()  # diffusers is imported, the models are loaded
        edit = slug.unlearn_pipeline(pipe, clip, NAME)
        taken = {"seconds": time.perf_counter() - start, "above_models_mb": peak() - base}
        return taken | {"kilobytes": stored(edit)} | sizes(clip)
    blocks = [n for n in clip.weights() if n.startswith("transformer.") and n.endswith("mlp.c_proj.weight")]
    layer = blocks[len(blocks) // 2]
    delta = torch.full_like(clip.weights()[layer], 1e-3, dtype=torch.float16)
    edit = slug.Edit({layer: delta}, {layer: 1.0}, NAME, slug.fingerprint(clip))
    encoder = text_encoder_from(clip)
    weights = sum(w.numel() * w.element_size() for w in encoder.parameters()) / 1e6
    times, held = [], []
    for _ in range(5):
        before, start = resident(), time.perf_counter()
        with edit.on(encoder):
            held.append(resident() - before)
        times.append(time.perf_counter() - start)
    files = {"kilobytes": stored(edit), "rank1_kilobytes": stored(edit.low_rank(1))}
    return {"on_s": statistics.median(times), "held_mb": max(held), **files, "weights_mb": weights}


def stored(edit: slug.Edit) -> float:
    """Size of the edit's file, in kB."""
    with tempfile.TemporaryDirectory() as folder:
        return edit.save(Path(folder) / "edit.safetensors").stat().st_size / 1e3


CASES = {f.__name__: f for f in (gradients_time, gradients_memory, growth, search, tries, unlearn, pipeline)}

if __name__ == "__main__":
    case, model, *rest = sys.argv[1:]
    options = {k: int(v) if v.isdigit() else v for k, v in (word.split("=") for word in rest)}
    with silent():
        print(json.dumps({"case": case, "model": model, **options, **CASES[case](load(model), **options)}))
