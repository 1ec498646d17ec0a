"""Writes notebooks/07_many_names.ipynb, once tools/measure_several.py has written its results."""
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

ROOT = Path(__file__).parents[1]
cells = []


def md(text):
    cells.append(new_markdown_cell(text.strip("\n")))


def code(text, alt=None, tags=None):
    cell = new_code_cell(text.strip("\n"))
    if alt:
        cell.metadata["mystnb"] = {"image": {"alt": alt}}
    if tags:
        cell.metadata["tags"] = tags
    cells.append(cell)


md(r"""
# Many names

One person asks to be forgotten, then another, then a list of ten arrives. Each of them could be forgotten alone. Can they be forgotten *together*?

An edit is an addition to weights, and additions can be added. That is the whole recipe, and it raises the questions of this chapter: does it matter
who comes first, do the edits get in each other's way, and can one see that before it happens?

**What you will learn**
- how SLUG forgets several concepts: one gradient each, all at the same untouched weights, one step each, one sum;
- why the order of the edits does not matter, and what still can go wrong;
- how the inner products of the gradients foretell who is hurt by whose edit, and what they cannot foretell;
- how loss, size and time grow from one person to ten, and how to keep books so that one request can be withdrawn.

**Time**: twenty minutes to read; the cells take about half a minute on two processor cores. What takes longer was measured by `tools/measure_several.py` of the repository, and its results ship with the package.
""")
code((ROOT / "notebooks/setup_cell.py").read_text(), tags=["hide-input"])
code(r"""
from itertools import permutations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

import slug_lite as slug
from slug_lite import metrics, plots
from slug_lite.results import load_results
from slug_lite.search import make_delta

plots.use_style()
world = slug.toonworld
clip = slug.load_clip("mini")
rows, about = load_results("several")
people, (TEXT, VISION) = about["people"], about["layers"]
print(f"{about['script']}, seed {about['seed']}, {about['date']}, torch {about['versions']['torch']}")
print("people drawn for this chapter:", ", ".join(people))
""")
md(r"""
## An edit is a summand

Write $\theta^0$ for the untouched weights. Concept $k$ has a forget loss $L^k$, one minus the mean cosine between its pictures and its captions, and a gradient
$g_k = \nabla L^k(\theta^0)$. SLUG picks a layer $l_k$ and a step $\lambda_k > 0$ for it. For $K$ concepts the new weights are

$$\theta = \theta^0 + \sum_{k=1}^{K} \lambda_k\, P_{l_k}\, g_k ,$$

where $P_l$ keeps the entries of layer $l$ and sets all others to zero. This is the paper's way with several concepts {cite}`cai2025slug`: every gradient is taken
at $\theta^0$, never at weights that an earlier edit has changed. Two things follow.

- Gradients need no order. They can be taken on different days, or on different machines.
- A sum has no order either. Whoever asks first is treated as whoever asks last.

The second point is exact on paper. In a computer, $(a + b) + c$ and $a + (b + c)$ may differ in the last digit. Let us see how much. We need three edits in *one* layer, where
sums really happen. So here, other than SLUG would, we choose the layer ourselves and search for the step alone. First the gradients, for the people above, a character, an object and a style. `one_shot_gradients` takes a list of forget sets.
(The retain set may be small here: forget gradients do not depend on it.)
""")
code(r"""
cast = [*people, "Zorbo", "cat", "Clay"]
sets = [world.pairs(name, n=48, seed=0) for name in cast]
retain = world.retain(exclude=cast, n=16, seed=0)
gradients = dict(zip(cast, slug.one_shot_gradients(clip, sets, retain), strict=True))


def edit_in(layer, name):
    "The shortest step in a given layer after which `name` is forgotten, as an edit."
    gradient = gradients[name].forget[layer]
    score = slug.Validation.of_world(name, seed=0).prepare(clip).of_layer(layer)
    step = slug.search_step(clip, layer, gradient, score).step
    return slug.Edit({layer: make_delta(gradient, step)}, {layer: step}, name, slug.fingerprint(clip))


three = [edit_in(TEXT, name) for name in people[:3]]
for edit in three:
    relative = (edit.delta.float().norm() / clip.weights()[TEXT].norm()).item()
    print(f"{edit.concept:<16s} step {edit.step:5.2f}, {relative:.0%} of the length of {TEXT}")
""")
code(r"""
# NBVAL_CHECK_OUTPUT
sums = [slug.merge(order).delta.float() for order in permutations(three)]
largest = sums[0].abs().max()
apart = max((one - sums[0]).abs().max() for one in sums)
print(f"orders tried: {len(sums)}")
print(f"entries differ by at most two roundings in half precision: {bool(apart <= 2 * 2**-11 * largest)}")
""")
md(r"""
`slug.merge` is short. It keeps one delta for each layer and adds where layers are shared:
""")
code(r"""
plots.show_source(slug.merge)
""")
md(r"""
Instead of merging, edits may be put on one inside the other. Each `with edit.on(clip)` block remembers its own delta, and the library keeps the untouched values aside. So the edits
can come off in any order, not only the last one first, and what remains is *bit for bit* what would be there if the removed one had never come.
""")
code(r"""
# NBVAL_CHECK_OUTPUT
weight = clip.weights()[TEXT]
untouched = weight.detach().clone()
with three[0].on(clip), three[2].on(clip):
    without_the_second = weight.detach().clone()

blocks = [edit.on(clip) for edit in three]
for block in blocks:
    block.__enter__()
blocks[1].__exit__(None, None, None)  # the second came in the middle and leaves first
print("as if the second had never been on:", torch.equal(weight, without_the_second))
blocks[0].__exit__(None, None, None)
blocks[2].__exit__(None, None, None)
print("all off, the untouched weights again:", torch.equal(weight, untouched))
""")
md(r"""
## Who will collide with whom?

Order is no problem. *Company* may be one: a step for one person can move another. How much, to first order? Take $A$'s forget loss and put on $B$'s edit, in layer $l$.
With the expansion of Taylor at $\theta^0$,

$$L^A(\theta^0 + \lambda_B P_l g_B) - L^A(\theta^0) = \lambda_B \underbrace{\langle g_{A,l},\, g_{B,l} \rangle}_{G^l_{AB}} + O(\lambda_B^2).$$

$G^l$ is the **Gram matrix** of the concepts' forget gradients in layer $l$. It is symmetric, there is one for each layer, and it costs nothing: the gradients are there anyway. Read it like this.

- $G^l_{AB} > 0$: $B$'s step raises $A$'s forget loss as well. $A$ is forgotten a little, asked or not.
- $G^l_{AB} < 0$: $B$'s step lowers it. If $A$ was to be forgotten too, $B$ brings $A$ back a little.
- $G^l_{AB} \approx 0$: neither feels the other.

Note what does *not* appear: the layer of $A$'s own edit. To first order only the layer in which $B$ steps counts. Dividing by both lengths gives the cosine, which can be compared across layers:
""")
code(r"""
def gram(layer, names):
    "Inner products of the forget gradients in one layer, (names, names)."
    flat = torch.stack([gradients[name].forget[layer].flatten() for name in names])
    return flat @ flat.T


def cosines(matrix):
    length = matrix.diagonal().sqrt()
    return (matrix / length[:, None] / length).numpy()


shown = {layer: cosines(gram(layer, cast)) for layer in (TEXT, VISION)}
for matrix in shown.values():
    np.fill_diagonal(matrix, np.nan)  # everything has cosine 1 with itself
top = max(np.nanmax(np.abs(matrix)) for matrix in shown.values())
figure, axes = plt.subplots(2, 1, figsize=(5.2, 7.4), layout="constrained", sharex=True)
for axis, (layer, matrix) in zip(axes, shown.items(), strict=True):
    plots.heatmap(matrix, cast, cast, title=layer, label="cosine of forget gradients", limits=(-top, top), ax=axis)
plt.show()
""", alt="Two heat maps of cosines between the forget gradients of six people, a character, an object and a style, one for a layer of the text tower and one for a layer of the vision tower. The diagonal is left blank; most squares are near zero, a few pairs of people stand out.")
code(r"""
for layer in (TEXT, VISION):
    matrix = cosines(gram(layer, people))
    pairs = {(a, b): matrix[i, j] for i, a in enumerate(people) for j, b in enumerate(people) if i < j}
    nearest, farthest = max(pairs, key=pairs.get), min(pairs, key=pairs.get)
    strangers = shown[layer][: len(people), len(people) :]
    print(layer)
    print(f"  closest people   {nearest[0]} and {nearest[1]}: {pairs[nearest]:+.2f}")
    print(f"  most opposed     {farthest[0]} and {farthest[1]}: {pairs[farthest]:+.2f}")
    print(f"  people and the other kinds: {np.min(strangers):+.2f} to {np.max(strangers):+.2f}")
""")
md(r"""
Who are the close pairs? Look at them: the vision tower's gradients know who looks like whom, the text tower's know whose *names* share tokens or places in the model's map.
The two maps need not agree, and a pair that collides in one layer can be strangers in another.
""")
code(r"""
pd.DataFrame({"looks": [world.looks(name) for name in people]}, index=people)
""")
md(r"""
## Does the forecast come true?

The formula is a first-order statement, and a SLUG step is not small. So it needs a test. `tools/measure_several.py` took these people and these two layers. For each person $B$ and layer it looked for the shortest step that forgets $B$,
put it on, and measured on fresh test pictures of each other person $A$ how far the cosine with $A$'s own name *dropped*. On the horizontal axis stands the forecast, $\lambda_B G^l_{AB}$, from training pictures and
untouched weights. No fit is involved: if the first order were everything, all points would lie on the line.
""")
code(r"""
touch = rows[rows.part == "touch"]
table = pd.DataFrame(
    [
        {"layer": row.layer, "by": row.by, "on": name, "cosine": row.cosine[k], "forecast": row.predicted[k],
         "drop": row["drop"][k], "margin": row.margin[k], "accuracy": row.accuracy[k]}
        for row in (r for _, r in touch.iterrows()) for k, name in enumerate(people) if name != row.by
    ]
)  # fmt: skip
figure, axis = plt.subplots(figsize=(5.2, 3.9), layout="constrained")
for layer, marker, color in zip((TEXT, VISION), "o^", plots.COLORS, strict=False):
    some = table[table.layer == layer]
    axis.scatter(some.forecast, some["drop"], s=18, marker=marker, color=color, alpha=0.7, label=layer)
ends = np.array([table.forecast.min(), table.forecast.max()])
axis.plot(ends, ends, color="black", lw=1, label="forecast = measured")
axis.set(xlabel="forecast: step times inner product", ylabel="measured drop of the cosine")
axis.legend(loc="upper left", fontsize=9)
plt.show()
""", alt="Scatter plot. Horizontal: the forecast drop of a person's cosine with the own name under another person's edit. Vertical: the measured drop. Points of two layers rise along the diagonal; those of the vision layer lie near it, those of the text layer scatter more.")
code(r"""
def ranks(a, b):
    "Spearman's rank correlation."
    return a.rank().corr(b.rank())


summary = table.groupby("layer", sort=False).apply(
    lambda t: pd.Series(
        {
            "rank correlation, forecast and drop": ranks(t.forecast, t["drop"]),
            "rank correlation, cosine and drop": ranks(t.cosine, t["drop"]),
            "mean error of the forecast": (t.forecast - t["drop"]).abs().mean(),
            "bystanders below 100 %": (t.accuracy < 1).sum(),
            "of": len(t),
        }
    ),
    include_groups=False,
)
summary.T.round(2)
""")
md(r"""
In the layer of the vision tower, the forecast is close to what happens. That layer is the last one: a change of it acts on the embedding directly, and only the normalisation to unit length bends the result. In the text tower's layer several layers follow, the step is longer, and the forecast keeps only the rough order.
A cheap warning, then: good at the end of a tower, weaker further in front.

It is a forecast for the *score*. Whether a bystander's *accuracy* falls is another question: somebody else's name must then fit better. In this world people are told apart by a wide margin, and most bystanders can be pushed some way before a picture changes its name. A model that knows
thousands of people has narrower margins, and the same push would cost more.

The three edits made above let us check the file. Here is the drop that the second person's edit causes, now and as recorded:
""")
code(r"""
@torch.no_grad()
def own_cosines(names):
    "Mean cosine between each person's test pictures and the own name, (names,)."
    classifier = slug.zero_shot_classifier(clip, world.PEOPLE, world.templates("people", "test"))
    pixels = [clip.pixels(world.pairs(name, 24, about["seed"] + 1000, "test")) for name in names]
    own = [classifier[world.PEOPLE.index(name)] for name in names]
    return torch.stack([(clip.image_features(p) @ o).mean() for p, o in zip(pixels, own, strict=True)])


before = own_cosines(people)
with three[1].on(clip):
    now = (before - own_cosines(people)).tolist()
recorded = touch[(touch.by == three[1].concept) & (touch.layer == TEXT)].iloc[0]["drop"]
print(f"edit of {three[1].concept} in {TEXT}")
for name, here, file in zip(people, now, recorded, strict=True):
    print(f"  drop of {name:<16s} {here:+.3f} now, {file:+.3f} in the file")
assert max(abs(a - b) for a, b in zip(now, recorded, strict=True)) < 0.03, "the file and this machine disagree"
""")
md(r"""
## Two edits at once

Now both are to go. $A$ has an edit in some layer, $B$ has one in the same layer or in another, and both are on. Is $A$ still forgotten? The measure is $A$'s **margin**: the best other name's score minus $A$'s own, in logits.
Positive means forgotten. Compared is the margin with $B$'s edit and without it.
""")
code(r"""
pair_rows = rows[rows.part == "pair"]
duets = pd.DataFrame(
    [
        {"own layer": row.layer, "other's layer": row.other_layer, "a": row["name"], "b": other,
         "change": row.margin[k] - row.margin[people.index(row["name"])], "called": row.called[k],
         "own": row.own[k] - row.own[people.index(row["name"])],
         "left": row.left[k], "left alone": row.left[people.index(row["name"])]}
        for row in (r for _, r in pair_rows.iterrows()) for k, other in enumerate(people) if other != row["name"]
    ]
)  # fmt: skip
short = {TEXT: "text", VISION: "vision"}
by = duets.assign(**{c: duets[c].map(short) for c in ("own layer", "other's layer")}).groupby(["own layer", "other's layer"])
pd.DataFrame(
    {
        "mean change of margin": by.change.mean().round(1),
        "worst": by.change.min().round(1),
        "margin shrinks in (%)": (100 * by.change.apply(lambda c: (c < 0).mean())).round(0),
        "pairs with anyone known again": by.apply(lambda t: int((t.left > t["left alone"]).sum()), include_groups=False),
        "pairs": by.size(),
    }
)
""")
md(r"""
The four lines are the four ways to place two edits. In each of them the margin grows more often than it shrinks: steps that forget people mostly help each other. In some pairs it shrinks all the same, and a few pictures are known again.
Note that different layers are no protection. The formula said so: what counts is the layer in which $B$ steps.

Why does it shrink? The Gram matrix speaks of $A$'s own score, and the margin has two ends:

$$\text{margin}_A = \max_{C \neq A} s_C - s_A .$$

When $A$ is forgotten, $A$'s pictures get somebody else's name, a *stand-in*. If a stand-in is on the list as well, that name is pushed away too, the first term falls, and $A$'s pictures must go to the next in line. Let us look at the pairs in which the margin shrank. Had $A$'s own score come back, or had the others' scores gone down? And was $B$ a stand-in?
""")
code(r"""
shrunk = duets[duets.change < 0]
print(f"margin shrank in {len(shrunk)} of {len(duets)} pairs; own cosine came back in {(shrunk.own > 0).sum()} of these, fell in {(shrunk.own <= 0).sum()}")
for label, some in (("B had stood in for A", duets[duets.called > 0]), ("B had not", duets[duets.called == 0])):
    print(
        f"{label:<21s} {len(some):3d} pairs: margin changes by {some.change.mean():+.1f} logits on average, "
        f"shrinks in {(some.change < 0).mean():.0%}"
    )
""")
md(r"""
Where the own cosine *fell* and the margin shrank nevertheless, the other end moved: that is a collision which no inner product of forget gradients shows. Stand-ins are a part of it, and not all of it, since a step against $B$ moves other names as well.
So the Gram matrix is a warning before the search, and no replacement for a measurement after it.
""")
md(r"""
## How `unlearn` deals with it

With a list of names, `slug.unlearn` takes all gradients at $\theta^0$ and then searches person by person, *with the edits found so far switched on*. So a step is judged in the company in which it will have to work. When all have an edit, it goes round again: whoever is known again in the final company,
or has lost more than half of the clearance, is searched anew. After at most three rounds it adds up. The pictures of others on the list do not count as retained, and are in no retain set: nobody is protected whom we want to forget.
""")
code(r"""
plots.show_source(slug.unlearn)
""")
md(r"""
Two people, live:
""")
code(r"""
two = people[:2]
pair = slug.unlearn(clip, two, progress=False)
with pair.on(clip):
    left = {name: metrics.recognised(clip, name, n=about["pictures"], seed=about["seed"] + 1000).float().mean().item() for name in two}

found = rows[rows.part == "set"].copy()
found["count"] = found.names.map(len)
recorded = found[(found.names.map(tuple) == tuple(two)) & (found.way == "together")].iloc[0]
for name, file in zip(two, recorded.left, strict=True):
    print(f"{name}: {left[name]:.1%} of {about['pictures']} fresh pictures recognised now, {file:.1%} in the file")
    assert abs(left[name] - file) <= 3 / about["pictures"], "the file and this machine disagree"
for layer in pair.layers:
    print(f"layer {layer}, step {pair.steps[layer]:.3g}")
""")
md(r"""
## From one to ten

The same list, cut after one, two, three, five and ten names. *Left* is the share of fresh test pictures of the forgotten people that are recognised still; *lost* are the points of accuracy that all others of a kind lost; *size* is the length of the whole change over the length
of all weights.
""")
code(r"""
alone = rows[rows.part == "single"].set_index("name")


def line(row):
    left = np.atleast_1d(row.left)
    out = {"people": len(left), "left, mean (%)": 100 * left.mean(), "left, worst (%)": 100 * left.max()}
    out |= {f"{kind} lost": row[f"lost_{kind}"] for kind in world.NAMES}
    return out | {"layers": len(row.layers), "size (%)": 100 * row.whole, "processor s": row.cpu, "file (kB)": row.bytes / 1000}


together = found[(found.what == "people") & (found.way == "together")].sort_values("count")
first = together[together.draw == 0]
growth = pd.DataFrame([line(alone.loc[people[0]]), *(line(row) for _, row in first.iterrows())]).set_index("people")
growth.round(2).T
""")
md("GROWTH-TEXT")
md(r"""
One list may be lucky. Here are all draws of five and of ten people, and next to them two other ways to come by an edit for the list:

- **merged**: each person's edit found alone, on the untouched model, as if there were no others; then `slug.merge`. No search in company.
- **in turn**: requests come one by one. Each is found on the model that the earlier edits have changed, *with its gradient taken there too*. The paper does not do this; practice might.
""")
code(r"""
lists = found[(found.what == "people") & (found["count"] >= 5)].copy()
lists["mean left (%)"] = [100 * np.mean(values) for values in lists.left]
lists["worst left (%)"] = [100 * np.max(values) for values in lists.left]
lists["worst kind lost"] = lists[[f"lost_{kind}" for kind in world.NAMES]].max(axis=1)
lists["layers"] = lists.layers.map(len)
lists["draw"] = lists.draw.astype(int) + 1
columns = ["mean left (%)", "worst left (%)", "worst kind lost", "layers"]
lists.sort_values(["count", "draw"], kind="stable").set_index(["count", "draw", "way"])[columns].round(1)
""")
code(r"""
TOLERATED = 3  # points
for count in (5, 10):
    for way in ("together", "merged", "in turn"):
        some = lists[(lists["count"] == count) & (lists.way == way)]
        if len(some):
            clean = sum(np.max(values) == 0 for values in some.left)
            known = sum(np.sum(np.array(values) > 0) for values in some.left)
            print(
                f"{count:2d} people, {way:<8s}: {len(some)} lists, {clean} of them without a single picture recognised; "
                f"{known} of {count * len(some)} people left a trace, the worst {some['worst left (%)'].max():.0f} %; "
                f"others lost at most {some['worst kind lost'].max():.1f} points a kind"
            )
five = lists[(lists["count"] == 5) & (lists.way == "together")]
worst = five["worst left (%)"].max()
print(f"five together: worst person {worst:.1f} % recognised, others within {TOLERATED} points: {bool((five['worst kind lost'] <= TOLERATED).all())}")
""")
md("WAYS-TEXT")
md(r"""
## A mixed list

Requests need not be of a kind. Two draws of one person, one character, one object and one style:
""")
code(r"""
mixed = found[found.what == "mixed"]
pd.DataFrame(
    [
        {"draw": int(row.draw) + 1, "way": row.way, "name": name, "kind": world.kind_of(name), "left (%)": 100 * row.left[k]}
        | {f"{kind} lost": row[f"lost_{kind}"] for kind in world.NAMES}
        for _, row in mixed.iterrows()
        for k, name in enumerate(row["names"])
    ]
).set_index(["draw", "way", "name"]).round(1)
""")
md("MIXED-TEXT")
md(r"""
## Keeping the books

Somebody withdraws a request, or a court does. With one merged file nobody can tell the parts apart: a sum does not remember its summands. So keep every single edit, and merge only what is to be in force today. A **request log** needs little more than a date, a file and a state.

Our three edits from the beginning serve as an example; the second request is withdrawn.
""")
code(r"""
from pathlib import Path
from tempfile import TemporaryDirectory

log = pd.DataFrame({"request": ["r-01", "r-02", "r-03"], "in force": True}).set_index("request")


def today(folder):
    "One edit of everything that is in force."
    return slug.merge([slug.Edit.load(Path(folder) / f"{request}.safetensors") for request in log.index[log["in force"]]])


def left_of(edit):
    with edit.on(clip):
        return [metrics.recognised(clip, e.concept, n=24, seed=1000).float().mean().item() for e in three]


with TemporaryDirectory() as folder:
    for request, edit in zip(log.index, three, strict=True):
        edit.save(Path(folder) / f"{request}.safetensors")
    everyone = today(folder)
    log.loc["r-02", "in force"] = False
    without = today(folder)
    everyone.save(Path(folder) / "everyone.safetensors")
    sizes = {file.stem: file.stat().st_size / 1000 for file in sorted(Path(folder).glob("*.safetensors"))}

states = pd.DataFrame({"all three on": left_of(everyone), "second withdrawn": left_of(without)}, index=[e.concept for e in three])
print("share of pictures recognised:")
print((100 * states).round(0).astype(int).astype(str).add(" %").to_string())
print("files:", ", ".join(f"{name} {size:.0f} kB" for name, size in sizes.items()))
""")
md(r"""
Three notes for practice.

- **Withdrawing is not quite free.** Edits found together were tuned in company. Take one away, and the others stand in company that nobody searched in. Measure again after every change of the list; it takes seconds.
- **Sharing a layer saves space, not information.** Three edits of one layer merge into a file as large as one of them. Edits of different layers add up in size. Rank reduction, `edit.low_rank`, makes either smaller.
- **The log is a list of people who wanted to be forgotten.** So is the edit's own field `concept`, and a delta points at the person by what it does. Use request numbers instead of names, as above, and treat log and edits as what they are: personal data. (`Edit.concept` is free text; give it a number, too.)

Found together or kept apart, then? Kept apart, every request has its own file, but nobody looked at the company. Searched together, the company was looked at, but only the sum is returned. The cure is to do it in turn with all gradients at $\theta^0$, and to save each edit: an exercise.
""")
md(r"""
## Your turn

```{exercise}
:label: ex-many-order
*Difficulty 1 of 5, three minutes.* Take two names of your choice from `cast`, make their edits in the vision layer, and put them on in both orders, one `with` inside the other. Compare the weights inside. Are they equal bit for bit? Should they be?
```

````{solution} ex-many-order
:class: dropdown
```python
a, b = edit_in(VISION, people[3]), edit_in(VISION, people[4])
weight = clip.weights()[VISION]
with a.on(clip), b.on(clip):
    one = weight.detach().clone()
with b.on(clip), a.on(clip):
    two_ = weight.detach().clone()
print(torch.equal(one, two_), (one - two_).abs().max().item())
```
Not in general. The library adds the deltas one after the other, so $(\theta + a) + b$ and $(\theta + b) + a$ are rounded differently. The difference is of the size of one rounding of single precision. What *is* exact is taking them off.
````

```{exercise}
:label: ex-many-forecast
*Difficulty 2 of 5, five minutes.* From the Gram matrix of `people` in the vision layer choose the pair with the largest and the pair with the smallest cosine. Forecast the drop, then measure it with `own_cosines`. Does the order come out right, and how far off is the number?
```

````{solution} ex-many-forecast
:class: dropdown
```python
matrix = gram(VISION, people)
cos = cosines(matrix)
np.fill_diagonal(cos, 0)
for pick in (cos.argmax(), cos.argmin()):
    i, j = divmod(int(pick), len(people))
    edit = edit_in(VISION, people[j])
    with edit.on(clip):
        drop = (before[i] - own_cosines([people[i]])[0]).item()
    print(people[i], "under the edit of", people[j], f"forecast {edit.step * matrix[i, j].item():+.3f}, measured {drop:+.3f}")
```
The last layer of the vision tower is linear in the embedding before normalisation, so there is little for a second order to do, and forecast and measurement agree well. Try `TEXT`: four layers lie behind that one.
````

```{exercise}
:label: ex-many-arrives
*Difficulty 3 of 5, eight minutes.* A second request arrives when the first edit, `three[0]`, is already in force. Find an edit for `people[1]` with `slug.unlearn` while `three[0]` is on. Which pictures must not be counted as retained, and what would go wrong if they were? Hint: `retain=` and `validate=`.
```

````{solution} ex-many-arrives
:class: dropdown
```python
gone, name = people[0], people[1]
retain = world.retain(exclude=[gone, name], n=512, seed=0)
validate = slug.Validation.of_world(name, seed=0, without=[gone])
with three[0].on(clip):
    second = slug.unlearn(clip, name, retain, validate=validate, progress=False)
with slug.merge([three[0], second]).on(clip):
    print([metrics.recognised(clip, n, seed=1000).float().mean().item() for n in (gone, name)])
```
If the first person's pictures stayed in the retain set, the retain gradient would ask the model to know that person again. If they stayed in the validation, a layer that brings the person back would score *better* on retained accuracy and be chosen for it. Note that the gradients are taken
at the edited weights here. For gradients at $\theta^0$, take them before the block and use `slug.search_step` inside it, as `edit_in` does.
````

```{exercise}
:label: ex-many-project
*Difficulty 4 of 5, twelve minutes.* A direction can be made blind to a bystander: take out of $g_B$ its part along $g_A$, that is $g_B - \frac{\langle g_A, g_B\rangle}{\langle g_A, g_A\rangle}\, g_A$. By the formula, $A$ then feels nothing to first order. Do it for the closest pair in the vision layer. What happens to $A$'s drop, and what does the step for $B$ cost now?
```

````{solution} ex-many-project
:class: dropdown
```python
cos = cosines(gram(VISION, people))
np.fill_diagonal(cos, 0)
i, j = divmod(int(cos.argmax()), len(people))
a, b = people[i], people[j]
g_a, g_b = gradients[a].forget[VISION], gradients[b].forget[VISION]
blind = g_b - (g_a * g_b).sum() / (g_a * g_a).sum() * g_a
score = slug.Validation.of_world(b, seed=0).prepare(clip).of_layer(VISION)
for label, direction in (("plain", g_b), ("blind", blind)):
    step = slug.search_step(clip, VISION, direction, score).step
    edit = slug.Edit({VISION: make_delta(direction, step)}, {VISION: step}, b, slug.fingerprint(clip))
    with edit.on(clip):
        drop = (before[i] - own_cosines([a])[0]).item()
        left = metrics.recognised(clip, b, seed=1000).float().mean().item()
    print(f"{label}: {a} drops by {drop:+.3f}; {b} {left:.0%} left, length {edit.delta.float().norm():.2f}")
```
This is the idea of gradient surgery {cite}`yu2020pcgrad`, applied once and to one step. What remains of the drop is the second order.
````

## Summary

- Several concepts: one gradient each at the untouched weights, one layer and step each, and the sum of all. Order does not matter beyond rounding; edits come off in any order bit for bit.
- The Gram matrix of the forget gradients says beforehand, layer by layer, whose score another person's step will move, and roughly how far. It does not say that a stand-in is on the list too.
- Searching in company, as `unlearn` does with a list, judges each step where it will have to work. Whether that beats adding edits found alone is a question for the tables above, not for theory.
- Loss and size grow with the list. Report every name's own number, not the mean: the request was made by one person, not by the average.
- Keep single edits and a log without names; merge what is in force; measure again after each change.

## Further reading

- Several concepts in SLUG: {cite:t}`cai2025slug`.
- Adding and subtracting changes of weights as a way to steer models: {cite:t}`ilharco2023task`. What happens where summed changes disagree in sign, and a remedy: {cite:t}`yadav2023ties`.
- Gradients of several tasks that point against each other: {cite:t}`yu2020pcgrad`.
- Unlearning requests as a stream, with a model built for it from the start: {cite:t}`bourtoule2021sisa`.
""")


def build():
    book = new_notebook(cells=cells)
    book.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for number, cell in enumerate(book.cells):
        cell["id"] = f"cell-{number:03d}"
    nbformat.write(book, ROOT / "notebooks" / "07_many_names.ipynb")


if __name__ == "__main__":
    build()
