"""Models inside of wrappers: the same model, or an error with the wrapper's name."""

import pytest
import torch
from test_edit import LAYER, make, same, state
from torch import nn

import slug_lite as slug
from slug_lite.runtime.wrappers import unwrapped


@pytest.mark.parametrize(
    "wrap",
    [torch.compile, nn.DataParallel, lambda model: nn.DataParallel(torch.compile(nn.DataParallel(model)))],
    ids=["compile", "DataParallel", "one in another"],
)
def test_wrapped_models_are_the_models_in_them(tiny, sets, wrap):
    wrapped = wrap(tiny.model)
    clip, before, edit = slug.Clip(wrapped, tiny.tokenizer, tiny.preprocess), state(tiny), make(tiny)
    assert clip.model is tiny.model and slug.fingerprint(wrapped) == slug.fingerprint(clip) == slug.fingerprint(tiny)
    for target in (clip, wrapped):
        with edit.on(target):
            assert not torch.equal(tiny.weights()[LAYER], before[LAYER])
        assert same(state(tiny), before)
    found = slug.one_shot_gradients(clip, *sets, progress=False)
    assert {clip.tower(n) for n in found.stats.index} == {"vision", "text"}


def of_kind(name, *bases):
    return type(name, (*bases, nn.Module), {"forward": lambda self, x: x})


class Base:
    def __init__(self, model):
        nn.Module.__init__(self)
        self.inside = model


@pytest.mark.parametrize("name", ["FullyShardedDataParallel", "FSDPModule", "DeepSpeedEngine", "PeftModel"])
def test_wrappers_that_change_weights_are_named(tiny, name):
    wrapped = of_kind("Some", of_kind(name, Base))(tiny.model)
    for call in (lambda: slug.Clip(wrapped, None, None), lambda: make(tiny).check(wrapped), lambda: unwrapped(wrapped)):
        with pytest.raises(ValueError, match=f"it is a {name}, "):
            call()


def test_adapters_in_a_model_are_named(tiny):
    block = tiny.model.transformer.resblocks[0].mlp
    block.c_fc = of_kind("Linear", of_kind("BaseTunerLayer", Base))(block.c_fc)
    with pytest.raises(ValueError, match=r"'transformer.resblocks.0.mlp.c_fc' is a Linear of PEFT.*unload"):
        slug.Clip(tiny.model, None, None)


def test_what_is_not_wrapped_stays_as_it_is():
    for other in (None, 3, "clip", nn.Linear(2, 2)):
        assert unwrapped(other) is other


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel], ids=["compile", "DataParallel"])
def test_a_model_that_is_wrapped_later_is_the_model_too(tiny, sets, wrap):
    edit, before = make(tiny), state(tiny)
    clip = slug.Clip(tiny.model, tiny.tokenizer, tiny.preprocess)
    clip.model = wrap(clip.model)
    assert clip.model is tiny.model and slug.fingerprint(clip) == slug.fingerprint(tiny)
    with edit.on(clip):
        assert not torch.equal(tiny.weights()[LAYER], before[LAYER])
    assert {clip.tower(n) for n in slug.one_shot_gradients(clip, *sets, progress=False).stats.index} == {
        "vision", "text",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("wrap", "name"), [(torch.compile, "OptimizedModule"), (nn.DataParallel, "DataParallel")], ids=["compile", "DP"]
)
def test_wrapped_parts_are_named(tiny, sets, wrap, name):
    edit, forget_retain = make(tiny), sets
    tiny.model.visual = wrap(tiny.model.visual)
    said = rf"its part 'visual' is a {name}, which changes the names"
    for call in (
        lambda: slug.Clip(tiny.model, None, None), lambda: edit.check(tiny), lambda: edit.check(tiny.model),
        lambda: slug.fingerprint(tiny), lambda: slug.unlearn(tiny, *forget_retain, validate=lambda clip: {}),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            call()
