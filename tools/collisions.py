"""Edits of people in a layer given beforehand: what one does to another, on fresh test pictures."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from fresh_pictures import FRESH, SEED, clip, world

import slug_lite as slug
from slug_lite.book.one_layer import forget_in_layer
from slug_lite.runtime.linear import gram
from slug_lite.runtime.zero_shot import embed_images


class Touch:
    """Edits of people in one layer given beforehand, and what one does to another."""

    def __init__(self, people: list[str], layers: list[str]) -> None:
        self.clip, self.people, self.layers = clip(), people, layers
        sets = [world.pairs(name, 48, SEED) for name in people]
        self.gradients = slug.one_shot_gradients(self.clip, sets, world.retain(people, 64, SEED))
        self.pixels = [self.clip.pixels(world.pairs(name, 24, SEED + FRESH, "test")) for name in people]
        self.edits = {}
        for name, gradient in zip(people, self.gradients, strict=True):
            scored = {name: world.validation(name, seed=SEED)}
            for layer in layers:
                found = forget_in_layer(self.clip, layer, {name: gradient.forget[layer]}, scored, rounds=1)
                self.edits[name, layer] = found[name]
        self.before = self.state(people)

    @torch.no_grad()
    def scores(self, names: list[str]) -> torch.Tensor:
        """Cosines of people's test pictures with the names of all: (people, pictures, names)."""
        classifier = slug.zero_shot_classifier(self.clip, world.PEOPLE, world.templates("people", "test"))
        pixels = torch.cat([self.pixels[self.people.index(name)] for name in names])
        return (embed_images(self.clip, pixels) @ classifier.T).unflatten(0, (len(names), -1))

    def state(self, names: list[str]) -> dict[str, torch.Tensor]:
        """For each person, over their pictures: cosine with their own name, margin in logits, accuracy; (people,)."""
        scores = self.scores(names)
        at = torch.tensor([world.PEOPLE.index(name) for name in names])[:, None, None].expand(*scores.shape[:2], 1)
        own, others = scores.gather(2, at)[..., 0], scores.scatter(2, at, -torch.inf).amax(2)
        margin = self.clip.logit_scale() * (others - own)
        parts = {"cosine": own, "margin": margin, "accuracy": (margin <= 0).float()}
        return {key: values.mean(1) for key, values in parts.items()}

    def touch(self, by: str, layer: str) -> dict:
        """What `by`'s edit does to each of the others, and what the gradients at the untouched weights say of it."""
        edit, at = self.edits[by, layer], self.people.index(by)
        matrix = gram([g.forget[layer] for g in self.gradients])
        products, lengths = matrix[at], matrix.diagonal().sqrt()
        cosines = products / lengths / lengths[at]
        with edit.on(self.clip):
            after = self.state(self.people)
        return {
            "step": round(edit.step, 5),
            "relative": round((edit.delta.float().norm() / self.clip.weights()[layer].norm()).item(), 4),
            "cosine": rounded(cosines), "predicted": rounded(edit.step * products),
            "drop": rounded(self.before["cosine"] - after["cosine"]),
            "margin": rounded(after["margin"] - self.before["margin"], 2), "accuracy": rounded(after["accuracy"], 3),
        }  # fmt: skip

    def pair(self, name: str, layer: str, other_layer: str) -> dict:
        """`name` with its own edit in `layer`, alone and with each other's in `other_layer`.

        called: which share of the pictures gets each other's name while the own edit is on alone.
        """
        with self.edits[name, layer].on(self.clip):
            guesses = self.scores([name])[0].argmax(1)
            both = []
            for other in self.people:
                with self.edits[other, other_layer].on(self.clip) if other != name else nullcontext():
                    both.append(self.state([name]))
        return {
            "called": rounded([(guesses == world.PEOPLE.index(other)).float().mean() for other in self.people], 3),
            "own": rounded([state["cosine"] for state in both]),
            "margin": rounded([state["margin"] for state in both], 2),
            "left": rounded([state["accuracy"] for state in both], 3),
        }  # fmt: skip


def rounded(values: torch.Tensor | list, digits: int = 4) -> list[float]:
    return [round(float(v), digits) for v in values]
