"""One gradient of each loss, at the untouched weights, and what every layer's pair of gradients says.

For a weight tensor theta_l (Cai, Tan, Asif, 2025, section 3.2):
    importance(l) = |g_f| / |theta_l|          how far a small relative step moves the forget loss
    cosine(l)     = <g_f, g_r> / |g_f| |g_r|   below zero, the forgetting step lowers the retain loss too
    alignment(l)  = |cosine(l)|                the paper's measure: near zero, the retain loss does not feel the step
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from .losses import forget_loss, retain_loss
from .models import Clip
from .pairs import Pairs
from .progress import bar

# Parts of names of tensors that stand for positions, tokens or slots: not layers in the sense of the method
NOT_LAYERS = ("embedding", "pos_embed", "cls_token", "reg_token", "cls_emb", "latent", "logit_")


def editable(name: str, weight: Tensor) -> bool:
    """Which weights may be chosen: matrices and convolutions. Biases, norms, embeddings and logit scale may not."""
    return weight.ndim >= 2 and not any(part in name for part in NOT_LAYERS)


@dataclass(frozen=True)
class Gradients:
    """What `one_shot_gradients` returns.

    stats: one row for each layer, indexed by its name: tower, weight_norm, forget_norm, retain_norm, importance,
        alignment, cosine
    forget: the tensor +grad L_f of each layer, shaped as the weight
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
    if forget.concepts is not None and retain.concepts is not None:
        subject = set.intersection(*map(set, forget.concepts))
        shared = [i for i, names in enumerate(retain.concepts) if subject & set(names)]
        if shared:
            raise ValueError(
                f"{len(shared)} retain pairs are about {', '.join(sorted(subject))}, the concept to forget"
            )
    both = set(forget.captions) & set(retain.captions)
    if both:
        raise ValueError(f"forget and retain set share captions, for instance {min(both)!r}; take them out of one")


@contextmanager
def only_gradients_of(clip: Clip, names: Sequence[str]) -> Iterator[dict[str, nn.Parameter]]:
    """Eval mode, gradients for the named weights alone; afterwards everything is as it was, .grad included."""
    weights = clip.weights()
    flags = {n: (p.requires_grad, p.grad) for n, p in weights.items()}
    modes = {m: m.training for m in clip.model.modules()}
    chosen = set(names)
    try:
        clip.model.eval()
        for name, p in weights.items():
            p.requires_grad_(name in chosen)
            p.grad = None
        yield {name: weights[name] for name in names}
    finally:
        for name, p in weights.items():
            p.grad = None
            p.requires_grad_(flags[name][0])
            p.grad = flags[name][1]
        for module, training in modes.items():
            module.training = training


def _collect(weights: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """The gradients gathered in .grad, which is emptied; zeros where a loss does not reach a weight."""
    out = {}
    for name, p in weights.items():
        out[name] = torch.zeros_like(p) if p.grad is None else p.grad
        p.grad = None
    return out


def _batches(n: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def _forget_backward(clip: Clip, pixels: Tensor, tokens: Tensor, batch_size: int, tick: Callable[[], object]) -> float:
    """Add grad L_f to .grad in micro-batches; each counts by its size, so that any size gives the same gradient."""
    total = 0.0
    for rows in _batches(len(tokens), batch_size):
        images, texts = clip.image_features(pixels[rows]), clip.text_features(tokens[rows])
        part = forget_loss(images, texts) * (len(texts) / len(tokens))
        part.backward()
        total += part.item()
        tick()
    return total


def _retain_backward(clip: Clip, retain: Pairs, share: float, batch_size: int, tick: Callable[[], object]) -> float:
    """Add share * grad L_r over all pairs given to .grad, holding one micro-batch's activations at a time.

    Gradient caching (Gao et al., 2021): the loss sees all embeddings at once; its gradient with respect to them is
    kept, and pulled back through the towers micro-batch by micro-batch in a second forward pass. One micro-batch
    needs no second pass. Returns share * L_r.
    """
    pixels, tokens = clip.pixels(retain), clip.tokens(retain.captions)
    scale, batches = clip.logit_scale().detach(), _batches(len(tokens), batch_size)
    if len(batches) == 1:
        loss = share * retain_loss(clip.image_features(pixels), clip.text_features(tokens), scale)
        loss.backward()
        tick()
        return loss.item()
    with torch.no_grad():
        images = torch.cat([clip.image_features(pixels[rows]) for rows in batches])
        texts = torch.cat([clip.text_features(tokens[rows]) for rows in batches])
    images.requires_grad_()
    texts.requires_grad_()
    loss = share * retain_loss(images, texts, scale)
    to_images, to_texts = torch.autograd.grad(loss, (images, texts))
    for rows in batches:
        pulled = (clip.image_features(pixels[rows]) * to_images[rows]).sum()
        (pulled + (clip.text_features(tokens[rows]) * to_texts[rows]).sum()).backward()
        tick()
    return loss.item()


def one_shot_gradients(
    clip: Clip, forget: Pairs, retain: Pairs, *, batch_size: int = 128, contrastive_batch: int | None = None,
    layers: Callable[[str, Tensor], bool] = editable, progress: bool = True,
) -> Gradients:  # fmt: skip
    """One gradient of the forget loss, one of the retain loss, and the statistics of every layer.

    batch_size bounds memory only: the result does not depend on it. contrastive_batch: None takes the contrastive
    loss over all retain pairs at once; a number takes it over batches of that many, averaged by size.
    layers: which weights to look at, see `editable`. The model is left exactly as it was, also on an interrupt.
    Raises ValueError for sets that are too small or share the concept, for a batch size below 1 (contrastive: 2),
    and for a loss or gradient that is not finite.
    """
    check_sets(forget, retain)
    if batch_size < 1 or (contrastive_batch is not None and contrastive_batch < 2):
        raise ValueError(f"batch_size={batch_size}, contrastive_batch={contrastive_batch}: at least 1 and 2 are needed")
    names = [n for n, w in clip.weights().items() if clip.tower(n) and layers(n, w)]
    if not names:
        raise ValueError("no weight of the model passes `layers`")
    chunks = _batches(len(retain), contrastive_batch or len(retain))
    if len(chunks) > 1 and chunks[-1].stop - chunks[-1].start < 2:  # a lone pair has nothing to be told apart from
        chunks[-2:] = [slice(chunks[-2].start, chunks[-1].stop)]
    steps = -(-len(forget) // batch_size) + sum(-(-(c.stop - c.start) // batch_size) for c in chunks)
    with only_gradients_of(clip, names) as weights, bar(total=steps, desc="gradients", show=progress) as done:
        loss_f = _forget_backward(clip, clip.pixels(forget), clip.tokens(forget.captions), batch_size, done.update)
        forget_gradients = _collect(weights)
        loss_r = sum(
            _retain_backward(clip, retain[rows], len(retain[rows]) / len(retain), batch_size, done.update)
            for rows in chunks
        )
        stats = layer_stats(clip, forget_gradients, _collect(weights))
    if not np.isfinite([loss_f, loss_r, *stats["forget_norm"], *stats["retain_norm"]]).all():
        raise ValueError(f"losses or gradients are not finite (forget {loss_f}, retain {loss_r}): look at the inputs")
    return Gradients(stats, forget_gradients, loss_f, loss_r)


def layer_stats(clip: Clip, forget: dict[str, Tensor], retain: dict[str, Tensor]) -> pd.DataFrame:
    """The table of `Gradients.stats` from both gradients. Norms and products are summed in float64."""
    weights, rows = clip.weights(), {}
    for name, g_f in forget.items():
        g_r, theta = retain[name], weights[name].detach()
        weight_norm, forget_norm, retain_norm = (
            torch.linalg.vector_norm(x, dtype=torch.float64).item() for x in (theta, g_f, g_r)
        )
        product = (g_f.double() * g_r.double()).sum().item()
        length = forget_norm * retain_norm
        cosine = product / length if length > 0 else 0.0
        rows[name] = {
            "tower": clip.tower(name), "weight_norm": weight_norm, "forget_norm": forget_norm,
            "retain_norm": retain_norm, "importance": forget_norm / weight_norm if weight_norm > 0 else 0.0,
            "alignment": abs(cosine), "cosine": cosine,
        }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("layer")
