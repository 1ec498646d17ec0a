"""Where a pipeline looks for a word while it draws: maps of its cross-attention (Tang et al., 2023, "DAAM")."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

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
    """

    image: np.ndarray
    tokens: list[str]
    maps: np.ndarray

    def of(self, words: str) -> np.ndarray:
        """The map of whole words that the prompt has, of all their tokens together: (size, size).

        Words that come more than once count every time. KeyError for words that the prompt does not have.
        """
        spelt: list[tuple[str, list[int]]] = [("", [])]  # each word of the prompt, and the rows of its tokens
        for row, token in enumerate(self.tokens[1:-1], 1):
            spelt[-1] = (spelt[-1][0] + token.removesuffix("</w>"), [*spelt[-1][1], row])
            if token.endswith("</w>"):
                spelt.append(("", []))
        said, wanted = [_letters(word) for word, _ in spelt], _words(words)
        starts = [k for k in range(len(said)) if wanted and said[k : k + len(wanted)] == wanted]
        if not starts:
            raise KeyError(f"the prompt does not say {words!r}; it says {' '.join(said).strip()!r}")
        rows = {row for start in starts for _, own in spelt[start : start + len(wanted)] for row in own}
        return self.maps[sorted(rows)].sum(0)


def _letters(token: str) -> str:
    """What a token stands for: CLIP's vocabulary is spelt in signs for bytes, of which an accent takes two."""
    of_bytes = {sign: byte for byte, sign in bytes_to_unicode().items()}
    if not all(sign in of_bytes for sign in token):
        return token
    return bytes(of_bytes[sign] for sign in token).decode("utf-8", errors="replace")


def _words(text: str) -> list[str]:
    """A text as CLIP's tokenizer takes it apart: letters, single digits, signs; lower case, accents composed."""
    parts = r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|(?:[^\w\s]|_)+"
    return re.findall(parts, unicodedata.normalize("NFC", text).lower())


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
    ids = pipe.tokenizer(prompt, truncation=True, max_length=pipe.tokenizer.model_max_length).input_ids
    maps = (total / counts.total())[: len(ids)].numpy()
    return AttentionMaps(drawn, pipe.tokenizer.convert_ids_to_tokens(ids), maps)
