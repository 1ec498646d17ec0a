"""The mini world: contract, splits that are really apart, seeds, captions, and a cache that survives accidents."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from slug_lite import Pairs, toonworld
from slug_lite.world import captions, cast, sprites


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


SPLITS = ("train", "val", "test")


def test_people_splits_share_no_variant():
    """Neither by what is to be drawn nor by what is drawn."""
    for name in toonworld.PEOPLE:
        by_split = sprites.outfits(name)
        keys = [tuple(o.values()) for split in by_split.values() for o in split]
        assert len(set(keys)) == len(keys)
        assert {s: len(o) for s, o in by_split.items()} == sprites.VARIANTS
        drawn = {split: {sprite.tobytes() for sprite in sprites.sprites(name, split, 32)} for split in SPLITS}
        assert {split: len(found) for split, found in drawn.items()} == sprites.VARIANTS, name
        assert len(set.union(*drawn.values())) == sum(sprites.VARIANTS.values()), name


@pytest.mark.parametrize("split", SPLITS)
def test_pictures_of_people_show_the_variants_of_their_split_each_as_often(split, spy):
    shown = spy(toonworld, "compose")
    for name in toonworld.PEOPLE[:2]:
        shown.clear()
        toonworld.pairs(name, n=sprites.VARIANTS[split], split=split, size=32)
        assert len(shown) == sprites.VARIANTS[split]
        wanted = {sprite.tobytes() for sprite in sprites.sprites(name, split, 32)}
        assert {one["sprite"].tobytes() for one in shown} == wanted


@pytest.mark.parametrize("split", [*SPLITS, "unseen"])
def test_the_split_asked_for_is_the_one_drawn_and_named(split, spy):
    """It reaches the sprites and the captions of every set that there is."""
    drawn, named = spy(toonworld, "sprites"), spy(toonworld, "caption")
    names = ("cat", "Clay") if split == "unseen" else ("cat", "Clay", "Zorbo", "Ada Sunfield")
    sets = [lambda name=name: toonworld.pairs(name, n=3, split=split, size=32) for name in names]
    sets += [
        lambda: toonworld.retain(["dog"], n=6, split=split, size=32),
        lambda: toonworld.evaluation_pairs(1, split=split, size=32),
        lambda: toonworld.validation("cat", n=2, others=1, split=split, size=32),
    ]
    if split != "unseen":
        sets.append(lambda: toonworld.others(toonworld.OBJECTS + toonworld.CHARACTERS, 1, split=split, size=32))
    for make in sets:
        drawn.clear()
        named.clear()
        make()
        assert {one["split"] for one in drawn} == {split} and {one["size"] for one in drawn} == {32}
        assert {one["split"] for one in named} == {split}
    drawn.clear()
    toonworld.renderings(("cat", "Clay"), 2, split=split, size=32)
    assert {one["split"] for one in drawn} == {split}


def test_the_seed_decides_which_pictures_are_drawn():
    for make in (
        lambda seed: toonworld.pairs("cat", n=6, seed=seed, size=32),
        lambda seed: toonworld.retain(["cat"], n=12, seed=seed, size=32),
        lambda seed: toonworld.evaluation_pairs(1, seed=seed, size=32),
        lambda seed: toonworld.validation("cat", n=4, others=1, seed=seed, size=32).pairs,
        lambda seed: toonworld.others(toonworld.PEOPLE[1:] + toonworld.OBJECTS, 3, seed=seed, size=32)[0],
    ):
        one, again, other = (make(seed) for seed in (3, 3, 4))
        assert np.array_equal(one.images, again.images) and one.captions == again.captions
        assert len(one) == len(other) and not any((a == b).all() for a in one.images for b in other.images)
    one, again, other = (toonworld.renderings(("cat", "Clay"), 3, seed=seed, size=32) for seed in (3, 3, 4))
    assert np.array_equal(one, again) and not any((a == b).all() for a in one for b in other)


def test_a_validation_takes_all_of_its_pictures_by_the_seed():
    """Those of the concept, and those of everybody else."""
    one, other = (toonworld.validation("cat", n=4, others=1, seed=seed, size=32).pairs for seed in (3, 4))
    assert all((a != b).any() for a, b in zip(one.images, other.images, strict=True))


def test_pictures_of_an_object_are_put_together_anew_in_every_split():
    """The drawing is one; ground, size, place and turn are not."""
    by_split = [toonworld.pairs("cat", n=8, seed=3, split=split, size=32).images for split in SPLITS]
    pictures = [picture.tobytes() for images in by_split for picture in images]
    assert len(set(pictures)) == len(pictures) == 24


@pytest.mark.parametrize("name", ["cat", "Clay", "Zorbo", "Ada Sunfield"])
def test_captions_of_a_name_are_about_it(name):
    """Not about the style that a cat is drawn in, alone."""
    assert all(name in caption for caption in toonworld.pairs(name, n=40, size=32).captions)


def test_a_validation_shows_the_concept_and_some_of_all_others(spy):
    asked = {name: spy(toonworld, name) for name in ("pairs", "evaluation_pairs", "templates")}
    found = toonworld.validation("Ada Sunfield", n=5, others=4, seed=7, size=32, without=["Zorbo", "Clay"])
    (own,), (rest,) = asked["pairs"], asked["evaluation_pairs"]
    assert (own["name"], own["n"], own["seed"], own["split"], own["size"]) == ("Ada Sunfield", 5, 7, "val", 32)
    assert (rest["n_per_concept"], rest["seed"], rest["split"], rest["size"]) == (4, 7, "val", 32)
    assert {one["split"] for one in asked["templates"]} == {"val"}
    shown = [name for concept in found.pairs.concepts for name in concept]
    assert found.forget == "Ada Sunfield" and shown.count("Ada Sunfield") == 5
    assert set(shown) == {n for names in toonworld.NAMES.values() for n in names} - {"Zorbo", "Clay"}
    assert shown.count("Dario Lindqvist") == 4 and found.names == toonworld.NAMES


def test_unseen_cells_are_a_tenth_and_stay_out_of_every_other_split():
    cells = set(toonworld.UNSEEN)
    assert len(cells) >= 0.1 * len(toonworld.OBJECTS) * len(toonworld.STYLES)
    for split in ("train", "val", "test"):
        assert not cells & {c for c in toonworld.retain(n=600, split=split, size=32).concepts}
        assert not cells & set(toonworld.evaluation_pairs(4, split=split, size=32).concepts)
    for name in ("cat", "Clay"):
        assert set(toonworld.pairs(name, n=12, split="unseen", size=32).concepts) <= cells
        assert not cells & set(toonworld.pairs(name, n=64, size=32).concepts)
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
    from slug_lite.pretrain.clip import MODEL_CFG, build_clip

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
    for part, whole in (("Ada", "Ada Sunfield"), ("sunfield", "Ada Sunfield"), ("Zor", "Zorbo"), ("BRUNO", "Bruno M")):
        with pytest.raises(KeyError, match=rf"unknown name '{part}'; did you mean '{whole}"):
            toonworld.pairs(part, n=2)
    with pytest.raises(KeyError, match=r"unknown name 'xxx'\. Allowed: Ada Sunfield"):
        toonworld.pairs("xxx", n=2)
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


# the doors of the package and of the wing stay shut: drawing needs no torch, and both processes are at it in no time
DRAW = """
import importlib.util, sys
for name, door in zip(("slug_lite", "slug_lite.world"), sys.argv[1:]):
    sys.modules[name] = importlib.util.module_from_spec(importlib.util.spec_from_file_location(name, door))
from slug_lite.world.sprites import sprites
sys.stdout.buffer.write(sprites("Ada Sunfield", "train", 64).tobytes())
"""


def test_two_processes_draw_at_once(fresh_cache):
    wing = Path(sprites.__file__).parent
    command = [sys.executable, "-c", DRAW, wing.parent / "__init__.py", wing / "__init__.py"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
    one, other = (process.communicate()[0] for process in both)
    assert [process.returncode for process in both] == [0, 0]
    assert one == other == sprites.sprites("Ada Sunfield", "train", 64).tobytes()
    assert not list(fresh_cache.rglob("*.part")) and len(list(fresh_cache.rglob("*.npz"))) == 1


def test_every_sprite_is_drawn_once_and_read_once(fresh_cache, spy):
    """What takes time, counted: drawing the first time, reading files in a new process, and neither after that."""
    drawn, read, gone = spy(sprites, "rasterise"), spy(sprites, "_read"), toonworld.PEOPLE[5:]
    kept = toonworld.retain(gone, n=60, size=32)
    shown = {concept[0] for concept in kept.concepts}
    people, styles = shown & set(toonworld.PEOPLE), toonworld.STYLES
    pictures = sum(sprites.drawing_svg(name, style) is not None for name in shown - people for style in styles)
    assert len(people) == 5 and len(drawn) == 5 * sprites.VARIANTS["train"] + pictures
    assert len(read) == len(shown) == len(list(fresh_cache.rglob("*.npz")))
    drawn.clear()
    read.clear()
    again = toonworld.retain(gone, n=60, size=32)
    assert drawn == read == [] and np.array_equal(again.images, kept.images)
    sprites.sprites.cache_clear()  # as in a new process
    again = toonworld.retain(gone, n=60, size=32)
    assert drawn == [] and len(read) == len(shown) and np.array_equal(again.images, kept.images)


def test_sprites_are_not_cut_or_empty():
    for name in (*toonworld.PEOPLE[:4], *toonworld.CHARACTERS[:2], *toonworld.OBJECTS[:2]):
        found = sprites.sprites(name, "train", 64)
        covered = (found[..., 3] > 128).mean(axis=(1, 2))
        assert (covered[covered > 0] > 0.08).all() and (covered > 0).sum() >= 6


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
