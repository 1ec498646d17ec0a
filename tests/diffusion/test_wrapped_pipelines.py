"""Pipelines whose text encoder is wrapped, has more tokens, or is not where it computes."""

import pytest
import torch
from small_pipelines import close, make, picture, same, state
from torch import nn

import slug_lite as slug
from slug_lite.diffusion.drawing import prompt_states
from slug_lite.diffusion.unlearning import check_pipeline_of

MLP = {f"fc{k}.{kind}": f"{name}.{kind}" for k, name in ((1, "c_fc"), (2, "c_proj")) for kind in ("weight", "bias")}
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


@pytest.mark.parametrize("part", ["text_encoder", "unet"])
def test_a_parallel_part_is_refused_at_the_door(clip, pipe, part):
    """diffusers asks such a part for its dtype and configuration, which the wrapper does not have."""
    setattr(pipe, part, nn.DataParallel(getattr(pipe, part)))
    said = rf"the pipeline's {part} is a DataParallel.* pipe\.{part}\.module"
    for call in (
        lambda: slug.unlearn_pipeline(pipe, clip, "Ada Sunfield"), lambda: slug.attention_maps(pipe, "a cat"),
        lambda: slug.generated_pairs(pipe, "a cat", 1),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            call()


def test_drawing_does_not_ask_for_what_an_edit_needs(pipe):
    """PEFT's class of a layer, and group offloading with copies on disk, as a stand-in for them: both draw."""
    wanted = picture(pipe)
    kind = type("Linear", (type("BaseTunerLayer", (nn.Linear,), {}),), {})
    for module in pipe.text_encoder.modules():
        if hasattr(module, "fc1"):
            module.fc1.__class__ = kind
    assert (picture(pipe) == wanted).all() and slug.attention_maps(pipe, "a cat", steps=1).of("cat").shape == (8, 8)


def test_drawing_under_group_offload_with_copies(pipe, tmp_path):
    pytest.importorskip("accelerate")
    from diffusers.hooks import apply_group_offloading

    wanted, place = picture(pipe), torch.device("cpu")
    apply_group_offloading(
        pipe.text_encoder, onload_device=place, offload_device=place, offload_type="leaf_level",
        offload_to_disk_path=str(tmp_path),
    )  # fmt: skip
    assert abs(picture(pipe).astype(int) - wanted).max() <= 1
    with pytest.raises(ValueError, match="group offloading with copies"):
        slug.fingerprint(pipe)


# ---- weights that cannot be edited: the same sentence everywhere, and nothing that is not so before it


def float8(model):
    for weight in model.parameters():
        weight.requires_grad_(False)
        weight.data = weight.data.to(torch.float8_e4m3fn)


def test_sequential_offload_is_named_everywhere(clip, pipe):
    accelerate = pytest.importorskip("accelerate")
    accelerate.cpu_offload(pipe.text_encoder, torch.device("cpu"))
    said = r"^'[\w.]+' is on the meta device \(sequential CPU offload leaves it there\)"
    for call in (
        lambda: slug.unlearn_pipeline(pipe, clip, "Ada Sunfield"), lambda: slug.fingerprint(pipe),
        lambda: slug.fingerprint(pipe.text_encoder),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            call()
    edit = make(clip)
    accelerate.cpu_offload(clip.model, torch.device("cpu"))
    for call in (
        lambda: slug.unlearn(clip, "Ada Sunfield"), lambda: slug.fingerprint(clip), lambda: edit.check(clip),
        lambda: slug.unlearn_several(clip, ["Ada Sunfield", "Zorbo"]),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            call()


def test_float8_is_named_at_the_door(clip, pipe):
    said = r"^'[\w.]+' is torch\.float8_e4m3fn; an edit goes on weights"
    float8(pipe.text_encoder.encoder)
    with pytest.raises(ValueError, match=said):
        slug.unlearn_pipeline(pipe, clip, "Ada Sunfield")
    float8(clip.model)
    for call in (
        lambda: slug.unlearn(clip, "Ada Sunfield"), lambda: slug.unlearn_several(clip, ["Ada Sunfield", "Zorbo"]),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            call()


def test_layers_that_the_search_leaves_out_may_be_of_any_dtype(clip, pipe):
    """Of numbers that float8 has: of others the rounding alone, of up to 6 %, makes another model."""
    for name, weight in pipe.text_encoder.encoder.layers[0].mlp.named_parameters():
        rounded = weight.detach().to(torch.float8_e4m3fn).float()
        clip.weights()[f"transformer.resblocks.0.mlp.{MLP[name]}"].data.copy_(rounded)
    float8(pipe.text_encoder.encoder.layers[0].mlp)
    with pytest.raises(ValueError, match=r"float8.*freeze it in the CLIP"):
        check_pipeline_of(pipe, clip)
    for name, weight in clip.weights().items():
        if "resblocks.0.mlp" in name:
            weight.requires_grad_(False)
    check_pipeline_of(pipe, clip)


def test_weights_that_are_not_finite_are_named_at_the_door(clip, pipe):
    with torch.no_grad():
        pipe.text_encoder.get_input_embeddings().weight.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"^weights of the pipeline's text encoder are not finite: '.*token_embedding"):
        slug.unlearn_pipeline(pipe, clip, "Ada Sunfield")


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
