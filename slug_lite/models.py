"""Load a CLIP, and the one adapter through which the rest of the package sees it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
from .short_texts import length, short_texts

# How names of weights begin in open_clip's models (of its own and custom text towers) and in transformers.CLIPModel
_VISION = ("visual.", "vision_model.", "visual_projection.")
_TEXT = (
    "text.", "transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection", "text_model.",
)  # fmt: skip
# What open_clip takes from a folder, in its order; any other safetensors file comes last
_WEIGHT_FILES = (
    "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth", "model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth",
)  # fmt: skip
# What ships with the package, and the folder of slug_lite/assets that it lies in
SHIPPED = {"mini": "mini-clip", "mini-without-ada": "mini-clip-without-ada"}
_PRECISIONS = ("fp32", "fp16", "bf16", "pure_fp16", "pure_bf16")


@dataclass
class Clip:
    """A CLIP with its tokenizer and evaluation transform; a model of your own goes in the same way.

    model: one of open_clip's, or anything with its encode_image, encode_text and logit_scale; or a
        transformers.CLIPModel, see `from_transformers`. tokenizer: strings -> ids, int64 (n, context length).
    preprocess: a PIL image -> (3, S, S).
    """

    model: nn.Module
    tokenizer: Callable[[list[str]], Tensor]
    preprocess: Callable[[Image.Image], Tensor]

    @classmethod
    def from_transformers(cls, model: nn.Module, processor: Any) -> Clip:
        """A transformers.CLIPModel with its CLIPProcessor; put into eval mode. Layers keep transformers' names."""
        length = model.config.text_config.max_position_embeddings

        def tokenize(captions: list[str]) -> Tensor:
            # no attention mask: captions are read from the left, and what follows the end token is not seen
            return processor.tokenizer(
                captions, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
            ).input_ids

        def preprocess(image: Image.Image) -> Tensor:
            return processor.image_processor(image, return_tensors="pt").pixel_values[0]

        return cls(model.eval(), tokenize, preprocess)

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
        size = self.model.config.vision_config.image_size if self.of_transformers else self.model.visual.image_size
        return size[0] if isinstance(size, (tuple, list)) else size

    def pixels(
        self, images: Pairs | np.ndarray | Sequence[Image.Image], device: str | torch.device | None = None
    ) -> Tensor:
        """Pictures through the evaluation transform: (n, 3, S, S) in the model's dtype, on its device or another.

        Takes `Pairs`, a uint8 array (n, height, width, 3) or PIL images; ValueError for anything else.
        """
        if not isinstance(images, Pairs):
            if isinstance(images, Image.Image):
                raise ValueError("pixels takes several images; put a single one into a list")
            images = Pairs(images, [""] * len(images))
        if len(images) == 0:
            raise ValueError("no images given")
        return torch.stack([self.preprocess(image) for image in images.pil()]).to(device or self.device, self.dtype)

    def tokens(self, captions: Sequence[str]) -> Tensor:
        """Captions as token ids: (n, context length), int64, on the model's device. ValueError for a bare string."""
        if isinstance(captions, str):
            raise ValueError(f"tokens takes several captions; put {captions!r} into a list")
        return self.tokenizer(list(captions)).to(self.device)

    def image_features(self, pixels: Tensor) -> Tensor:
        """(n, 3, S, S) -> unit vectors (n, dim), in float32 at least."""
        model = self.model
        out = model.get_image_features(pixel_values=pixels) if self.of_transformers else model.encode_image(pixels)
        return F.normalize(_embedding(out), dim=-1)

    def text_features(self, tokens: Tensor) -> Tensor:
        """(n, context length) -> unit vectors (n, dim), in float32 at least. Padding is not run, see `short_texts`."""
        if self.of_transformers:
            end = self.model.config.text_config.eos_token_id  # 2: an old mistake, kept; transformers reads the highest
            out = self.model.get_text_features(input_ids=tokens[:, : length(tokens, None if end == 2 else end)])
        else:
            with short_texts(self.model, tokens):
                out = self.model.encode_text(tokens)
        return F.normalize(_embedding(out), dim=-1)

    def logit_scale(self) -> Tensor:
        """The factor that turns cosines into logits, a scalar (CLIP: about 100 after training)."""
        return self.model.logit_scale.exp()

    def weights(self) -> dict[str, nn.Parameter]:
        """All parameters by the model's own names."""
        return dict(self.model.named_parameters())

    def tower(self, name: str) -> str | None:
        """ "vision" or "text": the tower that a weight belongs to; None for what both share, as the logit scale."""
        if name.startswith(_VISION):
            return "vision"
        return "text" if name.startswith(_TEXT) else None


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; every module's own mode afterwards, after an exception too."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _embedding(out: Any) -> Tensor:
    """What an encoder returns, in float32 at least; transformers 5 wraps the projected embedding into an output."""
    x = out if isinstance(out, Tensor) else out.pooler_output
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def load_clip(name: str = "mini", *, device: str | torch.device | None = None, precision: str = "fp32") -> Clip:
    """Load a CLIP through open_clip, in eval mode.

    name: "mini" (ships with the package; "mini-without-ada" is its twin, trained alike but for every picture of Ada
        Sunfield), "ARCH/TAG" of open_clip, as in "ViT-B-32-quickgelu/laion400m_e32", or
        "local-dir:PATH", a folder in open_clip's own format.
    device: None takes a GPU where there is one. precision: as in open_clip: "fp32", "fp16", "bf16", ...
    Raises KeyError for an unknown name (the nearest is named), FileNotFoundError for a missing folder or file,
    ValueError for weights that are pickled, damaged or of another model; RuntimeError, torch's own, for a device
    that is not there.
    """
    if precision not in _PRECISIONS:
        raise unknown(precision, _PRECISIONS, "precision")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if name in SHIPPED:
        with resources.as_file(resources.files("slug_lite") / "assets" / SHIPPED[name]) as folder:
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
            source, device="cpu", precision=precision, require_pretrained=True
        )
    except _MISFITS as error:  # torch lists every key that does not fit; the first lines say enough
        reason = " ".join(str(error).split())[:400]
        raise ValueError(
            f"the weights in {str(folder)!r} are not those of its configuration: {type(error).__name__}: {reason}"
        ) from error
    return Clip(model.eval().to(device), open_clip.get_tokenizer(source), preprocess)


# What open_clip and torch raise, by turns, when file and configuration do not fit
_MISFITS = (RuntimeError, AttributeError, KeyError, TypeError, IndexError, ValueError, AssertionError)


def check_weights(folder: Path) -> None:
    """Raise a clear error unless `folder` holds open_clip's configuration and whole safetensors weights.

    open_clip itself would fall back to pickled weights, and to random ones.
    """
    config = folder / "open_clip_config.json"
    if not config.is_file():
        raise FileNotFoundError(f"{str(folder)!r} has no open_clip_config.json")
    try:
        model_cfg = json.loads(config.read_text())["model_cfg"]
        missing = [key for key in ("embed_dim", "vision_cfg", "text_cfg") if key not in model_cfg]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{str(config)!r} is no open_clip configuration with a 'model_cfg': {error}") from error
    if missing:
        raise ValueError(f"the model_cfg of {str(config)!r} lacks {', '.join(missing)}")
    safe = safe_files(folder)
    found = [folder / file for file in _WEIGHT_FILES if (folder / file).is_file()] + safe
    if found[0].suffix != ".safetensors":
        raise ValueError(
            f"{str(folder)!r} holds the pickled {found[0].name}, which open_clip would read instead of "
            f"{safe[0].name}; take it out"
        )
    if not tensor_names(found[0]):
        raise ValueError(f"{str(found[0])!r} holds no tensors")


def safe_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder. ValueError where all weights are pickled, FileNotFoundError for none."""
    safe = sorted(folder.glob("*.safetensors"))
    if not safe:
        pickled = sorted(f.name for f in folder.iterdir() if f.suffix in (".bin", ".pt", ".pth", ".ckpt"))
        if pickled:
            raise ValueError(
                f"{str(folder)!r} holds pickled weights only ({', '.join(pickled)}); safetensors are needed"
            )
        raise FileNotFoundError(f"{str(folder)!r} holds no weights; a .safetensors file is needed")
    return safe


def tensor_names(file: Path) -> list[str]:
    """The names of a safetensors file's tensors. ValueError for a file that is truncated or of another kind."""
    try:
        with safe_open(file, "pt") as saved:
            return list(saved.keys())
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{str(file)!r} is truncated or no safetensors file: {error}") from error


def _load_tag(name: str, device: str | torch.device, precision: str) -> Clip:
    arch, _, tag = name.partition("/")
    known = [*SHIPPED] + [f"{a}/{t}" for a, t in open_clip.list_pretrained()]
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
