"""Models as other libraries keep them: open_clip's folders and pretrained weights, transformers' CLIPModel."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import open_clip
import torch
from open_clip.convert import convert_state_dict
from open_clip.model import convert_to_custom_text_state_dict
from open_clip.pretrained import download_pretrained, get_pretrained_cfg
from PIL import Image
from torch import Tensor, nn

from .checks import unknown
from .configs import TOKENIZER_FILES, check_clip_config, copy_tokenizer, made_tokenizer
from .files import Header, Outline, check_regular, header, read_json, safe_files

# What open_clip takes from a folder, in its order; any other safetensors file comes last
_WEIGHT_FILES = (
    "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth", "model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth",
)  # fmt: skip
# What open_clip and torch raise, by turns, when file and configuration do not fit
_MISFITS = (RuntimeError, AttributeError, KeyError, TypeError, IndexError, ValueError, AssertionError)
_FLOATS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
Parts = tuple[nn.Module, Any, Any]  # model in eval mode, tokenizer, evaluation transform


def from_folder(folder: Path, device: str | torch.device, precision: str) -> Parts:
    """A model from a folder in open_clip's format. FileNotFoundError, or ValueError as `admit_folder` and misfits."""
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {str(folder)!r}")
    with TemporaryDirectory(prefix="slug_lite_") as place:
        text_cfg = admit_folder(folder, own := Path(place))
        source = f"local-dir:{own}"
        try:
            model, _, preprocess = open_clip.create_model_and_transforms(
                source, device="cpu", precision=precision, require_pretrained=True
            )
        except (*_MISFITS, OSError, ImportError) as error:  # torch lists every key that does not fit; the first do
            reason = " ".join(str(error).split())[:400].replace(str(own), str(folder))
            raise ValueError(
                f"the weights in {str(folder)!r} are not those of its configuration: {type(error).__name__}: {reason}"
            ) from error
        _check_origin(model, header(own / _WEIGHT_FILES[0]), folder)
        tokenizer = _tokenizer(source, text_cfg, folder)
    return model.eval().to(device), tokenizer, preprocess


def _check_origin(model: nn.Module, head: Header, folder: Path) -> None:
    """ValueError unless each of a model's tensors came from the file, in its shape, and is finite.

    open_clip resizes embeddings of positions to what a configuration asks for, makes up a bias of the logits, and
    takes whole numbers for weights. It also has other names for some tensors, which its own functions translate.
    """
    with torch.device("meta"):
        state = {name: torch.empty(one.shape, dtype=_FLOATS.get(one.dtype, torch.int64)) for name, one in _named(head)}
        state = convert_state_dict(model, state)
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    where = f"the weights in {str(folder)!r} are not those of its configuration:"
    for name, value in model.state_dict().items():
        if name not in state:
            raise ValueError(f"{where} they lack {name!r}")
        found, wanted = list(state[name].shape), list(value.shape)
        if found != wanted and not (
            name in ("logit_scale", "logit_bias") and value.numel() == state[name].numel() == 1
        ):
            raise ValueError(f"{where} {name!r} is {found}, and {wanted} by its configuration")
        if value.is_floating_point() and not state[name].is_floating_point():
            raise ValueError(f"{where} {name!r} has another kind of numbers; {', '.join(_FLOATS)} are allowed")
        if value.is_floating_point() and not value.isfinite().all():
            raise ValueError(f"{name!r} in the weights of {str(folder)!r} is not finite as {value.dtype}")


def _named(head: Header) -> list[tuple[str, Outline]]:
    """A file's tensors under the names that open_clip goes by: those of a parallel training begin with "module."."""
    cut = 7 if next(iter(head.tensors)).startswith("module") else 0
    return [(name[cut:], one) for name, one in head.tensors.items()]


def _tokenizer(source: str, text_cfg: Mapping[str, Any], folder: Path) -> Any:
    """The tokenizer of a folder that `admit_folder` filled; folder: what it is called by."""
    made = made_tokenizer(
        lambda: open_clip.get_tokenizer(source, **_no_code(text_cfg)), lambda it: it(["a cat", ""]), repr(str(folder))
    )
    if text_cfg.get("hf_tokenizer_name"):
        made.tokenizer.name_or_path = str(folder)  # not the folder that the loader saw
    return made


def _no_code(text_cfg: Mapping[str, Any]) -> dict[str, bool]:
    """What forbids a tokenizer of transformers to run Python beside it; open_clip's own knows no such switch."""
    return {"trust_remote_code": False} if text_cfg.get("hf_tokenizer_name") else {}


def admit_folder(folder: Path, own: Path) -> dict[str, Any]:
    """Fill an empty folder with what may be read of a CLIP's: configuration, whole safetensors weights, tokenizer.

    open_clip itself would fall back to pickled weights, and to random ones; it would hand any key of the configuration
    on, and build whatever it asks for. Returns the configuration of the text tower.
    """
    config = folder / "open_clip_config.json"
    if not config.is_file():
        told = f". {_of_transformers(str(folder), folder)}" if (folder / "config.json").is_file() else ""
        raise FileNotFoundError(f"{str(folder)!r} has no open_clip_config.json{told}")
    try:
        content = read_json(config)
        model_cfg = content["model_cfg"]
        missing = [key for key in ("embed_dim", "vision_cfg", "text_cfg") if key not in model_cfg]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{str(config)!r} is no open_clip configuration with a 'model_cfg': {error}") from error
    if missing:
        raise ValueError(f"the model_cfg of {str(config)!r} lacks {', '.join(missing)}")
    weights = _weights(folder)
    head = header(weights)
    if not head.tensors:
        raise ValueError(f"{str(weights)!r} holds no tensors")
    check_clip_config(content, head, repr(str(config)))
    if model_cfg["text_cfg"].get("hf_tokenizer_name"):
        copy_tokenizer(folder, own)
    admitted = {"model_cfg": model_cfg, "preprocess_cfg": content.get("preprocess_cfg") or {}}
    (own / config.name).write_text(json.dumps(admitted))
    (own / _WEIGHT_FILES[0]).symlink_to(weights.resolve())
    return model_cfg["text_cfg"]


def _weights(folder: Path) -> Path:
    """The file of weights that is read. ValueError where open_clip would take a pickle, or what is no regular file."""
    safe = safe_files(folder)
    there = [folder / file for file in _WEIGHT_FILES if os.path.lexists(folder / file)]
    for file in there:
        check_regular(file)
    first = (there + safe)[0]
    if first.suffix != ".safetensors":
        raise ValueError(
            f"{str(folder)!r} holds the pickled {first.name}, which open_clip would read instead of {safe[0].name}; "
            "take it out"
        )
    return first


def _of_transformers(name: str, folder: Path | None = None) -> str:
    """How a CLIP that is kept as transformers keeps it is loaded, in a sentence.

    folder: where its config.json is, if that is known; only its model_type "clip" is a CLIPModel.
    """
    try:
        known = folder is not None and (folder / "config.json").is_file()
        kind = read_json(folder / "config.json").get("model_type", "clip") if known else "clip"
    except (ValueError, AttributeError, OSError):
        kind = None
    if kind != "clip":
        return f"Its config.json is of model_type {kind!r}; of transformers' models only CLIPModel ('clip') is taken"
    return (
        f"A CLIP of transformers is loaded by its own library: slug_lite.Clip.from_transformers(transformers.CLIPModel"
        f".from_pretrained({name!r}, use_safetensors=True), transformers.CLIPProcessor.from_pretrained({name!r}))"
    )


def from_hub(repository: str, device: str | torch.device, precision: str) -> Parts:
    """A model of open_clip's format from "OWNER/NAME" on the hub: configuration, tokenizer and safetensors alone.

    FileNotFoundError where it is neither in the hub's cache nor can be fetched; else as `from_folder`.
    """
    from huggingface_hub import constants, snapshot_download

    try:
        wanted = ["open_clip_config.json", "open_clip*.safetensors", *TOKENIZER_FILES]
        folder = Path(snapshot_download(repository, allow_patterns=wanted))
        if not (folder / "open_clip_config.json").is_file():  # then that of transformers, to say what it is
            folder = Path(snapshot_download(repository, allow_patterns=["config.json"]))
    except Exception as error:
        raise FileNotFoundError(
            f"'hf-hub:{repository}' is not in the hub's cache {constants.HF_HUB_CACHE} and could not be fetched: "
            f"{' '.join(str(error).split())[:300]}"
        ) from error
    if not (folder / "open_clip_config.json").is_file():
        if (folder / "config.json").is_file():
            told = _of_transformers(repository, folder)
        else:
            told = f"If its model is a transformers.CLIPModel: {_of_transformers(repository)}"
        raise FileNotFoundError(f"'hf-hub:{repository}' has no open_clip_config.json. {told}")
    return from_folder(folder, device, precision)


def check_name(name: object) -> None:
    """ValueError for what is no text."""
    if not isinstance(name, str):
        raise ValueError(
            f"name is {name!r}; give a text: 'mini', 'ARCH/TAG' of open_clip, 'hf-hub:OWNER/NAME' or 'local-dir:PATH'"
        )


def from_tag(name: str, device: str | torch.device, precision: str, shipped: list[str]) -> Parts:
    """A model by open_clip's "ARCH/TAG"; shipped: what else may be named. KeyError, FileNotFoundError, ValueError."""
    arch, _, tag = name.partition("/")
    known = shipped + [f"{a}/{t}" for a, t in open_clip.list_pretrained()]
    if name not in known:
        if os.path.exists(name):
            folder = name if os.path.isdir(name) else os.path.dirname(name) or "."
            raise KeyError(f"{name!r} is no ARCH/TAG of open_clip, but a path; a folder is {f'local-dir:{folder}'!r}")
        if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) and not get_close_matches(arch, open_clip.list_models(), 1, 0.7):
            raise KeyError(
                f"{name!r} is no ARCH/TAG of open_clip. If it is OWNER/NAME on the hub: one of open_clip's format is "
                f"{f'hf-hub:{name}'!r}. {_of_transformers(name)}"
            )
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
    text_cfg = open_clip.get_model_config(arch)["text_cfg"]
    return model.eval(), open_clip.get_tokenizer(arch, **_no_code(text_cfg)), preprocess


def from_transformers(model: nn.Module, processor: Any) -> Parts:
    """A transformers.CLIPModel, put into eval mode, with tokenizer and transform out of its CLIPProcessor."""
    length = model.config.text_config.max_position_embeddings

    def tokenize(captions: list[str]) -> Tensor:
        # no attention mask: captions are read from the left, and what follows the end token is not seen
        return processor.tokenizer(
            captions, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).input_ids

    def preprocess(image: Image.Image) -> Tensor:
        return processor.image_processor(image, return_tensors="pt").pixel_values[0]

    return model.eval(), tokenize, preprocess
