"""Files of weights: safetensors alone, looked at before they are read, and written in one go."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


def safe_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder. ValueError where all weights are pickled, FileNotFoundError for none."""
    safe = sorted(folder.glob("*.safetensors"))
    if not safe:
        pickled = sorted(f.name for f in folder.iterdir() if f.suffix in _PICKLES)
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


def write_signed(file: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, str]) -> None:
    """Tensors and metadata with a digest of both; an existing file is replaced in one go."""
    tensors = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
    meta = {**meta, "digest": digest(tensors, meta)}
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    try:
        part.write_bytes(save(tensors, metadata=meta))
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)


def read_signed(file: Path, kind: str, what: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What `write_signed` wrote with a metadata "format" of `kind`; what: its name in messages, as "edit".

    FileNotFoundError for no file, ValueError for a truncated, foreign or altered one.
    """
    if not file.is_file():
        raise FileNotFoundError(f"there is no {what} file {str(file)!r}")
    try:
        with safe_open(file, "pt") as saved:
            meta = saved.metadata() or {}
            if meta.get("format") != kind:
                raise ValueError(f"{str(file)!r} is no {what}: its format is {meta.get('format')!r}, not {kind!r}")
            tensors = {name: saved.get_tensor(name) for name in saved.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{str(file)!r} is truncated or no safetensors file: {error}") from error
    if meta.pop("digest", None) != digest(tensors, meta):
        raise ValueError(f"{str(file)!r} was altered after it was saved: its digest does not match its content")
    return tensors, meta


def digest(tensors: Mapping[str, Tensor], meta: Mapping[str, str]) -> str:
    """SHA-256 over metadata, and every tensor's name, dtype, shape and bytes."""
    found = hashlib.sha256(json.dumps(dict(meta), sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        found.update(tensor.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
