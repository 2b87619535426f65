"""Warnings of loss spikes: the first sign of a learning rate too high, or of a batch that should not be there."""

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable, Mapping
from statistics import median
from typing import Any

WINDOW_SIZE = 100
"""Losses that a new one is compared with; median and spread of so many do not move for a few spikes among them."""

MIN_LOSSES = 20
"""With fewer to compare with, nothing is said."""

DEVIATION_THRESHOLD = 8.0
"""Above the median by so many standard deviations (as the median deviation gives them) …"""

RELATIVE_THRESHOLD = 0.1
"""… and by this share of it, since a curve that hardly varies has no deviations to speak of, is a spike."""


class SpikeDetector:
    """Sees every step's loss and says when it jumps.

    It knows nothing but what it saw: shown the rows of a run that is resumed, it goes on as if it had seen each come.
    """

    def __init__(self) -> None:
        self._recent = deque[float]()
        self._sorted = list[float]()
        self._is_high = False

    def add_loss(self, step: int, loss: float | None) -> str | None:
        """Take a loss; return a sentence if it is a spike's first. What is not finite is passed over."""
        if loss is None or not math.isfinite(loss):
            return None
        was_high, self._is_high = self._is_high, self._is_spike(loss)
        warning = None
        if self._is_high and not was_high:
            median_loss = _median_of_sorted(self._sorted)
            warning = f"step {step}: the loss is {loss:.4g}, far above its recent median of {median_loss:.4g}"
        self._add(loss)
        return warning

    def add_rows(self, rows: Iterable[Mapping[str, Any]]) -> list[str]:
        """Take the rows of metrics that a run has written; return the sentences that were said of them."""
        steps = [row for row in rows if "loss" in row and "skipped" not in row]
        return [sentence for row in steps if (sentence := self.add_loss(row["step"], row["loss"]))]

    def _is_spike(self, loss: float) -> bool:
        if len(self._sorted) < MIN_LOSSES:
            return False
        middle = _median_of_sorted(self._sorted)
        if loss <= middle + RELATIVE_THRESHOLD * abs(middle):  # nearly always: the rest costs more
            return False
        deviation = 1.4826 * median(abs(each - middle) for each in self._sorted)
        return loss > middle + DEVIATION_THRESHOLD * deviation

    def _add(self, loss: float) -> None:
        if len(self._recent) == WINDOW_SIZE:
            del self._sorted[bisect_left(self._sorted, self._recent.popleft())]
        self._recent.append(loss)
        insort(self._sorted, loss)


def _median_of_sorted(ordered: list[float]) -> float:
    half = len(ordered) // 2
    return (ordered[half] + ordered[~half]) / 2
