"""The next step to try: an interval between the longest step that failed and the shortest that succeeded."""

from __future__ import annotations

import math

PRECISION = 0.03  # with a goal, the search ends once the interval is no wider than this part of the step
End = tuple[float, float]  # a step, and its standardized margin


class Bracket:
    """Steps to try, one after the other.

    Doubles until one succeeds. Then the interval is halved, as in the paper; or, with a goal, a standardized margin
    to be reached, cut where the straight line through both ends reaches it (regula falsi). An end that stayed twice in
    a row counts with half its distance from the goal only, so that the next cut falls on the other side (the Illinois
    rule: Dowell and Jarratt, 1971).
    """

    def __init__(self, first: float, goal: float | None = None) -> None:
        self.step, self.goal = first, goal
        self.short: End | None = None  # the longest step that failed
        self.enough: End | None = None  # the shortest that succeeded
        self.last: bool | None = None

    def add(self, gone: bool, margin: float = math.nan) -> None:
        """The step just tried did, or did not, make the model forget, by this standardized margin."""
        tried, again = (self.step, margin), gone == self.last
        if gone:
            self.enough, self.short = tried, self._nearer(self.short) if again else self.short
        else:
            self.short, self.enough = tried, self._nearer(self.enough) if again else self.enough
        self.last = gone
        self.step = next_step(self.step, self.short, self.enough, self.goal)

    def _nearer(self, end: End | None) -> End | None:
        return end if end is None or self.goal is None else (end[0], (end[1] + self.goal) / 2)

    @property
    def found(self) -> float | None:
        """The shortest step that succeeded, None before there is one."""
        return self.enough and self.enough[0]

    @property
    def narrow(self) -> bool:
        """Is it no use to go on? Only with a goal; without one the paper uses all its tries."""
        if self.goal is None or self.short is None or self.enough is None:
            return False
        return self.enough[0] - self.short[0] <= PRECISION * self.enough[0]


def next_step(step: float, short: End | None, enough: End | None, goal: float | None) -> float:
    """The step to try after `step`; a cut by the goal falls a twentieth off either end at least. See `Bracket`."""
    if enough is None:
        return 2 * step
    low, at_low = short or (0.0, -math.inf)
    high, at_high = enough
    part = 0.5
    if goal is not None and math.isfinite(at_low) and math.isfinite(at_high) and at_low < goal < at_high:
        part = min(max((goal - at_low) / (at_high - at_low), 0.05), 0.95)
    return low + part * (high - low)
