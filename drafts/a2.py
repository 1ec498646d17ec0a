"""Writes notebooks/A2_training_mini_sd.ipynb."""
from build import Book

b = Book()
b.md(r"""
# Appendix: training mini Stable Diffusion

Part III draws pictures with a small pipeline, and has them judged by a small classifier. This page says where both come from, how well they do, and how to train them again.

**What you will learn**
- why a picture is drawn in a latent space, and how an autoencoder learns to keep outlines crisp;
- how a UNet learns to tell picture from noise, with the words of a frozen text tower;
- how a judge can be made to say "none of these", and to mean it;
- how the shipped runs went, from their own logs.

**Time**: twenty minutes to read, under a minute to run. The whole training takes some hours on two cores, and is one command.
""")
b.setup()
b.code(r"""
import json
from importlib import resources

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

import slug_lite as slug
from slug_lite import plots, pretrain, pretrain_judge
from slug_lite import pretrain_diffusion as recipes

plots.use_style()
world = slug.toonworld
assets = resources.files("slug_lite") / "assets"
training = json.loads((assets / "mini-sd" / "training.json").read_text())
pipe = slug.load_diffusion("mini", device="cpu")
judge = slug.load_judge()
for part in ("vae", "unet"):
    log = pretrain.read_log(assets / "mini-sd", f"{part}_log.jsonl")
    print(f"{part}: {log[-1]['step']:,} steps, last loss {log[-1]['loss']:.3f}")
""")
b.md(r"""
## First part: pixels and latents

A picture of $64 \times 64$ pixels has thousands of numbers, most of them predictable from their neighbours. An **autoencoder** learns a shorter version of it, the latents, from which it can be drawn again {cite}`kingma2014vae`. Diffusion then works on latents {cite}`rombach2022ldm`.

Encoder and decoder are a `diffusers.AutoencoderKL` and learn together. What they are asked for is

$$
L = \sum_{k} \bigl\lVert B_k(\hat x - x) \bigr\rVert_1 + \lVert \hat x - x\rVert_2^2 + \beta\,\mathrm{KL},
$$

where $B_k$ are the bands of a Laplacian pyramid {cite}`burt1983laplacian`, each with its mean absolute value; the coarse rest counts as a band too, and the first two terms are means over pixels and channels, the last is in nats for each latent position. Squared error alone is lenient with blurred edges: a soft outline costs little. In the finest band an outline is all there is, and the absolute value counts a small miss in full.
The last term, with a very small $\beta$, pulls latents mildly towards a normal distribution.
""")
b.code(r"""
plots.show_source(recipes.pyramid)
""")
b.code(r"""
held_out = world.retain(n=200, seed=3, split="test")


@torch.no_grad()
def redraw(images):
    latents = pipe.vae.encode(recipes.signed(images)).latent_dist.mean
    return ((pipe.vae.decode(latents).sample.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


again = redraw(held_out.images[:6])
enlarged = [np.kron(x, np.ones((3, 3, 1), np.uint8)) for x in [*held_out.images[:6], *again]]
plots.gallery(enlarged, columns=6, row_names=["drawing", "redrawn"])
plt.show()
print(f"peak signal-to-noise ratio on {len(held_out)} held-out drawings: {recipes.psnr(pipe.vae, held_out.images):.1f} dB")
""", alt="Two rows of six pictures: drawings of the mini world that training never saw, and below each what the autoencoder makes of it after a detour over latents.")
b.md(r"""
The PSNR is $10\log_{10}(4/\mathrm{MSE})$ for pixels from $-1$ to $1$, the mean over pictures.

Before the UNet sees the latents they are given mean 0 and variance 1 in every channel. This needs no factor that somebody must remember: it goes into the $1 \times 1$ convolutions on both sides of them.
""")
b.code(r"""
plots.show_source(recipes.standardise)
""")
b.code(r"""
with torch.no_grad():
    z = pipe.vae.encode(recipes.signed(held_out.images)).latent_dist.mean
pd.DataFrame({"mean": z.mean((0, 2, 3)), "standard deviation": z.std((0, 2, 3))}).rename_axis("channel").round(2)
""")
b.md(r"""
## Second part: from noise to latents

Mix latents $z$ with noise $\varepsilon$, both of variance one,

$$z_t = \alpha_t z + \sigma_t \varepsilon, \qquad \alpha_t^2 + \sigma_t^2 = 1,$$

at a time $t$ that is drawn at random, and ask the UNet for $v = \alpha_t \varepsilon - \sigma_t z$ {cite}`salimans2022progressive`. From $v$ and $z_t$ both the picture and the noise follow. The squared error is weighted by

$$w_t = \frac{\min(\mathrm{snr}_t, \gamma)}{\mathrm{snr}_t + 1}, \qquad \mathrm{snr}_t = \alpha_t^2/\sigma_t^2,$$

so that times at which the answer is nearly given do not crowd out the others {cite}`hang2023minsnr`.

With $t$ drawn evenly, a large part of every batch would then hardly count. So times that weigh more are drawn more often (a part, the recipe's `even`, is still drawn evenly), and each error is multiplied by $w_t$ over the frequency of its time: the mean gradient is the same, with less noise. Within a batch the times are spread evenly over these frequencies instead of being drawn one by one {cite}`kingma2021vdm`.

How much is gained? A mean of errors with weights $w_i$ is as steady as one of $(\sum w_i)^2/\sum w_i^2$ errors with equal weights, the *effective sample size*. Divided by the number of pictures in a batch, that is what one picture counts for.
""")
b.code(r"""
plots.show_source(recipes.noise_levels)
""")
b.code(r"""
plots.show_source(recipes._unet_loss)
""")
b.code(r"""
snr = recipes.signal_to_noise()
weight = snr.clamp(max=training["unet"]["gamma"]) / (snr + 1)
figure, (top, bottom) = plt.subplots(2, 1, figsize=(5.2, 4.2), sharex=True, layout="constrained")
top.plot((snr / (1 + snr)).sqrt(), label=r"picture $\alpha_t$")
top.plot((1 / (1 + snr)).sqrt(), ls="--", label=r"noise $\sigma_t$")
top.set(ylabel="share")
top.legend(loc="center right")
often, multiplied = recipes.noise_levels(recipes.UnetRecipe(**training["unet"]))
bottom.plot(weight / weight.mean(), color=plots.COLORS[2], label="weight $w_t$ of the error")
bottom.plot(often * len(often), color=plots.COLORS[3], ls="--", label="how often it is drawn")
bottom.set(xlabel="time t", ylabel="relative to the mean")
bottom.legend(loc="upper right")
plt.show()
hardly = weight < 0.25 * weight.mean()
print(f"times that weigh less than a quarter of the mean: {hardly.float().mean():.0%} of all, {often[hardly].sum():.0%} of those drawn")
effective = [(w * o).sum().square() / (w.square() * o).sum() for o, w in ((torch.full_like(weight, 1 / len(weight)), weight), (often, multiplied))]
print(f"a picture of a batch counts for {effective[0]:.2f} of one if times are drawn evenly, for {effective[1]:.2f} as they are drawn here")
""", alt="Above, the share of the picture falls over time while that of the noise rises. Below, the weight of the error: near zero at the smallest times, a peak early on, then a long fall to zero; and how often each time is drawn, which follows it but stays away from zero.")
b.md(r"""
The words come from mini CLIP's text tower, which stays as it is: all states of a caption, after the final norm. This matters for the rest of the book. The UNet has learnt to listen to *this* tower, and an edit of the tower is an edit of what the UNet hears.
One caption in ten is replaced by the empty one, so that the UNet also learns to draw without words: guidance needs both {cite}`ho2022cfg`. Latents and states are computed once, before training.

What ships is not the last state of the weights but a running mean of them.
""")
b.code(r"""
table = pd.DataFrame({part: training[part] for part in ("vae", "unet")})
table.astype(object).where(table.notna(), "–")
""")
b.md(r"""
## How the shipped runs went
""")
b.code(r"""
logs = {part: pd.DataFrame(pretrain.read_log(assets / "mini-sd", f"{part}_log.jsonl")) for part in ("vae", "unet")}
figure, axes = plt.subplots(3, 1, figsize=(5.2, 6.4), layout="constrained")
axes[0].plot(logs["vae"]["step"], logs["vae"]["loss"])
axes[0].set(ylabel="loss", xlabel="step", title="autoencoder", ylim=(0, None))
seen = logs["vae"].dropna(subset=["psnr"])
twin = axes[0].twinx()
twin.plot(seen["step"], seen["psnr"], color=plots.COLORS[1], marker="o", ms=4)
twin.set_ylabel("held-out PSNR (dB)", color=plots.COLORS[1])
axes[1].plot(logs["unet"]["step"], logs["unet"]["loss"].rolling(10, min_periods=1).mean())
axes[1].set(xlabel="step", ylabel="loss", title="UNet", ylim=(0, None))
looked = logs["unet"].dropna(subset=["words_matter"])
axes[2].plot(looked["step"], 100 * looked["words_matter"], marker="s", ms=4, color=plots.COLORS[2])
axes[2].set(xlabel="step", ylabel="growth of the loss (%)", title="with each picture given its neighbour's caption")
plt.show()
""", alt="Three panels over training steps: the autoencoder's loss and its held-out signal-to-noise ratio; the UNet's loss; and by how much that loss grows when captions are exchanged.")
b.md(r"""
The last panel answers a question that a loss curve does not: does the UNet *listen*? Give every picture of a fixed batch its neighbour's caption, and see by how much the loss grows. A UNet that ignores words would not notice.

The log holds one more thing, which a reader who trains it anew will miss:
""")
b.code(r"""
pace = logs["unet"].set_index("step")["lr"]
for step in pace.index[(pace.diff() > 0) & (pace.index > training["unet"]["warmup"])]:
    so_far = pace.loc[:step]
    print(f"At step {so_far.index[-2]:,} the learning rate had fallen to {so_far.iloc[-2]:.1e}; then it went up to {so_far.iloc[-1]:.1e} and fell once more.")
shares = pd.DataFrame(dict(zip([1, *training["unet"]["phases"]], recipes.SHARES, strict=True)))
print("What a batch is made of, from which step on (%):")
(100 * shares).rename_axis(columns="from step").round(0)
""")
b.md(r"""
The run was prolonged each time after it had come to its end, because pictures that the judge counted fell short of what we had asked for: first those of characters, then those of an object in a style. The batches held more of them from there on. With the recipe alone, the rate falls once, at the end.
""")
b.md(r"""
## The judge

The judge is a plain convolutional classifier with a head for each kind. It never saw mini CLIP, nor anything that was generated, and it learnt "none of these" from pictures that look like the world and are nothing in it: people who are nobody, halves and blends of two pictures, snippets, blurs, shuffled tiles, noise.
""")
b.code(r"""
rng = np.random.default_rng(0)
strangers = pretrain_judge.nobodies(4, rng, "test")
x = recipes.signed(world.retain(n=16, seed=4, split="test").images)
y = torch.tensor([pretrain_judge.NOBODY.tolist()] * 16)
spoiled, _ = pretrain_judge.spoil(x, y, recipes.signed(np.concatenate([strangers, strangers])), rng)
shown = [((p.permute(1, 2, 0).numpy() + 1) * 127.5).round().astype(np.uint8) for p in spoiled]
verdict = judge(np.stack(shown))
plots.gallery(shown, [name.replace(" ", "\n", 1) for name in verdict["name"]], columns=4)
plt.show()
""", alt="Eight spoiled pictures, among them strangers, halves and blends of two pictures, snippets, blurs and shuffled tiles, each under the name that the judge gives it.")
b.code(r"""
pairs = world.everything(8, seed=7, split="test")
found = judge(pairs)
kinds = np.array([world.kind_of(concept[0]) for concept in pairs.concepts])
right = (found["name"] == [concept[0] for concept in pairs.concepts]).to_numpy()
rates = {kind: right[kinds == kind].mean() for kind in ("people", "characters", "objects")}
cells = np.array([len(concept) == 2 for concept in pairs.concepts])
rates["styles"] = (found["style"][cells] == [c[1] for c in pairs.concepts if len(c) == 2]).mean()
nobody = judge(pretrain_judge.nobodies(150, np.random.default_rng(1), "test"))
rates["strangers called none of these"] = (nobody["name"] == "none of these").mean()
(100 * pd.Series(rates, name="right on held-out drawings (%)")).round(1).to_frame()
""")
b.md(r"""
Is it calibrated, that is, when it says 90 %, is it right nine times in ten? The temperatures of its heads were fitted on validation drawings. Here are test drawings, a third of them spoiled, in bins of confidence. The *expected calibration error* is the mean gap between the confidence of a bin and the share of its answers that are right, each bin counted by its answers.
""")
b.code(r"""
from dataclasses import replace

test = pretrain_judge.Drawings(replace(pretrain_judge.JudgeRecipe(), pool=2, nobodies=100), "test")
x, labels = test.batch(1200, np.random.default_rng(5))
with torch.no_grad():
    logits = judge.net(x)
rows = []
for h, kind in enumerate(pretrain_judge.KINDS):
    chances = logits[kind].softmax(1)
    asked = labels[:, h] != pretrain_judge.IGNORE
    sure, says = chances.max(1)
    rows.append(pd.DataFrame({"confidence": sure[asked], "right": (says == labels[:, h])[asked].float()}))
table = pd.concat(rows)
bins = pd.cut(table["confidence"], [0, 0.6, 0.8, 0.9, 0.97, 0.99, 1])
by_bin = table.groupby(bins, observed=True).agg(answers=("right", "size"), confidence=("confidence", "mean"), right=("right", "mean"))
gap = (by_bin["answers"] * (by_bin["confidence"] - by_bin["right"]).abs()).sum() / by_bin["answers"].sum()
print(f"expected calibration error: {gap:.3f}")
by_bin.round(3)
""")
b.md(r"""
## What mini Stable Diffusion can draw

Each prompt is drawn with eight seeds, with the guidance that suits it ({doc}`chapter 8 <08_from_words_to_pictures>`), and the judge says whether it shows what was asked for. The whole count, of every concept, was made by `tools/measure_mini_sd.py` and ships; a part of it is repeated here.
""")
b.code(r"""
counted = training["measured"]
few = {"people": world.PEOPLE[::8], "characters": world.CHARACTERS[::4], "objects": world.OBJECTS[::10], "styles": world.STYLES[::3]}
texts = {"people": "a portrait of {}", "characters": "a picture of {}", "objects": "a picture of a {}", "styles": "a drawing in {} style"}
rows = []
for kind, names in few.items():
    for name in names:
        drawn = slug.generated_pairs(pipe, texts[kind].format(name), 8, seed=0, batch_size=8, steps=20, guidance_scale=counted["guidance"], progress=False)
        rows.append({"kind": kind, "found": judge.finds(drawn, name).mean()})
live = pd.DataFrame(rows).groupby("kind", sort=False)["found"].mean()
both = pd.DataFrame({"all concepts, 8 seeds (%)": pd.Series({k: counted[k] for k in few}) * 100, "some of them, now (%)": live * 100})
both.round(1)
""")
b.code(r"""
# NBVAL_CHECK_OUTPUT
print("redrawn with at least 29 dB:", recipes.psnr(pipe.vae, held_out.images) >= 29)
print("the judge is right on held-out drawings, every kind at least 99 %:", all(rate >= 0.99 for kind, rate in rates.items() if kind in world.NAMES))
print("live counts within 25 points of the shipped ones:", bool((abs(both.iloc[:, 0] - both.iloc[:, 1]) <= 25).all()))
""")
b.md(r"""
## Train it yourself

One command trains everything, autoencoder, judge and UNet, one after the other. It may be stopped at any time, and goes on where it stopped; everything random in a step follows from the seed and the step's number, so a run that was stopped ends with the weights that it would have had. They are not those that ship, whose run was prolonged.

```
python tools/train_mini_sd.py my-mini-sd
```

```{exercise}
:label: ex-sd-vae
*Difficulty 2 of 5, ten minutes.* Redraw a picture that is not of the mini world, for instance noise, or a checkerboard with squares of one, two, four and eight pixels. What does the autoencoder keep?
```

````{solution} ex-sd-vae
:class: dropdown
```python
boards = [np.kron(np.indices((64 // k, 64 // k)).sum(0) % 2, np.ones((k, k))) for k in (1, 2, 4, 8)]
boards = np.stack([np.repeat((255 * board).astype(np.uint8)[:, :, None], 3, 2) for board in boards])
plots.gallery([*boards, *redraw(boards)], columns=4)
plt.show()
print([round(recipes.psnr(pipe.vae, board[None]), 1) for board in boards])
```
A latent position stands for a patch of pixels and has a handful of channels, so not every patch fits. What training never showed, such as the finest board, may not be kept.
````

```{exercise}
:label: ex-sd-frozen
*Difficulty 3 of 5, no code.* Suppose the text tower had been trained together with the UNet, instead of being CLIP's, frozen. What would become of the idea of this book's part III?
```

````{solution} ex-sd-frozen
:class: dropdown
There would be no vision tower that belongs to it, so no forget loss of picture and caption to climb: the gradient of SLUG comes from CLIP's pair of towers. One would need another loss, the UNet's own denoising error, as most other methods of unlearning do, and a backward pass through the UNet.
````

## Summary

- An autoencoder with a loss on every band keeps outlines; its latents have mean 0 and variance 1 by construction.
- The UNet learns $v$ under the frozen words of mini CLIP, with weights that cap the easy times.
- The judge shares no weights with either, and has learnt to say "none of these".

## Further reading

{cite:t}`rombach2022ldm`, {cite:t}`salimans2022progressive`, {cite:t}`hang2023minsnr`, {cite:t}`ho2022cfg`; the solver that draws in few steps is by {cite:t}`lu2022dpmpp`.
""")
b.write("A2_training_mini_sd.ipynb")
