"""Loading: open_clip's own format, and a clear refusal of everything that is not what it should be."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from small_clips import TINY, transformers

import slug_lite as slug
from slug_lite.pretrain.clip import ClipRecipe, save_clip
from slug_lite.runtime import checkpoints

WEIGHTS = "open_clip_model.safetensors"


@pytest.fixture(scope="module")
def saved(_tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    save_clip(_tiny, folder, ClipRecipe(model_cfg=TINY))
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A tiny CLIP in open_clip's format, for a test to spoil."""
    return shutil.copytree(saved, tmp_path / "tiny")


def test_mini_is_an_open_clip_model(device):
    clip = slug.load_clip("mini", device=device)
    assert type(clip.model) is open_clip.CLIP and not clip.model.training
    assert type(clip.tokenizer) is open_clip.SimpleTokenizer and clip.tokenizer.context_length == 24
    assert clip.image_size == 64 and clip.dtype == torch.float32
    assert clip.pixels(np.zeros((2, 64, 64, 3), np.uint8)).shape == (2, 3, 64, 64)
    assert slug.fingerprint(slug.load_clip(device="cpu")) == slug.fingerprint(clip)  # where none is named


@pytest.mark.parametrize("name", ["mini", "mini-without-ada", "local-dir:here", "ViT-B-32-quickgelu/laion400m_e32"])
@pytest.mark.parametrize("gpu", [True, False])
def test_device_and_precision_reach_every_loader(name, gpu, monkeypatch):
    """None is a GPU where there is one."""
    asked = []

    def loader(what, device, precision, *rest):
        asked.append((Path(what).name, device, precision))
        return None, None, None

    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    for place in ("from_folder", "from_tag"):
        monkeypatch.setattr(checkpoints, place, loader)
    slug.load_clip(name)
    slug.load_clip(name, device="meta", precision="bf16")
    last = {"mini": "mini-clip", "mini-without-ada": "mini-clip-without-ada", "local-dir:here": "here"}
    where = last.get(name, "laion400m_e32")
    own = torch.device("cuda" if gpu else "cpu")
    assert asked == [(where, own, "fp32"), (where, torch.device("meta"), "bf16")]


def test_loading_makes_one_model_and_one_tokenizer_and_reads_the_weights_once(spy, device):
    """What takes time in it, counted."""
    work = [spy(open_clip.CLIP, "__init__"), spy(open_clip.SimpleTokenizer, "__init__")]
    work += [spy(open_clip.factory, "load_state_dict"), spy(open_clip.CLIP, "load_state_dict")]
    slug.load_clip("mini", device=device)
    assert [len(calls) for calls in work] == [1, 1, 1, 1]


def test_open_clips_own_loader_gives_the_same(folder, tiny, device):
    source = f"local-dir:{folder}"
    direct, _, _ = open_clip.create_model_and_transforms(source, device=device, require_pretrained=True)
    loaded = slug.load_clip(source, device=device)
    assert all(torch.equal(a, b) for a, b in zip(direct.parameters(), loaded.model.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(tiny.model.parameters(), loaded.model.parameters(), strict=True))
    assert slug.fingerprint(tiny) == slug.fingerprint(loaded)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_precision(folder, precision, device):
    clip = slug.load_clip(f"local-dir:{folder}", device=device, precision=precision)
    assert clip.dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    pixels = clip.pixels([Image.new("RGB", (32, 32))])
    assert pixels.dtype == clip.dtype
    for features in (clip.text_features(clip.tokens(["a cat"])), clip.image_features(pixels)):
        assert features.dtype == torch.float32 and features.norm().item() == pytest.approx(1, abs=1e-5)


def test_features_are_unit_vectors_and_sizes_are_the_models(tiny):
    pixels = tiny.pixels([Image.new("RGB", (50, 90)), Image.new("L", (10, 10))])
    assert pixels.shape == (2, 3, 32, 32)
    assert tiny.image_features(pixels).norm(dim=1).tolist() == pytest.approx([1, 1], abs=1e-5)
    assert tiny.tokens(["a", "b"]).shape == (2, 24) and tiny.image_size == 32
    assert tiny.tower("visual.proj") == "vision" and tiny.tower("ln_final.weight") == "text"
    assert tiny.tower("logit_scale") is None
    assert tiny.logit_scale().item() == pytest.approx(math.exp(tiny.model.logit_scale.item()))
    assert tiny.pixels([Image.new("RGB", (50, 90))], "meta").device.type == "meta"


def test_the_size_of_pictures_is_their_height(tiny, monkeypatch):
    monkeypatch.setattr(tiny.model.visual, "image_size", (48, 32))
    assert tiny.image_size == 48


def test_captions_of_several_lengths_are_read_to_their_ends(tiny):
    tokens = tiny.tokens(["a cat", "a portrait of a person with red hair and round glasses", "a"])
    with torch.no_grad():
        wanted = torch.nn.functional.normalize(tiny.model.encode_text(tokens), dim=-1)
        torch.testing.assert_close(tiny.text_features(tokens), wanted)


@pytest.mark.parametrize(("end", "last"), [(2, 49407), (5, 5), (49407, 49407)])
def test_the_end_token_of_the_configuration_counts_but_for_an_old_mistake(end, last):
    """Old ones say 2, a word like any other; transformers reads the position of the highest number then."""
    clip = transformers()
    clip.model.config.text_config.eos_token_id = clip.model.text_model.eos_token_id = end
    tokens = torch.tensor([[49406, 320, 2, 2368, 1929, last, *[0] * 18]])
    with torch.no_grad():
        whole = clip.model.get_text_features(input_ids=tokens).pooler_output
        torch.testing.assert_close(clip.text_features(tokens), torch.nn.functional.normalize(whole, dim=-1))


def test_a_model_of_transformers_has_its_processors_parts():
    clip = transformers()
    pixels, tokens = clip.pixels([Image.new("RGB", (40, 50))]), clip.tokens(["a cat", "a dog"])
    assert pixels.shape == (1, 3, 32, 32) and tokens.shape == (2, 24) and clip.of_transformers
    with torch.no_grad():
        whole = clip.model.get_image_features(pixel_values=pixels).pooler_output
        torch.testing.assert_close(clip.image_features(pixels), torch.nn.functional.normalize(whole, dim=-1))


def test_double_precision_stays(tiny):
    tiny.model.double()
    assert tiny.image_features(tiny.pixels([Image.new("RGB", (32, 32))])).dtype == torch.float64


def test_the_twin_that_never_saw_ada_is_another_model(mini):
    twin = slug.load_clip("mini-without-ada", device="cpu")
    assert slug.fingerprint(twin) != slug.fingerprint(mini) and list(twin.weights()) == list(mini.weights())


@pytest.mark.parametrize("name", ["mimi", "ViT-B-23/openai", "ViT-B-32", ""])
def test_unknown_names_come_with_the_nearest(name):
    with pytest.raises(KeyError, match="unknown model"):
        slug.load_clip(name)
    if name == "mimi":
        with pytest.raises(KeyError, match="did you mean 'mini'"):
            slug.load_clip(name)


def test_the_quickgelu_trap_is_named():
    with pytest.raises(ValueError, match="ViT-B-32-quickgelu/laion400m_e32"):
        slug.load_clip("ViT-B-32/laion400m_e32")


def test_weights_that_cannot_be_fetched(monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("slug_lite.runtime.checkpoints.download_pretrained", offline)
    with pytest.raises(FileNotFoundError, match="could not be fetched"):
        slug.load_clip("ViT-B-32-quickgelu/laion400m_e32")


def test_pickled_downloads_are_refused(monkeypatch):
    monkeypatch.setattr("slug_lite.runtime.checkpoints.download_pretrained", lambda config: "/cache/model.bin")
    with pytest.raises(ValueError, match="pickled"):
        slug.load_clip("ViT-B-32-quickgelu/laion400m_e32")


def test_missing_folder():
    with pytest.raises(FileNotFoundError, match="no folder"):
        slug.load_clip("local-dir:/no/such/folder")


def test_folder_without_weights(folder):
    (folder / WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match="no weights"):
        slug.load_clip(f"local-dir:{folder}")


@pytest.mark.parametrize("suffix", [".bin", ".pth", ".pt"])
def test_folder_with_pickled_weights_only(folder, suffix):
    state = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    torch.save(state, folder / f"open_clip_pytorch_model{suffix}")
    with pytest.raises(ValueError, match="pickled weights only"):
        slug.load_clip(f"local-dir:{folder}")


def test_a_pickle_beside_safetensors_is_not_opened(folder):
    """open_clip would take the pickle in two of the three cases; other values in it would tell."""
    wanted = slug.load_clip(f"local-dir:{folder}").weights()["visual.proj"].clone()
    altered = {name: value + 1 for name, value in load_file(folder / WEIGHTS).items()}
    torch.save(altered, folder / "open_clip_pytorch_model.bin")
    assert torch.equal(slug.load_clip(f"local-dir:{folder}").weights()["visual.proj"], wanted)
    for name in ("model.safetensors", "weights.safetensors"):
        (next(folder.glob("*.safetensors"))).rename(folder / name)
        with pytest.raises(ValueError, match=r"pickled open_clip_pytorch_model\.bin"):
            slug.load_clip(f"local-dir:{folder}")


def test_folder_without_configuration(folder):
    (folder / "open_clip_config.json").rename(folder / "config.json")
    with pytest.raises(FileNotFoundError, match=r"no open_clip_config\.json"):
        slug.load_clip(f"local-dir:{folder}")
    for text in ("not json", "{}", "[]"):
        (folder / "open_clip_config.json").write_text(text)
        with pytest.raises(ValueError, match="model_cfg"):
            slug.load_clip(f"local-dir:{folder}")


def test_truncated_and_foreign_weights(folder):
    whole = (folder / WEIGHTS).read_bytes()
    for content in (whole[:-100], whole[:20], b"", b"\x80\x04pickled"):
        (folder / WEIGHTS).write_bytes(content)
        with pytest.raises(ValueError, match="truncated or no safetensors"):
            slug.load_clip(f"local-dir:{folder}")
    save_file({"encoder.weight": torch.zeros(2, 2)}, folder / WEIGHTS)
    with pytest.raises(ValueError, match="not those of its configuration"):
        slug.load_clip(f"local-dir:{folder}")


def test_weights_with_a_tensor_too_many_and_an_incomplete_configuration(folder):
    save_file(load_file(folder / WEIGHTS) | {"logit_bias": torch.zeros(())}, folder / WEIGHTS)
    with pytest.raises(ValueError, match="not those of its configuration"):
        slug.load_clip(f"local-dir:{folder}")
    config = json.loads((folder / "open_clip_config.json").read_text())
    del config["model_cfg"]["text_cfg"]
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="lacks text_cfg"):
        slug.load_clip(f"local-dir:{folder}")


def test_unknown_devices_and_precisions(folder):
    with pytest.raises(RuntimeError, match="foo"):
        slug.load_clip(f"local-dir:{folder}", device="foo")
    with pytest.raises(KeyError, match="did you mean 'fp16'"):
        slug.load_clip(f"local-dir:{folder}", precision="fp61")


def test_weights_of_another_size(folder):
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["embed_dim"] = 24
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="not those of its configuration"):
        slug.load_clip(f"local-dir:{folder}")


def test_a_clip_of_ones_own(tiny, device):
    mine = slug.Clip(tiny.model, tiny.tokenizer, tiny.preprocess)
    assert mine.device.type == device.type and len(mine.weights()) == len(list(tiny.model.parameters()))


def test_bad_images(tiny):
    for images, message in (
        (np.zeros((1, 32, 32), np.uint8), "shape"),
        (np.zeros((1, 32, 32, 3), np.float64), "dtype float64"),
        (np.full((1, 32, 32, 3), np.nan, np.float32), "NaN"),
        (np.zeros((0, 32, 32, 3), np.uint8), "no images"),
    ):
        with pytest.raises(ValueError, match=message):
            tiny.pixels(images)
    with pytest.raises(ValueError, match="into a list"):
        tiny.pixels(Image.new("RGB", (32, 32)))
    with pytest.raises(ValueError, match="mode 'F'"):
        tiny.pixels([Image.fromarray(np.full((32, 32), np.nan, np.float32))])
    with pytest.raises(ValueError, match="into a list"):
        tiny.tokens("Ada Sunfield")


def test_a_copied_folder_is_the_same_model(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("copy") / "model"
    shutil.copytree(folder, other)
    assert slug.fingerprint(slug.load_clip(f"local-dir:{other}")) == slug.fingerprint(
        slug.load_clip(f"local-dir:{folder}")
    )


# ---- where a name means something else, the error says what to do


@pytest.mark.parametrize("name", [None, 3, Path("mini"), ["mini"]])
def test_names_that_are_no_text(name):
    with pytest.raises(ValueError, match=r"name is .*; give a text: 'mini', 'ARCH/TAG'"):
        slug.load_clip(name)


def test_a_path_without_its_prefix_is_told_so(folder):
    for path in (folder, folder / WEIGHTS):
        with pytest.raises(KeyError) as error:
            slug.load_clip(str(path))
        assert f"'local-dir:{folder}'" in str(error.value)


KINDS = [("clip", r"CLIPModel.from_pretrained\('o/n', "), ("siglip", "is of model_type 'siglip'"), (None, "If its m")]


@pytest.mark.parametrize(("kind", "said"), KINDS)
def test_a_repository_of_transformers_is_told_by_its_configuration(tmp_path, monkeypatch, kind, said):
    """The hub is asked for config.json only where open_clip's own is not there."""
    asked = []

    def download(repository, allow_patterns):
        asked.append(allow_patterns)
        if kind and "config.json" in allow_patterns:
            (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(FileNotFoundError, match=rf"^'hf-hub:o/n' has no open_clip_config\.json\. .*{said}") as error:
        slug.load_clip("hf-hub:o/n")
    assert len(asked) == 2 and "config.json" not in asked[0] and str(tmp_path) not in str(error.value)
    assert ("from_pretrained" in str(error.value)) is (kind != "siglip")


@pytest.mark.parametrize(
    ("text", "said"), [('{"model_type": "clip"}', "from_transformers"), ("[]", "model_type None"), ("x", "None")]
)
def test_a_folder_of_transformers_is_told_by_its_configuration(tmp_path, text, said):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(FileNotFoundError, match=rf"no open_clip_config\.json\. .*{said}"):
        slug.load_clip(f"local-dir:{tmp_path}")
