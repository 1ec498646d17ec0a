"""Image-text pairs: what every step of the method takes in, checked once at the door."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .runtime.captions import as_captions, as_concepts, as_rows
from .runtime.checks import check_lengths, check_pictures


@dataclass(frozen=True)
class Pairs:
    """Image-text pairs.

    images:   uint8 array (n, height, width, 3) with values 0..255, or a list of n PIL images of any size
    captions: n strings: a list, or an array, tuple, Series; a list is made of it
    concepts: for each pair the names it is about, e.g. ("Ada Sunfield",) or ("cat", "Clay"); None if unknown; a list
        of tuples is made of them

    Raises ValueError for images of another shape or dtype, NaN pixels, names that are no tuples, lengths that differ.
    """

    images: np.ndarray | list[Image.Image]
    captions: list[str]
    concepts: list[tuple[str, ...]] | None = None

    def __post_init__(self) -> None:
        check_pictures(self.images)
        object.__setattr__(self, "captions", as_captions(self.captions))
        object.__setattr__(self, "concepts", as_concepts(self.concepts))
        check_lengths(self.images, self.captions, self.concepts)

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index: slice | Sequence[int] | np.ndarray) -> Pairs:
        """The pairs at `index` (a slice, a sequence of integers, or a mask), as a new `Pairs`."""
        rows = as_rows(index, len(self))
        images = self.images[rows] if isinstance(self.images, np.ndarray) else [self.images[i] for i in rows]
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
