"""The step for a pipeline is searched on what it draws: a painter of ours, who stops to know a name when we say."""

import copy

import numpy as np
import open_clip
import pytest
import torch
from test_diffusion import build, parts, pipeline  # noqa: F401 - a fixture among them

import slug_lite as slug
from slug_lite import drawn as D
from slug_lite.bystanders import gentle, input_moments
from slug_lite.diffusion import has_layer, text_encoder_from
from slug_lite.pretrain_diffusion import hidden_states
from slug_lite.unlearn import CLEARANCE

world = slug.toonworld
NAME = "Ada Sunfield"
QUICK = {"n_forget": 12, "n_retain": 48, "fronts": 1, "spare": (), "progress": False}


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
        assert drawer is pipe and not progress
        weights = dict(pipe.text_encoder.named_parameters())
        change = {k: (p - original[k]).norm().item() for k, p in weights.items() if not torch.equal(p, original[k])}
        Painter.asked.append((tuple(prompts), n, seed, steps, change))
        names = [n for names in world.NAMES.values() for n in names]
        pictures = []
        for k in range(n):
            shown = next(n for n in sorted(names, key=len, reverse=True) if n in prompts[k % len(prompts)])
            gone, to_go = not Painter.knows(change), shown in Painter.names
            if (to_go and gone) or (not to_go and Painter.spoils(change)):
                shown = "Hugo Duportal" if shown != "Hugo Duportal" else "Felix Moorhaven"
            cell = (shown,)
            if shown in world.OBJECTS:
                cell = next(c for c in world.cells("train") if c[0] == shown)
            elif shown in world.STYLES:
                cell = next(c for c in world.cells("train") if c[1] == shown)
            pictures.append(world.renderings(cell, 1, seed=seed + k, split="val")[0])
        return slug.Pairs(np.stack(pictures), [prompts[k % len(prompts)] for k in range(n)])

    Painter.asked, Painter.names = [], (NAME,)
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
    assert 1.7 <= edit.step / clip_step(edit) <= 1.7 * max(D.LONGER)
    drawn = edit.trace[(edit.trace["by"] == "pictures") & (edit.trace["layer"] == edit.layer)]
    assert len(drawn) > 1 and (drawn["step"] >= clip_step(edit)).all()


def tried(edit):
    """The layers whose edits were drawn, in turn."""
    return list(dict.fromkeys(edit.trace[edit.trace["by"] == "pictures"]["layer"]))


@pytest.mark.parametrize("turn", [1, -1])
def test_the_layer_that_moves_the_others_least_comes_first(mini, pipe, painter, quick, monkeypatch, turn):
    painter.knows = staticmethod(lambda change: not change)
    size = {name: turn * k for k, name in enumerate(sorted(mini.weights()))}
    monkeypatch.setattr(D.DrawnScorer, "moved", lambda self, edit: size[edit.layer])
    edit = slug.unlearn(mini, NAME, pipe=pipe, validate=quick, **QUICK)
    by_clip = edit.trace[(edit.trace["by"] == "CLIP") & edit.trace["forgotten"]]["layer"]
    assert len(set(by_clip)) > 1 and tried(edit) == [min(by_clip, key=size.__getitem__)] == [edit.layer]


def test_a_layer_waits_its_turn_while_its_step_gets_longer(mini, pipe, painter, quick, monkeypatch):
    """What moves the others least is tried next, be it a longer step or another layer: two layers whose steps move
    them 1 and 2 for each length of CLIP's step; by the second it is forgotten from 1.2 such steps on."""
    layers = ["transformer.resblocks.1.mlp.c_proj.weight", "transformer.resblocks.2.mlp.c_proj.weight"]
    gradients = {n: torch.randn(mini.weights()[n].shape, generator=torch.Generator().manual_seed(0)) for n in layers}
    begin, pace = dict.fromkeys(layers, 0.01), dict(zip(layers, (1, 2), strict=True))
    scorer = slug.DrawnValidation.of_world(pipe, NAME, n=2, others=8).prepare(mini)
    shown, now = [], []

    def moved(self, edit):
        return pace[edit.layer] * edit.steps[edit.layer] / 0.01

    def forgetting(self):
        layer, step = next((n, edit.steps[n]) for edit in now for n in edit.layers)
        shown.append((layers.index(layer), round(step / 0.01, 3)))
        gone = layer == layers[1] and step >= 0.012
        return {"forget_accuracy": 0.0 if gone else 0.4, "clearance": 9.0 if gone else 0.0}

    class Watched(slug.Edit):
        def on(self, target, *, force=False):
            now[:] = [self]
            return super().on(target, force=force)

    monkeypatch.setattr(D, "Edit", Watched)
    monkeypatch.setattr(D.DrawnScorer, "moved", moved)
    monkeypatch.setattr(D.DrawnScorer, "forgetting", forgetting)
    monkeypatch.setattr(D.DrawnScorer, "retaining", lambda self: {"retain_accuracy": 1.0})
    settings = {"rule": "margin", "evaluations": 10, "progress": False}
    out = D.lengthen(gradients, begin, scorer, 0.9, settings)
    assert shown == [(0, 1.0), (0, 1.25), (0, 1.562), (0, 1.953), (1, 1.0), (0, 2.441), (1, 1.25)]
    assert out[layers[0]].step is None and out[layers[1]].step == pytest.approx(0.0125)
    # not enough is kept: the rest go on, but no further than half as far again
    monkeypatch.setattr(D.DrawnScorer, "retaining", lambda self: {"retain_accuracy": 0.5})
    shown.clear()
    out = D.lengthen(gradients, begin, scorer, 0.9, settings)
    assert shown[-2:] == [(1, 1.25), (0, 3.052)] and out[layers[1]].step == pytest.approx(0.0125)
    # every layer has so many tries and no more
    monkeypatch.setattr(D.DrawnScorer, "forgetting", lambda self: {"forget_accuracy": 1.0, "clearance": -1.0})
    out = D.lengthen(gradients, begin, scorer, 0.9, {**settings, "evaluations": 3})
    assert [len(out[n].trace) for n in layers] == [3, 3] and not any(search.step for search in out.values())
    assert out[layers[0]].trace["step"].tolist() == pytest.approx([0.01, 0.015, 0.0225])  # most pictures show it
    # beyond half precision a layer is left out, and the others go on
    begin = {layers[0]: 1e4, layers[1]: 0.01}
    out = D.lengthen(gradients, begin, scorer, 0.9, settings)
    assert len(out[layers[0]].trace) < 10 == len(out[layers[1]].trace)


def test_how_much_an_edit_moves_what_the_painter_is_told(mini, pipe, painter):
    layer = "transformer.resblocks.1.mlp.c_fc.weight"
    scorer = slug.DrawnValidation.of_world(pipe, NAME, n=2, others=8).prepare(mini)
    gradient = torch.randn(mini.weights()[layer].shape, generator=torch.Generator().manual_seed(0))
    edits = [slug.Edit({layer: (step * gradient).half()}, {layer: step}, "", slug.fingerprint(mini))
             for step in (0.0, 0.01, 0.02)]  # fmt: skip
    none, some, more = (scorer.moved(edit) for edit in edits)
    assert none == 0 < some < more < 1
    texts = [prompt for prompt, _ in scorer.validation.others]
    before = hidden_states(mini, texts)
    with edits[2].on(mini):
        after = hidden_states(mini, texts)
    wanted = ((after - before).norm(dim=2) / before.norm(dim=2)).mean().item()
    assert more == pytest.approx(wanted, rel=1e-3)
    alone = slug.DrawnValidation.of_world(pipe, NAME, n=2, others=0).prepare(mini)
    assert alone.moved(edits[1]) == 0
    pipe.text_encoder.half()  # said in the precision of the pipeline, measured in that of the CPU
    try:
        assert scorer.moved(edits[2]) == pytest.approx(wanted, rel=0.02)
    finally:
        pipe.text_encoder.float()


def test_steps_for_a_pipeline_are_turned_away_from_what_is_held(mini, pipe, painter, quick):
    """The edit is along g C^-1 of its layer, and along g itself with nothing to hold."""
    painter.knows = staticmethod(lambda change: not change)
    forget, retain = world.pairs(NAME, n=12, seed=0), world.retain([NAME], n=48, seed=0)
    plain = slug.DrawnValidation.of_world(pipe, NAME, hold=False)
    held = slug.DrawnValidation.of_world(pipe, NAME)
    assert plain.hold == () and plain.others == held.others and plain.prompts == held.prompts
    for check in (plain, held, pipe):
        edit = slug.unlearn(mini, NAME, pipe=check, validate=quick, **QUICK)
        own = slug.one_shot_gradients(mini, forget, retain, layers=lambda n, _, e=edit: n == e.layer, progress=False)
        direction = own.forget[edit.layer]
        if check is not plain:
            direction = gentle(direction, input_moments(pipe, held.hold, [edit.layer])[edit.layer])
        cosine = torch.cosine_similarity(direction.flatten(), edit.delta.float().flatten(), dim=0)
        assert cosine > 0.999 and edit.delta.float().norm() == pytest.approx(
            edit.step * direction.norm().item(), rel=1e-2
        )
    listed = slug.unlearn(mini, [NAME], pipe=pipe, validate=quick, **QUICK)
    assert listed.layer == edit.layer and torch.equal(listed.delta, edit.delta)


def test_what_is_held(pipe):
    """Prompts of every other name, and of every cell without it, in the sentences to choose on."""
    check = slug.DrawnValidation.of_world(pipe, "fox", without=["Zorbo", "Clay"])
    assert not any(name in prompt for prompt in check.hold for name in ("fox", "Zorbo", "Clay"))
    left = [n for names in world.NAMES.values() for n in names if n not in ("fox", "Zorbo", "Clay")]
    singles = {t.format(n) for n in left for t in world.templates(world.kind_of(n), "val")}
    pairs = {
        world.templates("cells", "val")[0].format(*c) for c in world.cells("train") if not {"fox", "Clay"} & set(c)
    }
    assert set(check.hold) == singles | pairs and len(check.hold) == len(singles) + len(pairs)
    for others in (0, 9, 24, 36):
        assert len(slug.DrawnValidation.of_world(pipe, NAME, others=others).others) == others
    kinds = [world.kind_of(name) for _, name in slug.DrawnValidation.of_world(pipe, NAME).others]
    assert {kind: kinds.count(kind) for kind in world.NAMES} == {
        kind: len(names) // 2 for kind, names in world.NAMES.items()
    }


def test_a_pipeline_asks_half_the_clearance_of_clip(mini, pipe, painter, quick):
    painter.knows = staticmethod(lambda change: not change)
    asked = [slug.unlearn(mini, NAME, pipe=pipe, validate=quick, **QUICK, **more).trace.query("by == 'CLIP'")["asked"]
             for more in ({}, {"clearance": 3.0})]  # fmt: skip
    assert [set(some) for some in asked] == [{CLEARANCE / 2}, {3.0}]


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
    with pytest.raises(slug.NothingForgets, match=r"still draws it; nearest: .* accuracy 83%") as caught:
        slug.unlearn(mini, NAME, pipe=pipe, validate=quick, evaluations=6, **QUICK)
    assert set(caught.value.trace["by"]) == {"pictures"}


def test_a_painter_who_never_knew(mini, pipe, painter, quick):
    painter.knows = staticmethod(lambda change: False)
    with pytest.raises(ValueError, match="nothing to forget"):
        slug.unlearn(mini, NAME, pipe=pipe, validate=quick, **QUICK)


def test_two_names_in_the_company_of_each_other(mini, pipe, painter):
    """With the first edit on the pipeline too: the painter sees both changes while the second is searched."""
    painter.knows, painter.names = staticmethod(lambda change: not change), (NAME, "Gearhart")
    edit = slug.unlearn(mini, [NAME, "Gearhart"], pipe=pipe, **QUICK)
    assert len(edit.steps) == 2 or len(edit.layers) == 1
    both = [change for *_, change in painter.asked if len(change) > 1]
    assert both and edit.check(pipe)
    assert set(edit.trace["by"]) == {"CLIP", "pictures"}


def test_what_the_pipeline_lacks_is_not_looked_at(mini, pipe):
    assert not has_layer(pipe, "text_projection") and not has_layer(pipe, "visual.proj")
    assert not has_layer(pipe, "transformer.resblocks.4.mlp.c_fc.weight")  # mini CLIP has four blocks
    for layer in ("transformer.resblocks.3.attn.in_proj_weight", "transformer.resblocks.0.mlp.c_fc.weight"):
        assert has_layer(pipe, layer)
    shorter = pipeline_without_last(pipe, mini)
    assert has_layer(shorter, "transformer.resblocks.2.mlp.c_proj.weight")
    assert not has_layer(shorter, "transformer.resblocks.3.mlp.c_proj.weight")


def negated(clip):
    """The same CLIP, with one weight of the text tower's second block turned round."""
    other = slug.Clip(copy.deepcopy(clip.model), clip.tokenizer, clip.preprocess)
    other.weights()["transformer.resblocks.1.mlp.c_fc.weight"].data.neg_()
    return other


def pipeline_without_last(pipe, clip):
    models = {k: getattr(pipe, k) for k in ("unet", "vae", "tokenizer", "scheduler")}
    return pipeline(models, text_encoder_from(clip, skip=1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("kind", ["clip's", "custom", "one block less"])
def test_a_try_reaches_the_pipeline_as_the_edit_will(parts, monkeypatch, kind, dtype):  # noqa: F811
    clip = build(maker=open_clip.CustomTextCLIP if kind == "custom" else open_clip.CLIP)
    pipe = pipeline(parts, text_encoder_from(clip, skip=int(kind == "one block less")), dtype)
    layer = next(n for n in clip.weights() if n.endswith("transformer.resblocks.0.attn.in_proj_weight")
                 and clip.tower(n) == "text")  # fmt: skip
    delta = 0.3 * torch.randn(clip.weights()[layer].shape, generator=torch.Generator().manual_seed(0))
    edit = slug.Edit({layer: delta.half()}, {layer: 1.0}, NAME, slug.fingerprint(clip))
    before, wanted = encoder_state(pipe), []
    with edit.on(pipe):
        wanted.append(encoder_state(pipe))
    validation = slug.DrawnValidation(pipe, NAME, [f"a {NAME}"], [], {"people": world.PEOPLE}, {"people": ["{}"]}, n=2)
    seen = []

    def draws(*_, **__):
        seen.append(encoder_state(pipe))
        raise ZeroDivisionError

    monkeypatch.setattr(D, "generated_pairs", draws)
    clip.model.train()
    with monkeypatch.context() as patch:  # what the concept looks like before is no matter here
        patch.setattr(D.DrawnScorer, "_embed", lambda self, _, n: self.classifiers["people"][:1].repeat(n, 1))
        scorer = validation.prepare(clip)
    settings = {"rule": "margin", "evaluations": 1, "progress": False}
    with pytest.raises(ZeroDivisionError):
        D.lengthen({layer: delta}, {layer: 1.0}, scorer, 0.0, settings)
    assert clip.model.training and len(seen) == 1
    for changed in seen:
        assert all((changed[n] - wanted[0][n]).abs().max() <= 1e-3 * wanted[0][n].abs().max() for n in changed)
        assert any(not torch.equal(changed[n], before[n]) for n in changed)
    assert all(torch.equal(p, before[n]) for n, p in encoder_state(pipe).items())


def encoder_state(pipe):
    return {n: p.detach().clone() for n, p in pipe.text_encoder.named_parameters()}


def test_what_is_drawn_is_scored(mini, pipe, painter):
    painter.knows = staticmethod(lambda change: not change)
    score = slug.DrawnValidation.of_world(pipe, NAME, n=6, others=9)
    assert len(score.others) == 9 and not any(name == NAME for _, name in score.others)
    scorer = score.prepare(mini)
    known, kept = scorer.forgetting(), scorer.retaining()
    assert known["forget_accuracy"] >= 0.8 and known["margin"] < 0 and kept["retain_accuracy"] == 1
    assert {asked[1] for asked in painter.asked} == {6, 9}
    layer = "transformer.resblocks.1.mlp.c_fc.weight"
    edit = slug.Edit({layer: torch.full(mini.weights()[layer].shape, 1e-3).half()}, {layer: 1.0}, NAME,
                     slug.fingerprint(mini))  # fmt: skip
    with edit.on(pipe):  # an edit that is on the pipeline counts
        assert scorer.forgetting()["forget_accuracy"] == 0
    painter.spoils = staticmethod(bool)
    with edit.on(pipe):
        lost = scorer.retaining()
    assert lost["retain_accuracy"] < 0.5 and lost["retain_loss"] > kept["retain_loss"]
    assert slug.DrawnValidation.of_world(pipe, NAME, others=0).prepare(mini).retaining() == {}
    less = slug.DrawnValidation.of_world(pipe, NAME, others=8, without=["Bruno Marlowick", "cat"])
    assert not {"Bruno Marlowick", "cat"} & {name for _, name in less.others}


@pytest.mark.parametrize("name", ["Clay", "fox"])
def test_objects_and_styles_are_asked_for_in_cells(pipe, name):
    """Alone as before, and in cells of the grid; others in cells without it; people are not concerned."""
    check = slug.DrawnValidation.of_world(pipe, name, n=8, others=16, without=["Sticker", "cat"])
    alone = [text.format(name) for text in world.templates(world.kind_of(name), "val")]
    asked = {world.templates("cells", "val")[0].format(*cell): cell for cell in world.cells("train")}
    in_cells = [asked[prompt] for prompt in check.prompts[len(alone) :]]
    assert list(check.prompts[: len(alone)]) == alone and len(set(in_cells)) == len(in_cells) >= 5
    assert len(check.prompts) <= 8 and all(name in cell and not {"Sticker", "cat"} & set(cell) for cell in in_cells)
    for prompt, other in check.others:
        if world.kind_of(other) in ("objects", "styles"):
            assert other in asked[prompt] and not {name, "Sticker", "cat"} & set(asked[prompt])
        else:
            assert prompt == world.templates(world.kind_of(other), "val")[0].format(other)
    person = slug.DrawnValidation.of_world(pipe, NAME)
    assert not {*person.prompts, *(prompt for prompt, _ in person.others)} & set(asked)


def test_bad_requests(mini, pipe, parts, quick):  # noqa: F811
    with pytest.raises(ValueError, match="no vision tower"):
        slug.unlearn(mini, NAME, pipe=pipe, tower="vision")
    with pytest.raises(ValueError, match="drawn by a StableDiffusionPipeline"):
        slug.unlearn(mini, NAME, pipe=pipe.text_encoder)
    for clip, message in ((build(), r"is not this CLIP's text tower: .*is \("), (negated(mini), "differ in block 1")):
        with pytest.raises(ValueError, match=message) as caught:
            slug.unlearn(mini, NAME, pipe=pipeline(parts, text_encoder_from(clip)))
        assert "force" not in str(caught.value)
    own, rest = world.pairs(NAME, n=4), world.retain([NAME], n=8)
    with pytest.raises(ValueError, match="DrawnValidation as pipe="):
        slug.unlearn(mini, own, rest, validate=quick, pipe=pipe)
    other = slug.DrawnValidation.of_world(pipe, "Zorbo")
    with pytest.raises(ValueError, match="asks for 'Zorbo'"):
        slug.unlearn(mini, NAME, pipe=other)
    with pytest.raises(ValueError, match="the forget set shows Ada Sunfield, the drawn validation asks for Zorbo"):
        slug.unlearn(mini, own, rest, validate=quick, pipe=other)
    with pytest.raises(ValueError, match="one by one"):
        slug.unlearn(mini, [NAME, "Zorbo"], pipe=other)
    settings = {"others": [], "names": world.NAMES, "templates": {kind: ["{}"] for kind in world.NAMES}}
    for change, error, message in (
        ({"prompts": "a cat"}, ValueError, "sequence of texts"), ({"prompts": []}, ValueError, "sequence of texts"),
        ({"n": 0}, ValueError, "n=0"), ({"pipe": mini}, ValueError, "drawn by a"),
        ({"forget": "Ada Sunfeld"}, KeyError, "Ada Sunfield"), ({"others": [("x", "catt")]}, KeyError, "cat"),
        ({"templates": {"people": ["{}"]}}, ValueError, "templates for"),
        ({"names": {**world.NAMES, "objects": ("cat", NAME)}}, ValueError, "there 2 times"),
        ({"names": {**world.NAMES, "styles": ("Clay",)}}, ValueError, "two names at least"),
        ({"templates": {kind: "{}" for kind in world.NAMES}}, ValueError, "sequence of templates"),
        ({"batch_size": 0}, ValueError, "batch_size=0"), ({"hold": "a cat"}, ValueError, "hold='a cat'"),
    ):  # fmt: skip
        given = {"pipe": pipe, "forget": NAME, "prompts": ["a"], **settings, **change}
        with pytest.raises(error, match=message):
            slug.DrawnValidation(**given)
