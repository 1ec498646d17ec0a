"""Image-text pairs: what every step of the method takes in, checked once at the door."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image


def unknown(name: object, allowed: Iterable[str], what: str) -> KeyError:
    """A `KeyError` that says what was given, the nearest match, and what is allowed."""
    allowed = list(allowed)
    lower = {a.lower(): a for a in allowed}
    close = difflib.get_close_matches(str(name).lower(), list(lower), n=1, cutoff=0.4)
    hint = f"; did you mean {lower[close[0]]!r}?" if close else "."
    return KeyError(f"unknown {what} {name!r}{hint} Allowed: {', '.join(allowed)}")


def _check_array(images: np.ndarray) -> None:
    if np.issubdtype(images.dtype, np.floating) and np.isnan(images).any():
        raise ValueError(
            f"images hold NaN in {int(np.isnan(images).any(axis=tuple(range(1, images.ndim))).sum())} of "
            f"{len(images)} images; give uint8 pixels from 0 to 255"
        )
    if images.dtype != np.uint8:
        raise ValueError(f"images have dtype {images.dtype}; give uint8 pixels from 0 to 255")
    if images.ndim != 4 or images.shape[-1] != 3 or 0 in images.shape[1:]:
        raise ValueError(f"images have shape {images.shape}; give (n, height, width, 3), colour last")


def _check_list(images: Sequence[Image.Image]) -> None:
    for k, image in enumerate(images):
        if not isinstance(image, Image.Image):
            raise ValueError(
                f"image {k} is a {type(image).__name__}; give PIL images or one uint8 array (n, height, width, 3)"
            )
        if image.mode == "F" or image.mode.startswith("I") or 0 in image.size:
            raise ValueError(f"image {k} has mode {image.mode!r} and size {image.size}; give 8-bit images with pixels")


@dataclass(frozen=True)
class Pairs:
    """Image-text pairs.

    images:   uint8 array (n, height, width, 3) with values 0..255, or a list of n PIL images of any size
    captions: n strings
    concepts: for each pair the names it is about, e.g. ("Ada Sunfield",) or ("cat", "Clay"); None if unknown

    Raises ValueError for images of another shape or dtype, NaN pixels, or lengths that differ.
    """

    images: np.ndarray | list[Image.Image]
    captions: list[str]
    concepts: list[tuple[str, ...]] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.images, np.ndarray):
            _check_array(self.images)
        elif isinstance(self.images, (list, tuple)):
            _check_list(self.images)
        else:
            raise ValueError(
                f"images are a {type(self.images).__name__}; give a uint8 array (n, height, width, 3) or PIL images"
            )
        if isinstance(self.captions, str) or not all(isinstance(c, str) for c in self.captions):
            raise ValueError("captions must be a list of strings, one for each image")
        sizes = {"images": len(self.images), "captions": len(self.captions)}
        if self.concepts is not None:
            for concept in self.concepts:
                if isinstance(concept, str) or not all(isinstance(name, str) for name in concept):
                    raise ValueError(f"a concept is {concept!r}; give each pair a tuple of names, as ('cat', 'Clay')")
            sizes["concepts"] = len(self.concepts)
        if len(set(sizes.values())) > 1:
            raise ValueError(f"a pair needs one of each, but lengths differ: {sizes}")

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index: slice | Sequence[int] | np.ndarray) -> Pairs:
        """The pairs at `index` (a slice or a sequence of integers), as a new `Pairs`."""
        if isinstance(index, (int, np.integer)):
            raise TypeError("index Pairs with a slice or a list of integers, e.g. pairs[:8] or pairs[[3]]")
        rows = range(len(self))[index] if isinstance(index, slice) else [int(i) for i in index]
        images = self.images[list(rows)] if isinstance(self.images, np.ndarray) else [self.images[i] for i in rows]
        concepts = None if self.concepts is None else [self.concepts[i] for i in rows]
        return Pairs(images, [self.captions[i] for i in rows], concepts)

    def __add__(self, other: Pairs) -> Pairs:
        """Both sets of pairs, one after the other; arrays of equal size stay one array."""
        arrays = isinstance(self.images, np.ndarray) and isinstance(other.images, np.ndarray)
        if arrays and self.images.shape[1:] == other.images.shape[1:]:
            images: np.ndarray | list[Image.Image] = np.concatenate([self.images, other.images])
        else:
            images = self.pil() + other.pil()
        known = self.concepts is not None and other.concepts is not None
        return Pairs(images, [*self.captions, *other.captions], [*self.concepts, *other.concepts] if known else None)

    def pil(self) -> list[Image.Image]:
        """The images as PIL RGB images."""
        if isinstance(self.images, np.ndarray):
            return [Image.fromarray(image) for image in self.images]
        return [image.convert("RGB") for image in self.images]
