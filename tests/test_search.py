"""The step search on a made-up concept that is gone beyond a known step."""

import pytest
import torch

from slug_lite import search
from slug_lite.edit import add_delta
from slug_lite.search import first_step, forgotten, make_delta, next_step, search_step

LAYER = "text_projection"


class Known:
    """Scores a model by how far a weight has moved along the gradient: forgotten from `threshold` on."""

    def __init__(self, clip, gradient, threshold, clear_from=None):
        self.weight, self.original = clip.weights()[LAYER], clip.weights()[LAYER].detach().clone()
        self.gradient, self.threshold, self.clear_from, self.seen = gradient, threshold, clear_from, []

    def __call__(self):
        moved = ((self.weight - self.original) * self.gradient).sum() / self.gradient.pow(2).sum()
        self.seen.append(moved.item())
        gone = self.seen[-1] >= self.threshold * 0.999
        score = {"forget_accuracy": 0.0 if gone else 1.0, "retain_accuracy": 1.0}
        if self.clear_from is not None:
            score["clearance"] = 4.0 * self.seen[-1] / self.clear_from
        return score


@pytest.fixture
def gradient(tiny):
    torch.manual_seed(0)
    return torch.randn_like(tiny.weights()[LAYER])


@pytest.mark.parametrize("factor", [0.3, 1.0, 5.7, 40.0])
def test_finds_the_smallest_step_that_forgets(tiny, gradient, factor):
    begin = first_step(tiny.weights()[LAYER], gradient)
    score = Known(tiny, gradient, factor * begin)
    found = search_step(tiny, LAYER, gradient, score, rule="paper")
    assert len(found.trace) == 10
    assert factor * begin * 0.99 <= found.step <= factor * begin * 1.3
    assert found.score["forget_accuracy"] == 0
    assert score.seen == pytest.approx(list(found.trace.step), rel=5e-3)  # the model held what the trace says


def test_begins_at_a_tenth_of_the_weight_then_doubles_then_halves(tiny, gradient):
    begin = first_step(tiny.weights()[LAYER], gradient)
    assert begin == pytest.approx((tiny.weights()[LAYER].norm() / gradient.norm() / 10).item())
    trace = search_step(tiny, LAYER, gradient, Known(tiny, gradient, 3 * begin), evaluations=5, rule="paper").trace
    assert list(trace.step / begin) == pytest.approx([1, 2, 4, 3, 2.5], rel=1e-6)
    assert list(trace.forgotten) == [False, False, True, True, False]


def test_the_step_is_positive(tiny, gradient):
    assert first_step(tiny.weights()[LAYER], gradient) > 0
    assert torch.equal(make_delta(gradient, 0.5), (0.5 * gradient).half())


def test_the_margin_rule_goes_further_than_the_papers(tiny, gradient):
    begin = first_step(tiny.weights()[LAYER], gradient)
    paper, margin = (
        search_step(tiny, LAYER, gradient, Known(tiny, gradient, 2 * begin, clear_from=3 * begin), rule=rule).step
        for rule in ("paper", "margin")
    )
    assert paper == pytest.approx(2 * begin, rel=0.05) and margin == pytest.approx(3 * begin, rel=0.05)


@pytest.mark.parametrize("factor", [0.3, 1.0, 2.9, 5.7, 40.0])
def test_following_the_margin_takes_fewer_tries_for_a_step_as_short(tiny, gradient, factor):
    threshold = factor * first_step(tiny.weights()[LAYER], gradient)

    class Bent(Known):
        """The clearance flattens out, as it does in a real model; some pictures are known for longer than others."""

        def __call__(self):
            score = super().__call__()
            score["clearance"] = 4.0 * (self.seen[-1] / threshold) ** 0.4
            return score

    halved = search_step(tiny, LAYER, gradient, Bent(tiny, gradient, threshold), rule="paper")
    found = search_step(tiny, LAYER, gradient, Bent(tiny, gradient, threshold))
    assert threshold * 0.99 <= found.step <= max(1.035 * threshold, halved.step * 1.01)
    bracketed = int((found.trace.forgotten != found.trace.forgotten[0]).argmax()) + 1
    assert len(found.trace) <= min(bracketed + 4, len(halved.trace))


def test_where_the_margin_says_nothing_the_interval_is_halved(tiny, gradient):
    begin = first_step(tiny.weights()[LAYER], gradient)
    trace = search_step(tiny, LAYER, gradient, Known(tiny, gradient, 3 * begin)).trace
    assert list(trace.step[:5] / begin) == pytest.approx([1, 2, 4, 3, 2.5], rel=1e-6)
    exact = search_step(tiny, LAYER, gradient, Known(tiny, gradient, 3 * begin), precision=0.0).trace
    assert len(trace) < len(exact) == 10


def test_next_step():
    assert next_step(1.0, (1.0, 0.5), None, 4.0) == 2.0
    assert next_step(2.0, (1.0, 2.0), (2.0, 6.0), 4.0) == pytest.approx(1.5)
    assert next_step(2.0, (1.0, 3.0), (2.0, 7.0), 4.0) == pytest.approx(1.25)
    assert next_step(2.0, (1.0, 3.999), (2.0, 7.0), 4.0) == pytest.approx(1.05)  # never stuck at an end
    assert next_step(2.0, (1.0, 5.0), (2.0, 7.0), 4.0) == 1.5  # wide enough, and yet a picture was known: halve
    assert next_step(2.0, None, (2.0, 7.0), 4.0) == 1.0
    assert next_step(2.0, (1.0, 3.0), (2.0, 7.0), None) == 1.5


def test_the_rest_is_scored_at_the_chosen_step_alone(tiny, gradient):
    begin = first_step(tiny.weights()[LAYER], gradient)

    class Parted(Known):
        retained = 0

        def forgetting(self):
            return {"forget_accuracy": self()["forget_accuracy"]}

        def retaining(self):
            Parted.retained += 1
            moved = ((self.weight - self.original) * self.gradient).sum() / self.gradient.pow(2).sum()
            assert moved.item() == pytest.approx(max(x for x in self.seen if x <= moved * 1.01), rel=5e-3)
            return {"retain_accuracy": moved.item()}

    found = search_step(tiny, LAYER, gradient, Parted(tiny, gradient, 3 * begin))
    whole = search_step(tiny, LAYER, gradient, Known(tiny, gradient, 3 * begin), whole=True)
    assert found.step == whole.step and Parted.retained == 1
    assert found.score["retain_accuracy"] == pytest.approx(found.step, rel=5e-3)
    row = found.trace.dropna(subset=["retain_accuracy"])
    assert list(row.step) == [found.step] and whole.trace.retain_accuracy.notna().all()


def test_rules():
    assert forgotten({"forget_accuracy": 0.0, "clearance": 1.0}, "paper")
    assert not forgotten({"forget_accuracy": 0.0, "clearance": 1.0})
    assert forgotten({"forget_accuracy": 0.0, "clearance": 4.5}) and forgotten({"forget_accuracy": 0.0})
    assert not forgotten({"forget_accuracy": 0.02, "clearance": 9.0})
    with pytest.raises(KeyError, match="'margin'"):
        forgotten({"forget_accuracy": 0.0}, "margins")


def test_no_step_forgets(tiny, gradient):
    found = search_step(tiny, LAYER, gradient, Known(tiny, gradient, 1e9), evaluations=4)
    assert found.step is None and found.score is None and len(found.trace) == 4


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_the_weight_is_put_back(tiny, gradient, error):
    before = tiny.weights()[LAYER].detach().clone()
    calls = []

    def score():
        calls.append(1)
        if len(calls) == 3:
            raise error("stopped")
        return {"forget_accuracy": 1.0}

    with pytest.raises(error):
        search_step(tiny, LAYER, gradient, score)
    assert torch.equal(tiny.weights()[LAYER], before)
    search_step(tiny, LAYER, gradient, lambda: {"forget_accuracy": 1.0})
    assert torch.equal(tiny.weights()[LAYER], before)


def test_what_was_tried_is_what_is_stored(tiny, gradient):
    weight, seen = tiny.weights()[LAYER], {}

    def score():
        seen[len(seen)] = weight.detach().clone()
        return {"forget_accuracy": 0.0}

    original = weight.detach().clone()
    found = search_step(tiny, LAYER, gradient, score, evaluations=1)
    assert torch.equal(seen[0], add_delta(original, make_delta(gradient, found.step)))


def test_refusals(tiny, gradient):
    with pytest.raises(ValueError, match="is zero"):
        search_step(tiny, LAYER, torch.zeros_like(gradient), dict)
    with pytest.raises(ValueError, match="'forget_accuracy' must be among"):
        search_step(tiny, LAYER, gradient, lambda: {"accuracy": 1.0})
    with pytest.raises(ValueError, match=r"gradient is \(2,\)"):
        search_step(tiny, LAYER, torch.ones(2), dict)
    with pytest.raises(KeyError, match="did you mean 'text_projection'"):
        search_step(tiny, "text_projektion", gradient, dict)
    with pytest.raises(ValueError, match="at least 1"):
        search_step(tiny, LAYER, gradient, dict, evaluations=0)


@pytest.mark.parametrize(
    ("factor", "clearance"),
    [(7.5, lambda r: 8 * r**60 - 4), (5, lambda r: 4 + (r - 1) * (0.5 if r > 1 else 300))],
    ids=["steep above", "below"],
)
def test_an_end_that_stays_is_leaned_over(tiny, gradient, monkeypatch, factor, clearance):
    """Where the clearance bends, the plain straight line keeps one end and creeps; the Illinois rule does not."""
    wanted = factor * first_step(tiny.weights()[LAYER], gradient)

    class Bent(Known):
        def __call__(self):
            return super().__call__() | {"clearance": clearance(self.seen[-1] / wanted)}

    def tries():
        found = search_step(tiny, LAYER, gradient, Bent(tiny, gradient, 0.0), evaluations=60)
        assert found.step == pytest.approx(wanted, rel=0.04)
        return len(found.trace)

    illinois = tries()
    monkeypatch.setattr(search, "_nearer", lambda end, clearance: end)
    assert illinois <= 20 and tries() >= illinois + 10


def test_nearer_is_half_way():
    assert search._nearer((3.0, 1.0), 4.0) == (3.0, 2.5) and search._nearer(None, 4.0) is None


@pytest.mark.parametrize("rule", ["margin", "paper"])
def test_a_search_that_starts_somewhere(tiny, rule):
    """It takes no shorter step than that, and is content if that step forgets."""
    layer = next(n for n in tiny.weights() if tiny.tower(n) == "text" and n.endswith("mlp.c_fc.weight"))
    weight, gradient = tiny.weights()[layer], torch.ones_like(tiny.weights()[layer])
    original = weight.detach().clone()

    def score(limit):
        moved = (weight - original).mean().item()
        gone = moved >= limit
        return {"forget_accuracy": 0.0 if gone else 1.0, "clearance": 8 * moved / limit - 4}

    found = search_step(tiny, layer, gradient, lambda: score(0.3), start=0.5, rule=rule, clearance=4.0)
    assert found.step == 0.5 and len(found.trace) == 1
    found = search_step(tiny, layer, gradient, lambda: score(0.8), start=0.5, rule=rule, clearance=4.0)
    assert found.trace["step"].iloc[0] == 0.5 and found.trace["step"].min() == 0.5
    assert 0.79 <= found.step <= 0.83
    for start in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="start="):
            search_step(tiny, layer, gradient, lambda: score(1), start=start)
