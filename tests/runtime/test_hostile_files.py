"""Folders and pictures of somebody else's: nothing in them runs, nothing is made up, and nothing takes gigabytes.

Every attack that would run Python writes a canary file. What takes memory is measured in a process of its own.
"""

import base64
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from canary import code
from PIL import Image
from safetensors.torch import load_file, save_file
from small_clips import TINY

import slug_lite as slug
from slug_lite.pretrain.clip import ClipRecipe, save_clip
from slug_lite.runtime import configs
from slug_lite.runtime.files import Header, Outline
from slug_lite.world.judge import load_judge

WEIGHTS = "open_clip_model.safetensors"
MOST = 100  # MB above the imports
LETTERS = 2_000  # of a caption


@pytest.fixture(scope="module")
def _saved(_tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    save_clip(_tiny, folder, ClipRecipe(model_cfg=TINY))
    return folder


@pytest.fixture
def folder(_saved, tmp_path):
    """A tiny CLIP in open_clip's format, for a test to make hostile."""
    return shutil.copytree(_saved, tmp_path / "tiny")


def change(file, path, value):
    """Put a value into a file of JSON: path is 'model_cfg.text_cfg.width'; None takes it out."""
    content = inside = json.loads(file.read_text())
    *first, last = path.split(".")
    for key in first:
        inside = inside.setdefault(key, {})
    inside[last] = value
    file.write_text(json.dumps(content))


def load(folder):
    return slug.load_clip(f"local-dir:{folder}", device="cpu")


def hostile_tokenizer(folder, canary, config="open_clip_config.json"):
    """A transformers tokenizer whose class is in tok.py, and a configuration, if any, that asks for it."""
    (folder / "tok.py").write_text(
        code(canary) + "class Tok:\n    from_pretrained = classmethod(lambda *a, **k: Tok())\n"
    )
    files = {
        "tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["tok.Tok", None]}, "tokenizer_class": "Tok"},
        "config.json": {"auto_map": {"AutoConfig": "tok.Tok", "AutoTokenizer": "tok.Tok"}, "model_type": "tok"},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    if config:
        change(folder / config, "model_cfg.text_cfg.hf_tokenizer_name", "tok")


@pytest.mark.parametrize("trust", [True, None], ids=["asked for", "not asked for"])
def test_a_clip_folder_runs_no_python(folder, canary, trust):
    hostile_tokenizer(folder, canary)
    if trust:
        change(folder / "open_clip_config.json", "model_cfg.text_cfg.tokenizer_kwargs", {"trust_remote_code": True})
    with pytest.raises(ValueError, match="'trust_remote_code'.*clean, strip_sep_token" if trust else "'auto_map'"):
        load(folder)


def test_an_auto_map_in_the_other_file_runs_nothing(folder, canary):
    hostile_tokenizer(folder, canary)
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(ValueError, match=r"names no tokenizer_class; allowed: .*CLIPTokenizer"):
        load(folder)


def with_tokenizer(folder, **values):
    """The tokenizer of our mini pipeline in a CLIP's folder; values: of its configuration, None takes one out."""
    shutil.copytree(Path(slug.__file__).parent / "assets" / "mini-sd" / "tokenizer", folder, dirs_exist_ok=True)
    change(folder / "open_clip_config.json", "model_cfg.text_cfg.hf_tokenizer_name", "anything")
    content = json.loads((folder / "tokenizer_config.json").read_text()) | values
    (folder / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    return folder


@pytest.mark.parametrize("named", [True, False])
def test_no_subfolder_and_no_other_configuration_names_a_tokenizer(folder, canary, named, monkeypatch):
    """A config.json's model_type, rag, led to tokenizers in subfolders, whose code ran after a "y" at the terminal."""
    with_tokenizer(folder, tokenizer_class="CLIPTokenizer" if named else None)
    part = {"model_type": "clip_text_model"}
    rag = {"model_type": "rag", "question_encoder": part, "generator": part}
    (folder / "config.json").write_text(json.dumps(rag))
    for name in ("question_encoder_tokenizer", "generator_tokenizer"):
        (folder / name).mkdir()
        hostile_tokenizer(folder / name, canary, None)
    monkeypatch.setattr("builtins.input", lambda *a: "y")
    if named:
        assert load(folder).tokens(["a cat"]).shape == (1, 24)
    else:
        with pytest.raises(ValueError, match="names no tokenizer_class"):
            load(folder)


@pytest.mark.parametrize("name", ["folder", "tag"])
def test_no_tokenizer_is_trusted_with_code(folder, monkeypatch, name):
    asked = []

    def looked(*args, **kwargs):
        asked.append(kwargs)
        raise OSError("seen")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", looked)
    if name == "folder":
        with pytest.raises(ValueError, match="seen"):
            load(with_tokenizer(folder))
    else:
        monkeypatch.setattr("slug_lite.runtime.checkpoints.download_pretrained", lambda config: "x.safetensors")
        made = (torch.nn.Linear(1, 1), None, None)
        monkeypatch.setattr("open_clip.create_model_and_transforms", lambda *a, **k: made)
        with pytest.raises(OSError, match="seen"):
            slug.load_clip("roberta-ViT-B-32/laion2b_s12b_b32k")
    assert [one["trust_remote_code"] for one in asked] == [False]


def test_a_panic_of_rust_is_an_error_and_an_interrupt_stays_one():
    """pyo3's PanicException is no Exception, so that no `except Exception` catches it."""

    class PanicException(BaseException):
        pass

    for raised, seen in ((PanicException("index out of bounds"), ValueError), (KeyboardInterrupt(), KeyboardInterrupt)):
        for bad in ("make", "tokenize"):

            def fail(*args, raised=raised):
                raise raised

            with pytest.raises(seen, match="is no tokenizer of its files: Pan" if seen is ValueError else None):
                configs.made_tokenizer(fail if bad == "make" else int, fail if bad == "tokenize" else int, "here")


LETTER = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 100}
LONG = base64.b64encode(b"\0" * 4 + b"a" * 100).decode()
BACKENDS = [
    '{"x": 1}', "nope", "[]", "[" * 100_000, '{"version": "1.0", "added_tokens": [], "model": {"type": "Foo"}}',
    '{"added_tokens": [], "model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}}',
    '{"added_tokens": [], "model": {"type": "WordLevel", "vocab": {"a": 4294967295}, "unk_token": "zz"}}',
]  # fmt: skip


@pytest.mark.parametrize("kind", ["PreTrainedTokenizerFast", "CLIPTokenizer"])
@pytest.mark.parametrize("content", BACKENDS, ids=lambda x: x[:40])
def test_a_bad_backend_is_an_error_that_says_so(folder, kind, content):
    """Rust raised a bare Exception, or what is no Exception."""
    with_tokenizer(folder, tokenizer_class=kind)
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match="token"):
        load(folder)


@pytest.mark.parametrize("name", ["open_clip_config.json", "tokenizer_config.json", "added_tokens.json"])
def test_a_configuration_is_short(folder, name):
    """In memory 64 MB of empty lists are 1.5 GB; a vocabulary alone may be as long."""
    (with_tokenizer(folder) / name).write_text("[" + "[]," * 350_000 + "[]]")
    with pytest.raises(ValueError, match=r"1,048,576"):
        load(folder)


def test_a_vocabulary_holds_no_million_lists(folder):
    (with_tokenizer(folder) / "tokenizer.json").write_text("[" + "[]," * (1 << 20) + "[]]")
    with pytest.raises(ValueError, match=r"holds 1,048,578 lists"):
        load(folder)


def make_strange(place, kind):
    """A folder, a pipe, a link to nowhere or a device, in the place of a file."""
    place.unlink(missing_ok=True)
    if kind == "folder":
        place.mkdir()
    elif kind == "pipe":
        os.mkfifo(place)
    else:
        place.symlink_to({"link": "/nowhere", "device": "/dev/zero"}[kind])


@pytest.mark.skipif(sys.platform != "linux", reason="pipes and devices are made as on Linux")
@pytest.mark.parametrize("kind", ["folder", "pipe", "link", "device"])
@pytest.mark.parametrize("name", [WEIGHTS, "open_clip_pytorch_model.bin", "z.safetensors", "merges.txt"])
def test_what_is_no_regular_file_is_refused_and_nothing_hangs(folder, name, kind):
    """open_clip took a pipe by its name, which our own check had passed over, and waited for ever."""
    with_tokenizer(folder)
    if name != "merges.txt":
        (folder / WEIGHTS).rename(folder / "model.safetensors")
    make_strange(folder / name, kind)
    if (name, kind) == ("merges.txt", "link"):  # as if there were none
        assert load(folder).tokens(["a cat"]).shape == (1, 24)
        return
    signal.alarm(60)  # what hangs ends the tests
    try:
        with pytest.raises(ValueError, match=rf"{name}' is no regular file"):
            load(folder)
    finally:
        signal.alarm(0)


@pytest.mark.skipif(sys.platform != "linux", reason="pipes and devices are made as on Linux")
@pytest.mark.parametrize("kind", ["folder", "pipe", "link", "device"])
@pytest.mark.parametrize("name", ["open_clip_config.json", "tokenizer_config.json"])
def test_a_configuration_is_a_regular_file(folder, name, kind):
    make_strange(with_tokenizer(folder) / name, kind)
    signal.alarm(60)
    try:
        with pytest.raises((ValueError, FileNotFoundError), match=name):
            load(folder)
    finally:
        signal.alarm(0)


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("normalizer", {"type": "Sequence", "normalizers": [LETTER] * 4}, "one character at most"),
        ("normalizer", {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 17}, "17 steps; 16"),
        ("normalizer", {"type": "ByteLevel"}, "allowed: BertNormalizer"),
        ("normalizer", {"type": "Prepend", "prepend": "a" * 99}, "one character at most"),
        ("normalizer", {"type": "Precompiled", "precompiled_charsmap": LONG}, "100 bytes for a letter"),
        ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "?"}, "no base64"),
        ("normalizer", [7], "a table is needed"),
        ("post_processor", {"type": "TemplateProcessing", "single": ["x"] * 10_000}, "at most 10,000"),
    ],
    ids=lambda x: str(x)[:40],
)  # fmt: skip
def test_no_step_of_a_backend_makes_much_of_a_letter(folder, part, value, message):
    change(with_tokenizer(folder) / "tokenizer.json", part, value)
    with pytest.raises(ValueError, match=message):
        load(folder)


@pytest.mark.parametrize("value", [3 * 10**6, 10**9, -1, "many"])
def test_extra_ids_are_few(folder, value):
    with_tokenizer(folder, tokenizer_class="T5Tokenizer", extra_ids=value)
    with pytest.raises(ValueError, match=r"'extra_ids' in .* from 0 to 1,000"):
        load(folder)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer_config.json", {"vocab_file": "../../outside"}, "'vocab_file'"),
        ("tokenizer_config.json", {"tokenizer_file": "/etc/passwd"}, "'tokenizer_file'"),
        ("tokenizer_config.json", {"fast_tokenizer_files": ["../tokenizer.4.0.json"]}, "'fast_tokenizer_files'"),
        ("tokenizer_config.json", {"init_inputs": ["/etc/passwd"]}, "'init_inputs'"),
        ("tokenizer_config.json", {"sp_model_kwargs": {"model_file": "/etc/passwd"}}, "sp_model_kwargs"),
        ("tokenizer_config.json", {"tokenizer_class": "BertJapaneseTokenizer"}, "tokenizer_class"),
        ("tokenizer_config.json", [], "a table is needed"),
        ("special_tokens_map.json", {"vocab_file": "../../outside"}, "'vocab_file'"),
        ("config.json", {"tokenizer_class": "CLIPTokenizer"}, "names no tokenizer_class"),  # which is not asked
    ],
    ids=str,
)  # fmt: skip
def test_a_tokenizer_names_no_path_and_no_other_class(folder, file, content, message):
    change(folder / "open_clip_config.json", "model_cfg.text_cfg.hf_tokenizer_name", "mine")
    (folder / file).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        load(folder)


def test_a_harmless_tokenizer_of_transformers_is_read(folder):
    with_tokenizer(folder)
    change(folder / "open_clip_config.json", "model_cfg.text_cfg.tokenizer_kwargs", {"clean": "canonicalize"})
    clip = load(folder)
    assert clip.tokens(["a cat"]).shape == (1, 24) and clip.tokenizer.tokenizer.name_or_path == str(folder)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("model_cfg.text_cfg.tokenizer_kwargs", {"bpe_path": "/etc/passwd"}, "'bpe_path'"),
        ("model_cfg.text_cfg.tokenizer_kwargs", {"reduction_mask": "syntax"}, "'reduction_mask'"),  # fetches pickles
        ("model_cfg.text_cfg.tokenizer_kwargs", {"cache_dir": "../.."}, "'cache_dir'"),
        ("model_cfg.text_cfg.tokenizer_kwargs", {"clean": "../x"}, "'clean'.*allowed: 'lower'"),
        ("model_cfg.text_cfg.tokenizer_kwargs", ["trust_remote_code"], "a table is needed"),
        ("model_cfg.text_cfg.tokenizer_mode", "other", "tokenizer_mode"),
        ("model_cfg.text_cfg.hf_model_name", "../../outside", "hf_model_name.*roberta-base"),
        ("model_cfg.text_cfg.hf_model_name", "/etc", "hf_model_name"),
        ("model_cfg.text_cfg.norm_kwargs", {"device": "cuda"}, "'device'"),
        ("model_cfg.text_cfg.new_key", 1, "'new_key'"),
        ("model_cfg.vision_cfg.timm_model_name", "hf-hub:someone/evil", "timm_model_name"),
        ("model_cfg.vision_cfg.timm_model_name", "local-dir:/tmp", "timm_model_name"),
        ("model_cfg.vision_cfg.timm_model_name", "../x", "timm_model_name"),
        ("model_cfg.vision_cfg.pool_type", "\x1b[2J", "pool_type"),
        ("model_cfg.output_dict", True, "'output_dict'"),
        ("model_cfg.vision_cfg", "x", "a table is needed"),
        ("preprocess_cfg.interpolation", "exec", "interpolation"),
        ("preprocess_cfg.fill", "x", "'fill'"),
    ],
    ids=str,
)  # fmt: skip
def test_only_known_keys_of_a_clip_reach_a_loader(folder, path, value, message):
    change(folder / "open_clip_config.json", path, value)
    with pytest.raises(ValueError, match=message):
        load(folder)


SIZES = [
    ("vision_cfg.width", 10**7), ("text_cfg.width", 10**7), ("text_cfg.layers", 10**6), ("vision_cfg.layers", 10**6),
    ("text_cfg.vocab_size", 10**9), ("text_cfg.context_length", 10**6), ("text_cfg.context_length", 2000),
    ("vision_cfg.image_size", 10**6), ("vision_cfg.image_size", 2048), ("vision_cfg.mlp_ratio", 1e9),
    ("vision_cfg.layers", [10**6, 1, 1, 1]), ("vision_cfg.layers", [1, 1, 1, 100]), ("text_cfg.width", -(10**7)),
    ("text_cfg.width", "wide"), ("vision_cfg.width", None), ("vision_cfg.patch_size", 0), ("embed_dim", 10**9),
    ("vision_cfg.timm_model_name", "vit_giant_patch14_dinov2"), ("text_cfg.layers", float("nan")),
    ("vision_cfg.image_size", [10**5, 1]), ("text_cfg.width", 10**400), ("text_cfg.layers", True),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value"), SIZES, ids=lambda x: str(x)[:30])
def test_sizes_are_compared_before_anything_is_built(folder, path, value, monkeypatch):
    for name in ("CLIP", "CustomTextCLIP"):
        made = getattr(open_clip, name)
        monkeypatch.setattr(f"open_clip.factory.{name}", None if value is not True else made)
    change(folder / "open_clip_config.json", f"model_cfg.{path}", value)
    start = time.perf_counter()
    with pytest.raises(ValueError, match=r"numbers at least|at most|which no CLIP has|sizes in|not those of"):
        load(folder)
    assert time.perf_counter() - start < 20


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("text_cfg.context_length", 12, r"'positional_embedding' is \[24, \d+\], and \[12, "),
        ("vision_cfg.image_size", None, r"'visual.positional_embedding' is "),
        ("init_logit_bias", -10.0, "lack 'logit_bias'"),
    ],
)
def test_nothing_is_resized_and_nothing_made_up(folder, path, value, message):
    """open_clip resized embeddings of positions to what the configuration asked for, and made a bias of zero."""
    half = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]["vision_cfg"]["image_size"] // 2
    change(folder / "open_clip_config.json", f"model_cfg.{path}", value or half)
    save_file({name: x.float() for name, x in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS)
    with pytest.raises(ValueError, match=f"not those of its configuration: .*{message}"):
        load(folder)


@pytest.mark.parametrize(
    ("spoiled", "message"),
    [
        (lambda x: x.to(torch.int8), "'visual.proj' has another kind of numbers; F16, BF16, F32, F64"),
        (lambda x: x.bool(), "another kind of numbers"),
        (lambda x: x * float("nan"), "'visual.proj' .* is not finite"),
        (lambda x: x.fill_(float("inf")), "is not finite"),
        (lambda x: x.reshape(1, *x.shape), "not those of its configuration"),
    ],
)
def test_weights_are_finite_numbers_in_their_shape(folder, spoiled, message):
    tensors = {name: value.clone() for name, value in load_file(folder / WEIGHTS).items()}
    tensors["visual.proj"] = spoiled(tensors["visual.proj"])
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(ValueError, match=message):
        load(folder)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_honest_weights_of_other_floats_names_and_a_flat_scale_are_read(folder, dtype):
    tensors = {f"module.{name}": value.to(dtype) for name, value in load_file(folder / WEIGHTS).items()}
    tensors["module.logit_scale"] = tensors["module.logit_scale"].reshape(1)
    save_file(tensors, folder / WEIGHTS)
    loaded = load(folder).weights()
    assert all(torch.equal(p, tensors[f"module.{name}"].to(p.dtype).reshape(p.shape)) for name, p in loaded.items())


KINDS = {
    "resnet": ({"image_size": 64, "layers": [1, 1, 2, 1], "width": 8, "head_width": 32}, {}, {}),
    "custom text": ({}, {}, {"custom_text": True, "quick_gelu": True}),
    "siglip": (
        {"image_size": 160, "timm_model_name": "test_vit3", "timm_pool": "map", "timm_proj": "none"},
        {"no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}},
        {"embed_dim": 96, "custom_text": True, "init_logit_bias": -10.0},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_honest_folders_of_other_kinds_are_read(tmp_path, kind):
    vision, text, top = KINDS[kind]
    config = {**TINY, "vision_cfg": vision or TINY["vision_cfg"], "text_cfg": TINY["text_cfg"] | text, **top}
    maker = open_clip.CustomTextCLIP if top.get("custom_text") else open_clip.CLIP
    model = maker(**{key: value for key, value in config.items() if key != "custom_text"})
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    save_file({name: x.clone() for name, x in model.state_dict().items()}, tmp_path / WEIGHTS)
    loaded = load(tmp_path).weights()
    assert all(torch.equal(loaded[name], p) for name, p in model.named_parameters())


def test_every_configuration_of_open_clips_own_is_known():
    """Its keys and values pass, and what it is said to have at the least is not more than it has."""
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        depth, numbers = configs._layers_and_numbers(config)
        head = Header({str(k): Outline("F32", (int(numbers) + 1,)) for k in range(depth + 1)}, {})
        if not configs._by_name(config):  # others are built of nothing, and ask the hub for what they are called
            configs.check_clip_config({"model_cfg": config}, head, name)
            if name in ("ViT-B-32", "ViT-H-14", "RN50x4", "coca_ViT-B-32", "ViT-B-32-plus-256", "ViT-L-14-336"):
                assert 0.5 < numbers / configs._built_of_nothing(config) <= 1, name


def test_names_of_before_the_text_had_a_tower_are_read(folder):
    before = load_file(folder / WEIGHTS)
    change(folder / "open_clip_config.json", "model_cfg.custom_text", True)
    loaded = load(folder).weights()
    assert all(torch.equal(before[name.removeprefix("text.")], p) for name, p in loaded.items())


def test_a_decoy_hides_nothing(folder):
    """The names of all files together would be whole; the file that is read lacks one."""
    tensors = load_file(folder / WEIGHTS)
    lost = {"visual.proj": tensors.pop("visual.proj").clone()}
    save_file({name: value.clone() for name, value in tensors.items()}, folder / WEIGHTS)
    save_file(lost, folder / "a.safetensors")
    with pytest.raises(ValueError, match="not those of its configuration"):
        load(folder)


def test_a_folder_of_transformers_is_told_how_to_be_loaded(folder):
    (folder / "open_clip_config.json").rename(folder / "config.json")
    with pytest.raises(FileNotFoundError, match=r"no open_clip_config\.json.*Clip\.from_transformers.*use_safetensors"):
        load(folder)


@pytest.mark.parametrize("name", ["openai/clip-vit-base-patch32", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"])
def test_a_name_of_the_hub_is_told_how_to_be_loaded(name):
    with pytest.raises(KeyError, match=rf"'hf-hub:{name}'.*Clip\.from_transformers"):
        slug.load_clip(name)


def test_a_clip_from_the_hub_is_loaded_under_the_same_rules(folder, tmp_path, monkeypatch, canary):
    repository, commit = tmp_path / "cache" / "models--someone--tiny", "0" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    snapshot = shutil.copytree(folder, repository / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(FileNotFoundError, match=r"'hf-hub:someone/other' is not in the hub's cache"):
        slug.load_clip("hf-hub:someone/other")
    loaded = slug.load_clip("hf-hub:someone/tiny", device="cpu")
    assert slug.fingerprint(loaded) == slug.fingerprint(load(folder))
    hostile_tokenizer(snapshot, canary)
    with pytest.raises(ValueError, match="'auto_map'"):
        slug.load_clip("hf-hub:someone/tiny")


@pytest.mark.parametrize("size", [(1, 10_000), (10_000, 1), (8193, 8192), (330, 10)])
def test_pictures_of_too_many_pixels_or_too_long_are_refused_undecoded(tiny, size):
    stored = io.BytesIO()
    Image.new("1", size).save(stored, "PNG")
    picture = Image.open(stored)
    with pytest.raises(ValueError, match=f"image 0 has {size[0]} x {size[1]} pixels; "):
        tiny.pixels([picture])
    with pytest.raises(ValueError, match="x"):
        slug.load_judge()([picture])
    if size[0] * size[1] < 1 << 20:
        with pytest.raises(ValueError, match=f"every image has {size[0]} x {size[1]} pixels"):
            slug.Pairs(np.zeros((1, size[1], size[0], 3), np.uint8), ["a"])


def test_a_picture_that_is_a_program_is_refused():
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    with pytest.raises(ValueError, match="PostScript"):
        slug.Pairs([Image.open(io.BytesIO(program))], ["a"])


def test_long_captions_are_cut_before_the_tokenizer_sees_them(tiny):
    start = time.perf_counter()
    word = tiny.tokens(["x" * 32_000, "y" * LETTERS])
    assert time.perf_counter() - start < 5 and word.shape == (2, 24)
    spaced = tiny.tokens(["a cat" + " " * 5_000 + "on a mat" + " x" * 5_000])
    assert torch.equal(spaced[0, :6], tiny.tokens(["a cat on a mat"])[0, :6])
    for caption in ("a portrait of Ada Sunfield", "ab " * (LETTERS // 3), "", " "):
        assert torch.equal(tiny.tokens([caption]), tiny.tokenizer([caption]))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("channels", [10**8, 64, 96, 128]), ("channels", [32, 64, 96]), ("channels", "x"), ("names", []),
        ("names.people", ["\x1b[2J"] * 24), ("names.people", ["x"]), ("names.people", 7),
    ],
    ids=str,
)  # fmt: skip
def test_a_judge_is_compared_with_its_weights_before_it_is_built(tmp_path, path, value):
    folder = shutil.copytree(Path(slug.__file__).parent / "assets" / "mini-judge", tmp_path / "judge")
    change(folder / "judge.json", path, value)
    with pytest.raises(ValueError, match="no whole judge"):
        load_judge(folder)


# What would take gigabytes, in a process of its own, whose high-water mark starts anew before each try
MEASURED = """
import io, json, sys, torch, timm, open_clip, slug_lite as slug
from pathlib import Path
from PIL import Image
from slug_lite.runtime.files import write_signed

Image.MAX_IMAGE_PIXELS = None
folder, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
layer = "transformer.resblocks.0.attn.out_proj.weight"
file, config = folder / "x.part", folder / "open_clip_config.json"
papers = {"format": "slug_lite edit 1", "concept": "x", "base": "0", "version": "0", "steps": json.dumps({layer: 1})}
whole, clip = config.read_text(), slug.load_clip(f"local-dir:{folder}", device="cpu")

def configuration(part, key, value):
    content = json.loads(whole)
    content["model_cfg"][part][key] = value
    config.write_text(json.dumps(content))
    return lambda: slug.load_clip(f"local-dir:{folder}", device="cpu")

def factors(side, rank):
    pair = {"left": torch.ones(side, rank).half(), "right": torch.ones(rank, side).half()}
    shapes = json.dumps({layer: [side, side]})
    write_signed(file, {f"{layer}.{name}": x for name, x in pair.items()}, papers | {"shapes": shapes})
    return lambda: slug.Edit.load(file).on(clip, force=True).__enter__()

def header(length):
    with file.open("wb") as opened:  # of holes
        opened.write(length.to_bytes(8, "little"))
        opened.truncate(2 * length)
    return lambda: slug.Edit.load(file)

def concept(length):
    write_signed(file, {layer: torch.zeros(2, 2).half()}, papers | {"concept": "x" * length})
    return lambda: slug.Edit.load(file)

def picture(width, height):
    stored = io.BytesIO()
    Image.new("1", (width, height)).save(stored, "PNG")
    return lambda: clip.pixels([Image.open(stored)])

def memory(what):
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith(what))

told = []
for what, *values in cases:
    action = globals()[what](*values)
    open("/proc/self/clear_refs", "w").write("5")
    before, error = memory("VmRSS"), None
    try:
        action()
    except ValueError as caught:
        error = str(caught)[:200]
    told.append({"case": [what, *values], "mb": memory("VmHWM") - before, "error": error})
print(json.dumps(told))
"""
HUGE = [
    ("configuration", "vision_cfg", "width", 10**7), ("configuration", "text_cfg", "layers", 10**6),
    ("configuration", "text_cfg", "vocab_size", 10**9), ("configuration", "text_cfg", "context_length", 2000),
    ("configuration", "vision_cfg", "timm_model_name", "vit_giant_patch14_dinov2"), ("factors", 100_000, 0),
    ("factors", 100_000, 1), ("factors", 16_000, 1), ("header", 1 << 29), ("concept", 10**7), ("picture", 1, 10_000),
    ("picture", 9_000, 9_000),
]  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="the high-water mark of memory is read from /proc")
def test_hostile_files_take_little_memory(folder):
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, folder, json.dumps(HUGE)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    print(*told, sep="\n")
    assert len(told) == len(HUGE) and all(one["error"] for one in told), told
    assert max(one["mb"] for one in told) <= MOST, told
