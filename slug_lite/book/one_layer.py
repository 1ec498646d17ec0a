"""Several concepts in one layer of one's own choice, other than `unlearn_several`, which looks for a layer for each."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..edit import Edit
from ..models import Clip
from ..runtime.checks import unknown
from ..runtime.numbers import check_whole
from ..search import StepSearch
from ..several import in_rounds
from ..validation import Validation


def forget_in_layer(
    clip: Clip, layer: str, directions: Mapping[str, Tensor], validations: Mapping[str, Validation], *,
    rounds: int = 2, search: StepSearch = StepSearch("margin"),
) -> dict[str, Edit]:  # fmt: skip
    """For each concept the shortest step in `layer` that forgets it while the others' edits are on; one edit each.

    directions: for each concept the tensor to walk along, shaped as the weight, for instance its forget gradient
    validations: for each concept how to score it; rounds: how often the steps are looked for, the first time with
    those of the others that were found so far.

    `merge` the edits to have all of them, or those of them that are wanted. The model is left as it was. Raises
    KeyError for an unknown layer or a concept without a validation, ValueError for no concepts or rounds,
    `NothingForgets` where a concept's search fails.
    """
    if layer not in clip.weights():
        raise unknown(layer, clip.weights(), "layer")
    check_whole(directions=len(directions), rounds=rounds)
    for concept in directions:
        if concept not in validations:
            raise unknown(concept, validations, "concept with a validation")
        if not isinstance(validations[concept], Validation) or validations[concept].forget != concept:
            raise ValueError(f"the validation of {concept!r} must be a slug_lite.Validation that asks for it")
    own = {concept: {layer: direction} for concept, direction in directions.items()}
    asked = {concept: validations[concept] for concept in directions}
    return in_rounds([clip], asked, own, {concept: [[layer]] for concept in directions}, search, rounds)
