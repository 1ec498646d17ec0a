"""Pipelines from folders and from the hub's cache: as they were saved, and errors for what is lacking or damaged."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_pipelines import make, picture, pipeline

import slug_lite as slug
from slug_lite.diffusion import pipelines
from slug_lite.diffusion.text_encoder import text_encoder_from


@pytest.fixture(scope="module")
def _saved(_clip, parts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    pipeline(parts, text_encoder_from(_clip, rounded=torch.float16), torch.float16).save_pretrained(folder)
    return folder


@pytest.fixture
def saved(_saved, tmp_path):
    shutil.copytree(_saved, tmp_path / "pipe")
    return tmp_path / "pipe"


def hub_cache(folder, cache, name="someone/tiny-sd"):
    """The layout of the hub's cache: refs/main names a snapshot, whose files are links into blobs."""
    repo, commit = cache / f"models--{name.replace('/', '--')}", "0" * 40
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    for k, file in enumerate(sorted(f for f in folder.rglob("*") if f.is_file())):
        link, blob = repo / "snapshots" / commit / file.relative_to(folder), repo / "blobs" / str(k)
        for place in (link, blob):
            place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, blob)
        link.symlink_to(blob)
    return name


def test_saved_and_reloaded(clip, parts, saved, tmp_path, monkeypatch):
    wanted = pipeline(parts, text_encoder_from(clip)).to(torch.float16).to(torch.float32)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    name, edit = hub_cache(saved, tmp_path / "cache"), make(clip)
    plain, at = picture(wanted), "encoder.layers.1.self_attn.q_proj.weight"
    with edit.on(wanted):
        edited, weight = picture(wanted), wanted.text_encoder.get_parameter(at).clone()
    assert not np.array_equal(plain, edited)
    for source in (saved, str(saved), name):
        pipe = slug.load_diffusion(source, device="cpu")
        models = (pipe.unet, pipe.vae, pipe.text_encoder)
        assert {m.dtype for m in models} == {torch.float32} and not any(m.training for m in models)
        assert pipe.tokenizer("a cat", padding="max_length").input_ids[-1] == 0 and pipe.safety_checker is None
        assert np.array_equal(picture(pipe), plain)
        with edit.on(pipe):
            assert torch.equal(pipe.text_encoder.get_parameter(at), weight) and np.array_equal(picture(pipe), edited)
        assert np.array_equal(picture(pipe), plain)
    half = slug.load_diffusion(saved, device="cpu", dtype=torch.bfloat16)
    assert {m.dtype for m in (half.unet, half.vae, half.text_encoder)} == {torch.bfloat16}
    with edit.on(half):
        pass


def test_a_pickle_beside_safetensors_is_not_opened(saved):
    (saved / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04pickled")
    (saved / "text_encoder" / "pytorch_model.bin").write_bytes(b"\x80\x04pickled")
    slug.load_diffusion(saved, device="cpu")


def test_names_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(KeyError, match="did you mean 'mini'"):
        slug.load_diffusion("mimi")
    with pytest.raises(FileNotFoundError, match=r"someone/tiny-sd.*no folder here.*hub's cache"):
        slug.load_diffusion("someone/tiny-sd")
    for folder in ("/no/such/folder", "./pipe", tmp_path / "pipe"):
        with pytest.raises(FileNotFoundError, match="there is no folder"):
            slug.load_diffusion(folder)
    monkeypatch.setitem(pipelines.SHIPPED_PIPELINES, "mini", "not-there-yet")
    with pytest.raises(FileNotFoundError, match="not-there-yet"):
        slug.load_diffusion("mini")
    with pytest.raises(ValueError, match=r"dtype is torch\.int8"):
        slug.load_diffusion(tmp_path, dtype=torch.int8)
    with pytest.raises(RuntimeError, match="foo"):
        slug.load_diffusion(tmp_path, device="foo")


@pytest.mark.parametrize("part, error", [("unet", FileNotFoundError), ("text_encoder", FileNotFoundError)])
def test_missing_parts(saved, part, error):
    for file in (saved / part).glob("*.safetensors"):
        file.unlink()
    with pytest.raises(error, match=f"{part}.*no weights"):
        slug.load_diffusion(saved)
    torch.save({}, saved / part / "pytorch_model.bin")
    with pytest.raises(ValueError, match=f"{part}.*pickled weights only"):
        slug.load_diffusion(saved)
    shutil.rmtree(saved / part)
    with pytest.raises(error, match=f"has no {part}"):
        slug.load_diffusion(saved)


def test_indices_of_other_things(saved):
    index = saved / "model_index.json"
    content = json.loads(index.read_text())
    for text, message in (
        ("not json", "no pipeline's index"), ("[]", "no pipeline's index"), ("{}", "no pipeline's index"),
        (json.dumps({**content, "_class_name": "StableDiffusionXLPipeline"}), "holds a StableDiffusionXLPipeline"),
    ):  # fmt: skip
        index.write_text(text)
        with pytest.raises(ValueError, match=message):
            slug.load_diffusion(saved)
    index.unlink()
    with pytest.raises(FileNotFoundError, match=r"no model_index\.json"):
        slug.load_diffusion(saved)


def test_damaged_weights(saved):
    """Where a file lacks a tensor the libraries would make up a random one, and only warn."""
    for part in ("unet", "text_encoder"):
        file = next((saved / part).glob("*.safetensors"))
        whole, tensors = file.read_bytes(), {n: t.clone() for n, t in load_file(file).items()}
        for content in (whole[:-100], b"", b"\x80\x04pickled"):
            file.write_bytes(content)
            with pytest.raises(ValueError, match=f"{part}.*truncated or no safetensors"):
                slug.load_diffusion(saved, device="cpu")
        lost = sorted(tensors)[3]
        save_file({n: t for n, t in tensors.items() if n != lost}, file, metadata={"format": "pt"})
        with pytest.raises(ValueError, match=rf"{part}.*lack '{lost}', 1 tensors"):
            slug.load_diffusion(saved, device="cpu")
        save_file({**tensors, lost: torch.zeros(3, 5, 7)}, file, metadata={"format": "pt"})
        with pytest.raises(ValueError, match="cannot be loaded"):
            slug.load_diffusion(saved, device="cpu")
        file.write_bytes(whole)
    slug.load_diffusion(saved, device="cpu")
