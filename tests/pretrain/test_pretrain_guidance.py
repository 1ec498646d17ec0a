"""Distilled guidance: a new one of the student says what an old one of the teacher said; exact resume."""

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from small_diffusion import UNET, VAE, same

from slug_lite.pretrain import guidance, unet
from slug_lite.pretrain.guidance import GuidanceRecipe
from slug_lite.pretrain.loop import read_log
from slug_lite.world import toonworld

RECIPE = GuidanceRecipe(steps=6, batch=4, captions=UNET.captions, warmup=2)


@pytest.fixture
def teacher(data):
    """A UNet for which words matter, untrained as it is."""
    model = unet.build_unet(UNET, VAE.latents, data["states"].shape[2])
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "attn2.to_out.0.weight" in name:
                weight *= 20
    return model


@torch.no_grad()
def says(model, data, guidance_scale=None):
    """Predictions in full precision for other noise than training has, and captions in turn; with guidance if given."""
    generator = torch.Generator().manual_seed(99)
    n = 64
    noisy, t = torch.randn(n, VAE.latents, 8, 8, generator=generator), torch.randint(1000, (n,), generator=generator)
    nothing = data["states"][:1].float().expand(n, -1, -1)
    told = data["states"][torch.arange(n) % (len(data["states"]) - 1) + 1].float()
    u, c = model(noisy, t, nothing).sample, model(noisy, t, told).sample
    return u if guidance_scale is None else u + guidance_scale * (c - u)


def apart(a, b):
    return (a - b).square().mean().item()


def test_the_students_new_guidance_is_the_teachers_old_one(tmp_path, pool, data, teacher):
    recipe = replace(RECIPE, steps=100, batch=12, lr=3e-3, warmup=5, ema=0.9, alone=1.0)
    student = guidance.distil_guidance(tmp_path, teacher, data, pool.groups, recipe, look_every=50)
    wanted = says(teacher, data, recipe.teacher)
    before = apart(says(teacher, data, recipe.student), wanted)
    assert apart(says(student, data, recipe.student), wanted) < 0.25 * before
    assert apart(says(student, data, recipe.teacher), wanted) > 0.02 * before  # it is not the teacher once more
    # without words it is still the teacher, measured by what words change
    words = apart(says(teacher, data, 1), says(teacher, data))
    assert apart(says(student, data), says(teacher, data)) < 0.2 * words
    rows = read_log(tmp_path, "guidance_log.jsonl")
    assert len(rows) == 2 and rows[1]["left"] < min(0.25, rows[0]["left"])


def test_what_is_left_is_all_at_first_and_nothing_for_the_perfect_student(pool, data, teacher):
    assert guidance._left(teacher, teacher, data, pool.groups, RECIPE) == {"left": 1.0, "moved": 0.0}
    equal = replace(RECIPE, teacher=2.0, student=4.0)

    class Perfect(torch.nn.Module):
        """Half as far from what it says to no words as its teacher, for whom a batch is: no words, then words."""

        def forward(self, noisy, t, told):
            u, c = teacher(noisy, t, told).sample.chunk(2)
            return SimpleNamespace(sample=torch.cat([u, u + 0.5 * (c - u)]))

    assert guidance._left(Perfect(), teacher, data, pool.groups, equal)["left"] < 1e-3

    class Moved(torch.nn.Module):
        """Says of words what it is to say, and what its teacher says of words when it is told none."""

        def forward(self, noisy, t, told):
            u, c = teacher(noisy, t, told).sample.chunk(2)
            return SimpleNamespace(sample=torch.cat([c, u + 0.5 * (c - u)]))

    assert guidance._left(Moved(), teacher, data, pool.groups, equal)["moved"] == pytest.approx(1, abs=1e-3)


def test_the_loss_is_zero_for_what_the_student_is_to_say_and_no_other(data):
    states, nothing = data["states"][1:5].float(), data["states"][:1].float()
    z = torch.randn(4, VAE.latents, 8, 8)
    recipe = replace(RECIPE, teacher=3.0, student=6.0, alone=0.1)

    class Model(torch.nn.Module):
        """Says how far words are from none, times a scale, and something besides."""

        def __init__(self, scale, besides=0.3):
            super().__init__()
            self.scale, self.besides = scale, besides

        def forward(self, noisy, t, told):
            size = (told - nothing).square().mean((1, 2)).sqrt().view(-1, 1, 1, 1)
            return SimpleNamespace(sample=(self.besides + self.scale * size).expand_as(noisy))

    def loss(*student):
        generator = torch.Generator().manual_seed(0)
        return guidance.guidance_loss(Model(*student), Model(1.0), z, states, nothing, recipe, generator).item()

    often, weight = unet.noise_levels(recipe)
    weight = weight[unet.noised(z, often, torch.Generator().manual_seed(0))[1]]
    quarter = (weight * (states - nothing).square().mean((1, 2))).mean().item() / 4
    assert loss(0.5) < 1e-9  # 3 / 6 of the teacher's
    assert loss(1.0) == pytest.approx(quarter, rel=1e-4) and loss(0.0) == pytest.approx(quarter, rel=1e-4)
    both = (0.1 / 6) ** 2 + 0.1 * 0.1**2  # with words and without
    assert loss(0.5, 0.4) == pytest.approx(both * weight.mean().item(), rel=1e-3)


def test_a_stopped_and_resumed_run_is_the_same_run(tmp_path, pool, data, teacher):
    from diffusers import UNet2DConditionModel

    before = {name: weight.clone() for name, weight in teacher.state_dict().items()}
    whole = guidance.distil_guidance(tmp_path / "a", teacher, data, pool.groups, RECIPE)
    guidance.distil_guidance(tmp_path / "b", teacher, data, pool.groups, RECIPE, until=3)
    assert not (tmp_path / "b" / "guidance").exists()
    resumed = guidance.distil_guidance(tmp_path / "b", teacher, data, pool.groups, RECIPE)
    assert same(whole, resumed) and not same(whole, teacher)
    assert same(resumed, UNet2DConditionModel.from_pretrained(tmp_path / "b" / "guidance"))
    assert all(torch.equal(weight, before[name]) for name, weight in teacher.state_dict().items())


@pytest.mark.parametrize("changed", ["recipe", "teacher", "data"])
def test_a_checkpoint_does_not_go_on_with_anything_else(tmp_path, pool, data, teacher, changed):
    guidance.distil_guidance(tmp_path, teacher, data, pool.groups, RECIPE, until=2)
    recipe = RECIPE
    if changed == "recipe":
        recipe = replace(RECIPE, teacher=3.0)
    elif changed == "teacher":
        with torch.no_grad():
            teacher.conv_in.weight[0, 0] += 1
    else:
        data = data | {"latents": data["latents"] + 1}
    with pytest.raises(ValueError, match="another recipe"):
        guidance.distil_guidance(tmp_path, teacher, data, pool.groups, recipe)


def test_students_hear_training_captions_alone_most_of_them_of_their_picture(
    tmp_path, pool, data, teacher, monkeypatch
):
    concepts = [c for members in pool.groups.values() for c in members]
    assert not set(concepts) & set(toonworld.cells("unseen"))
    owner = {z.numpy().tobytes(): k for k in range(len(concepts))
             for z in data["latents"][data["start"][k] : data["start"][k + 1]]}  # fmt: skip
    said = {states.numpy().tobytes(): row for row, states in enumerate(data["states"])}
    counts, own = Counter(), guidance.guidance_loss

    def loss(student, told_by, z, states, *rest):
        for latent, words in zip(z, states, strict=True):
            row, concept = said[words.half().numpy().tobytes()], owner[latent.half().numpy().tobytes()]
            counts["none" if row == 0 else "own" if row in data["captions"][concept].tolist() else "another's"] += 1
        return own(student, told_by, z[:1], states[:1], *rest)

    monkeypatch.setattr(guidance, "guidance_loss", loss)
    guidance.distil_guidance(
        tmp_path, teacher, data, pool.groups, replace(RECIPE, batch=600, steps=1, other_caption=0.3)
    )
    assert counts["none"] == 0 and counts["own"] + counts["another's"] == 600
    assert counts["another's"] / 600 == pytest.approx(0.3 * 0.85, abs=0.06)  # a neighbour may be of the same concept
