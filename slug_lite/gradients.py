"""One gradient of each loss, at the untouched weights, and what every layer's pair of gradients says.

For a weight tensor theta_l (Cai, Tan, Asif, 2025, section 3.2):
    importance(l) = |g_f| / |theta_l|          how far a small relative step moves the forget loss
    cosine(l)     = <g_f, g_r> / |g_f| |g_r|   below zero, the forgetting step lowers the retain loss too
    alignment(l)  = |cosine(l)|                the paper's measure: near zero, the retain loss does not feel the step
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from .losses import forget_loss, retain_loss
from .models import Clip
from .pairs import Pairs
from .runtime.batches import Memory, batches, cached_backward, contrastive_batches, groups
from .runtime.captions import check_read
from .runtime.checks import check_sets
from .runtime.linear import inner
from .runtime.modes import only_gradients_of
from .runtime.names import is_slot
from .runtime.processes import all_reduce, all_reduce_number, shard
from .runtime.progress import bar

Layers = Callable[[str, Tensor], bool]  # a weight's name and the weight: may it be chosen?


def editable(name: str, weight: Tensor) -> bool:
    """Which weights may be chosen: matrices and convolutions that can be trained. A rule about names, see `is_slot`.

    Frozen weights (requires_grad=False), biases, norms, embeddings, learned slots and the logit scale may not.
    """
    return weight.requires_grad and weight.ndim >= 2 and not is_slot(name)


@dataclass(frozen=True)
class Gradients:
    """What `one_shot_gradients` returns.

    stats: one row for each layer, indexed by its name: tower, weight_norm, forget_norm, retain_norm, importance,
        alignment, cosine
    forget: the tensor +grad L_f of each layer (that was kept), shaped as the weight
    forget_loss, retain_loss: the losses at the untouched weights

    ValueError for losses and gradients that are not finite.
    """

    stats: pd.DataFrame
    forget: dict[str, Tensor]
    forget_loss: float
    retain_loss: float

    def __post_init__(self) -> None:
        norms = self.stats[["weight_norm", "forget_norm", "retain_norm"]].to_numpy().flat
        numbers = [self.forget_loss, self.retain_loss, *norms]
        if not np.isfinite(numbers).all():
            losses = f"forget {self.forget_loss}, retain {self.retain_loss}"
            raise ValueError(f"losses, gradients or weights are not finite ({losses}): look at the inputs")


def _collect(weights: dict[str, nn.Parameter], store: dict) -> dict[str, Tensor]:
    """The gradients gathered in .grad, which is emptied; zeros where a loss does not reach a weight."""
    out = {}
    for name, p in weights.items():
        gradient = torch.zeros_like(p) if p.grad is None else p.grad
        p.grad = None
        out[name] = all_reduce(gradient).to(**store)
    return out


def _forget_backward(clip: Clip, forget: Pairs, batch_size: int, tick: Callable[[], object]) -> float:
    """Add grad L_f of this process's shard to .grad; micro-batches count by their size, so that any size will do."""
    mine, total = forget[shard(len(forget))], 0.0
    for rows in batches(len(mine), batch_size):
        images = clip.image_features(clip.pixels(mine[rows]))  # (b, dim)
        texts = clip.text_features(clip.tokens(mine[rows].captions))  # (b, dim)
        part = forget_loss(images, texts) * (len(texts) / len(forget))
        part.backward()
        total += part.item()
        tick()
    return all_reduce_number(total)


def _retain_backward(clip: Clip, retain: Pairs, part: float, batch_size: int, tick: Callable[[], object]) -> float:
    """Add part * grad L_r over all pairs given to .grad, see `cached_backward`. Returns part * L_r."""
    mine = retain[shard(len(retain))]
    tokens, scale, bias = clip.tokens(mine.captions), clip.logit_scale().detach(), clip.logit_bias()
    return cached_backward(
        lambda rows: (clip.image_features(clip.pixels(mine[rows])), clip.text_features(tokens[rows])),
        lambda images, texts: part * retain_loss(images, texts, scale, bias),  # (all pairs, dim) each
        len(mine), batch_size, tick,
    )  # fmt: skip


def chosen_layers(clip: Clip, layers: Layers) -> list[str]:
    """The names of the weights of either tower that pass `layers`. ValueError for none."""
    names = [n for n, w in clip.weights().items() if clip.tower(n) and layers(n, w)]
    if not names:
        raise ValueError("no weight may be chosen: not a frozen one (requires_grad=False), bias, norm or embedding")
    return names


def one_shot_gradients(
    clip: Clip, forget: Pairs | Sequence[Pairs], retain: Pairs, *, batch_size: int = 128,
    contrastive_batch: int | None = None, layers: Layers = editable, device: torch.device | str | None = None,
    dtype: torch.dtype | None = None, passes: int = 1, keep: Callable[[pd.DataFrame], Sequence[str]] | None = None,
    progress: bool = True,
) -> Gradients | list[Gradients]:  # fmt: skip
    """One gradient of the forget loss, one of the retain loss, and the statistics of every layer.

    forget: a forget set; or several, of different concepts: the retain gradient is then taken once for all, and a
        list returned. contrastive_batch: None takes the contrastive loss over all retain pairs at once; a number
        takes it over batches of that many, averaged by size. layers: which weights to look at, see `editable`.
    batch_size, passes: see `Memory`. device, dtype: where and how gradients are kept (None: as the weights), as "cpu"
        and torch.bfloat16. keep: picks from a group's statistics the layers whose forget gradient is kept (None: all).

    Under torch.distributed every process is given the same sets and takes its shard; all get the same result.
    The model is left exactly as it was, also on an interrupt. Raises ValueError for sets that are too small or share
    the concept, for numbers below 1 (contrastive: 2), and for a loss or gradient that is not finite.
    """
    sets = [forget] if isinstance(forget, Pairs) else list(forget)
    check_sets(sets, retain)
    check_read(clip, sets, retain)
    memory, chunks = Memory(batch_size, passes), contrastive_batches(len(retain), contrastive_batch)
    parts = groups(clip.weights(), chosen_layers(clip, layers), memory.passes)
    sizes = [len(some) for some in sets] + [chunk.stop - chunk.start for chunk in chunks]
    steps = len(parts) * sum(-(-len(range(n)[shard(n)]) // batch_size) for n in sizes)
    stats, kept, store = [[] for _ in sets], [{} for _ in sets], {"device": device, "dtype": dtype}
    with bar(total=steps, desc="gradients", show=progress) as done:
        for group in parts:
            losses, loss_r, found = _of_group(clip, sets, retain, chunks, group, store, batch_size, done.update)
            for k, (g_f, table) in enumerate(found):
                stats[k].append(table)
                kept[k] |= {name: g_f[name] for name in (keep(table) if keep else g_f)}
            del found, g_f
    out = [Gradients(pd.concat(stats[k]), kept[k], losses[k], loss_r) for k in range(len(sets))]
    return out[0] if isinstance(forget, Pairs) else out


def _of_group(
    clip: Clip, sets: list[Pairs], retain: Pairs, chunks: list[slice], group: list[str], store: dict, batch_size: int,
    tick: Callable[[], object],
) -> tuple[list[float], float, list[tuple[dict[str, Tensor], pd.DataFrame]]]:  # fmt: skip
    """Both losses, and for each forget set its gradients in a group of layers, with their statistics."""
    with only_gradients_of(clip, group) as weights:
        losses, forgets = [], []
        for some in sets:
            losses.append(_forget_backward(clip, some, batch_size, tick))
            forgets.append(_collect(weights, store))
        loss_r = sum(
            _retain_backward(clip, retain[rows], len(retain[rows]) / len(retain), batch_size, tick) for rows in chunks
        )
        g_r = _collect(weights, store)
    return losses, loss_r, [(g_f, layer_stats(clip, g_f, g_r)) for g_f in forgets]


def forget_gradients(
    clip: Clip, sets: Sequence[Pairs], *, memory: Memory = Memory(), layers: Layers = editable, progress: bool = True
) -> list[dict[str, Tensor]]:
    """+grad L_f of each set in every layer, held at once: name -> tensor. As `one_shot_gradients`; no set is empty."""
    names, out = chosen_layers(clip, layers), []
    device = memory.place(clip.weights(), names, len(sets))
    with only_gradients_of(clip, names) as weights:
        for k, some in enumerate(bar(sets, desc="forget gradients", show=progress)):
            if len(some) == 0:
                raise ValueError(f"set {k} of {len(sets)} has no pairs")
            _forget_backward(clip, some, memory.batch_size, lambda: None)
            out.append(_collect(weights, {"device": device}))
            if not all(torch.isfinite(g).all() for g in out[-1].values()):
                raise ValueError(f"the gradient of set {k} of {len(sets)} is not finite: look at its pictures")
    return out


def layer_stats(clip: Clip, forget: dict[str, Tensor], retain: dict[str, Tensor]) -> pd.DataFrame:
    """The table of `Gradients.stats` from both gradients, shaped as the weights."""
    weights, rows = clip.weights(), {}
    for name, g_f in forget.items():
        square, product, other = inner(g_f, g_f), inner(g_f, retain[name]), inner(retain[name], retain[name])
        theta = weights[name].detach()
        weight_norm, forget_norm, retain_norm = math.sqrt(inner(theta, theta)), math.sqrt(square), math.sqrt(other)
        length = forget_norm * retain_norm
        cosine = product / length if length > 0 else 0.0
        rows[name] = {
            "tower": clip.tower(name), "weight_norm": weight_norm, "forget_norm": forget_norm,
            "retain_norm": retain_norm, "importance": forget_norm / weight_norm if weight_norm > 0 else 0.0,
            "alignment": abs(cosine), "cosine": cosine,
        }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("layer")
