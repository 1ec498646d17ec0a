"""Pipelines of somebody else's: no Python of theirs runs, no pickle is opened, no tensor is made up."""

import inspect
import json
import os
import pickle
import shutil
import signal
import sys
import time

import numpy as np
import pytest
import torch
from canary import Bomb, code
from safetensors.torch import load_file, save_file
from small_pipelines import picture, pipeline

import slug_lite as slug
from slug_lite.diffusion.attention import attention_maps
from slug_lite.diffusion.drawing import generated_pairs, prompt_states
from slug_lite.diffusion.text_encoder import text_encoder_from
from slug_lite.runtime import pipeline_files
from slug_lite.runtime.limits import LETTERS


@pytest.fixture(scope="module")
def _saved(_clip, parts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    pipeline(parts, text_encoder_from(_clip)).save_pretrained(folder)
    return folder


@pytest.fixture
def saved(_saved, tmp_path):
    return shutil.copytree(_saved, tmp_path / "pipe")


def change(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def load(folder):
    return slug.load_diffusion(folder, device="cpu")


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler", "safety_checker"])
def test_a_component_of_ones_own_is_refused(saved, canary, part):
    (saved / part).mkdir(exist_ok=True)
    (saved / part / "mine.py").write_text(code(canary) + "class Mine:\n    pass\n")
    change(saved / "model_index.json", **{part: ["mine", "Mine"]})
    if part == "safety_checker":  # never looked at
        assert load(saved).safety_checker is None
    else:
        with pytest.raises(ValueError, match=f"{part} in .*mine"):
            load(saved)


@pytest.mark.parametrize("part, name", [("unet", "diffusers"), ("text_encoder", "transformers"), ("vae", "diffusers")])
def test_python_that_is_called_like_a_library_is_not_seen(saved, canary, part, name):
    """The oldest diffusers that is admitted asks the folder for `diffusers.py` before it asks for diffusers."""
    (saved / part / f"{name}.py").write_text(code(canary))
    load(saved)


@pytest.mark.parametrize(
    "values",
    [
        {"scheduler": ["diffusers", "StableDiffusionPipeline"]}, {"scheduler": ["os", "system"]}, {"unet": None},
        {"scheduler": "DDIMScheduler"}, {"unet": ["diffusers", "UNet3DConditionModel"]},
        {"text_encoder": ["transformers", "AutoModel"]}, {"tokenizer": ["transformers", "AutoTokenizer"]},
        {"vae": ["diffusers", "AutoModel"]}, {"_class_name": ["my_pipeline", "Mine"]},
    ],
    ids=str,
)  # fmt: skip
def test_other_classes_are_refused(saved, values):
    change(saved / "model_index.json", **values)
    with pytest.raises(ValueError, match=r"allowed|needed"):
        load(saved)


def test_keys_that_name_code_reach_no_loader(saved, canary):
    """Kernels of the hub, quantizers, automatic classes, custom pipelines: not among what a class takes."""
    evil = {
        "auto_map": {"AutoModel": "mine.Mine", "AutoTokenizer": ["mine.Mine", None], "AutoConfig": "mine.Mine"},
        "quantization_config": {"quant_method": "torchao", "load_in_4bit": True}, "custom_pipeline": "mine",
        "attn_implementation": "someone/kernel", "_attn_implementation": "someone/kernel", "trust_remote_code": True,
    }  # fmt: skip
    for file in (saved / "unet" / "config.json", saved / "vae" / "config.json", saved / "text_encoder" / "config.json",
                 saved / "scheduler" / "scheduler_config.json", saved / "model_index.json"):  # fmt: skip
        (file.parent / "mine.py").write_text(code(canary) + "class Mine:\n    pass\n")
        change(file, **evil)
    pipe = load(saved)
    assert not hasattr(pipe.text_encoder.config, "quantization_config") and "auto_map" not in pipe.unet.config
    change(saved / "tokenizer" / "tokenizer_config.json", **evil)
    with pytest.raises(ValueError, match=r"tokenizer_config\.json' holds '_attn_implementation'"):
        load(saved)


@pytest.mark.parametrize(
    "content",
    [
        '{"added_tokens": [], "model": {"type": "Foo"}}', "nope",
        '{"added_tokens": [], "model": {"type": "WordLevel", "vocab": {"a": 4294967295}, "unk_token": "zz"}}',
    ],
    ids=lambda x: x[:40],
)  # fmt: skip
def test_a_bad_tokenizer_is_an_error_that_says_so(saved, content):
    (saved / "tokenizer" / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match="token"):
        load(saved)


@pytest.mark.parametrize("value", [0, 10**9, None])
def test_a_prompt_has_no_billion_tokens(saved, value):
    change(saved / "tokenizer" / "tokenizer_config.json", model_max_length=value)
    with pytest.raises(ValueError, match=r"model_max_length in .*from 1 to 4,096|is no tokenizer"):
        load(saved)


def sharded(folder, name, places=None):
    """A model's weights in two files with an index; places: what the index says of all tensors instead."""
    tensors = {n: t.clone() for n, t in load_file(folder / f"{name}.safetensors").items()}
    (folder / f"{name}.safetensors").unlink()
    names, told = sorted(tensors), {}
    for k, some in enumerate((names[::2], names[1::2])):
        save_file({n: tensors[n] for n in some}, folder / f"{name}-{k}.safetensors", metadata={"format": "pt"})
        told |= dict.fromkeys(some, f"{name}-{k}.safetensors")
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(told, places[0]) if places else told}
    (folder / f"{name}.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(("part", "name"), [("text_encoder", "model"), ("unet", "diffusion_pytorch_model")])
def test_an_index_names_safetensors_beside_it_alone(saved, canary, part, name, tmp_path):
    before = picture(load(saved))
    outside = tmp_path / "outside.bin"
    outside.write_bytes(pickle.dumps(Bomb(canary)))
    whole = shutil.copytree(saved / part, tmp_path / "whole")
    for place in ("../../outside.bin", str(outside), "model.bin", "..\\x.safetensors", "", 7, None, "a/b.safetensors"):
        shutil.rmtree(saved / part)
        shutil.copytree(whole, saved / part)
        sharded(saved / part, name, [place])
        with pytest.raises(ValueError, match="beside it is allowed"):
            load(saved)
    shutil.rmtree(saved / part)
    shutil.copytree(whole, saved / part)
    sharded(saved / part, name)
    assert np.array_equal(picture(load(saved)), before)  # an honest one is read
    (saved / part / f"{name}-1.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="is not there"):
        load(saved)


def test_an_index_beside_the_whole_file_is_not_read(saved, canary, tmp_path):
    (tmp_path / "outside.bin").write_bytes(pickle.dumps(Bomb(canary)))
    for part, name in (("text_encoder", "model"), ("unet", "diffusion_pytorch_model")):
        places = dict.fromkeys(load_file(saved / part / f"{name}.safetensors"), "../../outside.bin")
        index = {"metadata": {}, "weight_map": places}
        (saved / part / f"{name}.safetensors.index.json").write_text(json.dumps(index))
    load(saved)


@pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', "no json", "[" * 100_000])
def test_an_index_of_something_else(saved, content):
    (saved / "unet" / "diffusion_pytorch_model.safetensors").rename(saved / "unet" / "x.safetensors")
    (saved / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(content)
    with pytest.raises(ValueError, match=r"weight_map|cannot be read"):
        load(saved)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_decoy_hides_nothing(saved, part):
    """A tensor that the file lacks stood in another one: it was made random, and nobody said so."""
    file = next((saved / part).glob("*.safetensors"))
    tensors = {n: t.clone() for n, t in load_file(file).items()}
    lost = sorted(tensors)[3]
    save_file({lost: tensors.pop(lost)}, saved / part / "a.safetensors", metadata={"format": "pt"})
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"{part}.*lack '{lost.removeprefix('text_model.')}', 1 tensors"):
        load(saved)


def test_weights_by_another_name_are_not_read(saved):
    file = saved / "unet" / "diffusion_pytorch_model.safetensors"
    file.rename(file.with_name("diffusion_pytorch_model.fp16.safetensors"))
    with pytest.raises(FileNotFoundError, match=r"unet.*no diffusion_pytorch_model\.safetensors.*it has .*fp16"):
        load(saved)


@pytest.mark.parametrize(
    ("part", "values"),
    [
        ("text_encoder", {"num_hidden_layers": 0}), ("text_encoder", {"num_hidden_layers": 1}),
        ("text_encoder", {"num_hidden_layers": 10**6}), ("text_encoder", {"hidden_size": 10**7}),
        ("text_encoder", {"hidden_size": 10**5}), ("text_encoder", {"vocab_size": 10**9}),
        ("text_encoder", {"max_position_embeddings": 10**7}), ("text_encoder", {"intermediate_size": 65}),
        ("text_encoder", {"num_attention_heads": 0}), ("text_encoder", {"hidden_act": "exec"}),
        ("unet", {"layers_per_block": 10**6}), ("unet", {"layers_per_block": 2}), ("unet", {"block_out_channels": [8]}),
        ("unet", {"block_out_channels": [10**5, 10**5]}), ("unet", {"cross_attention_dim": 10**9}),
        ("unet", {"transformer_layers_per_block": 10**6}), ("unet", {"down_block_types": ["DownBlock2D"] * 10**5}),
        ("unet", {"attention_head_dim": float("nan")}), ("unet", {"sample_size": 10**6}), ("unet", {"in_channels": 5}),
        ("vae", {"block_out_channels": [10**5, 10**5]}), ("vae", {"latent_channels": 10**6}),
        ("vae", {"layers_per_block": 10**6}), ("vae", {"act_fn": "\x1b[2J"}), ("unet", {"act_fn": ["a"] * 99}),
        ("scheduler", {"num_train_timesteps": 10**10}), ("scheduler", {"trained_betas": [2.0]}),
        ("scheduler", {"trained_betas": [0.1] * 10**5}), ("scheduler", {"beta_end": float("nan")}),
    ],
    ids=lambda x: str(x)[:50],
)  # fmt: skip
def test_configurations_are_compared_with_the_weights(saved, part, values):
    file = saved / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
    change(file, **values)
    start = time.perf_counter()
    with pytest.raises(ValueError, match=rf"(?s){part}"):
        load(saved)
    assert time.perf_counter() - start < 20


@pytest.mark.parametrize(
    ("part", "values"),
    [
        ("unet", {"layers_per_block": 32, "transformer_layers_per_block": 16}),
        ("unet", {"layers_per_block": [32] * 8, "transformer_layers_per_block": [16] * 8}),
        ("unet", {"layers_per_block": 2, "transformer_layers_per_block": [[16, 16]] * 8}),
        ("vae", {"layers_per_block": 64}),
    ],
    ids=str,
)  # fmt: skip
def test_loops_within_loops_are_multiplied_before_anything_is_built(saved, part, values, monkeypatch):
    """Eight blocks of 32 layers of 16 each took 38 s and 718 MB."""
    kinds = (
        ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D") if part == "unet" else ("DownEncoderBlock2D", "UpDecoderBlock2D")
    )
    change(
        saved / part / "config.json", down_block_types=[kinds[0]] * 8, up_block_types=[kinds[1]] * 8,
        block_out_channels=[32] * 8, **values,
    )  # fmt: skip
    build, built = pipeline_files._built, []
    monkeypatch.setattr(pipeline_files, "_built", lambda *a: built.append(a[0]) or build(*a))
    with pytest.raises(ValueError, match=rf"{part}.*asks for [\d,]+ tensors at least; the file has"):
        load(saved)
    assert part not in built


def test_what_diffusers_builds_by_default_has_no_fewer_tensors_than_is_said():
    import diffusers

    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    vae = blocks | {"block_out_channels": [32] * 4, "layers_per_block": 2}
    for kind, more in (
        ("UNet2DConditionModel", {}), ("AutoencoderKL", vae),
        ("UNet2DConditionModel", {"transformer_layers_per_block": [1, 2, 3, 4], "layers_per_block": [1, 2, 1, 2]}),
    ):  # fmt: skip
        with torch.device("meta"):
            model = getattr(diffusers, kind)(**more)
        assert 0.3 < pipeline_files._least_tensors({"_class_name": kind, **more}) / len(model.state_dict()) <= 1


@pytest.mark.skipif(sys.platform != "linux", reason="pipes are made as on Linux")
@pytest.mark.parametrize(
    "name",
    ["unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors", "vae/config.json",
     "model_index.json", "tokenizer/vocab.json", "scheduler/scheduler_config.json"],
)  # fmt: skip
def test_a_pipe_in_the_place_of_a_file_is_refused_and_nothing_hangs(saved, name):
    (saved / name).unlink(missing_ok=True)
    os.mkfifo(saved / name)
    signal.alarm(60)  # what hangs ends the tests
    try:
        with pytest.raises((ValueError, FileNotFoundError), match=name.split("/")[-1]):
            load(saved)
    finally:
        signal.alarm(0)


@pytest.mark.parametrize("content", ["[]", "no json", "7", "[" * 100_000, ""])
@pytest.mark.parametrize("part", ["unet", "text_encoder", "scheduler"])
def test_configurations_of_something_else(saved, part, content):
    (saved / part / ("scheduler_config.json" if part == "scheduler" else "config.json")).write_text(content)
    with pytest.raises(ValueError, match=part):
        load(saved)


def test_what_the_loader_sees_is_gone_and_what_was_given_is_remembered(saved):
    pipe = load(saved)
    assert pipe.config._name_or_path == str(saved) and pipe.unet.config._name_or_path == str(saved / "unet")
    assert pipe.tokenizer.name_or_path == str(saved / "tokenizer")
    again = shutil.copytree(saved, saved.parent / "again")
    pipe.save_pretrained(again)
    assert np.array_equal(picture(load(again)), picture(pipe))


@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_every_tensor_comes_from_the_files(saved, prefix):
    """transformers 4 and 5 name those of a text encoder differently; each made random what the other had written."""
    file = saved / "text_encoder" / "model.safetensors"
    tensors = {prefix + n.removeprefix("text_model."): t.clone() for n, t in load_file(file).items()}
    position = {f"{prefix}embeddings.position_ids": torch.arange(24)[None]}  # in files of long ago
    save_file(tensors | position, file, metadata={"format": "pt"})
    pipe = load(saved)
    for part, name in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
    ):
        wanted = {n.removeprefix("text_model."): t for n, t in load_file(saved / part / f"{name}.safetensors").items()}
        found = dict(getattr(pipe, part).named_parameters())
        assert found and all(torch.equal(wanted[n.removeprefix("text_model.")], p) for n, p in found.items())
    assert not pipe.text_encoder.training and pipe.text_encoder.dtype == torch.float32


def test_names_of_long_ago_are_still_read(saved):
    """Attention of the first Stable Diffusions; diffusers translates them."""
    file = saved / "vae" / "diffusion_pytorch_model.safetensors"
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    tensors, before = {}, load(saved).vae.state_dict()
    for name, tensor in load_file(file).items():
        for new, was in old.items():
            name = name.replace(new, was)
        tensors[name] = tensor.clone()
    assert any(".query." in name for name in tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    assert all(torch.equal(before[name], tensor) for name, tensor in load(saved).vae.state_dict().items())


def test_only_one_loader_reads_pipelines():
    """Whoever adds another has to think of all this again."""
    from slug_lite.diffusion import pipelines

    assert inspect.getsource(pipelines).count("from_pretrained(") == 1


def test_long_prompts_are_cut_before_the_tokenizer_sees_them(pipe, monkeypatch):
    """A word of 32,000 letters is put together from its letters in 8.7 s."""
    seen, tokenize = [], type(pipe.tokenizer).__call__

    def looked(self, text, *rest, **more):
        seen.extend([text] if isinstance(text, str) else text)
        return tokenize(self, text, *rest, **more)

    monkeypatch.setattr(type(pipe.tokenizer), "__call__", looked)
    long = "x" * 32_000
    generated_pairs(pipe, long, 1, steps=1)
    assert seen and max(map(len, seen)) == LETTERS
    seen.clear()
    attention_maps(pipe, long, steps=1)
    assert seen and max(map(len, seen)) == LETTERS
    seen.clear()
    assert prompt_states(pipe, [long, "a"]).shape[:2] == (2, 24) and set(map(len, seen)) == {1, LETTERS}
