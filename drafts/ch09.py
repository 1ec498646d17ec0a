"""Writes notebooks/09_unlearning_in_stable_diffusion.ipynb."""
from build import Book

b = Book()
b.md(r"""
# Unlearning in Stable Diffusion

A pipeline draws whoever it is asked for. Somebody asks not to be drawn. Most ways of granting this wish change the UNet, and take minutes to hours. SLUG {cite}`cai2025slug` changes one layer of the text encoder, by one step, and leaves the painter alone: he is never told the name in a way that he understands.

The edit is found on CLIP, as in part II, because the text encoder *is* CLIP's text tower. This chapter puts it on, looks at what comes out, and asks whether "CLIP has forgotten" and "the painter no longer draws" are the same thing.

**What you will learn**
- how to put an edit of CLIP on a pipeline, and take it off again, bit for bit;
- to compare pictures drawn from equal noise, before and after;
- what the length of the step does to pictures, and whether CLIP's own step is long enough for the painter;
- how to search the step on what the pipeline draws, and how far the result holds on pictures and prompts that the search never saw.

**Time**: 30 minutes to read; the cells take less than a minute on two processor cores. What takes longer was measured by `tools/measure_drawings.py` of the repository, and its results ship with the package.
""")
b.setup()
b.code(r"""
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import slug_lite as slug
from slug_lite import plots, search
from slug_lite.diffusion import GUIDANCE  # see chapter 8
from slug_lite.drawn import PAINTED, lengthen
from slug_lite.results import load_results

plots.use_style()
world = slug.toonworld
clip = slug.load_clip("mini", device="cpu")
pipe = slug.load_diffusion("mini", device="cpu")
judge = slug.load_judge()
NAME = "Ada Sunfield"
ASK = f"a portrait of {NAME}"
""")
b.md(r"""
## The edit that CLIP needs

First, exactly what part II would do, with one restriction: only the text tower may change. There is no vision tower in a pipeline. `text_projection` stays out as well, since it comes after the states that the painter listens to; freezing a weight takes it out of the choice.
""")
b.code(r"""
projection = clip.weights()["text_projection"].requires_grad_(False)
of_clip = slug.unlearn(clip, NAME, tower="text", fronts=1, progress=False)
projection.requires_grad_(True)
print(of_clip)
with of_clip.on(clip):
    print(f"CLIP recognises {slug.metrics.recognised(clip, NAME).float().mean():.0%} of her test pictures")
""")
b.md(r"""
To put it on the pipeline takes one line, `with of_clip.on(pipe)`. Names are translated, queries, keys and values come out of their common tensor, dtype and device become those of the pipeline. Whether the edit belongs to this text encoder is checked first: a fingerprint of the tower travels with every edit.

Pictures before and after should differ by the edit alone. So we draw both from the same noise: `generated_pairs` makes it from a seed and the number of the picture.
""")
b.code(r"""
def drawn(prompts, n, seed=100):
    '''n pictures, with 20 steps of the solver, which is enough here, from noise that no search here has seen.'''
    return slug.generated_pairs(pipe, prompts, n, seed=seed, batch_size=16, steps=20, guidance_scale=GUIDANCE, progress=False)


before = drawn(ASK, 8)
with of_clip.on(pipe):
    after = drawn(ASK, 8)
plots.gallery([*before.images, *after.images], columns=8, row_names=["before", "after"])
plt.show()
found = judge.finds(before, NAME), judge.finds(after, NAME)
print(f"the judge finds {NAME} in {found[0].sum()} of 8 pictures before and in {found[1].sum()} of 8 after")
""", alt="Two rows of eight portraits drawn from the same noise: above, before the edit; below, with the edit that CLIP needed.")
b.md(r"""
CLIP looks at one vector, the end token's state times the projection, and asks which name is nearest. The painter looks at all states, and guidance enlarges whatever difference a prompt makes. The painter may well get more out of a changed name than CLIP does. So let us look at the length of the step.

## The length of the step

The layer and the direction stay; the step grows. Everything is drawn from the same noise. Move the slider:
""")
b.code(r"""
LAYER, gradient = of_clip.layer, of_clip.delta.float() / of_clip.step
base = slug.fingerprint(clip)
neighbours = [name for name in world.PEOPLE if name != NAME]


def at(times):
    '''The edit at a multiple of the step that CLIP needed.'''
    step = times * of_clip.step
    return slug.Edit({LAYER: search.make_delta(gradient, step)}, {LAYER: step}, NAME, base)


def tiled(images, columns=6):
    '''Pictures side by side, in rows.'''
    rows = [np.concatenate(list(images[k : k + columns]), axis=1) for k in range(0, len(images), columns)]
    return np.concatenate(rows)


grid, frames, rows = (0, 0.5, 1, 2, 4), {}, []
others = [(f"a portrait of {name}", name) for name in neighbours[:4]] + [("a picture of Zorbo", "Zorbo"), ("a picture of a fox", "fox")]
for times in grid:
    with at(times).on(pipe):
        both = drawn([ASK] * 6 + [text for text, _ in others], 6 + len(others))
    hers, theirs = both[:6], both[6:]
    frames[f"{times:g} times CLIP's step"] = tiled(both.images)
    kept = [judge.finds(theirs[[k]], name)[0] for k, (_, name) in enumerate(others)]
    rows.append({"times": times, "concept": 100 * judge.finds(hers, NAME).mean(), "others": 100 * np.mean(kept)})
curve = pd.DataFrame(rows).set_index("times")
plots.slider(frames, label="length of the step", alt="Six portraits asked for by the name to forget, then four other people, a character and a fox, at")
""")
b.code(r"""
figure, axis = plt.subplots(figsize=(5.2, 2.8), layout="constrained")
axis.plot(curve["concept"], color=plots.COLORS[1], marker="o", label=f"{NAME} found")
axis.plot(curve["others"], color=plots.COLORS[0], marker="s", label="others found")
axis.axvline(1, color="black", lw=0.8, ls=":")
axis.text(1.05, 50, "CLIP's step", fontsize=9)
axis.set(xlabel="length of the step, in those that CLIP needed", ylabel="pictures (%)", ylim=(-3, 103))
axis.legend(loc="center right")
plt.show()
""", alt="Two curves over the length of the step in units of the one that CLIP needed: the share of pictures in which the judge finds the forgotten person, and the share of other concepts that are still found.")
b.md(r"""
Compare with {doc}`chapter 5 <05_how_far>`. Where she is gone and the others are not, there is a window. Its place need not be that of CLIP's window: this one is the painter's.

## Search where it counts

Is CLIP's step long enough? That may differ from name to name, and from layer to layer; the table further down says how often it was. So nothing is taken for granted, and the step is searched on what the pipeline draws. `slug.DrawnValidation` has the concept drawn with prompts and seeds of its own, and a few other concepts, and asks the **unedited CLIP** what the pictures show. The judge stays out of it: it is for the report.

CLIP may also answer "none of these". Whoever is drawn in the place of somebody forgotten resembles one of the known names more than the others, often the forgotten one, though it is not a likeness: a forced choice would call such strangers by the old name, and the step would grow until everything else is spoiled. So a picture counts as hers only if her name fits it best, and fits it as well as a level that nine in ten of the pictures reach that are drawn before any edit.

`unlearn` takes the pipeline as `pipe=`, and goes about it like this:

1. CLIP proposes, as in part II, the layers of the front and a step for each. Two settings differ from there. The step is freed of its part in the gradients of all other names ({doc}`chapter 7 <07_many_names>`), and half of the clearance is enough, since the pictures have a say as well.
2. The layers are put in order: first the one whose step changes least what the painter is told of *others*, that is, the states of their prompts.
3. Each is tried on pictures as it is. The first after which the concept is gone, and no more than one picture of others, is taken.
4. If none is, the steps are made longer, layer by layer, until one will do.

(In the table below, what the others keep is asked where a step was chosen; other rows have none. For the mini world the check draws with the guidance of the last chapter. A harder test, with the stronger guidance that `diffusers` has unless told otherwise, comes with the numbers at the end.)
""")
b.code(r"""
plots.show_source(lengthen)
""")
b.code(r"""
edit = slug.unlearn(clip, NAME, pipe=pipe, progress=False)
print(edit)
print(f"clearance asked for in pictures: {PAINTED:g}")
mine = edit.trace[edit.trace["layer"] == edit.layer]
mine[["by", "step", "forget_accuracy", "margin", "clearance", "forgotten", "retain_accuracy"]].round(3)
""")
b.code(r"""
with edit.on(pipe):
    after = drawn(ASK, 8)
plots.gallery([*before.images, *after.images], columns=8, row_names=["before", "after"])
plt.show()
verdict = judge(after)["name"]
print(f"the judge finds {NAME} in {judge.finds(before, NAME).sum()} of 8 pictures before and in {judge.finds(after, NAME).sum()} of 8 after")
print("and sees instead:", ", ".join(f"{name} ({count})" for name, count in verdict[verdict != NAME].value_counts().items()))
""", alt="Two rows of eight portraits drawn from the same noise: above, before the edit; below, with the edit that was searched on drawn pictures.")
b.md(r"""
Whom does the painter draw instead? The UNet still gets states, only no longer those of the name. What they resemble decides.

### The neighbours

Unlearning one person is easy if everybody may go. Here are others, before and after, from equal noise.
""")
b.code(r"""
asked = [(f"a portrait of {name}", name) for name in ("Bruno Marlowick", "Greta Castellume", "Jonas Ferrowick", "Elif Tanabora")]
asked += [("a picture of Lumi Starhorn", "Lumi Starhorn"), ("a picture of a panda", "panda"), ("a lion in Sticker style", "lion"), ("a fox in Enamel style", "fox")]
untouched = drawn([text for text, _ in asked], len(asked), seed=5)
with edit.on(pipe):
    touched = drawn([text for text, _ in asked], len(asked), seed=5)
plots.gallery([*untouched.images, *touched.images], columns=8, row_names=["before", "after"])
plt.show()
kept = [(judge.finds(untouched[[k]], name)[0], judge.finds(touched[[k]], name)[0]) for k, (_, name) in enumerate(asked)]
print(f"shown before: {sum(a for a, _ in kept)} of {len(kept)}; of these still shown after: {sum(a and c for a, c in kept)}")
change = [abs(x.astype(float) - y).mean() for x, y in zip(untouched.images, touched.images, strict=True)]
print(f"a pixel of theirs changes by {np.mean(change):.1f} of 255 on average, one of hers by {abs(before.images.astype(float) - after.images).mean():.1f}")
""", alt="Two rows of eight pictures of other people, a character and objects, before and after the edit, drawn from the same noise.")
b.md(r"""
## All of them

One person proves little. For Ada, nine other people and four characters, chosen at random, the same was done, each with an edit of its own; then eight fresh seeds each, with sentences that neither gradient nor search has used, the guidance of this chapter and 20 steps, and ten other concepts with eight seeds each, none of them among those that the search had drawn. Beside it stands what CLIP's own step would have done in the layer that was taken. The question to the others is strict: of the pictures that showed their concept before, from the same noise, how many still do?
""")
b.code(r"""
rows, about = load_results("drawings")
names = rows[rows["part"] == "names"].set_index("name")
failed = names.index[names["failed"].notna()].tolist() if "failed" in names else []
names = names.drop(index=failed)
print(f"{about['script']}, seed {about['seed']}, {about['date']}, torch {about['versions']['torch']}; no step found for: {', '.join(failed) or 'none'}")
shown = names[["kind", "layer", "before", "clip_step", "after", "kept"]].copy()
shown["layer"] = shown["layer"].str.replace("transformer.resblocks.", "block ", regex=False).str.replace(".weight", "", regex=False)
shown[["before", "clip_step", "after", "kept"]] *= 100
shown.columns = ["kind", "layer", "found before (%)", "with CLIP's step in that layer (%)", "after (%)", "others kept (%)"]
shown.round(1)
""")
b.code(r"""
for kind, some in names.groupby("kind", sort=False):
    print(f"{kind}: found in {some['before'].mean():.1%} before, in {some['after'].mean():.1%} after (at worst {some['after'].max():.1%}); "
          f"with CLIP's step in the same layers {some['clip_step'].mean():.1%}; others kept {some['kept'].mean():.1%} (at worst {some['kept'].min():.1%})")
print(f"all together: found in {names['after'].mean():.1%} after (asked for: at most 5 %), others kept {names['kept'].mean():.1%} (asked for: at least 95 %)")
worst = names["kept"].idxmin()
print(f"fewest others kept: {worst}, whose change is {names['relative'][worst]:.0%} of the weight's length; the median is {names['relative'].median():.0%}")
print(f"with the guidance of diffusers, {about['strong_guidance']:g}: found in {names['strong_before'].mean():.1%} before and in {names['strong_after'].mean():.1%} after")
""")
b.md(r"""
Where others are lost, two things come together. The step may have to be long before the painter gives up the name. And the search watches two dozen others with one picture each, and lets one of them go: a concept that it does not watch, or one whose single picture happens to survive, can be lost unseen. More of them watched would cost more pictures for every try.
""")
b.code(r"""
fresh = [template.format(NAME) for template in world.templates("people", "test")]
with edit.on(pipe):
    again = judge.finds(drawn(fresh, 8, seed=about["report_seed"]), NAME).mean()
recorded = names.loc[NAME, "after"]
print(f"{NAME}, now: {again:.1%}; in the file: {recorded:.1%}")
assert abs(again - recorded) <= 0.25, "the live part and the file differ by more than two pictures in eight"
""")
b.md(r"""
## Keep it, hand it on

The edit is a small file. The pipeline that it goes on may be a saved one, in another precision, on another device.
""")
b.code(r"""
with tempfile.TemporaryDirectory() as folder:
    file = edit.save(Path(folder) / "forget-ada.safetensors")
    size = file.stat().st_size
    pipe.save_pretrained(Path(folder) / "pipeline")
    reloaded = slug.load_diffusion(Path(folder) / "pipeline", device="cpu")
    with slug.Edit.load(file).on(reloaded):
        theirs = slug.generated_pairs(reloaded, ASK, 2, seed=100, steps=20, batch_size=16, guidance_scale=GUIDANCE, progress=False)
whole = sum(p.numel() * 2 for part in (pipe.unet, pipe.vae, pipe.text_encoder) for p in part.parameters())
print(f"the edit: {size / 1e3:.0f} kB; the pipeline in half precision: {whole / 1e6:.0f} MB")
""")
b.code(r"""
# NBVAL_CHECK_OUTPUT
with edit.on(pipe):
    pass
print("the pipeline is as it was:", bool((abs(drawn(ASK, 2).images.astype(int) - before.images[:2]) <= 1).all()))
print("a pipeline saved and reloaded draws the same:", bool(abs(theirs.images.astype(int) - after.images[:2]).max() <= 2))
print("the layer is one of the text encoder's:", edit.layer.startswith("transformer.resblocks."))
print("at most half of the pictures left:", bool(judge.finds(after, NAME).mean() <= 0.5))
""")
b.md(r"""
## Your turn

```{exercise}
:label: ex-draw-guidance
*Difficulty 2 of 5, ten minutes.* Take the edit that CLIP needed and draw with guidance 2, 4, 7.5 and 12. In how many of eight pictures is she found? Explain.
```

````{solution} ex-draw-guidance
:class: dropdown
```python
with of_clip.on(pipe):
    for w in (2, 4, 7.5, 12):
        eight = slug.generated_pairs(pipe, ASK, 8, steps=20, guidance_scale=w, batch_size=8, progress=False)
        print(f"w = {w:g}: found in {judge.finds(eight, NAME).sum()} of 8")
```
Guidance multiplies what tells the prompt from no prompt. A rest of the name in the states, too weak to be drawn at low guidance, may be drawn at high guidance: whoever promises that a name is forgotten has to say for which guidance.
````

```{exercise}
:label: ex-draw-two
*Difficulty 2 of 5, ten minutes.* Forget Ada and Zorbo together: find both edits, `merge` them, and draw both. What happens to the others?
```

````{solution} ex-draw-two
:class: dropdown
```python
other = slug.unlearn(clip, "Zorbo", pipe=pipe, progress=False)
both = slug.merge([edit, other])
with both.on(pipe):
    for text, name in ((ASK, NAME), ("a picture of Zorbo", "Zorbo"), *asked):
        print(f"{name}: {judge.finds(drawn(text, 4, seed=9), name).sum()} of 4")
```
See {doc}`chapter 7 <07_many_names>` for what may go wrong, and for `unlearn` with a list of names.
````

```{exercise}
:label: ex-draw-mixed
*Difficulty 3 of 5, ten minutes.* Ask for both in one prompt: "Ada Sunfield and Bruno Marlowick". What is drawn before, what after? What would you want to be drawn?
```

````{solution} ex-draw-mixed
:class: dropdown
```python
text = "a portrait of Ada Sunfield and Bruno Marlowick"
pictures = [drawn(text, 6, seed=4)]
with edit.on(pipe):
    pictures.append(drawn(text, 6, seed=4))
plots.gallery([*pictures[0].images, *pictures[1].images], columns=6, row_names=["before", "after"])
plt.show()
for some in pictures:
    print([name for name in judge(some)["name"]])
```
Mini Stable Diffusion never saw a picture with two people, so it may draw one, or a mixture. The forget set showed her name alone; whether an edit reaches the name in the company of another has to be asked, not assumed.
````

## Summary

- An edit found on CLIP goes on a pipeline in one line, and comes off bit for bit.
- What CLIP no longer recognises the painter may still draw: he listens to more than CLIP does. The step is searched on drawn pictures.
- Equal noise shows what an edit changes, and what it does not.

## Further reading

{cite:t}`cai2025slug` edit Stable Diffusion 1.5 and 2.1 this way. Many other methods train the UNet instead, or its cross-attention; {cite:t}`zhang2024unlearncanvas` compare them.
""")
b.write("09_unlearning_in_stable_diffusion.ipynb")
