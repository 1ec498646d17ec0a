"""One gradient of each loss, at the untouched weights, and what every layer's pair of gradients says.

For a weight tensor theta_l (Cai, Tan, Asif, 2025, section 3.2):
    importance(l) = |g_f| / |theta_l|          how far a small relative step moves the forget loss
    cosine(l)     = <g_f, g_r> / |g_f| |g_r|   below zero, the forgetting step lowers the retain loss too
    alignment(l)  = |cosine(l)|                the paper's measure: near zero, the retain loss does not feel the step
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from . import parallel
from .losses import forget_loss, retain_loss
from .models import Clip, eval_mode
from .pairs import Pairs
from .progress import bar

Store = dict  # keyword arguments of Tensor.to

# Parts of names of tensors that stand for positions, tokens or slots: not layers in the sense of the method
NOT_LAYERS = ("embedding", "pos_embed", "cls_token", "reg_token", "cls_emb", "latent", "logit_", "attn_pool.query")
STILL_LAYERS = ("patch_embedding",)  # transformers' name of the first convolution


def editable(name: str, weight: Tensor) -> bool:
    """Which weights may be chosen: matrices and convolutions that can be trained. A rule about names, see NOT_LAYERS.

    Frozen weights (requires_grad=False), biases, norms, embeddings, learned slots and the logit scale may not.
    """
    named = any(part in name for part in NOT_LAYERS) and not any(part in name for part in STILL_LAYERS)
    return weight.requires_grad and weight.ndim >= 2 and not named


@dataclass(frozen=True)
class Gradients:
    """What `one_shot_gradients` returns.

    stats: one row for each layer, indexed by its name: tower, weight_norm, forget_norm, retain_norm, importance,
        alignment, cosine
    forget: the tensor +grad L_f of each layer (that was kept), shaped as the weight
    forget_loss, retain_loss: the losses at the untouched weights
    """

    stats: pd.DataFrame
    forget: dict[str, Tensor]
    forget_loss: float
    retain_loss: float


def check_sets(forget: Pairs, retain: Pairs) -> None:
    """ValueError for sets that the method cannot work with: too small, or sharing what is to be forgotten."""
    if len(forget) < 2:
        raise ValueError(f"the forget set has {len(forget)} pair(s); give at least 2, better 48")
    if len(retain) < 2:
        raise ValueError(f"the retain set has {len(retain)} pair(s); the contrastive loss needs at least 2, better 512")
    check_apart(forget, retain)


def check_apart(forget: Pairs, retain: Pairs, what: str = "retain") -> None:
    """ValueError for a set to be kept that shows the concept of the forget set, or shares captions with it."""
    if forget.concepts is not None:
        common = set.intersection(*map(set, forget.concepts))
        subjects = {frozenset(names) for names in ([common] if common else forget.concepts)} - {frozenset()}
        shared = [names for names in subjects if any(_is_about(retain, i, names) for i in range(len(retain)))]
        if shared:
            about = "; ".join(sorted(" in ".join(sorted(names)) for names in shared))
            number = sum(any(_is_about(retain, i, names) for names in shared) for i in range(len(retain)))
            raise ValueError(f"{number} {what} pairs are about {about}, the concept to forget")
    both = set(forget.captions) & set(retain.captions)
    if both:
        raise ValueError(f"forget and {what} set share captions, for instance {min(both)!r}; take them out of one")


def _is_about(pairs: Pairs, i: int, names: frozenset[str]) -> bool:
    """Does pair i show all of `names`? By its concepts, else by what its caption says."""
    if pairs.concepts is not None:
        return names <= set(pairs.concepts[i])
    return all(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", pairs.captions[i]) for name in names)


@contextmanager
def only_gradients_of(clip: Clip, names: Sequence[str]) -> Iterator[dict[str, nn.Parameter]]:
    """Eval mode, gradients for the named weights alone; afterwards everything is as it was, .grad included."""
    weights = clip.weights()
    flags = {n: (p.requires_grad, p.grad) for n, p in weights.items()}
    chosen = set(names)
    with eval_mode(clip.model):
        try:
            for name, p in weights.items():
                p.requires_grad_(name in chosen)
                p.grad = None
            with torch.enable_grad():
                yield {name: weights[name] for name in names}
        finally:
            for name, p in weights.items():
                p.grad = None
                p.requires_grad_(flags[name][0])
                p.grad = flags[name][1]


def _collect(weights: dict[str, nn.Parameter], store: Store) -> dict[str, Tensor]:
    """The gradients gathered in .grad, which is emptied; zeros where a loss does not reach a weight."""
    out = {}
    for name, p in weights.items():
        gradient = torch.zeros_like(p) if p.grad is None else p.grad
        p.grad = None
        out[name] = parallel.add_up(gradient).to(**store)
    return out


def _batches(n: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def _forget_backward(clip: Clip, forget: Pairs, batch_size: int, tick: Callable[[], object]) -> float:
    """Add grad L_f to .grad in micro-batches; each counts by its size, so that any size gives the same gradient.

    Of several processes each takes its share; their gradients are yet to be added up. Returns L_f.
    """
    mine, total = forget[parallel.share(len(forget))], 0.0
    for rows in _batches(len(mine), batch_size):
        images = clip.image_features(clip.pixels(mine[rows]))
        texts = clip.text_features(clip.tokens(mine[rows].captions))
        part = forget_loss(images, texts) * (len(texts) / len(forget))
        part.backward()
        total += part.item()
        tick()
    return parallel.add_up_number(total)


def _retain_backward(clip: Clip, retain: Pairs, share: float, batch_size: int, tick: Callable[[], object]) -> float:
    """Add share * grad L_r over all pairs given to .grad, holding one micro-batch's activations at a time.

    Gradient caching (Gao et al., 2021): the loss sees all embeddings at once; its gradient with respect to them is
    kept, and pulled back through the towers micro-batch by micro-batch in a second forward pass. One micro-batch
    needs no second pass. Of several processes each embeds its share, and the loss sees all. Returns share * L_r.
    """
    mine = retain[parallel.share(len(retain))]
    tokens, scale = clip.tokens(mine.captions), clip.logit_scale().detach()
    batches = _batches(len(tokens), batch_size)
    if len(batches) == 1 and len(mine) == len(retain):
        loss = share * retain_loss(clip.image_features(clip.pixels(mine)), clip.text_features(tokens), scale)
        loss.backward()
        tick()
        return loss.item()
    with torch.no_grad():  # pictures are transformed anew in the second pass: at full size they outweigh a gradient
        images = torch.cat([clip.image_features(clip.pixels(mine[rows])) for rows in batches])
        texts = torch.cat([clip.text_features(tokens[rows]) for rows in batches])
    images, own = parallel.gather(images)
    texts, _ = parallel.gather(texts)
    loss = share * retain_loss(images.requires_grad_(), texts.requires_grad_(), scale)
    to_images, to_texts = (g[own] for g in torch.autograd.grad(loss, (images, texts)))
    for rows in batches:
        pulled = (clip.image_features(clip.pixels(mine[rows])) * to_images[rows]).sum()
        (pulled + (clip.text_features(tokens[rows]) * to_texts[rows]).sum()).backward()
        tick()
    return loss.item()


def _layers(clip: Clip, layers: Callable[[str, Tensor], bool]) -> list[str]:
    names = [n for n, w in clip.weights().items() if clip.tower(n) and layers(n, w)]
    if not names:
        raise ValueError("no weight of the model passes `layers` (by default frozen ones, requires_grad=False, do not)")
    return names


def groups(weights: dict[str, nn.Parameter], names: list[str], passes: int) -> list[list[str]]:
    """The names in their order, cut into at most `passes` groups of about as many numbers each."""
    ends = np.cumsum([weights[name].numel() for name in names])
    group = np.minimum((ends - 1) * passes // ends[-1], passes - 1)
    found = [[name for name, g in zip(names, group, strict=True) if g == k] for k in range(passes)]
    return [some for some in found if some]


def one_shot_gradients(
    clip: Clip, forget: Pairs | Sequence[Pairs], retain: Pairs, *, batch_size: int = 128,
    contrastive_batch: int | None = None, layers: Callable[[str, Tensor], bool] = editable,
    device: torch.device | str | None = None, dtype: torch.dtype | None = None, passes: int = 1,
    keep: Callable[[pd.DataFrame], Sequence[str]] | None = None, progress: bool = True,
) -> Gradients | list[Gradients]:  # fmt: skip
    """One gradient of the forget loss, one of the retain loss, and the statistics of every layer.

    forget: a forget set; or several, of different concepts: then the retain gradient is taken once for all of them,
        and a list is returned.
    batch_size bounds memory only: the result does not depend on it. contrastive_batch: None takes the contrastive
    loss over all retain pairs at once; a number takes it over batches of that many, averaged by size.
    layers: which weights to look at, see `editable`.
    Against a shortage of memory: device, dtype say where and how gradients are kept (None: as the weights), as "cpu"
    and torch.bfloat16; passes cuts the layers into so many groups, whose gradients are taken one group after the
    other, each with forward and backward passes of its own; keep picks from a group's statistics the layers whose
    forget gradient is kept (None: all), as `pareto_front` does.

    Under torch.distributed every process is given the same sets and takes its share; all get the same result.
    The model is left exactly as it was, also on an interrupt. Raises ValueError for sets that are too small or share
    the concept, for a batch size or passes below 1 (contrastive: 2), and for a loss or gradient that is not finite.
    """
    sets = [forget] if isinstance(forget, Pairs) else list(forget)
    if not sets:
        raise ValueError("no forget set given")
    for some in sets:
        check_sets(some, retain)
    if batch_size < 1 or passes < 1 or (contrastive_batch is not None and contrastive_batch < 2):
        raise ValueError(
            f"batch_size={batch_size}, passes={passes}, contrastive_batch={contrastive_batch}: "
            "at least 1, 1 and 2 are needed"
        )
    names = _layers(clip, layers)
    chunks = _chunks(len(retain), contrastive_batch)
    sizes = [len(some) for some in sets] + [chunk.stop - chunk.start for chunk in chunks]
    parts = groups(clip.weights(), names, passes)
    steps = len(parts) * sum(-(-len(range(n)[parallel.share(n)]) // batch_size) for n in sizes)
    store: Store = {"device": device, "dtype": dtype}
    stats: list[list[pd.DataFrame]] = [[] for _ in sets]
    kept: list[dict[str, Tensor]] = [{} for _ in sets]
    with bar(total=steps, desc="gradients", show=progress) as done:
        for group in parts:
            with only_gradients_of(clip, group) as weights:
                losses, forgets = [], []
                for some in sets:
                    losses.append(_forget_backward(clip, some, batch_size, done.update))
                    forgets.append(_collect(weights, store))
                loss_r = sum(
                    _retain_backward(clip, retain[rows], len(retain[rows]) / len(retain), batch_size, done.update)
                    for rows in chunks
                )
                retains = _collect(weights, store)
            for k, g_f in enumerate(forgets):
                stats[k].append(layer_stats(clip, g_f, retains))
                kept[k] |= {name: g_f[name] for name in (keep(stats[k][-1]) if keep else g_f)}
            del forgets, retains, g_f
    out = [Gradients(pd.concat(stats[k]), kept[k], losses[k], loss_r) for k in range(len(sets))]
    for one in out:
        numbers = [one.forget_loss, loss_r, *one.stats["forget_norm"], *one.stats["retain_norm"]]
        if not np.isfinite(numbers).all():
            raise ValueError(
                f"losses or gradients are not finite (forget {one.forget_loss}, retain {loss_r}): look at the inputs"
            )
    return out[0] if isinstance(forget, Pairs) else out


def forget_gradients(
    clip: Clip, sets: Sequence[Pairs], *, batch_size: int = 128, layers: Callable[[str, Tensor], bool] = editable,
    progress: bool = True,
) -> list[dict[str, Tensor]]:  # fmt: skip
    """+grad L_f of each set in every layer, without a retain set: name -> tensor shaped as the weight.

    Arguments, processes and interrupts: see `one_shot_gradients`. All sets' gradients are held at once. Raises
    ValueError for an empty set, a batch size below 1, layers that no weight passes, and gradients that are not finite.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}; at least 1 is needed")
    names, out = _layers(clip, layers), []
    with only_gradients_of(clip, names) as weights:
        for k, some in enumerate(bar(sets, desc="forget gradients", show=progress)):
            if len(some) == 0:
                raise ValueError(f"set {k} of {len(sets)} has no pairs")
            _forget_backward(clip, some, batch_size, lambda: None)
            out.append(_collect(weights, {}))
            if not all(torch.isfinite(g).all() for g in out[-1].values()):
                raise ValueError(f"the gradient of set {k} of {len(sets)} is not finite: look at its pictures")
    return out


def _chunks(n: int, contrastive_batch: int | None) -> list[slice]:
    """Which retain pairs share a contrastive batch; each needs two pairs at least, and one for every process."""
    chunks = _batches(n, contrastive_batch or n)
    if len(chunks) > 1 and chunks[-1].stop - chunks[-1].start < 2:  # a lone pair has nothing to be told apart from
        chunks[-2:] = [slice(chunks[-2].start, chunks[-1].stop)]
    if min(chunk.stop - chunk.start for chunk in chunks) < parallel.processes():
        raise ValueError(f"a contrastive batch has fewer pairs than the {parallel.processes()} processes")
    return chunks


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


def inner(a: Tensor, b: Tensor, piece: int = 1 << 20) -> float:
    """The inner product of two tensors of a shape, summed in float64, in pieces that need little memory."""
    wide = torch.device("cpu") if a.device.type == "mps" else a.device  # MPS has no float64
    pairs = zip(a.reshape(-1).split(piece), b.reshape(-1).split(piece), strict=True)
    return sum((x.to(wide).double() @ y.to(wide).double()).item() for x, y in pairs)
