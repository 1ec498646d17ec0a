"""Edit files of somebody else's: what is no edit is refused by name, and what is one is owned."""

import json
import os
import struct
import threading
import time

import pytest
import torch

import slug_lite as slug
from slug_lite.runtime.files import write_signed

LAYER = "transformer.resblocks.0.attn.out_proj.weight"
OTHER = "transformer.resblocks.1.attn.out_proj.weight"
RIGHT_TO_LEFT, ESCAPE = "\u202e", "\x1b[2J"


def make(clip, layer=LAYER, concept="Ada Sunfield", seed=0):
    generator = torch.Generator().manual_seed(seed)
    delta = 0.3 * torch.randn(clip.weights()[layer].shape, generator=generator)
    return slug.Edit({layer: delta.half()}, {layer: 1.5}, concept, slug.fingerprint(clip))


def forge(file, tensors=None, **papers):
    """An edit file with a right digest, and other papers; None takes one out."""
    tensors = {LAYER: torch.zeros(2, 2).half()} if tensors is None else tensors
    steps = papers.pop("steps", {LAYER: 1.0})
    known = {"format": "slug_lite edit 1", "concept": "a cat", "base": "0123456789abcdef", "version": "0.1.0"}
    meta = known | {"steps": steps if isinstance(steps, str) or steps is None else json.dumps(steps)} | papers
    write_signed(file, tensors, {key: text for key, text in meta.items() if text is not None})
    return file


def factors(out, rank, side, shape=None):
    tensors = {f"{LAYER}.left": torch.ones(out, rank).half(), f"{LAYER}.right": torch.ones(rank, side).half()}
    return tensors, json.dumps({LAYER: shape or [out, side]})


def test_forging_can_make_a_good_one(tmp_path):
    assert slug.Edit.load(forge(tmp_path / "good.safetensors")).step == 1.0
    tensors, shapes = factors(4, 2, 6, [4, 3, 2])
    edit = slug.Edit.load(forge(tmp_path / "low.safetensors", tensors, shapes=shapes))
    assert torch.equal(edit.delta, torch.full((4, 3, 2), 2.0).half())


@pytest.mark.parametrize("key", ["steps", "concept", "base", "version"])
def test_a_missing_paper_is_named(tmp_path, key):
    with pytest.raises(ValueError, match=f"lack {key}"):
        slug.Edit.load(forge(tmp_path / "x.safetensors", **{key: None}))


@pytest.mark.parametrize(
    "steps",
    [
        {LAYER: float("nan")}, {LAYER: float("inf")}, {LAYER: "1.0"}, {LAYER: [1.0]}, {LAYER: None}, {LAYER: True},
        [1.0], 1.0, {}, {OTHER: 1.0}, {LAYER: 1.0, OTHER: 1.0}, "no json", "[" * 100_000, "9" * 5_000,
        f'{{"{LAYER}": {"9" * 400}}}', {"": 1.0}, {"a\nb": 1.0}, {"a" * 1000: 1.0},
    ],
    ids=lambda steps: str(steps)[:40],
)  # fmt: skip
def test_forged_steps(tmp_path, steps):
    with pytest.raises(ValueError, match=r"step|layer's name"):
        slug.Edit.load(forge(tmp_path / "x.safetensors", steps=steps))


@pytest.mark.parametrize(
    ("concept", "message"),
    [
        ("x" * 10_001, "10,001 characters"), (f"Ada{ESCAPE}", "control character"), ("a\nb", "control character"),
        (f"Ada {RIGHT_TO_LEFT}drac", "control character"), ("Ada\x00", "control character"), ("", "is ''"),
        ("<script>alert(1)</script>", "HTML"), ("<img src=x onerror=alert(1)", "HTML"), ("  ", "a text is needed"),
        ("a\u2028b", "control character"), ("<b>", "HTML"), ("<SVG>", "HTML"), ("</cat-toy>", "HTML"), ("<!--", "HTML"),
        ("<cat-toy onclick=alert(1)>", "HTML"), ("<cat-toy", "HTML"), ("<cat-toy> <script>", "HTML"), ("<a/b>", "HTML"),
    ],
    ids=lambda x: ascii(x)[:30],
)  # fmt: skip
def test_forged_concepts(tmp_path, concept, message):
    with pytest.raises(ValueError, match=message) as caught:
        slug.Edit.load(forge(tmp_path / "x.safetensors", concept=concept))
    assert len(str(caught.value)) < 600 and str(caught.value).isprintable()


LANGUAGES = ["Beyoncé", "神奈川沖浪裏", "نمی‌خواهم", "👩‍🚀", "5 < 6", "a & b", "x" * 9_999]


@pytest.mark.parametrize("concept", [*LANGUAGES, "<cat-toy>", "a photo of <sks> + <my_dog2>", "<*>"])
def test_names_of_every_language_pass(tmp_path, tiny, concept):
    assert slug.Edit.load(make(tiny, concept=concept).save(tmp_path / "x.safetensors")).concept == concept


def test_a_concept_of_ten_million_letters(tmp_path):
    with pytest.raises(ValueError, match="header has"):
        slug.Edit.load(forge(tmp_path / "x.safetensors", concept="x" * 10_000_000))


@pytest.mark.parametrize(
    ("key", "text"), [("base", "a b"), ("base", "x" * 9_000), ("version", ESCAPE), ("base", "<b>")]
)
def test_forged_marks(tmp_path, key, text):
    with pytest.raises(ValueError, match=f"{key} of"):
        slug.Edit.load(forge(tmp_path / "x.safetensors", **{key: text}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int16, torch.bool, torch.complex64])
def test_other_dtypes(tmp_path, dtype):
    with pytest.raises(ValueError, match="F16 or BF16"):
        slug.Edit.load(forge(tmp_path / "x.safetensors", {LAYER: torch.zeros(2, 2, dtype=dtype)}))


def test_no_numbers_that_are_not_finite(tmp_path):
    with pytest.raises(ValueError, match="not finite"):
        slug.Edit.load(forge(tmp_path / "x.safetensors", {LAYER: torch.full((2, 2), float("nan")).half()}))
    tensors, shapes = factors(2, 1, 2)
    large = {name: tensor * 60_000 for name, tensor in tensors.items()}
    edit = slug.Edit.load(forge(tmp_path / "y.safetensors", large, shapes=shapes))
    with pytest.raises(ValueError, match="not finite"):
        _ = edit.delta


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ((100_000, 0, 100_000), None), ((0, 1, 4), None), ((4, 2, 4), [4, 5]), ((4, 2, 4), [2, 8]),
        ((4, 2, 4), [4, 2, -2, -1]), ((4, 2, 4), [4, 4.0]), ((4, 2, 4), [4, True, 4]), ((4, 2, 4), [16]),
        ((4, 2, 4), [4, 4, 0]), ((4, 2, 4), "44"), ((4, 2, 4), [1] * 7), ((4, 2, 4), []), ((4, 2, 4), [10**30, 4]),
    ],
    ids=str,
)  # fmt: skip
def test_shapes_and_ranks_that_do_not_fit(tmp_path, sizes, shape):
    tensors, shapes = factors(*sizes, shape)
    shapes = json.dumps({LAYER: shape}) if shape == [] else shapes
    with pytest.raises(ValueError, match=r"factors of|shape of"):
        slug.Edit.load(forge(tmp_path / "x.safetensors", tensors, shapes=shapes))


def test_factors_of_a_layer_too_few_or_too_many(tmp_path):
    tensors, shapes = factors(4, 2, 4)
    for wrong in ({f"{LAYER}.left": tensors[f"{LAYER}.left"]}, tensors | {"more": torch.zeros(1).half()}):
        with pytest.raises(ValueError, match=r"\.left and \.right"):
            slug.Edit.load(forge(tmp_path / "x.safetensors", wrong, shapes=shapes))
    with pytest.raises(ValueError, match="one dtype"):
        mixed = tensors | {f"{LAYER}.left": tensors[f"{LAYER}.left"].bfloat16()}
        slug.Edit.load(forge(tmp_path / "x.safetensors", mixed, shapes=shapes))


def test_a_product_is_made_for_a_weight_of_its_shape_alone(tmp_path, tiny, monkeypatch):
    """A file of 800 kB asks for 20 GB: the factors of rank 1 of a weight with 100,000 rows and columns."""
    tensors, shapes = factors(100_000, 1, 100_000)
    edit = slug.Edit.load(forge(tmp_path / "x.safetensors", tensors, shapes=shapes))
    assert edit.layers == [LAYER]
    made = []
    monkeypatch.setattr("slug_lite.runtime.edit_files.product", lambda *args: made.append(args))
    with (
        pytest.raises(ValueError, match=r"is \(100000, 100000\), the model's"),
        edit.on(tiny, force=True),
    ):
        pass
    with pytest.raises(ValueError, match="at most 268,435,456 numbers"):
        _ = edit.delta
    assert not made


def test_what_happens_to_the_file_later_is_nothing_to_the_edit(tmp_path, tiny):
    file = make(tiny).save(tmp_path / "x.safetensors")
    edit = slug.Edit.load(file)
    before, size = edit.delta.clone(), file.stat().st_size
    with file.open("r+b") as opened:  # in place, as cp does
        opened.seek(size - before.numel() * 2)
        opened.write(b"\0" * before.numel() * 2)
    assert torch.equal(edit.delta, before)
    os.truncate(file, 0)  # a mapped tensor would end the process here, by SIGBUS
    assert torch.equal(edit.delta, before)


def test_one_tensor_under_two_layers(tmp_path, tiny):
    delta = make(tiny).delta
    edit = slug.Edit({LAYER: delta, OTHER: delta}, {LAYER: 1.0, OTHER: 1.0}, "x", slug.fingerprint(tiny))
    again = slug.Edit.load(edit.save(tmp_path / "x.safetensors"))
    assert torch.equal(again.deltas[LAYER], delta) and torch.equal(again.deltas[OTHER], delta)
    halves = torch.randn(64, 32).half()  # two views of one memory
    edit = slug.Edit({LAYER: halves[:32], OTHER: halves[32:]}, {LAYER: 1.0, OTHER: 1.0}, "x", slug.fingerprint(tiny))
    again = slug.Edit.load(edit.save(tmp_path / "x.safetensors"))
    assert torch.equal(again.deltas[LAYER], halves[:32]) and torch.equal(again.deltas[OTHER], halves[32:])


def test_a_link_is_followed(tmp_path, tiny):
    (tmp_path / "store").mkdir()
    file, link = tmp_path / "store" / "real.safetensors", tmp_path / "link.safetensors"
    make(tiny).save(file)
    file.chmod(0o640)
    link.symlink_to(file)
    edit = make(tiny, seed=1)
    assert edit.save(link) == link and link.is_symlink()
    assert torch.equal(slug.Edit.load(file).delta, edit.delta) and file.stat().st_mode & 0o777 == 0o640
    assert list((tmp_path / "store").iterdir()) == [file]


def test_two_threads_save_one_file(tmp_path, tiny):
    edits, file, errors = [make(tiny, seed=k) for k in range(4)], tmp_path / "x.safetensors", []

    def save(edit):
        try:
            for _ in range(25):
                edit.save(file)
                slug.Edit.load(file)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=save, args=(edit,)) for edit in edits]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and list(tmp_path.iterdir()) == [file]
    assert any(torch.equal(slug.Edit.load(file).delta, edit.delta) for edit in edits)


def test_what_could_not_be_loaded_is_not_saved(tmp_path, tiny):
    edit = make(tiny)
    for bad, message in (
        (slug.Edit({LAYER: edit.delta.float()}, {LAYER: 1.0}, "x", edit.base), "half precision"),
        (slug.Edit({LAYER: edit.delta}, {LAYER: float("nan")}, "x", edit.base), "finite number"),
        (slug.Edit({LAYER: edit.delta}, {LAYER: 1.0}, "a\nb", edit.base), "control character"),
    ):
        with pytest.raises(ValueError, match=message):
            bad.save(tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


def test_what_is_shown_is_short_and_escaped(tiny):
    for concept in (f"Ada{ESCAPE}\n{RIGHT_TO_LEFT}", "x" * 100_000):
        text = repr(make(tiny, concept=concept))
        assert len(text) < 400 and text.isprintable() and "Ada" in text + "Ada"
    assert "Beyoncé" in repr(make(tiny, concept="Beyoncé")) and "100,000 characters" in text


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F16", "shape": [1], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F16", "shape": [-2], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F16", "shape": [2**62, 2**62], "data_offsets": [0, 4]}},
        {name: {"dtype": "F16", "shape": [2], "data_offsets": [0, 4]} for name in "ab"},
        {"a": {"dtype": "F16", "shape": [1], "data_offsets": [2, 4]}},
        {"a": {"dtype": "X", "shape": [2], "data_offsets": [0, 4]}}, {"a": 1}, [], 1, {"a": {}}, {"__metadata__": 1},
        {"__metadata__": {"format": 1}}, {},
    ],
    ids=str,
)  # fmt: skip
def test_lies_in_a_header(tmp_path, header):
    text = json.dumps(header).encode()
    file = tmp_path / "x.safetensors"
    file.write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 4)
    with pytest.raises(ValueError, match="truncated or no safetensors"):
        slug.Edit.load(file)


def test_a_header_that_says_two_things(tmp_path):
    one = '"a":{"dtype":"F16","shape":[2],"data_offsets":[0,4]}'
    text = f"{{{one},{one}}}".encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 4)
    with pytest.raises(ValueError, match="twice"):
        slug.Edit.load(tmp_path / "x.safetensors")


def test_merging_and_shortening_make_no_product(tmp_path, monkeypatch):
    """A few bytes could ask for gigabytes: what the weight is like is not known yet."""
    tensors, shapes = factors(4, 2, 6, [4, 3, 2])
    edit = slug.Edit.load(forge(tmp_path / "low.safetensors", tensors, shapes=shapes))
    with monkeypatch.context() as patched:
        patched.setattr("slug_lite.runtime.edit_files.product", None)
        merged, low = slug.merge([edit, edit]), edit.low_rank(1)
        again = slug.Edit.load(merged.low_rank(1).save(tmp_path / "again.safetensors"))
        other = slug.Edit.load(forge(tmp_path / "b.safetensors", factors(4, 2, 6)[0], shapes=factors(4, 2, 6)[1]))
        with pytest.raises(ValueError, match="disagree on the shape"):
            slug.merge([edit, other])
    assert torch.equal(merged.delta, 2 * edit.delta) and merged.factors[LAYER][0].shape == (4, 4)
    assert torch.allclose(low.delta, edit.delta, rtol=2e-3) and low.factors[LAYER][0].shape == (4, 1)
    assert torch.allclose(again.delta, merged.delta, rtol=2e-3)


def test_a_sum_of_low_rank_that_does_not_fit_is_found_when_it_is_made(tiny):
    edit = make(tiny)
    large = slug.Edit({LAYER: torch.full_like(edit.delta, 4e4)}, {LAYER: 1.0}, "large", edit.base).low_rank(1)
    merged = slug.merge([large, large])
    with pytest.raises(ValueError, match="does not fit into half precision"):
        _ = merged.delta
    with pytest.raises(ValueError, match="does not fit into half precision"), merged.on(tiny):
        pass


def test_edits_of_two_half_precisions_are_merged_in_one(tmp_path):
    tensors, shapes = factors(4, 2, 6)
    wide = {name: part.bfloat16() for name, part in tensors.items()}
    files = [forge(tmp_path / f"{k}.safetensors", some, shapes=shapes) for k, some in enumerate((tensors, wide))]
    both = [slug.Edit.load(file) for file in files]
    for some in (both, both[::-1], [*both, both[1]]):
        merged = slug.merge(some)
        assert slug.Edit.load(merged.save(tmp_path / "x.safetensors")).delta.dtype == torch.float16
        assert torch.equal(merged.delta, torch.full((4, 6), 2.0 * len(some)).half())


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ("999999999," * 99_999 + "1", "100,000 sides; at most 8"), ("1" * 5_000, "5,000 digits; at most 40"),
        ("[]," * 80_000 + "1", "lists"), ("99999999999," * 7 + "9", "5 bytes at least and has 4"),
    ],
    ids=lambda x: x[:20],
)  # fmt: skip
def test_a_shape_is_no_long_calculation(tmp_path, shape, message):
    """A hundred thousand sides took 3.5 s to multiply."""
    text = f'{{"a":{{"dtype":"F16","shape":[{shape}],"data_offsets":[0,4]}}}}'.encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 4)
    start = time.perf_counter()
    with pytest.raises(ValueError, match=message):
        slug.Edit.load(tmp_path / "x.safetensors")
    assert time.perf_counter() - start < 1
