"""What holds for any edits in any order: nesting, saving and loading, merging, carrying between libraries."""

import copy
import math

import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from small_clips import made

import slug_lite as slug
from slug_lite.runtime import stacks
from slug_lite.runtime.modes import eval_mode

# The same examples at every run; models are shared by all, so that what one leaves behind the next one meets.
few = settings(
    max_examples=50, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture], print_blob=False, phases=[Phase.generate],
)  # fmt: skip
seeds = st.integers(0, 2**31 - 1)


def state(clip):
    return {name: tensor.clone() for name, tensor in clip.model.state_dict().items()}


def same(a, b):
    return all(torch.equal(a[n], b[n]) for n in a)


def clip_of(name, dtype=torch.float32):
    clip = made(name)
    return slug.Clip(copy.deepcopy(clip.model).to(dtype), clip.tokenizer, clip.preprocess)


TARGETS = {
    (name, dtype): clip_of(name, dtype)
    for name in ("vit", "resnet", "transformers") for dtype in (torch.float32, torch.float16, torch.bfloat16)
}  # fmt: skip


def layers_of(clip):
    """Those that can be edited, but for the token table: large, and no other than the others."""
    return [n for n, weight in clip.weights().items() if slug.editable(n, weight) and weight.numel() < 100_000]


@st.composite
def an_edit(draw, clip, most=3):
    """Any layers, sizes from nothing to as large as half precision has, of full or of low rank."""
    layers = draw(st.lists(st.sampled_from(layers_of(clip)), min_size=1, max_size=most, unique=True))
    size = draw(st.sampled_from([0.0, 1e-7, 1e-3, 0.3, 100.0]))
    generator = torch.Generator().manual_seed(draw(seeds))
    deltas = {n: (size * torch.randn(clip.weights()[n].shape, generator=generator)).half() for n in layers}
    steps = {n: draw(st.floats(allow_nan=False, allow_infinity=False, width=32)) for n in layers}
    name = draw(st.sampled_from(["Ada Sunfield", "Zoë", "猫", "a cat, in clay", "x" * 300]))
    edit = slug.Edit(deltas, steps, name, slug.fingerprint(clip))
    rank = draw(st.sampled_from([None, None, 1, 2, 8]))
    return edit if rank is None or any(d.ndim < 2 for d in deltas.values()) else edit.low_rank(rank)


@few
@given(st.data(), st.sampled_from(list(TARGETS)))
def test_edits_come_off_bit_for_bit_in_any_order(data, which):
    """Whatever is inside: other edits, modes, flags and gradients that change, an error."""
    clip = TARGETS[which]
    before, flags = state(clip), [p.requires_grad for p in clip.model.parameters()]
    modes = [module.training for module in clip.model.modules()]
    on = []
    for _ in range(data.draw(st.integers(1, 8))):
        what = data.draw(st.sampled_from(["on", "on", "off", "mode"]))
        if what == "off" and on:
            ended = data.draw(st.sampled_from([None, ValueError]))
            on.pop(data.draw(st.integers(0, len(on) - 1))).__exit__(ended, ended and ended(), None)
        elif what == "on":
            on.append(data.draw(an_edit(clip)).on(clip))
            on[-1].__enter__()
        else:
            on.append(eval_mode(clip.model))
            on[-1].__enter__()
    while on:
        on.pop(data.draw(st.integers(0, len(on) - 1))).__exit__(None, None, None)
    assert same(state(clip), before) and not stacks.STACKS
    assert [p.requires_grad for p in clip.model.parameters()] == flags
    assert [module.training for module in clip.model.modules()] == modes


@few
@given(st.data(), st.sampled_from(list(TARGETS)))
def test_what_is_loaded_is_what_was_saved(tmp_path, data, which):
    """To the last bit, layers in their order, papers too; and it does to a model what the first one does."""
    clip = TARGETS[which]
    edit = data.draw(an_edit(clip))
    again = slug.Edit.load(edit.save(tmp_path / "edit.safetensors"))
    assert again.layers == edit.layers and again.steps == edit.steps and again.concept == edit.concept
    assert (again.base, again.version) == (edit.base, edit.version)
    assert all(torch.equal(again.deltas[n], edit.deltas[n]) and again.deltas[n].dtype == edit.deltas[n].dtype
               for n in edit.layers)  # fmt: skip
    with edit.on(clip):
        wanted = state(clip)
    with again.on(clip):
        assert same(state(clip), wanted)


@few
@given(st.data())
def test_merged_edits_are_their_sum_in_any_order(data):
    """In exact numbers what the parts do one after the other, to the rounding of half precision."""
    clip = TARGETS["vit", torch.float32]
    edits = data.draw(st.lists(an_edit(clip), min_size=1, max_size=4))
    sizes = [delta.abs().max().item() for edit in edits for delta in edit.deltas.values()]
    order = data.draw(st.permutations(edits))
    merged, other = slug.merge(edits), slug.merge(order)
    assert set(merged.layers) == set(other.layers) == {layer for edit in edits for layer in edit.layers}
    for layer in merged.layers:
        whole = sum(edit.deltas[layer].double() for edit in edits if layer in edit.deltas)
        # a sum of n halves, and where all are of low rank the product of their factors, side by side
        slack = 2e-3 * len(edits) * max(sizes) + 1e-7 * len(edits)
        assert (merged.deltas[layer].double() - whole).abs().max() <= slack
        assert (merged.deltas[layer].double() - other.deltas[layer].double()).abs().max() <= slack
    before = state(clip)
    with merged.on(clip):
        assert all(torch.equal(state(clip)[n], before[n]) for n in before if n not in merged.layers)
    assert same(state(clip), before)


@few
@given(st.data(), st.sampled_from([torch.float32, torch.float16, torch.bfloat16]), st.sampled_from(["vit", "resnet"]))
def test_an_edit_goes_on_the_same_weights_in_any_dtype(data, dtype, name):
    edit = data.draw(an_edit(TARGETS[name, torch.float32]))
    target = TARGETS[name, dtype]
    before = state(target)
    with edit.on(target):
        now = state(target)
        for layer, delta in edit.deltas.items():
            wanted = (before[layer].float() + delta.float()).to(dtype)
            assert torch.allclose(now[layer].float(), wanted.float(), rtol=1e-2, atol=1e-2 * float(wanted.abs().max()))
    assert same(state(target), before)


@few
@given(st.data())
def test_an_edit_means_the_same_in_either_library(data):
    """An edit of open_clip's text tower on transformers' text encoder with the same weights, whatever the layers."""
    clip = TARGETS["vit", torch.float32]
    encoder = _encoder(clip)
    names = dict(encoder.named_parameters())
    text = [n for n in layers_of(clip) if clip.tower(n) == "text" and n != "text_projection"]  # no encoder has that
    layer = data.draw(st.sampled_from(text))
    generator = torch.Generator().manual_seed(data.draw(seeds))
    delta = (0.3 * torch.randn(clip.weights()[layer].shape, generator=generator)).half()
    edit = slug.Edit({layer: delta}, {layer: 1.0}, "x", slug.fingerprint(clip))
    captions = data.draw(st.lists(st.text("abc xyz,é", min_size=1, max_size=20), min_size=1, max_size=3))
    ids = clip.tokens(captions)
    before = {n: p.detach().clone() for n, p in names.items()}
    with edit.on(clip), edit.on(encoder), torch.no_grad():
        ours = clip.model.encode_text(ids)
        theirs = encoder(input_ids=ids).pooler_output @ clip.model.text_projection
    assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4 * float(ours.abs().max()))
    assert all(torch.equal(before[n], p) for n, p in names.items()) and math.isfinite(float(ours.sum()))


_ENCODERS = {}


def _encoder(clip):
    if "vit" not in _ENCODERS:
        from slug_lite.diffusion.text_encoder import text_encoder_from

        _ENCODERS["vit"] = text_encoder_from(clip)
    return _ENCODERS["vit"]
