"""Edit files and configurations at random: what comes of them is an edit, a model, or an error that says why.

By default a few seconds with one seed; SLUG_LITE_FUZZ_SECONDS=3600 for an hour, SLUG_LITE_FUZZ_SEED for another start.
A failure says its seed and number, with which it comes again.
"""

import copy
import json
import os
import random
import time

import pytest
import torch
from safetensors.torch import save
from small_clips import TINY

import slug_lite as slug
from slug_lite.pretrain.clip import ClipRecipe, save_clip
from slug_lite.runtime.files import digest

SECONDS = float(os.environ.get("SLUG_LITE_FUZZ_SECONDS", 8)) / 2
SEED = int(os.environ.get("SLUG_LITE_FUZZ_SEED", 0))
LAYER = "transformer.resblocks.0.attn.out_proj.weight"
STRANGE = [
    None, True, False, 0, 1, -1, 2, 7, 0.5, 1e9, -1e300, 10**7, 10**18, 10**400, float("nan"), float("inf"), "", "x",
    "a\nb",
    "\x1b[31m", "\u202eabc", "<script>", "../../x", "/etc/passwd", "hf-hub:a/b", "x" * 1000, [], [1, 2], [10**9] * 3,
    [[1]], {}, {"a": 1}, {"trust_remote_code": True}, {"bpe_path": "/etc/passwd"}, "roberta-base/../..", "vit_nothing",
]  # fmt: skip
KEYS = [
    "trust_remote_code",
    "auto_map",
    "bpe_path",
    "timm_model_name",
    "hf_model_name",
    "custom_text",
    "norm_kwargs",
    "x",
]


def spoil(rng, table):
    """One place of a nested table, of its own choice, gets another value, another key, or is gone."""
    while True:
        inner = [key for key, value in table.items() if isinstance(value, dict) and value]
        if not inner or rng.random() < 0.3:
            break
        table = table[rng.choice(inner)]
    key = rng.choice([*table, *KEYS]) if table else "x"
    action = rng.random()
    if action < 0.15:
        table.pop(key, None)
    elif action < 0.4 and isinstance(table.get(key), (int, float)):
        table[key] = rng.choice([table[key] * 10**6, table[key] * 2, -table[key], table[key] + 1, table[key] // 2])
    else:
        table[key] = copy.deepcopy(rng.choice(STRANGE))


def trials():
    """Numbers of trials, each with its own source of chance, until the time is over; at least thirty."""
    start, k = time.monotonic(), 0
    while k < 30 or time.monotonic() - start < SECONDS:
        yield k, random.Random(f"{SEED} {k}")
        k += 1


def of_an_edit(rng):
    """The bytes of an edit file with strange papers, strange tensors, or strange bytes."""
    low = rng.random() < 0.5
    sizes = [rng.choice([0, 1, 2, 5, 32, 1000]) if rng.random() < 0.3 else 32 for _ in range(2)]
    dtype = rng.choice([torch.float16, torch.float16, torch.float16, torch.bfloat16, torch.float32, torch.int8])
    rank = rng.choice([0, 1, 1, 2, 40])
    sides = {"left": (sizes[0], rank), "right": (rank, sizes[1])}
    tensors = {f"{LAYER}.{n}": torch.ones(*size).to(dtype) for n, size in sides.items()} if low else {}
    tensors = tensors or {LAYER: torch.ones(*sizes).to(dtype)}
    papers = {
        "format": "slug_lite edit 1", "concept": "Ada Sunfield", "base": "0123456789abcdef-00ff", "version": "0.1.0",
        "steps": {LAYER: 1.5}, **({"shapes": {LAYER: sizes}} if low else {}),
    }  # fmt: skip
    for _ in range(rng.choice([0, 1, 1, 2])):
        spoil(rng, papers)
    meta = {key: value if isinstance(value, str) else json.dumps(value) for key, value in papers.items()}
    content = save(tensors, metadata={**meta, "digest": digest(tensors, meta)})
    content = bytearray(content)
    for _ in range(rng.choice([0, 0, 1, 3])):
        content[rng.randrange(len(content))] = rng.randrange(256)
    return bytes(content[: rng.randrange(len(content))] if rng.random() < 0.1 else content)


def test_edit_files_at_random(tmp_path, tiny):
    file, kinds = tmp_path / "x.safetensors", {}
    for k, rng in trials():
        file.write_bytes(of_an_edit(rng))
        try:
            edit = slug.Edit.load(file)
            with edit.on(tiny, force=True):
                said = "on"
            assert repr(edit).isprintable() and len(repr(edit)) < 2_000
        except ValueError as error:
            said = "refused"
            assert str(error) and len(str(error)) < 2_000, f"seed {SEED}, number {k}: {error}"
        except Exception as error:
            pytest.fail(f"seed {SEED}, number {k}: {type(error).__name__}: {error}")
        kinds[said] = kinds.get(said, 0) + 1
    assert kinds["refused"] > kinds["on"] > 0, kinds


def test_configurations_at_random(_tiny, tmp_path):
    folder, kinds = tmp_path / "tiny", {}
    folder.mkdir()
    save_clip(_tiny, folder, ClipRecipe(model_cfg=TINY))
    config, whole = folder / "open_clip_config.json", (folder / "open_clip_config.json").read_text()
    for k, rng in trials():
        content = json.loads(whole)
        for _ in range(rng.choice([1, 1, 2, 3])):
            spoil(rng, content)
        config.write_text(json.dumps(content))
        start = time.monotonic()
        try:
            slug.load_clip(f"local-dir:{folder}", device="cpu")
            said = "loaded"
        except (ValueError, FileNotFoundError) as error:
            said = "refused"
            assert str(error) and len(str(error)) < 2_000, f"seed {SEED}, number {k}: {error}"
        except Exception as error:
            pytest.fail(f"seed {SEED}, number {k}: {type(error).__name__}: {error} of {content}")
        assert time.monotonic() - start < 30, f"seed {SEED}, number {k}: {content}"
        kinds[said] = kinds.get(said, 0) + 1
    assert kinds["refused"] > 0 and kinds.get("loaded", 0) > 0, kinds
