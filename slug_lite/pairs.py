"""Image-text pairs: what every step of the method takes in, checked once at the door."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .runtime.checks import check_disjoint, check_pictures


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
        check_pictures(self.images)
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


def check_sets(forget: Pairs, retain: Pairs) -> None:
    """ValueError for sets that the method cannot work with: too small, or sharing what is to be forgotten."""
    if len(forget) < 2:
        raise ValueError(f"the forget set has {len(forget)} pair(s); give at least 2, better 48")
    if len(retain) < 2:
        raise ValueError(f"the retain set has {len(retain)} pair(s); the contrastive loss needs at least 2, better 512")
    check_disjoint(forget, retain)
