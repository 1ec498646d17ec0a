"""The judge: a small classifier that says who or what a picture shows, and in which style, or that it is none of these.

It is trained on the mini world's drawings alone and shares nothing with mini CLIP, so that what it says about
generated pictures is no echo of the model that was edited. Each of its four heads (people, characters, objects,
styles) has one class more than there are names: "none of these", learnt from the other kinds' pictures, and from
people who are nobody, halves and blends of two pictures, snippets, blurs and noise (see `pretrain.judge`).
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..pairs import Pairs
from ..runtime.broken import check_one_colour
from ..runtime.checks import unknown
from ..runtime.files import check_tensors, header, read_json
from ..runtime.labels import check_label
from ..runtime.modes import gradient_free
from .captions import NAMES

NONE = "none of these"
SIZE = 64  # pixels


class JudgeNet(nn.Module):
    """Convolutions, then one linear head for each kind: (n, 3, 64, 64) from -1 to 1 -> logits by kind."""

    def __init__(self, heads: dict[str, int], channels: Sequence[int] = (32, 64, 96, 128)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after, stride in zip((3, *channels), (*channels, channels[-1]), (2, 2, 1, 2, 1), strict=True):
            layers += [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.GroupNorm(8, after), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.heads = nn.ModuleDict({kind: nn.Linear(2 * channels[-1], count) for kind, count in heads.items()})

    def features(self, x: Tensor) -> Tensor:
        """Mean and maximum of the last layer's channels over the picture: (n, 2 x channels)."""
        x = self.body(x)
        return torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.features(x)
        return {kind: head(x) for kind, head in self.heads.items()}


class Judge:
    """Says what pictures show: `judge(images)`. names: those of each head, in the order of its outputs."""

    def __init__(self, net: JudgeNet, names: dict[str, Sequence[str]] = NAMES) -> None:
        self.net, self.names = net.eval(), {kind: tuple(members) for kind, members in names.items()}

    @gradient_free
    def _run(self, images: Pairs | np.ndarray | Sequence[Image.Image], what: nn.Module) -> list:
        x = pixels(images)
        return [what(batch) for batch in x.split(128)]

    def features(self, images: Pairs | np.ndarray | Sequence[Image.Image]) -> np.ndarray:
        """What the heads look at: float32 (n, 256), for distances between sets of pictures. ValueError as a call."""
        check_one_colour(_sized(images))
        return torch.cat(self._run(images, self.net.features)).numpy()

    def probabilities(self, images: Pairs | np.ndarray | Sequence[Image.Image]) -> dict[str, np.ndarray]:
        """For each kind the probability of each of its names, and of "none of these" last: (n, names + 1)."""
        logits = self._run(images, self.net)
        chances = {kind: torch.cat([part[kind] for part in logits]).softmax(1).numpy() for kind in self.names}
        if not all(np.isfinite(some).all() for some in chances.values()):
            raise ValueError("the judge's answers are not finite: its weights are damaged")
        return chances

    def __call__(self, images: Pairs | np.ndarray | Sequence[Image.Image]) -> pd.DataFrame:
        """One row a picture. images: `Pairs`, uint8 (n, height, width, 3) or PIL images; other sizes are scaled.

        kind        "people", "characters", "objects" or "none of these"
        name        the most probable name of that kind, or "none of these"
        style       the most probable style, or "none of these"
        confidence  probability of that name (of "none of these": the least that a head gives it), and
        style_confidence  of that style; both calibrated on held-out drawings

        Raises ValueError for no pictures at all, an array of another shape or type, and pictures all of one colour:
        broken ones, in which not to find somebody says nothing.
        """
        check_one_colour(_sized(images))
        chances = self.probabilities(images)
        rows = []
        for i in range(len(chances["styles"])):
            by_kind = {kind: chances[kind][i] for kind in ("people", "characters", "objects")}
            kind = min(by_kind, key=lambda k: by_kind[k][-1])
            best, style = int(by_kind[kind].argmax()), int(chances["styles"][i].argmax())
            found = best < len(self.names[kind])
            rows.append({
                "kind": kind if found else NONE, "name": self.names[kind][best] if found else NONE,
                "style": (*self.names["styles"], NONE)[style], "confidence": float(by_kind[kind][best]),
                "style_confidence": float(chances["styles"][i][style]),
            })  # fmt: skip
        return pd.DataFrame(rows)

    def finds(self, images: Pairs | np.ndarray | Sequence[Image.Image], name: str) -> np.ndarray:
        """In which pictures the judge finds a person, character, object or style: bool (n,). KeyError for no name."""
        names = [n for members in self.names.values() for n in members]
        if name not in names:
            raise unknown(name, names, "name")
        return (self(images)["style" if name in self.names["styles"] else "name"] == name).to_numpy()


def pixels(images: Pairs | np.ndarray | Sequence[Image.Image]) -> Tensor:
    """Pictures as the judge sees them: float32 (n, 3, 64, 64) from -1 to 1. ValueError for none, and as `Pairs`."""
    return torch.from_numpy(np.ascontiguousarray(_sized(images).transpose(0, 3, 1, 2))).float() / 127.5 - 1


def _sized(images: Pairs | np.ndarray | Sequence[Image.Image]) -> np.ndarray:
    """The same as uint8 (n, 64, 64, 3)."""
    if isinstance(images, (Image.Image, str)) or len(images) == 0:
        raise ValueError("give at least one picture, in a list, as `Pairs` or as a uint8 array (n, height, width, 3)")
    pairs = images if isinstance(images, Pairs) else Pairs(images, [""] * len(images))
    if isinstance(pairs.images, np.ndarray) and pairs.images.shape[1:3] == (SIZE, SIZE):
        x = pairs.images
    else:
        x = np.stack([np.asarray(p.convert("RGB").resize((SIZE, SIZE), Image.BICUBIC)) for p in pairs.pil()])
    return x


def load_judge(folder: str | Path | None = None) -> Judge:
    """The judge of the mini world, as shipped with the package, or one that `pretrain.judge` wrote to `folder`.

    Raises FileNotFoundError for a missing folder or file, ValueError for files that are damaged or do not match.
    """
    if folder is None:
        with resources.as_file(resources.files("slug_lite") / "assets" / "mini-judge") as shipped:
            return load_judge(shipped)
    folder = Path(folder)
    for file in (folder / "judge.json", folder / "model.safetensors"):
        if not file.is_file():
            raise FileNotFoundError(f"the judge's {str(file)!r} is missing")
    try:
        config, head = read_json(folder / "judge.json", 1 << 20), header(folder / "model.safetensors")
        names = {
            check_label(kind, "a kind"): [check_label(name, "a name") for name in some]
            for kind, some in config["names"].items()
        }
        sizes = {kind: len(members) + 1 for kind, members in names.items()}
        with torch.device("meta"):  # built of nothing first: what it asks for must be what the file holds
            wanted = {name: tuple(p.shape) for name, p in JudgeNet(sizes, config["channels"]).state_dict().items()}
        check_tensors(folder, wanted, head.tensors)
        net = JudgeNet(sizes, config["channels"])
        net.load_state_dict({name: value.float() for name, value in load_file(folder / "model.safetensors").items()})
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{str(folder)!r} holds no whole judge: {type(error).__name__}: {reason}") from error
    return Judge(net, names)
