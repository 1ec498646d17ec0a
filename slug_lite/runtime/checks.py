"""Checks at the door: what errors say was given, what is allowed, and the nearest match."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from PIL import Image
from torch import Tensor

from .broken import check_one_colour
from .captions import fold, naming, shared_names
from .fingerprints import same_mark
from .labels import CONCEPT_LIMIT, check_label
from .limits import check_size
from .numbers import check_whole
from .text_towers import differences

if TYPE_CHECKING:
    from ..pairs import Pairs

SHOWN = 12  # names that an error lists
UNNAMED = "the forget set"  # what nobody has a name for
FREEZE = ". To have the search leave a weight out, freeze it in the CLIP: requires_grad_(False)"


def unknown(name: object, allowed: Iterable[str], what: str) -> KeyError:
    """A `KeyError` that says what was given, the nearest match, and what is allowed: `SHOWN` of it, and how many."""
    allowed = list(allowed)
    lower = {a.lower(): a for a in allowed}
    close = difflib.get_close_matches(str(name).lower(), list(lower), n=1, cutoff=0.4)
    hint = f"; did you mean {lower[close[0]]!r}?" if close else "."
    more = f", and {len(allowed) - SHOWN} more of {len(allowed)} in all" if len(allowed) > SHOWN else ""
    return KeyError(f"unknown {what} {name!r}{hint} Allowed: {', '.join(allowed[:SHOWN])}{more}")


def check_validate(validate: object) -> None:
    """ValueError for what cannot score a model."""
    if not callable(validate):
        raise ValueError(f"validate is a {type(validate).__name__}; give a slug_lite.Validation or a function")


def check_tower(tower: object) -> None:
    """KeyError for what is neither a tower nor None."""
    if tower not in (None, "vision", "text"):
        raise unknown(tower, ("vision", "text"), "tower")


def check_pictures(images: np.ndarray | Sequence[Image.Image]) -> None:
    """ValueError for what is neither a uint8 array (n, height, width, 3) nor PIL images with pixels of 8 bits."""
    if isinstance(images, np.ndarray):
        _check_array(images)
    elif isinstance(images, (list, tuple)):
        _check_list(images)
    else:
        raise ValueError(
            f"images are a {type(images).__name__}; give a uint8 array (n, height, width, 3) or PIL images"
        )


def check_several(images: object) -> None:
    """ValueError for a single picture, and for none."""
    if isinstance(images, Image.Image):
        raise ValueError("pixels takes several images; put a single one into a list")
    if len(images) == 0:
        raise ValueError("no images given")


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
    check_size((images.shape[2], images.shape[1]), "every image")


def _check_list(images: Sequence[Image.Image]) -> None:
    for k, image in enumerate(images):
        if not isinstance(image, Image.Image):
            raise ValueError(
                f"image {k} is a {type(image).__name__}; give PIL images or one uint8 array (n, height, width, 3)"
            )
        if image.mode == "F" or image.mode.startswith("I") or 0 in image.size:
            raise ValueError(f"image {k} has mode {image.mode!r} and size {image.size}; give 8-bit images with pixels")
        check_size(image.size, f"image {k}", image.format)


def check_names(forget: str, names: Mapping[str, Sequence[str]], templates: Mapping[str, Sequence[str]]) -> str:
    """The kind of `forget`. ValueError unless it is one name of one kind, and every kind has two names and a template.

    names: by kind, what is told apart; templates: by kind, its captions with a `{}`.
    """
    kinds = [kind for kind, some in names.items() if forget in some]
    if len(kinds) != 1:
        raise ValueError(f"{forget!r} is in {len(kinds)} of the kinds {list(names)}; it must be in one")
    few = [kind for kind, some in names.items() if len(some) < 2]
    if few:
        raise ValueError(f"of the kinds {few} there are fewer than two names; nothing can be told apart")
    bare = [kind for kind, some in templates.items() if isinstance(some, str) or not some]
    if bare:
        raise ValueError(f"the kinds {bare} need a sequence of at least one template each")
    if set(names) != set(templates):
        raise ValueError(f"names are for the kinds {list(names)}, templates for {list(templates)}")
    return kinds[0]


def check_fit(layer: str, name: str, weights: Mapping[str, Tensor], delta: Tensor) -> None:
    """ValueError unless `weights` have what a delta of a CLIP's `layer`, in their terms `name`, can be added to."""
    if name not in weights:
        blocks = {int(found[1]) for n in weights if (found := re.match(r"(?:text_model\.)?encoder\.layers\.(\d+)", n))}
        hint = f": its blocks are 0 to {max(blocks)} (Stable Diffusion 2 leaves CLIP's last one out)" if blocks else ""
        raise ValueError(f"the edit changes {layer!r}, which this model does not have{hint}{FREEZE if blocks else ''}")
    weight = weights[name]
    if weight.shape != delta.shape:
        raise ValueError(f"the edit's {name!r} is {tuple(delta.shape)}, the model's is {tuple(weight.shape)}")
    if weight.is_meta or not weight.is_floating_point() or weight.dtype.itemsize < 2:
        kind = "on the meta device (sequential CPU offload leaves it there)" if weight.is_meta else weight.dtype
        raise ValueError(
            f"{name!r} is {kind}; an edit goes on weights that are in memory, as floating point numbers of 16 bits or "
            "more"
        )


def check_base(wanted: str, found: str, whole: bool) -> None:
    """ValueError unless two `fingerprint`s are of one model; not whole: unless their text towers are one.

    wanted: of the model that an edit was made for; found: of the one that it is to go on.
    """
    (model, tower), (this, other) = wanted.partition("-")[::2], found.partition("-")[::2]
    if whole and not same_mark(this, model):
        raise ValueError(
            f"the edit was made for the model {model}, this one is {this}; force=True applies it all the same"
        )
    if not whole and not (tower and other):
        whose = "the edit does not say" if not tower else "this model does not show"
        raise ValueError(f"{whose} which of CLIP's text towers it has; force=True applies it all the same")
    if not whole and (apart := differences(other, tower)):
        raise ValueError(
            f"the edit was made for the model {model}, whose text tower is not this one: "
            f"they differ in {', '.join(apart)}; force=True applies it all the same"
        )


class NothingForgets(RuntimeError):
    """No layer looked at could be made to forget within the evaluations allowed; .trace holds what was tried."""

    def __init__(self, message: str, trace: pd.DataFrame) -> None:
        super().__init__(message)
        self.trace = trace


def nothing_forgot(concept: str, evaluations: int, trace: pd.DataFrame) -> NothingForgets:
    """The error to raise when nothing forgets: it says how near the nearest try of a search came."""
    tried = trace[trace["skipped"].isna()] if "skipped" in trace else trace
    if not len(tried):
        return NothingForgets(f"the forget loss of {concept!r} does not reach any layer looked at", trace)
    near = tried.sort_values("forget_accuracy", kind="stable").iloc[0]
    wide = f", standardized margin {near['standardized_margin']:.2g}" if "standardized_margin" in trace else ""
    if wide and near["standardized_margin"] == 0:
        wide += " (its pictures score alike, or there is but one: no margin can be measured)"
    return NothingForgets(
        f"none of {tried['layer'].nunique()} layers forgot {concept!r} in {evaluations} evaluations each; nearest: "
        f"{near['layer']} at step {near['step']:.3g}, accuracy {near['forget_accuracy']:.0%}{wide}. Allow more "
        "evaluations, another rule or margin, or a larger forget set",
        trace,
    )


def check_sets(forgets: Sequence[Pairs], retain: Pairs) -> None:
    """ValueError for sets that the method cannot work with: none, too small, or sharing what is to be forgotten."""
    if not forgets:
        raise ValueError("no forget set given")
    for forget in forgets:
        if len(forget) < 2:
            raise ValueError(f"the forget set has {len(forget)} pair(s); give at least 2, better 48")
        if len(retain) < 2:
            raise ValueError(
                f"the retain set has {len(retain)} pair(s); the contrastive loss needs at least 2, better 512"
            )
        check_one_colour(forget.images, "pictures of the forget set")
        check_disjoint(forget, retain)


def check_lengths(images: Sequence, captions: Sequence[str], concepts: Sequence[Sequence[str]] | None) -> None:
    """ValueError unless there is one of each for every pair."""
    sizes = {"images": len(images), "captions": len(captions)}
    if concepts is not None:
        sizes["concepts"] = len(concepts)
    if len(set(sizes.values())) > 1:
        raise ValueError(f"a pair needs one of each, but lengths differ: {sizes}")


def concept_of(forget: Pairs, validate: object) -> str:
    """What all pairs of a forget set are about; else what their validation asks for. ValueError where they differ."""
    shared, asked = shared_names(forget.concepts), getattr(validate, "forget", None)
    if not (isinstance(asked, str) and asked.strip()):
        return " + ".join(sorted(shared)) or UNNAMED
    if shared and fold(asked) not in map(fold, shared):
        raise ValueError(f"the forget set shows {', '.join(sorted(shared))}, the validation asks for {asked}")
    return " + ".join(sorted(shared)) or asked


def forget_of(forget: Pairs, validate: object, concept: str) -> Pairs:
    """The forget set of a task that is called `concept`. Where no name says what all of it shows, this one does.

    ValueError for a validation that is none, for one that asks for something else, and for what no file can hold.
    """
    check_validate(validate)
    check_label(concept, "the concept", CONCEPT_LIMIT)
    shown, names = concept_of(forget, validate), getattr(validate, "names", {})
    known = {fold(name) for some in names.values() for name in some} if isinstance(names, Mapping) else set()
    asked = str(getattr(validate, "forget", "") or concept)
    if fold(concept) in known - {fold(asked)}:
        raise ValueError(f"the task is to forget {concept!r}, its validation asks for {asked!r}")
    name = concept if shown == UNNAMED else shown
    if name == UNNAMED or shared_names(forget.concepts):
        return forget
    return replace(forget, concepts=[(*names, name) for names in forget.concepts or [()] * len(forget)])


def check_kinds(*given: tuple[str, object, type], seed: object = 0) -> None:
    """ValueError for settings of another type, before anything is done with them: ("search", search, StepSearch)."""
    for name, value, kind in given:
        if not isinstance(value, kind):
            raise ValueError(f"{name}={value!r}; a slug_lite.{kind.__name__} is needed, {kind.__name__}(...)")
    check_whole(0, seed=seed)


def check_shown(forget: str, pairs: Pairs) -> None:
    """ValueError for validation pairs that do not say what they show, show `forget` nowhere, or in broken pictures.

    A picture of one colour shows nothing, and would pass for one in which nothing is recognised any more.
    """
    if pairs.concepts is None:
        raise ValueError("validation pairs need .concepts, the names that each picture shows")
    shown = [k for k, concept in enumerate(pairs.concepts) if forget in concept]
    if not shown:
        raise ValueError(f"no validation picture shows {forget!r}")
    check_one_colour(pairs[shown].images, f"validation pictures of {forget}")


def check_disjoint(forget: Pairs, kept: Pairs, what: str = "retain") -> None:
    """ValueError for a set to be kept that shows the concept of the forget set, or shares captions with it.

    Names and captions count as one in any spelling, see `fold`.
    """
    captions = [fold(caption) for caption in kept.captions]
    if forget.concepts is not None:
        common = shared_names(forget.concepts)
        subjects = {frozenset(names) for names in ([common] if common else forget.concepts)} - {frozenset()}
        about = {names: _about(names, kept, captions) for names in subjects}
        shared = [names for names in subjects if about[names]]
        if shared:
            told = "; ".join(sorted(" in ".join(sorted(names)) for names in shared))
            rows = sorted(set().union(*about.values()))
            raise ValueError(
                f"{len(rows)} {what} pairs are about {told}, the concept to forget, by what is said to be shown or by "
                f"the caption; number {rows[0]} first: {kept.captions[rows[0]]!r}"
            )
    own = {fold(caption) for caption in forget.captions}
    both = [caption for caption, folded in zip(kept.captions, captions, strict=True) if folded in own]
    if both:
        raise ValueError(f"forget and {what} set share captions, for instance {min(both)!r}; take them out of one")


def _about(names: frozenset[str], pairs: Pairs, captions: Sequence[str]) -> set[int]:
    """Which pairs show all of `names`, by their concepts or by what their captions, which are folded, say?

    What a caption says is learned again, whatever the picture is said to show.
    """
    wanted = {fold(name): re.compile(naming(fold(name))) for name in names}
    shown = [{fold(name) for name in some} for some in pairs.concepts or [()] * len(pairs)]
    return {
        i for i, (caption, some) in enumerate(zip(captions, shown, strict=True))
        if all(name in some or spelt.search(caption) for name, spelt in wanted.items())
    }  # fmt: skip


def check_protect(forget: Sequence[Pairs], protect: Sequence[Pairs]) -> None:
    """ValueError unless `protect` is a list of sets that share nothing with any of the sets to forget."""
    if hasattr(protect, "captions"):
        raise ValueError("protect is one Pairs; give a list of them, one for each concept to protect")
    for some in forget:
        for kept in protect:
            check_disjoint(some, kept, "protect")


def names_of(concepts: Sequence[object], task: type) -> list[str]:
    """The names of a list of names and tasks. ValueError for none, for a bare string, and for twins."""
    given = isinstance(concepts, Sequence) and not isinstance(concepts, str) and len(concepts) > 0
    if not given or not all(isinstance(one, (str, task)) for one in concepts):
        raise ValueError(f"concepts is {concepts!r}; give a list of names or of Tasks")
    names = [one if isinstance(one, str) else str(one.concept) for one in concepts]
    if len({fold(name) for name in names}) < len(names):
        raise ValueError(f"concepts names something twice: {', '.join(names)}")
    return names
