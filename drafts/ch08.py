"""Writes notebooks/08_from_words_to_pictures.ipynb."""
from build import Book

b = Book()
b.md(r"""
# From words to pictures

So far a model *looked* at pictures. Now one *draws* them. Stable Diffusion {cite}`rombach2022ldm` takes a sentence and returns a picture, and it knows people, characters and styles well enough to draw them.

What has that to do with CLIP? The part of Stable Diffusion that reads the sentence **is** CLIP's text tower, weight for weight. So an edit that we found on CLIP fits into it without a change.
Before we put one in (next chapter), this chapter takes the machine apart: which part does what, what the reader of the sentence hands over to the painter, and where in it a name lives.

**What you will learn**
- the five parts of a pipeline, and how to run them by hand, step by step, to the same picture;
- what guidance is, and what it does to a picture;
- that the text encoder hands over not one vector but one for every position, and which of them say *who*;
- how to see where the painter looks for a word, and why such maps must be read with care.

**Time**: 30 minutes to read; the cells take less than a minute on two processor cores.
""")
b.setup()
b.code(r"""
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

import slug_lite as slug
from slug_lite import plots
from slug_lite.diffusion import GUIDANCE  # of which more below

plots.use_style()
world = slug.toonworld
pipe = slug.load_diffusion("mini", device="cpu")
judge = slug.load_judge()
NAME = "Ada Sunfield"
""")
b.md(r"""
## A machine that draws

`slug.load_diffusion` returns a `StableDiffusionPipeline` of the library `diffusers`. Nothing about it is special: with `slug.load_diffusion("OWNER/NAME")` it is a real one, and all that follows runs on that too (on a GPU).
The small one that ships with this book was trained on the mini world's drawings ({doc}`appendix <A2_training_mini_sd>`) and draws at the size of a thumbnail.
""")
b.code(r"""
prompts = [f"a portrait of {NAME}", "a picture of Zorbo", "a picture of a fox", "a fox in Sticker style", "a fox in Fineliner style",
           "a person with a green mohawk"]
drawn = slug.generated_pairs(pipe, prompts, len(prompts), seed=0, guidance_scale=GUIDANCE, progress=False)
plots.gallery(drawn, [p.replace(" in ", "\nin ").replace(" of ", "\nof ").replace(" with ", "\nwith ") for p in prompts], columns=3)
plt.show()
""", alt="Six pictures that the pipeline drew, each under its prompt: a portrait of a named person, a character, a fox without and with two styles, and a person who is only described.")
b.md(r"""
Who says that these are good? Not we, and not the CLIP whose text tower sits in the machine: it would be judge in its own case. The book has a **judge**, a small classifier trained on the drawings alone. It names what it sees, and it may say "none of these".
""")
b.code(r"""
judge(drawn).round(3)
""")
b.md(r"""
## Five parts

| part | what it does | in | out |
|---|---|---|---|
| tokenizer | cuts the sentence into pieces and looks up their numbers | text | numbers |
| text encoder | reads the pieces | numbers | one state for each position |
| UNet | says which part of a noisy latent picture is noise, told what the sentence says | noisy latents, time, states | of the same shape as the latents |
| scheduler | takes the noise out, a little at a time | latents and what the UNet says | cleaner latents |
| VAE | makes pixels of latents (and, in training, latents of pixels) | latents | picture |

We shall call the text encoder the *reader*, and UNet and scheduler together the *painter*. A **state** is the vector that the reader's last layer holds at one position of the sentence.

(This UNet says a mixture of noise and picture, from which both follow; the {doc}`appendix <A2_training_mini_sd>` has the formula.)

The **latents** are a small picture of their own, with fewer positions and more channels than the real one. Drawing happens there, because it is cheaper {cite}`rombach2022ldm`.
""")
b.code(r"""
tokens = pipe.tokenizer(f"a portrait of {NAME}", padding="max_length", return_tensors="pt").input_ids
with torch.no_grad():
    states = pipe.text_encoder(tokens).last_hidden_state
size, channels = pipe.unet.config.sample_size, pipe.unet.config.in_channels
shapes = {"tokenizer": tuple(tokens.shape), "text_encoder": tuple(states.shape), "unet": (1, channels, size, size),
          "scheduler": (1, channels, size, size), "vae": tuple(np.asarray(drawn.images[0]).shape)}
rows = []
for part, shape in shapes.items():
    module = getattr(pipe, part)
    weights = sum(p.numel() for p in module.parameters()) if isinstance(module, torch.nn.Module) else 0
    rows.append({"part": part, "class": type(module).__name__, "weights": f"{weights:,}" if weights else "–", "gives": shape})
pd.DataFrame(rows).set_index("part")
""")
b.md(r"""
## By hand

`pipe(...)` hides a loop. Here it is, in full. $z_t$ are the latents at time $t$, $c$ the states of the prompt, $\varnothing$ those of the empty prompt, and $u(z_t, t, c)$ what the UNet says.
The loop begins with noise. At every step it asks the UNet twice, with the prompt and without, and goes further in the direction of the difference:

$$
\hat u = u(z_t, t, \varnothing) + w\,\bigl(u(z_t, t, c) - u(z_t, t, \varnothing)\bigr) .
$$

This is **classifier-free guidance** {cite}`ho2022cfg`. With $w = 1$ the empty prompt drops out, and $\hat u$ is what the UNet says of the prompt. With a larger $w$ whatever tells the prompt from no prompt is exaggerated.

The scheduler of this pipeline takes out more noise than it has to and puts some fresh noise back, step by step, down to the last but one {cite}`lu2022dpmpp`: what went wrong in one step can so be mended in the next. A picture's seed decides on this noise too.
""")
b.code(r"""
@torch.no_grad()
def states_of(texts):
    '''The text encoder's states, (n, positions, width).'''
    ids = pipe.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    return pipe.text_encoder(ids).last_hidden_state


@torch.no_grad()
def draw(states, seeds, guidance=GUIDANCE, steps=50, watch=None):
    '''The pipeline's loop: pictures (n, S, S, 3), 0 to 255, from states (n, positions, width) and n seeds of noise.'''
    noise = [torch.Generator().manual_seed(seed) for seed in seeds]
    fresh = pipe.prepare_extra_step_kwargs(noise, 0.0)  # what this scheduler's step takes
    nothing = states_of([""]).expand_as(states)
    pipe.scheduler.set_timesteps(steps)
    z = torch.cat([torch.randn(1, channels, size, size, generator=one) for one in noise]) * pipe.scheduler.init_noise_sigma
    for t in pipe.scheduler.timesteps:
        both = pipe.scheduler.scale_model_input(torch.cat([z, z]), t)
        without, told = pipe.unet(both, t, torch.cat([nothing, states])).sample.chunk(2)
        stepped = pipe.scheduler.step(without + guidance * (told - without), t, z, **fresh)
        z = stepped.prev_sample
        if watch is not None:
            watch.append((int(t), z.clone()))
    return pixels(z)


@torch.no_grad()
def pixels(z):
    pictures = pipe.vae.decode(z / pipe.vae.config.scaling_factor).sample
    return ((pictures / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()


journey = []
mine = draw(states_of([f"a portrait of {NAME}"]), [7], watch=journey)[0]
its = np.asarray(pipe(f"a portrait of {NAME}", guidance_scale=GUIDANCE, generator=torch.Generator().manual_seed(7)).images[0])
print("largest difference of a pixel from the pipeline's own picture:", abs(mine.astype(int) - its.astype(int)).max())
""")
b.code(r"""
shown = [0, 10, 20, 30, 40, 49]
frames = [pixels(journey[k][1])[0] for k in shown]
plots.gallery(frames, [f"step {k + 1}" for k in shown], columns=6)
plt.show()
""", alt="Six frames from left to right, from coloured noise to a finished portrait: the latents at some of the steps, each turned into pixels.")
b.md(r"""
Usually the layout comes first, and details last.

### How much guidance?
""")
b.code(r"""
weights = (1, 2, GUIDANCE, 7.5, 12)
asked = [f"a portrait of {NAME}", "a picture of a fox in Sticker style"]
few = range(10, 18)
pictures, rates = [], {}
for text, wanted in zip(asked, (NAME, "fox"), strict=True):
    for w in weights:
        eight = draw(states_of([text] * 8), few, guidance=w, steps=20)
        pictures.append(eight[0])
        rates.setdefault(wanted, []).append(100 * judge.finds(eight, wanted).mean())
plots.gallery(pictures, [f"w = {w:g}" for w in weights] * 2, columns=len(weights), row_names=[NAME.split()[0], "fox"])
plt.show()
pd.DataFrame(rates, index=pd.Index([f"{w:g}" for w in weights], name="guidance")).rename(columns=lambda n: f"{n} found (% of 8)").round(0)
""", alt="Two rows of five pictures with the same noise and growing guidance: a portrait above and a fox below, each under the weight of its guidance.")
b.md(r"""
`diffusers` draws with $w = 7.5$ unless told otherwise, which suits large models. Ours is small, and what it has learnt is rough: enlarge the difference too much, and roughness is enlarged as well: compare the columns from left to right, pictures and counts. So this book draws with the constant `GUIDANCE` of the first cell. Guidance matters for unlearning: it exaggerates the *difference* that the prompt makes. Where an edit leaves a small rest of a name in the states, guidance enlarges that rest.

## What the text encoder hands over

First the claim that carries this part of the book: the text encoder is mini CLIP's text tower. Its weights have other names here, since `transformers` and `open_clip` name things differently, and one of the tensors is cut into three. The numbers are the same. And so are the outputs:
""")
b.code(r"""
from slug_lite.text_tower import to_transformers

clip = slug.load_clip("mini", device="cpu")
text = {n: w.detach() for n, w in clip.weights().items() if clip.tower(n) == "text" and n != "text_projection"}
own = {n.removeprefix("text_model."): w for n, w in pipe.text_encoder.named_parameters()}
for name in ("transformer.resblocks.0.mlp.c_fc.weight", "transformer.resblocks.0.attn.in_proj_weight"):
    print(f"{name} -> {', '.join(to_transformers({name: text[name]}))}")
print("all weights equal:", all(torch.equal(w, own[n]) for n, w in to_transformers(text).items()))

texts = [f"a portrait of {NAME}", "a fox in Sticker style", ""]
with torch.no_grad():
    model, ids = clip.model, clip.tokens(texts)
    x = model.token_embedding(ids) + model.positional_embedding
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask))
gap = (x - states_of(texts)).abs().max().item()
print(f"largest difference between the two libraries' states: {gap:.0e}, of numbers up to {x.abs().max().item():.1f}")
""")
b.md(r"""
Two things are *not* handed over. CLIP multiplies the state of one position, the end token, by `text_projection` to get its embedding; the UNet never sees that product. So an edit of `text_projection` makes CLIP forget and leaves the pictures as they were.
And Stable Diffusion 2 takes the states *before* the last block, so an edit of CLIP's last block does nothing there either. (`edit.on(pipe)` refuses both, with a message.)

On the other hand the UNet sees what CLIP throws away: the states of **all** positions, the padding included.

### Where does a name live?

Here is an experiment. Two prompts that differ in the name alone, and names of as many tokens (`</w>` marks the end of a word). We take the states of the first and replace those at *some* positions by the states of the second. Whom will the machine draw?
""")
b.code(r"""
OTHER = "Felix Moorhaven"  # as many tokens as the first name has
first, second = (f"a portrait of {name}" for name in (NAME, OTHER))
words = [pipe.tokenizer.convert_ids_to_tokens(pipe.tokenizer(text).input_ids) for text in (first, second)]
for found in words:
    print(len(found), "tokens:", " ".join(found))
ends = [len(found) - 1 for found in words]  # where the end tokens are
assert ends[0] == ends[1], "positions can be exchanged one by one only if both names have as many tokens"
""")
b.code(r"""
def mixed(name, end, padding):
    '''States for `first`, with those of `second` at the chosen positions.'''
    a, c = states_of([first, second])
    out = a.clone()
    at_name = slice(4, max(ends))  # behind "<start> a portrait of"
    if name:
        out[at_name] = c[at_name]
    if end:
        out[ends[0]] = c[ends[1]]
    if padding:
        out[max(ends) + 1 :] = c[max(ends) + 1 :]
    return out


ways = {"nothing": (0, 0, 0), "the name": (1, 0, 0), "the end token": (0, 1, 0), "the padding": (0, 0, 1), "end and padding": (0, 1, 1),
        "all three": (1, 1, 1)}
same_noise = range(20, 28)
pictures, rows = [], []
for way, choice in ways.items():
    eight = draw(mixed(*choice).expand(8, -1, -1), same_noise, steps=20)
    pictures += list(eight[:4])
    rows.append({"replaced": way} | {f"{n} (% of 8)": 100 * judge.finds(eight, n).mean() for n in (NAME, OTHER)})
plots.gallery(pictures, columns=4, row_names=list(ways), width=4.2)
plt.show()
""", alt="Six rows of four portraits with the same noise in every row. The rows differ in which positions of the prompt's states were taken from the other person's prompt: none, the name, the end token, the padding, both of these, all.")
b.code(r"""
swapped = pd.DataFrame(rows).set_index("replaced")
swapped.round(0)
""")
b.code(r"""
by_padding = swapped.loc["end and padding", f"{OTHER} (% of 8)"] / 100
by_name = swapped.loc["the name", f"{OTHER} (% of 8)"] / 100
positions = len(states_of([first])[0])
print(f"Of {positions} positions {max(ends) - 4} hold the name, {positions - max(ends)} the end token and the padding.")
print(f"Replacing the states of the name alone draws the other person in {by_name:.0%} of the pictures,")
print(f"replacing those of end token and padding alone in {by_padding:.0%}.")
""")
b.md(r"""
Each state can see all positions to its left: the tower is causal. So the states of end token and padding, which come last, have read the whole sentence, and each of them may say *who*. The name's own states know the name as well. The table shows whom the painter believes when they disagree.

For unlearning this means: a change of the state at one position need not reach the others. An edit of a *weight* of the text tower changes the states at all positions at once.
This is one reason why editing the reader works: whatever the painter listens to, it has passed through there.

## Where does the painter look?

In the UNet, **cross-attention** is where the states come in. Every position of the latent picture forms a query, every state a key, and the softmax of their products says how much this position heeds that state:

$$
A = \operatorname{softmax}\!\left(\frac{Q K^\top}{\sqrt d}\right), \qquad Q = W_Q\, h, \quad K = W_K\, c .
$$

What is handed on is $A V$ with $V = W_V\,c$. In this UNet words come in at the coarser levels only, so the maps are soft. Each row of $A$ sums to one. Averaged over heads, layers and steps, the column of a token is a map: where in the picture was this word heeded {cite}`tang2023daam`? `slug.attention_maps` draws a picture and keeps these averages.
""")
b.code(r"""
from slug_lite.attention import attention_maps

plots.show_source(attention_maps)
""")
b.code(r"""
maps = slug.attention_maps(pipe, "a fox in Sticker style", seed=3, guidance_scale=GUIDANCE)
faces = slug.attention_maps(pipe, first, seed=3, guidance_scale=GUIDANCE)


def overlay(axis, maps, words):
    one = maps.of(words) if words else 1 - maps.maps.sum(0)
    axis.imshow(maps.image.mean(2), cmap="gray", extent=(0, 1, 0, 1))
    shown = axis.imshow(one / one.max(), cmap="cividis", alpha=0.75, extent=(0, 1, 0, 1), interpolation="bilinear", vmin=0, vmax=1)
    axis.set_title(f"{words or 'padding'}\n{one.mean():.1%}", fontsize=9)
    axis.set_axis_off()
    return shown


figure, axes = plt.subplots(2, 5, figsize=(5.2, 2.9), layout="constrained")
for row, some, asked in zip(axes, (maps, faces), (("a", "fox", "Sticker", ""), ("portrait", "Ada", "Sunfield", "")), strict=True):
    row[0].imshow(some.image)
    row[0].set_axis_off()
    for axis, word in zip(row[1:], asked, strict=True):
        image = overlay(axis, some, word)
figure.colorbar(image, ax=axes, label="of the map's largest value", shrink=0.8)
plt.show()
""", alt="Two rows. Left what was drawn for a fox in Sticker style, above, and for a portrait, below; beside it, over a grey version of the picture, maps of how much each place heeded a word of the prompt, and last the padding, bright where it was heeded most. Above each map the word and its share of all attention.")
b.code(r"""
def shares(some):
    '''Where attention goes, all in all, in per cent.'''
    start, end = some.maps[0].mean(), some.maps[-1].mean()
    rest = 1 - some.maps.sum(0).mean()
    return {"start token": start, "words": some.maps[1:-1].sum(0).mean(), "end token": end, "padding": rest}


attention = 100 * pd.DataFrame({"a fox in Sticker style": shares(maps), first: shares(faces)})
attention.round(1)
""")
b.md(r"""
The percentage above each map is its share of all attention. The maps show some of the words, and the padding; the table has the whole: start token, all words together, end token, padding.

It is tempting to read such a map as "here the model draws the name". Be careful. A map shows how much weight a state gets, not what the state says, and states behind the name may say who is meant, too.
The experiment above is the better test: it changes what the states say, and looks at the face.

## What we hand to the next chapter

An edit of the text tower found on CLIP, put on the pipeline. One look at what it does to the states is enough here:
""")
b.code(r"""
from slug_lite.search import first_step, make_delta

LAYER = "transformer.resblocks.0.mlp.c_proj.weight"
gradient = slug.one_shot_gradients(clip, world.pairs(NAME, n=48), world.retain([NAME], n=64), progress=False).forget[LAYER]
step = 5 * first_step(clip.weights()[LAYER], gradient)  # first steps as chapter 5 has them
edit = slug.Edit({LAYER: make_delta(gradient, step)}, {LAYER: step}, NAME, slug.fingerprint(clip))

before = states_of([first, second])
with edit.on(pipe):
    after = states_of([first, second])
moved = ((after - before).norm(dim=2) / before.norm(dim=2)).numpy()
figure, axis = plt.subplots(figsize=(5.2, 2.7), layout="constrained")
for k, (text, marker) in enumerate(zip((first, second), "os", strict=True)):
    axis.plot(100 * moved[k], marker=marker, ms=4, label=text)
axis.axvspan(3.5, max(ends) - 0.5, color="0.9", lw=0)
axis.text(3.6, axis.get_ylim()[1], "name", va="top", fontsize=9)
axis.set(xlabel="position in the prompt", ylabel="change of the state\n(% of its length)", ylim=(0, None))
axis.legend()
plt.show()
print(f"from the name's first token on, the states move by {100 * moved[0, 4:].mean():.0f} % for {NAME}, by {100 * moved[1, 4:].mean():.0f} % for {OTHER}")
""", alt="Change of the text encoder's states under an edit, position by position: one curve for each of two people's prompts; a grey band marks the positions of the name.")
b.code(r"""
# NBVAL_CHECK_OUTPUT
print("by hand and by the pipeline, the same picture:", bool(abs(mine.astype(int) - its.astype(int)).max() <= 1))
print("two libraries, the same states:", gap < 1e-4)
print("no share of attention is negative:", bool((attention >= 0).all().all()))
print("the states before the name are the same for both prompts:", bool(torch.allclose(before[0, :4], before[1, :4], atol=1e-5)))
print("the pipeline is as it was:", torch.equal(states_of([first, second]), before))
""")
b.md(r"""
## Your turn

```{exercise}
:label: ex-pipe-order
*Difficulty 1 of 5, five minutes.* The positions in front of the name had the same states in both prompts. Why? What would be different in a text encoder that is not causal?
```

````{solution} ex-pipe-order
:class: dropdown
A causal tower lets each position see itself and what is to its left. `a portrait of` comes before the name in both prompts, so these positions see the same. Without the causal mask every state would depend on the whole sentence, and all of them could say who is meant.
````

```{exercise}
:label: ex-pipe-solver
*Difficulty 2 of 5, ten minutes.* How few steps are enough? Draw eight pictures of one person with 2, 4, 8, 16 and 32 steps from the same noise and let the judge count.
```

````{solution} ex-pipe-solver
:class: dropdown
```python
for steps in (2, 4, 8, 16, 32):
    eight = draw(states_of([first] * 8), few, steps=steps)
    print(f"{steps:3d} steps: found in {judge.finds(eight, NAME).mean():.0%}")
```
See where the count stops rising. In a diffusion model a few large steps usually settle the layout; what later ones add is detail, and repairs.
````

```{exercise}
:label: ex-pipe-start
*Difficulty 3 of 5, ten minutes.* Look up in the table how much attention goes to the start token. Its state is the same for every prompt. What could it be good for? Set its state to zero and draw again.
```

````{solution} ex-pipe-start
:class: dropdown
```python
whole = states_of([first] * 8)
changed = whole.clone()
changed[:, 0] = 0
plots.gallery([*draw(whole, few, guidance=1, steps=20), *draw(changed, few, guidance=1, steps=20)], columns=8, row_names=["whole", "zero"])
plt.show()
```
A softmax must spend its weight somewhere. A position or a head that has nothing to ask can put it on a token that says nothing about the prompt. A zero state has key and value zero. Its score is 0 everywhere, so weight moves to the others where the score was high before; what it still gets adds nothing. Guidance is 1 here, since it would enlarge the change.
````

```{exercise}
:label: ex-pipe-blend
*Difficulty 3 of 5, ten minutes.* Blend two prompts: draw from $(1 - a)\,c_1 + a\,c_2$ for some $a$ between 0 and 1. Does the face change gradually, or does it flip? What does the judge say in the middle?
```

````{solution} ex-pipe-blend
:class: dropdown
```python
c1, c2 = states_of([first, second])
for a in (0, 0.25, 0.4, 0.5, 0.6, 0.75, 1):
    eight = draw(torch.lerp(c1, c2, a).expand(8, -1, -1), few, steps=20)
    print(f"a = {a:.2f}: {NAME} {judge.finds(eight, NAME).mean():.0%}, {OTHER} {judge.finds(eight, OTHER).mean():.0%}")
```
Look at the pictures too: in the middle you may find people who are neither. An edit need not replace a name by another one; it is enough to lead its states to a place where nobody lives.
````

## Summary

- A pipeline is a tokenizer, a text encoder, a UNet, a scheduler and a VAE, and a loop of a dozen lines around them.
- The text encoder is CLIP's text tower without its projection. What it hands over is the states of all positions.
- Who is to be drawn can be said at many positions. An edit of a weight reaches them all.
- Guidance enlarges the difference that a prompt makes, and with it whatever an edit leaves of a name.

## Further reading

{cite:t}`rombach2022ldm` put diffusion into a latent space and gave it words by cross-attention. {cite:t}`ho2022cfg` found guidance without a classifier. {cite:t}`tang2023daam` made attention maps of Stable Diffusion and asked what they tell.
`diffusers` documents its pipelines part by part {cite}`diffusers`.
""")
b.write("08_from_words_to_pictures.ipynb")
