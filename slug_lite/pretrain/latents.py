"""What mini Stable Diffusion's UNet sees: latents and hidden states, both computed once and kept beside its weights."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..models import Clip
from ..runtime.files import digest, write_signed
from ..runtime.progress import bar
from ..world import captions
from .autoencoder import signed
from .clip import Groups, Pool
from .unet import UnetRecipe

FORMAT = "slug_lite latents 1, float16"


@torch.no_grad()
def hidden_states(clip: Clip, texts: Sequence[str]) -> Tensor:
    """The text tower's last hidden states, after its final norm: (n, context length, width), as a pipeline has them."""
    model, out = clip.model, []
    for start in range(0, len(texts), 256):
        x = model.token_embedding(clip.tokens(texts[start : start + 256])) + model.positional_embedding
        out.append(model.ln_final(model.transformer(x, attn_mask=model.attn_mask)))
    return torch.cat(out)


def _captions(groups: Groups, recipe: UnetRecipe) -> tuple[list[str], Tensor]:
    """The different captions, the empty one first, and for each concept the rows of its own: (concepts, captions)."""
    rows: dict[str, int] = {"": 0}
    rng, table = np.random.default_rng([recipe.seed, 3]), []
    for concept in (c for members in groups.values() for c in members):
        drawn = [captions.caption(concept, "train", "mixed", rng) for _ in range(recipe.captions)]
        table.append([rows.setdefault(text, len(rows)) for text in drawn])
    return list(rows), torch.tensor(table)


def _sources(vae: nn.Module, clip: Clip, pool: Pool, said: tuple[list[str], Tensor]) -> dict[str, str]:
    """Hashes of all that `prepare` makes its tensors of: models, pictures and captions themselves, and its code."""
    pictures = hashlib.sha256()
    for concept, images in pool.images.items():
        pictures.update(repr((concept, images.shape, images.dtype)).encode())
        pictures.update(np.ascontiguousarray(images).data)
    texts, table = said
    code = [torch.__version__, *(inspect.getsource(made_by) for made_by in (prepare, hidden_states, signed))]
    tokens = clip.tokens(texts[:64]).tolist()  # those of a few tell tokenizers apart
    return {
        "format": FORMAT, "autoencoder": _model(vae), "CLIP": _model(clip.model), "pictures": pictures.hexdigest(),
        "captions": _hash(texts, table.tolist(), tokens), "code": _hash(*code),
    }  # fmt: skip


def _model(model: nn.Module) -> str:
    return digest({n: t.detach().cpu() for n, t in model.state_dict().items()}, {"layers": str(model)})


def _hash(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _kept(file: Path, sources: dict[str, str]) -> dict[str, Tensor] | None:
    """What `prepare` left in a file; None where there is none, where it was made of anything else, or is damaged."""
    try:
        with safe_open(file, "pt") as saved:
            meta = saved.metadata() or {}
            if {name: meta.get(name) for name in sources} != sources:
                return None
            data = {name: saved.get_tensor(name).clone() for name in saved.keys()}  # noqa: SIM118
    except (SafetensorError, OSError):
        return None
    return data if meta.pop("digest", None) == digest(data, meta) else None


@torch.no_grad()
def prepare(folder: str | Path, vae: nn.Module, clip: Clip, pool: Pool, recipe: UnetRecipe) -> dict[str, Tensor]:
    """Latents and hidden states of the pool, computed once and kept in folder/latents.safetensors.

    "latents": (n, channels, 16, 16), "start": where each concept's begin, "states": (captions, context length,
    width), the empty caption's first, "captions": (concepts, captions) rows of "states".
    Concepts are in the pool's order. What is kept is taken up if it was made of the very same models, pictures and
    captions by the same code, and is whole; else it is computed anew.
    """
    file, (texts, table) = Path(folder) / "latents.safetensors", _captions(pool.groups, recipe)
    sources = _sources(vae, clip, pool, (texts, table))
    if file.is_file() and (found := _kept(file, sources)) is not None:
        return found
    latents = []
    for images in bar(pool.images.values(), desc="latents", leave=False):
        latents += [vae.encode(b).latent_dist.mean.half() for b in signed(images).split(64)]
    start = torch.tensor(np.cumsum([0] + [len(images) for images in pool.images.values()]))
    data = {"latents": torch.cat(latents).contiguous(), "start": start, "captions": table,
            "states": hidden_states(clip, texts).half().cpu().contiguous()}  # fmt: skip
    write_signed(file, data, sources)
    return data
