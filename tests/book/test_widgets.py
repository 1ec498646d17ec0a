"""Explorers, driven as a reader would: set a control, read what is shown."""

import math
import re
from collections import Counter

import pytest
import torch
from small_clips import small_validation

import slug_lite as slug
from slug_lite.book import widgets
from slug_lite.runtime.replay import blocks_before
from slug_lite.search import first_step, make_delta

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def shown(box):
    """The texts of an explorer's table, by their keys."""
    return dict(re.findall(r'data-key="(\w+)"><b>(.*?)</b>', box.value))


# ---- common ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def blocks_run():
    """blocks_run(clip): how many rows each block of its towers computes from now on, by the block's name."""
    hooks = []

    def watch(clip):
        runs = Counter()

        def count(name):
            def look(module, args):
                if "forward" not in vars(module):  # it runs, and is not played back
                    runs[name] += len(args[0])

            return look

        for name, module in clip.model.named_modules():
            if re.search(r"resblocks\.\d+$", name):
                hooks.append(module.register_forward_pre_hook(count(name)))
        return runs

    yield watch
    for hook in hooks:
        hook.remove()


def what_a_look_costs(clip, layer, validation):
    """By block, how many rows run when a layer changes: each picture or each prompt once, from its block on."""
    tower, blocks = clip.tower(layer), blocks_before(clip, layer)
    prompts = sum(len(names) * len(validation.templates[kind]) for kind, names in validation.names.items())
    return {
        name: len(validation.pairs) if tower == "vision" else prompts
        for name, module in clip.model.named_modules()
        if re.search(r"resblocks\.\d+$", name) and clip.tower(f"{name}.") == tower and module not in blocks
    }


# ---- layer_explorer -------------------------------------------------------------------------------------------------

# one layer of each kind, early and late, of both towers
LAYERS = ("visual.proj", "visual.transformer.resblocks.1.mlp.c_fc.weight", "text_projection",
          "transformer.resblocks.0.attn.out_proj.weight")  # fmt: skip


@pytest.fixture(scope="module")
def played(_mini):
    """Gradients of Ada, a small validation, and the effects of steps in a few layers."""
    world, name = slug.toonworld, "Ada Sunfield"
    gradients = slug.one_shot_gradients(_mini, world.pairs(name, n=12), world.retain([name], n=48))
    validation = small_validation(name, 12, size=64)
    effects = widgets.layer_effects(_mini, gradients, validation, layers=LAYERS, relative=(0.1, 0.3))
    return gradients, validation, effects


def test_the_explorer_follows_its_dropdown_at_once_and_says_what_is_true(mini, played, blocks_run):
    gradients, validation, effects = played
    explorer = widgets.layer_explorer(mini, gradients, effects)
    pick, slide, box = explorer.children
    assert {value for _, value in pick.options} == set(LAYERS)
    slide.value = 0.3
    seen, runs = [], blocks_run(mini)
    for layer in [*LAYERS, *LAYERS]:
        runs.clear()
        pick.value = layer
        assert not runs  # it was all worked out before
        seen.append(shown(box))
    assert len({tuple(now.values()) for now in seen}) == len(LAYERS)
    assert seen[: len(LAYERS)] == seen[len(LAYERS) :]
    for layer, now in zip(LAYERS, seen, strict=False):
        row = gradients.stats.loc[layer]
        assert float(now["importance"].split()[0]) == pytest.approx(row["importance"], rel=1e-3)
        assert float(now["alignment"]) == pytest.approx(row["alignment"], abs=6e-5)
        assert float(now["cosine"]) == pytest.approx(row["cosine"], abs=6e-5)
        assert now["front"] == ("yes" if layer in slug.pareto_front(gradients.stats) else "no")
        step = 0.3 * row["weight_norm"] / row["forget_norm"]
        assert float(now["step"]) == pytest.approx(step, rel=1e-3)
        weight, original = mini.weights()[layer], mini.weights()[layer].detach().clone()
        with torch.no_grad():
            weight.add_(make_delta(gradients.forget[layer], step))
            after = validation(mini)
            weight.copy_(original)
        for key, digits in (("forget_accuracy", 0.01), ("retain_accuracy", 0.01), ("margin", 0.02)):
            number = float(now[key].split()[0].rstrip("%")) / (100 if now[key].split()[0].endswith("%") else 1)
            assert number == pytest.approx(after[key], abs=digits), (layer, key)


def test_the_slider_changes_the_effect_and_not_the_facts(mini, played):
    gradients, _, effects = played
    pick, slide, box = widgets.layer_explorer(mini, gradients, effects).children
    pick.value, slide.value = "text_projection", 0.3
    far = shown(box)
    slide.value = 0.0
    here = shown(box)
    assert {key for key in here if here[key] != far[key]} >= {"step", "margin"}
    assert all(here[key] == far[key] for key in ("importance", "alignment", "cosine", "front", "shape"))
    value, before = re.match(r"(\S+) \(before: (\S+)\)", here["margin"]).groups()
    assert value == before  # a step of no length is the model as it is


def test_the_picture_marks_the_layer_alone(mini, played):
    gradients, _, effects = played
    pick, _, box = widgets.layer_explorer(mini, gradients, effects, select="cosine").children
    for layer in LAYERS:
        pick.value = layer
        assert box.value.count('r="7"') == 1 and f'aria-label="{layer}: importance' in box.value
        assert box.value.count("<circle") == (gradients.stats.tower == mini.tower(layer)).sum()


def test_effects_grow_with_the_step_and_leave_the_model_alone(mini, played):
    _, _, effects = played
    assert list(effects.index.get_level_values("relative").unique()) == [0.0, 0.1, 0.3]
    for layer in LAYERS:
        assert effects.loc[(layer, 0.3), "margin"] > effects.loc[(layer, 0.0), "margin"]
        assert effects.loc[(layer, 0.3), "step"] == pytest.approx(3 * effects.loc[(layer, 0.1), "step"])
    assert all(math.isfinite(value) for value in effects["margin"])


def test_errors_say_what_is_missing(mini, played):
    gradients, validation, _ = played
    with pytest.raises(ValueError, match="effects="):
        widgets.layer_explorer(mini, gradients)
    with pytest.raises(KeyError, match=r"did you mean 'visual\.proj'"):
        widgets.layer_effects(mini, gradients, validation, layers=["visual.prj"])


# ---- step_explorer --------------------------------------------------------------------------------------------------

# text and vision, late and early
STEP_LAYERS = ("transformer.resblocks.2.mlp.c_proj.weight", "visual.proj", "visual.conv1.weight")


@pytest.fixture(scope="module")
def steps(_mini):
    """Ada's forget gradient, and a validation."""
    world, name = slug.toonworld, "Ada Sunfield"
    gradients = slug.one_shot_gradients(_mini, world.pairs(name, n=24), world.retain([name], n=8))
    return gradients.forget, slug.toonworld.validation(name, n=24, others=2)


@pytest.mark.parametrize("layer", STEP_LAYERS)
def test_the_step_explorer_follows_its_slider_at_once_and_says_what_is_true(mini, steps, layer, blocks_run):
    gradient, validation = steps[0][layer], widgets.thinned(steps[1], 96)
    slide, box = widgets.step_explorer(mini, (layer, gradient), steps[1]).children
    before = {n: p.detach().clone() for n, p in mini.weights().items()}
    unit, base, seen, runs = first_step(before[layer], gradient), slug.fingerprint(mini), [], blocks_run(mini)
    for value in (2.0, 8.0, 20.0, -1.0):
        runs.clear()
        slide.value = value
        assert runs == what_a_look_costs(mini, layer, validation)
        now = shown(box)
        seen.append(now)
        assert all(torch.equal(p, before[n]) for n, p in mini.weights().items())
        delta = make_delta(gradient, value * unit)
        with slug.Edit({layer: delta}, {layer: value * unit}, "", base).on(mini):
            after = validation(mini)
        for key in ("forget_accuracy", "retain_accuracy", "people", "objects"):
            assert now[key].split()[0] == f"{after[key]:.1%}", key
        for key in ("margin", "standardized_margin"):
            assert now[key].split()[0] == f"{after[key]:+.2f}", key
        assert float(now["step"]) == pytest.approx(value * unit, rel=1e-3)
    assert len({row["margin"] for row in seen}) == len(seen)


def test_the_step_explorer_names_the_pictures(mini, steps):
    layer = STEP_LAYERS[0]
    slide, box = widgets.step_explorer(mini, (layer, steps[0][layer]), steps[1], pictures=4).children
    called = re.compile(r'alt="(.*?), called (.*?)"><br><([bs])>')
    at_zero = called.findall(box.value)
    assert len(at_zero) == 8 and [who for who, *_ in at_zero[:4]] == ["Ada Sunfield"] * 4
    assert all(name in who and mark == "b" for who, name, mark in at_zero)
    assert {slug.toonworld.kind_of(name) for _, name, _ in at_zero} == set(slug.toonworld.NAMES)
    slide.value = 8.0
    far = called.findall(box.value)
    assert all(name != who and mark == "s" for who, name, mark in far[:4])
    assert [who for who, *_ in far] == [who for who, *_ in at_zero] and far[4:] == at_zero[4:]


def test_the_step_explorer_takes_an_edit_and_begins_at_its_step(mini, steps):
    layer = STEP_LAYERS[0]
    gradient = steps[0][layer]
    step = 5 * first_step(mini.weights()[layer], gradient)
    edit = slug.Edit({layer: make_delta(gradient, step)}, {layer: step}, "Ada Sunfield", slug.fingerprint(mini))
    slide, box = widgets.step_explorer(mini, edit, steps[1], reach=4).children
    assert slide.value == slide.max == pytest.approx(5, abs=0.01) and slide.min == -0.4
    with edit.on(mini):
        after = widgets.thinned(steps[1], 96)(mini)
    assert float(shown(box)["margin"].split()[0]) == pytest.approx(after["margin"], abs=0.02)


def test_thinned_keeps_the_concept_and_takes_from_the_rest(steps):
    few = widgets.thinned(steps[1], 30)
    assert len(few.pairs) == 54 and all("Ada Sunfield" in concept for concept in few.pairs.concepts[:24])
    kinds = {slug.toonworld.kind_of(name) for concept in few.pairs.concepts[24:] for name in concept}
    assert kinds == set(slug.toonworld.NAMES)
    assert len(widgets.thinned(steps[1], 10**6).pairs) == len(steps[1].pairs)
    assert len(widgets.thinned(steps[1], 0).pairs) == 24


def test_the_step_explorer_refuses_what_does_not_fit(mini, steps):
    gradients, validation = steps
    with pytest.raises(KeyError, match=r"did you mean 'visual.proj'"):
        widgets.step_explorer(mini, ("visual.prj", gradients["visual.proj"]), validation)
    with pytest.raises(ValueError, match="the gradient is"):
        widgets.step_explorer(mini, ("visual.proj", gradients["visual.conv1.weight"]), validation)
    with pytest.raises(ValueError, match="is zero"):
        widgets.step_explorer(mini, ("visual.proj", torch.zeros_like(gradients["visual.proj"])), validation)
    base = slug.fingerprint(mini)
    two = slug.Edit({n: gradients[n] for n in STEP_LAYERS[:2]}, dict.fromkeys(STEP_LAYERS[:2], 1.0), "", base)
    with pytest.raises(ValueError, match="2 layers"):
        widgets.step_explorer(mini, two, validation)
