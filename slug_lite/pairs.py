"""Image-text pairs: what every step of the method takes in, checked once at the door."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .runtime.captions import as_captions
from .runtime.checks import check_lengths, check_pictures


@dataclass(frozen=True)
class Pairs:
    """Image-text pairs.

    images:   uint8 array (n, height, width, 3) with values 0..255, or a list of n PIL images of any size
    captions: n strings: a list, or an array, tuple, Series; a list is made of it
    concepts: for each pair the names it is about, e.g. ("Ada Sunfield",) or ("cat", "Clay"); None if unknown

    Raises ValueError for images of another shape or dtype, NaN pixels, or lengths that differ.
    """

    images: np.ndarray | list[Image.Image]
    captions: list[str]
    concepts: list[tuple[str, ...]] | None = None

    def __post_init__(self) -> None:
        check_pictures(self.images)
        object.__setattr__(self, "captions", as_captions(self.captions))
        check_lengths(self.images, self.captions, self.concepts)

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
