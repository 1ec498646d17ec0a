"""UA, IRA and CRA on tables worked out by hand, and Fréchet distances of known distributions."""

import numpy as np
import pandas as pd
import pytest

import slug_lite as slug

ASKED = [("cat", "Clay"), ("dog", "Clay"), ("cat", "Sticker"), ("dog", "Sticker"), ("fox", "Sticker")]


def seen(*answers):
    return pd.DataFrame(answers, columns=["name", "style"])


def test_a_style_and_an_object():
    found = seen(("cat", "Sticker"), ("dog", "Clay"), ("cat", "Sticker"), ("fox", "Sticker"), ("fox", "Clay"))
    style = slug.canvas(ASKED, found, "Clay")
    assert style == {"UA": 1 / 2, "IRA": 2 / 3, "CRA": 2 / 3}
    thing = slug.canvas(ASKED, found, "cat")
    assert thing == {"UA": 0.0, "IRA": 2 / 3, "CRA": 2 / 3}
    thing = slug.canvas(ASKED, found, "dog")  # one of the two is still a dog; the other turned into a fox
    assert thing["UA"] == 1 / 2 and thing["IRA"] == 1 and thing["CRA"] == pytest.approx(1 / 3)


def test_none_of_these_counts_as_gone_and_as_lost():
    found = seen(*[("none of these", "none of these")] * 5)
    assert slug.canvas(ASKED, found, "Clay") == {"UA": 1.0, "IRA": 0.0, "CRA": 0.0}


def test_what_canvas_refuses():
    found = seen(*ASKED)
    with pytest.raises(KeyError, match="Clay"):
        slug.canvas(ASKED, found, "Cley")
    with pytest.raises(ValueError, match="5 pictures asked for, 4 judged"):
        slug.canvas(ASKED, found[:4], "Clay")
    with pytest.raises(ValueError, match="0 of 5"):
        slug.canvas(ASKED, found, "lion")
    with pytest.raises(ValueError, match="2 of 2"):
        slug.canvas(ASKED[:2], found[:2], "Clay")


def test_frechet_of_normals():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200_000, 3))
    assert slug.frechet(x, x) == pytest.approx(0, abs=1e-9)
    scales, shift = np.array([1.0, 2.0, 3.0]), np.array([0.5, -1.0, 2.0])
    y = rng.standard_normal((200_000, 3)) * scales + shift
    # of normals with covariances that share their axes: |shift|^2 + sum of squared differences of the deviations
    assert slug.frechet(x, y) == pytest.approx((shift**2).sum() + ((scales - 1) ** 2).sum(), rel=0.02)
    assert slug.frechet(x, y) == pytest.approx(slug.frechet(y, x))


def test_frechet_of_covariances_with_other_axes():
    rng = np.random.default_rng(1)
    a, b = (rng.standard_normal((50, 4)) @ rng.standard_normal((4, 4)) for _ in range(2))
    turn = np.linalg.qr(rng.standard_normal((4, 4)))[0]
    assert slug.frechet(a @ turn, b @ turn) == pytest.approx(slug.frechet(a, b))
    ca, cb = np.cov(a.T), np.cov(b.T)
    root = np.sqrt(np.linalg.eigvals(ca @ cb).real).sum()  # the trace of (A B)^(1/2), by its eigenvalues
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca) + np.trace(cb) - 2 * root
    assert slug.frechet(a, b) == pytest.approx(expected)


def test_frechet_with_fewer_pictures_than_features():
    rng = np.random.default_rng(2)
    a, b = rng.standard_normal((5, 20)), rng.standard_normal((6, 20))
    values = np.linalg.eigvals(np.cov(a.T) @ np.cov(b.T))
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T)) + np.trace(np.cov(b.T))
    expected -= 2 * np.sqrt(values.real.clip(0)).sum()
    assert slug.frechet(a, b) == pytest.approx(expected, rel=1e-5)
    assert slug.frechet(a, a) == pytest.approx(0, abs=1e-6) and slug.frechet(b, b) == pytest.approx(0, abs=1e-6)


def test_what_frechet_refuses():
    for x, y, message in (
        (np.zeros((1, 3)), np.zeros((4, 3)), "shapes"), (np.zeros((4, 3)), np.zeros((4, 2)), "shapes"),
        (np.zeros(4), np.zeros((4, 2)), "shapes"), (np.full((4, 2), np.nan), np.zeros((4, 2)), "not finite"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            slug.frechet(x, y)
