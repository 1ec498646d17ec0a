"""Where a pipeline looks for a word while it draws: maps of its cross-attention (Tang et al., 2023, "DAAM")."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from open_clip.tokenizer import bytes_to_unicode
from torch import Tensor, nn

from ..runtime.limits import cut
from ..runtime.modes import gradient_free
from ..runtime.undo import Undo, undone
from .drawing import call_settings, check_draws, doubt, draw

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


@dataclass(frozen=True)
class AttentionMaps:
    """image:  the picture, uint8 (height, width, 3)
    tokens: what each map is of: the prompt's tokens, from the start token to the first end token
    maps:   float32 (tokens, size, size), each latent position's attention to the token, a share of 1; what is
            missing to 1 goes to the padding
    tokenizer: the pipeline's, which takes words apart as it did the prompt
    """

    image: np.ndarray
    tokens: list[str]
    maps: np.ndarray
    tokenizer: Any = field(repr=False)

    def of(self, words: str) -> np.ndarray:
        """The map of whole words that the prompt has, of all their tokens together: (size, size).

        Words that come more than once count every time. KeyError for words that the prompt does not have.
        """
        added = self.tokenizer.get_added_vocab()  # by textual inversion, say: words without CLIP's sign for their end
        ends = [token.endswith("</w>") or token in added for token in self.tokens]
        wanted = _taken_apart(self.tokenizer, words)
        starts = [
            row for row in range(1, len(self.tokens) - 1)
            if wanted and ends[row - 1] and self.tokens[row : row + len(wanted)] == wanted
        ]  # fmt: skip
        if not starts:
            own = zip(self.tokens[1:-1], ends[1:-1], strict=True)
            said = "".join(token.removesuffix("</w>") + " " * end for token, end in own).split()
            raise KeyError(f"the prompt does not say {words!r}; it says {' '.join(map(_letters, said))!r}")
        return self.maps[sorted({row + k for row in starts for k in range(len(wanted))})].sum(0)


def _letters(token: str) -> str:
    """What tokens of a word stand for: CLIP's vocabulary is spelt in signs for bytes, of which an accent takes two."""
    of_bytes = {sign: byte for byte, sign in bytes_to_unicode().items()}
    if not all(sign in of_bytes for sign in token):
        return token
    return bytes(of_bytes[sign] for sign in token).decode("utf-8", errors="replace")


def _taken_apart(tokenizer: Any, text: str, **settings: Any) -> list[str]:
    """The tokens of a text as a pipeline reads it: a name that textual inversion gave several vectors has them all."""
    from diffusers.loaders import TextualInversionLoaderMixin

    text = TextualInversionLoaderMixin().maybe_convert_prompt(text, tokenizer)
    own = {"add_special_tokens": False, **settings}
    return tokenizer.convert_ids_to_tokens(tokenizer(text, **own).input_ids)


@undone
def _recorded(undo: Undo, unet: nn.Module, sums: dict[int, Tensor], counts: Counter[int]) -> None:
    """While the with-block lasts, add up every cross-attention's weights, by number of positions.

    sums: (positions, tokens) each, of the last row of a batch, the mean over heads; counts: how many were added.
    """
    from diffusers.models.attention_processor import AttnProcessor

    for name, module in unet.named_modules():
        if name.endswith("attn2"):
            undo.note(module, "get_attention_scores")
            undo[object()] = partial(module.set_processor, module.processor)
            module.set_processor(AttnProcessor())  # the one that has its weights in full
            module.get_attention_scores = _adding(module, sums, counts)


def _adding(module: nn.Module, sums: dict[int, Tensor], counts: Counter[int]) -> Callable[..., Tensor]:
    whole = module.get_attention_scores

    def scores(*given: Tensor | None) -> Tensor:
        weights = whole(*given)  # (rows * heads, positions, tokens)
        own = weights[-module.heads :].detach().float().mean(0)
        sums[len(own)] = sums.get(len(own), 0) + own
        counts[len(own)] += 1
        return weights

    return scores


@gradient_free
def attention_maps(
    pipe: StableDiffusionPipeline, prompt: str, *, seed: int = 0, steps: int | None = None,
    guidance_scale: float | None = None,
) -> AttentionMaps:  # fmt: skip
    """Draw `prompt` once, and keep where each of its tokens was heeded: the mean over heads, layers and steps.

    The maps of coarser layers are enlarged to the latents' size. Square pictures of the pipeline's own size only; of
    the two passes that guidance takes, the one with the prompt counts. seed: of the noise, made on the CPU; picture k
    of `generated_pairs` has the seed `diffusion.picture_seed(seed, k)`.
    steps, guidance_scale: None takes the pipeline's own. Raises ValueError for another kind of pipeline, no text, and a
    picture that comes out broken; the pipeline is left as it was.
    """
    check_draws(pipe)
    if not isinstance(prompt, str) or not prompt:
        raise ValueError(f"prompt is {prompt!r}; give one text")
    (prompt,) = cut([prompt])
    sums: dict[int, Tensor] = {}
    counts: Counter[int] = Counter()
    with _recorded(pipe.unet, sums, counts):
        noise = torch.Generator().manual_seed(seed)
        ((drawn, why),) = draw(pipe, [prompt], [noise], call_settings(steps, guidance_scale))
    if why:
        raise ValueError(f"the picture is broken: {why}. {doubt(pipe)}")
    size, total = pipe.unet.config.sample_size, torch.zeros(())
    for positions, added in sums.items():
        side = round(positions**0.5)
        coarse = added.T.unflatten(1, (side, side)).cpu()
        total = total + F.interpolate(coarse[None], (size, size), mode="bilinear")[0]
    room = pipe.tokenizer.model_max_length
    tokens = _taken_apart(pipe.tokenizer, prompt, add_special_tokens=True, truncation=True, max_length=room)
    return AttentionMaps(drawn, tokens, (total / counts.total())[: len(tokens)].numpy(), pipe.tokenizer)
