"""Captions, names and rows as people have them: columns of tables, arrays, tuples; and what a model reads of them."""

from __future__ import annotations

import operator
import re
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Sequence, Set
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from .broken import warn_one_colour

if TYPE_CHECKING:
    from ..models import Clip
    from ..pairs import Pairs

UNORDERED = ", in an order: a set has none"
BREAKS = r"[\s_\-\u2010-\u2015\u2212\u200b]+"  # between words: spaces, also one of no width, dashes, "_"
INVISIBLE = re.compile(r"[\u00ad\u200c\u200d\u2060\ufeff]")  # within words: soft hyphens, joiners
# Scripts without spaces between words: Thai, Lao, Burmese, Khmer, Japanese, Chinese; and Korean, which adds suffixes
UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
SUFFIXED = UNSPACED + r"\uac00-\ud7af"


def as_captions(captions: Iterable[str]) -> list[str]:
    """A list of strings, in the order in which they are given: a Series is taken by position, not by its index.

    ValueError for a bare string, and for what is not a string, by its position.
    """
    wanted = "captions must be a list of strings, one for each image"
    if isinstance(captions, (str, bytes, set, frozenset)) or not isinstance(captions, Iterable):
        raise ValueError(f"captions are {captions!r}; {wanted}{UNORDERED if isinstance(captions, Set) else ''}")
    found = _listed(captions)
    bad = [k for k, caption in enumerate(found) if not isinstance(caption, str)]
    if bad:
        raise ValueError(f"caption {bad[0]} is {found[bad[0]]!r}, {len(bad)} of {len(found)} are no strings; {wanted}")
    return [str(caption) for caption in found]


def as_concepts(concepts: Iterable[Sequence[str]] | None) -> list[tuple[str, ...]] | None:
    """A list of tuples of names, in the order in which they are given, see `as_captions`; None stays None.

    ValueError for what is no tuple or list of strings, by its position.
    """
    if concepts is None:
        return None
    wanted = "give each pair a tuple of names, as ('cat', 'Clay')"
    if isinstance(concepts, (str, bytes, set, frozenset)) or not isinstance(concepts, Iterable):
        raise ValueError(f"concepts are {concepts!r}; {wanted}{UNORDERED if isinstance(concepts, Set) else ''}")
    found = [_listed(one) if isinstance(one, np.ndarray) else one for one in _listed(concepts)]
    bad = [
        k for k, names in enumerate(found)
        if not isinstance(names, (tuple, list)) or not all(isinstance(name, str) for name in names)
    ]  # fmt: skip
    if bad:
        raise ValueError(f"concept {bad[0]} is {found[bad[0]]!r}, {len(bad)} of {len(found)} are no tuples; {wanted}")
    return [tuple(map(str, names)) for names in found]


def as_rows(index: slice | Iterable[int], n: int) -> list[int]:
    """Positions among n pairs: of a slice, of integers, or of a mask, a bool for every pair.

    A mask that is a Series goes by position. TypeError for a single position and for what is no integer, ValueError
    for a mask of another length.
    """
    wanted = "index Pairs with a slice, a list of integers or a mask, e.g. pairs[:8], pairs[[3]]"
    if isinstance(index, slice):
        return list(range(n)[index])
    unordered = isinstance(index, (str, bytes, Set)) or not isinstance(index, Iterable)
    if unordered or getattr(index, "ndim", 1) != 1:
        raise TypeError(f"the index is {index!r}; {wanted}")
    found = _listed(index)
    mask = [isinstance(one, (bool, np.bool_)) for one in found]
    if found and all(mask):
        if len(found) != n:
            raise ValueError(f"the mask has {len(found)} entries, there are {n} pairs")
        return [k for k, taken in enumerate(found) if taken]
    bad = [k for k, one in enumerate(found) if mask[k] or not hasattr(one, "__index__")]
    if bad:
        raise TypeError(f"position {bad[0]} of the index is {found[bad[0]]!r}; {wanted}")
    return [operator.index(one) for one in found]


def _listed(some: Iterable) -> list:
    """By position, and of Python's own types where arrays and Series say so."""
    return list(some.tolist() if hasattr(some, "tolist") else some)


def plain(text: str) -> str:
    """A text for comparison alone: compatible letters as one (NFKC: accents, full width), without what is not seen."""
    return INVISIBLE.sub("", unicodedata.normalize("NFKC", text))


@lru_cache(maxsize=1 << 14)
def fold(text: str) -> str:
    """A text as it is compared: `plain`, without case, runs of spaces, dashes and "_" as one space."""
    text = unicodedata.normalize("NFKC", plain(text).casefold())
    return re.sub(BREAKS, " ", text).strip()


def naming(name: str) -> str:
    """A regular expression for a name, which is `plain`, in a text: not within a word, where a script has words."""
    left, right = (re.match(f"[{script}]", letter) for script, letter in ((UNSPACED, name[:1]), (SUFFIXED, name[-1:])))
    spelt = re.escape(name).replace("\\ ", BREAKS)
    return ("" if left else rf"(?<![^\W{UNSPACED}])") + spelt + ("" if right else rf"(?![^\W{SUFFIXED}])")


def shared_names(concepts: Sequence[Sequence[str]] | None) -> set[str]:
    """The names that all have in common, in any spelling, as the first one spells them."""
    if not concepts:
        return set()
    common = set.intersection(*({fold(name) for name in names} for names in concepts))
    return set({fold(name): name for name in concepts[0] if fold(name) in common}.values())


class Reader:
    """How much of a text a tokenizer reads: tokens: texts -> ids (n, context length)."""

    def __init__(self, tokens: Callable[[Sequence[str]], Tensor]) -> None:
        self.tokens = tokens
        nothing, much = tokens(["", "a " * 2 * tokens([""]).shape[1]])
        self.padding = nothing[-1]
        self.empty, self.most = self.used(nothing), self.used(much)
        self.length = lru_cache(maxsize=None)(lambda word: self.used(self.tokens([word])[0]) - self.empty)

    def used(self, row: Tensor) -> int:
        """How many tokens there are in a row before its padding."""
        said = (row != self.padding).nonzero()
        return int(said.max()) + 1 if len(said) else 0

    def too_long(self, text: str) -> bool:
        """Is a text cut? Its words are counted one by one, as a cut row does not say how much is missing."""
        return self.empty + sum(self.length(word) for word in text.split()) > self.most

    def cut(self, captions: Sequence[str]) -> list[str]:
        """The captions that are cut."""
        full = [
            caption for caption, row in zip(captions, self.tokens(captions), strict=True)
            if self.used(row) >= self.most
        ]  # fmt: skip
        return [caption for caption in full if self.too_long(caption)]


def check_read(clip: Clip, forgets: Sequence[Pairs], retain: Pairs) -> None:
    """ValueError where a caption to forget is cut before it has named its concept.

    Warnings count captions that are cut, and retain pictures of one colour (in forget sets they are refused before).
    """
    warn_one_colour(retain.images, "pictures of the retain set")
    reader, counts = Reader(clip.tokens), list[str]()
    for what, pairs in (*(("forget", some) for some in forgets), ("retain", retain)):
        cut = reader.cut(pairs.captions)
        names = shared_names(pairs.concepts) if what == "forget" else set()
        lost = [caption for caption in cut if any(_falls_off(reader, caption, name) for name in names)]
        if lost:
            raise ValueError(
                f"{len(lost)} of {len(pairs)} forget captions name {' + '.join(sorted(names))} only behind what the "
                f"model reads, {reader.most} tokens; shorten them, for instance {lost[0][:200]!r}"
            )
        counts += [f"{len(cut)} of {len(pairs)} {what} captions"] if cut else []
    if counts:
        warnings.warn(f"longer than the {reader.most} tokens that are read, and cut: {', '.join(counts)}", stacklevel=3)


def _falls_off(reader: Reader, caption: str, name: str) -> bool:
    """Does the caption say the name, in whatever spelling, but not within what is read?"""
    ways = {fold(name), re.sub(BREAKS, " ", plain(name)).strip()}  # "ß" is folded to "ss"
    text = plain(caption)
    first = re.search("|".join(map(naming, sorted(ways))), text, re.IGNORECASE)
    return first is not None and reader.too_long(text[: first.end()])
