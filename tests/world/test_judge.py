"""The judge: its answers on drawings and on what is none of these, its table, its training, bad input."""

import json
import shutil
import signal
from importlib import resources

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import slug_lite as slug
from slug_lite.pretrain import judge as training
from slug_lite.pretrain.judge import IGNORE, NOBODY, JudgeRecipe
from slug_lite.world import judge as judging
from slug_lite.world.captions import CHARACTERS, NAMES, OBJECTS, PEOPLE, STYLES
from slug_lite.world.judge import NONE, Judge, JudgeNet

SHIPPED = resources.files("slug_lite") / "assets" / "mini-judge"
SMALL = JudgeRecipe(steps=4, batch=12, warmup=2, channels=(8, 8, 8, 8), pool=1, nobodies=8, look=24)
world = slug.toonworld
shipped = pytest.mark.skipif(not SHIPPED.joinpath("model.safetensors").is_file(), reason="the judge is not trained yet")


@pytest.fixture(scope="module")
def judge():
    return judging.load_judge()


@pytest.fixture
def untrained():
    torch.manual_seed(0)
    return Judge(JudgeNet({kind: len(names) + 1 for kind, names in NAMES.items()}, (8, 8, 8, 8)))


@pytest.fixture
def few(monkeypatch):
    """A world of a person, a character and two cells, for training in seconds."""
    monkeypatch.setattr(training, "PEOPLE", PEOPLE[:1])
    monkeypatch.setattr(training, "CHARACTERS", CHARACTERS[:1])
    monkeypatch.setattr(world, "cells", lambda split: [("cat", "Clay"), ("cat", "Sticker")] if split == "train" else [])


def answers(judge, pairs):
    found = judge(pairs)
    kinds = [world.kind_of(c[0]) for c in pairs.concepts]
    return found, (found.name == [c[0] for c in pairs.concepts]) & (found.kind == kinds)


@shipped
def test_names_held_out_drawings(judge):
    pairs = world.evaluation_pairs(8, seed=5, split="test")
    found, right = answers(judge, pairs)
    for kind in ("people", "characters", "objects"):
        assert right[[world.kind_of(c[0]) == kind for c in pairs.concepts]].mean() >= 0.99, kind
    cells = [len(c) == 2 for c in pairs.concepts]
    styles = [c[-1] for c in pairs.concepts if len(c) == 2]
    assert (found.loc[cells, "style"] == styles).mean() >= 0.99
    people = [c[0] in PEOPLE for c in pairs.concepts]
    assert (found.loc[people, "style"] == NONE).mean() >= 0.99


@shipped
def test_names_cells_that_generators_never_saw(judge):
    pairs = world.evaluation_pairs(8, seed=6, split="unseen")
    found, right = answers(judge, pairs)
    assert right.mean() >= 0.98 and (found["style"] == [c[1] for c in pairs.concepts]).mean() >= 0.98


@shipped
def test_says_none_of_these(judge):
    rng = np.random.default_rng(3)
    drawn = world.retain(n=120, seed=9, split="test").images
    other = np.roll(drawn, 60, 0)
    noise = rng.integers(0, 256, (40, 64, 64, 3), dtype=np.uint8)
    blurred = np.stack([np.asarray(Image.fromarray(d).resize((4, 4), Image.BOX).resize((64, 64), Image.BICUBIC))
                        for d in drawn])  # fmt: skip
    halves = np.concatenate([drawn[:, :, :32], other[:, :, 32:]], 2)
    blends = ((drawn.astype(int) + other) // 2).astype(np.uint8)
    snippets = np.stack([np.asarray(Image.fromarray(d[24:38, 24:38]).resize((64, 64), Image.BICUBIC)) for d in drawn])
    nobodies = training.nobodies(300, rng, "test")
    for what, images in (("noise", noise), ("blurred", blurred), ("halves", halves),
                         ("blends", blends), ("snippets", snippets), ("nobodies", nobodies)):  # fmt: skip
        assert (judge(np.ascontiguousarray(images)).name == NONE).mean() >= 0.93, what


@shipped
def test_confidence_is_calibrated(judge):
    x, labels = training.Drawings(JudgeRecipe(pool=1, nobodies=60), "test").batch(900, np.random.default_rng(0))
    images = ((x + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    for h, (kind, chances) in enumerate(judge.probabilities(images).items()):
        asked = (labels[:, h] != IGNORE).numpy()
        sure, right = chances.max(1)[asked], (chances.argmax(1) == labels[:, h].numpy())[asked]
        bins = np.digitize(sure, np.linspace(0, 1, 11)[1:-1])
        error = sum(abs(sure[bins == b].mean() - right[bins == b].mean()) * (bins == b).mean() for b in set(bins))
        assert error < 0.02, kind


@shipped
def test_a_softer_picture_is_still_named(judge):
    pairs = world.retain(n=120, seed=4, split="test")
    soft = training.blur(judging.pixels(pairs), 0.7)
    images = ((soft + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    _, right = answers(judge, slug.Pairs(images, pairs.captions, pairs.concepts))
    assert right.mean() >= 0.97


@shipped
def test_shipped_papers_and_size():
    assert SHIPPED.joinpath("model.safetensors").stat().st_size < 3_000_000
    config = json.loads(SHIPPED.joinpath("judge.json").read_text())
    assert config["names"] == {kind: list(names) for kind, names in NAMES.items()}
    recipe = json.loads(SHIPPED.joinpath("training.json").read_text())
    assert {k: v for k, v in recipe.items() if k not in ("temperatures", "torch")} == json.loads(
        json.dumps(training.asdict(JudgeRecipe()))
    )


def test_table_has_a_row_a_picture(untrained):
    pairs = world.retain(n=5)
    table = untrained(pairs)
    assert list(table.columns) == ["kind", "name", "style", "confidence", "style_confidence"] and len(table) == 5
    assert set(table.kind) <= {"people", "characters", "objects", NONE} and table.confidence.between(0, 1).all()
    pd.testing.assert_frame_equal(table, untrained(pairs.images))
    pd.testing.assert_frame_equal(table, untrained(pairs.pil()))
    noise = np.random.default_rng(0).integers(0, 256, (80, 100, 4)).astype(np.uint8)
    assert len(untrained([Image.fromarray(noise, "RGBA")])) == 1
    assert untrained.features(pairs).shape == (5, 16)
    chances = untrained.probabilities(pairs)
    assert {k: c.shape for k, c in chances.items()} == {k: (5, len(NAMES[k]) + 1) for k in NAMES}
    np.testing.assert_allclose(chances["objects"].sum(1), 1, rtol=1e-5)


def test_the_head_that_says_none_least_decides(untrained, monkeypatch):
    """Whoever is least sure that it is none of its own names it; if its own best is "none", nobody does."""

    def chances(**first):
        out = {kind: np.zeros((1, len(names) + 1)) for kind, names in NAMES.items()}
        for kind, c in out.items():
            k, p = first.get(kind, (-1, 1.0))
            c[0, k], c[0, -1] = p, (1 - p if k >= 0 else 1.0)
        return out

    def ask(**first):
        monkeypatch.setattr(untrained, "probabilities", lambda images: chances(**first))
        return untrained(world.pairs("Zorbo", n=1)).iloc[0]

    row = ask(objects=(3, 0.9), people=(0, 0.6), styles=(2, 0.8))
    assert (row.kind, row["name"], row["style"]) == ("objects", OBJECTS[3], STYLES[2])
    assert (row.confidence, row.style_confidence) == (0.9, 0.8)
    row = ask(people=(4, 0.4))
    assert (row.kind, row["name"], row["style"], row.confidence) == (NONE, NONE, NONE, 0.6)


def test_labels_say_who_what_and_how_it_is_drawn():
    assert training.label(("Ada Sunfield",), 5) == [0, 8, 32, 8]
    assert training.label(("cat", "Clay"), 0) == [24, 8, OBJECTS.index("cat"), STYLES.index("Clay")]
    name = CHARACTERS[-1]
    drawn = [s for s in STYLES if training.drawing_svg(name, s)]
    got = [training.label((name,), k)[3] for k in range(len(drawn) + 1)]
    assert got == [STYLES.index(s) for s in [*drawn, drawn[0]]]


def test_nobodies_are_nobody(monkeypatch):
    seen, real = [], training.person_svg
    monkeypatch.setattr(training, "person_svg", lambda person, worn: seen.append(person) or real(person, worn))
    assert training.nobodies(12, np.random.default_rng(0)).shape == (12, 64, 64, 3)
    for stranger in seen:
        for person in training.cast.PEOPLE.values():
            same = [getattr(stranger, f) == getattr(person, f) for f in training.FEATURES]
            assert sum(same) <= 3


def test_spoilt_pictures_are_labelled_none_where_they_are():
    cat, dog, ada = training.label(("cat", "Clay"), 0), training.label(("dog", "Clay"), 0), [0, 8, 32, 8]
    n = len(training.WAYS)
    x, strangers = torch.zeros(2 * n, 3, 64, 64), torch.ones(n, 3, 64, 64)
    y = torch.tensor([cat] * n + [cat, dog] * (n // 2) + [ada] * (n % 2))
    images, labels = training.spoil(x, y, strangers, np.random.default_rng(0))
    for i, way in enumerate(training.WAYS):
        same_object = (y[i] == y[n + i])[2].item()
        mixed = way in (training._halves, training._blend)
        assert labels[i, 2] == (IGNORE if mixed and same_object else NOBODY[2])
        assert labels[i, :2].tolist() == NOBODY[:2].tolist()
        assert labels[i, 3] == (IGNORE if mixed or way in (training._snippet, training._shuffle) else NOBODY[3])
        assert (images[i] == 1).all().item() == (way is None)


def test_ways_to_spoil_do_what_they_say():
    rng = np.random.default_rng(0)
    a, b = torch.rand(3, 64, 64) * 2 - 1, torch.rand(3, 64, 64) * 2 - 1
    halves = training._halves(a, b, rng)
    assert 0.3 < (halves == a).float().mean() < 0.7 and ((halves == a) | (halves == b)).all()
    blend = training._blend(a, b, rng)
    assert ((blend - a).abs().mean() - (blend - b).abs().mean()).abs() < 0.25
    shuffled = training._shuffle(a, b, rng)
    assert torch.equal(shuffled.flatten().sort().values, a.flatten().sort().values) and not torch.equal(shuffled, a)
    assert training._heavy_blur(a, b, rng).std() < 0.5 * a.std()
    varied = training.vary(a.expand(5, 3, 64, 64).clone(), rng)
    order = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 3, 64, 64) / 5 - 0.5
    assert (varied[1] - a).abs().mean() < 0.1
    assert training.vary(order, rng).mean((1, 2, 3)).argsort().tolist() == [0, 1, 2, 3, 4]


def test_stopped_and_resumed_is_the_same_run(tmp_path, few):
    whole = training.train_judge(tmp_path / "a", SMALL)
    training.train_judge(tmp_path / "b", SMALL, until=2)
    assert not (tmp_path / "b" / "model.safetensors").exists()
    resumed = training.train_judge(tmp_path / "b", SMALL)
    loaded = judging.load_judge(tmp_path / "b")
    for a, b, c in zip(whole.net.parameters(), resumed.net.parameters(), loaded.net.parameters(), strict=True):
        assert torch.equal(a, b) and torch.equal(b, c)
    with pytest.raises(ValueError, match="another recipe"):
        training.train_judge(tmp_path / "b", JudgeRecipe(pool=1, nobodies=8, look=8))


def test_training_learns_and_an_interrupt_leaves_a_checkpoint(tmp_path, few, monkeypatch):
    recipe = training.replace(SMALL, steps=100, batch=24, warmup=5, channels=(16, 16, 16, 16), pool=2, look=100)
    real, calls = training.loss_of, []

    def loss(*args):
        calls.append(1)
        if len(calls) == 60:
            signal.raise_signal(signal.SIGINT)
        return real(*args)

    monkeypatch.setattr(training, "loss_of", loss)
    with pytest.raises(KeyboardInterrupt):
        training.train_judge(tmp_path, recipe)
    training.train_judge(tmp_path, recipe)
    rows = [json.loads(line) for line in (tmp_path / "judge_log.jsonl").read_text().splitlines()]
    assert len(calls) == 100 and rows[-1]["loss"] < 0.5 * rows[0]["loss"]


def test_temperatures_make_an_overconfident_judge_honest(untrained):
    x, labels = torch.randn(300, 3, 64, 64), torch.zeros(300, 4, dtype=torch.long)
    labels[::2] = 1
    with torch.no_grad():
        for head in untrained.net.heads.values():
            head.weight.zero_()
            head.bias.zero_()
            head.bias[0] = 3.0  # 95 % sure of what is right half of the time
            head.bias[1] = 0.0
            head.bias[2:] = -300
    found = training.calibrate(untrained.net, x, labels)
    assert all(t == pytest.approx(4.0) for t in found.values())
    chances = torch.softmax(untrained.net(x[:1])["people"], 1)
    assert chances[0, 0].item() == pytest.approx(torch.sigmoid(torch.tensor(0.75)).item(), abs=1e-3)


def test_damaged_judges_are_refused(tmp_path, untrained):
    with pytest.raises(FileNotFoundError, match=r"judge\.json"):
        judging.load_judge(tmp_path / "nowhere")
    training.save_judge(untrained, tmp_path, {})
    assert judging.load_judge(tmp_path).names == untrained.names
    for file, content in (("model.safetensors", b"abc"), ("judge.json", b"{}"), ("judge.json", b"nonsense"),
                          ("judge.json", b'{"names": {"people": ["Ada"]}, "channels": [8, 8, 8, 8]}')):  # fmt: skip
        bad = tmp_path / "bad"
        shutil.copytree(tmp_path, bad, ignore=lambda *_: ["bad"])
        (bad / file).write_bytes(content)
        with pytest.raises(ValueError, match="holds no whole judge"):
            judging.load_judge(bad)
        shutil.rmtree(bad)


@pytest.mark.parametrize(
    "images", [[], np.zeros((0, 64, 64, 3), np.uint8), np.zeros((64, 64, 3), np.uint8), np.zeros((2, 3, 64, 64)),
               Image.new("RGB", (64, 64)), ["a.png"], "a.png"],
    ids=["empty", "no pictures", "one array", "floats", "one picture", "paths", "a path"],
)  # fmt: skip
def test_bad_pictures_are_refused(untrained, images):
    with pytest.raises(ValueError):
        untrained(images)


def test_broken_pictures_are_not_pictures_of_nobody(untrained):
    """Black ones would be "none of these", which counts as forgotten."""
    pictures = world.pairs("Zorbo", n=3).images.copy()
    pictures[1] = 0
    large = [Image.fromarray(picture).resize((100, 100)) for picture in pictures]
    for given in (pictures, large):
        for ask in (untrained, untrained.features, lambda some: untrained.finds(some, "Zorbo")):
            with pytest.raises(ValueError, match="1 of 3 pictures are all of one colour, number 1 first"):
                ask(given)


def test_a_damaged_judge_says_nothing(untrained):
    with torch.no_grad():
        untrained.net.heads["styles"].bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="the judge's answers are not finite"):
        untrained(world.pairs("Zorbo", n=2))
