"""Work cut into pieces that fit into memory, with the result that all at once would have, to rounding."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .modes import no_gradients
from .numbers import check_whole
from .processes import all_gather, processes


@dataclass(frozen=True)
class Memory:
    """Against a shortage of memory. None of it changes what is found, to rounding.

    batch_size: pairs whose activations are held at a time
    passes: into how many groups of layers gradients are cut, each with forward and backward passes of its own
    protected: bytes of gradients of what is to be protected that are held at a time; the default is 2 GiB. Five names
        leave 67 sets, 1.1 GB for one layer of 1024 x 4096 in float32. Layers are taken in groups that fit, and of one
        that alone does not fit, these gradients go to the memory of the CPU

    ValueError for numbers that are not whole, or below 1.
    """

    batch_size: int = 128
    passes: int = 1
    protected: int = 2 << 30

    def __post_init__(self) -> None:
        check_whole(batch_size=self.batch_size, passes=self.passes, protected=self.protected)

    def protect(self, weights: Mapping[str, Tensor], names: list[str], sets: int) -> list[list[str]]:
        """Groups of layers, in their order, such that the gradients of that many sets fit, see `protected`."""
        found: list[list[str]] = []
        for group in groups(weights, names, self.passes) if names else ():
            held = math.inf
            for name in group:
                held += (own := sets * weights[name].nbytes)
                if held > self.protected:
                    held = own
                    found.append([])
                found[-1].append(name)
        return found

    def place(self, weights: Mapping[str, Tensor], group: list[str], sets: int) -> str | None:
        """Where the gradients of a group are kept: None, where they are taken, unless they do not fit."""
        return "cpu" if sets * sum(weights[name].nbytes for name in group) > self.protected else None


def batches(n: int, size: int) -> list[slice]:
    """n rows, `size` at a time; the last batch may be shorter."""
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def contrastive_batches(n: int, size: int | None) -> list[slice]:
    """Which of n pairs share a contrastive batch of `size` (None: all); a last lone pair joins those before it.

    ValueError for a size below 2, and for a batch with fewer pairs than there are processes.
    """
    if size is not None:
        check_whole(2, contrastive_batch=size)  # to be told apart
    chunks = batches(n, size or n)
    if len(chunks) > 1 and chunks[-1].stop - chunks[-1].start < 2:  # a lone pair has nothing to be told apart from
        chunks[-2:] = [slice(chunks[-2].start, chunks[-1].stop)]
    if min(chunk.stop - chunk.start for chunk in chunks) < processes():
        raise ValueError(f"a contrastive batch has fewer pairs than the {processes()} processes")
    return chunks


def groups(weights: Mapping[str, Tensor], names: list[str], passes: int) -> list[list[str]]:
    """The names in their order, cut into at most `passes` groups of about as many numbers each."""
    ends = np.cumsum([weights[name].numel() for name in names])
    group = np.minimum((ends - 1) * passes // ends[-1], passes - 1)
    found = [[name for name, g in zip(names, group, strict=True) if g == k] for k in range(passes)]
    return [some for some in found if some]


def cached_backward(
    embed: Callable[[slice], tuple[Tensor, Tensor]], loss: Callable[[Tensor, Tensor], Tensor], n: int, size: int,
    tick: Callable[[], object],
) -> float:  # fmt: skip
    """Add the gradient of a loss of all embeddings to .grad, holding one micro-batch's activations at a time.

    Gradient caching (Gao et al., 2021): the loss sees all embeddings at once; its gradient with respect to them is
    kept, and pulled back through the towers micro-batch by micro-batch in a second forward pass. One micro-batch
    needs no second pass.

    embed: rows of this process -> picture and text embeddings, (rows, dim) each. n: how many rows this process has;
    the loss sees the embeddings of all processes, whose gradients are yet to be reduced. Returns the loss.
    """
    parts = batches(n, size)
    if len(parts) == 1 and processes() == 1:
        value = loss(*embed(parts[0]))
        value.backward()
        tick()
        return value.item()
    with no_gradients():  # inputs are made anew in the second pass: at full size they outweigh a gradient
        images, texts = (torch.cat(some) for some in zip(*(embed(rows) for rows in parts), strict=True))
    (images, own), (texts, _) = all_gather(images), all_gather(texts)
    value = loss(images.requires_grad_(), texts.requires_grad_())
    to_images, to_texts = (g[own] for g in torch.autograd.grad(value, (images, texts)))
    for rows in parts:
        of_images, of_texts = embed(rows)
        ((of_images * to_images[rows]).sum() + (of_texts * to_texts[rows]).sum()).backward()
        tick()
    return value.item()
