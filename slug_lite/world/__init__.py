"""The mini world, its evaluation and its judge. Importing it teaches `algorithm.as_task` what names mean."""

from . import tasks, toonworld

__all__ = ["tasks", "toonworld"]
