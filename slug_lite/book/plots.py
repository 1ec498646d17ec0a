"""Pictures for the chapters: few, plain, legible on a phone, safe for colour-blind readers, opaque on dark pages."""

from __future__ import annotations

import inspect
import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from io import BytesIO
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from ..pairs import Pairs

# Okabe and Ito's colour-blind-safe palette, without yellow (too pale on white)
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
STYLE = {
    "figure.facecolor": "white", "savefig.facecolor": "white", "axes.facecolor": "white", "font.size": 10,
    "axes.titlesize": 11, "axes.labelsize": 10, "xtick.labelsize": 9, "ytick.labelsize": 9, "legend.fontsize": 9,
    "figure.dpi": 130, "savefig.dpi": 130, "axes.spines.top": False, "axes.spines.right": False,
    "axes.prop_cycle": plt.cycler(color=COLORS), "text.color": "black", "axes.labelcolor": "black",
    "xtick.color": "black", "ytick.color": "black", "svg.hashsalt": "slug_lite",
}  # fmt: skip


def use_style() -> None:
    """Make `STYLE` the default of every figure drawn from here on."""
    plt.rcParams.update(STYLE)


def gallery(
    pictures: Pairs | Sequence[np.ndarray], titles: Sequence[str] | None = None, *, columns: int = 6,
    colors: Sequence[str] | None = None, width: float = 5.2, row_names: Sequence[str] | None = None,
) -> Figure:  # fmt: skip
    """A grid of pictures, each under its own small title; `row_names` stand at the left of the rows."""
    images = pictures.pil() if isinstance(pictures, Pairs) else list(pictures)
    rows = -(-len(images) // columns)
    lines = max((t.count("\n") + 1 for t in titles), default=0) if titles else 0
    cell = width / columns
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            rows, columns, figsize=(width, rows * (cell + 0.17 * lines + 0.05)), squeeze=False, layout="constrained"
        )
        for k, axis in enumerate(axes.flat):
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set_visible(False)
            if k < len(images):
                axis.imshow(np.asarray(images[k]), interpolation="nearest")
                if titles:
                    axis.set_title(titles[k], fontsize=9, pad=2, color=colors[k] if colors else "black")
                if row_names and k % columns == 0:
                    axis.set_ylabel(row_names[k // columns], fontsize=10)
    return figure


def heatmap(
    values: np.ndarray, rows: Sequence[str], columns: Sequence[str], *, title: str = "", label: str = "",
    limits: tuple[float, float] | None = None, ax: Axes | None = None, mark_row: int | None = None,
) -> Axes:  # fmt: skip
    """A matrix as colours (cividis), rows and columns named; `mark_row` is boxed in orange."""
    with plt.rc_context(STYLE):
        if ax is None:
            _, ax = plt.subplots(figsize=(5.2, 1.7 + 0.27 * len(rows)), layout="constrained")
        low, high = limits or (float(np.min(values)), float(np.max(values)))
        image = ax.imshow(values, cmap="cividis", vmin=low, vmax=high, aspect="auto", interpolation="nearest")
        ax.set_xticks(range(len(columns)), columns, rotation=60, ha="right", rotation_mode="anchor")
        ax.set_yticks(range(len(rows)), rows)
        ax.set_title(title)
        ax.spines[:].set_visible(False)
        if mark_row is not None:
            box = plt.Rectangle(
                (-0.5, mark_row - 0.5), len(columns), 1, fill=False, ec=COLORS[1], lw=2.5, clip_on=False
            )
            ax.add_patch(box)
        ax.figure.colorbar(image, ax=ax, label=label, shrink=0.9)
    return ax


def slider(frames: Mapping[str, np.ndarray], *, label: str, alt: str, width: int = 480) -> Any:
    """Pictures to move through with a slider that needs no kernel: it works on a page, by touch and by keyboard.

    frames: for each position of the slider its text and what it shows, uint8 (height, width, 3); label: of the slider;
    alt: what the pictures show, in words. width: in CSS pixels, less on a phone. An IPython HTML object for a cell to
    end with. ValueError for fewer than two frames.
    """
    from IPython.display import HTML

    shapes = {(image.dtype.name, image.shape) for image in frames.values()}
    if len(frames) < 2 or len(shapes) > 1:
        raise ValueError(f"{len(frames)} frames of {shapes}; a slider needs two at least, all of one shape and type")
    pictures = [data_url(Image.fromarray(image)) for image in frames.values()]
    texts = [escape(text) for text in frames]
    # every frame is an element of its own: a page without scripts shows the first
    style = 'style="width:100%;image-rendering:pixelated"'
    images = "".join(
        f'<img src="{source}" alt="{escape(alt)} {text}" {style}{" hidden" * (k > 0)}>'
        for k, (source, text) in enumerate(zip(pictures, texts, strict=True))
    )
    move = (
        "const f=this.closest('figure');f.querySelectorAll('img').forEach((m,k)=>{m.hidden=k!=this.value});"
        "const t=JSON.parse(this.dataset.texts)[this.value];f.querySelector('output').value=t;"
        "this.setAttribute('aria-valuetext',t)"
    )
    return HTML(
        f'<figure class="slider" style="max-width:{width}px;margin:1em 0">{images}'
        f'<label style="display:block">{escape(label)}: <output>{texts[0]}</output>'
        f'<input type="range" min="0" max="{len(frames) - 1}" value="0" step="1" '
        f'aria-label="{escape(label)}" aria-valuetext="{texts[0]}" '
        f'data-texts="{escape(json.dumps(list(frames)))}" oninput="{escape(move)}" style="width:100%;height:2em">'
        "</label></figure>"
    )


def show_source(function: object) -> Any:
    """The library's own code, as it is installed, for a notebook cell to end with (an IPython Markdown object)."""
    from IPython.display import Markdown  # here: only notebooks have it

    return Markdown(f"```python\n{inspect.getsource(function)}```")


def data_url(image: Image.Image) -> str:
    """A picture as a PNG inside an address, for HTML that needs no file."""
    file = BytesIO()
    image.save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{b64encode(file.getvalue()).decode()}"
