"""Files of weights: safetensors alone, looked at before they are read, and written in one go."""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
import stat
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
HEADER_LIMIT = 8 << 20  # bytes; CLIP ViT-bigG and the UNet of Stable Diffusion need 0.2 million
TENSORS_LIMIT = 20_000  # in one file
SIGNED_LIMIT = 2 << 30  # bytes of a file that is read as a whole
_SIDES_LIMIT = 8  # of a tensor
_DIGITS_LIMIT = 40  # of a whole number in JSON; tokenizers have 31 in a length that means none
_SIGNED_HEADER = 1 << 20  # bytes, of what is a layer or a few
JSON_LIMIT = 1 << 20  # bytes of a configuration
TEXT_LIMIT = 64 << 20  # bytes of a tokenizer's vocabulary
_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8, "C64": 8,
}  # fmt: skip


@dataclass(frozen=True)
class Outline:
    """What a safetensors file says of a tensor before it is read."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """What a safetensors file says before any tensor is read: its tensors by name, and its metadata."""

    tensors: dict[str, Outline]
    meta: dict[str, str]

    @property
    def size(self) -> int:
        """How many numbers the file holds."""
        return sum(one.size for one in self.tensors.values())


def safe_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder. ValueError where all weights are pickled, FileNotFoundError for none."""
    safe = sorted(folder.glob("*.safetensors"))
    for file in safe:
        check_regular(file)
    if not safe:
        pickled = sorted(f.name for f in folder.iterdir() if f.suffix in _PICKLES)
        if pickled:
            raise ValueError(
                f"{str(folder)!r} holds pickled weights only ({', '.join(pickled)}); safetensors are needed"
            )
        raise FileNotFoundError(f"{str(folder)!r} holds no weights; a .safetensors file is needed")
    return safe


def check_regular(file: Path) -> None:
    """ValueError for a folder, a pipe or a device: to open a pipe is to wait for whoever writes into it."""
    if not file.is_file():
        raise ValueError(f"{str(file)!r} is no regular file, or a link to none")


def header(file: Path, limit: int = HEADER_LIMIT) -> Header:
    """What a safetensors file holds, without reading a tensor. ValueError for one that is truncated or another kind.

    limit: bytes of the header, which is read as a whole; numbers in it are checked against each other and the file.
    """
    check_regular(file)
    try:
        with file.open("rb") as opened:
            return _opened(opened, limit)[0]
    except OSError as error:
        raise ValueError(f"{str(file)!r} cannot be read: {error}") from error


def _opened(opened: BinaryIO, limit: int) -> tuple[Header, bytes]:
    """The header of an open safetensors file, and the bytes that it was read from. ValueError as `header`."""
    try:
        whole, start = os.fstat(opened.fileno()).st_size, opened.read(8)
        if not 2 <= (length := int.from_bytes(start, "little")) <= whole - 8:
            raise ValueError(f"its {whole:,} bytes do not hold a header of {length:,}")
        if length > limit:
            raise ValueError(f"its header has {length:,} bytes; at most {limit:,} are read")
        text = opened.read(length)
        _check_counts(text, 3 * TENSORS_LIMIT, 1 << 20)
        content = json.loads(text, object_pairs_hook=_once, parse_int=_number)
        return _checked(content, whole - 8 - length), start + text
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = str(error)[:200]
        raise ValueError(f"{str(opened.name)!r} is truncated or no safetensors file: {reason}") from error


def _once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. ValueError for a key that stands there twice: readers differ on which of them counts."""
    pairs = list(pairs)
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


def _number(text: str) -> int:
    """A whole number of JSON. ValueError for a long one, with which Python itself would deal in its own words."""
    if len(text) > _DIGITS_LIMIT:
        raise ValueError(f"a number in it has {len(text):,} digits; at most {_DIGITS_LIMIT} are read")
    return int(text)


def _check_counts(text: bytes, most: int, values: int) -> None:
    """ValueError for JSON of more lists than `most`, or more values: in memory each is many times as long as here."""
    lists, commas = text.count(b"["), text.count(b",")
    if lists + text.count(b"{") > 2 * most or lists > most or commas > values:
        raise ValueError(f"it holds {lists:,} lists and {commas:,} commas; at most {most:,} and {values:,} are read")


def _bytes(shape: list[int], each: int, most: int) -> int:
    """Bytes of a tensor; more than `most` for what needs more, with which the product stops."""
    if not isinstance(shape, list) or len(shape) > _SIDES_LIMIT:
        raise ValueError(f"a shape has {len(shape):,} sides; at most {_SIDES_LIMIT} are allowed")
    asked = 0 if 0 in shape else each
    for side in shape:
        asked = min(asked * side, most + 1)
    return asked


def _checked(content: Any, room: int) -> Header:
    """A header's JSON as what it says; room: bytes of the tensors. ValueError and the like for what does not fit."""
    meta = content.pop("__metadata__", {})
    if not all(isinstance(value, str) for value in meta.values()):
        raise ValueError("its metadata are not texts")
    if len(content) > TENSORS_LIMIT:
        raise ValueError(f"it has {len(content):,} tensors; at most {TENSORS_LIMIT:,} are read")
    tensors, places = {}, []
    for name, entry in content.items():
        shape, (start, end) = entry["shape"], entry["data_offsets"]
        if not all(type(number) is int and number >= 0 for number in (*shape, start, end)):
            raise ValueError(f"the shape or place of {name[:80]!r} are no numbers")
        asked = _bytes(shape, _BYTES[entry["dtype"]], room)
        if asked != end - start:
            raise ValueError(f"{name[:80]!r} needs {asked:,} bytes at least and has {end - start:,}")
        tensors[name] = Outline(entry["dtype"], tuple(shape))
        places.append((start, end))
    ends = [0, *(end for _, end in sorted(places))]
    if any(start != end for (start, _), end in zip(sorted(places), ends, strict=False)) or ends[-1] != room:
        raise ValueError(f"its tensors do not fill the {room:,} bytes that are there")
    return Header(tensors, meta)


def check_tensors(folder: Path, wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, Outline]) -> None:
    """ValueError unless files hold what a model wants, each tensor in its shape, and nothing more."""
    missing = [name for name in wanted if name not in found]
    if missing:
        raise ValueError(f"the weights in {str(folder)!r} lack {missing[0]!r}, {len(missing)} tensors in all")
    if more := [name for name in found if name not in wanted]:
        raise ValueError(
            f"the weights in {str(folder)!r} hold {more[0][:80]!r}, {len(more)} tensors in all, which its "
            "configuration has no place for"
        )
    for name, shape in wanted.items():
        if found[name].shape != shape:
            raise ValueError(
                f"the weights in {str(folder)!r} cannot be loaded: {name!r} is {list(found[name].shape)}, and "
                f"{list(shape)} by its configuration"
            )


def read_json(file: Path, limit: int = JSON_LIMIT) -> Any:
    """What a file of JSON says. ValueError for one that is too long, and for what is no JSON; no more is promised."""
    try:
        text = read_text(file, limit)
        _check_counts(text, 1 << 20, 1 << 22)
        return json.loads(text, parse_int=_number)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{str(file)!r} cannot be read: {str(error)[:200]}") from error


def read_text(file: Path, limit: int = TEXT_LIMIT) -> bytes:
    """All of a file. FileNotFoundError; ValueError for what is no regular file or longer than `limit` bytes."""
    if file.exists():
        check_regular(file)
    with file.open("rb") as opened:
        text = opened.read(limit + 1)
    if len(text) > limit:
        raise ValueError(f"{str(file)!r} is longer than {limit:,} bytes")
    return text


def write_signed(file: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, str]) -> None:
    """Tensors and metadata with a digest of both; an existing file is replaced in one go, a link is followed."""
    tensors = _apart(tensors)
    content = save(tensors, metadata={**meta, "digest": digest(tensors, meta)})
    file = Path(os.path.realpath(file))
    part = file.with_name(f".{secrets.token_hex(8)}.part")  # one's own, whoever else writes the same file
    try:
        part.write_bytes(content)
        if file.exists():
            part.chmod(stat.S_IMODE(file.stat().st_mode))
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors on the CPU, no two of which share memory, as safetensors wants them."""
    found: dict[int, str] = {}
    out = {}
    for name, tensor in tensors.items():
        out[name] = tensor.detach().cpu().contiguous()
        if found.setdefault(out[name].untyped_storage().data_ptr(), name) != name:
            out[name] = out[name].clone()
    return out


def read_signed(file: Path, kind: str, what: str, dtypes: Collection[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What `write_signed` wrote with a metadata "format" of `kind`; what: its name in messages, as "edit".

    The bytes are read once, then checked, then owned: what happens to the file later is nothing to the tensors.
    dtypes: what tensors may be, in safetensors' words. FileNotFoundError for no file, ValueError for a truncated,
    foreign or altered one.
    """
    if not file.is_file():
        raise FileNotFoundError(f"there is no {what} file {str(file)!r}")
    with file.open("rb") as opened:
        head, start = _opened(opened, _SIGNED_HEADER)
        if head.meta.get("format") != kind:
            found = str(head.meta.get("format"))[:80]
            raise ValueError(f"{str(file)!r} is no {what}: its format is {found!r}, not {kind!r}")
        for name, tensor in head.tensors.items():
            if tensor.dtype not in dtypes:
                raise ValueError(f"{name[:80]!r} in {str(file)!r} is {tensor.dtype}; {' or '.join(dtypes)} is allowed")
        if (whole := os.fstat(opened.fileno()).st_size) > SIGNED_LIMIT:
            raise ValueError(f"{str(file)!r} has {whole >> 20:,} MB; at most {SIGNED_LIMIT >> 20:,} are read")
        content = start + opened.read(whole - len(start))
    try:
        tensors, meta = load(content), head.meta
    except SafetensorError as error:
        raise ValueError(f"{str(file)!r} is truncated or no safetensors file: {error}") from error
    if meta.pop("digest", None) != digest(tensors, meta):
        raise ValueError(f"{str(file)!r} was altered after it was saved: its digest does not match its content")
    return tensors, meta


def digest(tensors: Mapping[str, Tensor], meta: Mapping[str, str]) -> str:
    """SHA-256 over metadata, and every tensor's name, dtype, shape and bytes."""
    found = hashlib.sha256(json.dumps(dict(meta), sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        found.update(tensor.reshape(-1).contiguous().view(torch.uint8).numpy().data)
    return found.hexdigest()
