"""The search on generated pictures: does a pipeline still draw the concept, and does it still draw everything else?

CLIP may have forgotten a name, and the painter may still get something from the states that it hands over. So the
step for a pipeline is searched on pictures that the pipeline draws, as the official code does for UnlearnCanvas
(CSIPlab/SLUG, eval_uncanvas.py), here with more pictures and with a margin.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from ..edit import Edit
from ..models import Clip
from ..runtime.checks import check_names, unknown
from ..runtime.modes import eval_mode
from ..runtime.progress import bar
from ..runtime.zero_shot import embed_images, zero_shot_classifier
from ..search import Found, StepSearch, make_delta
from ..validation import margin_scores, retained
from ..world import toonworld
from .drawing import GUIDANCE, check_draws, generated_pairs, prompt_states

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


@dataclass(frozen=True)
class GeneratedValidation:
    """What to have drawn while searching, and among which names to look for the concept.

    pipe:    a StableDiffusionPipeline whose text encoder is the text tower of the CLIP that is searched
    forget:  the concept, one of `names`
    prompts: what to draw of it, in turns, `n` pictures in all
    others:  (prompt, name) of what must stay, one picture each
    names:   for each kind the names that are told apart; templates: for each kind its caption templates
    preserve: prompts of what must stay, which are not drawn: steps are preconditioned so that the text encoder's layers
             say of them what they said, see `precondition`; none for steps along the gradient, as the paper's are
    seed, steps, guidance_scale, batch_size: see `generated_pairs`

    The pictures are named by the CLIP's vision tower, with its names as they were before any edit of the text tower,
    or by none of them: whoever is drawn in the place of somebody forgotten is like one of the known ones, too.
    Raises ValueError for what draws no pictures, no prompts, and names and templates that do not fit, KeyError for
    names that are none of `names`.
    """

    pipe: StableDiffusionPipeline
    forget: str
    prompts: Sequence[str]
    others: Sequence[tuple[str, str]]
    names: Mapping[str, Sequence[str]]
    templates: Mapping[str, Sequence[str]]
    n: int = 12
    seed: int = 0
    steps: int | None = 20
    guidance_scale: float | None = None
    batch_size: int = 4
    preserve: Sequence[str] = ()

    def __post_init__(self) -> None:
        check_draws(self.pipe)
        if isinstance(self.preserve, str):
            raise ValueError(f"preserve={self.preserve!r}; give a sequence of texts, or ()")
        if isinstance(self.prompts, str) or not self.prompts or min(self.n, self.batch_size) < 1:
            raise ValueError(
                f"prompts={self.prompts!r}, n={self.n}, batch_size={self.batch_size}; give a sequence of texts, and "
                "draw one at least"
            )
        known = [name for names in self.names.values() for name in names]
        for name in (self.forget, *(name for _, name in self.others)):
            if name not in known:
                raise unknown(name, known, "name to draw")
            check_names(name, self.names, self.templates)

    @classmethod
    def of_world(
        cls, pipe: StableDiffusionPipeline, forget: str, *, n: int = 12, others: int = 36, seed: int = 0,
        split: str = "val", steps: int | None = 20, guidance_scale: float | None = GUIDANCE,
        without: Sequence[str] = (), batch_size: int = 12, preserve: bool = True,
    ) -> GeneratedValidation:  # fmt: skip
        """n pictures of a concept of the mini world and one of `others` other names, each kind with its share of them.

        An object or a style is asked for alone and in cells of the grid of objects and styles, where it has to be
        forgotten, too; then other objects and styles are asked for in cells.
        guidance_scale: None for the pipeline's own default.
        without: names that are not drawn, because they are to be forgotten too.
        preserve: the prompts of all other names, and those of all cells that training showed without it.
        """
        own_kind, generator = toonworld.kind_of(forget), torch.Generator().manual_seed(seed)
        every = [cell for cell in toonworld.cells("train") if not set(cell) & set(without)]
        order = torch.randperm(len(every), generator=torch.Generator().manual_seed(seed)).tolist()
        cells = [every[i] for i in order] if own_kind in ("objects", "styles") else []

        def of_cell(cell: tuple[str, str]) -> str:
            return toonworld.templates("cells", split)[0].format(*cell)

        prompts = [template.format(forget) for template in toonworld.templates(own_kind, split)]
        prompts += [of_cell(cell) for cell in cells if forget in cell][: max(0, n - len(prompts))]
        drawn, total, passed = [], sum(map(len, toonworld.NAMES.values())), 0
        for kind, names in toonworld.NAMES.items():
            share = round(others * (passed + len(names)) / total) - round(others * passed / total)
            passed += len(names)
            left = [name for name in names if name not in (forget, *without)]
            for i in torch.randperm(len(left), generator=generator)[:share].tolist():
                name = left[i]
                cell = next((cell for cell in cells if name in cell and forget not in cell), None)
                drawn.append((of_cell(cell) if cell else toonworld.templates(kind, split)[0].format(name), name))
        templates = {kind: toonworld.templates(kind, split) for kind in toonworld.NAMES}
        still = [
            template.format(name)
            for kind, names in toonworld.NAMES.items() for template in templates[kind]
            for name in names if name not in (forget, *without)
        ] + [of_cell(cell) for cell in every if forget not in cell]  # fmt: skip
        return cls(
            pipe, forget, prompts, drawn, toonworld.NAMES, templates, n, seed, steps, guidance_scale, batch_size,
            still if preserve else (),
        )  # fmt: skip

    def prepare(self, clip: Clip, must_know: bool = False) -> GeneratedScorer:
        """Embed the names, with the weights as they are now.

        must_know: raise ValueError if CLIP does not find the concept in a single picture that is drawn of it.
        """
        scorer = GeneratedScorer(self, clip)
        if must_know and not scorer.known:
            raise ValueError(
                f"CLIP finds {self.forget!r} in none of {self.n} pictures that the pipeline draws of it: there is "
                "nothing to forget, or other prompts are needed"
            )
        return scorer


class GeneratedScorer:
    """A `GeneratedValidation` on one CLIP, whose names were embedded at the weights of that moment.

    What is drawn is drawn by the pipeline as it is at every call, with the edits that are on it.

    known: is the concept found in one picture at least that is drawn of it now? reject: how well, in logits, a name
    must fit a picture, or it shows "none of these": as well as the concept's name fits nine in ten of those pictures.
    """

    def __init__(self, validation: GeneratedValidation, clip: Clip) -> None:
        self.validation, self.clip = validation, clip
        with eval_mode(clip.model):
            self.classifiers = {
                kind: zero_shot_classifier(clip, names, validation.templates[kind])
                for kind, names in validation.names.items()
            }
        self.kind = next(kind for kind, names in validation.names.items() if validation.forget in names)
        self.position = validation.names[self.kind].index(validation.forget)
        with torch.no_grad():
            logits = self._logits(self._embed(validation.prompts, validation.n), self.kind)
        self.known = bool((logits.argmax(1) == self.position).any())
        self.reject = logits[:, self.position].quantile(0.1).item()

    def _embed(self, prompts: Sequence[str], n: int) -> Tensor:
        """Unit vectors (n, dim) of n pictures."""
        own = self.validation
        drawn = generated_pairs(
            own.pipe, prompts, n, seed=own.seed, batch_size=own.batch_size, steps=own.steps,
            guidance_scale=own.guidance_scale, progress=False,
        )  # fmt: skip
        with eval_mode(self.clip.model):
            return embed_images(self.clip, self.clip.pixels(drawn))

    def _logits(self, images: Tensor, kind: str) -> Tensor:
        """How well pictures fit each name of a kind, (n, names), in logits, on the CPU."""
        return (self.clip.logit_scale() * images @ self.classifiers[kind].T).float().cpu()

    @torch.no_grad()
    def shift(self, edit: Edit) -> float:
        """By how much of its length an edit moves what the text encoder says of the others, the mean over positions."""
        own = self.validation
        if not own.others:
            return 0.0
        prompts = [prompt for prompt, _ in own.others]
        before = prompt_states(own.pipe, prompts)
        with edit.on(own.pipe, force=True):
            after = prompt_states(own.pipe, prompts)
        before, after = before.float(), after.float()
        return ((after - before).norm(dim=-1) / before.norm(dim=-1)).mean().item()

    @torch.no_grad()
    def forgetting(self) -> dict[str, float]:
        """Is the concept still drawn? See `margin_scores`.

        "None of these" counts as one more name, which fits every picture as well as `reject`.
        """
        own = self.validation
        logits = self._logits(self._embed(own.prompts, own.n), self.kind)
        return margin_scores(F.pad(logits, (0, 1), value=self.reject), self.position)

    @torch.no_grad()
    def retaining(self) -> dict[str, float]:
        """Is everything else still drawn? Accuracies by kind, "retain_accuracy" and "retain_loss", as `Scorer` has."""
        own, answers = self.validation, {}
        if not own.others:
            return {}
        images = self._embed([prompt for prompt, _ in own.others], len(own.others))
        for kind, names in own.names.items():
            rows = [(k, names.index(name)) for k, (_, name) in enumerate(own.others) if name in names]
            if rows:
                logits = self._logits(images[[k for k, _ in rows]], kind)
                answers[kind] = logits, torch.tensor([position for _, position in rows])
        return retained(answers)


MARGIN = 2.0  # in standard deviations, asked for in generated pictures and of CLIP alike
LONGER = 1.25, 1.5  # how many times as long a layer's next try is, the second where most pictures show the concept
FARTHER = 1.5  # once a step forgets, none is tried that shifts the others more than so many times as far


def search_on_generated(
    directions: Mapping[str, Tensor], begin: Mapping[str, float], generated: GeneratedScorer, enough: float,
    search: StepSearch,
) -> dict[str, Found]:  # fmt: skip
    """Of all layers, find the one whose step makes the pipeline forget and shifts the others' prompts least.

    directions: what to step along, by layer. begin: the layers, each with the step that CLIP needs. The step that
    shifts the others least is tried on what the pipeline draws; if it still draws the concept, the layer's step gets
    longer and waits until it is again the one that shifts least. So the first that succeeds has, but for the last
    stretch, shifted the others no further than any other would. It is the last if the pipeline keeps a retained
    accuracy of `enough` with it; else the rest go on, as far as `FARTHER`. search: its rule, and evaluations a layer.
    """
    rows: dict[str, list[dict]] = {layer: [] for layer in begin}
    found: dict[str, Found] = {}
    edits = {layer: trial(directions, layer, step) for layer, step in begin.items()}
    waiting = {layer: generated.shift(edit) for layer, edit in edits.items()}
    farthest = math.inf
    for _ in bar(range(len(begin) * search.evaluations), desc="drawing"):
        layer = min(waiting, key=waiting.__getitem__, default=None)
        if layer is None or waiting[layer] > farthest:
            break
        edit, shift = edits[layer], waiting.pop(layer)
        step = edit.steps[layer]
        with edit.on(generated.validation.pipe, force=True):
            score = generated.forgetting()
            gone = replace(search, margin=MARGIN).forgotten(score)
            if gone:
                score |= generated.retaining()
        about = {"layer": layer, "evaluation": len(rows[layer]), "step": step, "shift": shift}
        rows[layer].append({**about, **score, "forgotten": gone})
        if gone:
            found[layer] = Found(step, score, pd.DataFrame(rows[layer]))
            farthest = min(farthest, FARTHER * shift)
            if score.get("retain_accuracy", 0.0) >= enough:
                break
        elif len(rows[layer]) < search.evaluations:
            longer = _longer(directions, layer, step * LONGER[score["forget_accuracy"] > 0.5], generated)
            if longer is not None:
                edits[layer], waiting[layer] = longer
    tried = {layer: Found(None, None, pd.DataFrame(tries)) for layer, tries in rows.items() if tries}
    return tried | found


def trial(directions: Mapping[str, Tensor], layer: str, step: float) -> Edit:
    """A step in a layer as an edit, to be tried."""
    return Edit({layer: make_delta(directions[layer], step).cpu()}, {layer: step}, "a try", "")


def _longer(
    directions: Mapping[str, Tensor], layer: str, step: float, generated: GeneratedScorer
) -> tuple[Edit, float] | None:
    """The longer step as an edit, and its shift; None beyond half precision, or what the text encoder's can say."""
    if not torch.isfinite(make_delta(directions[layer], step)).all():
        return None
    edit = trial(directions, layer, step)
    shift = generated.shift(edit)
    return (edit, shift) if math.isfinite(shift) else None
