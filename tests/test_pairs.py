"""Image-text pairs: what is refused at the door, cut and added up, and which sets cannot go together."""

import numpy as np
import pytest
from PIL import Image

from slug_lite import Pairs, toonworld
from slug_lite.runtime.checks import check_disjoint, check_sets


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
    with pytest.raises(ValueError, match=r"lengths differ: \{'images': 2, 'captions': 1\}"):
        Pairs(good, ["a"])
    with pytest.raises(ValueError, match="list of strings"):
        Pairs(good, "ab")


def test_pairs_slice_and_add():
    a, b = toonworld.pairs("cat", n=3), toonworld.pairs("Zorbo", n=2)
    both = a + b
    assert len(both) == 5 and both.concepts[-1] == ("Zorbo",) and isinstance(both.images, np.ndarray)
    two = both[[4, 0]]
    assert two.captions == [b.captions[1], a.captions[0]] and two.concepts == [b.concepts[1], a.concepts[0]]
    assert np.array_equal(two.images, np.stack([b.images[1], a.images[0]])) and len(both[:2]) == 2
    mixed = a + Pairs([Image.new("RGB", (10, 20))], ["x"])
    assert len(mixed) == 4 and mixed.concepts is None and isinstance(mixed.images, list)
    larger = a + toonworld.pairs("Zorbo", n=1, size=96)
    some = mixed[[3, 0]]  # of a list of pictures, nobody knows of what
    assert [image.size for image in some.images] == [(10, 20), (64, 64)] and some.captions == ["x", a.captions[0]]
    assert some.concepts is None and [image.size for image in mixed[2:].images] == [(64, 64), (10, 20)]
    assert [image.size for image in larger.images] == [(64, 64)] * 3 + [(96, 96)] and larger.concepts[3] == ("Zorbo",)
    with pytest.raises(TypeError, match="slice"):
        both[0]


def test_pictures_of_any_kind_come_out_in_colour():
    images = [Image.new(mode, (4, 5)) for mode in ("L", "RGBA", "P", "RGB")]
    assert [(image.mode, image.size) for image in Pairs(images, list("abcd")).pil()] == [("RGB", (4, 5))] * 4


def test_sets_of_one_pair_are_too_small():
    forget, retain = toonworld.pairs("Zorbo", n=2, size=32), toonworld.pairs("cat", n=2, size=32)
    check_sets([forget], retain)
    for one, other, message in ((forget[:1], retain, "forget set has 1"), (forget, retain[:1], "retain set has 1")):
        with pytest.raises(ValueError, match=message):
            check_sets([one], other)


def test_every_pair_has_a_tuple_of_names():
    good = np.zeros((2, 8, 8, 3), np.uint8)
    for concepts in (["Zorbo", "Zorbo"], [("Zorbo",), "Zorbo"], [("Zorbo",), (3,)]):
        with pytest.raises(ValueError, match="give each pair a tuple of names"):
            Pairs(good, ["a", "b"], concepts)
    with pytest.raises(ValueError, match="'concepts': 1"):
        Pairs(good, ["a", "b"], [("Zorbo",)])


def test_an_object_in_a_style_is_apart_from_object_and_style():
    """What all pairs share is to be forgotten: of one object in one style both names together, and neither alone."""
    cell = toonworld.evaluation_pairs(8, size=32)
    cats = [i for i, names in enumerate(cell.concepts) if "cat" in names]
    clay = Pairs(cell[cats[:2]].images, ["one", "two"], [("cat", "Clay")] * 2)
    check_sets([clay], Pairs(cell.images[:4], list("abcd"), [("cat", "Papercut"), ("dog", "Clay")] * 2))
    with pytest.raises(ValueError, match="1 retain pairs are about Clay in cat"):
        check_sets([clay], Pairs(cell.images[:3], list("abc"), [("cat", "Clay"), ("dog", "Clay"), ("cat", "Papercut")]))


def test_a_name_within_a_word_is_not_that_name():
    """By what captions say, where nobody says what pictures show."""
    cats = toonworld.pairs("cat", n=2, size=32)
    check_sets([cats], Pairs(cats.images, ["a herd of cattle", "a bobcat, and a concatenation"]))
    for caption in ("cat", "the cat's basket", "a herd of cattle (and a cat)"):
        with pytest.raises(ValueError, match="1 retain pairs are about cat"):
            check_sets([cats], Pairs(cats.images, ["a herd of cattle", caption]))


def test_sets_to_be_kept_are_called_by_their_name():
    zorbo, other = (toonworld.pairs("Zorbo", n=3, seed=seed, size=32) for seed in (0, 1))
    with pytest.raises(ValueError, match="3 protect pairs are about Zorbo"):
        check_disjoint(zorbo, other, "protect")
    bare = Pairs(zorbo.images, zorbo.captions)
    with pytest.raises(ValueError, match="forget and protect set share captions"):
        check_disjoint(bare, Pairs(bare.images, list(reversed(bare.captions))), "protect")
