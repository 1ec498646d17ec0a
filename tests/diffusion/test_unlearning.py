"""Unlearning for a pipeline: preconditioned directions, steps longer than CLIP's, where others are shifted least."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from small_clips import small_validation
from small_pipelines import build, make, pipeline, same, state

import slug_lite as slug
from slug_lite import Pairs, Task, algorithm, several
from slug_lite.diffusion import unlearning
from slug_lite.diffusion.drawing import prompt_states
from slug_lite.diffusion.precondition import DAMPING, input_moments, precondition
from slug_lite.diffusion.text_encoder import text_encoder_from
from slug_lite.diffusion.unlearning import (
    LONGER,
    PROBED,
    SEARCH,
    check_pipeline_of,
    has_layer,
    least_shift,
    reaches_all,
    shift,
)
from slug_lite.gradients import forget_gradients
from slug_lite.runtime.stacks import STACKS
from slug_lite.runtime.text_towers import translate_names
from slug_lite.search import Found, make_delta
from slug_lite.world.tasks import task

world = slug.toonworld
NAME = "Ada Sunfield"
BOTH = [NAME, "Gearhart"]
ONE_FRONT = replace(SEARCH, fronts=1)
BLOCK = "transformer.resblocks.1."
PROMPTS = ["a portrait of Bruno Marlowick", "a picture of a fox"]


def short_task(name, without=()):
    validate = small_validation(name, n=12, size=64, without=without)
    return task(name, n_forget=12, n_retain=48, validate=validate, without=without)


@pytest.fixture(scope="module")
def quick():
    """A task that is quickly searched."""
    return short_task(NAME)


@pytest.fixture(scope="module")
def two():
    return [short_task(name, [other for other in BOTH if other != name]) for name in BOTH]


@pytest.fixture
def handed_on(monkeypatch):
    """What `unlearn_pipeline` hands to the search in rounds, which is not done: (targets, validates, ...), by name."""
    calls = []

    def in_rounds(targets, validates, directions, fronts, search, *, find):
        pipe, probed = find.args
        assert find.func is least_shift and not find.keywords and pipe is targets[1]
        calls.append(SimpleNamespace(targets=targets, validates=validates, directions=directions, fronts=fronts,
                                     search=search, probed=probed))  # fmt: skip
        return {name: replace(make(targets[0]), concept=name, trace=pd.DataFrame({"k": [0]})) for name in validates}

    monkeypatch.setattr(unlearning, "in_rounds", in_rounds)
    monkeypatch.setattr(unlearning, "scorer_of", lambda validate, clip: SimpleNamespace(on_the_rest=dict))
    monkeypatch.setattr(unlearning, "reported", lambda edit, *rest, **settings: edit)
    return calls


def encoder_weights(pipe):
    return dict(pipe.text_encoder.named_parameters())


# ---- one concept, from names to an edit


def test_clips_step_made_longer_where_others_are_shifted_least(mini, mini_pipe, quick, spy):
    rounds, before = spy(unlearning, "in_rounds"), state(mini_pipe)
    edit = slug.unlearn_pipeline(mini_pipe, mini, quick, search=ONE_FRONT)
    (one,) = rounds
    rows = edit.trace[edit.trace["forgotten"]].groupby("layer")
    steps, shifts = rows["step"].min(), rows["shift"].first()
    assert len(shifts) > 1 and edit.layer == shifts.idxmin() and edit.step == pytest.approx(LONGER * steps[edit.layer])
    assert torch.equal(edit.delta, make_delta(one["directions"][NAME][edit.layer], edit.step))
    probed = one["find"].args[1]
    assert shifts[edit.layer] == pytest.approx(shift(mini_pipe, edit, probed)) and 0 < shifts.min() < 0.5
    assert edit.check(mini_pipe) and edit.check(mini) and edit.base == slug.fingerprint(mini)
    assert edit.concept == NAME and set(edit.trace["concept"]) == {NAME} and has_layer(mini_pipe, edit.layer)
    known = quick.validate(mini)
    with edit.on(mini):  # CLIP, which needs less, has forgotten as well
        score = quick.validate(mini)
    assert score["forget_accuracy"] == 0
    told = edit.report  # of CLIP with the whole edit on, and not with CLIP's own step
    assert told.forgotten and told.max_accuracy_drop is None and told.split == "val" and told.margin == ONE_FRONT.margin
    assert told.standardized_margin == pytest.approx(score["standardized_margin"], rel=1e-4)
    assert (told.retained_before, told.retained_after) == (known["retain_accuracy"], score["retain_accuracy"])
    assert same(state(mini_pipe), before) and len(STACKS) == 0


A, B, C = BLOCK + "mlp.c_fc.weight", BLOCK + "mlp.c_proj.weight", BLOCK + "attn.out_proj.weight"


@pytest.fixture
def searched(clip, pipe, monkeypatch):
    """searched({layer: (CLIP's step, retained accuracy)}, {layer: shift}, ...): what `least_shift` makes of them."""

    def run(steps, shifts=None, *, fronts=((A, B, C),), search=SEARCH, prompts=PROMPTS):
        calls = []

        def found(clip, directions, layers, validate, how):
            calls.append((list(layers), how))
            out = {}
            for layer in layers:
                step, kept = steps.get(layer, (None, None))
                score = None if step is None else {"retain_accuracy": kept}
                rows = {"layer": layer, "step": step or 9.0, "forget_accuracy": 0.5, "forgotten": step is not None}
                rows = pd.DataFrame([rows])
                out[layer] = Found(step, score, rows)
            return out

        monkeypatch.setattr(unlearning, "search_layers", found)
        if shifts is not None:
            monkeypatch.setattr(unlearning, "shift", lambda pipe, edit, prompts: shifts[edit.layer])
        seeded = torch.Generator().manual_seed(0)
        directions = {n: torch.randn(w.shape, generator=seeded) for n, w in clip.weights().items()}
        edit = least_shift(pipe, prompts, clip, NAME, lambda _: {}, directions, fronts, search)
        assert torch.equal(edit.delta, make_delta(directions[edit.layer], edit.step))
        assert edit.delta.device.type == "cpu"
        return edit, calls

    return run


@pytest.mark.parametrize("least", [A, B, C])
def test_the_layer_that_shifts_the_prompts_least(searched, clip, least):
    search = replace(SEARCH, margin=3.0)
    steps = {A: (0.1, 0.9), B: (0.2, 0.8), C: (0.3, 0.7)}
    edit, calls = searched(steps, {layer: 0.1 if layer == least else 0.2 for layer in steps}, search=search)
    assert (edit.layer, edit.step, edit.concept) == (least, LONGER * steps[least][0], NAME)
    assert edit.base == slug.fingerprint(clip) and calls == [([A, B, C], search)]
    told = edit.trace.set_index("layer")["shift"].to_dict()
    assert told == {layer: 0.1 if layer == least else 0.2 for layer in steps}


def test_layers_are_searched_once_and_those_that_do_not_forget_are_left_out(searched):
    """A later round tries the layer found before as a front of its own."""
    edit, calls = searched({B: (0.2, 0.5), C: (0.3, 0.9)}, {B: 0.1, C: 0.2}, fronts=[[B], [A, B, C]])
    assert edit.layer == B and calls == [([B, A, C], SEARCH)]
    assert edit.trace["shift"].isna().tolist() == [False, True, False]


def test_without_prompts_the_layer_that_keeps_most_by_clips_word(searched):
    for kept, wanted in (((0.9, 0.8), A), ((0.8, 0.9), B)):
        edit, _ = searched({A: (0.1, kept[0]), B: (0.2, kept[1])}, prompts=())
        assert edit.layer == wanted


def test_a_step_beyond_half_precision_is_no_edit(searched):
    edit, _ = searched({A: (60_000.0, 0.9), B: (0.1, 0.8)}, {B: 0.3})
    assert edit.layer == B and edit.trace["shift"].isna().tolist() == [True, False, True]
    with pytest.raises(slug.NothingForgets, match=f"CLIP forgets '{NAME}', but no step {LONGER} times as long"):
        searched({A: (60_000.0, 0.9)}, {})


def test_a_shift_that_is_no_number_is_not_the_least(searched):
    nan = float("nan")
    for first, rest in ((A, (B, C)), (B, (A, C))):
        edit, _ = searched({A: (0.1, 0.9), B: (0.2, 0.8), C: (0.3, 0.7)}, {first: nan, rest[0]: 0.3, rest[1]: 0.2})
        assert edit.layer == C and edit.trace.set_index("layer")["shift"].isna().to_dict()[first]
    with pytest.raises(slug.NothingForgets, match="breaks the text encoder"):
        searched({A: (0.1, 0.9)}, {A: nan})


def test_a_broken_text_encoder_is_no_shift(pipe, clip):
    edit = make(clip)
    with torch.no_grad():
        list(pipe.text_encoder.parameters())[-1].fill_(float("nan"))
    with pytest.raises(ValueError, match="2 of 2 prompts' states are not finite"):
        shift(pipe, edit, PROMPTS)


def test_where_no_layer_forgets_and_where_there_is_none(searched):
    with pytest.raises(slug.NothingForgets, match=f"none of 3 layers forgot '{NAME}' in {SEARCH.evaluations}") as e:
        searched({}, {})
    assert list(e.value.trace["layer"]) == [A, B, C] and e.value.trace["shift"].isna().all()
    with pytest.raises(slug.NothingForgets, match=f"forget loss of '{NAME}' does not reach any layer"):
        searched({}, {}, fronts=[])


def test_the_shift_is_of_the_states_of_all_positions(clip, pipe):
    edit = make(clip, C)
    before = prompt_states(pipe, PROMPTS)
    with edit.on(pipe):
        after = prompt_states(pipe, PROMPTS)
    pairs = [(before[i, j], after[i, j]) for i in range(len(PROMPTS)) for j in range(before.shape[1])]
    wanted = sum(((b - a).norm() / a.norm()).item() for a, b in pairs) / len(pairs)
    assert shift(pipe, edit, PROMPTS) == pytest.approx(wanted, rel=1e-4)
    assert shift(pipe, edit, ()) == 0.0 and torch.equal(prompt_states(pipe, PROMPTS), before)
    other = make(clip, A)
    with other.on(pipe):  # another concept's edit is on: the shift is what this one adds
        assert shift(pipe, edit, PROMPTS) > 0


# ---- several concepts


def test_two_names_with_each_others_edits_on(mini, mini_pipe, two, monkeypatch):
    """On CLIP and on the pipeline: both see the other's change while a name is searched, in two rounds."""
    original = {n: w.detach().clone() for n, w in (*mini.weights().items(), *encoder_weights(mini_pipe).items())}
    search, seen = unlearning.search_layers, []

    def changed(weights):
        return {n for n, w in weights.items() if not torch.equal(w, original[n])}

    def watched(clip, directions, layers, validate, how):
        assert clip is mini
        seen.append((validate.forget, changed(mini.weights()), changed(encoder_weights(mini_pipe))))
        return search(clip, directions, layers, validate, how)

    monkeypatch.setattr(unlearning, "search_layers", watched)
    few = [replace(one, protect=one.protect[:2]) for one in two]
    edit = slug.unlearn_pipeline(mini_pipe, mini, few, search=replace(ONE_FRONT, evaluations=6))
    assert set(edit.trace["round"]) == {0, 1} and edit.concept == " + ".join(BOTH) and edit.check(mini_pipe)
    assert 1 <= len(edit.layers) <= 2 and [name for name, *_ in seen] == BOTH * 2
    assert not seen[0][1] and not seen[0][2]
    for _, on_clip, on_pipe in seen[1:]:
        assert len(on_clip) == 1 and set(translate_names(*on_clip, encoder_weights(mini_pipe))) == on_pipe


def test_several_names_protect_all_others_and_preserve_none_of_themselves(mini, mini_pipe, two, handed_on, spy):
    """Gradients of what the tasks protect are projected out; then directions are preconditioned."""
    protected, tasks = spy(several, "protect_layers"), spy(unlearning, "tasks_of")
    few = [replace(one, protect=one.protect[:2]) for one in two]
    slug.unlearn_pipeline(mini_pipe, mini, few, search=ONE_FRONT, seed=3)
    (now,), (one,), (asked,) = handed_on, protected, tasks
    assert asked["seed"] == 3 and len(one["directions"]) == 2
    assert list(now.validates) == list(now.directions) == list(now.fronts) == BOTH
    assert now.targets == [mini, mini_pipe]
    prompts = list(dict.fromkeys(few[0].retain.captions))
    assert set(now.probed) <= set(prompts) and not any(name in text for text in now.probed for name in BOTH)
    layers = list(now.directions[NAME])
    kept = forget_gradients(mini, few[0].protect, layers=lambda n, _: n in layers)
    moments = input_moments(mini_pipe, prompts, layers)
    for layer in layers:
        size, moment = moments[layer].shape[0], moments[layer]
        damped = moment + DAMPING * moment.diagonal().mean() * torch.eye(size)
        before = now.directions[NAME][layer].double() @ damped  # what it was before it was preconditioned
        for gradient in (one[layer].double() for one in kept):
            assert ((before * gradient).sum() / before.norm() / gradient.norm()).abs() < 1e-2, layer


# ---- what is looked at


def test_what_the_pipeline_lacks_is_not_looked_at(mini, mini_pipe):
    assert not has_layer(mini_pipe, "text_projection") and not has_layer(mini_pipe, "visual.proj")
    assert not has_layer(mini_pipe, "transformer.resblocks.4.mlp.c_fc.weight")  # mini CLIP has four blocks
    for layer in ("transformer.resblocks.3.attn.in_proj_weight", "transformer.resblocks.0.mlp.c_fc.weight"):
        assert has_layer(mini_pipe, layer) and has_layer(mini_pipe.text_encoder, layer) and has_layer(mini, layer)
    assert has_layer(mini, "visual.proj") and not has_layer(mini, "visual.projection")
    assert has_layer(mini, "encoder.layers.0.self_attn.q_proj.weight")
    shorter = pipeline_without_last(mini_pipe, mini)
    assert has_layer(shorter, "transformer.resblocks.2.mlp.c_proj.weight")
    assert not has_layer(shorter, "transformer.resblocks.3.mlp.c_proj.weight")


def test_a_gradient_in_the_last_block_knows_the_end_of_the_text_alone(mini, quick):
    """Which positions' states the forget loss depends on, behind each block: all of them, but for the last."""
    states = {}
    hooks = [block.register_forward_hook(lambda _, __, out, k=k: (out.retain_grad(), states.update({k: out}), None)[-1])
             for k, block in enumerate(mini.model.transformer.resblocks)]  # fmt: skip
    tokens = mini.tokenizer([f"a portrait of {NAME} with a hat"])
    try:
        mini.model.encode_text(tokens).sum().backward()
    finally:
        mini.model.zero_grad()
        for hook in hooks:
            hook.remove()
    end, last = tokens.argmax().item(), max(states)
    for k, state_ in states.items():
        reached = state_.grad.reshape(-1, state_.shape[-1]).abs().sum(1).nonzero().flatten().tolist()
        assert reached == ([end] if k == last else list(range(end + 1)))
    for layer in (n for n in mini.weights() if n.startswith("transformer.resblocks.")):
        assert reaches_all(mini, layer) == (f"resblocks.{last}." not in layer), layer


def pipeline_without_last(pipe, clip):
    models = {k: getattr(pipe, k) for k in ("unet", "vae", "tokenizer", "scheduler")}
    return pipeline(models, text_encoder_from(clip, skip=1))


def test_layers_of_all_fronts_at_once_without_the_last_block(mini, mini_pipe, quick, handed_on):
    """Of one front or of all: a single list of layers, none of the vision tower, of the last block, or text_projection;
    no gradient of another layer is kept."""
    searches = [replace(SEARCH, fronts=k) for k in (1, 2, 1000)] + [replace(SEARCH, fronts=2, measure="cosine")]
    for search in searches:
        slug.unlearn_pipeline(mini_pipe, mini, quick, preserve=(), search=search)
    slug.unlearn_pipeline(pipeline_without_last(mini_pipe, mini), mini, quick, preserve=(), search=searches[2])
    own = [n for n, w in mini.weights().items() if slug.editable(n, w) and mini.tower(n) == "text"]
    has = {n for n in own if "resblocks.3." not in n and n != "text_projection"}
    stats = slug.one_shot_gradients(mini, quick.forget, quick.retain, layers=lambda n, _: n in has).stats
    for now, search in zip(handed_on, [*searches, searches[2]], strict=True):
        wanted = [layer for front in slug.pareto_fronts(stats, search.fronts, by=search.measure) for layer in front]
        assert now.fronts == {NAME: [wanted]} and set(now.directions[NAME]) == set(wanted)
        assert now.search is search
    assert len(has) == 12 and set(handed_on[2].directions[NAME]) == has
    assert [*handed_on[1].directions[NAME]] != [*handed_on[3].directions[NAME]]


def test_steps_are_preconditioned_by_what_is_to_be_preserved(mini, mini_pipe, quick, handed_on):
    """Along g C^-1 of each layer, C of the prompts to preserve; along g itself with nothing to preserve."""
    captions = list(dict.fromkeys(quick.retain.captions))
    many = [f"a picture number {k}" for k in range(3 * PROBED + 30)]
    given = [(), None, PROMPTS, PROMPTS * 2, many]
    for preserve in given:
        slug.unlearn_pipeline(mini_pipe, mini, quick, preserve=preserve, search=ONE_FRONT)
    slug.unlearn_pipeline(mini_pipe, mini, [quick], preserve=PROMPTS, search=ONE_FRONT)
    own = slug.one_shot_gradients(mini, quick.forget, quick.retain).forget
    layers = list(handed_on[0].directions[NAME])
    for now, prompts in zip(handed_on, [[], captions, PROMPTS, PROMPTS, many, PROMPTS], strict=True):
        assert list(now.directions[NAME]) == layers
        assert now.probed == (prompts[::3][:PROBED] if prompts == many else prompts[:PROBED])
        moments = input_moments(mini_pipe, prompts, layers) if prompts else {}
        for layer, found in now.directions[NAME].items():
            wanted = precondition(own[layer], moments[layer]) if moments else own[layer]
            assert torch.allclose(found, wanted, rtol=1e-3, atol=1e-4 * wanted.abs().max().item()), layer
    apart = torch.cosine_similarity(*(now.directions[NAME][layers[0]].flatten() for now in handed_on[:2]), dim=0)
    assert apart < 0.9


# ---- where the options go


def test_the_options_of_one_concept(mini, mini_pipe, quick, handed_on, spy):
    """Seed, memory, retain set, validation, and search."""
    made, gradients = spy(unlearning, "as_task"), spy(algorithm, "one_shot_gradients")
    search, memory = replace(SEARCH, fronts=2), slug.Memory(batch_size=7, passes=2)
    retain, validate = quick.retain[:40], quick.validate
    slug.unlearn_pipeline(
        mini_pipe, mini, quick.forget, retain, validate=validate, search=search, memory=memory, seed=5
    )
    (now,), (one,), (called,) = handed_on, made, gradients
    assert one["concept"] is quick.forget and one["retain"] is retain and one["validate"] is validate
    assert one["seed"] == 5 and called["retain"] is retain
    assert [some is quick.forget for some in called["forget"]] == [True]
    assert (called["batch_size"], called["passes"]) == (7, 2) and called["clip"] is mini
    assert now.search is search and now.validates == {NAME: validate} and now.targets == [mini, mini_pipe]
    assert set(now.probed) <= set(retain.captions)
    slug.unlearn_pipeline(mini_pipe, mini, quick)
    assert handed_on[1].search is SEARCH and slug.StepSearch("margin", 2.0) == SEARCH


def test_names_are_tasks_of_the_world(mini, mini_pipe, handed_on, spy, monkeypatch):
    from slug_lite.world import tasks

    monkeypatch.setattr(tasks.task, "__kwdefaults__", {**tasks.task.__kwdefaults__, "n_forget": 4, "n_retain": 16})
    made = {name: spy(world, name) for name in ("pairs", "retain", "validation")}
    slug.unlearn_pipeline(mini_pipe, mini, NAME, seed=2)
    (now,) = handed_on
    assert now.validates[NAME].forget == NAME and now.probed and not any(NAME in text for text in now.probed)
    assert {one["seed"] for calls in made.values() for one in calls} == {2}


def test_memory_bounds_the_gradients_of_what_is_protected(mini, mini_pipe, two, handed_on, spy):
    held, few = spy(several, "forget_gradients"), [replace(one, protect=one.protect[:1]) for one in two]
    slug.unlearn_pipeline(mini_pipe, mini, few, search=ONE_FRONT, memory=slug.Memory(batch_size=6, passes=2))
    assert len(held) == 2 and {one["memory"].batch_size for one in held} == {6}


# ---- left as they were


@pytest.mark.parametrize("moment", ["moments", "validation", "shift"])
def test_an_interrupt_leaves_pipeline_and_clip_as_they_were(mini, mini_pipe, quick, monkeypatch, moment):
    """While prompts are encoded, in CLIP's validation, while a step is on the pipeline."""
    before, flags = state(mini_pipe), [(p.requires_grad, p.grad) for p in mini.model.parameters()]
    modes = [module.training for module in mini.model.modules()]
    encode, calls, scored = type(mini_pipe).encode_prompt, [], []

    def asked(clip):
        scored.append(1)
        if moment == "validation" and len(scored) == 3:
            raise KeyboardInterrupt
        return {"forget_accuracy": 0.0, "retain_accuracy": 1.0}

    def encoded(pipe, prompts, *rest):
        calls.append(1)
        if moment == "moments" or (moment == "shift" and not same(state(pipe), before)):
            encode(pipe, prompts, *rest)
            raise KeyboardInterrupt
        return encode(pipe, prompts, *rest)

    monkeypatch.setattr(type(mini_pipe), "encode_prompt", encoded)
    with pytest.raises(KeyboardInterrupt):
        slug.unlearn_pipeline(mini_pipe, mini, replace(quick, validate=asked), search=ONE_FRONT)
    assert same(state(mini_pipe), before) and len(STACKS) == 0  # the fixture compares CLIP's weights
    assert [(p.requires_grad, p.grad) for p in mini.model.parameters()] == flags
    assert [module.training for module in mini.model.modules()] == modes
    assert not any(m._forward_pre_hooks for m in mini_pipe.text_encoder.modules())
    assert calls and len(scored) == {"moments": 1, "validation": 3}.get(moment, len(scored))  # asked once at the door


# ---- bad requests


def negated(clip):
    """The same CLIP, with one weight of the text tower's second block turned round."""
    other = slug.Clip(copy.deepcopy(clip.model), clip.tokenizer, clip.preprocess)
    other.weights()["transformer.resblocks.1.mlp.c_fc.weight"].data.neg_()
    return other


def test_pipelines_that_do_not_fit(mini, mini_pipe, parts):
    from diffusers import DDPMPipeline

    for target in (mini_pipe.text_encoder, mini, None):
        with pytest.raises(ValueError, match="drawn by a StableDiffusionPipeline"):
            slug.unlearn_pipeline(target, mini, NAME)
    with pytest.raises(ValueError, match="DDPMPipeline; a StableDiffusionPipeline is needed"):
        slug.unlearn_pipeline(DDPMPipeline(unet=mini_pipe.unet, scheduler=mini_pipe.scheduler), mini, NAME)
    for clip, message in (
        (build(), r"is not this CLIP's text tower: .*is \("),
        (negated(mini), r"the CLIP is \w{24}, .*differ in block 1$"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            slug.unlearn_pipeline(pipeline(parts, text_encoder_from(clip)), mini, NAME)
        assert "force" not in str(caught.value)
    strange = slug.Clip(copy.deepcopy(build().model), None, None)
    strange.model.transformer = torch.nn.Module()
    strange.model.token_embedding = strange.model.positional_embedding = strange.model.ln_final = None
    with pytest.raises(ValueError, match="has no weight of this CLIP's text tower"):
        check_pipeline_of(mini_pipe, strange)
    check_pipeline_of(mini_pipe, mini)


def test_requests_that_do_not_fit(mini, mini_pipe, quick, two, handed_on):
    """All before anything is searched."""
    own, rest = Pairs(quick.forget.images, quick.forget.captions), quick.retain
    of_zorbo = small_validation("Zorbo", n=2)
    for error, message, clip, concept, more in (
        (KeyError, "did you mean 'Ada Sunfield'", mini, "Ada Sunfeld", {}),
        (KeyError, "did you mean 'Zorbo'", mini, [NAME, "Zorbi"], {}),
        (ValueError, r"concepts is \[\]", mini, [], {}),
        (ValueError, "Zorbo, Zorbo", mini, ["Zorbo", "Zorbo"], {}),
        (ValueError, "concept is 3", mini, 3, {}),
        (ValueError, "needs a retain set", mini, own, {}),
        (ValueError, "needs a retain set", mini, own, {"retain": rest}),
        (ValueError, "validation asks for 'Zorbo'", mini, NAME, {"validate": of_zorbo}),
        (ValueError, "asks for Zorbo", mini, quick.forget, {"retain": rest, "validate": of_zorbo}),
        (ValueError, "preserve='a cat'; give a sequence of texts", mini, NAME, {"preserve": "a cat"}),
        (ValueError, "given one by one, as Tasks", mini, two, {"retain": rest}),
        (ValueError, "given one by one, as Tasks", mini, two, {"validate": quick.validate}),
        (ValueError, "no vision tower", mini_pipe, NAME, {}),
    ):
        with pytest.raises(error, match=message):
            slug.unlearn_pipeline(mini_pipe, clip, concept, **more)
    assert not handed_on
    for concept in (own, quick.forget, Task(own, rest, quick.validate, "my dog")):
        more = {} if isinstance(concept, Task) else {"retain": rest, "validate": quick.validate}
        slug.unlearn_pipeline(mini_pipe, mini, concept, search=ONE_FRONT, **more)
    assert [list(now.validates) for now in handed_on] == [[NAME], [NAME], ["my dog"]]
