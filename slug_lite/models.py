"""Load a CLIP, and the one adapter through which the rest of the package sees it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from open_clip.pretrained import download_pretrained, get_pretrained_cfg
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from .pairs import Pairs, unknown

_TEXT = ("text.", "transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection")
_WEIGHT_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "model.safetensors")


@dataclass
class Clip:
    """An open_clip model with its tokenizer and evaluation transform; a model of your own goes in the same way."""

    model: nn.Module
    tokenizer: Callable[[list[str]], Tensor]
    preprocess: Callable[[Image.Image], Tensor]

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the vision tower takes pictures in: that of its first convolution."""
        return next(p for p in self.model.visual.parameters() if p.ndim == 4).dtype

    @property
    def image_size(self) -> int:
        """Height of the pictures that the vision tower takes, in pixels."""
        size = self.model.visual.image_size
        return size[0] if isinstance(size, (tuple, list)) else size

    def pixels(self, images: Pairs | np.ndarray | Sequence[Image.Image]) -> Tensor:
        """Pictures through the evaluation transform: (n, 3, S, S) on the model's device, in its dtype.

        Takes `Pairs`, a uint8 array (n, height, width, 3) or PIL images; ValueError for anything else.
        """
        if not isinstance(images, Pairs):
            images = Pairs(images, [""] * len(images))
        if len(images) == 0:
            raise ValueError("no images given")
        return torch.stack([self.preprocess(image) for image in images.pil()]).to(self.device, self.dtype)

    def tokens(self, captions: Sequence[str]) -> Tensor:
        """Captions as token ids: (n, context length), int64, on the model's device."""
        return self.tokenizer(list(captions)).to(self.device)

    def image_features(self, pixels: Tensor) -> Tensor:
        """(n, 3, S, S) -> unit vectors (n, dim), in float32 at least."""
        return F.normalize(_at_least_float32(self.model.encode_image(pixels)), dim=-1)

    def text_features(self, tokens: Tensor) -> Tensor:
        """(n, context length) -> unit vectors (n, dim), in float32 at least."""
        return F.normalize(_at_least_float32(self.model.encode_text(tokens)), dim=-1)

    def logit_scale(self) -> Tensor:
        """The factor that turns cosines into logits, a scalar (CLIP: about 100 after training)."""
        return self.model.logit_scale.exp()

    def weights(self) -> dict[str, nn.Parameter]:
        """All parameters by open_clip's names."""
        return dict(self.model.named_parameters())

    def tower(self, name: str) -> str | None:
        """ "vision" or "text": the tower that a weight belongs to; None for what both share, as the logit scale."""
        if name.startswith("visual."):
            return "vision"
        return "text" if name.startswith(_TEXT) else None


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def load_clip(name: str = "mini", *, device: str | torch.device | None = None, precision: str = "fp32") -> Clip:
    """Load a CLIP through open_clip, in eval mode.

    name: "mini" (ships with the package), "ARCH/TAG" of open_clip, as in "ViT-B-32-quickgelu/laion400m_e32", or
        "local-dir:PATH", a folder in open_clip's own format.
    device: None takes a GPU where there is one. precision: as in open_clip: "fp32", "fp16", "bf16", ...
    Raises KeyError for an unknown name (the nearest is named), FileNotFoundError for a missing folder or file,
    ValueError for weights that are pickled, damaged or of another model.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if name == "mini":
        with resources.as_file(resources.files("slug_lite") / "assets" / "mini-clip") as folder:
            return _load_folder(Path(folder), device, precision)
    if name.startswith("local-dir:"):
        return _load_folder(Path(name.removeprefix("local-dir:")), device, precision)
    return _load_tag(name, device, precision)


def _load_folder(folder: Path, device: str | torch.device, precision: str) -> Clip:
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {str(folder)!r}")
    check_weights(folder)
    source = f"local-dir:{folder}"
    try:
        model, _, preprocess = open_clip.create_model_and_transforms(
            source, device=device, precision=precision, require_pretrained=True
        )
    except RuntimeError as error:  # torch lists every key that does not fit; the first lines say enough
        reason = " ".join(str(error).split())[:400]
        raise ValueError(f"the weights in {str(folder)!r} are not those of its configuration: {reason}") from error
    return Clip(model.eval(), open_clip.get_tokenizer(source), preprocess)


def check_weights(folder: Path) -> None:
    """Raise a clear error unless `folder` holds open_clip's configuration and whole safetensors weights.

    open_clip itself would fall back to pickled weights, and to random ones.
    """
    config = folder / "open_clip_config.json"
    if not config.is_file():
        raise FileNotFoundError(f"{str(folder)!r} has no open_clip_config.json")
    try:
        json.loads(config.read_text())["model_cfg"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{str(config)!r} is no open_clip configuration with a 'model_cfg': {error}") from error
    found = [folder / file for file in _WEIGHT_FILES if (folder / file).is_file()] or sorted(
        folder.glob("*.safetensors")
    )
    if not found:
        pickled = sorted(f.name for f in folder.iterdir() if f.suffix in (".bin", ".pt", ".pth", ".ckpt"))
        if pickled:
            raise ValueError(
                f"{str(folder)!r} holds pickled weights only ({', '.join(pickled)}); safetensors are needed"
            )
        raise FileNotFoundError(f"{str(folder)!r} holds no weights; a .safetensors file is needed")
    try:
        with safe_open(found[0], "pt") as file:
            names = list(file.keys())
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{str(found[0])!r} is truncated or no safetensors file: {error}") from error
    if not names:
        raise ValueError(f"{str(found[0])!r} holds no tensors")


def _load_tag(name: str, device: str | torch.device, precision: str) -> Clip:
    arch, _, tag = name.partition("/")
    known = ["mini"] + [f"{a}/{t}" for a, t in open_clip.list_pretrained()]
    if name not in known:
        raise unknown(name, known, "model")
    config: dict[str, Any] = get_pretrained_cfg(arch, tag)
    quick = bool(open_clip.get_model_config(arch).get("quick_gelu"))
    if bool(config.get("quick_gelu")) != quick and f"{arch}-quickgelu/{tag}" in known:
        raise ValueError(f"{name!r} was trained with QuickGELU; load {f'{arch}-quickgelu/{tag}'!r}")
    try:
        file = download_pretrained(config)  # the file that open_clip itself will read
    except Exception as error:
        raise FileNotFoundError(
            f"the weights of {name!r} are not on this machine and could not be fetched: {error}"
        ) from error
    if not str(file).endswith(".safetensors"):
        raise ValueError(f"{name!r} comes as pickled weights ({Path(file).name}); only safetensors are read")
    model, _, preprocess = open_clip.create_model_and_transforms(
        arch, pretrained=tag, device=device, precision=precision, require_pretrained=True
    )
    return Clip(model.eval(), open_clip.get_tokenizer(arch), preprocess)
