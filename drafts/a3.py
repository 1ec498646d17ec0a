"""Writes notebooks/A3_benchmarks.ipynb, once `make bench` has written its results."""
import nbformat as nbf
from pathlib import Path
R=Path(__file__).parents[1]
SETUP=(R/"notebooks/setup_cell.py").read_text().strip()
cells=[]
def md(s): cells.append(nbf.v4.new_markdown_cell(s.strip("\n")))
def code(s, alt=None, tags=None):
    c=nbf.v4.new_code_cell(s.strip("\n"))
    if alt: c.metadata["mystnb"]={"image":{"alt":alt}}
    if tags: c.metadata["tags"]=tags
    cells.append(c)
md(r'''
# Benchmarks

A method that takes one gradient and changes one layer should be cheap. This appendix says how cheap, against the two procedures that a reader would otherwise write:
the bare forward and backward passes, below which nothing can get that runs the same tokens, and the plain procedure of the official code {cite}`cai2025slug`, with every gradient on disk and a fresh copy of the model at every step.

**What you will learn**
- what `one_shot_gradients` adds to the bare passes, in time and in memory;
- why a step search can skip most of what an evaluation does, and how much that saves in which layer;
- how time and memory grow with the retain set and with the model.

**Time**: ten minutes to read, ten seconds to run. The tables come from `make bench`, which takes about twenty-five minutes; its results file ships, and the last section repeats a small part of it here.
''')
code(SETUP, tags=["hide-input"])
code('''
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import slug_lite as slug
from slug_lite import plots
from slug_lite.results import load_results

plots.use_style()
world = slug.toonworld
bench, about = load_results("bench")
versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
print(f"{about['script']}, {about['date']}: {about['cores']} cores, {about['threads']} threads, {about['machine']}; {versions}")
''')
md(r'''
Seconds belong to a machine; **ratios** of two measurements on the same machine, on the same batches, travel better. So the tables put ours and the plain way side by side: times of gradients and searches in one process, in turns; memory and whole runs each in a process of its own, where memory is the peak above what it held after its imports. Besides mini CLIP there are ViT-B/32, ViT-L/14 and ViT-H/14 with *random weights*: neither time nor memory depends on the values.

## The gradients

Nothing that runs the same tokens can take both gradients faster than their forward and backward passes. What `one_shot_gradients` adds: pictures through the transform, inner products of the two gradients layer by layer, and, where the retain set is larger than a micro-batch,
one more forward pass, the price of an exact contrastive gradient (gradient caching, {cite:t}`gao2021gradcache`). A forward pass is about a third of the work, so four thirds is what to expect there.

What it leaves out: the padding of captions. CLIP's text tower is causal and its embedding is read off the end token, so nothing behind that token can matter, and it is not run (`short_texts`). The bare passes were timed twice, with the padding, as the models' own functions do it, and without.
''')
code('''
rows = bench[bench["case"] == "gradients_time"].copy()
rows["retain pairs"] = rows["retain"].astype(int)
rows["micro-batch"] = rows["batch"].astype(int)
rows["gradient caching"] = np.where(rows["retain"] > rows["batch"], "yes", "no")
shown = rows[["model", "retain pairs", "micro-batch", "gradient caching", "plain_s", "short_s", "ours_s", "ratio", "ratio_short"]]
shown = shown.rename(columns={"plain_s": "bare passes (s)", "short_s": "bare, no padding (s)", "ours_s": "one_shot_gradients (s)", "ratio_short": "ratio, no padding"})
shown.set_index("model").round(2)
''')
code('''
for label, some in (("the retain set is one micro-batch", rows[rows["retain"] <= rows["batch"]]), ("gradient caching", rows[rows["retain"] > rows["batch"]])):
    print(f"{label}:\\n  at most {some['ratio'].max():.2f} times the bare passes, {some['ratio_short'].max():.2f} times those without padding")
''')
md(r'''
**Memory.** The least that both gradients can take is the weights, the two gradients, and the activations of one micro-batch. The activations are read off a bare pass over one micro-batch, which holds weights, one gradient of *every* weight, and them.
''')
code('''
memory = bench[bench["case"] == "gradients_memory"].set_index("what")
for model in memory["model"].unique():
    bare, ours = (memory[memory["model"] == model].loc[what] for what in ("bare", "ours"))
    activations = bare.peak_mb - 2 * bare.weights_mb
    least = ours.weights_mb + 2 * ours.layers_mb + activations
    print(f"{model}: weights {ours.weights_mb:,.0f} MB, two gradients {2 * ours.layers_mb:,.0f} MB,")
    print(f"  activations of a micro-batch {activations:,.0f} MB: {least:,.0f} MB")
    print(f"  measured peak: {ours.peak_mb:,.0f} MB, {ours.peak_mb / least:.3f} times that")
''')
md(r'''
## The step search

The plain way copies the model, adds a multiple of the gradient to one weight, and evaluates the copy from scratch, ten times. But an edit of the text tower leaves every picture's embedding as it was, an edit of the vision tower every name's; within the edited tower
all blocks before the layer hand on what they did before; padding is not run; and whether the concept is forgotten can be asked of the concept's own pictures and the names of its kind alone. What everything else keeps is asked once, at the step that was found, and starts from where the layer before it in the tower has already been.

On mini CLIP our search was run to its end in every layer of Ada Sunfield's front. Of the plain way two tries were timed and ten reckoned, since all do the same work. To see whether fewer tries find as short a step, our search was run again with the same rule and all ten tries: the last column. Where it is empty, no step within ten tries forgot.
''')
code('''
def by_layer(model):
    row = bench[(bench["case"] == "search") & (bench["model"] == model)].iloc[0]
    return row, pd.DataFrame(row["layers"])


def short(layer):
    return layer.replace("transformer.resblocks.", "block ").replace("visual.", "vision ").replace(".weight", "")


row, layers = by_layer("mini")
print(f"{int(row.images)} pictures, {int(row.prompts)} prompts")
print(f"embedding them once, for all layers: {row.prepare_s:.2f} s")
table = layers.assign(layer=layers["layer"].map(short), longer=layers["step"] / layers["plain_step"])
table = table[["layer", "tower", "plain_s", "ours_s", "ratio", "tries", "longer"]].set_index("layer").round({"plain_s": 1, "ours_s": 2, "ratio": 1, "longer": 3})
table.columns = ["tower", "plain (s)", "ours (s)", "times faster", "tries", "step / step of ten tries"]
table
''')
code('''
for tower, some in layers.groupby("tower"):
    alone = some.plain_s / (some.ours_s + row.prepare_s)
    print(f"{tower}: at least {some.ratio.min():.1f} times faster, median {some.ratio.median():.1f} times;")
    print(f"  searching one layer alone, embeddings included: at least {alone.min():.1f} times")
known = layers.dropna(subset=["step", "plain_step"])
print(f"the step found is at most {known.step.max() and (known.step / known.plain_step).max():.3f} times that of ten tries (1: as short)")
''')
md(r'''
The larger the model, the less the fixed costs count and the more the depth of the layer. For ViT-B/32 with random weights, which know nobody, single tries were timed, and searches put together from them: the plain one of ten tries; ours of ten as well, and of as many as it took
on mini CLIP, the median over the layers above. The first of our tries runs the tower from its beginning, those after it from the layer. Both of ours end with one look at what everything else keeps, timed as a whole run for every layer: an upper bound. Embedding everything once, for all layers, is printed apart.
''')
code('''
tries = int(layers["tries"].median())
row = bench[bench["case"] == "tries"].iloc[0]
large = pd.DataFrame(row["layers"])
for count in (10, tries):
    large[count] = 10 * large["plain_s"] / (large["first_s"] + (count - 1) * large["try_s"] + large["rest_s"])
print(f"{int(row.images)} pictures; {int(row.prompts)} prompts, {int(row.own_prompts)} of them of the concept's kind")
print(f"embedding all once, for all layers: {row.prepare_s:.0f} s")
print(f"a plain try: {large.plain_s[0]:.0f} s")
table = large.assign(layer=large["layer"].map(short))[["layer", "tower", "first_s", "try_s", "rest_s", 10, tries]].set_index("layer").round(1)
table.columns = ["tower", "our first try (s)", "our next (s)", "the rest, once (s)", "times faster, ten tries", f"times faster, {tries} tries"]
table
''')
code('''
figure, axis = plt.subplots(figsize=(5.2, 3.0), layout="constrained")
for tower, color, marker in (("text", plots.COLORS[0], "o"), ("vision", plots.COLORS[1], "s")):
    some = large[large["tower"] == tower]
    axis.plot(["first", "middle", "last", "projection"], some[tries], color=color, marker=marker, label=f"{tower} tower, {tries} tries")
    axis.plot(["first", "middle", "last", "projection"], some[10], color=color, marker=marker, ls=":", label=f"{tower} tower, ten tries")
axis.set(yscale="log", ylim=(1, None), xlabel="block of the edited layer", ylabel="times faster than plain", title="Step search on ViT-B/32")
axis.legend()
plt.show()
''', alt="Line chart with a logarithmic vertical axis: how many times faster the step search is than the plain one, for edits in the first, middle and last block and in the output projection, one solid and one dotted line for each tower. The lines rise towards the output.")
code('''
for tower, some in large.groupby("tower"):
    print(f"{tower}: with {tries} tries at least {some[tries].min():.1f} times faster, with ten at least {some[10].min():.1f} times")
''')
md(r'''
Where the text tower is edited near its beginning, every prompt of the concept's kind has to run through nearly all of it at every try; but only up to its end token, which in this context length of 77 is a small part. With fewer names of that kind beside it the ratio grows; with more it falls. The vision tower pays for the concept's own pictures only.
''')
md(r'''
## End to end

`unlearn` against the plain procedure: gradients of every parameter to disk and back, a deep copy of the model and a full evaluation at every step of every layer of the front. On mini CLIP with the full sets, and two sizes of validation set: the one used above, and 2,500, as many ImageNet pictures as the official code looks at (it looks at celebrities besides). On ViT-L/14 with a few pictures and a single try, because there the question is memory alone; the text tower alone is searched, by the plain way in two layers at most.
`passes=8` takes the gradients of an eighth of the layers at a time, which saves memory and costs passes. Pictures are drawn before the clock starts.
''')
code('''
rows = bench[bench["case"] == "unlearn"].copy()
rows["way"] = np.where(rows["what"] == "plain", "plain", "unlearn(passes=" + rows["passes"].fillna(1).astype(int).astype(str) + ")")
rows["validation pictures"] = rows["images"].astype(int)
table = rows[["model", "validation pictures", "way", "seconds", "peak_mb", "weights_mb"]].set_index(["model", "validation pictures", "way"]).round(0).astype(int)
table.columns = ["seconds", "peak memory (MB)", "of which weights (MB)"]
table
''')
code('''
for pictures, some in rows[rows["model"] == "mini"].groupby("validation pictures"):
    some = some.set_index("what")["seconds"]
    print(f"mini, {pictures} validation pictures: {some['plain'] / some['ours']:.1f} times faster than plain")
large, taken = (rows[rows["model"] == "ViT-L-14"].set_index("way")[column] for column in ("peak_mb", "seconds"))
for way, peak in large.drop("plain").items():
    print(f"ViT-L/14, {way}: {peak / large['plain']:.2f} of the plain procedure's peak memory,")
    print(f"  {taken[way] / taken['plain']:.1f} times its time")
''')
md(r'''
What is left of `unlearn` is mostly what cannot be saved: the two gradients, and for every layer of the front one look at everything else, without which the best layer cannot be told. The plain procedure spends nearly all its time on evaluations. So the ratio grows with the validation set, up to a point: then both look at pictures, ours once a layer where the plain one does so at every try. The two do not search the same layers: the plain gradients, batch by batch, have a front of their own, and ours may go on to further fronts. With the larger validation set ours takes a little more memory, for the activations that it keeps.
''')
md(r'''
## A pipeline

For Stable Diffusion the layers and steps that CLIP proposes are tried on the pipeline's own pictures, and made longer where these still show the concept ({doc}`chapter 9 <09_unlearning_in_stable_diffusion>`). For mini Stable Diffusion this was timed as a whole, pictures included; memory is the peak above both models.
To put an edit on a text encoder and to take it off again was timed for mini CLIP's, and for text encoders of the shapes of Stable Diffusion 1 (ViT-L/14) and 2 (ViT-H/14); nothing else of a pipeline is touched. While it is on, the untouched values of the edited weight are kept, and whatever `on` has to restore.
''')
code(r'''
rows = bench[bench["case"] == "pipeline"]
whole = rows[rows["what"] == "whole"].iloc[0]
print(f"mini Stable Diffusion, the whole edit: {whole.seconds:.0f} s, {int(whole.looks)} of its tries with pictures drawn;")
print(f"  peak memory {whole.above_models_mb:,.0f} MB above the models; the edit's file {whole.kilobytes:,.0f} kB")
table = rows[rows["what"] == "on"].set_index("model")[["weights_mb", "on_s", "held_mb", "kilobytes"]]
table = table.assign(on_s=1000 * table["on_s"]).round({"weights_mb": 0, "on_s": 1, "held_mb": 1, "kilobytes": 0})
table.columns = ["text encoder (MB)", "on and off (ms)", "held while on (MB)", "edit's file (kB)"]
table
''')
md(r'''
## How it grows

More retain pairs cost time in proportion and hardly any memory: embeddings are kept, activations are not. The slope is that of a straight line through the logarithms: 1 means proportional, 0 means that it does not matter.
''')
code('''
grown = bench[bench["case"] == "growth"].copy()
figure, (left, right) = plt.subplots(1, 2, figsize=(5.2, 2.8), layout="constrained")
for (model, some), color, marker in zip(((m, grown[(grown["model"] == m) & (grown["batch"] == b)]) for m, b in (("mini", 128), ("ViT-B-32", 8))), plots.COLORS, "os", strict=False):
    times = some["retain"] / some["retain"].min()
    for axis, column in ((left, "seconds"), (right, "peak_mb")):
        axis.plot(times, some[column] / some[column].iloc[0], color=color, marker=marker, label=model)
        slope = np.polyfit(np.log(some["retain"]), np.log(some[column]), 1)[0]
        print(f"{model}: {column.replace('peak_mb', 'peak memory')} grows with slope {slope:.2f} in the number of retain pairs")
for axis, title in ((left, "time"), (right, "peak memory")):
    axis.set(xscale="log", yscale="log", xlabel="retain pairs (times)", title=title, xticks=[1, 2, 4, 8], yticks=[1, 2, 4, 8], ylim=(0.8, 10))
    axis.set_xticklabels([1, 2, 4, 8])
    axis.set_yticklabels([1, 2, 4, 8])
    axis.minorticks_off()
left.set_ylabel("times that of the smallest")
left.legend()
plt.show()
''', alt="Two charts over one, two, four and eight times the retain pairs, for mini CLIP and ViT-B/32. Left: time rises almost in proportion. Right: peak memory stays nearly flat.")
code('''
models = grown[grown["batch"] == 4].sort_values("weights_mb")
table = models[["model", "weights_mb", "seconds", "peak_mb"]].set_index("model").round(0).astype(int)
table["peak / weights"] = (models.set_index("model")["peak_mb"] / models.set_index("model")["weights_mb"]).round(2)
table.columns = ["weights (MB)", "seconds", "peak memory (MB)", "peak / weights"]
for column in ("seconds", "peak_mb"):
    slope = np.polyfit(np.log(models["weights_mb"]), np.log(models[column]), 1)[0]
    print(f"{column.replace('peak_mb', 'peak memory')} grows with slope {slope:.2f} in the size of the weights, eight retain pairs each")
failed = bench[bench["failed"].notna()]["model"].tolist() if "failed" in bench else []
print("did not fit into this machine's memory:", ", ".join(failed) or "none")
table
''')
md(r'''
## A small part of it, now

One layer of mini CLIP, a small validation set, ours and the plain way. A ratio from a run this short swings, so it must only be of the file's order: at least a quarter of the smallest that the file gives for the tower.
''')
code('''
import copy
import time

import torch.nn.functional as F

from slug_lite.search import search_step

clip = slug.load_clip("mini", device="cpu")
forget, retain = world.pairs("Ada Sunfield", n=24), world.retain(["Ada Sunfield"], n=64)
gradients = slug.one_shot_gradients(clip, forget, retain, progress=False)
validation = slug.Validation.of_world("Ada Sunfield", n=24, others=4)
layer = next(name for name in slug.pareto_front(gradients.stats) if clip.tower(name) == "text")


class Plain(slug.Clip):
    "The model's own function for texts, padding included."

    def text_features(self, tokens):
        return F.normalize(self.model.encode_text(tokens), dim=-1)


def plain_score():
    changed = Plain(copy.deepcopy(clip.model), clip.tokenizer, clip.preprocess)
    return validation(changed)


scorer = validation.prepare(clip)
start = time.perf_counter()
ours = search_step(clip, layer, gradients.forget[layer], scorer.of_layer(layer))
middle = time.perf_counter()
plain = search_step(clip, layer, gradients.forget[layer], plain_score, rule="paper", evaluations=3)
ratio = (time.perf_counter() - middle) / 3 * 10 / (middle - start)
_, layers = by_layer("mini")
smallest = layers[layers["tower"] == "text"]["ratio"].min()
print(f"a text layer: {ratio:.0f} times faster now; at least {smallest:.0f} times in the file")
assert ratio > smallest / 4, "the shipped table and this machine disagree"
''')
code('''
# NBVAL_CHECK_OUTPUT
same = [scorer.of_layer(name)() == scorer.score() for name in (layer, "visual.proj")]
print("scores from the middle of a tower equal full ones, bit for bit:", all(same))
print("fewer tries than ten:", len(ours.trace) < 10)
''')
md(r'''
```{exercise}
:label: ex-bench-own
*Difficulty 2 of 5, ten minutes and a minute or two of computing.* Run `make bench BENCH="search mini"` on your own machine. Which of the ratios differ most from the table's, and which fixed cost explains it?
```

````{solution} ex-bench-own
:class: dropdown
The seconds differ everywhere, the ratios of deep layers most: there almost nothing is left to compute, so that what is fixed (Python, small matrices, the copy of the model on the plain side) decides. In early vision blocks a try costs what the concept's own pictures cost, so that the ratio is nearly all pictures over the concept's own, more where
tries are saved, less for the look at the rest.
````

```{exercise}
:label: ex-bench-depth
*Difficulty 3 of 5, ten minutes.* Write down how the cost of a try depends on the block $k$ of $K$, for a validation set of $n_f$ pictures of the concept and $n_r$ others, and when it beats the plain try by a factor of ten. What does that say about early vision layers?
```

````{solution} ex-bench-depth
:class: dropdown
With $c$ for a picture's whole pass and $t$ for all prompts, the plain try costs about $(n_f + n_r)\,c + t$. Ours in vision block $k$ costs $n_f\,c\,(K-k)/K$, and at the chosen step once $n_r\,c\,(K-k)/K$, if what comes before the layer is kept already, else up to $n_r\,c$. Over ten tries the ratio is
$10\,((n_f+n_r)c+t)\,/\,\big((10\,n_f + n_r)\,c\,(K-k)/K\big)$. At $k=0$ with a tenth of the pictures from the concept that is a little above five, whatever the model, plus what the prompts cost the plain side ($t$), which is why the table shows more. Fewer tries do the rest.
````

## Summary

- The gradients cost little more than their bare passes; the exact contrastive gradient of a large retain set costs one more forward pass.
- A search asks only what a change can reach: the deeper the layer, the cheaper.
- On large models memory is mostly weights, gradients and a micro-batch's activations; where two gradients are too much, `passes` takes them in groups.

## Further reading

{cite:t}`gao2021gradcache` for gradient caching; {doc}`How far? <05_how_far>` for the search itself.
''')
nb=nbf.v4.new_notebook(cells=cells, metadata={"kernelspec":{"display_name":"Python 3","language":"python","name":"python3"},"language_info":{"name":"python"}})
for i,c in enumerate(nb.cells): c["id"]=f"cell-{i:03d}"
nbf.write(nb, R/"notebooks/A3_benchmarks.ipynb")
