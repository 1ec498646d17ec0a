"""What a search tells of layers that it did not search, and of itself when it is stopped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import pandas as pd
from torch import Tensor

from .undo import Undo, undone

if TYPE_CHECKING:
    from ..edit import Edit
    from ..models import Clip
    from ..search import Found

Preference = Callable[[Mapping[str, "Found"]], list[str]]


def skipped(clip: Clip, layer: str, direction: Tensor) -> pd.DataFrame | None:
    """None for a layer that can be searched; else, of one without a weight or a way to go, its line in the trace.

    Other lines have nothing in the column "skipped".
    """
    weight = clip.weights()[layer]
    lacking = [name for name, x in (("weight", weight), ("forget gradient", direction)) if not x.any()]
    if not lacking:
        return None
    reason = f"the {' and the '.join(lacking)} is zero"
    return pd.DataFrame([{"layer": layer, "evaluation": 0, "forgotten": False, "skipped": reason}])


@undone
def telling(
    undo: Undo, found: Mapping[str, Found], concept: str | None = None, by_preference: Preference | None = None
) -> None:
    """An interrupt in the with-block gets an attribute `found`: by layer what was found, here and in blocks within.

    With a concept it says how far its search has got, and what it would have returned.
    """

    def tell(error: BaseException) -> None:
        if isinstance(error, KeyboardInterrupt):
            error.found = {**found, **getattr(error, "found", {})}
            if concept is not None:
                error.add_note(_told(concept, error.found, by_preference(error.found)))

    undo.at_error = tell


def _told(concept: str, found: Mapping[str, Found], able: list[str]) -> str:
    said = f"stopped while {concept!r} was looked for: {len(found)} layers were searched, {len(able)} of them forget"
    if not able:
        return said
    step, score = found[able[0]].step, found[able[0]].score
    kept = f", which keeps {score['retain_accuracy']:.1%} of the rest" if "retain_accuracy" in score else ""
    return f"{said}. Of these {able[0]} at step {step:.3g} would have been returned{kept}; .found of this error has it"


@undone
def remark(undo: Undo, text: str, edits: Mapping[str, Edit] | None = None) -> None:
    """An interrupt in the with-block says this as well. edits: found so far, its attribute `edits`."""

    def tell(error: BaseException) -> None:
        if isinstance(error, KeyboardInterrupt):
            error.add_note(text + (f"; .edits of this error are those of {', '.join(edits)}" if edits else ""))
            if edits:
                error.edits = dict(edits)

    undo.at_error = tell
