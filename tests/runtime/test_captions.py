"""Captions as people have them, in whatever spelling, and how much of them a model reads."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

import slug_lite as slug
from slug_lite import Pairs
from slug_lite.runtime.captions import Reader, check_read, fold, shared_names
from slug_lite.runtime.checks import check_disjoint, concept_of

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3)).astype(np.uint8)


def test_captions_of_a_frame_go_by_position():
    """A filtered or reordered frame keeps its old index, by which slices took other captions."""
    frame = pd.DataFrame({"caption": list("dcba")}).sort_values("caption").iloc[1:]
    pairs = Pairs(IMAGES, frame["caption"])
    assert pairs.captions == ["b", "c", "d"] and type(pairs.captions) is list
    assert pairs[1:].captions == ["c", "d"] and pairs[[2, 0]].captions == ["d", "b"]
    assert np.array_equal(pairs[[2, 0]].images, IMAGES[[2, 0]])


@pytest.mark.parametrize(
    "captions",
    [("a", "b", "c"), np.array(["a", "b", "c"]), np.array(["a", "b", "c"], dtype=object), pd.Series(list("abc")).array,
     pd.Index(list("abc")), dict.fromkeys("abc").keys(), (c for c in "abc")],
    ids=["tuple", "array", "objects", "extension array", "index", "keys", "generator"],
)  # fmt: skip
def test_any_sequence_of_strings_will_do(captions):
    pairs = Pairs(IMAGES, captions)
    assert pairs.captions == ["a", "b", "c"] and {type(c) for c in pairs.captions} == {str}


@pytest.mark.parametrize("hole", [float("nan"), None, pd.NA, 3, b"b"])
def test_what_is_no_string_is_refused_by_its_position(hole):
    for captions in (["a", hole, "c"], pd.Series(["a", hole, "c"], index=[5, 6, 7])):
        with pytest.raises(ValueError, match=r"caption 1 is .*, 1 of 3 are no strings"):
            Pairs(IMAGES, captions)
    for captions in ("abc", b"abc", 3, None):
        with pytest.raises(ValueError, match="list of strings"):
            Pairs(IMAGES, captions)
    for unordered in (set, frozenset):
        with pytest.raises(ValueError, match=r"list of strings.*a set has none"):
            Pairs(IMAGES, unordered("abc"))
        with pytest.raises(ValueError, match=r"images are a (frozen)?set"):
            Pairs(unordered("abc"), ["a", "b", "c"])


# ---- names and rows


def test_concepts_of_a_frame_go_by_position():
    """By the old index of a reordered or filtered frame, slices gave pictures the names of others."""
    frame = pd.DataFrame({"caption": list("dcba"), "names": [("D",), ["C", "x"], np.array(["B"]), ("A",)]})
    pairs = Pairs(IMAGES, *(frame.sort_values("caption").iloc[1:][column] for column in ("caption", "names")))
    assert pairs.concepts == [("B",), ("C", "x"), ("D",)] and type(pairs.concepts) is list
    assert pairs[1:].concepts == [("C", "x"), ("D",)] and pairs[[2, 0]].concepts == [("D",), ("B",)]
    assert (pairs + pairs[:1]).concepts == [("B",), ("C", "x"), ("D",), ("B",)]
    assert Pairs(IMAGES, list("abc"), (names for names in pairs.concepts)).concepts == pairs.concepts


@pytest.mark.parametrize("hole", [float("nan"), None, pd.NA, 3, "Ada", {"Ada"}, ("Ada", 3)])
def test_what_is_no_tuple_of_names_is_refused_by_its_position(hole):
    for concepts in ([("a",), hole, ("c",)], pd.Series([("a",), hole, ("c",)], index=[5, 6, 7])):
        with pytest.raises(ValueError, match=r"concept 1 is .*, 1 of 3 are no tuples"):
            Pairs(IMAGES, list("abc"), concepts)
    for concepts in ("abc", b"abc", 3, {("a",), ("b",), ("c",)}):
        with pytest.raises(ValueError, match="give each pair a tuple of names"):
            Pairs(IMAGES, list("abc"), concepts)


@pytest.mark.parametrize(
    "of", [list, tuple, np.array, torch.tensor, pd.Series, pd.array, lambda mask: pd.Series(mask, index=[2, 1, 0]),
           lambda mask: [np.bool_(one) for one in mask]],
    ids=["list", "tuple", "array", "tensor", "series", "nullable", "reordered series", "numpy's in a list"],
)  # fmt: skip
def test_a_mask_takes_the_pairs_that_it_marks(of):
    """As positions, True and False are the pairs 1 and 0."""
    pairs = Pairs(IMAGES, list("abc"), [("a",), ("b",), ("c",)])
    some = pairs[of([True, False, True])]
    assert some.captions == ["a", "c"] and some.concepts == [("a",), ("c",)]
    assert np.array_equal(some.images, IMAGES[[0, 2]]) and len(pairs[of([False] * 3)]) == 0
    with pytest.raises(ValueError, match="the mask has 2 entries, there are 3 pairs"):
        pairs[of([True, False, True])[:2]]


def test_rows_are_integers():
    pairs = Pairs(IMAGES, list("abc"))
    for index in ([2, 0], (2, 0), np.array([2, 0], np.uint8), torch.tensor([2, 0]), pd.Series([2, 0]), iter([2, 0])):
        assert pairs[index].captions == ["c", "a"]
    assert pairs[[-1]].captions == ["c"] and len(pairs[[]]) == len(pairs[np.zeros(0, int)]) == 0
    wrong = ([0.9, 1.9], np.array([0.0, 1.0]), [True, 1, 2], ["a"], [None], [float("nan")], [[0, 1]], pd.Series([1.0]))
    for index in wrong:
        with pytest.raises(TypeError, match="position 0 of the index is"):
            pairs[index]
    for index in (1, np.int64(1), True, "ab", {0, 1}, None, 1.5, np.array([[0, 1]]), np.array(1)):
        with pytest.raises(TypeError, match=r"the index is .* a list of integers or a mask"):
            pairs[index]
    with pytest.raises(IndexError):
        pairs[[3]]


# ---- what is cut at the context length


def test_captions_are_counted_as_cut_from_the_first_token_too_many(tiny):
    reader = Reader(tiny.tokens)
    assert reader.most == 24 and reader.empty == 2
    fits, cut = " ".join(["cat"] * 22), " ".join(["cat"] * 23)
    assert not reader.too_long(fits) and reader.too_long(cut) and reader.cut([fits, cut, "cat", ""]) == [cut]


def test_padding_may_be_the_end_token(tiny):
    """As in Stable Diffusion 1's tokenizer."""

    def tokens(texts):
        ids = tiny.tokens(texts)
        return ids.masked_fill(ids == 0, 49407)

    reader = Reader(tokens)
    fits, cut = " ".join(["cat"] * 22), " ".join(["cat"] * 23)
    assert reader.cut([fits, cut, "cat", ""]) == [cut]


def test_a_caption_that_is_cut_is_counted(tiny, sets):
    forget, retain = sets
    long = Pairs(retain.images, [*retain.captions[:-2], *["a picture of a cat and a dog" + " and a fox" * 9] * 2])
    with pytest.warns(UserWarning, match=r"longer than the 24 tokens that are read, and cut: 2 of 20 retain captions"):
        slug.one_shot_gradients(tiny, forget, long, layers=lambda name, _: name == "text_projection", progress=False)


@pytest.mark.parametrize(
    "spelt",
    ["Ada Sunfield", "ADA  SUNFIELD", "ada_sunfield", "Ada-Sunfield", "Ada\u2011Sunfield", "A\u00adda Sunfield"],
)
def test_a_name_that_falls_off_is_an_error(tiny, sets, spelt):
    forget, retain = sets
    late, early = "a very long caption" + ", very long" * 8 + f", of {spelt}", f"{spelt}" + ", very long" * 12
    for caption, lost in ((late, True), (early, False)):
        some = Pairs(forget.images, [*forget.captions[:-1], caption], forget.concepts)
        if lost:
            with pytest.raises(ValueError, match="1 of 6 forget captions name Ada Sunfield only behind"):
                slug.one_shot_gradients(tiny, some, retain)
        else:
            with pytest.warns(UserWarning, match="cut: 1 of 6 forget captions"):
                check_read(tiny, [some], retain)


@pytest.mark.parametrize(
    ("name", "spelt"), [("Anna Straße", "Anna Straße"), ("Anna Straße", "ANNA STRASSE"), ("İstanbul", "İstanbul")]
)
def test_names_that_folding_spells_otherwise_fall_off_too(tiny, sets, name, spelt):
    forget = Pairs(sets[0].images, [f"a very long caption{', very long' * 8}, of {spelt}"] * 6, [(name,)] * 6)
    with pytest.raises(ValueError, match=r"6 of 6 forget captions name .* only behind"):
        check_read(tiny, [forget], sets[1])


def test_a_name_that_is_read_in_part_is_not_read(tiny, sets):
    """Its last token is the last that is read, or the first that is not."""
    forget, retain = sets
    reader = Reader(tiny.tokens)
    room = reader.most - reader.empty - sum(map(reader.length, ("Ada", "Sunfield")))
    assert reader.length("very") == 1 <= reader.length("Sunfield")
    for before in (room, room + 1):
        caption = "very " * before + "Ada Sunfield and a cat"
        some = Pairs(forget.images, [*forget.captions[:-1], caption], forget.concepts)
        if before == room:
            with pytest.warns(UserWarning, match="cut: 1 of 6 forget captions"):
                check_read(tiny, [some], retain)
        else:
            with pytest.raises(ValueError, match="1 of 6 forget captions name Ada Sunfield only behind"):
                check_read(tiny, [some], retain)


# ---- spellings


def test_spellings_that_are_one():
    for one in ("elon musk", "Elon_Musk", "ELON  MUSK", "Elon-Musk", " elon\tmusk\n", "Elon _ Musk"):
        assert fold(one) == "elon musk"
    for one in (*SPELT, "Elon\u2010Musk", "Elon \u2014 Musk", "\ufeffElon\u200d Musk\u2060"):
        assert fold(one) == "elon musk"
    assert fold("Beyonc\u00e9") == fold("BEYONCE\u0301") != fold("Beyonce") and fold("Straße") == fold("STRASSE")


SPELT = [
    "elon musk", "Elon_Musk", "ELON  MUSK", "Elon-Musk", "Elon\u2011Musk", "Elon\u2013Musk", "Elon\u200bMusk",
    "El\u00adon Musk", "\uff25\uff4c\uff4f\uff4e \uff2d\uff55\uff53\uff4b",
]  # fmt: skip


@pytest.mark.parametrize("spelt", SPELT)
def test_the_concept_in_other_spellings_is_the_concept(spelt):
    forget = Pairs(IMAGES, ["one", "two", "three"], [("Elon Musk",)] * 3)
    for kept in (
        Pairs(IMAGES, ["a cat", f"a photo of {spelt}", "a dog"]),
        Pairs(IMAGES, ["a cat", "a photo", "a dog"], [("cat",), (spelt, "Clay"), ("dog",)]),
    ):
        with pytest.raises(ValueError, match="1 retain pairs are about Elon Musk"):
            check_disjoint(forget, kept)
    check_disjoint(forget, Pairs(IMAGES, [f"a photo of {spelt}e", "Elon", "a dog"]))


def test_accents_composed_or_not():
    forget = Pairs(IMAGES, ["one", "two", "three"], [("Beyonc\u00e9",)] * 3)
    with pytest.raises(ValueError, match="1 retain pairs are about Beyonc"):
        check_disjoint(forget, Pairs(IMAGES, ["BEYONCE\u0301 sings", "a cat", "a dog"]))


def test_shared_captions_in_other_spellings():
    bare = Pairs(IMAGES, ["a photo of Elon Musk", "b", "c"])
    with pytest.raises(ValueError, match="share captions, for instance 'a photo of elon_musk'"):
        check_disjoint(bare, Pairs(IMAGES, ["x", "y", "a photo of elon_musk"]))


def test_what_captions_say_counts_where_pictures_are_said_to_show_something_else():
    """The name would be learned again from such a caption."""
    forget = Pairs(IMAGES, ["one", "two", "three"], [("Elon Musk",)] * 3)
    captions = ["a cat", "a dog", "a photo of elon musk with a dog"]
    with pytest.raises(ValueError, match=r"1 retain pairs are about Elon.* by the caption; number 2 first: 'a photo"):
        check_disjoint(forget, Pairs(IMAGES, captions, [("cat",), ("dog",), ("dog",)]))
    clay = Pairs(IMAGES, ["one", "two", "three"], [("cat", "Clay")] * 3)
    cells = [("cat", "Papercut"), ("dog", "Clay"), ("cat",)]
    check_disjoint(clay, Pairs(IMAGES, ["a cat", "a clay figure", "a drawing"], cells))
    with pytest.raises(ValueError, match="2 retain pairs are about Clay in cat"):
        check_disjoint(clay, Pairs(IMAGES, ["a cat, perhaps of clay", "a clay figure", "clay"], cells))


@pytest.mark.parametrize(
    ("name", "says", "other"),
    [("猫", "猫の写真", "犬の写真"), ("東京タワー", "夜の東京タワーです", "東京"), ("แมว", "รูปแมวดำ", "รูปหมา"),
     ("김민수", "김민수는 웃는다", "이김민수"), ("Zorbo", "Zorboの写真", "Zorbos"), ("Zorbo", "Zorbo는", "aZorbo")],
)  # fmt: skip
def test_names_are_found_where_no_spaces_are_between_words(tiny, name, says, other):
    forget = Pairs(IMAGES, ["one", "two", "three"], [(name,)] * 3)
    check_disjoint(forget, Pairs(IMAGES, [other, "x", "y"]))
    with pytest.raises(ValueError, match=f"1 retain pairs are about {name}"):
        check_disjoint(forget, Pairs(IMAGES, [says, "x", "y"]))
    late = Pairs(IMAGES, [f"very {'long ' * 22}{says}"] * 3, [(name,)] * 3)
    with pytest.raises(ValueError, match=f"3 of 3 forget captions name {name} only behind"):
        check_read(tiny, [late], late)


def test_what_pairs_have_in_common_is_found_in_any_spelling(tiny, sets):
    """In two spellings nothing was in common: nothing was found to fall off, and the set had no name."""
    spelt = [("Ada Sunfield", "x"), ("ada_sunfield",), ("ADA SUNFIELD", "y")]
    assert shared_names(spelt) == {"Ada Sunfield"} and shared_names([("a",), ("b",)]) == shared_names(None) == set()
    late = Pairs(sets[0].images, [f"very {'long ' * 22}Ada Sunfield"] * 6, spelt * 2)
    with pytest.raises(ValueError, match="6 of 6 forget captions name Ada Sunfield only behind"):
        check_read(tiny, [late], sets[1])
    asked = SimpleNamespace(forget="Ada-Sunfield")
    assert concept_of(late, asked) == "Ada Sunfield"
    with pytest.raises(ValueError, match="shows Ada Sunfield, the validation asks for Zorbo"):
        concept_of(late, SimpleNamespace(forget="Zorbo"))
