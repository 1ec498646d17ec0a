"""Edits: on and off bit for bit, in any order, through files, and only on the model that they were made for."""

import asyncio
import contextlib
import copy
import random
import re
import threading
import time
from contextlib import ExitStack

import pytest
import torch
from safetensors.torch import load_file, save_file

import slug_lite as slug
from slug_lite.runtime import stacks
from slug_lite.runtime.modes import eval_mode
from slug_lite.runtime.undo import together

LAYER = "transformer.resblocks.0.attn.out_proj.weight"
OTHER = "visual.proj"


def make(clip, layer=LAYER, seed=0, concept="Ada Sunfield"):
    torch.manual_seed(seed)
    delta = 0.3 * torch.randn(clip.weights()[layer].shape)  # on the CPU, as all edits are
    return slug.Edit({layer: delta.half()}, {layer: 1.5}, concept, slug.fingerprint(clip))


def plus(values, *edits):
    """A weight's values with the deltas of edits added, one after the other."""
    for edit in edits:
        values = values + edit.delta.to(values)
    return values


def state(clip):
    return {n: t.clone() for n, t in clip.model.state_dict().items()}


def same(a, b):
    return all(torch.equal(a[n], b[n]) for n in a)


def test_on_changes_one_tensor_and_restores_it(tiny):
    edit, before = make(tiny), state(tiny)
    with edit.on(tiny) as inside:
        assert inside is tiny
        now = state(tiny)
        assert [n for n in now if not torch.equal(now[n], before[n])] == [LAYER]
        assert torch.equal(now[LAYER], plus(before[LAYER], edit))
    assert same(state(tiny), before) and len(stacks.STACKS) == 0


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_on_restores_everything_after_an_exception(tiny, error):
    edit = make(tiny)
    weights = tiny.weights()
    weights[OTHER].requires_grad_(False)
    weights[LAYER].grad = torch.ones_like(weights[LAYER])
    kept = weights[LAYER].grad
    before, modes = state(tiny), [m.training for m in tiny.model.modules()]
    with pytest.raises(error), edit.on(tiny):
        tiny.model.train()
        for p in weights.values():
            p.requires_grad_(True)
        tiny.text_features(tiny.tokens(["a"])).sum().backward()
        with torch.no_grad():
            weights[LAYER].mul_(2)
        raise error("stopped")
    assert same(state(tiny), before) and modes == [m.training for m in tiny.model.modules()]
    assert weights[LAYER].grad is kept and torch.equal(kept, torch.ones_like(kept))
    assert weights[OTHER].grad is None and not weights[OTHER].requires_grad
    assert all(p.grad is None for n, p in weights.items() if n != LAYER)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (0, 2, 1)])
def test_edits_nest_and_come_off_in_any_order(tiny, order):
    before = state(tiny)
    edits = [make(tiny, seed=1), make(tiny, seed=2), make(tiny, OTHER, seed=3)]
    contexts = [e.on(tiny) for e in edits]
    for context in contexts:
        context.__enter__()
    remaining = [0, 1, 2]
    for k in order:
        contexts[k].__exit__(None, None, None)
        remaining.remove(k)
        expected = {n: t.clone() for n, t in before.items()}
        for i in remaining:
            expected[edits[i].layer] = plus(expected[edits[i].layer], edits[i])
        assert same(state(tiny), expected)
    assert same(state(tiny), before)


def test_the_same_edit_twice(tiny):
    edit, before = make(tiny), state(tiny)
    with edit.on(tiny), edit.on(tiny):
        assert torch.equal(tiny.weights()[LAYER], plus(before[LAYER], edit, edit))
    assert same(state(tiny), before)


def test_several_blocks_as_one_come_off_where_it_ends(tiny):
    """And not where somebody lets go of them; also of a block that could not be entered."""
    edit, other, before = make(tiny), make(tiny, OTHER), state(tiny)
    blocks = [edit.on(tiny), other.on(tiny), eval_mode(tiny.model)]
    tiny.model.train()
    with together(blocks):
        assert torch.equal(tiny.weights()[LAYER], plus(before[LAYER], edit)) and not tiny.model.training
        assert torch.equal(tiny.weights()[OTHER], plus(before[OTHER], other))
    assert same(state(tiny), before) and not stacks.STACKS and tiny.model.training
    stranger = slug.Edit(edit.deltas, edit.steps, "x", "0123456789abcdef-")
    blocks = [other.on(tiny), stranger.on(tiny)]
    with pytest.raises(ValueError, match="was made for the model"):
        together(blocks).__enter__()
    assert same(state(tiny), before) and not stacks.STACKS


def test_apply_and_revert(tiny):
    edit, before = make(tiny), state(tiny)
    edit.apply(tiny)
    assert torch.equal(tiny.weights()[LAYER], plus(before[LAYER], edit))
    with pytest.raises(ValueError, match="was made for the model"):
        edit.apply(tiny)  # the model is another one now
    edit.revert(tiny)
    torch.testing.assert_close(tiny.weights()[LAYER].detach(), before[LAYER], rtol=0, atol=1e-6)


def test_apply_under_an_edit_that_is_on(tiny):
    edit, other, before = make(tiny), make(tiny, seed=5), state(tiny)
    with other.on(tiny):
        edit.apply(tiny)
    assert torch.equal(tiny.weights()[LAYER], plus(before[LAYER], edit))
    assert not stacks.STACKS and slug.fingerprint(tiny) != edit.base  # for good: it is not one that is on


def test_saved_and_loaded_bit_for_bit(tiny, tmp_path):
    edit = make(tiny)
    file = edit.save(tmp_path / "ada.safetensors")
    again = slug.Edit.load(file)
    assert again.layer == LAYER and again.step == 1.5 and again.concept == "Ada Sunfield" and again.base == edit.base
    assert torch.equal(again.delta, edit.delta) and again.delta.dtype == edit.delta.dtype
    assert again.version == edit.version and list(tmp_path.iterdir()) == [file]
    with again.on(tiny):
        pass


def test_bad_files_are_refused_by_name_of_what_is_wrong(tiny, tmp_path):
    file = make(tiny).save(tmp_path / "edit.safetensors")
    whole = file.read_bytes()
    bad = tmp_path / "bad.safetensors"
    for content in (b"", b"abc", whole[:-10], whole[: len(whole) // 2], b"\x80\x04pickled"):
        bad.write_bytes(content)
        with pytest.raises(ValueError, match="truncated or no safetensors"):
            slug.Edit.load(bad)
    altered = bytearray(whole)
    altered[-1] ^= 1
    bad.write_bytes(bytes(altered))
    with pytest.raises(ValueError, match="altered"):
        slug.Edit.load(bad)
    bad.write_bytes(whole.replace(b"Ada Sunfield", b"Ada Sunfjeld"))
    with pytest.raises(ValueError, match="altered"):
        slug.Edit.load(bad)
    save_file(load_file(file), bad)
    with pytest.raises(ValueError, match="is no edit"):
        slug.Edit.load(bad)
    with pytest.raises(FileNotFoundError, match="no edit file"):
        slug.Edit.load(tmp_path / "missing.safetensors")


def test_another_base_model_is_refused_unless_told(tiny):
    edit = make(tiny)
    other = slug.Clip(copy.deepcopy(tiny.model), tiny.tokenizer, tiny.preprocess)
    with edit.on(other):  # a copy is the same model
        pass
    with torch.no_grad():
        other.weights()["text_projection"].add_(0.1)
    before = state(other)
    with pytest.raises(ValueError, match="was made for the model"), edit.on(other):
        pass
    for put_on in (edit.check, edit.apply):
        with pytest.raises(ValueError, match="was made for the model"):
            put_on(other)
    with edit.on(other, force=True):
        assert not same(state(other), before)
    assert same(state(other), before)
    edit.apply(other, force=True)
    assert torch.equal(state(other)[LAYER], plus(before[LAYER], edit))


def test_merge(tiny):
    before = state(tiny)
    a, b, c = make(tiny, seed=1, concept="a"), make(tiny, seed=2, concept="b"), make(tiny, OTHER, concept="c")
    merged = slug.merge([a, b, c])
    assert merged.layers == [LAYER, OTHER] and merged.concept == "a + b + c" and merged.steps[LAYER] == 3.0
    with merged.on(tiny):
        one = state(tiny)
    with ExitStack() as stack:
        for edit in (a, b, c):
            stack.enter_context(edit.on(tiny))
        three = state(tiny)
    torch.testing.assert_close(one, three, rtol=0, atol=2e-3)
    assert same(state(tiny), before)
    with pytest.raises(ValueError, match="2 layers"):
        _ = merged.layer
    with pytest.raises(ValueError, match="different base"):
        slug.merge([a, slug.Edit(b.deltas, b.steps, "b", "0123")])
    with pytest.raises(ValueError, match="no edits"):
        slug.merge([])
    large = slug.Edit({LAYER: torch.full_like(a.delta, 6e4)}, {LAYER: 1.0}, "large", a.base)
    with pytest.raises(ValueError, match="does not fit into half precision"):
        slug.merge([large, large])
    for bad in ("nan", "inf"):
        delta = a.delta.clone()
        delta[0, 0] = float(bad)
        with pytest.raises(ValueError, match="not finite"):
            slug.Edit({LAYER: delta}, {LAYER: 1.0}, "x", a.base)
    with pytest.raises(ValueError, match="same layers"):
        slug.Edit({LAYER: a.delta}, {}, "x", a.base)


def test_edits_of_older_versions_are_merged_with_newer_ones(tiny):
    """They do not say which text tower they belong to; what is merged says what any of them does."""
    new = make(tiny, seed=1)
    old = slug.Edit(new.deltas, new.steps, "old", new.base.partition("-")[0])
    assert old.base != new.base and {slug.merge(both).base for both in ([old, new], [new, old])} == {new.base}
    with slug.merge([old, new]).on(tiny):
        pass


def test_an_interrupt_while_it_goes_on_leaves_nothing_behind(tiny, monkeypatch):
    """An old original kept in the stack would come back over later changes of the weight."""
    edit, before = make(tiny), state(tiny)
    calls = []

    def interrupted(weight, delta):
        calls.append(1)
        raise KeyboardInterrupt

    monkeypatch.setattr("slug_lite.runtime.stacks.add_delta", interrupted)
    with pytest.raises(KeyboardInterrupt), edit.on(tiny):
        pass
    monkeypatch.undo()
    assert calls and same(state(tiny), before)
    with torch.no_grad():
        tiny.weights()[LAYER].add_(1.0)
    moved = state(tiny)
    with edit.on(tiny, force=True):
        pass
    assert same(state(tiny), moved)


def test_low_rank_is_the_nearest_and_survives_a_file(tiny, tmp_path):
    edit = make(tiny)
    whole = edit.delta.float()
    singular = torch.linalg.svdvals(whole)
    for rank in (1, 3, 1000):
        low = edit.low_rank(rank)
        left, right = low.factors[LAYER]
        assert left.shape[1] == right.shape[0] == min(rank, *whole.shape)
        lost = (low.delta.float() - whole).norm().item()
        assert lost == pytest.approx(singular[rank:].norm().item(), rel=0.01, abs=0.01 * whole.norm().item())
        again = slug.Edit.load(low.save(tmp_path / "low.safetensors"))
        assert torch.equal(again.delta, low.delta) and again.steps == edit.steps and again.base == edit.base
    one, full = (e.save(tmp_path / f"{k}.safetensors") for k, e in enumerate((edit.low_rank(1), edit)))
    assert one.stat().st_size < full.stat().st_size
    assert torch.linalg.matrix_rank(edit.low_rank(1).delta.float(), rtol=1e-2) == 1
    convolution = make(tiny, "visual.conv1.weight")
    assert convolution.low_rank(2).delta.shape == convolution.delta.shape
    with pytest.raises(ValueError, match="rank=0"):
        edit.low_rank(0)


def test_an_interrupt_while_it_comes_off_is_raised_when_everything_is_back(tiny, monkeypatch):
    edit, before = slug.merge([make(tiny), make(tiny, OTHER, concept="other")]), state(tiny)
    take_off, calls = stacks.take_off, []

    def interrupted(weight, token):
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        take_off(weight, token)

    monkeypatch.setattr(stacks, "take_off", interrupted)
    with pytest.raises(KeyboardInterrupt), edit.on(tiny):
        tiny.model.train()
        tiny.weights()[LAYER].requires_grad_(False)
    assert len(calls) == 3 and same(state(tiny), before) and not stacks.STACKS
    assert not tiny.model.training and tiny.weights()[LAYER].requires_grad


def test_merged_edits_of_low_rank_stay_so(tiny, tmp_path):
    a, b, c = make(tiny, seed=1), make(tiny, seed=2), make(tiny, OTHER)
    low = slug.merge([a.low_rank(1), b.low_rank(2), c.low_rank(1)])
    assert [low.factors[layer][0].shape[1] for layer in (LAYER, OTHER)] == [3, 1]
    summed = a.low_rank(1).delta.float() + b.low_rank(2).delta.float()
    assert torch.allclose(low.deltas[LAYER].float(), summed, atol=2e-3 * summed.abs().max().item())
    again = slug.Edit.load(low.save(tmp_path / "low.safetensors"))
    assert all(torch.equal(again.deltas[layer], low.deltas[layer]) for layer in low.layers)
    assert all(torch.equal(again.factors[n][side], low.factors[n][side]) for n in low.layers for side in (0, 1))
    assert slug.merge([a.low_rank(1), b]).factors is None


def in_thread(function):
    """Start it; what it raised is put into the list returned."""
    raised = []

    def run():
        try:
            function()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, raised


def test_threads_that_draw_with_edits_take_turns_and_leave_the_model_as_it_was(tiny):
    edits, before, wrong = [make(tiny, seed=k) for k in range(3)], state(tiny), []

    def serve(edit):
        for _ in range(20):
            with edit.on(tiny):
                wanted = before[LAYER] + edit.delta.float()
                time.sleep(0.0005)
                wrong.extend([] if torch.equal(tiny.weights()[LAYER], wanted) else [edit])

    threads = [in_thread(lambda edit=edit: serve(edit)) for edit in edits]
    for thread, raised in threads:
        thread.join(30)
        assert not thread.is_alive() and raised == []
    assert wrong == [] and same(state(tiny), before) and not stacks.STACKS


@pytest.mark.cpu_only("the stand-in is of one thread")
def test_tasks_of_one_thread_do_not_mix_their_edits(tiny):
    """Two requests of a server of coroutines: the second is told to wait its turn; with a lock both are served."""
    before, seen, one = state(tiny), {}, make(tiny)

    async def request(name, lock):
        async with lock:
            with one.on(tiny):
                await asyncio.sleep(0.01)
                seen[name] = tiny.weights()[LAYER].detach().clone()

    async def serve(*locks):
        return await asyncio.gather(*(request(k, lock) for k, lock in enumerate(locks)), return_exceptions=True)

    outcome = asyncio.run(serve(contextlib.nullcontext(), contextlib.nullcontext()))
    assert outcome[0] is None and isinstance(outcome[1], RuntimeError) and "another asyncio task" in str(outcome[1])
    assert same(before, state(tiny)) and list(seen) == [0]

    async def locked():
        lock = asyncio.Lock()
        return await serve(lock, lock)

    assert asyncio.run(locked()) == [None, None] and torch.equal(seen[0], seen[1]) and same(before, state(tiny))

    async def nested():
        with one.on(tiny), one.on(tiny):  # a task may nest its own
            await asyncio.sleep(0)

    with one.on(tiny):  # and a loop may run inside of a block
        asyncio.run(nested())
    assert same(before, state(tiny))


def test_a_thread_that_has_ended_is_not_the_one_that_is_waited_for(tiny, monkeypatch):
    monkeypatch.setattr("slug_lite.runtime.undo.PATIENCE", 0.05)
    edit, entered, leave = make(tiny), threading.Event(), threading.Event()
    context = edit.on(tiny)
    gone, _ = in_thread(context.__enter__)
    gone.join(30)

    def stay():
        with edit.on(tiny):
            entered.set()
            leave.wait(30)

    there, raised = in_thread(stay)
    assert entered.wait(30)
    with pytest.raises(RuntimeError, match=f"the thread '{re.escape(there.name)}'"), edit.on(tiny):
        pass
    leave.set()
    there.join(30)
    context.__exit__(None, None, None)
    assert not raised and not stacks.STACKS


def test_a_thread_that_waits_too_long_is_told_whom_for(tiny, monkeypatch):
    monkeypatch.setattr("slug_lite.runtime.undo.PATIENCE", 0.05)
    edit, before = make(tiny), state(tiny)
    for change in (lambda: edit.on(tiny).__enter__(), lambda: edit.apply(tiny), lambda: edit.revert(tiny)):
        with edit.on(tiny):
            thread, raised = in_thread(change)
            thread.join(30)
        assert isinstance(raised[0], RuntimeError) and "'MainThread' has had an edit" in str(raised[0])
        assert same(state(tiny), before)


def test_an_edit_left_on_by_a_thread_that_ended_is_not_waited_for(tiny):
    edit, other, before = make(tiny), make(tiny, seed=5), state(tiny)
    context = edit.on(tiny)
    thread, raised = in_thread(context.__enter__)
    thread.join(30)
    with other.on(tiny):
        pass
    assert torch.equal(tiny.weights()[LAYER], before[LAYER] + edit.delta.float()) and not raised
    context.__exit__(None, None, None)
    assert same(state(tiny), before)


@pytest.mark.parametrize("seed", range(40))
def test_nested_and_left_in_any_order_also_flags_modes_and_gradients(tiny, seed):
    """A walk of edits that come and go in any order, while what is inside changes everything that they restore."""
    rng = random.Random(seed)
    weights, edits = tiny.weights(), [make(tiny, rng.choice([LAYER, OTHER]), seed=k) for k in range(4)]
    weights[OTHER].grad = torch.ones_like(weights[OTHER])

    def all_of():
        flags = [(p.requires_grad, None if p.grad is None else p.grad.sum().item()) for p in weights.values()]
        return flags, [module.training for module in tiny.model.modules()]

    before, rest = state(tiny), all_of()
    outer = edits[0].on(tiny)  # the first that restores flags and gradients, left with all the others
    outer.__enter__()
    on, modes = [outer], []
    for _ in range(30):
        if len(on) > 1 and rng.random() < 0.5:
            on.pop(rng.randrange(len(on))).__exit__(None, None, None)
        else:
            an_edit = rng.random() < 0.7
            on.append(rng.choice(edits).on(tiny) if an_edit else eval_mode(tiny.model))
            modes += [] if an_edit else [on[-1]]
            on[-1].__enter__()
        if any(block not in modes for block in on):
            tiny.model.train(rng.random() < 0.5)
            weights[LAYER].requires_grad_(rng.random() < 0.5)
            weights[OTHER].grad = rng.choice([None, torch.zeros_like(weights[OTHER])])
    while on:
        on.pop(rng.randrange(len(on))).__exit__(None, None, None)
    assert same(state(tiny), before) and not stacks.STACKS and all_of() == rest


def test_apply_is_all_or_nothing(tiny, monkeypatch):
    merged, before = slug.merge([make(tiny), make(tiny, OTHER)]), state(tiny)
    write, calls = stacks.set_untouched, []

    def interrupted(weight, values):
        calls.append(1)
        write(weight, values)
        if len(calls) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(stacks, "set_untouched", interrupted)
    with pytest.raises(KeyboardInterrupt):
        merged.apply(tiny)
    assert same(state(tiny), before)
    merged.apply(tiny)
    assert not torch.equal(state(tiny)[LAYER], before[LAYER]) and not torch.equal(state(tiny)[OTHER], before[OTHER])


@pytest.mark.parametrize("way", ["on", "apply", "revert"])
def test_sums_that_the_dtype_cannot_hold_are_refused(tiny, way):
    tiny.model.half()
    large = {LAYER: torch.full_like(tiny.weights()[LAYER], 6e4), OTHER: torch.ones_like(tiny.weights()[OTHER])}
    with torch.no_grad():
        tiny.weights()[LAYER].fill_(-3e4 if way == "revert" else 3e4)
    edit, before = slug.Edit(large, dict.fromkeys(large, 1.0), "x", slug.fingerprint(tiny)), state(tiny)
    with pytest.raises(ValueError, match=r"torch.float16, which cannot hold the sum"):
        if way == "on":
            with edit.on(tiny):
                pass
        else:
            getattr(edit, way)(tiny)
    assert same(state(tiny), before) and not stacks.STACKS


def test_weights_that_were_replaced_inside_come_back(tiny):
    """All of them, and it is told: with the edited ones alone the model would be a mixture of two."""
    tiny.model.register_buffer("seen", torch.zeros(2))
    edit, before, own = make(tiny), state(tiny), dict(tiny.weights())
    others = {name: values + 1 for name, values in tiny.model.state_dict().items()}
    with pytest.raises(RuntimeError, match=r"load_state_dict\(assign=True\).*its own back"), edit.on(tiny):
        tiny.model.load_state_dict(others, assign=True)
        assert tiny.weights()[LAYER] is not own[LAYER]
    assert all(tiny.weights()[name] is p for name, p in own.items()) and same(state(tiny), before)
    assert tiny.model.seen.tolist() == [0, 0] and not stacks.STACKS
    with pytest.raises(KeyError), edit.on(tiny):  # what ended the block is not covered up
        tiny.model.load_state_dict(others, assign=True)
        raise KeyError
    assert same(state(tiny), before) and not stacks.STACKS


def test_weights_that_were_replaced_inside_come_back_from_two_edits_in_any_order(tiny):
    before, own = state(tiny), dict(tiny.weights())
    blocks = [make(tiny).on(tiny), make(tiny, OTHER).on(tiny)]
    for block in blocks:
        block.__enter__()
    tiny.model.load_state_dict({name: values + 1 for name, values in tiny.model.state_dict().items()}, assign=True)
    for block in blocks:
        with pytest.raises(RuntimeError, match="its own back"):
            block.__exit__(None, None, None)
    assert all(tiny.weights()[name] is p for name, p in own.items())
    assert same(state(tiny), before) and not stacks.STACKS


def test_two_parameters_on_one_memory_are_refused(tiny):
    blocks = tiny.model.transformer.resblocks
    blocks[1].attn.out_proj.weight.data = blocks[0].attn.out_proj.weight.data
    edit, before = make(tiny), state(tiny)
    for change in (lambda: edit.on(tiny).__enter__(), lambda: edit.apply(tiny)):
        with pytest.raises(ValueError, match=r"resblocks.0.*resblocks.1.*two parameters on one memory"):
            change()
    with make(tiny, OTHER).on(tiny):  # another one is nobody else's
        pass
    assert same(state(tiny), before)
    flat = torch.cat([blocks[0].attn.out_proj.weight.detach().flatten(), blocks[1].mlp.c_fc.weight.detach().flatten()])
    size = blocks[0].attn.out_proj.weight.numel()
    blocks[0].attn.out_proj.weight.data = flat[:size].view(32, 32)  # beside each other, not on each other
    blocks[1].mlp.c_fc.weight.data = flat[size:].view_as(blocks[1].mlp.c_fc.weight)
    with edit.on(tiny):
        pass
