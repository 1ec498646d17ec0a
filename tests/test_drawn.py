"""The step for a pipeline is searched on what it draws: a painter of ours, who stops to know a name when we say."""

import numpy as np
import pytest
import torch
from test_diffusion import build, parts, pipeline  # noqa: F401 - a fixture among them

import slug_lite as slug
from slug_lite import drawn as D
from slug_lite.diffusion import has_layer, text_encoder_from
from slug_lite.drawn import as_encoder

world = slug.toonworld
NAME = "Ada Sunfield"
QUICK = {"n_forget": 12, "n_retain": 48, "fronts": 1, "progress": False}


@pytest.fixture(scope="module")
def pipe(_mini, parts):  # noqa: F811
    """Mini CLIP's text encoder, with a UNet that is never asked."""
    return pipeline(parts, text_encoder_from(_mini))


@pytest.fixture(scope="module")
def quick(_mini):
    return slug.Validation.of_world(NAME, n=12, others=1)


@pytest.fixture
def painter(pipe, mini, monkeypatch):
    """Draws renderings of what a prompt names. `painter.knows(change)` says if he still knows NAME, and
    `painter.spoils(change)` if all others are lost, by how the encoder's weights have changed."""
    original = {n: p.detach().clone() for n, p in pipe.text_encoder.named_parameters()}

    class Painter:
        knows = staticmethod(lambda change: True)
        spoils = staticmethod(lambda change: False)

    def draws(drawer, prompts, n, *, seed=0, batch_size=4, steps=None, guidance_scale=None, progress=True):
        assert drawer is pipe and batch_size == n and not progress
        weights = dict(pipe.text_encoder.named_parameters())
        change = {k: (p - original[k]).norm().item() for k, p in weights.items() if not torch.equal(p, original[k])}
        Painter.asked.append((tuple(prompts), n, seed, steps, change))
        names = [n for names in world.NAMES.values() for n in names]
        pictures = []
        for k in range(n):
            shown = next(n for n in sorted(names, key=len, reverse=True) if n in prompts[k % len(prompts)])
            if (shown == NAME and not Painter.knows(change)) or (shown != NAME and Painter.spoils(change)):
                shown = "Hugo Duportal" if shown != "Hugo Duportal" else "Felix Moorhaven"
            cell = (shown,)
            if shown in world.OBJECTS:
                cell = next(c for c in world.cells("train") if c[0] == shown)
            elif shown in world.STYLES:
                cell = next(c for c in world.cells("train") if c[1] == shown)
            pictures.append(world.renderings(cell, 1, seed=seed + k, split="val")[0])
        return slug.Pairs(np.stack(pictures), [prompts[k % len(prompts)] for k in range(n)])

    Painter.asked = []
    monkeypatch.setattr(D, "generated_pairs", draws)
    yield Painter
    assert all(torch.equal(p, original[n]) for n, p in pipe.text_encoder.named_parameters())


def clip_step(edit):
    """The step that CLIP's own validation asked for in the edit's layer."""
    rows = edit.trace[(edit.trace["layer"] == edit.layer) & edit.trace["forgotten"] & (edit.trace["by"] == "CLIP")]
    return rows["step"].min()


def test_no_longer_than_clip_needs_if_that_will_do(mini, pipe, painter, quick):
    painter.knows = staticmethod(lambda change: not change)
    edit = slug.unlearn(mini, NAME, pipe=pipe, validate=quick, **QUICK)
    assert edit.step == clip_step(edit) and has_layer(pipe, edit.layer)
    drawn = edit.trace[edit.trace["by"] == "pictures"]
    assert len(drawn) == 1 and drawn["forget_accuracy"].item() == 0 and drawn["retain_accuracy"].item() == 1
    assert edit.check(pipe)
    first = next(asked for asked in painter.asked if NAME in asked[0][0])
    assert first[1:4] == (12, 0, 20) and all(NAME in prompt for prompt in first[0])


def test_longer_until_the_painter_forgets(mini, pipe, painter, quick):
    size = {}

    def knows(change):  # up to 1.7 times the first step that he is shown
        if not change:
            return True
        key = tuple(change)
        now = sum(v**2 for v in change.values()) ** 0.5
        return now < 1.7 * size.setdefault(key, now)

    painter.knows = staticmethod(knows)
    edit = slug.unlearn(mini, NAME, pipe=pipe, validate=quick, **QUICK)
    assert 1.7 <= edit.step / clip_step(edit) <= 1.7 * 1.12
    drawn = edit.trace[edit.trace["by"] == "pictures"]
    assert (drawn["step"] >= clip_step(edit)).all()


def test_a_layer_that_costs_the_others_is_passed_over(mini, pipe, painter, quick):
    painter.knows = staticmethod(lambda change: not change)
    seen = []

    def spoils(change):
        key = tuple(change)
        if key and key not in seen:
            seen.append(key)
        return bool(key) and key == seen[0]

    painter.spoils = staticmethod(spoils)
    edit = slug.unlearn(mini, NAME, pipe=pipe, validate=quick, **QUICK)
    assert len(seen) == 2
    first, last = edit.trace[edit.trace["by"] == "pictures"]["layer"].unique()
    assert edit.layer == last != first


def test_a_painter_who_never_forgets(mini, pipe, painter, quick):
    with pytest.raises(slug.NothingForgets, match="Ada Sunfield"):
        slug.unlearn(mini, NAME, pipe=pipe, validate=quick, evaluations=6, **QUICK)


def test_what_the_pipeline_lacks_is_not_looked_at(mini, pipe):
    assert not has_layer(pipe, "text_projection") and not has_layer(pipe, "visual.proj")
    assert not has_layer(pipe, "transformer.resblocks.4.mlp.c_fc.weight")  # mini CLIP has four blocks
    for layer in ("transformer.resblocks.3.attn.in_proj_weight", "transformer.resblocks.0.mlp.c_fc.weight"):
        assert has_layer(pipe, layer)
    shorter = pipeline_without_last(pipe, mini)
    assert has_layer(shorter, "transformer.resblocks.2.mlp.c_proj.weight")
    assert not has_layer(shorter, "transformer.resblocks.3.mlp.c_proj.weight")


def pipeline_without_last(pipe, clip):
    models = {k: getattr(pipe, k) for k in ("unet", "vae", "tokenizer", "scheduler")}
    return pipeline(models, text_encoder_from(clip, skip=1))


def test_the_encoder_is_the_towers_for_a_while(parts):  # noqa: F811
    clip = build()
    pipe = pipeline(parts, text_encoder_from(clip))
    before = {n: p.detach().clone() for n, p in pipe.text_encoder.named_parameters()}
    layer = "transformer.resblocks.1.attn.in_proj_weight"
    delta = 0.3 * torch.randn(clip.weights()[layer].shape, generator=torch.Generator().manual_seed(0))
    edit = slug.Edit({layer: delta.half()}, {layer: 1.0}, NAME, slug.fingerprint(clip))
    with edit.on(pipe):
        wanted = {n: p.detach().clone() for n, p in pipe.text_encoder.named_parameters()}
    with edit.on(clip), pytest.raises(ZeroDivisionError), as_encoder(clip, pipe):
        assert all(torch.equal(p, wanted[n]) for n, p in pipe.text_encoder.named_parameters())
        raise ZeroDivisionError
    assert all(torch.equal(p, before[n]) for n, p in pipe.text_encoder.named_parameters())


def test_a_drawn_validation_scores_the_clip_as_it_is(mini, pipe, painter):
    painter.knows = staticmethod(lambda change: not change)
    score = slug.DrawnValidation.of_world(pipe, NAME, n=6, others=8)
    assert len(score.others) == 8 and not any(name == NAME for _, name in score.others)
    known = score(mini)
    assert known["forget_accuracy"] == 1 and known["margin"] < 0 and known["retain_accuracy"] == 1
    layer = "transformer.resblocks.1.mlp.c_fc.weight"
    edit = slug.Edit({layer: torch.full(mini.weights()[layer].shape, 1e-3).half()}, {layer: 1.0}, NAME,
                     slug.fingerprint(mini))  # fmt: skip
    scorer = score.prepare(mini)
    with edit.on(mini):
        assert scorer.forgetting()["forget_accuracy"] == 0 and scorer()["retain_accuracy"] == 1
    less = slug.DrawnValidation.of_world(pipe, NAME, others=8, without=["Bruno Marlowick", "cat"])
    assert not {"Bruno Marlowick", "cat"} & {name for _, name in less.others}


def test_bad_requests(mini, pipe, parts, quick):  # noqa: F811
    with pytest.raises(ValueError, match="no vision tower"):
        slug.unlearn(mini, NAME, pipe=pipe, tower="vision")
    with pytest.raises(ValueError, match="drawn by a StableDiffusionPipeline"):
        slug.unlearn(mini, NAME, pipe=pipe.text_encoder)
    with pytest.raises(ValueError, match=r"text tower is not this one|is \("):
        slug.unlearn(mini, NAME, pipe=pipeline(parts, text_encoder_from(build())))
    own, rest = world.pairs(NAME, n=4), world.retain([NAME], n=8)
    with pytest.raises(ValueError, match="DrawnValidation as pipe="):
        slug.unlearn(mini, own, rest, validate=quick, pipe=pipe)
    other = slug.DrawnValidation.of_world(pipe, "Zorbo")
    with pytest.raises(ValueError, match="asks for 'Zorbo'"):
        slug.unlearn(mini, NAME, pipe=other)
    with pytest.raises(ValueError, match="one by one"):
        slug.unlearn(mini, [NAME, "Zorbo"], pipe=other)
    settings = {"others": [], "names": world.NAMES, "templates": {kind: ["{}"] for kind in world.NAMES}}
    for change, error, message in (
        ({"prompts": "a cat"}, ValueError, "sequence of texts"), ({"prompts": []}, ValueError, "sequence of texts"),
        ({"n": 0}, ValueError, "n=0"), ({"pipe": mini}, ValueError, "drawn by a"),
        ({"forget": "Ada Sunfeld"}, KeyError, "Ada Sunfield"), ({"others": [("x", "catt")]}, KeyError, "cat"),
        ({"templates": {"people": ["{}"]}}, ValueError, "templates for"),
        ({"names": {**world.NAMES, "objects": ("cat", NAME)}}, ValueError, "of 2 kinds"),
    ):  # fmt: skip
        given = {"pipe": pipe, "forget": NAME, "prompts": ["a"], **settings, **change}
        with pytest.raises(error, match=message):
            slug.DrawnValidation(**given)
