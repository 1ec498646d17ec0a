"""What was asked for and what was reached: in the report, in `repr`, in a warning."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_clips import small_validation

import slug_lite as slug
from slug_lite import StepSearch
from slug_lite.algorithm import best_edit
from slug_lite.runtime.reports import report_of, reported, shortfall, together, told
from slug_lite.validation import scorer_of

LAYER = "text_projection"
BEFORE = {"forget_accuracy": 1.0, "retain_accuracy": 0.9}


def after(accuracy=0.0, margin=5.0, kept=0.9):
    return {"forget_accuracy": accuracy, "standardized_margin": margin, "retain_accuracy": kept}


def report(score, drop=True, name="Ada", **settings):
    return report_of(name, StepSearch(**settings), BEFORE, score, lambda clip: {}, drop)


def test_what_was_asked_and_what_was_reached():
    one = report(after(), margin=3.0, evaluations=7)
    assert (one.rule, one.margin, one.evaluations, one.max_accuracy_drop) == ("top5", 3.0, 7, 0.005)
    assert (one.forget_accuracy, one.standardized_margin, one.forgotten) == (0.0, 5.0, True)
    assert (one.retained_before, one.retained_after, one.split) == (0.9, 0.9, None)
    assert one.all_reached and one.missed == [] and shortfall(one) == "" == shortfall(None)


@pytest.mark.parametrize(
    ("score", "settings", "said"),
    [
        (after(margin=2.0), {}, "a margin of 2 standard deviations where 4 were asked for"),
        (after(accuracy=0.25, margin=9.0), {"rule": "top1"}, "not forgotten by the rule 'top1', forget accuracy 25.0%"),
        (after(accuracy=0.04, margin=9.0), {"rule": "margin"}, "by the rule 'margin', forget accuracy 4.0%"),
        (after() | {"forget_accuracy5": 0.25}, {}, "by the rule 'top5': its name is among the best five for some"),
        (after(kept=0.89), {}, "retained accuracy 90.00% -> 89.00%, where a drop of 0.5 points was allowed"),
        (after(kept=float("-inf")), {}, "retained accuracy"),
    ],
)
def test_what_was_not_reached_is_said(score, settings, said):
    one = report(score, **settings)
    assert not one.all_reached and len(one.missed) == 1 and said in one.missed[0] and said in shortfall(one)


def test_what_was_not_asked_for_is_not_missed():
    assert report(after(kept=0.1), drop=False).all_reached and report(after(margin=0.1), rule="top1").all_reached
    assert report({"forget_accuracy": 0.0}).all_reached and report({"forget_accuracy": 0.0}).retained_after is None
    assert report(after(kept=0.8951)).all_reached and report(after(kept=1.0), max_accuracy_drop=0.0).all_reached


def test_what_nobody_measured_is_said_and_is_no_shortfall(tiny, recwarn):
    """A validation without a retained accuracy cannot say that enough was kept."""
    one, good = report({"forget_accuracy": 0.0}), report(after())
    assert one.all_reached and len(one.not_known) == 1 and "drop by 0.5 points at most" in one.not_known[0]
    assert good.not_known == report({"forget_accuracy": 0.0}, drop=False).not_known == []
    edit = slug.Edit({LAYER: torch.ones_like(tiny.weights()[LAYER]).half()}, {LAYER: 1.0}, "Ada", "x", report=one)
    assert "NOT KNOWN: retained accuracy, which" in repr(edit) and "NOT REACHED" not in repr(edit)
    assert told(edit) is edit and not recwarn.list and "NOT KNOWN" not in repr(replace(edit, report=good))
    both = shortfall(report({"forget_accuracy": 0.5}, rule="top1"))
    assert both.startswith("; NOT REACHED: not forgotten") and "; NOT KNOWN: retained" in both
    whole = together([good, replace(one, concept="Zorbo")])
    assert [text.partition(":")[0] for text in whole.not_known] == ["Zorbo"] and whole.all_reached


@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_merged_edit_that_breaks_the_model_is_reported_and_not_lost(tiny):
    """A function may return NaN with it on: that is nothing to end a whole search with."""
    weight = tiny.weights()[LAYER]
    edit = slug.Edit({LAYER: torch.ones_like(weight).half()}, {LAYER: 1.0}, "Ada", slug.fingerprint(tiny))
    start = weight.detach().clone()

    def validate(clip):
        on = not torch.equal(weight, start)
        return {"forget_accuracy": float("nan") if on else 1.0, "retain_accuracy": float("nan") if on else 0.9}

    found = reported(edit, tiny, {"Ada": validate}, {"Ada": BEFORE}, StepSearch(rule="top1"), scorer_of).report
    assert not found.forgotten and not found.all_reached and torch.equal(weight, start)


def test_several_concepts_have_the_worst_of_all():
    parts = [report(after(), name="Ada"), report(after(0.1, 2.0, 0.7), name="Zorbo"), report(after(kept=0.8), name="B")]
    whole = together(parts)
    assert (whole.concept, whole.forget_accuracy, whole.standardized_margin) == ("Ada + Zorbo + B", 0.1, 2.0)
    assert (whole.forgotten, whole.retained_after, whole.parts) == (False, 0.7, tuple(parts))
    assert [text.partition(":")[0] for text in whole.missed] == ["Zorbo", "Zorbo", "B"] and not whole.all_reached
    assert together(parts[:1]) is parts[0] and together([parts[0], parts[0]]).all_reached


def test_the_edit_shows_it_and_warns(tiny):
    delta = torch.ones_like(tiny.weights()[LAYER]).half()
    edit = slug.Edit({LAYER: delta}, {LAYER: 1.0}, "Ada", "x", report=report(after(margin=1.0)))
    assert "NOT REACHED: a margin of 1 standard" in repr(edit)
    with pytest.warns(UserWarning, match="Ada; NOT REACHED: a margin of 1 standard"):
        assert told(edit) is edit
    good = replace(edit, report=report(after()))
    assert "REACHED" not in repr(good) and "REACHED" not in repr(replace(edit, report=None)) and told(good) is good
    assert edit.low_rank(1).report is None and slug.merge([edit, edit]).report is None  # these were not measured


def test_a_search_that_keeps_nothing_says_so(tiny):
    """The best of the bad, from a model that keeps nothing with any step."""
    weight = tiny.weights()[LAYER]
    original = weight.detach().clone()

    def validate(clip):
        moved = not torch.equal(weight, original)
        return {"forget_accuracy": 0.0 if moved else 1.0, "retain_accuracy": 0.0 if moved else 0.9}

    edit = best_edit(tiny, "x", validate, {LAYER: torch.ones_like(weight)}, [[LAYER]], StepSearch(rule="top1"))
    assert not edit.report.all_reached and (edit.report.retained_before, edit.report.retained_after) == (0.9, 0.0)
    assert "retained accuracy 90.00% -> 0.00%" in repr(edit)


def test_half_a_margin_is_not_the_whole(tiny):
    weight = tiny.weights()[LAYER]
    original = weight.detach().clone()

    def validate(clip):
        gone = not torch.equal(weight, original)
        return {"forget_accuracy": 1.0 - gone, "standardized_margin": 2.5 if gone else -3.0, "retain_accuracy": 0.9}

    edit = best_edit(tiny, "x", validate, {LAYER: torch.ones_like(weight)}, [[LAYER]], StepSearch())
    assert edit.report.margin == 4.0 and edit.report.standardized_margin == 2.5 and not edit.report.all_reached


def test_unlearn_reports_on_the_split_it_looked_at(tiny, sets):
    """An untrained model keeps little: whatever comes out, the report has the scores of the edit that is on."""
    check = small_validation("Ada Sunfield", 4)
    task = slug.Task(*sets, check, "Ada Sunfield")
    edit = slug.unlearn(tiny, task, search=StepSearch(rule="top1", fronts=1, max_accuracy_drop=1.0))
    before = check(tiny)
    with edit.on(tiny):
        now = check(tiny)
    assert edit.report.split == "val" == check.split
    assert edit.report.retained_before == pytest.approx(before["retain_accuracy"])
    assert edit.report.retained_after == pytest.approx(now["retain_accuracy"], abs=1e-6)
    assert edit.report.forget_accuracy == now["forget_accuracy"] == 0


def test_unlearn_warns(tiny, sets):
    originals = {n: w.detach().clone() for n, w in tiny.weights().items()}

    def validate(clip):
        moved = any(not torch.equal(w, originals[n]) for n, w in clip.weights().items())
        return {"forget_accuracy": 0.0 if moved else 1.0, "retain_accuracy": 0.0 if moved else 0.9}

    few = StepSearch(rule="top1", fronts=1, evaluations=1)
    for call in (slug.unlearn, lambda clip, task, search: slug.unlearn_several(clip, [task], search=search)):
        with pytest.warns(UserWarning, match="NOT REACHED: retained accuracy 90.00% -> 0.00%") as caught:
            call(tiny, slug.Task(*sets, validate, "Ada Sunfield"), search=few)
        assert [Path(one.filename).name for one in caught] == [Path(__file__).name]
