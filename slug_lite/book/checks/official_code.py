"""Checks of the interlude on the official code: a test of the sign, the order of batches, train mode, and a reading.

The concept, the sets and the batches are those of the page: Ada Sunfield, 48 pairs to forget, 512 to retain, in 16s.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import cache
from itertools import accumulate
from typing import Any

import numpy as np
import pandas as pd
import torch
from open_clip.transformer import PatchDropout
from torch import Tensor

from ...losses import forget_loss, retain_loss
from ...models import Clip, load_clip
from ...pairs import Pairs
from ...runtime.modes import only_gradients_of
from ...world import toonworld
from ._ground import forget_gradient, mini, one_by_one
from .common import array, attempt, number, other_type, short, verdict

NAME = "Ada Sunfield"
ENDS = ("visual.proj", "text_projection")  # the last layer of each tower: their gradients cost no way back
ORDERS = ("reversed", "people first")


def _truth(answer: Any) -> bool | None:
    """A truth value of any kind, also a tensor's or an array's; None for anything else."""
    if isinstance(answer, bool | np.bool_):
        return bool(answer)
    if isinstance(answer, Tensor | np.ndarray) and str(answer.dtype).endswith("bool") and answer.size != 0:
        try:
            return bool(answer)
        except Exception:
            return None
    return None


def _along(move: Tensor, layer: str) -> float:
    """The cosine of a move and the forget gradient in a layer."""
    up = forget_gradient(NAME, layer).cpu().double().flatten()
    own = move.detach().cpu().double().flatten()
    return ((own @ up) / (own.norm() * up.norm()).clamp_min(1e-300)).item()


def check_ex_code_sign(climbs: Any, moves: Any, layer: Any) -> str:
    """climbs: your function, of one tensor; moves: those of section 1, by what they are; layer: the page's LAYER.

    It is asked about each of the moves, and about the first of them turned round, and a thousand times as long.
    """
    if not isinstance(layer, str) or layer not in mini().weights():
        return f"layer: {other_type(layer, 'the name of a layer of mini CLIP, the LAYER of the page')}"
    weight, wanted = mini().weights()[layer], "the moves of section 1, a dict of tensors of the layer's shape"
    if not isinstance(moves, Mapping) or not moves:
        return f"moves: {other_type(moves, wanted)}"
    if not all(isinstance(move, Tensor) and move.shape == weight.shape for move in moves.values()):
        return f"moves: {other_type(moves, wanted)}"
    asked = {how: _along(move, layer) > 0 for how, move in moves.items()}
    first, said = next(iter(moves)), {}
    for factor, how in [*((1, how) for how in moves), (-1, first), (1000, first), (-1000, first)]:
        answer, stopped = attempt(climbs, factor * moves[how], wanted="your function `climbs`")
        if stopped:
            return stopped
        truth = _truth(answer)
        if truth is None:
            return other_type(answer, "a function that returns True or False")
        said[factor, how] = truth == (asked[how] == (factor > 0)), truth
    if not any(right for (factor, _), (right, _) in said.items() if abs(factor) == 1):
        return "the wrong sign: it says True for those that lower the forget loss; to forget is to climb"
    for truth in (True, False):
        if all(one == truth for _, one in said.values()):
            return (
                f"it says {truth} whatever it is asked: compare the forget loss after a short step with that before; "
                "the share of pictures recognised does not move"
            )
    wrong = [key for key, (right, _) in said.items() if not right]
    if wrong and all(abs(factor) == 1000 for factor, _ in wrong):
        return (
            "not short: the answer depends on how long the tensor is; give the step a small length of its own, such as "
            "a hundredth of the weight's"
        )
    if wrong:
        turned = " turned round" if wrong[0][0] < 0 else ""
        return f"wrong for {short(wrong[0][1])}{turned}: compare the forget loss after a short step with that before"
    up = [how for how, climbing in asked.items() if climbing]
    return f"right: {len(up)} of {len(moves)} moves climb"


@cache
def _batches(size: int = 16) -> tuple[list[Tensor], dict[str, list[list[Tensor]]]]:
    """In the last layer of each tower the forget gradient, and each batch's retain gradient, by the set's order."""
    clip, forget = mini(), toonworld.pairs(NAME, n=48, seed=0)
    retain = toonworld.retain(exclude=[NAME], n=512, seed=0)
    later = [toonworld.kind_of(concept[0]) != "people" for concept in retain.concepts or ()]
    rows = {"as it is": np.arange(len(retain)), "people first": np.argsort(later, kind="stable")}
    with only_gradients_of(clip, ENDS) as weights:
        ends, scale = [weights[name] for name in ENDS], clip.logit_scale().detach()

        def embedded(pairs: Pairs) -> tuple[Tensor, Tensor]:
            return clip.image_features(clip.pixels(pairs)), clip.text_features(clip.tokens(pairs.captions))

        up = torch.autograd.grad(forget_loss(*embedded(forget)), ends)
        images, texts = embedded(retain)  # once: an order of the batches does not change them
        each = {
            order: [
                list(torch.autograd.grad(retain_loss(images[some], texts[some], scale), ends, retain_graph=True))
                for some in (own[start : start + size].tolist() for start in range(0, len(own), size))
            ]
            for order, own in rows.items()
        }
    return list(up), each | {"reversed": each["as it is"][::-1]}


@cache
def _cosines(zeroed: bool, order: str, size: int = 16) -> pd.Series:
    """The cosine of forget and retain gradient in the last layer of each tower."""
    up, each = _batches(size)
    found = {}
    for k, (layer, g_f) in enumerate(zip(ENDS, up, strict=True)):
        own = [one[k].cpu().double() for one in each[order]]
        g_r = torch.stack(own if zeroed else list(accumulate(own))).sum(0)
        found[layer] = ((g_f.cpu().double() * g_r).sum() / g_f.cpu().double().norm() / g_r.norm()).item()
    return pd.Series(found)


def _shift(zeroed: bool, order: str, size: int = 16) -> pd.Series:
    return _cosines(zeroed, order, size) - _cosines(zeroed, "as it is", size)


def _ways(answer: Any) -> dict[tuple[bool, str], Any] | None:
    """A dict with the four keys (zeroed, order); None for anything else."""
    try:
        found = {(bool(zeroed), str(order)): one for (zeroed, order), one in dict(answer).items()}
    except Exception:
        return None
    return found if set(found) == {(zeroed, order) for zeroed in (True, False) for order in ORDERS} else None


def _by_layer(answer: Any) -> pd.Series | None:
    """A number for each layer, the last ones of both towers among them; None for anything else."""
    try:
        found = pd.Series(dict(answer), dtype=float)
    except Exception:
        return None
    return found if set(ENDS) <= set(found.index) and len(found) > 10 and np.isfinite(found).all() else None


def check_ex_code_order(moved: Any, far: Any) -> str:
    """moved: {(zeroed, order): by how much each layer's cosine moves}; far: {(zeroed, order): how far, the median}.

    zeroed: True or False; order: "reversed" or "people first"; the moves as Series by layer. The last layer of each
    tower is checked, where a gradient needs no way back through the model.
    """
    keys = 'a dict with the keys (True, "reversed"), (True, "people first"), (False, ...), (False, ...)'
    given, medians = _ways(moved), _ways(far)
    if given is None:
        return f"moved: {other_type(moved, keys)}"
    if medians is None:
        return f"far: {other_type(far, keys)}"
    said = {}
    for (zeroed, order), answer in given.items():
        where = f"{'zeroed' if zeroed else 'not zeroed'}, {order}"
        layers = _by_layer(answer)
        if layers is None:
            return f"{where}: {other_type(answer, 'a number for each layer, a Series with the names of the layers')}"
        right, other = _shift(zeroed, order), ORDERS[order == ORDERS[0]]
        sized = layers[list(ENDS)].abs()
        said[where] = verdict(sized, right.abs(), {
            "zeroed and not zeroed are swapped": _shift(not zeroed, order).abs(),
            "the two orders are swapped": _shift(zeroed, other).abs(),
            "the cosines themselves, where their change is asked for": _cosines(zeroed, order).abs(),
            "compared with the zeroed gradients: compare with the same way, in the old order":
                (_cosines(zeroed, order) - _cosines(not zeroed, "as it is")).abs(),
        }, wanted="the change of the cosine in each layer", rel=0.1, abs_=0.006)  # fmt: skip
        if said[where].startswith("right"):
            said[where] = verdict(medians[zeroed, order], layers.abs().median(), {
                "mean for median": layers.abs().mean(), "sum for median": layers.abs().sum(),
                "the largest, where the median is asked for": layers.abs().max(),
                "with their signs: ups and downs cancel; take the size of each change": layers.median(),
            }, wanted="how far the cosines move, the median over layers", rel=0.02, abs_=6e-4)  # fmt: skip
    return one_by_one(said, "a mean does not feel the order of its batches, a sum of running sums does")


@cache
def _dropping() -> Clip:
    """A mini CLIP of its own that throws half of the patches away in train mode."""
    clip = load_clip("mini")
    clip.model.visual.patch_dropout = PatchDropout(0.5)
    return clip


def _gradient(clip: Clip, layer: str, pairs: Pairs) -> Tensor:
    """The retain gradient of a few pairs in a layer, with the model in the mode that it is in."""
    images, texts = clip.image_features(clip.pixels(pairs)), clip.text_features(clip.tokens(pairs.captions))
    (own,) = torch.autograd.grad(retain_loss(images, texts, clip.logit_scale().detach()), clip.weights()[layer])
    return own.cpu().double().flatten()


@cache
def _train_cosines(layer: str) -> tuple[list[float], list[float]]:
    """Cosines between two gradients with patches thrown away, and between one of these and a calm one; of six draws."""
    pairs, clip = toonworld.retain(exclude=[NAME], n=512, seed=0)[:16], _dropping()
    devices = [clip.device] if clip.device.type == "cuda" else []
    with only_gradients_of(clip, [layer]), torch.random.fork_rng(devices=devices):
        clip.model.train()
        torch.manual_seed(0)
        noisy = [_gradient(clip, layer, pairs) for _ in range(6)]
    with only_gradients_of(mini(), [layer]):
        calm = _gradient(mini(), layer, pairs)

    def cosine(a: Tensor, b: Tensor) -> float:
        return ((a @ b) / a.norm() / b.norm()).item()

    between = [cosine(a, b) for k, a in enumerate(noisy) for b in noisy[:k]]
    return between, [cosine(one, calm) for one in noisy]


def check_ex_code_train(clip: Any, layer: Any, between: Any, calm: Any) -> str:
    """clip: the page's, afterwards; layer: its LAYER; between: the cosine of two gradients taken in train mode.

    calm: of one of them and that of eval mode. Both are drawn by chance: what six draws give, and a little more.
    """
    if not isinstance(clip, Clip):
        return f"clip: {other_type(clip, 'the model of the page')}"
    if not isinstance(layer, str) or layer not in mini().weights():
        return f"layer: {other_type(layer, 'the name of a layer of mini CLIP, the LAYER of the page')}"
    kept = getattr(getattr(clip.model, "visual", None), "patch_dropout", None)
    if isinstance(kept, PatchDropout):
        return "clip: it still throws patches away: put the old module back"
    if clip.model.training:
        return "clip: it is still in train mode: call clip.model.eval()"
    draws, given = _train_cosines(layer), {"between": between, "calm": calm}
    for part, answer in given.items():
        if number(answer) is None or not np.isfinite(array(answer)).all():
            return f"{part}: {other_type(answer, 'a cosine, a number')}"
    values = {part: float(array(answer).reshape(())) for part, answer in given.items()}
    same = {part: abs(value - 1) < 1e-4 for part, value in values.items()}
    if all(same.values()):
        return "all gradients are one and the same: nothing was thrown away; is the module in place, in train mode?"
    if same["between"]:
        return "between: the two are one and the same: was the generator set to one seed before each of them?"
    if same["calm"]:
        return "calm: these are one and the same: compare a gradient of train mode with one of eval mode"
    said = {}
    for (part, value), some in zip(values.items(), draws, strict=True):
        low, high = min(some) - 0.1, min(max(some) + 0.03, 1.0)
        turned = math.cos(math.radians(value)) if value > 1 else 0.0
        meant = (value, 1 - value, -value, value / 100, turned, math.cos(value))
        right = next((one for one in meant if low <= one <= high), float(np.mean(some)))  # any in the range is right
        said[part] = verdict(value, right, {
            "not the cosine but 1 - cos": 1 - right,
            "in degrees, where the cosine is asked for": math.degrees(math.acos(right)),
            "in radians, where the cosine is asked for": math.acos(right),
        }, wanted="a cosine", rel=0.0, abs_=1e-6)  # fmt: skip
    return one_by_one(said, f"six draws give {min(draws[0]):.2f} to {max(draws[0]):.2f} between two")


READING = {
    "commit": "the commit that was read", "sign": "the line that decides the sign of the update",
    "emptied": "where .grad is emptied", "chosen": "the set on which hyperparameters were chosen",
    "reported": "the set that is reported on", "number": "a number of the paper and the command that makes it, or none",
    "experiment": "a small experiment in which a suspicion could have turned out false",
}  # fmt: skip
FILE = re.compile(r"\w+\.(py|ipynb|sh|cc|cpp|cu|jl|m|rs|lua|R|ya?ml|toml|json)\b")
PLACE = re.compile(r"(\bline|\bcell|:)\s*\d+|\w+\(\)|`\w+`|\bL\d+|\bdef \w+", re.IGNORECASE)
COMMAND = re.compile(r"\b(python3?|bash|sh|make|torchrun|accelerate|papermill|jupyter)\b|\.(sh|py|ipynb)\b")
OPEN = re.compile(r"\b(none|not|no|cannot|asked|wrote)\b", re.IGNORECASE)


def check_ex_code_own(reading: Any) -> str:
    """reading: what you found, in sentences under the keys of `READING`. The form is checked, not if it is true."""
    keys = f"a dict of sentences with the keys {', '.join(READING)}"
    if not isinstance(reading, Mapping) or not all(isinstance(one, str) for one in [*reading, *reading.values()]):
        return other_type(reading, keys)
    found = {key.strip().lower(): text.strip() for key, text in reading.items()}
    for key, what in READING.items():
        if not found.get(key):
            return f"{key} is missing: {what}"
    if not re.search(r"\b[0-9a-f]{7,40}\b", found["commit"].lower()):
        return "commit: a branch or a version moves on; give the commit, seven figures or more of its hash"
    for key in ("sign", "emptied"):
        if not FILE.search(found[key]):
            return f"{key}: no file is named; say in which one it stands"
        if not PLACE.search(FILE.sub("", found[key], count=1)):
            return f"{key}: a file alone is no place; add the line, the cell or the function"
    if not (COMMAND.search(found["number"]) and re.search(r"\d", found["number"])) and not OPEN.search(found["number"]):
        return "number: give it and the command that makes it, or say that none can be traced, and whom you asked"
    if len(found["experiment"].split()) < 5:
        return "experiment: say what was run, and what would have shown the suspicion to be false"
    also = "whether it is true, the code alone can tell"
    if found["chosen"].lower() == found["reported"].lower() or re.search(r"\bsame\b", found["reported"].lower()):
        also += "; chosen and reported on one set: say so wherever you quote the number"
    return f"right: in form; {also}"
