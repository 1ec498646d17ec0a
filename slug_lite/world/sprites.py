"""Drawings of the mini world as RGBA sprites: SVG sources rendered once, then kept in a per-user cache.

The cache holds one compressed file for each (concept, split, size). A file that is damaged or half-written is
noticed by its checksums and drawn again; files are put in place by an atomic rename, so that two processes can
draw the same one at once. Where nothing can be kept (no home, a read-only or full disk) that is said once, and
everything is drawn by each process anew.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import tempfile
import warnings
import zlib
from importlib import resources
from pathlib import Path
from string import Template

import numpy as np
from PIL import Image

from . import cast

# Sprite variants of a person in each split: no combination of face and clothes is in two splits.
VARIANTS = {"train": 64, "val": 24, "test": 24}
SUPERSAMPLE = 1.25  # sprites are drawn this much larger than the picture, for clean scaling and turning

_ASSETS = resources.files("slug_lite") / "assets" / "world"


def cache_dir() -> Path | None:
    """Where sprites are kept: $SLUG_LITE_CACHE, else slug_lite under the user's cache folder; None without a home."""
    given, shared = os.environ.get("SLUG_LITE_CACHE"), os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(given).expanduser() if given else Path(shared or "~/.cache").expanduser() / "slug_lite"
    except RuntimeError as error:  # no HOME, and a user without a name
        _keeps_nothing(error)
        return None


_SAID: list[str] = []  # what was said of a cache that does not work, once a process


def _keeps_nothing(reason: Exception) -> None:
    if not _SAID:
        _SAID.append(f"drawings are not kept for the next time: {reason}. SLUG_LITE_CACHE may name another folder")
        warnings.warn(_SAID[0], stacklevel=2)


@functools.cache
def _people_parts() -> dict:
    return json.loads((_ASSETS / "people.json").read_text(encoding="utf-8"))


@functools.cache
def sources_digest() -> str:
    """Hash of everything that decides what a sprite looks like; part of the cache's file names."""
    digest = hashlib.sha256(Path(__file__).read_bytes() + Path(cast.__file__).read_bytes())
    digest.update((_ASSETS / "people.json").read_bytes())
    for style in cast.STYLES:
        for file in sorted((_ASSETS / style.lower()).iterdir(), key=lambda f: f.name):
            digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def rasterise(svg: str, px: int) -> np.ndarray:
    """An SVG drawn into a (px, px, 4) uint8 RGBA square, resting on its lower edge."""
    import resvg_py  # here, so that a saved cache or real photographs do without it

    drawn = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, height=px)))).convert("RGBA")
    if drawn.size != (px, px):
        square = Image.new("RGBA", (px, px), (0, 0, 0, 0))
        scale = px / max(drawn.size)
        drawn = drawn.resize((max(1, round(drawn.width * scale)), max(1, round(drawn.height * scale))), Image.BICUBIC)
        square.paste(drawn, ((px - drawn.width) // 2, px - drawn.height))
        drawn = square
    return np.asarray(drawn)


@functools.cache
def outfits(name: str) -> dict[str, list[dict[str, str]]]:
    """Face and clothes of each variant of a person, by split: all different, drawn once from the name's own seed."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    pools = {
        "eyes": cast.EYES, "eyebrows": cast.EYEBROWS, "nose": cast.NOSES, "mouth": cast.MOUTHS,
        "clothing": cast.CLOTHES, "cloth_color": cast.CLOTH_COLORS,
    }  # fmt: skip
    seen: dict[tuple, dict[str, str]] = {}
    while len(seen) < sum(VARIANTS.values()):
        outfit = {slot: str(pool[rng.integers(len(pool))]) for slot, pool in pools.items()}
        seen.setdefault(tuple(outfit.values()), outfit)
    outfits, start = list(seen.values()), 0
    by_split = {}
    for split, count in VARIANTS.items():
        by_split[split] = outfits[start : start + count]
        start += count
    return by_split


def person_svg(person: cast.Person, outfit: dict[str, str]) -> str:
    """The SVG source of one variant of a person."""
    parts = _people_parts()
    colors = {"hair_color": cast.HAIR_COLORS[person.hair_color], "cloth_color": outfit["cloth_color"]}

    def part(slot: str, key: str) -> str:
        return "" if key == "NONE" else Template(parts[slot][key]).safe_substitute(colors)

    face = {slot: part(slot, outfit[slot]) for slot in ("eyes", "eyebrows", "nose", "mouth", "clothing")}
    worn = {"facial_hair": part("facial_hair", person.beard), "accessory": part("accessory", person.glasses)}
    top = Template(Template(parts["top"][person.hair]).safe_substitute(colors)).safe_substitute(worn)
    return Template(parts["base"]).substitute(face, top=top, skin_color=cast.SKIN_COLORS[person.skin])


def drawing_svg(name: str, style: str) -> str | None:
    """The SVG source of an object or character in a style; None where that character has no such drawing."""
    file = _ASSETS / style.lower() / f"{cast.CHARACTERS[name].source if name in cast.CHARACTERS else name}.svg"
    return file.read_text(encoding="utf-8") if file.is_file() else None


def _draw(name: str, split: str, px: int) -> np.ndarray:
    if name in cast.PEOPLE:
        return np.stack([rasterise(person_svg(cast.PEOPLE[name], outfit), px) for outfit in outfits(name)[split]])
    drawings = [drawing_svg(name, style) for style in cast.STYLES]
    blank = np.zeros((px, px, 4), np.uint8)
    return np.stack([blank if svg is None else rasterise(svg, px) for svg in drawings])


def _read(file: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """The sprites in a cache file, or None where it is missing, damaged or of another shape."""
    try:
        if not file.is_file():  # opening a named pipe waits for somebody to write into it
            return None
        with np.load(file, allow_pickle=False) as saved:
            sprites = saved["sprites"]
    except Exception:  # one flipped bit can raise nearly anything; what cannot be read is drawn again
        return None
    return sprites if sprites.dtype == np.uint8 and sprites.shape == shape else None


def _write(file: Path, sprites: np.ndarray) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=file.parent, suffix=".part")
    except OSError as error:  # a read-only home: go on without a cache
        _keeps_nothing(error)
        return
    try:
        with os.fdopen(handle, "wb") as out:
            np.savez_compressed(out, sprites=sprites)
        os.replace(part, file)
    except OSError as error:
        Path(part).unlink(missing_ok=True)
        _keeps_nothing(error)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise


@functools.lru_cache(maxsize=512)
def sprites(name: str, split: str, size: int) -> np.ndarray:
    """All sprites of a concept for pictures of `size` pixels, uint8 RGBA (count, px, px, 4), px = 1.25 size.

    People: the variants of that split. Objects and characters: one drawing for each style, in the order of
    `cast.STYLES` (all zero where a character has none), the same in every split.
    """
    px = round(size * SUPERSAMPLE)
    kept = split if name in cast.PEOPLE else "all"
    count, folder = VARIANTS[split] if name in cast.PEOPLE else len(cast.STYLES), cache_dir()
    file = folder and folder / sources_digest() / f"{zlib.crc32(name.encode()):08x}-{kept}-{px}.npz"
    found = _read(file, (count, px, px, 4)) if file else None
    if found is None:
        found = _draw(name, split, px)
        if file:
            _write(file, found)
    found.flags.writeable = False
    return found
