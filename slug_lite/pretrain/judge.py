"""Train the judge on the mini world's drawings, and on much that is none of its names.

Positive pictures are renderings of every person, character and object in every style, slightly blurred, noisy or
tinted, as generated ones may be. "None of these" is learnt from the other kinds, and from

    nobodies   avatars of the same set whose hair, skin, beard and glasses are nobody's
    mixtures   left and right, or upper and lower half of two pictures; two pictures blended
    ruins      snippets enlarged, heavy blurs, shuffled tiles, noise and plain grounds

A style is not asked of snippets, mixtures and shuffled tiles: that is a matter of taste.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from ..runtime.progress import bar
from ..world import cast, toonworld
from ..world.captions import CHARACTERS, NAMES, OBJECTS, PEOPLE, STYLES
from ..world.judge import SIZE, Judge, JudgeNet, pixels
from ..world.sprites import drawing_svg, outfits, person_svg, rasterise
from .loop import Training, When, adamw, descend, learning_rate, train

KINDS = tuple(NAMES)
NOBODY = torch.tensor([len(NAMES[kind]) for kind in KINDS])  # the label "none of these" of every head
IGNORE = -100
FEATURES = ("hair", "hair_color", "skin", "beard", "glasses")


@dataclass(frozen=True)
class JudgeRecipe:
    """How the judge is trained; the defaults are those of the shipped weights."""

    steps: int = 3200
    batch: int = 112  # two thirds of it renderings, one third none of these
    lr: float = 2e-3
    warmup: int = 100
    cooldown: float = 0.5
    weight_decay: float = 0.02
    channels: tuple[int, ...] = (32, 64, 96, 128)
    pool: int = 40  # renderings of a cell; of a character 8 times, of a person 8 times as many
    nobodies: int = 1600
    look: int = 3000  # held-out pictures to measure and calibrate on
    seed: int = 11


def label(concept: tuple[str, ...], k: int) -> list[int]:
    """The class of each head for the k-th rendering of a concept: person, character, object, style."""
    out = NOBODY.tolist()
    if len(concept) == 2:
        out[2], out[3] = OBJECTS.index(concept[0]), STYLES.index(concept[1])
    elif concept[0] in PEOPLE:
        out[0] = PEOPLE.index(concept[0])
    else:
        drawn = [s for s in STYLES if drawing_svg(concept[0], s)]
        out[1], out[3] = CHARACTERS.index(concept[0]), STYLES.index(drawn[k % len(drawn)])
    return out


def _visible(person: cast.Person) -> tuple[str, ...]:
    """What tells a person from others; nobody sees the hair colour of someone without hair and beard."""
    features = tuple(getattr(person, f) for f in FEATURES)
    return features if (person.hair, person.beard) != ("NONE", "NONE") else (features[0], "", *features[2:])


def nobodies(n: int, rng: np.random.Generator, split: str = "train", size: int = SIZE) -> np.ndarray:
    """Renderings of people who are none of the 24: each differs from everybody in two features or more."""
    people, out = list(cast.PEOPLE.items()), []
    while len(out) < n:
        name, person = people[rng.integers(len(people))]
        mixed = {f: getattr(people[rng.integers(len(people))][1], f) for f in FEATURES}
        stranger = person._replace(**mixed)
        seen = _visible(stranger)
        if min(sum(a != b for a, b in zip(seen, _visible(p), strict=True)) for _, p in people) < 2:
            continue
        worn = outfits(name)[split]
        svg = person_svg(stranger, worn[rng.integers(len(worn))])
        out.append(toonworld.compose(rasterise(svg, round(1.25 * size)), rng, size, grounded=True))
    return np.stack(out)


class Drawings:
    """The judge's pictures of a split, uint8 (n, 64, 64, 3), with the labels of all heads; and its nobodies."""

    def __init__(self, recipe: JudgeRecipe, split: str) -> None:
        rng = np.random.default_rng([recipe.seed, len(split)])
        counts = {(name,): 8 * recipe.pool for name in PEOPLE + CHARACTERS}
        counts |= dict.fromkeys(toonworld.cells("train") + toonworld.cells("unseen"), recipe.pool)
        images, labels = [], []
        for concept, n in bar(counts.items(), desc="renderings", leave=False):
            images.append(toonworld.renderings(concept, n, recipe.seed, split))
            labels += [label(concept, k) for k in range(n)]
        self.images, self.labels = np.concatenate(images), torch.tensor(labels)
        self.strangers = nobodies(recipe.nobodies, rng, split)
        people, characters, objects = ((self.labels[:, h] != NOBODY[h]).nonzero()[:, 0].numpy() for h in range(3))
        self.kinds = (people, characters, objects)

    def batch(self, n: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """n pictures (n, 3, 64, 64) from -1 to 1 and their labels (n, 4), two thirds of them renderings."""
        kinds = rng.choice(3, 2 * n, p=(0.4, 0.15, 0.45))
        rows = [int(self.kinds[k][rng.integers(len(self.kinds[k]))]) for k in kinds]
        x, y = pixels(self.images[rows]), self.labels[rows]
        keep = round(n * 2 / 3)
        good, spoilt, theirs = x[:keep], x[keep : 2 * (n - keep) + keep], y[keep : 2 * (n - keep) + keep]
        bad, none = spoil(spoilt, theirs, pixels(self.strangers[rng.integers(len(self.strangers), size=n)]), rng)
        return torch.cat([vary(good, rng), bad]), torch.cat([y[:keep], none])


def blur(x: Tensor, sigma: float) -> Tensor:
    """A Gaussian blur of (n, 3, S, S); sigma in pixels."""
    reach = max(1, round(3 * sigma))
    kernel = torch.exp(-torch.arange(-reach, reach + 1).square() / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).repeat(3, 1)
    x = F.pad(x, (reach,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(x, kernel[:, None, :, None], groups=3), kernel[:, None, None, :], groups=3)


def vary(x: Tensor, rng: np.random.Generator) -> Tensor:
    """What a good generated picture may have that a rendering has not: slight blur, noise, another tint."""
    x = torch.cat([blur(x[0::2], rng.uniform(0.3, 0.9)), x[1::2]])[_interleaved(len(x))]
    normal = torch.from_numpy(rng.standard_normal(x.shape, np.float32))
    noise = torch.from_numpy(rng.uniform(0, 0.06, (len(x), 1, 1, 1)).astype(np.float32))
    gain = torch.from_numpy(rng.uniform(0.94, 1.06, (len(x), 3, 1, 1)).astype(np.float32))
    return (x * gain + noise * normal).clamp(-1, 1)


def _interleaved(n: int) -> Tensor:
    """Where the pictures are after the even ones were put before the odd ones."""
    half = (n + 1) // 2
    return torch.tensor([i // 2 + (half if i % 2 else 0) for i in range(n)])


def spoil(x: Tensor, y: Tensor, strangers: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """From 2 n pictures with their labels, n that are none of these, in equal parts; and their labels (n, 4)."""
    n = len(x) // 2
    pictures, labels = [], []
    for i in range(n):
        a, b, ya, yb = x[i], x[n + i], y[i], y[n + i]
        way = WAYS[i % len(WAYS)]
        pictures.append(strangers[i] if way is None else way(a, b, rng))
        if way in (_halves, _blend):  # two pictures of one name still show that name
            labels.append(torch.where((ya == yb) & (ya != NOBODY), IGNORE, NOBODY))
        else:
            labels.append(NOBODY.clone())
        if way in (_halves, _blend, _snippet, _shuffle):
            labels[-1][3] = IGNORE
    return torch.stack(pictures), torch.stack(labels)


def _halves(a: Tensor, b: Tensor, rng: np.random.Generator) -> Tensor:
    cut, out = int(rng.integers(26, 39)), a.clone()
    if rng.random() < 0.5:
        out[:, :, cut:] = b[:, :, cut:]
    else:
        out[:, cut:] = b[:, cut:]
    return out


def _blend(a: Tensor, b: Tensor, rng: np.random.Generator) -> Tensor:
    return torch.lerp(a, b, float(rng.uniform(0.38, 0.62)))


def _snippet(a: Tensor, b: Tensor, rng: np.random.Generator) -> Tensor:
    side = int(rng.integers(10, 19))
    top, left = rng.integers(SIZE - side, size=2)
    part = a[None, :, top : top + side, left : left + side]
    return F.interpolate(part, (SIZE, SIZE), mode="bilinear", align_corners=False)[0]


def _shuffle(a: Tensor, b: Tensor, rng: np.random.Generator) -> Tensor:
    tiles = a.unfold(1, 16, 16).unfold(2, 16, 16).reshape(3, 16, 16, 16)[:, rng.permutation(16)]
    return tiles.reshape(3, 4, 4, 16, 16).permute(0, 1, 3, 2, 4).reshape(3, SIZE, SIZE)


def _heavy_blur(a: Tensor, b: Tensor, rng: np.random.Generator) -> Tensor:
    side = int(rng.integers(2, 7))
    return F.interpolate(F.adaptive_avg_pool2d(a[None], side), (SIZE, SIZE), mode="bicubic").clamp(-1, 1)[0]


def _noise(a: Tensor, b: Tensor, rng: np.random.Generator) -> Tensor:
    """A random ground, with noise of a random strength and grain, over a trace of a picture or none."""
    ground = torch.from_numpy(rng.uniform(-1, 1, (3, 1, 1)).astype(np.float32))
    grain = int(rng.choice((4, 8, 16, 32, 64)))
    noise = torch.from_numpy(rng.standard_normal((1, 3, grain, grain), np.float32))
    noise = noise * float(rng.choice((0, 0.1, 0.4, 1)))
    trace = float(rng.choice((0.0, 0.0, 0.12)))
    return (ground + F.interpolate(noise, (SIZE, SIZE), mode="bilinear")[0] + trace * (a - ground)).clamp(-1, 1)


WAYS = (None, _halves, _blend, None, _snippet, _heavy_blur, None, _shuffle, _noise, _halves, _blend)


def loss_of(logits: dict[str, Tensor], labels: Tensor) -> Tensor:
    """Sum over the heads of their cross-entropies; labels: (n, 4)."""
    losses = [F.cross_entropy(logits[kind], labels[:, h], ignore_index=IGNORE) for h, kind in enumerate(KINDS)]
    return torch.stack(losses).sum()


@torch.no_grad()
def calibrate(net: JudgeNet, x: Tensor, labels: Tensor) -> dict[str, float]:
    """Divide each head's logits by the temperature that makes `labels` most likely; the temperatures."""
    logits = [net(part) for part in x.split(128)]
    found = {}
    for h, kind in enumerate(KINDS):
        z = torch.cat([part[kind] for part in logits])
        temperatures = np.geomspace(0.3, 4, 53)
        losses = [F.cross_entropy(z / t, labels[:, h], ignore_index=IGNORE).item() for t in temperatures]
        found[kind] = round(float(temperatures[int(np.argmin(losses))]), 3)
        for p in net.heads[kind].parameters():
            p /= found[kind]
    return found


@torch.no_grad()
def accuracies(net: JudgeNet, x: Tensor, labels: Tensor) -> dict[str, float]:
    """Share of each head's answers that are right, "none of these" included, among the pictures it is asked about."""
    logits = [net(part) for part in x.split(128)]
    out = {}
    for h, kind in enumerate(KINDS):
        asked = labels[:, h] != IGNORE
        right = torch.cat([part[kind] for part in logits]).argmax(1) == labels[:, h]
        out[kind] = round(right[asked].float().mean().item(), 4)
    return out


def train_judge(folder: str | Path, recipe: JudgeRecipe = JudgeRecipe(), *, until: int | None = None) -> Judge:
    """Train the judge; a finished one is calibrated on the split "val" and written to `folder` as `load_judge` reads.

    Its checkpoint and log lie in `folder` too. until, errors: as `autoencoder.train_vae`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        net = JudgeNet({kind: len(NAMES[kind]) + 1 for kind in KINDS}, recipe.channels)
    optimizer, drawings = adamw(net, recipe), Drawings(recipe, "train")
    fewer = replace(recipe, pool=max(1, recipe.pool // 10), nobodies=max(8, recipe.nobodies // 8))
    x, labels = Drawings(fewer, "val").batch(recipe.look, np.random.default_rng([recipe.seed, 1]))

    def one_step(step: int) -> float:
        pictures, wanted = drawings.batch(recipe.batch, np.random.default_rng([recipe.seed, step, 2]))
        loss = loss_of(net.train()(pictures), wanted)
        descend(net, loss, optimizer, learning_rate(recipe, step))
        return loss.item()

    def look(step: int) -> dict[str, float]:
        return accuracies(net.eval(), x, labels) if step % 400 == 0 or step == recipe.steps else {}

    if train(folder, "judge", Training(recipe, net, optimizer, one_step, look), When(until)) == recipe.steps:
        temperatures = calibrate(net.eval(), x, labels)
        save_judge(Judge(net), folder, asdict(recipe) | {"temperatures": temperatures})
    return Judge(net)


@torch.no_grad()
def save_judge(judge: Judge, folder: Path, training: dict[str, Any]) -> None:
    """Write model.safetensors (fp16; the judge given is rounded alike), judge.json and training.json."""
    for p in judge.net.parameters():
        p.copy_(p.half().float())
    state = {name: value.half().contiguous() for name, value in judge.net.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    channels = [m.out_channels for m in judge.net.body if isinstance(m, torch.nn.Conv2d)][:-1]
    config = {"names": judge.names, "channels": channels, "size": SIZE}
    (folder / "judge.json").write_text(json.dumps(config, indent=1) + "\n")
    (folder / "training.json").write_text(json.dumps(training | {"torch": torch.__version__}, indent=2) + "\n")
