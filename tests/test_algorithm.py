"""The whole method on mini CLIP, on pictures that neither gradients nor search have seen."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from small_clips import small_validation

import slug_lite as slug
from slug_lite import Pairs, StepSearch, Task, algorithm
from slug_lite.algorithm import best_edit
from slug_lite.runtime.checks import check_sets
from slug_lite.search import Found
from slug_lite.several import in_rounds
from slug_lite.world.evaluation import drop, recognised
from slug_lite.world.tasks import task

world = slug.toonworld


def forget_accuracy(clip, name, n=48):
    return recognised(clip, name, n=n, seed=11).float().mean().item()


class Stop(Exception):
    pass


@pytest.fixture(scope="module")
def ada(_mini):
    return slug.unlearn(_mini, "Ada Sunfield")


def test_ada_is_forgotten_and_nobody_else(mini, mini_scores, ada):
    assert forget_accuracy(mini, "Ada Sunfield") >= 0.97
    with ada.on(mini):
        assert forget_accuracy(mini, "Ada Sunfield") <= 0.05
        assert (drop(mini_scores, slug.evaluate(mini, n=6), "Ada Sunfield") <= 2).all()


def test_against_the_step_she_is_known_better(mini, ada):
    """The sign, on the real thing: minus the edit moves pictures and name together."""
    pairs = world.pairs("Ada Sunfield", n=24, split="test")

    def loss():
        with torch.no_grad():
            return slug.forget_loss(
                mini.image_features(mini.pixels(pairs)), mini.text_features(mini.tokens(pairs.captions))
            ).item()

    middle = loss()
    small = slug.Edit({ada.layer: 0.2 * ada.delta}, {ada.layer: 0.2 * ada.step}, "x", ada.base)
    back = slug.Edit({ada.layer: -0.2 * ada.delta}, {ada.layer: -0.2 * ada.step}, "x", ada.base)
    with small.on(mini):
        forwards = loss()
    with back.on(mini):
        backwards = loss()
    assert backwards < middle < forwards


def test_the_edit_says_what_it_is(mini, ada):
    assert ada.layer in mini.weights() and ada.step > 0 and ada.concept == "Ada Sunfield"
    assert ada.base == slug.fingerprint(mini) and ada.delta.shape == mini.weights()[ada.layer].shape
    rows = ada.trace[(ada.trace.layer == ada.layer) & ada.trace.forgotten]
    assert rows.step.min() == pytest.approx(ada.step) and (rows.forget_accuracy == 0).all()
    assert ada.trace.groupby("layer").size().max() <= 10


def test_an_edit_file_is_small(mini, ada, tmp_path):
    assert ada.save(tmp_path / "ada.safetensors").stat().st_size < 150_000
    largest = max(w.numel() for n, w in mini.weights().items() if slug.editable(n, w))
    assert 2 * largest + 4_000 < 150_000  # whichever layer is taken


@pytest.mark.parametrize("tower", ["text", "vision"])
def test_one_tower_alone(mini, tower):
    """On fewer pairs and pictures than `unlearn` takes by itself."""
    name = "Dario Lindqvist"
    few = task(name, n_forget=24, n_retain=64, validate=small_validation(name, 24, size=64))
    edit = slug.unlearn(mini, few, tower=tower, search=StepSearch(evaluations=8))
    assert mini.tower(edit.layer) == tower and {mini.tower(layer) for layer in edit.trace.layer} == {tower}
    with edit.on(mini):
        assert forget_accuracy(mini, name) <= 0.1


def test_same_seed_same_pictures_and_another_seed_others(mini, monkeypatch):
    """Of all that an edit is found by: forget set, retain set, validation."""
    seen = []

    def stop(clip, forget, retain, **settings):
        seen.append([forget[0], retain])
        raise Stop

    monkeypatch.setattr(algorithm, "one_shot_gradients", stop)
    right = algorithm.as_task

    def watched(*args):
        found = right(*args)
        seen.append([found.validate.pairs])
        return found

    monkeypatch.setattr(algorithm, "as_task", watched)
    for seed in (3, 3, 4):
        with pytest.raises(Stop):
            slug.unlearn(mini, "Ada Sunfield", seed=seed)
    one, again, other = ([*seen[k], *seen[k + 1]] for k in (0, 2, 4))
    for a, b, c in zip(one, again, other, strict=True):
        assert np.array_equal(a.images, b.images) and a.captions == b.captions
        assert len(a) == len(c) and not np.array_equal(a.images, c.images)
    assert [len(some) for some in one] == [len(one[0]), 48, 512]


def test_the_seed_goes_to_forget_set_retain_set_and_validation(mini, monkeypatch, spy):
    calls = {name: spy(world, name) for name in ("pairs", "retain", "validation", "evaluation_pairs")}

    def stop(*args, **settings):
        raise Stop

    monkeypatch.setattr(algorithm, "one_shot_gradients", stop)
    with pytest.raises(Stop):
        slug.unlearn(mini, "Ada Sunfield", seed=3)
    assert all({one["seed"] for one in found} == {3} for found in calls.values())
    assert sorted(one["split"] for one in calls["pairs"]) == ["train", "val"]  # the forget set, and the validation's
    assert [one["split"] for one in calls["retain"]] == ["train"]


def test_same_pictures_same_edit(mini):
    few = task("Ada Sunfield", n_forget=8, n_retain=32, validate=small_validation("Ada Sunfield", 8, 8, 64))
    one, again = (slug.unlearn(mini, few, search=StepSearch(rule="top1", fronts=1, evaluations=4)) for _ in range(2))
    assert again.layer == one.layer and torch.equal(again.delta, one.delta) and again.trace.equals(one.trace)


def test_sets_and_validation_of_ones_own(mini):
    forget = world.pairs("Zorbo", n=16, seed=5)
    retain = world.retain(["Zorbo"], n=64, seed=5)
    calls = []

    def validate(clip):
        calls.append(1)
        return {"forget_accuracy": forget_accuracy(clip, "Zorbo", n=6), "retain_accuracy": 1.0}

    search = StepSearch(fronts=1, evaluations=5)
    edit = slug.unlearn(mini, forget, retain, validate=validate, tower="text", search=search)
    assert edit.concept == "Zorbo" and calls
    with edit.on(mini):
        assert forget_accuracy(mini, "Zorbo") <= 0.3


def test_bad_input_changes_nothing_and_is_said_before_any_gradient_is_taken(mini, monkeypatch):
    forget, retain = world.pairs("Zorbo", n=4), world.retain(["Zorbo"], n=8)
    nan = np.full((2, 64, 64, 3), np.nan, np.float32)
    of_ada = world.validation("Ada Sunfield", n=2, others=1)
    cases = [
        (KeyError, "did you mean 'Ada Sunfield'", lambda: slug.unlearn(mini, "Ada Sunfeld")),
        (KeyError, "'vision'", lambda: slug.unlearn(mini, "Zorbo", tower="visual")),
        (ValueError, "needs a retain set", lambda: slug.unlearn(mini, forget)),
        (ValueError, "needs a retain set", lambda: slug.unlearn(mini, forget, retain)),
        (ValueError, "concept is 3", lambda: slug.unlearn(mini, 3)),
        (ValueError, r"concept is \[\]", lambda: slug.unlearn(mini, [])),
        (ValueError, r"concept is \['Zorbo'\]", lambda: slug.unlearn(mini, ["Zorbo"])),  # see unlearn_several
        (ValueError, "validate is a int", lambda: slug.unlearn(mini, "Zorbo", validate=3)),
        (ValueError, "validation asks for 'Ada", lambda: slug.unlearn(mini, "Zorbo", validate=of_ada)),
        (ValueError, "validation asks for Ada", lambda: slug.unlearn(mini, forget, retain, validate=of_ada)),
        (KeyError, "'cosine'", lambda: slug.unlearn(mini, "Zorbo", search=StepSearch(measure="cosinus"))),
        (ValueError, "at least 1", lambda: slug.unlearn(mini, "Zorbo", search=StepSearch(evaluations=0))),
        (ValueError, "forget set has 0", lambda: slug.unlearn(mini, forget[:0], retain, validate=dict)),
        (ValueError, "forget set has 1", lambda: slug.unlearn(mini, forget[:1], retain, validate=dict)),
        (ValueError, "about Zorbo", lambda: slug.unlearn(mini, forget, retain + forget, validate=dict)),
        (ValueError, "about Zorbo", lambda: slug.unlearn(mini, "Zorbo", retain + forget)),
        (ValueError, "retain set has 0", lambda: slug.unlearn(mini, "Zorbo", retain[:0])),
        (ValueError, "NaN in 2 of 2", lambda: slug.unlearn(mini, Pairs(nan, ["a", "b"]), retain, validate=dict)),
        (ValueError, "shape", lambda: slug.unlearn(mini, Pairs(forget.images[..., 0], forget.captions), retain)),
        (KeyError, "margin, top1, top5", lambda: slug.unlearn(mini, "Zorbo", search=StepSearch(rule="top2"))),
        (ValueError, "batch_size=0", lambda: slug.unlearn(mini, "Zorbo", memory=slug.Memory(batch_size=0))),
    ]
    never = "_forget_backward", "_retain_backward"
    for name in never:
        monkeypatch.setattr(f"slug_lite.gradients.{name}", lambda *args, name=name: pytest.fail(f"{name} was called"))
    for error, message, call in cases:
        with pytest.raises(error, match=message):
            call()


def test_an_error_in_the_validation_leaves_no_trace(mini):
    calls = []

    def validate(clip):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return {"forget_accuracy": 1.0}

    def flags():
        modes = [module.training for module in mini.model.modules()]
        return modes, [(p.requires_grad, p.grad) for p in mini.model.parameters()]

    before = flags()
    with pytest.raises(KeyboardInterrupt):
        slug.unlearn(mini, task("Zorbo", n_forget=4, n_retain=16, validate=validate))
    assert len(calls) == 3 and flags() == before  # the fixture compares the weights


def test_a_concept_that_stays_known_whatever_is_done_is_said(mini):
    never = task("Zorbo", n_forget=4, n_retain=16, validate=lambda clip: {"forget_accuracy": 1.0})
    with pytest.raises(slug.NothingForgets, match="'Zorbo' in 2 evaluations each"):
        slug.unlearn(mini, never, tower="text", search=StepSearch(evaluations=2))


def test_a_tower_that_the_loss_does_not_reach_is_said(tiny, sets):
    """None of its weights can be trained, so that there is no front to look on."""
    for name, weight in tiny.weights().items():
        if tiny.tower(name) == "text":
            weight.requires_grad_(False)
    frozen = Task(*sets, lambda clip: {"forget_accuracy": 0.0}, "Ada Sunfield")
    with pytest.raises(slug.NothingForgets, match="'Ada Sunfield' does not reach any layer") as caught:
        slug.unlearn(tiny, frozen, tower="text")
    assert len(caught.value.trace) == 0
    assert tiny.tower(slug.unlearn(tiny, frozen).layer) == "vision"


def test_when_nothing_forgets_the_trace_is_handed_over(mini):
    few = task("Zorbo", n_forget=24, n_retain=64, validate=small_validation("Zorbo", 24, size=64))
    with pytest.raises(slug.NothingForgets, match="none of") as caught:
        slug.unlearn(mini, few, tower="text", search=StepSearch("margin", evaluations=1, margin=1e6))
    trace = caught.value.trace
    assert len(trace) >= 1 and "step" in trace and set(trace.asked) == {1e6, 5e5}
    with pytest.raises(slug.NothingForgets) as caught:
        slug.unlearn(mini, few, tower="text", search=StepSearch(evaluations=1))
    assert len(caught.value.trace) == len(trace) / 2 and set(caught.value.trace.asked) == {None}  # no margin to halve


# ---- which layer, on made-up searches -------------------------------------------------------------------------------


@pytest.fixture
def searched(monkeypatch):
    """What is asked of the search in layers. It finds what `results` say: by layer the margin reached and what is kept.

    A layer is made to forget where it reaches the margin that is asked for.
    """
    calls, results = [], {}

    def search_layers(clip, directions, layers, validate, search):
        calls.append((search.margin, list(layers)))
        found = {}
        for layer in layers:
            reached, kept = results[layer]
            row = {"layer": layer, "step": 1.0, "forget_accuracy": 0.0, "standardized_margin": reached}
            gone = reached >= search.margin
            trace, score = pd.DataFrame([row]), {"retain_accuracy": kept}
            found[layer] = Found(1.0, score, trace) if gone else Found(None, None, trace)
        return found

    monkeypatch.setattr(algorithm, "search_layers", search_layers)
    return calls, results


def choose(tiny, fronts, **settings):
    layers = [layer for front in fronts for layer in front]
    weight = torch.ones_like(tiny.weights()["text_projection"])
    score = {"forget_accuracy": 1.0, "retain_accuracy": 0.9}
    return best_edit(tiny, "x", lambda clip: score, dict.fromkeys(layers, weight), fronts, StepSearch(**settings))


def test_a_further_front_is_looked_at_only_where_the_first_costs_too_much(tiny, searched):
    calls, results = searched
    results |= {"a": (9, 0.88), "b": (9, 0.896), "c": (9, 0.9), "d": (9, 1.0)}
    assert choose(tiny, [["a", "b"], ["c"], ["d"]]).layer == "b"  # half a point below 0.9 is allowed
    assert calls == [(4.0, ["a", "b"])]
    calls.clear()
    assert choose(tiny, [["a", "b"], ["c"], ["d"]], max_accuracy_drop=0.0).layer == "c"
    assert calls == [(4.0, ["a", "b"]), (4.0, ["c"])]
    calls.clear()
    results |= {"b": (9, 0.5), "c": (9, 0.6), "d": (9, 0.7)}
    assert choose(tiny, [["a", "b"], ["c"], ["d"]]).layer == "a"  # none keeps enough: the best of all fronts
    assert calls == [(4.0, ["a", "b"]), (4.0, ["c"]), (4.0, ["d"])]


def test_half_the_margin_is_asked_for_where_no_layer_reaches_the_whole(tiny, searched):
    calls, results = searched
    results |= {"a": (1.9, 0.9), "b": (2.5, 0.9), "c": (3.9, 0.8)}
    edit = choose(tiny, [["a", "b"], ["c"]])
    assert edit.layer == "b" and calls == [(4.0, ["a", "b"]), (4.0, ["c"]), (2.0, ["a", "b"])]
    assert list(edit.trace.layer) == list("abcab") and list(edit.trace.asked) == [4, 4, 4, 2, 2]
    calls.clear()
    with pytest.raises(slug.NothingForgets, match=r"none of 3 layers forgot 'x'.*nearest: a at step 1, accuracy 0%"):
        choose(tiny, [["a", "b"], ["c"]], margin=8.0)
    assert [margin for margin, _ in calls] == [8, 8, 4, 4]
    calls.clear()
    with pytest.raises(slug.NothingForgets):
        choose(tiny, [["a", "b"], ["c"]], rule="top1", margin=8.0)
    assert [margin for margin, _ in calls] == [8, 8]  # the other rules ask for no margin


def test_what_a_model_keeps_before_the_edit_is_what_it_is_held_to(tiny, searched):
    """By a `Validation` as by a function."""
    _, results = searched
    results |= {"a": (9, 0.0), "b": (9, 1.0)}
    fronts, directions = [["a"], ["b"]], dict.fromkeys("ab", torch.ones_like(tiny.weights()["text_projection"]))
    assert small_validation("Zorbo")(tiny)["retain_accuracy"] > 0.005
    assert best_edit(tiny, "x", small_validation("Zorbo"), directions, fronts, StepSearch()).layer == "b"


@pytest.mark.parametrize(
    ("search", "tower", "widths"),
    [
        (StepSearch(), None, (4.0, 2.0)), (StepSearch(measure="cosine", evaluations=3), None, (4.0, 2.0)),
        (StepSearch(fronts=1, margin=6.0), "text", (6.0, 3.0)),
        (StepSearch(fronts=5, rule="top1", max_accuracy_drop=0.1), "vision", (4.0,)),
    ],
)  # fmt: skip
def test_which_fronts_settings_and_widths_are_asked_for(tiny, sets, monkeypatch, spy, search, tower, widths):
    stats = slug.one_shot_gradients(tiny, *sets).stats
    here = stats if tower is None else stats[stats.tower == tower]
    fronts, asked = slug.pareto_fronts(here, search.fronts, by=search.measure), []
    measured = spy(algorithm, "pareto_fronts")

    def search_layers(clip, directions, layers, validate, settings):
        asked.append((settings, list(layers)))
        assert set(layers) <= set(directions)
        row = {"layer": "", "step": 1.0, "forget_accuracy": 1.0}
        return {layer: Found(None, None, pd.DataFrame([row])) for layer in layers}

    monkeypatch.setattr(algorithm, "search_layers", search_layers)
    mine = Task(*sets, lambda clip: {"forget_accuracy": 1.0}, "Ada Sunfield")
    with pytest.raises(slug.NothingForgets):
        slug.unlearn(tiny, mine, tower=tower, search=search)
    assert asked == [(replace(search, margin=width), front) for width in widths for front in fronts]
    assert {(one["number"], one["by"]) for one in measured} == {(search.fronts, search.measure)}
    assert all(list(one["stats"].index) == list(here.index) for one in measured)


def test_memory_settings_reach_the_gradients(tiny, sets, spy):
    calls, memory = spy(algorithm, "one_shot_gradients"), slug.Memory(batch_size=5, passes=2)
    mine = Task(*sets, lambda clip: {"forget_accuracy": 0.0}, "Ada Sunfield")
    slug.unlearn(tiny, mine, search=StepSearch(fronts=1, evaluations=1), memory=memory)
    assert [(one["batch_size"], one["passes"]) for one in calls] == [(5, 2)]


def test_a_layer_on_two_fronts_is_searched_once(tiny, searched):
    """As the one found in the round before is, which comes first."""
    calls, results = searched
    results |= {"a": (9, 0.5), "b": (9, 0.5)}
    choose(tiny, [["a"], ["b", "a"]])
    assert [layers for _, layers in calls] == [["a"], ["b"]]


def test_the_edit_is_the_step_along_the_direction(tiny, searched):
    _, results = searched
    results["text_projection"] = (9, 0.9)
    edit = choose(tiny, [["text_projection"]])
    assert edit.steps == {"text_projection": 1.0} and edit.base == slug.fingerprint(tiny) and edit.concept == "x"
    assert edit.delta.dtype == torch.float16 and torch.equal(edit.delta, torch.ones_like(edit.delta))


# ---- what is to be forgotten ----------------------------------------------------------------------------------------


def test_whatever_says_what_to_forget_becomes_a_task(tiny, sets):
    forget, retain = sets
    mine = Task(forget, retain, dict, "Ada Sunfield")
    assert slug.as_task(mine, tiny) is mine
    own = slug.as_task(forget, tiny, retain, dict)
    assert (own.forget, own.retain, own.validate, own.concept) == (forget, retain, dict, "Ada Sunfield")
    cats = slug.as_task(world.pairs("cat", n=6, size=32), tiny, retain, dict)  # in several styles
    assert len(set(cats.forget.concepts)) > 1 and cats.concept == "cat"
    bare = slug.as_task(replace(forget, concepts=None), tiny, retain, dict)
    assert bare.concept == "the forget set" and list(bare.protect) == []
    told = slug.as_task(replace(forget, concepts=None), tiny, retain, small_validation("Ada Sunfield", n=2))
    assert told.concept == "Ada Sunfield" and set(told.forget.concepts) == {("Ada Sunfield",)}
    named = slug.as_task("Zorbo", tiny, seed=2)
    assert named.concept == named.validate.forget == "Zorbo" and named.forget.images.shape[1:] == (32, 32, 3)


def test_a_name_that_only_the_validation_knows_counts_in_captions_too(tiny, sets):
    """A forget set without names, and one caption that is cut before the name of what it shows."""
    forget, retain = sets
    captions = ["a small drawing " * 30 + "of Ada Sunfield", *forget.captions[1:]]
    own = slug.Pairs(forget.images, captions)
    assert "Ada Sunfield" not in str(retain.concepts)
    with pytest.raises(ValueError, match="1 of 6 forget captions name Ada Sunfield only behind"):
        slug.unlearn(tiny, own, retain, validate=small_validation("Ada Sunfield", n=2))
    with pytest.raises(ValueError, match="Ada Sunfield"):  # and the retain set may not show her
        both = slug.Pairs(retain.images, ["Ada Sunfield", *retain.captions[1:]])
        slug.unlearn(tiny, slug.Pairs(forget.images, forget.captions), both,
                     validate=small_validation("Ada Sunfield", n=2))  # fmt: skip


def test_a_tasks_name_its_sets_and_its_validation_agree(tiny, sets):
    """A name that nothing else says is that of all pairs; one that something else denies is an error."""
    forget, retain = sets
    bare, both = replace(forget, concepts=None), slug.Pairs(retain.images, ["my dog", *retain.captions[1:]])
    task = Task(bare, both, dict, "my dog")
    assert set(task.forget.concepts) == {("my dog",)}
    with pytest.raises(ValueError, match="1 retain pairs are about my dog"):
        check_sets([task.forget], task.retain)
    ada = small_validation("Ada Sunfield", n=2)
    for few in ([()] * len(forget), [("girl",) if k % 2 else ("friend",) for k in range(len(forget))]):
        found = slug.as_task(replace(forget, concepts=few), tiny, retain, ada)
        assert found.concept == "Ada Sunfield" and all("Ada Sunfield" in names for names in found.forget.concepts)
    with pytest.raises(ValueError, match="the task is to forget 'Zorbo', its validation asks for 'Ada Sunfield'"):
        Task(forget, retain, ada, "Zorbo")
    with pytest.raises(ValueError, match="the validation asks for Zorbo"):
        Task(forget, retain, small_validation("Zorbo", n=2), "Zorbo")
    assert Task(forget, retain, ada, "the girl next door").concept == "the girl next door"
    assert Task(bare, retain, dict, "the forget set").forget.concepts is None


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"search": {"rule": "top1"}}, r"search=\{'rule': 'top1'\}; a slug_lite.StepSearch is needed"),
        ({"search": None}, "search=None; a slug_lite.StepSearch"), ({"search": StepSearch}, "StepSearch is needed"),
        ({"memory": 8}, "memory=8; a slug_lite.Memory"), ({"seed": 1.5}, "seed=1.5; a whole number"),
        ({"seed": "1"}, "seed='1'"), ({"seed": None}, "seed=None"), ({"seed": -1}, "seed=-1"),
    ],
)  # fmt: skip
def test_settings_are_looked_at_before_anything_is_done(tiny, settings, message, monkeypatch):
    monkeypatch.setattr(algorithm, "as_task", lambda *_: pytest.fail("too late"))
    with pytest.raises(ValueError, match=message):
        slug.unlearn(tiny, "Zorbo", **settings)
    with pytest.raises(ValueError, match=message):
        slug.unlearn_several(tiny, ["Zorbo"], **settings)


def test_a_clip_that_lacks_a_part_or_can_take_no_gradient_is_told_so(tiny):
    for half in (slug.Clip(tiny.model, None, None), slug.Clip(torch.nn.Linear(2, 2), tiny.tokenizer, tiny.preprocess)):
        with pytest.raises(ValueError, match="of a CLIP that is in memory, none of them None"):
            slug.unlearn(half, "Zorbo")
    with torch.inference_mode(), pytest.raises(ValueError, match=r"inside torch\.inference_mode"):
        slug.unlearn(tiny, "Zorbo")
    tiny.model.requires_grad_(False)
    with pytest.raises(ValueError, match="no weight may be chosen: not a frozen one"):
        slug.unlearn(tiny, "Zorbo")


@pytest.mark.parametrize("concept", ["<b>Ada</b>", "a\nb", "", "x" * 20_000, 3])
def test_what_could_not_be_saved_is_refused_at_the_door(sets, concept):
    forget, retain = sets
    with pytest.raises(ValueError, match="the concept"):
        Task(forget, retain, dict, concept)


@pytest.mark.parametrize("clip", [3, None, "mini", torch.nn.Linear(2, 2)])
def test_what_is_no_clip_is_told_what_is_needed(clip, sets):
    for call in (lambda: slug.unlearn(clip, "Zorbo"), lambda: slug.unlearn_several(clip, ["Zorbo", "Ada Sunfield"])):
        with pytest.raises(ValueError, match=r"a slug_lite\.Clip is needed: load_clip"):
            call()


def test_a_weight_that_is_not_finite_is_named(tiny):
    with torch.no_grad():
        tiny.weights()["visual.proj"][0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"weights of the CLIP are not finite: 'visual\.proj', 1 in all"):
        slug.unlearn(tiny, "Zorbo")


def bad_scores(value):
    return lambda clip: value


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, "returned a NoneType"), (0.5, "returned a float"), ([0.5], "returned a list"), ({}, "'forget_accuracy'"),
        ({"retain_accuracy": 1.0}, "'forget_accuracy' must be"), ({"forget_accuracy": np.nan}, "forget_accuracy=nan"),
        ({"forget_accuracy": None}, "a NoneType as 'forget_accuracy'"),
        ({"forget_accuracy": "0.5"}, "a str as 'forget_accuracy'"),
        ({"forget_accuracy": torch.zeros(2)}, "a Tensor as 'forget_accuracy'"),
        ({"forget_accuracy": 1.0, "retain_accuracy": np.inf}, "retain_accuracy=inf"),
        ({"forget_accuracy": 1.0, "standardized_margin": np.nan}, "standardized_margin=nan"),
    ],
)  # fmt: skip
def test_what_a_validation_returns_is_looked_at_before_any_gradient_is_taken(tiny, monkeypatch, returned, message):
    never = lambda *args: pytest.fail("a gradient was taken")  # noqa: E731
    for name in ("_forget_backward", "_retain_backward"):
        monkeypatch.setattr(f"slug_lite.gradients.{name}", never)
    forget, retain = world.pairs("Zorbo", n=4, size=32), world.retain(["Zorbo"], n=8, size=32)
    with pytest.raises(ValueError, match=message):
        slug.unlearn(tiny, forget, retain, validate=bad_scores(returned))
    with pytest.raises(ValueError, match=message):
        slug.unlearn_several(tiny, [slug.Task(forget, retain, bad_scores(returned), "Zorbo")], protect=())


@pytest.mark.parametrize(
    "make",
    [
        lambda: slug.Memory(batch_size=1.5), lambda: slug.Memory(passes=2.0), lambda: slug.Memory(batch_size=True),
        lambda: slug.Memory(batch_size="8"), lambda: StepSearch(evaluations=2.5), lambda: StepSearch(fronts=1.0),
        lambda: StepSearch(margin=np.nan), lambda: StepSearch(margin=np.inf), lambda: StepSearch(margin="4"),
        lambda: StepSearch(max_accuracy_drop=np.nan), lambda: StepSearch(margin=0), lambda: StepSearch(margin=-1.0),
    ],
)  # fmt: skip
def test_numbers_that_make_no_sense_are_refused_at_the_door(make):
    with pytest.raises(ValueError, match=r"needed"):
        make()


def test_numbers_of_numpy_are_numbers():
    assert slug.Memory(np.int64(4)).batch_size == 4 and StepSearch(margin=np.float32(2), evaluations=np.int8(3))


@pytest.mark.parametrize("what", ["weight", "gradient"])
def test_a_layer_of_zeros_is_skipped_with_a_line_in_the_trace(tiny, what):
    layers = ["visual.proj", "text_projection"]
    weights = tiny.weights()
    directions = {layer: torch.ones_like(weights[layer]) for layer in layers}
    with torch.no_grad():
        (weights if what == "weight" else directions)["visual.proj"].zero_()
    gone = lambda clip: {"forget_accuracy": 0.0, "retain_accuracy": 1.0}  # noqa: E731
    edit = algorithm.best_edit(tiny, "x", gone, directions, [layers], StepSearch("top1"))
    assert edit.layer == "text_projection"
    lines = edit.trace[edit.trace["layer"] == "visual.proj"]
    assert len(lines) == 1 and "is zero" in lines["skipped"].item() and not lines["forgotten"].item()
    with pytest.raises(slug.NothingForgets, match="does not reach any layer") as error:
        algorithm.best_edit(tiny, "x", gone, directions, [layers[:1]], StepSearch("top1"))
    assert len(error.value.trace) == 1
    never = lambda clip: {"forget_accuracy": 1.0}  # noqa: E731
    with pytest.raises(slug.NothingForgets, match="none of 1 layers"):
        algorithm.best_edit(tiny, "x", never, directions, [layers], StepSearch("top1"))


def test_a_step_that_breaks_the_model_has_not_forgotten(tiny):
    answers = iter([1.0, np.nan])
    broken = lambda clip: {"forget_accuracy": 0.0 * next(answers), "retain_accuracy": 1.0}  # noqa: E731
    with pytest.raises(slug.NothingForgets):
        algorithm.best_edit(
            tiny, "x", broken, {"visual.proj": torch.ones_like(tiny.weights()["visual.proj"])}, [["visual.proj"]],
            StepSearch("top1", evaluations=1),
        )  # fmt: skip


def test_a_search_that_is_stopped_says_how_far_it_got(tiny):
    layers = ["visual.proj", "transformer.resblocks.0.attn.out_proj.weight", "text_projection"]
    directions, stop = {layer: torch.ones_like(tiny.weights()[layer]) for layer in layers}, tiny.weights()[layers[2]]
    before = stop.detach().clone()

    def validate(clip):
        if not torch.equal(stop, before):
            raise KeyboardInterrupt
        changed = any(not torch.equal(tiny.weights()[layer], kept) for layer, kept in whole.items())
        return {"forget_accuracy": 0.0, "retain_accuracy": 0.75 if changed else 1.0}

    whole = {layer: tiny.weights()[layer].detach().clone() for layer in layers}
    with pytest.raises(KeyboardInterrupt) as stopped:
        best_edit(tiny, "Ada", validate, directions, [layers[:1], layers[1:]], StepSearch("top1", evaluations=2))
    (note,) = stopped.value.__notes__
    assert "2 layers were searched, 2 of them forget" in note and "at step" in note and "75.0%" in note
    assert set(stopped.value.found) == set(layers[:2]) and torch.equal(stop, before)


def test_a_search_that_is_stopped_among_several_names_says_what_it_has(tiny):
    gone, calls = {"forget_accuracy": 0.0, "retain_accuracy": 1.0}, []

    def find(clip, name, *_):
        calls.append(name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        layer = "visual.proj"
        delta = torch.ones_like(clip.weights()[layer]).half()
        return slug.Edit({layer: delta}, {layer: 1.0}, name, slug.fingerprint(clip), trace=pd.DataFrame())

    with pytest.raises(KeyboardInterrupt) as stopped:
        in_rounds([tiny], dict.fromkeys("ab", gone), {"a": {}, "b": {}}, {"a": [], "b": []}, StepSearch(), find=find)
    assert list(stopped.value.edits) == ["a", "b"] and "those of a, b" in stopped.value.__notes__[0]


def test_stopped_while_gradients_are_taken(tiny, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("slug_lite.gradients._retain_backward", stop)
    forget, retain = world.pairs("Zorbo", n=4, size=32), world.retain(["Zorbo"], n=8, size=32)
    with pytest.raises(KeyboardInterrupt) as stopped:
        slug.unlearn(tiny, forget, retain, validate=lambda clip: {"forget_accuracy": 1.0})
    assert "while the gradients were taken" in stopped.value.__notes__[0]
