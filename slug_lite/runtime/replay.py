"""Run a tower from the middle: what comes before an edited layer is computed once and played back.

An edit of one layer leaves everything before it as it was. Here the output of the block before the edited one is
kept, batch by batch (in a first run, with or without the edit), and in later runs the blocks up to there hand it over
instead of computing it. The rest runs as always, on the same numbers in the same batches: results are the same bit
for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from .modes import hooked
from .undo import Block, Undo, undone

if TYPE_CHECKING:
    from ..models import Clip


def blocks_before(clip: Clip, layer: str) -> list[nn.Module]:
    """The blocks of `layer`'s tower that run before it and need not be run again; empty where there are none.

    Blocks are the members of the outermost `nn.Sequential` or `nn.ModuleList` on the way to the layer. For a layer
    behind all blocks, as the output projection, they are those of the first such list in its tower.
    """
    parts = layer.split(".")
    for k, part in enumerate(parts):
        if part.isdigit() and isinstance(blocks := clip.model.get_submodule(".".join(parts[:k])), _LISTS):
            return list(blocks)[: int(part)]
    if not layer.endswith(_BEHIND):
        return []
    named = clip.model.named_modules()  # outermost first within a tower
    lists = [m for n, m in named if isinstance(m, _LISTS) and clip.tower(f"{n}.") == clip.tower(layer)]
    return list(lists[0]) if lists else []


KEPT = 1 << 30  # bytes of activations of each part that may be kept from one layer's search for the next
_LISTS = (nn.Sequential, nn.ModuleList)
_BEHIND = (
    "visual.proj", "text_projection", "text_projection.weight", "visual.head.proj.weight", "visual_projection.weight",
)  # fmt: skip


class Replay:
    """Records the output of the last of `blocks`, one a batch, and plays it back in the same order.

    most: bytes that may be kept; a run that needs more keeps nothing. None: no bound.
    """

    def __init__(self, blocks: list[nn.Module], most: int | None = None) -> None:
        self.blocks, self.most, self.outputs = blocks, most, []

    def record(self) -> Block[None]:
        """Inside, the last block's outputs are kept; they are played if the with-block comes to its end."""
        return _recorded(self)

    def begins(self, other: Replay) -> bool:
        """Does the other one's way begin with this one's blocks, so that this one can be played for it?"""
        return bool(self.outputs) and self.blocks == other.blocks[: len(self.blocks)]

    def play(self) -> Block[None]:
        """Inside, every block hands over what was recorded for the batch; the last one moves on to the next."""
        return _played(self)


@undone
def _recorded(undo: Undo, replay: Replay) -> None:
    outputs: list[Any] = []
    size = 0

    def keep(module: nn.Module, args: tuple, output: Any) -> None:
        nonlocal size
        size += output.nbytes if isinstance(output, Tensor) else 0
        outputs.append(output)
        if replay.most is not None and size > replay.most:
            outputs.clear()

    def done() -> None:
        replay.outputs = outputs if replay.most is None or size <= replay.most else []

    if replay.blocks:
        hook = hooked(replay.blocks[-1:], [keep])
        undo[object()] = hook.leave
        undo.at_end = done
        hook.__enter__()


@undone
def _played(undo: Undo, replay: Replay) -> None:
    position = 0

    def skip(*args: Any, **kwargs: Any) -> Any:
        return replay.outputs[position]

    def skip_last(*args: Any, **kwargs: Any) -> Any:
        nonlocal position
        position += 1
        return replay.outputs[position - 1]

    stubs: list[Callable] = [skip] * (len(replay.blocks) - 1) + [skip_last] * bool(replay.blocks)
    for block, stub in zip(replay.blocks, stubs, strict=True):
        undo.note(block, "forward")  # some libraries put one on a module
        block.forward = stub


class FromLayer:
    """Runs what a change of one layer can reach, again and again: what comes before it is kept from the first run.

    kept: what the next, deeper layer may start from, by part; it is filled here and read here.
    """

    def __init__(self, clip: Clip, layer: str, kept: dict[str, Replay]) -> None:
        self.blocks, self.kept = blocks_before(clip, layer), kept
        self.replays: dict[str, Replay] = {}

    def run(self, part: str, compute: Callable[[], Tensor], keep: bool = True) -> Tensor:
        """What compute() returns. keep: for the next run of the part at this layer; if not, what is before the layer
        is still kept for the next layer, which may lie behind it, as long as it takes no more than KEPT bytes."""
        replay = self.replays.setdefault(part, Replay(self.blocks))
        if replay.outputs:
            with replay.play():
                return compute()
        if not keep:
            replay = Replay(self.blocks, KEPT)
        start = self.kept.get(part)
        with start.play() if start is not None and start.begins(replay) else nullcontext(), replay.record():
            out = compute()
        if not keep and replay.outputs:
            self.kept[part] = replay
        return out
