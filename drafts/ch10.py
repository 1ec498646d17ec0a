"""Writes notebooks/10_characters_and_protected_content.ipynb."""
from build import Book

b = Book()
b.md(r"""
# Characters and protected content

Somebody owns a character and wants it drawn no more. They send no pictures, and the pictures that the model was trained on are out of reach or may not be used. Is a forget set needed at all? The model has one inside: it can draw the character. So we let it, and use what it draws {cite}`cai2025slug`.

The second half of the chapter is about asking. Nobody who wants the character is obliged to call it by its name. One can misspell the name, shorten it, or describe what the character looks like. An edit that was made for the name has promised nothing about these.

**What you will learn**
- how to make a forget set, and a retain set, with nothing but the pipeline and its CLIP;
- how the gradient of drawn pictures compares with that of real ones;
- to ask around a name, by misspellings and descriptions, and to count what still comes out;
- what a forget set has to say for an edit to reach a description, and what that costs.

**Time**: 25 minutes to read; the cells take less than a minute on two processor cores. The larger counts were made by `tools/measure_drawings.py`, and ship with the package.
""")
b.setup()
b.code(r"""
from contextlib import nullcontext

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

import slug_lite as slug
from slug_lite import captions, plots
from slug_lite.diffusion import GUIDANCE  # see chapter 8
from slug_lite.results import load_results

plots.use_style()
world = slug.toonworld
clip = slug.load_clip("mini", device="cpu")
pipe = slug.load_diffusion("mini", device="cpu")
judge = slug.load_judge()
NAME = "Zorbo"
ASK = f"a picture of {NAME}"
""")
b.md(r"""
## A forget set out of nothing

`slug.generated_pairs` has the pipeline draw prompts in turn, each picture from noise of its own, and returns pairs of picture and prompt. The forget loss wants pairs that the model holds to be right, and this is what the *pipeline* means by the name. Whether CLIP agrees is what the forget loss below says.
""")
b.code(r"""
def named(pairs, names):
    '''The same pairs, with the names that were asked for.'''
    return slug.Pairs(pairs.images, pairs.captions, [(name,) for name in names])


texts = [template.format(NAME) for template in world.templates("characters", "train")]
own = slug.generated_pairs(pipe, texts, 16, seed=11, steps=12, batch_size=12, guidance_scale=GUIDANCE, progress=False)
own = named(own, [NAME] * len(own))
plots.gallery(own[:12])
plt.show()
print(f"{len(own)} pictures for {len(texts)} prompts; the judge finds {NAME} in {judge.finds(own, NAME).mean():.0%} of them")
""", alt="Twelve pictures that the pipeline drew when it was asked for one character, from different noise.")
b.md(r"""
The retain set can be made in the same way, from prompts of everything else. In a real case these would be prompts of a general kind.
""")
b.code(r"""
rest = [(kind, name) for kind, names in world.NAMES.items() for name in names if name != NAME]
chosen = [rest[k] for k in np.random.default_rng(0).permutation(len(rest))[:32]]
prompts = [world.templates(kind, "train")[1].format(name) for kind, name in chosen]
others = slug.generated_pairs(pipe, prompts, len(prompts), seed=12, steps=12, batch_size=16, guidance_scale=GUIDANCE, progress=False)
others = named(others, [name for _, name in chosen])

real = {"forget": world.pairs(NAME, n=24, seed=0), "retain": world.retain([NAME], n=256, seed=0)}
layers = lambda name, weight: slug.editable(name, weight) and name.startswith("transformer.")  # noqa: E731
of_drawn = slug.one_shot_gradients(clip, own, others, layers=layers, progress=False)
of_real = slug.one_shot_gradients(clip, real["forget"], real["retain"], layers=layers, progress=False)


def cosine(a, c):
    return torch.cosine_similarity(a.flatten(), c.flatten(), dim=0).item()


alike = pd.Series({layer: cosine(of_drawn.forget[layer], of_real.forget[layer]) for layer in of_real.forget})
fronts = {way: slug.pareto_front(g.stats) for way, g in (("drawn", of_drawn), ("real", of_real))}
print(f"forget loss: {of_drawn.forget_loss:.3f} on drawn pairs, {of_real.forget_loss:.3f} on the world's own")
print(f"cosine of the two forget gradients, layer by layer: {alike.min():.2f} to {alike.max():.2f}, median {alike.median():.2f}")
print(f"Pareto fronts: {len(fronts['drawn'])} and {len(fronts['real'])} layers, {len(set(fronts['drawn']) & set(fronts['real']))} in common")
""")
b.md(r"""
How alike must they be? The direction of a mean over pictures is mostly what they have in common: the name on the one side, the look on the other. Where the pipeline draws the character well, both sets agree about that. The retain gradient needs more pictures before it settles, as {doc}`chapter 3 <03_one_gradient_each>` shows, and the retain sets differ in size here too, so the fronts may differ.

Now the edit, once with each set. With sets of our own `unlearn` wants two checks: `validate=`, pictures for CLIP to name, and `pipe=`, what to have drawn. Both use sentences and noise that the sets have not seen. Drawn pictures of one name differ more among each other than the world's drawings, so CLIP is asked for a narrower clearance than in {doc}`chapter 5 <05_how_far>`; and one front of layers is enough here.
""")
b.code(r"""
asks = [template.format(NAME) for template in world.templates("characters", "val")]
fresh = slug.generated_pairs(pipe, asks, 8, seed=13, steps=12, batch_size=12, guidance_scale=GUIDANCE, progress=False)
known = [(world.templates(kind, "val")[0].format(name), name) for kind, name in chosen[:16]]
stay = slug.generated_pairs(pipe, [text for text, _ in known], len(known), seed=14, steps=12, batch_size=12, guidance_scale=GUIDANCE, progress=False)
by_clip = slug.Validation(
    named(fresh, [NAME] * len(fresh)) + named(stay, [name for _, name in known]), NAME, world.NAMES,
    {kind: world.templates(kind, "val") for kind in world.NAMES},
)
check = slug.DrawnValidation.of_world(pipe, NAME, n=6, others=10)
settings = {"pipe": check, "validate": by_clip, "clearance": 1.5, "fronts": 1, "progress": False}
edits = {
    "drawn by the pipeline": slug.unlearn(clip, own, others, **settings),
    "drawings of the world": slug.unlearn(clip, real["forget"], real["retain"], **settings),
}
for way, edit in edits.items():
    print(f"{way}: {edit}")
""")
b.code(r"""
def drawn(prompts, n, seed=100):
    return slug.generated_pairs(pipe, prompts, n, seed=seed, batch_size=16, steps=20, guidance_scale=GUIDANCE, progress=False)


before = drawn(ASK, 8)
pictures, rows = [*before.images], [{"forget set": "none, before", "found (% of 8)": 100 * judge.finds(before, NAME).mean()}]
for way, edit in edits.items():
    with edit.on(pipe):
        after = drawn(ASK, 8)
    pictures += [*after.images]
    rows.append({"forget set": way, "found (% of 8)": 100 * judge.finds(after, NAME).mean()})
plots.gallery(pictures, columns=8, row_names=["before", "drawn", "real"])
plt.show()
pd.DataFrame(rows).set_index("forget set").round(0)
""", alt="Three rows of eight pictures from equal noise: what is drawn for the character's name before any edit, with the edit from pictures that the pipeline drew itself, and with the edit from the world's own drawings.")
b.md(r"""
## Asking around the name

The edit was made for the name. What of all the other ways to ask?
""")
b.code(r"""
edit = edits["drawn by the pipeline"]
ways = {
    "the name": ASK,
    "another sentence": f"this is {NAME}",
    "small letters": f"a picture of {NAME.lower()}",
    "misspelt": "a picture of Zorbbo",
    "misspelt otherwise": "a picture of Zorvo",
    "described": f"a picture of {captions.looks(NAME)}",
    "name and description": f"a picture of {NAME}, {captions.looks(NAME)}",
}
each = [text for text in ways.values() for _ in range(3)]
plain = drawn(each, len(each), seed=103)
with edit.on(pipe):
    changed = drawn(each, len(each), seed=103)
rows, pictures = [], []
for k, (way, text) in enumerate(ways.items()):
    some = slice(3 * k, 3 * k + 3)
    pictures += [*plain.images[some], *changed.images[some]]
    rows.append({"asked by": way, "prompt": text, "before (%)": 100 * judge.finds(plain[some], NAME).mean(), "after (%)": 100 * judge.finds(changed[some], NAME).mean()})
titles = ["before"] * 3 + ["after"] * 3 + [""] * (len(pictures) - 6)
plots.gallery(pictures, titles, columns=6, row_names=[way.replace(" ", "\n") for way in ways])
plt.show()
""", alt="Seven rows, one for each way of asking for the character: three pictures before the edit on the left, three after it on the right.")
b.code(r"""
around = pd.DataFrame(rows).set_index("asked by")
around.round(0)
""")
b.md(r"""
Three things can be read from such a table.

- **Spelling.** CLIP's tokenizer makes small letters of capitals, so these are the *same* tokens. A misspelling is other tokens. It works as a way around only as far as the model took it for the name in the first place: see the column before.
- **Descriptions.** A description shares no word with the name. The model learnt the look from captions that describe as well as from captions that name, so the words lead to the look by a road of their own. Nothing in the forget set says that this road is to be closed. Whether it is, the last column says: the edit climbs the loss of captions against *pictures* of the character, so what it changes in the layer may be what takes any text to such pictures, the description included.
- **Both.** With name and description in one prompt, the part that is left of the one may be helped by the other.

Over more people and characters, with eight seeds each, and partly in other ways: a letter left out, two exchanged, the first or the last name alone.
""")
b.code(r"""
results, about = load_results("drawings")
asked = results[results["part"] == "around"]
table = asked.groupby(["kind", "way"], sort=False)[["before", "after"]].mean().mul(100).round(1)
table.columns = ["before (%)", "after (%)"]
print(f"{about['script']}, seed {about['seed']}, {about['date']}; {asked['name'].nunique()} concepts")
table
""")
b.code(r"""
described = asked[asked["way"] == "described"]
print(f"asked by description: {described['before'].mean():.0%} before, {described['after'].mean():.0%} after an edit made for the name")
print(f"asked by name: {asked[asked['way'] == 'the name']['before'].mean():.0%} before, {asked[asked['way'] == 'the name']['after'].mean():.0%} after")
""")
b.md(r"""
## Forgetting the look as well

An edit for the name may close the other roads or leave them open: it has promised neither. If descriptions shall not lead to the character, the forget set should say so. Its captions may name, or describe, or do both. The gradient is then a mean over all of these roads, and the step has to be searched until the last of them is closed.
""")
b.code(r"""
looks = [f"a picture of {captions.looks(NAME)}", f"a drawing of {captions.looks(NAME)}", f"this is {NAME}, {captions.looks(NAME)}"]
wider = slug.generated_pairs(pipe, [*texts[:3], *looks], 18, seed=21, steps=12, batch_size=12, guidance_scale=GUIDANCE, progress=False)
wider = named(wider, [NAME] * len(wider))
roads = slug.DrawnValidation(
    pipe, NAME, [f"a small drawing of {NAME}", f"an image of {captions.looks(NAME)}"], check.others, check.names, check.templates, n=6,
    guidance_scale=GUIDANCE, batch_size=12,
)
try:
    wide = slug.unlearn(clip, wider, others, **{**settings, "pipe": roads})
    print(wide)
except slug.NothingForgets as error:
    wide = None
    print("no single step closes both roads:", str(error)[:200])
""")
b.code(r"""
watched = {name for _, name in check.others} | {name for _, name in chosen}
aside = [(world.templates(kind, "test")[0].format(name), name) for kind, name in rest if name not in watched][::6]
if wide is not None:
    with wide.on(pipe):
        found = judge.finds(drawn(each, len(each), seed=103), NAME)
    around["after, look included (%)"] = 100 * found.reshape(-1, 3).mean(axis=1)
    kept = []
    for some in (None, edit, wide):
        with some.on(pipe) if some else nullcontext():
            theirs = drawn([text for text, _ in aside], len(aside), seed=106)
        kept.append(np.mean([judge.finds(theirs[[k]], name)[0] for k, (_, name) in enumerate(aside)]))
    print(f"{len(aside)} others that no search has drawn: found {kept[0]:.0%} before, {kept[1]:.0%} with the edit of the name, {kept[2]:.0%} with the look included")
around.drop(columns="prompt").round(0)
""")
b.md(r"""
This is a decision, not a technicality. "A visitor from space with big dark eyes" is not protected; many pictures could answer to it. Whoever forgets descriptions takes words from everybody. What a request covers, the name or the look, has to be settled before the forget set is made.

And an edit is no lock. Prompts found by optimisation can bring much back in edited models {cite}`zhang2024unlearncanvas`; part V will try them, and fine-tuning.
""")
b.code(r"""
# NBVAL_CHECK_OUTPUT
print("drawn and real forget gradients point the same way:", bool((alike > 0).all()))
print("small letters give the same tokens:", pipe.tokenizer(ways["small letters"]).input_ids == pipe.tokenizer(ways["the name"]).input_ids)
print("the edit of the name works for the name:", bool(around.loc["the name", "after (%)"] <= 50))
""")
b.md(r"""
## Your turn

```{exercise}
:label: ex-char-few
*Difficulty 2 of 5, ten minutes.* How many pictures must the pipeline draw? Take the first 2, 4, 8 and 16 pairs of `own` and compare their forget gradients in the layer of `edit` with that of all of them.
```

````{solution} ex-char-few
:class: dropdown
```python
from slug_lite.gradients import forget_gradients

layer = edit.layer
sets = [own[:n] for n in (2, 4, 8, 16)]
found = forget_gradients(clip, sets, layers=lambda name, _: name == layer, progress=False)
for some, one in zip(sets, found, strict=True):
    print(f"{len(some):3d} pictures: cosine {cosine(one[layer], of_drawn.forget[layer]):.3f}")
```
The first pictures also come with the first few prompts only, so part of what is missing is sentences, not pictures.
````

```{exercise}
:label: ex-char-letters
*Difficulty 2 of 5, ten minutes.* Find a misspelling of another character that the pipeline understands before an edit. Which misspellings does it understand, and why? Look at the tokens.
```

````{solution} ex-char-letters
:class: dropdown
```python
for text in ("Gearhart", "Gearheart", "Gear hart", "Gearhardt", "Girhart"):
    found = judge.finds(drawn(f"a picture of {text}", 6), "Gearhart").mean()
    print(f"{text:10s} {found:.0%}", pipe.tokenizer.tokenize(text))
```
The tower is causal: a misspelling shares states with the name up to the first token that differs, and none after it. How far the rest resembles the name is for the model to say.
````

```{exercise}
:label: ex-char-person
*Difficulty 3 of 5, ten minutes.* Repeat the table for a person, with an edit of your own. People of this world are described by hair, glasses and beard. Is the person in a picture that answers the description? Who else could be?
```

````{solution} ex-char-person
:class: dropdown
```python
name = "Ada Sunfield"
hers = slug.unlearn(clip, name, pipe=pipe, progress=False)
for text in (f"a portrait of {name}", f"a portrait of a person with {captions.looks(name)}", "a portrait of a person with round glasses"):
    counts = []
    for some in (None, hers):
        if some is None:
            counts.append(judge.finds(drawn(text, 8), name).mean())
        else:
            with some.on(pipe):
                counts.append(judge.finds(drawn(text, 8), name).mean())
    print(f"{text}: {counts[0]:.0%} before, {counts[1]:.0%} after")
```
The full description fits her alone in this world, so drawing it means drawing her, whether or not her name is known. In a larger world it would fit many.
````

## Summary

- A pipeline can supply the forget set itself. How near its gradient comes to that of the world's own drawings is printed above.
- An edit made for a name is a promise about the name. Count what other roads lead to the same picture, before you call anything forgotten.
- A wider forget set is meant to close more roads. Whether one step can do that, and what it takes from others, has to be counted.

## Further reading

{cite:t}`cai2025slug` remove protected characters from Stable Diffusion with forget sets that it drew itself. {cite:t}`zhang2024unlearncanvas` collect how methods of unlearning fail, adversarial prompts included.
""")
b.write("10_characters_and_protected_content.ipynb")
