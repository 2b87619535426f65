"""Warnings of loss spikes: the first sign of a learning rate too high, or of a batch that should not be there."""

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable, Mapping
from statistics import median
from typing import Any

WINDOW = 100
"""Losses that a new one is compared with; median and spread of so many do not move for a few spikes among them."""

ENOUGH = 20
"""With fewer to compare with, nothing is said."""

FAR = 8.0
"""Above the median by so many standard deviations (as the median deviation gives them) …"""

MUCH = 0.1
"""… and by this share of it, since a curve that hardly varies has no deviations to speak of, is a spike."""


class SpikeWatch:
    """Sees every step's loss and says when it jumps.

    It knows nothing but what it saw: shown the rows of a run that is resumed, it goes on as if it had seen each come.
    """

    def __init__(self) -> None:
        self._recent = deque[float]()
        self._sorted = list[float]()
        self._is_high = False

    def see(self, step: int, loss: float | None) -> str | None:
        """Take a loss; return a sentence if it is a spike's first. What is not finite is passed over."""
        if loss is None or not math.isfinite(loss):
            return None
        was_high, self._is_high = self._is_high, self._is_spike(loss)
        sentence = None
        if self._is_high and not was_high:
            usual = _middle(self._sorted)
            sentence = f"step {step}: the loss is {loss:.4g}, far above its recent median of {usual:.4g}"
        self._add(loss)
        return sentence

    def see_rows(self, rows: Iterable[Mapping[str, Any]]) -> list[str]:
        """Take the rows of metrics that a run has written; return the sentences that were said of them."""
        steps = [row for row in rows if "loss" in row and "skipped" not in row]
        return [sentence for row in steps if (sentence := self.see(row["step"], row["loss"]))]

    def _is_spike(self, loss: float) -> bool:
        if len(self._sorted) < ENOUGH:
            return False
        middle = _middle(self._sorted)
        if loss <= middle + MUCH * abs(middle):  # nearly always: the rest costs more
            return False
        deviation = 1.4826 * median(abs(each - middle) for each in self._sorted)
        return loss > middle + FAR * deviation

    def _add(self, loss: float) -> None:
        if len(self._recent) == WINDOW:
            del self._sorted[bisect_left(self._sorted, self._recent.popleft())]
        self._recent.append(loss)
        insort(self._sorted, loss)


def _middle(ordered: list[float]) -> float:
    half = len(ordered) // 2
    return (ordered[half] + ordered[~half]) / 2
