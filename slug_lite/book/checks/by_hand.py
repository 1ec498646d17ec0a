"""Checks of chapter 3: the toy's gradients by hand, what they stand across, slopes, and layers of another kind.

The toy's towers are linear, ReLU, linear and normalised: u = z / |z| with z = W2 h, h = relu(W1 x).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy import ndarray as Array

from ...gradients import editable
from ...models import Clip
from ...selection import pareto_front
from .common import array, attempt, number, other_type, verdict, verdict_names

KEYS = ("image W1", "image W2", "text W1", "text W2")
RETAIN = "forget and retain are swapped: this is the gradient of the retain loss"


def _forward(inputs: Array, W1: Array, W2: Array) -> tuple[Array, Array, Array, Array, Array]:
    """One tower of the toy: inputs, a = W1 x, h = relu(a), |z| and u = z / |z|, one row for each input."""
    a = inputs @ W1.T
    z = np.maximum(a, 0) @ W2.T
    length = np.linalg.norm(z, axis=1, keepdims=True)
    return inputs, a, np.maximum(a, 0), length, z / length


def _across(d: Array, e: Array) -> Array:
    """Of each row of d the part that stands across the unit vector of e."""
    return d - (d * e).sum(1, keepdims=True) * e


def _forget(u: Array, v: Array) -> tuple[Array, Array]:
    """dL/du and dL/dv of the forget loss, the mean of 1 - u v."""
    return -v / len(u), -u / len(u)


def _retain(u: Array, v: Array, s: float = 10.0) -> tuple[Array, Array]:
    """dL/du and dL/dv of the contrastive loss at scale s."""
    e = np.exp(s * (u @ v.T - 1))
    dS = (e / e.sum(1, keepdims=True) + e / e.sum(0) - 2 * np.eye(len(u))) / (2 * len(u))
    return s * dS @ v, s * dS.T @ u


def _suspects(weights: Mapping[str, Array], pictures: Array, texts: Array) -> dict[str, dict[str, Array]]:
    """The forget gradient of the toy under "", and under the name of each mistake what it gives instead."""
    towers = [_forward(x, weights[f"{k} W1"], weights[f"{k} W2"]) for k, x in (("image", pictures), ("text", texts))]
    (*_, long_u, u), (*_, long_v, v) = towers

    def back(
        d: tuple[Array, Array], to_z: Callable[[Array, Array, Array], Array], gate: bool = True
    ) -> dict[str, Array]:
        out = []
        for (inputs, a, h, length, e), own, kind in zip(towers, d, ("image", "text"), strict=True):
            dz = to_z(own, e, length)
            out += [((dz @ weights[f"{kind} W2"]) * (a > 0 if gate else 1)).T @ inputs, dz.T @ h]
        return dict(zip(KEYS, out, strict=True))

    def whole(d: Array, e: Array, length: Array) -> Array:
        return _across(d, e) / length

    return {
        "": back(_forget(u, v), whole),
        RETAIN: back(_retain(u, v), whole),
        "not normalised: the gradient went past u = z / |z| as if it were not there": back(
            _forget(u, v), lambda d, e, n: d
        ),
        "half normalised: divided by |z|, but the part along u is still in it": back(
            _forget(u, v), lambda d, e, n: d / n
        ),
        "half normalised: the part along u is gone, but the division by |z| is missing": back(
            _forget(u, v), lambda d, e, n: _across(d, e)
        ),
        "not normalised: this is the gradient of the plain dot product of z, not of the cosine": back(
            (-v * long_v / len(u), -u * long_u / len(u)), lambda d, e, n: d
        ),
        "the ReLU's gate is missing: units that were off must not learn": back(_forget(u, v), whole, gate=False),
    }


def _misshapen(given: Any, right: Mapping[str, Array]) -> str:
    """The sentence for what is no gradient of the toy, or ""."""
    if not isinstance(given, Mapping):
        return other_type(given, f"a function that returns a dict with the keys {sorted(right)}")
    if set(given) != set(right):
        return f"give a dict with the keys {sorted(right)}; got {sorted(given, key=str)}"
    for name, value in right.items():
        found = array(given[name])
        if found is None:
            return f"{name}: {other_type(given[name], f'an array of shape {value.shape}')}"
        if found.shape != value.shape:
            turned = " (it is transposed)" if found.T.shape == value.shape else ""
            return f"{name} must be {value.shape}, as the weight; yours is {found.shape}{turned}"
    return ""


def _named(found: Mapping[str, Array], suspects: Mapping[str, Mapping[str, Array]], n: int) -> str:
    """Which suspect a gradient is a multiple of, with what the factor says; "" for none."""
    size = sum((g**2).sum() for g in found.values())
    for message, suspect in suspects.items():
        factor = sum((found[k] * suspect[k]).sum() for k in KEYS) / sum((suspect[k] ** 2).sum() for k in KEYS)
        if sum(((found[k] - factor * suspect[k]) ** 2).sum() for k in KEYS) < 1e-12 * size:
            faults = [message] if message else []
            faults += ["the wrong sign: it points downhill"] if factor < 0 else []
            if np.isclose(abs(factor), n):
                faults.append("sum, not mean: it is n times too long")
            elif not np.isclose(abs(factor), 1):
                faults.append(f"too long by the factor {abs(factor):.3g}")
            return "; and ".join(faults) or "right"
    return ""


def check_ex_hand_forget(function: Any) -> str:
    """Your function(weights, pictures, texts) -> dict of the forget gradients of the toy, asked on a toy of our own."""
    rng, shapes = np.random.default_rng(7), ((7, 5), (3, 7), (8, 4), (3, 8))
    weights = {name: rng.normal(size=shape) for name, shape in zip(KEYS, shapes, strict=True)}
    pictures, texts = rng.normal(size=(5, 5)), rng.normal(size=(5, 4))
    given, stopped = attempt(function, weights, pictures, texts, wanted="the function")
    suspects = _suspects(weights, pictures, texts)
    right = suspects[""]
    if said := stopped or _misshapen(given, right):
        return said
    found = {name: array(given[name]) for name in KEYS}
    if not sum((g**2).sum() for g in found.values()) > 0:
        return "the gradient is zero, or not a number"
    length = f"its length is near {np.sqrt(sum((g**2).sum() for g in right.values())):.2g}"
    if said := _named(found, suspects, len(pictures)):
        return said if said == "right" else f"{said}; {length}"
    good = [n for n in KEYS if np.allclose(found[n], right[n], rtol=1e-6, atol=1e-9)]
    return f"wrong, in a way not on the list; right are: {', '.join(good) or 'none of the four'}; {length}"


def check_ex_across(products: Any, gradients: Mapping[str, Array], weights: Mapping[str, Array]) -> str:
    """A dict: name of a matrix -> the inner product of its gradient with it, on the toy."""
    pairs = {name: (np.asarray(gradients[name], float), np.asarray(weights[name], float)) for name in weights}
    right = {name: float((g * w).sum()) for name, (g, w) in pairs.items()}
    sizes = {name: float(np.linalg.norm(g) * np.linalg.norm(w)) for name, (g, w) in pairs.items()}
    mistakes = {
        "the product of the two lengths, without the angle between them": sizes,
        "the absolute values were added: the products are to cancel": {
            n: float(abs(g * w).sum()) for n, (g, w) in pairs.items()
        },
        "the gradient with itself, not with the weight": {n: float((g * g).sum()) for n, (g, _) in pairs.items()},
        "the weight with itself, not with its gradient": {n: float((w * w).sum()) for n, (_, w) in pairs.items()},
        "a product of matrices: multiply entry by entry, then add": {
            n: float((g @ w.T).sum()) for n, (g, w) in pairs.items()
        },
    }
    wanted, also = f"a dict of numbers with the keys {sorted(right)}", "all four stand across, W1 as W2"
    said = verdict(products, right, mistakes, wanted=wanted, rel=0, abs_=1e-6, also=also)
    return f"right: all near 0; {also}" if said.startswith("right") else said


def check_ex_retain_slope(slope: Any, layer: str, stats: pd.DataFrame) -> str:
    """The slope of the retain loss along the forget gradient of a layer, as you measured it; `stats`: grads.stats."""
    if layer not in stats.index:
        return f"there is no layer {layer!r} in the table; one of them is {stats.index[0]}"
    row = stats.loc[layer]
    right = row.cosine * row.forget_norm * row.retain_norm
    unit = row.forget_norm * row.retain_norm  # the slope of two gradients that point the same way
    step = 0.01 * row.weight_norm / row.forget_norm
    mistakes = {
        "the distance is 2 * step, from one side to the other: yours is twice too steep": 2 * right,
        "one step too many in the divisor: yours is half as steep": right / 2,
        "a difference, not yet a slope: divide by 2 * step": 2 * step * right,
        "forget and retain are swapped: this is the slope of the forget loss": row.forget_norm**2,
        "not multiplied by the lengths: this is the cosine alone": row.cosine,
        "along the unit vector: the gradient itself is meant, multiply by its length": row.cosine * row.retain_norm,
    }
    mistakes = {name: value for name, value in mistakes.items() if abs(value - right) > 0.3 * abs(right)}
    found = number(slope)
    if (
        found is not None
        and np.isfinite(found)
        and abs(found - right) > 0.15 * abs(right)
        and np.isclose(found, -right, rtol=0.15)
    ):
        return f"the wrong sign: the step forward minus the step back; the right value is near {right:.2g}"
    sign = "rises" if right > 0 else "falls"
    also = f"along this step the retain loss {sign}"
    return verdict(slope, right, mistakes, wanted="the slope, a number", rel=0.15, abs_=0.002 * unit, also=also)


def check_ex_rule(newcomers: Any, stats: pd.DataFrame, clip: Clip) -> str:
    """The names on the front that `editable` does not admit; `stats`: of the gradients with your own rule."""
    weights = clip.weights()
    if embedded := [name for name in stats.index if "embedding" in name]:
        return f"embeddings were let in, such as {embedded[0]}: the rule is to leave them out"
    if all(weights[name].ndim > 1 for name in stats.index):
        return "the rule admits no biases and no gains: those are the weights of one dimension"
    front, one_tower = pareto_front(stats), pareto_front(stats.assign(tower="vision"))

    def new(names: list[str]) -> list[str]:
        return [name for name in names if not editable(name, weights[name])]

    mistakes = {
        "the whole front: leave out those that were allowed before": front,
        "the old ones, not the newcomers: the wrong sign of the condition": [n for n in front if n not in new(front)],
        "all newcomers, not those on the front alone": new(list(stats.index)),
        "the towers are mixed: a layer is beaten by one of its own tower only": new(one_tower),
        "the front by signed cosine: by alignment is asked for": new(pareto_front(stats, by="cosine")),
    }
    return verdict_names(newcomers, new(front), mistakes, also="short tensors have large ratios")
