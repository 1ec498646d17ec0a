"""Writes notebooks/11_styles_and_objects.ipynb."""
from build import Book

b = Book()
b.md(r"""
# Styles and objects

A style is not a thing in a picture. It is everywhere in it, and it is shared: an object in eight styles, a style in thirty-two objects. To forget the style and keep the objects, or to forget an object and keep the styles, a method has to tell two things apart that always come together.

UnlearnCanvas {cite}`zhang2024unlearncanvas` made this a test: a model draws every object in every style, a concept is unlearned, the model draws the whole grid again, and a classifier says what is left. This chapter runs that protocol on the mini world: all cells, an object in a style, that training showed. Each of the eight styles is forgotten in turn, and eight of the objects.

**What you will learn**
- the three numbers of the protocol, UA, IRA and CRA, and what each of them cannot see;
- how SLUG does on all eight styles and eight objects, where it falls short, and why;
- what a Fréchet distance measures, and why ours is not an FID;
- what it all costs: seconds, and the size of the edit on disk.

**Time**: 25 minutes to read; the cells take less than a minute on two processor cores. The whole grid was measured by `tools/measure_drawings.py`; its results ship with the package.
""")
b.setup()
b.code(r"""
import time

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import slug_lite as slug
from slug_lite import plots
from slug_lite.diffusion import GUIDANCE  # see chapter 8
from slug_lite.results import load_results

plots.use_style()
world = slug.toonworld
clip = slug.load_clip("mini", device="cpu")
pipe = slug.load_diffusion("mini", device="cpu")
judge = slug.load_judge()
results, about = load_results("drawings")
grid = results[results["part"] == "canvas"].copy()
failed = grid.loc[grid["UA"].isna(), "name"].tolist()
grid = grid[grid["UA"].notna()]
print(f"{about['script']}, seed {about['seed']}, {about['date']}, torch {about['versions']['torch']}; no step found for: {', '.join(failed) or 'none'}")
""")
b.md(r"""
## The grid

Each object has one style in which training never showed it. These cells are in the picture and not in the counts.
""")
b.code(r"""
def prompt(thing, style):
    return f"a picture of a {thing} in {style} style"


things = ("fox", "panda", "house", "rocket")
cells = [(thing, style) for thing in things for style in world.STYLES]


def draw_all(prompts, seed=100):
    return slug.generated_pairs(pipe, prompts, len(prompts), seed=seed, steps=20, batch_size=16, guidance_scale=GUIDANCE, progress=False)


def draw(some, seed=100):
    return draw_all([prompt(*cell) for cell in some], seed)


before = draw(cells)
plots.gallery(before, [style.replace(" ", "\n") for style in world.STYLES] + [""] * (len(cells) - len(world.STYLES)), columns=len(world.STYLES), row_names=things)
plt.show()
verdict = judge(before)
asked, seen = np.array(cells), [k for k, cell in enumerate(cells) if cell not in world.UNSEEN]
right = (verdict[["name", "style"]].to_numpy() == asked)[seen].mean(axis=0)
print(f"of the {len(seen)} cells that training showed: object as asked {right[0]:.0%}, style as asked {right[1]:.0%}")
""", alt="A grid of small pictures, four objects in rows and eight styles in columns, as the pipeline draws them before any edit.")
b.md(r"""
## Three numbers

Let a style be forgotten; for an object, exchange the roles. $D$ are the pictures drawn with the edit on, one or more for every cell of the grid; $D_s$ those that were asked for in that style.

| | of which pictures | counts | wanted |
|---|---|---|---|
| **UA**, unlearning accuracy | $D_s$ | the judge does *not* see the style | high |
| **IRA**, in-domain retain accuracy | $D \setminus D_s$ | the style is the one asked for | high |
| **CRA**, cross-domain retain accuracy | $D \setminus D_s$ | the object is the one asked for | high |

""")
b.code(r"""
plots.show_source(slug.canvas)
""")
b.md(r"""
One number alone is worth nothing. A broken pipeline that draws noise has a UA of one. An edit that does nothing has the IRA and CRA of the untouched pipeline. And note what no number asks: *what* is drawn instead of the style, and whether the object is still there when its style is gone.

### One style, live
""")
b.code(r"""
STYLE = "Clay"
begin = time.perf_counter()
edit = slug.unlearn(clip, STYLE, pipe=pipe, progress=False)
print(f"{edit}\n{time.perf_counter() - begin:.0f} s on this machine, search included")
with edit.on(pipe):
    after = draw(cells)
plots.gallery(after, [style.replace(" ", "\n") for style in world.STYLES] + [""] * (len(cells) - len(world.STYLES)), columns=len(world.STYLES), row_names=things)
plt.show()
column = [(thing, STYLE) for thing in world.OBJECTS if thing not in things and (thing, STYLE) not in world.UNSEEN][:12]
with edit.on(pipe):
    more = draw(column, seed=101)
found = pd.concat([judge(after).iloc[seen], judge(more)])
live = slug.canvas([cells[k] for k in seen] + column, found, STYLE)
print(f"live, {len(found)} pictures of cells that training showed:", ", ".join(f"{k} {v:.0%}" for k, v in live.items()))
""", alt="The same grid drawn from the same noise with the edit on.")
b.code(r"""
file = grid[grid["name"] == STYLE].iloc[0]
apart = {k: abs(live[k] - file[k]) for k in ("UA", "IRA", "CRA")}
print("in the file, on the whole grid:", ", ".join(f"{k} {file[k]:.0%}" for k in apart))
assert max(apart.values()) <= 0.3, "the live part and the file are further apart than a part of the grid explains"
""")
b.md(r"""
## All styles, eight objects
""")
b.code(r"""
columns = ["UA", "IRA", "CRA", "UA_before", "IRA_before", "CRA_before"]
shown = grid.set_index(["domain", "name"])[columns].mul(100).round(1)
shown.columns = [c.replace("_before", " before") + " (%)" for c in columns]
shown
""")
b.code(r"""
mean = grid.groupby("domain", sort=False)[columns].mean()
for domain, row in mean.iterrows():
    print(f"{domain}: UA {row['UA']:.1%}, IRA {row['IRA']:.1%} (before {row['IRA_before']:.1%}), CRA {row['CRA']:.1%} (before {row['CRA_before']:.1%})")
short = [(row["name"], k, row[k]) for _, row in grid.iterrows() for k in ("UA", "IRA", "CRA") if row[k] < 0.9]
print("below the 90 % that this book asked for:", "; ".join(f"{name} {k} {value:.0%}" for name, k, value in short) or "none")
""")
b.code(r"""
figure, axis = plt.subplots(figsize=(5.2, 4.6), layout="constrained")
y = np.arange(len(grid))[::-1]
for k, (metric, marker) in enumerate(zip(("UA", "IRA", "CRA"), "os^", strict=True)):
    axis.plot(100 * grid[metric], y + 0.2 * (1 - k), marker, ms=6, color=plots.COLORS[k], label=metric)
axis.axvline(90, color="black", lw=0.8, ls=":")
axis.set_yticks(y, grid["name"])
axis.set(xlabel="pictures (%)", xlim=(min(80, 100 * grid[["UA", "IRA", "CRA"]].min().min() - 3), 101))
axis.legend(loc="lower left")
plt.show()
""", alt="For each of the eight styles and eight objects three marks: unlearning accuracy, in-domain and cross-domain retain accuracy, in per cent, with a dotted line at ninety, the mark that this book set itself.")
b.md(r"""
### Where it falls short
""")
b.code(r"""
worst = grid.loc[grid[["UA", "IRA", "CRA"]].min(axis=1).idxmin()]
low = worst[["UA", "IRA", "CRA"]].astype(float).idxmin()
print(f"the least of all numbers: {low} of {worst['name']!r}, {worst[low]:.0%}; layer {worst['layer']}, "
      f"the change is {worst['relative']:.0%} of the weight's length")
print(f"pictures that an object's UA rests on: {about['grid_seeds'] * sum(cell[0] == world.OBJECTS[0] for cell in world.cells('train'))}; "
      f"a style's: {about['grid_seeds'] * sum(cell[1] == world.STYLES[0] for cell in world.cells('train'))}")
print("other pictures of the same domain, taken for something else, most often first:")
for row in worst["confused"][:5]:
    print(f"  asked {row[0]}, seen {row[1]}: {row[2]} pictures")
""")
b.code(r"""
plain = draw_all([f"a picture of a {thing}" for thing in world.OBJECTS], seed=102)
default = judge(plain)["style"].value_counts()
print(f"{len(plain)} objects asked for without a style, drawn by the untouched pipeline in:")
print(", ".join(f"{style} ({count})" for style, count in default.items()))
own = grid[grid["domain"] == "styles"].set_index("name")["UA"]
alike = pd.DataFrame({"of objects asked for without a style (%)": [100 * default.get(style, 0) / len(plain) for style in own.index], "left when forgotten (%)": 100 * (1 - own.to_numpy())}, index=own.index)
alike.round(1)
""")
b.md(r"""
Five reasons can be told apart, and the columns of the table help to do so.

- **No style is a style, too.** An object asked for without a style is drawn in some style all the same, and unevenly so: see the first column above. A prompt whose style word means little any more may be drawn like one without. Then the forgotten style comes back by default, and its UA falls short, though its name is gone.
- **It was not there before.** The untouched pipeline does not draw every cell rightly. What it cannot do it cannot lose: compare with the columns "before".
- **Neighbours share a road.** Two styles, or two objects, that the text tower holds to be alike move together. Then IRA falls, and the list above names the neighbour (some of these pairs the untouched pipeline confuses as well).
- **An object lives in seven drawings.** The forget set of an object shows it in all styles that training showed, so the gradient is a mean over pictures that have little in common but the word. Such a mean may need a longer step.
- **Few pictures.** The pictures that an object's UA rests on are counted above; one hit more or less moves it by a large step.

## How far from the world?

Accuracies ask for names. They do not see whether the pictures have become worse. The **Fréchet distance** compares two sets of pictures as a whole: take features of both, fit a normal distribution to each, and measure how far the two are apart.

$$d^2 = \lVert \mu_1 - \mu_2\rVert^2 + \operatorname{tr}\bigl(\Sigma_1 + \Sigma_2 - 2(\Sigma_1\Sigma_2)^{1/2}\bigr)$$

With the features of an Inception network this is the FID {cite}`heusel2017fid`. That network's weights are not at hand offline, and it was trained on photographs; here the features are those of the judge's last layer. So **this number can be compared with the other in its row, and with nothing else.** With hardly more pictures than features, even two sets of one kind lie far apart; the difference between the two columns is what means something.
""")
b.code(r"""
distance = grid.groupby("domain", sort=False)[["frechet_before", "frechet"]].mean()
distance.columns = ["untouched", "with the edit on"]
print("Fréchet distance between what is drawn of everything else and the world's own drawings, in the judge's features")
distance.round(2)
""")
b.md(r"""
## What it costs
""")
b.code(r"""
cost = grid.groupby("domain", sort=False)[["seconds", "kilobytes"]].mean()
cost["evaluations"] = grid.groupby("domain", sort=False)["evaluations"].mean()
cost.columns = ["seconds, search included", "edit on disk (kB)", "tries (CLIP's and drawn)"]
cost.round(1)
""")
b.md(r"""
Tries are CLIP's and the pipeline's together; one of the pipeline's draws a dozen pictures. On disk an edit is one layer in half precision. Time and memory of the whole are in the {doc}`benchmarks <A3_benchmarks>`.

## The paper's own numbers, as context

On Stable Diffusion 1.5 fine-tuned on UnlearnCanvas, with fifty styles and twenty objects, the paper reports {cite}`cai2025slug`:
""")
b.code(r"""
reported = pd.DataFrame(
    [("ESD", 98.58, 80.97, 93.96, 92.15, 55.78, 44.23, 65.55, 6163, 17.8, 4.3), ("UCE", 98.40, 60.22, 47.71, 94.31, 39.35, 34.67, 182.01, 434, 5.1, 1.7),
     ("CA", 60.82, 96.01, 92.70, 46.67, 90.11, 81.97, 54.21, 734, 10.1, 4.2), ("SalUn", 86.26, 90.39, 95.08, 86.91, 96.35, 99.59, 61.05, 667, 30.8, 4.0),
     ("SPM", 60.94, 92.39, 84.33, 71.25, 90.79, 81.65, 59.79, 29700, 6.9, 0.0), ("SLUG", 86.29, 84.59, 88.43, 75.43, 77.50, 81.18, 75.97, 39, 3.61, 0.04)],
    columns=["method", "style UA", "style IRA", "style CRA", "object UA", "object IRA", "object CRA", "FID", "seconds", "memory (GB)", "storage (GB)"],
).set_index("method")
reported
""")
b.md(r"""
ESD (Erased Stable Diffusion), CA (Concept Ablation) and SalUn (saliency unlearning) train weights of the UNet, UCE (Unified Concept Editing) solves for those of its cross-attention, SPM (Semi-Permeable Membranes) adds small adapters.

These are context, not rivals of our table: another model, another world, another judge. The 39 seconds leave the search out; ours include it. The pattern is worth a look all the same: methods that forget well tend to pay elsewhere, and objects are harder than styles for most of them.
The official code decides on three pictures of the concept and three of others ({doc}`interlude <07b_reading_the_official_code>`); with three pictures an accuracy is a coarse thing. One more difference: the scripts of UnlearnCanvas score each object over all styles, whereas here the pictures asked for with the forgotten concept count for UA alone.
""")
b.code(r"""
# NBVAL_CHECK_OUTPUT
print("concepts in the table:", len(grid), "of which styles:", int((grid["domain"] == "styles").sum()))
print("every style of the world is there:", set(world.STYLES) <= set(grid["name"]))
print("the edit of the live style forgets it in most pictures:", live["UA"] >= 0.6)
""")
b.md(r"""
## Your turn

```{exercise}
:label: ex-grid-nothing
*Difficulty 1 of 5, five minutes.* Compute UA, IRA and CRA of two useless methods: one that does nothing, and one that makes the pipeline draw a grey square for every prompt.
```

````{solution} ex-grid-nothing
:class: dropdown
```python
counted = [cells[k] for k in seen]
print("does nothing:", slug.canvas(counted, judge(before).iloc[seen], STYLE))
grey = np.full_like(before.images, 128)
print("grey squares:", slug.canvas(counted, judge(grey).iloc[seen], STYLE))
```
Doing nothing keeps IRA and CRA, grey squares win UA. Only the three together say something.
````

```{exercise}
:label: ex-grid-instead
*Difficulty 2 of 5, ten minutes.* In which style does the pipeline draw when the forgotten one is asked for? Is it always the same?
```

````{solution} ex-grid-instead
:class: dropdown
```python
column = [k for k in seen if cells[k][1] == STYLE]
with edit.on(pipe):
    more = [judge(draw([cells[k] for k in column], seed=s)) for s in range(4)]
print(pd.concat(more)["style"].value_counts())
print(pd.concat(more)["name"].value_counts())
```
The second count is the question that the protocol leaves out: is the object still there?
````

```{exercise}
:label: ex-grid-cra
*Difficulty 3 of 5, no code.* For an object that is forgotten, CRA is computed on the pictures of *other* objects. Suppose it were computed on the pictures that were asked for with the forgotten object. What would it measure then, and would you want it high?
```

````{solution} ex-grid-cra
:class: dropdown
It would ask whether "a fox in Sticker style" still comes in Sticker style when the fox is gone: whether the rest of the prompt is still obeyed. That is worth knowing, and worth being high, but it is another promise than leaving other prompts alone.
````

## Summary

- UA, IRA and CRA belong together, and the untouched pipeline's numbers belong beside them.
- Styles and objects of the mini world can be forgotten by one layer of the text tower; the table says how well, and the list below it where not.
- The Fréchet distance here is in the judge's features and is no FID.

## Further reading

{cite:t}`zhang2024unlearncanvas` made the data set, the protocol and the table of methods. {cite:t}`heusel2017fid` proposed the Fréchet distance for generated pictures.
""")
b.write("11_styles_and_objects.ipynb")
