"""Several processes, as torchrun or accelerate start them; with one process, nothing happens here."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def processes() -> int:
    """How many processes work together: the size of the default group, 1 without one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def shard(n: int) -> slice:
    """This process's part of n rows: every k-th of k processes."""
    return slice(dist.get_rank(), n, processes()) if processes() > 1 else slice(0, n)


def all_reduce(tensor: Tensor) -> Tensor:
    """The sum over all processes, in place."""
    if processes() > 1:
        dist.all_reduce(tensor)
    return tensor


def all_reduce_number(value: float) -> float:
    """The sum of a number over all processes."""
    if processes() == 1:
        return value
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    return all_reduce(torch.tensor(value, dtype=torch.float64, device=device)).item()


def all_gather(rows: Tensor) -> tuple[Tensor, slice]:
    """The rows of all processes, (sum of n, dim), one process after the other, and where this one's are.

    rows: (n, dim); n may differ between processes. Carries no gradient.
    """
    if processes() == 1:
        return rows, slice(0, len(rows))
    counts = [torch.zeros(1, dtype=torch.long, device=rows.device) for _ in range(processes())]
    dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    longest = max(int(c) for c in counts)
    padded = rows.new_zeros((longest, rows.shape[1]))
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    start = sum(int(c) for c in counts[: dist.get_rank()])
    return torch.cat([p[: int(c)] for p, c in zip(parts, counts, strict=True)]), slice(start, start + len(rows))
