"""Load a CLIP, and the one adapter through which the rest of the package sees it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from .pairs import Pairs
from .runtime import checkpoints
from .runtime.checks import check_several, unknown
from .runtime.libraries import embedding, image_size
from .runtime.limits import cut
from .runtime.names import tower_of
from .runtime.short_texts import length, short_texts
from .runtime.wrappers import unwrapped

# What ships with the package, and the folder of slug_lite/assets that it lies in
SHIPPED = {"mini": "mini-clip", "mini-without-ada": "mini-clip-without-ada"}
_PRECISIONS = ("fp32", "fp16", "bf16", "pure_fp16", "pure_bf16")


@dataclass
class Clip:
    """A CLIP with its tokenizer and evaluation transform; a model of your own goes in the same way.

    model: one of open_clip's, or anything with its encode_image, encode_text and logit_scale; or a
        transformers.CLIPModel, see `from_transformers`. It is taken out of torch.compile's and DataParallel's wrappers.
    tokenizer: strings -> ids, int64 (n, context length).
    preprocess: a PIL image -> (3, S, S).
    """

    model: nn.Module
    tokenizer: Callable[[list[str]], Tensor]
    preprocess: Callable[[Image.Image], Tensor]

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, unwrapped(value) if name == "model" else value)

    @classmethod
    def from_transformers(cls, model: nn.Module, processor: Any) -> Clip:
        """A transformers.CLIPModel with its CLIPProcessor; put into eval mode. Layers keep transformers' names."""
        return cls(*checkpoints.from_transformers(unwrapped(model), processor))

    @property
    def of_transformers(self) -> bool:
        """Is it a transformers.CLIPModel, and not one of open_clip's?"""
        return hasattr(self.model, "get_image_features")

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the vision tower takes pictures in: that of its first convolution."""
        return next(p for name, p in self.weights().items() if p.ndim == 4 and self.tower(name) == "vision").dtype

    @property
    def image_size(self) -> int:
        """Height of the pictures that the vision tower takes, in pixels."""
        return image_size(self.model)

    def pixels(
        self, images: Pairs | np.ndarray | Sequence[Image.Image], device: str | torch.device | None = None
    ) -> Tensor:
        """Pictures through the evaluation transform: (n, 3, S, S) in the model's dtype, on its device or another.

        Takes `Pairs`, a uint8 array (n, height, width, 3) or PIL images; ValueError for anything else.
        """
        check_several(images)
        images = images if isinstance(images, Pairs) else Pairs(images, [""] * len(images))
        return torch.stack([self.preprocess(image) for image in images.pil()]).to(device or self.device, self.dtype)

    def tokens(self, captions: Sequence[str]) -> Tensor:
        """Captions as token ids: (n, context length), int64, on the model's device. ValueError for a bare string.

        Of a caption of more than 2,000 characters the first 2,000 are read.
        """
        if isinstance(captions, str):
            raise ValueError(f"tokens takes several captions; put {captions!r} into a list")
        return self.tokenizer(cut(captions)).to(self.device)

    def image_features(self, pixels: Tensor) -> Tensor:
        """(n, 3, S, S) -> unit vectors (n, dim), in float32 at least."""
        model = self.model
        out = model.get_image_features(pixel_values=pixels) if self.of_transformers else model.encode_image(pixels)
        return F.normalize(embedding(out), dim=-1)

    def text_features(self, tokens: Tensor) -> Tensor:
        """(n, context length) -> unit vectors (n, dim), in float32 at least. Padding is not run, see `short_texts`."""
        if self.of_transformers:
            end = self.model.config.text_config.eos_token_id  # 2: an old mistake, kept; transformers reads the highest
            out = self.model.get_text_features(input_ids=tokens[:, : length(tokens, None if end == 2 else end)])
        else:
            with short_texts(self.model, tokens):
                out = self.model.encode_text(tokens)
        return F.normalize(embedding(out), dim=-1)

    def logit_scale(self) -> Tensor:
        """The factor that turns cosines into logits, a scalar (CLIP: about 100 after training)."""
        return self.model.logit_scale.exp()

    def logit_bias(self) -> Tensor | None:
        """What is added to the logits by a model trained with SigLIP's loss; None for CLIP's."""
        return getattr(self.model, "logit_bias", None)

    def weights(self) -> dict[str, nn.Parameter]:
        """All parameters by the model's own names."""
        return dict(self.model.named_parameters())

    def tower(self, name: str) -> str | None:
        """ "vision" or "text": the tower that a weight belongs to; None for what both share, as the logit scale."""
        return tower_of(name)


def load_clip(name: str = "mini", *, device: str | torch.device | None = None, precision: str = "fp32") -> Clip:
    """Load a CLIP through open_clip, in eval mode.

    name: "mini" (ships with the package; "mini-without-ada" is its twin, trained without pictures of Ada Sunfield),
        "ARCH/TAG" of open_clip, as in "ViT-B-32-quickgelu/laion400m_e32", "hf-hub:OWNER/NAME" or "local-dir:PATH", a
        repository or folder of its format, of whose configuration only a known few keys are taken.
    device: None takes a GPU where there is one. precision: as in open_clip: "fp32", "fp16", "bf16", ...
    Raises KeyError for an unknown name (the nearest is named), FileNotFoundError for a missing folder or file,
    ValueError for a name that is no text, and weights that are pickled, damaged or of another model; RuntimeError,
    torch's own, for a device that is not there.
    """
    checkpoints.check_name(name)
    if precision not in _PRECISIONS:
        raise unknown(precision, _PRECISIONS, "precision")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if name in SHIPPED:
        with resources.as_file(resources.files("slug_lite") / "assets" / SHIPPED[name]) as folder:
            return Clip(*checkpoints.from_folder(Path(folder), device, precision))
    if name.startswith("hf-hub:"):
        return Clip(*checkpoints.from_hub(name.removeprefix("hf-hub:"), device, precision))
    if name.startswith("local-dir:"):
        return Clip(*checkpoints.from_folder(Path(name.removeprefix("local-dir:")), device, precision))
    return Clip(*checkpoints.from_tag(name, device, precision, [*SHIPPED]))
