"""Steps that leave alone what a text encoder says of everything else.

A change D of a layer y = W x moves its output for other prompts by D x. Of all D that raise the forget loss alike to
first order, <g, D>, the one with the least mean |D x|^2 = tr(D C D^T) over the others' inputs x, C the mean of x x^T,
is along g C^-1. Not part of the paper's method, whose steps are along g. ROME turns its change of one layer by the
same C^-1 (Meng et al., 2022, equation 2).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..runtime.libraries import encoder_of
from ..runtime.modes import gradient_free, hooked
from ..runtime.text_towers import translate_names
from .drawing import prompt_states

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

DAMPING = 0.03  # of the mean of C's diagonal, added to it: directions that no prompt uses are not free of charge
PROMPTS = 64  # encoded at a time


@gradient_free
def input_moments(pipe: StableDiffusionPipeline, prompts: Sequence[str], layers: Collection[str]) -> dict[str, Tensor]:
    """The mean of x x^T over the inputs x of layers of the text encoder, when it encodes prompts.

    layers: by the names that either library has for them, queries, keys and values fused or apart. Returns by the same
    names (in, in), float64, on the CPU, for those that are weights of a linear layer; what else there is, embeddings
    and biases, is left out. Every position counts, padding too, for the UNet attends to all of them. Raises ValueError
    for no prompts, and for what no text encoder has.
    """
    if isinstance(prompts, str) or not prompts:
        raise ValueError(f"prompts={prompts!r}; give a sequence of texts, one at least")
    encoder = encoder_of(pipe)
    weights = dict(encoder.named_parameters())
    names = {layer: translate_names(layer, weights)[0] for layer in layers}
    lacking = [layer for layer, name in names.items() if name not in weights]
    if lacking:
        raise ValueError(f"the text encoder has no {', '.join(lacking)}")
    linear = {
        layer: module for layer, name in names.items()
        if name.endswith(".weight") and isinstance(module := encoder.get_submodule(name[: -len(".weight")]), nn.Linear)
    }  # fmt: skip
    sums, count = dict[str, Tensor](), 0

    def add(layer: str, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        x = inputs[0].flatten(end_dim=-2).float()
        # where the encoder is, in float32: of a few sums, whose rounding the damping outweighs ten thousand times
        sums[layer] = torch.addmm(sums[layer], x.T, x) if layer in sums else x.T @ x

    with hooked(list(linear.values()), [partial(add, layer) for layer in linear]):
        for k in range(0, len(prompts), PROMPTS):
            count += prompt_states(pipe, prompts[k : k + PROMPTS]).shape[:2].numel()
    return {layer: sums[layer].cpu().double() / count for layer in linear}


def precondition(gradient: Tensor, moment: Tensor, damping: float = DAMPING) -> Tensor:
    """The direction g C^-1, as long as the gradient, shaped as it and on its device.

    gradient: (out, in). moment: C, (in, in). damping: a part of the mean of C's diagonal that is added to it. Raises
    ValueError for shapes that do not fit, a damping that is not positive, and what is not finite.
    """
    size = gradient.shape[-1]
    if gradient.ndim != 2 or moment.shape != (size, size):
        raise ValueError(f"gradient {tuple(gradient.shape)}, moment {tuple(moment.shape)}; (out, in), (in, in) needed")
    if not damping > 0:
        raise ValueError(f"damping={damping}; a positive number is needed")
    device = torch.device("cpu") if gradient.device.type == "mps" else gradient.device  # MPS has no float64
    g, c = gradient.detach().to(device).double(), moment.to(device).double()
    if not (torch.isfinite(g).all() and torch.isfinite(c).all()):
        raise ValueError("gradient or moment is not finite: the text encoder is broken, or its precision too low")
    c = c + damping * c.diagonal().mean() * torch.eye(size, dtype=torch.float64, device=device)
    turned = torch.linalg.solve(c, g, left=False)
    length = turned.norm()
    if not torch.isfinite(length):
        raise ValueError("the preconditioned step is not finite")
    return (turned * (g.norm() / length) if length > 0 else g).to(gradient)
