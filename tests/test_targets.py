"""What edits go on, and what tells models apart."""

import copy

import pytest
import torch
from small_clips import transformers
from test_edit import LAYER, OTHER, make, same, state

import slug_lite as slug
from slug_lite.runtime.fingerprints import same_mark
from slug_lite.runtime.text_towers import differences
from slug_lite.targets import as_clip, deltas_for, modules_of, weights_of


def test_open_clip_models_take_edits_too_and_others_do_not(tiny):
    edit, before = make(tiny), state(tiny)
    with edit.on(tiny.model):
        assert not torch.equal(tiny.weights()[LAYER], before[LAYER])
    for target in (torch.nn.Linear(2, 2), "clip", None):
        with pytest.raises(ValueError, match="goes on a Clip"), edit.on(target):
            pass


@pytest.mark.parametrize("force", [False, True])
def test_missing_layers_and_other_shapes_are_refused_even_by_force(tiny, force):
    base = slug.fingerprint(tiny)
    before = state(tiny)
    good = make(tiny).delta
    for deltas, message in (
        ({LAYER: good, "no.such.weight": torch.zeros(2)}, "does not have"),
        ({LAYER: good, OTHER: torch.zeros(3, 3).half()}, r"is \(3, 3\), the model's is"),
    ):
        edit = slug.Edit(deltas, dict.fromkeys(deltas, 1.0), "x", base)
        with pytest.raises(ValueError, match=message), edit.on(tiny, force=force):
            pass
        with pytest.raises(ValueError, match=message):
            edit.apply(tiny, force=force)
        assert same(state(tiny), before)


def test_fingerprint_knows_models_apart_not_precisions(tiny):
    base = slug.fingerprint(tiny)
    half = slug.Clip(copy.deepcopy(tiny.model).bfloat16(), tiny.tokenizer, tiny.preprocess)
    assert all(map(same_mark, slug.fingerprint(half).split("-")[:1], base.split("-")[:1]))
    assert differences(slug.fingerprint(half).split("-")[1], base.split("-")[1]) == []
    with make(tiny).on(tiny):
        assert slug.fingerprint(tiny) == base
    with torch.no_grad():
        tiny.weights()["visual.conv1.weight"].mul_(1.1)
    assert slug.fingerprint(tiny) != base


def test_a_fingerprint_says_which_weights_and_which_text_tower(tiny):
    """Twelve digits for the tower's embeddings, and twelve for each of two blocks: a pipeline has these alone."""
    whole, _, tower = slug.fingerprint(tiny).partition("-")
    assert len(whole) == 24 and len(tower) == 12 * 3 and set(whole + tower) <= set("0123456789abcdef")
    with torch.no_grad():
        tiny.weights()["text_projection"].add_(1)
    other = slug.fingerprint(tiny).partition("-")
    assert other[0] != whole and other[2] == tower
    tiny.model.transformer.register_parameter("extra", torch.nn.Parameter(torch.ones(2)))
    assert len(slug.fingerprint(tiny)) == 24 and "-" not in slug.fingerprint(tiny)  # not a text tower of CLIP's


def test_edits_that_are_on_do_not_change_what_a_model_is(tiny):
    base = slug.fingerprint(tiny)
    for layer in (LAYER, OTHER, "token_embedding.weight"):
        with make(tiny, layer).on(tiny):
            assert slug.fingerprint(tiny) == slug.fingerprint(tiny.model) == base
    make(tiny).apply(tiny)
    assert slug.fingerprint(tiny) != base


def test_a_clip_and_its_model_are_one_target(tiny):
    assert as_clip(tiny) is tiny and as_clip(tiny.model).model is tiny.model
    for target in (tiny, tiny.model):
        assert modules_of(target) is tiny.model and list(weights_of(target)) == list(tiny.weights())
    ((weight, delta),) = deltas_for(tiny, make(tiny).deltas)
    assert weight is tiny.weights()[LAYER] and torch.equal(delta, make(tiny).delta)


def test_a_model_of_transformers_is_a_target_without_its_processor():
    model = transformers().model
    assert as_clip(model).model is model and modules_of(model) is model
    assert list(weights_of(model)) == [name for name, _ in model.named_parameters()]


def test_queries_keys_and_values_go_on_the_one_tensor_that_open_clip_has(tiny):
    layer = "transformer.resblocks.1.attn.in_proj_weight"
    whole = torch.randn(tiny.weights()[layer].shape, generator=torch.Generator().manual_seed(0))
    names = [f"text_model.encoder.layers.1.self_attn.{letter}_proj.weight" for letter in "qkv"]
    ((weight, delta),) = deltas_for(tiny, dict(zip(names, whole.chunk(3), strict=True)))
    assert weight is tiny.weights()[layer] and torch.equal(delta, whole)


def test_weights_that_are_not_in_memory_or_whole_numbers_take_no_edit(tiny):
    edit = make(tiny)
    parent = tiny.model.get_submodule(LAYER.rpartition(".")[0])
    for weight, message in ((parent.weight.detach().to("meta"), "meta device"), (parent.weight.int(), "torch.int32")):
        parent.weight = torch.nn.Parameter(weight, requires_grad=False)
        with pytest.raises(ValueError, match=message), edit.on(tiny, force=True):
            pass


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_same_mark_in_another_dtype_are_the_same_model(mini, dtype):
    """To the fingerprint, to an edit that goes on, and to `merge`; whichever of them it was made for."""
    other = slug.Clip(copy.deepcopy(mini.model).to(dtype), mini.tokenizer, mini.preprocess)
    one, two = slug.fingerprint(mini), slug.fingerprint(other)
    assert same_mark(one.partition("-")[0], two.partition("-")[0]) and one[:12] == two[:12]
    first, second = make(mini), make(other)
    with first.on(other), second.on(mini), slug.merge([first, second]).on(other):
        pass


@pytest.mark.parametrize("layer", [LAYER, OTHER, "visual.conv1.weight", "ln_final.weight"])
def test_other_weights_are_another_model_in_any_dtype(tiny, layer):
    base = slug.fingerprint(tiny).partition("-")[0]
    for dtype in (torch.float32, torch.float16):
        other = slug.Clip(copy.deepcopy(tiny.model), tiny.tokenizer, tiny.preprocess)
        with torch.no_grad():
            other.weights()[layer].mul_(1.1)
        other.model.to(dtype)
        assert not same_mark(base, slug.fingerprint(other).partition("-")[0])
        with pytest.raises(ValueError, match="was made for the model"), make(tiny).on(other):
            pass


def test_float8_is_refused_as_int8_is_and_does_not_disturb_elsewhere(tiny):
    edit = make(tiny)
    parent = tiny.model.get_submodule(LAYER.rpartition(".")[0])
    parent.weight = torch.nn.Parameter(parent.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(ValueError, match=r"is torch\.float8_e4m3fn; an edit goes on weights"), edit.on(tiny):
        pass
    assert len(slug.fingerprint(tiny)) > 16
