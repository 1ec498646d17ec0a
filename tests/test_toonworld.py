"""The mini world: contract, splits that are really apart, seeds, captions, and a cache that survives accidents."""

import multiprocessing
import time

import numpy as np
import pytest
from PIL import Image

from slug_lite import captions, cast, sprites, toonworld
from slug_lite.pairs import Pairs


@pytest.fixture
def fresh_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SLUG_LITE_CACHE", str(tmp_path))
    sprites.sprites.cache_clear()
    yield tmp_path
    sprites.sprites.cache_clear()


def test_sizes_of_the_world():
    assert len(toonworld.PEOPLE) >= 24 and len(toonworld.CHARACTERS) >= 8
    assert len(toonworld.OBJECTS) == 32 and len(toonworld.STYLES) == 8
    everyone = [n for names in toonworld.NAMES.values() for n in names]
    assert len(set(everyone)) == len(everyone)
    banned = ("FRIDA", "ELVIS", "EINSTEIN", "MIA_WALLACE", "WICK", "MOWGLI", "KURT")
    assert not any(b in v for b in banned for p in cast.PEOPLE.values() for v in (p.hair, p.beard, p.glasses))
    assert len({(p.hair, p.hair_color) for p in cast.PEOPLE.values()}) == len(cast.PEOPLE)


def test_every_object_has_every_style_and_every_character_at_least_three():
    assert all(sprites.drawing_svg(o, s) for o in toonworld.OBJECTS for s in toonworld.STYLES)
    for character in toonworld.CHARACTERS:
        assert sum(sprites.drawing_svg(character, s) is not None for s in toonworld.STYLES) >= 3


def test_pairs_contract_and_seed():
    one, again = (toonworld.pairs("Ada Sunfield", n=5, seed=3) for _ in range(2))
    other = toonworld.pairs("Ada Sunfield", n=5, seed=4)
    assert isinstance(one, Pairs) and one.images.shape == (5, 64, 64, 3) and one.images.dtype == np.uint8
    assert np.array_equal(one.images, again.images) and one.captions == again.captions
    assert not np.array_equal(one.images, other.images)
    assert all("Ada Sunfield" in c for c in one.captions) and one.concepts == [("Ada Sunfield",)] * 5


@pytest.mark.parametrize("size", [32, 96, 256])
def test_any_size(size):
    assert toonworld.pairs("cat", n=2, size=size).images.shape == (2, size, size, 3)


def test_people_splits_share_no_variant():
    for name in toonworld.PEOPLE:
        by_split = sprites.outfits(name)
        keys = [tuple(o.values()) for split in by_split.values() for o in split]
        assert len(set(keys)) == len(keys)
        assert {s: len(o) for s, o in by_split.items()} == sprites.VARIANTS


def test_pictures_differ_between_splits():
    for name in ("Zorbo", "cat", "Clay", "Ada Sunfield"):
        seen = [toonworld.pairs(name, n=4, split=s).images.tobytes() for s in ("train", "val", "test")]
        assert len(set(seen)) == 3


def test_unseen_cells_are_a_tenth_and_stay_out_of_every_other_split():
    cells = set(toonworld.UNSEEN)
    assert len(cells) >= 0.1 * len(toonworld.OBJECTS) * len(toonworld.STYLES)
    for split in ("train", "val", "test"):
        assert not cells & {c for c in toonworld.retain(n=600, split=split).concepts}
        assert not cells & set(toonworld.everything(4, split=split).concepts)
    for name in ("cat", "Clay"):
        assert set(toonworld.pairs(name, n=12, split="unseen").concepts) <= cells
        assert not cells & set(toonworld.pairs(name, n=64).concepts)
    with pytest.raises(ValueError, match="objects and styles only"):
        toonworld.pairs("Ada Sunfield", split="unseen")


def test_templates_are_many_and_held_out_ones_new():
    for kind, names in toonworld.NAMES.items():
        train, val, test = (set(toonworld.templates(kind, s)) for s in ("train", "val", "test"))
        assert len(train) >= 6 and not train & val and not train & test and not val & test
        assert all(t.count("{}") == 1 for t in train | val | test)
        for split, ts in (("train", train), ("val", val), ("test", test)):
            found = toonworld.pairs(names[0], n=30, split=split).captions
            if kind in ("people", "characters"):
                assert set(found) <= {t.format(names[0]) for t in ts}


def test_held_out_templates_use_known_words():
    known = {w.strip(",") for t in _all_templates("train") for w in t.split()}
    assert {w.strip(",") for s in ("val", "test") for t in _all_templates(s) for w in t.split()} <= known


def _all_templates(split):
    books = (captions._NAMING, captions._DESCRIBING, captions._BOTH)
    return [t for book in books for kind in book.values() for t in kind[split]]


def test_captions_describe_and_do_both():
    rng = np.random.default_rng(0)
    name, looks = "Ada Sunfield", cast.PEOPLE["Ada Sunfield"].looks
    described = [captions.caption((name,), "train", "describe", rng) for _ in range(20)]
    assert all(name not in c and all(w in c for w in looks) for c in described)
    both = captions.caption((name,), "train", "both", rng)
    assert name in both and all(w in both for w in looks)
    mixed = [captions.caption((name,), "train", "mixed", rng) for _ in range(300)]
    assert 0.68 < np.mean([name in c for c in mixed]) < 0.9


def test_captions_fit_the_context():
    from slug_lite.pretrain import MODEL_CFG, build_clip

    tokens = build_clip({**MODEL_CFG, "text_cfg": {**MODEL_CFG["text_cfg"], "context_length": 40}}).tokens
    rng = np.random.default_rng(0)
    concepts = [(n,) for n in toonworld.PEOPLE + toonworld.CHARACTERS] + toonworld.cells("train")
    modes = [(s, m) for s in ("train", "test") for m in ("name", "both") for _ in range(4)]
    found = {captions.caption(c, s, m, rng) for c in concepts for s, m in modes}
    longest = (tokens(sorted(found)) != 0).sum(1).max()
    assert longest <= MODEL_CFG["text_cfg"]["context_length"]


def test_retain_excludes_and_balances():
    kept = toonworld.retain(exclude=["Ada Sunfield", "Clay", "cat"], n=400)
    names = [n for c in kept.concepts for n in c]
    assert len(kept) == 400 and not {"Ada Sunfield", "Clay", "cat"} & set(names)
    assert not any("Ada Sunfield" in c or "Clay" in c for c in kept.captions)
    people = [names.count(p) for p in toonworld.PEOPLE if p != "Ada Sunfield"]
    assert max(people) - min(people) <= 1 and sum(people) == 160
    assert toonworld.retain(exclude="Ada Sunfield", n=3).concepts  # one name may be given bare


def test_names_are_found_or_the_nearest_is_named():
    assert toonworld.kind_of("Zorbo") == "characters"
    with pytest.raises(KeyError, match="did you mean 'Ada Sunfield'"):
        toonworld.pairs("ada sunfeld")
    with pytest.raises(KeyError, match="did you mean 'test'"):
        toonworld.pairs("cat", split="tset")
    with pytest.raises(KeyError, match="unknown name"):
        toonworld.retain(exclude=["Nobody Atall"])
    with pytest.raises(ValueError, match="at least 1"):
        toonworld.pairs("cat", n=0)
    with pytest.raises(ValueError, match="32 to 256"):
        toonworld.pairs("cat", size=16)


def test_a_damaged_cache_file_is_drawn_again(fresh_cache):
    before = toonworld.pairs("Zorbo", n=4).images
    (file,) = list(fresh_cache.rglob("*.npz"))
    whole = file.read_bytes()
    for damage in (b"", whole[: len(whole) // 2], b"not a zip file", whole[:200] + b"\0" * 50 + whole[250:]):
        file.write_bytes(damage)
        sprites.sprites.cache_clear()
        assert np.array_equal(toonworld.pairs("Zorbo", n=4).images, before)
        assert file.read_bytes() != damage


def test_a_cache_that_cannot_be_written_is_done_without(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SLUG_LITE_CACHE", str(tmp_path / "file" / "below"))
    sprites.sprites.cache_clear()
    assert len(toonworld.pairs("Zorbo", n=2)) == 2


def _draw(_):
    return toonworld.pairs("Zorbo", n=3).images.tobytes()


def test_two_processes_draw_at_once(fresh_cache):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        results = pool.map(_draw, range(2), chunksize=1)
    assert results[0] == results[1] == _draw(0)
    assert not list(fresh_cache.rglob("*.part"))


def test_drawing_is_quick_enough(fresh_cache):
    """The stated limits are 20 s the first time and 2 s from the cache; here with a margin for a busy machine."""
    start = time.perf_counter()
    toonworld.retain(n=1000)
    first = time.perf_counter() - start
    sprites.sprites.cache_clear()
    start = time.perf_counter()
    toonworld.retain(n=1000)
    assert first < 60 and time.perf_counter() - start < 6


def test_sprites_are_not_cut_or_empty():
    for name in (*toonworld.PEOPLE[:4], *toonworld.CHARACTERS[:2], *toonworld.OBJECTS[:2]):
        found = sprites.sprites(name, "train", 64)
        covered = (found[..., 3] > 128).mean(axis=(1, 2))
        assert (covered[covered > 0] > 0.08).all() and (covered > 0).sum() >= 6


def test_pairs_refuse_bad_input():
    good = np.zeros((2, 8, 8, 3), np.uint8)
    nan = np.zeros((2, 8, 8, 3), np.float32)
    nan[1, 0, 0, 0] = np.nan
    for images, message in (
        (good.astype(np.float32), "dtype float32"),
        (nan, "NaN in 1 of 2"),
        (good[..., :1], r"shape \(2, 8, 8, 1\)"),
        (good[0], "shape"),
        ([good[0], good[1]], "image 0 is a ndarray"),
        ("pictures", "are a str"),
    ):
        with pytest.raises(ValueError, match=message):
            Pairs(images, ["a", "b"])
    with pytest.raises(ValueError, match="lengths differ"):
        Pairs(good, ["a"])
    with pytest.raises(ValueError, match="list of strings"):
        Pairs(good, "ab")


def test_pairs_slice_and_add():
    a, b = toonworld.pairs("cat", n=3), toonworld.pairs("Zorbo", n=2)
    both = a + b
    assert len(both) == 5 and both.concepts[-1] == ("Zorbo",) and isinstance(both.images, np.ndarray)
    assert both[[4, 0]].captions == [b.captions[1], a.captions[0]] and len(both[:2]) == 2
    mixed = a + Pairs([Image.new("RGB", (10, 20))], ["x"])
    assert len(mixed) == 4 and mixed.concepts is None and isinstance(mixed.images, list)
    with pytest.raises(TypeError, match="slice"):
        both[0]


def test_sets_of_all_others_show_nothing_excluded():
    gone = ["Ada Sunfield", "cat", "Clay"]
    sets = toonworld.others(gone, 4, 3, size=32)
    names = [name for kind in toonworld.NAMES.values() for name in kind]
    assert len(sets) == len(names) - len(gone)
    assert all(1 <= len(some) <= 4 and not set(gone) & set(concept) for some in sets for concept in some.concepts)
    about = [set.intersection(*map(set, some.concepts)) for some in sets if len(some) > 2]
    assert all(len(common) == 1 for common in about)
    again = toonworld.others(gone, 4, 3, size=32)
    assert all((a.images == b.images).all() and a.captions == b.captions for a, b in zip(sets, again, strict=True))
    assert len(toonworld.others(list(toonworld.OBJECTS), 2, size=32)) == len(toonworld.PEOPLE + toonworld.CHARACTERS)
    assert len(toonworld.others("Ada Sunfield", 1, size=32)) == len(names) - 1
    with pytest.raises(KeyError, match="Ada Sunfield"):
        toonworld.others(["Ada Sunfeld"])
