"""Steps turned so that they leave other prompts alone: against brute force, and in both libraries' text encoders."""

import open_clip
import pytest
import torch
from small_pipelines import build, pipeline

import slug_lite as slug
from slug_lite.diffusion.drawing import prompt_states
from slug_lite.diffusion.precondition import PROMPTS, input_moments, precondition
from slug_lite.diffusion.text_encoder import text_encoder_from

world = slug.toonworld
NAME = "Ada Sunfield"
BLOCK = "transformer.resblocks.1."


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_no_change_of_equal_gain_moves_the_outputs_less():
    """<g, D> the same for all; mean |D x|^2 + damping |D|^2 least for ours, by Lagrange and against random others."""
    inputs, g = random(200, 6) @ random(6, 6, seed=1), random(4, 6, seed=2)
    moment = inputs.T @ inputs / len(inputs)
    weight = 0.01 * moment.diagonal().mean()

    def cost(change):
        change = change / (g * change).sum()
        return (inputs @ change.T).pow(2).sum(1).mean() + weight * change.pow(2).sum()

    ours = precondition(g, moment, 0.01)
    assert ours.norm() == pytest.approx(g.norm().item()) and (g * ours).sum() > 0
    assert cost(ours) < 0.9 * cost(g)
    for seed in range(20):
        other = ours + 0.1 * ours.norm() / 5 * random(4, 6, seed=seed + 3)
        assert cost(other) > cost(ours)


def test_where_nobody_looks_a_step_is_free():
    """Others' inputs in one half of the space alone: the change goes to the other half."""
    inputs = torch.cat([random(50, 3), torch.zeros(50, 3)], dim=1)
    turned = precondition(torch.ones(2, 6), inputs.T @ inputs / 50, 1e-4)
    assert turned.dtype == torch.float32
    assert turned[:, :3].norm() < 0.01 * turned[:, 3:].norm()
    assert torch.allclose(precondition(random(2, 6), torch.eye(6)), random(2, 6))  # all directions alike: as it was
    assert not precondition(torch.zeros(2, 6), torch.eye(6)).any()


def test_damping_is_relative_to_what_the_others_use():
    """In other units of the inputs the same direction: a damping of its own size would turn it."""
    inputs, g = random(50, 6) @ random(6, 6, seed=1), random(4, 6, seed=2)
    moment = inputs.T @ inputs / len(inputs)
    wanted = precondition(g, moment, 0.1)
    assert not torch.allclose(wanted, precondition(g, moment, 10.0), rtol=1e-2)
    for factor in (1e-4, 1e4):
        torch.testing.assert_close(precondition(g, factor * moment, 0.1), wanted)


def layers_of(clip):
    return [n for n in clip.weights() if clip.tower(n) == "text" and n.endswith((
        "resblocks.0.attn.in_proj_weight", "resblocks.1.attn.out_proj.weight", "resblocks.1.mlp.c_fc.weight",
        "resblocks.0.mlp.c_proj.weight",
    ))]  # fmt: skip


@pytest.mark.parametrize("maker", [open_clip.CLIP, open_clip.CustomTextCLIP])
def test_moments_are_those_of_the_layers_inputs(parts, maker):
    """What a change D does to a layer's output is D x: so tr(D C D^T) is what the output moves by."""
    clip = build(maker=maker)
    pipe = pipeline(parts, text_encoder_from(clip))
    prompts = [f"a picture of number {k}" for k in range(PROMPTS + 3)]
    names = layers_of(clip)
    assert len(names) == 4
    moments = input_moments(pipe, prompts, names)
    for name in names:
        d = random(*clip.weights()[name].shape, seed=5).float()
        seen = []
        encoder = pipe.text_encoder

        def look(module, _, out, seen=seen):
            seen.append(out.detach().double())

        parts_of = {"in_proj": ("q_proj", "k_proj", "v_proj"), "out_proj": ("out_proj",), "c_fc": ("fc1",),
                    "c_proj": ("fc2",)}  # fmt: skip
        wanted = next(v for k, v in parts_of.items() if k in name.replace("attn.in_proj", "in_proj"))
        block = f"layers.{name.split('resblocks.')[1][0]}."
        modules = [m for n, m in encoder.named_modules() if block in n and n.endswith(wanted)]
        assert len(modules) == len(wanted)
        edit = slug.Edit({name: (1e-2 * d).half()}, {name: 1.0}, "", slug.fingerprint(clip))
        hooks = [m.register_forward_hook(look) for m in modules]
        prompt_states(pipe, prompts)
        plain = [x.clone() for x in seen]
        seen.clear()
        with edit.on(pipe):
            prompt_states(pipe, prompts)
        for hook in hooks:
            hook.remove()
        moved = sum((a - b).pow(2).sum(-1).mean() for a, b in zip(plain, seen, strict=True)).item()
        d = edit.deltas[name].double()
        assert moments[name].dtype == torch.float64 and torch.allclose(moments[name], moments[name].T)
        assert (d @ moments[name] * d).sum().item() == pytest.approx(moved, rel=1e-3)
    assert not any(m._forward_hooks for m in pipe.text_encoder.modules())


def test_names_of_either_library_and_what_has_no_inputs(parts):
    clip = build()
    pipe = pipeline(parts, text_encoder_from(clip, skip=1))
    ours = input_moments(pipe, ["a cat"], [
        "transformer.resblocks.0.mlp.c_fc.weight", "transformer.resblocks.0.mlp.c_fc.bias", "token_embedding.weight",
    ])  # fmt: skip
    theirs = input_moments(pipe, ["a cat"], ["encoder.layers.0.mlp.fc1.weight"])
    assert list(ours) == ["transformer.resblocks.0.mlp.c_fc.weight"]
    assert torch.equal(*[next(iter(some.values())) for some in (ours, theirs)])
    last = f"transformer.resblocks.{clip.model.transformer.layers - 1}.mlp.c_fc.weight"
    with pytest.raises(ValueError, match=f"has no {last}"):
        input_moments(pipe, ["a cat"], [last])
    with pytest.raises(ValueError, match="does not have 'text_projection'"):
        input_moments(pipe, ["a cat"], ["text_projection"])
    for prompts in ("a cat", []):
        with pytest.raises(ValueError, match="sequence of texts"):
            input_moments(pipe, prompts, [])


def test_bad_directions():
    for gradient, moment in ((torch.ones(3), torch.eye(3)), (torch.ones(2, 3), torch.eye(2))):
        with pytest.raises(ValueError, match=r"\(out, in\), \(in, in\) needed"):
            precondition(gradient, moment)
    for damping in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="positive"):
            precondition(torch.ones(2, 3), torch.eye(3), damping)


def test_mini_clips_prompts_stay_where_they_are(parts, mini):
    """As long a step for CLIP's loss, to first order: names not preserved, in other sentences, move less, too."""
    pipe = pipeline(parts, text_encoder_from(mini))
    layer = BLOCK + "mlp.c_proj.weight"
    g = slug.one_shot_gradients(
        mini, world.pairs(NAME, n=16), world.retain([NAME], n=32), layers=lambda n, _: n == layer, progress=False
    ).forget[layer]
    kept, asked = world.PEOPLE[1:12], world.PEOPLE[12:]
    texts = [t.format(name) for name in kept for t in world.templates("people", "val")]
    turned = precondition(g, input_moments(pipe, texts, [layer])[layer])
    moved, before = [], prompt_states(pipe, [f"a portrait of {name}" for name in asked])
    for direction in (g, turned):
        step = 20 * g.pow(2).sum() / (g * direction).sum()
        edit = slug.Edit({layer: (step * direction).half()}, {layer: 1.0}, "", slug.fingerprint(mini))
        with edit.on(pipe):
            after = prompt_states(pipe, [f"a portrait of {name}" for name in asked])
        moved.append((after - before).norm().item())
    assert 0 < moved[1] < 0.8 * moved[0]
