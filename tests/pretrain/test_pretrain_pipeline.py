"""Mini Stable Diffusion put together: what it draws, what its folder holds, and what no shipped file may say."""

import json
import re
from importlib import resources

import numpy as np
import pytest
import torch

from slug_lite.pretrain.autoencoder import VaeRecipe, build_vae
from slug_lite.pretrain.latents import hidden_states
from slug_lite.pretrain.pipeline import sample, save_pipeline
from slug_lite.pretrain.unet import UnetRecipe, build_unet

# An absolute path of a file; no address on the net, no token or tag with a slash
PATH = re.compile(r"(?<![\w.:/\\])(?:/(?:[\w.+-]+/)+[\w.+-]+|~/\w|[A-Za-z]:\\+\w)|file://")


@pytest.fixture
def parts(_tiny):
    """A UNet and an autoencoder, untrained, of values that half precision holds."""
    width = _tiny.model.positional_embedding.shape[1]
    net = build_unet(UnetRecipe(channels=(16, 16, 32), heads=(1, 1, 2)), 2, width)
    vae = build_vae(VaeRecipe(channels=(8, 8, 16), latents=2))
    with torch.no_grad():
        for p in [*net.parameters(), *vae.parameters()]:
            p.copy_(p.half().float())
    return net, vae


def test_samples_follow_the_seed_and_the_words(parts, _tiny):
    states = hidden_states(_tiny, ["a portrait of Ada Sunfield", "a cat"]) * torch.tensor([1.0, 9.0]).view(2, 1, 1)
    nothing = hidden_states(_tiny, [""])
    a, b, c = (sample(*parts, states, nothing, seed, steps=4) for seed in (0, 0, 1))
    assert a.shape == (2, 64, 64, 3) and a.dtype == np.uint8
    assert (a == b).all() and (a != c).any() and (a[0] != a[1]).any()


def test_the_saved_pipeline_draws_what_the_parts_draw(tmp_path, parts, _tiny):
    """Tokenizer, text encoder, scheduler, latents' scale: all as in training, from the folder alone."""
    from diffusers import StableDiffusionPipeline

    net, vae = parts
    text = "a portrait of Ada Sunfield"
    states, nothing = hidden_states(_tiny, [text]), hidden_states(_tiny, [""])
    wanted = sample(net, vae, states, nothing, seed=4, steps=4)[0]
    save_pipeline(tmp_path / "pipe", vae, net, _tiny)
    assert not list((tmp_path / "pipe").rglob("*.bin"))
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "pipe", torch_dtype=torch.float32)
    for caption in (text, "", "Élan's   CAFÉ; 12 cats"):
        ids = pipe.tokenizer(caption, padding="max_length", truncation=True, return_tensors="pt").input_ids
        assert torch.equal(ids, _tiny.tokens([caption]))
    pipe.set_progress_bar_config(disable=True)
    drawn = pipe(text, num_inference_steps=4, generator=torch.Generator().manual_seed(4)).images[0]
    drawn = np.asarray(drawn).astype(int)
    assert drawn.shape == (64, 64, 3) and np.abs(drawn - wanted).max() <= 2 and wanted.std() > 1


def paths_in(folder):
    """What the JSON files below a folder say of the machine that wrote them: (file, words)."""
    files = sorted(f for suffix in ("json", "jsonl") for f in folder.rglob(f"*.{suffix}"))
    assert files
    texts = {f.relative_to(folder).as_posix(): f.read_text(encoding="utf-8") for f in files}
    named = [(file, "_name_or_path") for file, text in texts.items() if "_name_or_path" in text]
    return named + [(file, found[0]) for file, text in texts.items() for found in PATH.finditer(text)]


def test_a_saved_pipeline_does_not_say_where_its_parts_were(tmp_path, parts, _tiny):
    """Parts that were read from a folder remember it, and diffusers writes it into their configurations."""
    folders = {"unet": tmp_path / "a" / "unet", "vae": tmp_path / "a" / "vae"}
    for name, part in zip(folders, parts, strict=True):
        part.save_pretrained(folders[name])
    net, vae = (type(part).from_pretrained(folders[name]) for name, part in zip(folders, parts, strict=True))
    for name, part in (("unet", net), ("vae", vae)):
        part.save_pretrained(tmp_path / "b" / name)
    assert {what for _, what in paths_in(tmp_path / "b")} == {"_name_or_path", *map(str, folders.values())}
    save_pipeline(tmp_path / "pipe", vae, net, _tiny)
    assert paths_in(tmp_path / "pipe") == []
    for name in folders:  # all else is still there
        with_path, without = (json.loads((tmp_path / f / name / "config.json").read_text()) for f in ("b", "pipe"))
        assert without == {key: value for key, value in with_path.items() if key != "_name_or_path"}


def test_shipped_files_name_no_path_of_a_machine():
    assert paths_in(resources.files("slug_lite") / "assets") == []


@pytest.mark.parametrize("text", ['"/srv/me/x"', '"C:\\\\me"', '"kept in /a/b.c"', '"~/me"', "file:///a"])
def test_paths_are_found(text):
    assert PATH.search(text)


@pytest.mark.parametrize("text", ['"/</w>": 1, "//": 2, "/": 3', "https://a.org/b/c", "mlp/c_fc/w", "</g></svg>"])
def test_other_slashes_are_no_paths(text):
    assert not PATH.search(text)
