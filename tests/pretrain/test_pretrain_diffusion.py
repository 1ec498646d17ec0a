"""Training mini Stable Diffusion: exact resume, interrupts, losses that say what they should, standard latents."""

import copy
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from small_diffusion import SIDE, UNET, VAE, same

from slug_lite.pretrain import autoencoder, latents, unet
from slug_lite.pretrain.autoencoder import VaeRecipe
from slug_lite.pretrain.loop import read_log
from slug_lite.pretrain.unet import UnetRecipe
from slug_lite.world import captions, toonworld


@pytest.fixture
def small(pool, monkeypatch):
    monkeypatch.setattr(autoencoder, "Pool", lambda recipe, size: pool)
    held_out = toonworld.retain(n=8, split="val", size=SIDE)
    monkeypatch.setattr(toonworld, "retain", lambda **_: held_out)


def test_stopped_and_resumed_autoencoder_is_the_same_run(tmp_path, small):
    from diffusers import AutoencoderKL

    whole = autoencoder.train_vae(tmp_path / "a", VAE)
    autoencoder.train_vae(tmp_path / "b", VAE, until=2)
    assert not (tmp_path / "b" / "vae").exists()
    resumed = autoencoder.train_vae(tmp_path / "b", VAE)
    assert same(whole, resumed) and not same(whole, autoencoder.build_vae(VAE))
    assert same(resumed, AutoencoderKL.from_pretrained(tmp_path / "b" / "vae"))
    assert same(resumed, autoencoder.train_vae(tmp_path / "b", VAE))  # nothing is left to do
    with pytest.raises(ValueError, match="another recipe"):
        autoencoder.train_vae(tmp_path / "b", VaeRecipe(kl=1.0))


def test_stopped_and_resumed_unet_is_the_same_run(tmp_path, pool, data):
    from diffusers import UNet2DConditionModel

    whole = unet.train_unet(tmp_path / "a", data, pool.groups, UNET)
    unet.train_unet(tmp_path / "b", data, pool.groups, UNET, until=3)
    resumed = unet.train_unet(tmp_path / "b", data, pool.groups, UNET)
    assert same(whole, resumed) and same(resumed, UNet2DConditionModel.from_pretrained(tmp_path / "b" / "unet"))
    start = unet.build_unet(UNET, VAE.latents, data["states"].shape[2])
    assert not same(whole, start)
    with safe_open(tmp_path / "b" / "unet-checkpoint.safetensors", "pt") as file:  # the mean lags behind the weights
        name = "conv_in.weight"
        weight, mean = (file.get_tensor(f"model.{part}.{name}") for part in ("unet", "mean"))
    assert torch.equal(mean, whole.get_parameter(name)) and not torch.equal(mean, weight)


def test_steps_may_be_changed_before_the_cooldown(tmp_path, pool, data):
    longer = replace(UNET, steps=8, cooldown=0.25)
    whole = unet.train_unet(tmp_path / "a", data, pool.groups, longer)
    unet.train_unet(tmp_path / "b", data, pool.groups, replace(longer, steps=6), until=3)
    assert same(whole, unet.train_unet(tmp_path / "b", data, pool.groups, longer))


def test_a_signal_stops_between_two_steps_with_a_checkpoint(tmp_path, small, monkeypatch):
    real, calls = autoencoder.vae_loss, []

    def loss(*args):
        calls.append(1)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGTERM)
        return real(*args)

    monkeypatch.setattr(autoencoder, "vae_loss", loss)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        autoencoder.train_vae(tmp_path, VAE)
    assert signal.getsignal(signal.SIGTERM) is before
    with safe_open(tmp_path / "vae-checkpoint.safetensors", "pt") as file:
        assert file.metadata()["step"] == "3"


def test_an_exception_leaves_the_last_checkpoint_alone(tmp_path, small, monkeypatch):
    autoencoder.train_vae(tmp_path, VAE, until=2)
    before = (tmp_path / "vae-checkpoint.safetensors").read_bytes()

    def broken(*_):
        raise RuntimeError("no memory")

    monkeypatch.setattr(autoencoder, "descend", broken)
    with pytest.raises(RuntimeError, match="no memory"):
        autoencoder.train_vae(tmp_path, VAE)
    assert (tmp_path / "vae-checkpoint.safetensors").read_bytes() == before


def test_training_lowers_the_losses(tmp_path, small, pool, data):
    vae = replace(VAE, steps=60, batch=8, lr=3e-3, warmup=5)
    autoencoder.train_vae(tmp_path, vae, look_every=50)
    rows = read_log(tmp_path, "vae_log.jsonl")
    untrained = autoencoder.psnr(autoencoder.build_vae(VAE), toonworld.retain(n=8, split="val", size=SIDE).images)
    assert rows[-1]["loss"] < 0.9 * rows[0]["loss"] and rows[-1]["psnr"] > untrained + 2
    longer = replace(UNET, steps=60, batch=16, lr=3e-3, warmup=5)
    unet.train_unet(tmp_path, data, pool.groups, longer)
    rows = read_log(tmp_path, "unet_log.jsonl")
    assert rows[-1]["loss"] < 0.9 * rows[0]["loss"]


def test_standard_latents_draw_the_same_pictures(pool):
    vae = autoencoder.build_vae(VAE)
    with torch.no_grad():
        vae.quant_conv.bias[0] = 3.0  # a mean far from zero in one channel
        x = autoencoder.signed(np.concatenate(list(pool.images.values())))
        before = vae.decode(vae.encode(x).latent_dist.mean).sample
        spread = vae.encode(x).latent_dist.std / vae.encode(x).latent_dist.mean.std((0, 2, 3), keepdim=True)
        autoencoder.standardise(vae, pool)
        posterior = vae.encode(x).latent_dist
        torch.testing.assert_close(vae.decode(posterior.mean).sample, before, rtol=1e-4, atol=1e-4)
    # the posterior's width shrank or grew along with the latents (these are other pictures: about alike)
    torch.testing.assert_close(posterior.std, spread, rtol=0.3, atol=0)
    assert posterior.mean.mean((0, 2, 3)).abs().max() < 0.3 and (posterior.mean.std((0, 2, 3)) - 1).abs().max() < 0.3


def test_pyramid_sums_what_every_band_lost():
    edge = torch.zeros(1, 1, 16, 16)
    edge[..., ::2] = 1.0
    edge[..., 1::2] = -1.0
    flat = torch.ones(1, 1, 16, 16)
    assert autoencoder.pyramid(flat).item() == pytest.approx(1.0)
    assert autoencoder.pyramid(edge).item() == pytest.approx(1.0)
    slope = torch.linspace(-1, 1, 16).expand(1, 1, 16, 16)
    assert autoencoder.pyramid(slope).item() > slope.abs().mean().item()
    assert autoencoder.pyramid(torch.zeros(2, 3, 16, 16)).item() == 0


def test_the_loss_is_zero_for_the_true_velocity_and_no_other():
    z, snr = torch.randn(5, 2, 4, 4), unet.signal_to_noise()
    assert (snr[1:] < snr[:-1]).all()

    class Oracle(torch.nn.Module):
        off = 0.0

        def forward(self, noisy, t, states):
            kept = (snr / (1 + snr))[t].view(-1, 1, 1, 1)
            noise = (noisy - kept.sqrt() * z) / (1 - kept).sqrt()
            out = kept.sqrt() * noise - (1 - kept).sqrt() * z
            return type("Out", (), {"sample": out + self.off})

    oracle, levels = Oracle(), unet.noise_levels(UNET)
    assert unet.unet_loss(oracle, z, z, levels, torch.Generator().manual_seed(0)) < 1e-4
    oracle.off = 1.0  # a squared error of one at every level: what remains is the mean weight
    z = z.repeat(400, 1, 1, 1)
    loss = unet.unet_loss(oracle, z, z, levels, torch.Generator().manual_seed(0))
    assert loss.item() == pytest.approx((snr.clamp(max=UNET.gamma) / (1 + snr)).mean().item(), rel=1e-2)


def test_levels_that_weigh_more_are_drawn_more_often_and_count_the_same():
    recipe, snr = UnetRecipe(), unet.signal_to_noise()
    often, weight = unet.noise_levels(recipe)
    wanted = snr.clamp(max=recipe.gamma) / (1 + snr)
    assert often.sum().item() == pytest.approx(1, abs=1e-5) and often.min() >= 0.99 * recipe.even / len(snr)
    assert torch.allclose(often * weight * len(snr), wanted) and often.argmax() == wanted.argmax()
    even = unet.noise_levels(UnetRecipe(even=1.0))
    assert torch.allclose(even[1], wanted)
    spread = [w.square().mul(o).sum() / w.mul(o).sum().square() for o, w in ((often, weight), even)]
    assert spread[0] < 0.7 * spread[1]  # a batch counts for more

    class Seen(torch.nn.Module):
        def forward(self, noisy, t, states):
            self.t = t
            return type("Out", (), {"sample": noisy})

    seen, z = Seen(), torch.zeros(4000, 1, 1, 1)
    unet.unet_loss(seen, z, z, (often, weight), torch.Generator().manual_seed(3))
    counted = torch.bincount(seen.t, minlength=1000).view(10, 100).sum(1) / 4000
    assert (counted - often.view(10, 100).sum(1)).abs().max() < 2e-3  # closer than chance: evenly over the batch


def test_hidden_states_are_those_before_pooling(_tiny):
    texts = ["a portrait of Ada Sunfield", ""]
    states = latents.hidden_states(_tiny, texts)
    ends = _tiny.tokens(texts).argmax(1)
    pooled = states[torch.arange(2), ends] @ _tiny.model.text_projection
    torch.testing.assert_close(torch.nn.functional.normalize(pooled, dim=1), _tiny.text_features(_tiny.tokens(texts)))


def test_a_batch_pairs_pictures_with_captions_of_their_own(pool, data):
    texts, table = latents._captions(pool.groups, UNET)
    concepts = [c for members in pool.groups.values() for c in members]
    assert texts[0] == "" and len(set(texts)) == len(texts) == len(data["states"])
    for concept, rows in zip(concepts, table.tolist(), strict=True):
        words = {*concept, *(captions.looks(name) for name in concept)}
        features = {f for w in words for f in w.replace(" and ", ", ").split(", ")}
        assert all(any(f in texts[row] for f in features | words) for row in rows)
    owner = {z.numpy().tobytes(): k for k in range(len(concepts))
             for z in data["latents"][data["start"][k] : data["start"][k + 1]]}  # fmt: skip
    rows = {s.numpy().tobytes(): i for i, s in enumerate(data["states"])}
    captioned = replace(UNET, batch=200, no_caption=0.25)
    z, states = unet.random_batch(data, pool.groups, captioned, np.random.default_rng(0))
    rows = [rows[s.half().numpy().tobytes()] for s in states]
    owners = [owner[x.half().numpy().tobytes()] for x in z]
    assert all(row == 0 or row in table[k].tolist() for row, k in zip(rows, owners, strict=True))
    assert 0.15 < rows.count(0) / 200 < 0.35 and set(owners) == set(range(len(concepts)))


def test_shares_change_with_the_phase(tmp_path, pool, data, monkeypatch):
    """Each mix of kinds begins at its step and stays until the next one's; the recipe has a step for each but one."""
    seen, own = [], unet.draw
    monkeypatch.setattr(unet, "draw", lambda groups, n, rng, shares: seen.append(shares) or own(groups, n, rng, shares))
    unet.train_unet(tmp_path, data, pool.groups, replace(UNET, steps=4, phases=(1, 3, 4)))
    first, second, third, fourth = unet.SHARES
    assert seen[0] is first and seen[1] is second and seen[2] is second and seen[3] is third
    assert not any(shares is fourth for shares in seen)
    recipe = UnetRecipe()
    assert len(recipe.phases) == len(unet.SHARES) - 1 and sorted(recipe.phases)[-1] < recipe.steps
    groups = {kind: [(kind,)] for kind in first}
    for shares in unet.SHARES:
        drawn = own(groups, 4000, np.random.default_rng(0), shares)
        assert sum(shares.values()) == pytest.approx(1)
        assert all(drawn.count((kind,)) / 4000 == pytest.approx(share, abs=0.03) for kind, share in shares.items())


@pytest.fixture
def prepared(tmp_path, pool, data, _tiny, monkeypatch):
    """prepare(...) again, with other things in place of some: how many batches of pictures it has encoded."""
    vae, own, batches = autoencoder.build_vae(VAE), latents.signed, []
    monkeypatch.setattr(latents, "signed", lambda images: batches.append(images) or own(images))
    # what makes the tensors is part of what they are told by: a stand-in is to pass for the function it stands for
    real = latents.inspect.getsource
    monkeypatch.setattr(latents.inspect, "getsource", lambda f: real(own if f is latents.signed else f))

    def again(vae=vae, clip=_tiny, pool=pool, recipe=UNET):
        batches.clear()
        found = latents.prepare(tmp_path, vae, clip, pool, recipe)
        return found, len(batches)

    return again


def test_latents_are_computed_once(prepared, data):
    again, encoded = prepared()
    assert encoded == 0 and all(torch.equal(again[name], tensor) for name, tensor in data.items())


@pytest.mark.parametrize("changed", ["autoencoder", "CLIP", "a picture", "captions", "code"])
def test_latents_of_anything_else_are_not_taken_up(prepared, data, pool, _tiny, monkeypatch, changed):
    """Counts are the same in all but one case: they say nothing."""
    vae, clip, other, recipe = autoencoder.build_vae(VAE), copy.copy(_tiny), copy.copy(pool), UNET
    if changed == "autoencoder":
        vae = autoencoder.build_vae(replace(VAE, seed=1))
    elif changed == "CLIP":
        clip = type(_tiny)(copy.deepcopy(_tiny.model), _tiny.tokenizer, _tiny.preprocess)
        with torch.no_grad():
            clip.model.positional_embedding[0, 0] += 1
    elif changed == "a picture":
        other.images = {concept: images.copy() for concept, images in pool.images.items()}
        next(iter(other.images.values()))[0, 5, 5] ^= 255
    elif changed == "captions":
        recipe = replace(UNET, seed=1)
    else:
        source = latents.inspect.getsource
        monkeypatch.setattr(latents.inspect, "getsource", lambda f: source(f).replace("half()", "bfloat16()"))
    again, encoded = prepared(vae, clip, other, recipe)
    assert encoded == len(pool.images)
    same = {name: torch.equal(again[name], tensor) for name, tensor in data.items()}
    assert same["latents"] is (changed not in ("autoencoder", "a picture"))
    assert same["captions"] is (changed != "captions") and not (changed == "CLIP" and same["states"])
    assert prepared(vae, clip, other, recipe)[1] == 0  # and now these are


def test_damaged_latents_are_computed_anew(prepared, data, tmp_path):
    file = tmp_path / "latents.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    for damaged in (bytes(content), bytes(content[:-100]), b""):
        file.write_bytes(damaged)
        again, encoded = prepared()
        assert encoded > 0 and torch.equal(again["latents"], data["latents"])


def test_a_checkpoint_does_not_go_on_with_other_latents(tmp_path, pool, data):
    unet.train_unet(tmp_path, data, pool.groups, UNET, until=2)
    with pytest.raises(ValueError, match="another recipe"):
        unet.train_unet(tmp_path, data | {"latents": data["latents"] + 1}, pool.groups, UNET)
    unet.train_unet(tmp_path, {name: tensor.clone() for name, tensor in data.items()}, pool.groups, UNET, until=3)
