"""Gradients batch by batch, as most released code takes them; `gradients.one_shot_gradients` is how this book does.

With `zero=True` the result is the mean of the batches' gradients. With `zero=False`, what stands in .grad is never
emptied: after batch k it is the sum of the first k gradients, and before the first it may hold a leftover. Of n
batches, batch k then counts (n - k + 1) / n, and the leftover counts once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ..gradients import editable
from ..losses import forget_loss, retain_loss
from ..models import Clip
from ..pairs import Pairs
from ..runtime.modes import only_gradients_of
from ..runtime.numbers import check_whole

BatchLoss = Callable[[Tensor, Tensor, Tensor], Tensor]  # unit vectors of pictures and captions (n, dim), logit scale


def in_batches(pairs: Pairs, size: int) -> list[Pairs]:
    """The pairs in their order, `size` at a time; the last batch may be shorter. ValueError for a size below 1."""
    check_whole(size=size)
    return [pairs[start : start + size] for start in range(0, len(pairs), size)]


def renamed(pairs: Pairs, caption: str) -> Pairs:
    """The same pictures, every one with the same caption."""
    return Pairs(pairs.images, [caption] * len(pairs), pairs.concepts)


def by_name(name: str, weight: Tensor) -> bool:
    """Which weights CSIPlab/SLUG's script for CLIP lets onto its front (src/clip/unlearn_slug.py, commit 59629a2).

    A rule about names alone, so that the weights of norms pass. `gradients.editable` looks at the weight itself.
    """
    return not any(part in name for part in ("bias", "logit_scale", "position", "embedding"))


def forgetting(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """`losses.forget_loss` as a loss of a batch; it does not use the scale."""
    return forget_loss(images, texts)


def batch_gradients(
    clip: Clip, batches: Sequence[Pairs], loss: BatchLoss, *, zero: bool = True,
    left: Mapping[str, Tensor] | None = None, layers: Callable[[str, Tensor], bool] = editable,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:  # fmt: skip
    """The mean over batches of what stands in .grad after each, and what stands there in the end.

    loss: `forgetting`, `losses.retain_loss` or another of a batch's unit vectors (n, dim) and the logit scale
    zero: empty .grad before every batch; left: what it holds before the first, by layer, if it is not emptied
    layers: which weights to look at, as in `one_shot_gradients`

    Returns two dicts from layer to tensor, shaped as the weights. The model is left exactly as it was.
    ValueError for no batches.
    """
    if not batches:
        raise ValueError("no batches given: a mean needs at least one")
    names = [n for n, w in clip.weights().items() if clip.tower(n) and layers(n, w)]
    with only_gradients_of(clip, names) as weights:
        total = {name: torch.zeros_like(w) for name, w in weights.items()}
        for name, w in weights.items():
            w.grad = torch.zeros_like(w) if left is None else left[name].clone()
        for batch in batches:
            if zero:
                for w in weights.values():
                    w.grad.zero_()
            images = clip.image_features(clip.pixels(batch))  # (n, dim)
            texts = clip.text_features(clip.tokens(batch.captions))  # (n, dim)
            loss(images, texts, clip.logit_scale().detach()).backward()
            for name, w in weights.items():
                total[name] += w.grad
        return {n: t / len(batches) for n, t in total.items()}, {n: w.grad.clone() for n, w in weights.items()}


def as_the_notebook(
    clip: Clip, forget: Pairs, retain: Pairs, name: str, *, batch: int = 4
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Forget and retain gradient with the choices of CSIPlab/SLUG's notebook for Stable Diffusion.

    (notebooks/experiment_stable_diffusion.ipynb, cell 7, commit 59629a2.) Batches of four; every caption, in both
    sets, is the concept's name; .grad is never emptied, not between the sets either.
    """
    forgets, retains = (in_batches(renamed(some, name), batch) for some in (forget, retain))
    g_f, left = batch_gradients(clip, forgets, forgetting, zero=False)
    return g_f, batch_gradients(clip, retains, retain_loss, zero=False, left=left)[0]


def as_the_script(
    clip: Clip, forget: Pairs, retain: Pairs, *, batch: int = 16
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Forget and retain gradient as the paper defines them, in the batches of CSIPlab/SLUG's script for CLIP.

    (scripts/run_compute_grad.sh, commit 59629a2.) Captions are the pairs' own; a mean over batches of each loss.
    """
    g_f, _ = batch_gradients(clip, in_batches(forget, batch), forgetting)
    return g_f, batch_gradients(clip, in_batches(retain, batch), retain_loss)[0]
