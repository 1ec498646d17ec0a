"""Pipelines whose text encoder is wrapped, has more tokens, or is not where it computes."""

import pytest
import torch
from small_pipelines import close, make, same, state
from torch import nn

import slug_lite as slug
from slug_lite.diffusion.drawing import prompt_states

PROMPTS = ["a portrait of Ada Sunfield", "a cat"]


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel], ids=["compile", "DataParallel"])
def test_an_edit_goes_on_a_wrapped_text_encoder(clip, pipe, wrap):
    edit, inside, before = make(clip), pipe.text_encoder, state(pipe)
    with edit.on(pipe):
        wanted = [p.clone() for p in inside.parameters()]
    pipe.text_encoder = wrap(inside)
    for target in (pipe, pipe.text_encoder):
        with edit.on(target):
            assert same(wanted, list(inside.parameters()))
        pipe.text_encoder, outside = inside, pipe.text_encoder
        assert same(state(pipe), before)
        pipe.text_encoder = outside


def test_tokens_added_by_textual_inversion_leave_the_tower_what_it_was(clip, pipe):
    edit = make(clip)
    pipe.text_encoder.resize_token_embeddings(49408 + 3)
    assert slug.fingerprint(pipe) == "-" + slug.fingerprint(clip).partition("-")[2]
    with edit.on(pipe):
        pass
    table = pipe.text_encoder.get_input_embeddings().weight
    with torch.no_grad():
        table[: 49408 // 2] *= -1
    with pytest.raises(ValueError, match="they differ in embeddings"), edit.on(pipe):
        pass


def test_peft_in_a_text_encoder_is_named(clip, pipe):
    kind = type("Linear", (type("BaseTunerLayer", (nn.Linear,), {}),), {})
    for module in pipe.text_encoder.modules():
        if hasattr(module, "fc1"):
            module.fc1.__class__ = kind
    with pytest.raises(ValueError, match="is a Linear of PEFT"), make(clip).on(pipe):
        pass


# ---- offload: the edit takes effect, or is refused by name


def test_group_offload_without_copies_takes_the_edit(clip, pipe):
    pytest.importorskip("accelerate")
    from diffusers.hooks import apply_group_offloading

    edit = make(clip)
    with edit.on(pipe):
        wanted = prompt_states(pipe, PROMPTS)
    place = torch.device("cpu")
    apply_group_offloading(pipe.text_encoder, onload_device=place, offload_device=place, offload_type="leaf_level")
    plain = prompt_states(pipe, PROMPTS)
    with edit.on(pipe):
        assert close(prompt_states(pipe, PROMPTS), wanted) and not close(plain, wanted, 1e-3)
    assert close(prompt_states(pipe, PROMPTS), plain)


def test_group_offload_with_copies_is_refused_by_name(clip, pipe):
    """As a stream has them, which needs a GPU: weights come back from the copies, without the edit."""
    from diffusers.hooks import apply_group_offloading

    place = torch.device("cpu")
    apply_group_offloading(pipe.text_encoder, onload_device=place, offload_device=place, offload_type="leaf_level")
    groups = []
    for module in pipe.text_encoder.modules():
        for hook in getattr(getattr(module, "_diffusers_hook", None), "hooks", {}).values():
            if getattr(hook, "group", None) is not None:
                groups.append(hook.group)
    assert groups
    groups[0].cpu_param_dict = {p: p.data.clone() for p in pipe.text_encoder.parameters()}
    before = state(pipe)
    with pytest.raises(ValueError, match="group offloading with copies"), make(clip).on(pipe):
        pass
    assert same(state(pipe), before)


@pytest.mark.parametrize("way", ["sequential", "model"])
def test_offload_of_accelerate(clip, pipe, way):
    """Sequential offload leaves the weights on the meta device: refused; model offload moves them: takes effect."""
    accelerate = pytest.importorskip("accelerate")
    edit, place = make(clip), torch.device("cpu")
    with edit.on(pipe):
        wanted = prompt_states(pipe, PROMPTS)
    if way == "sequential":
        accelerate.cpu_offload(pipe.text_encoder, place)
        with pytest.raises(ValueError, match="sequential CPU offload"), edit.on(pipe):
            pass
        return
    pipe.text_encoder, hook = accelerate.cpu_offload_with_hook(pipe.text_encoder, place)
    with edit.on(pipe):
        assert close(prompt_states(pipe, PROMPTS), wanted)
        hook.offload()
        assert close(prompt_states(pipe, PROMPTS), wanted)
    assert not close(prompt_states(pipe, PROMPTS), wanted, 1e-3)
