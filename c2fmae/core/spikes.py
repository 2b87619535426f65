"""Detection of loss spikes, which indicate a learning rate that is too high or a bad batch."""

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable, Mapping
from itertools import islice
from statistics import median
from typing import Any

WINDOW_SIZE = 100
"""Number of recent losses to compare with: enough that a few spikes hardly change their median and deviation."""

MIN_LOSSES = 20
"""Minimum number of losses before warnings."""

DEVIATION_THRESHOLD = 8.0
"""Minimum height of a spike above the median, in standard deviations (estimated by the median absolute deviation)."""

RELATIVE_THRESHOLD = 0.1
"""Minimum height of a spike above the median, as a fraction of it, since the deviations of a smooth curve are tiny."""


class SpikeDetector:
    """A detector to which the loss of every step is added.

    Its state depends only on the last `WINDOW_SIZE` + 1 of them. After a resume, restore it from the rows of the run.
    """

    def __init__(self) -> None:
        self._recent = deque[float]()
        self._sorted = list[float]()
        self._is_high = False

    def add_loss(self, step: int, loss: float | None) -> str | None:
        """Add a loss, and return a warning if a spike begins with it. Losses that are not finite are skipped."""
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
        """Add the rows of metrics of a run, and return the warnings."""
        steps = [row for row in rows if "loss" in row and "skipped" not in row]
        return [warning for row in steps if (warning := self.add_loss(row["step"], row["loss"]))]

    def restore(self, rows_from_end: Iterable[Mapping[str, Any]]) -> None:
        """Restore the state after the rows of a run, which are given from the last to the first."""
        has_loss = (row for row in rows_from_end if row.get("loss") is not None and "skipped" not in row)
        self.add_rows(reversed(list(islice(has_loss, WINDOW_SIZE + 1))))

    def _is_spike(self, loss: float) -> bool:
        if len(self._sorted) < MIN_LOSSES:
            return False
        middle = _median_of_sorted(self._sorted)
        if loss <= middle + RELATIVE_THRESHOLD * abs(middle):  # nearly always, and cheap
            return False
        deviation = 1.4826 * median(abs(recent - middle) for recent in self._sorted)
        return loss > middle + DEVIATION_THRESHOLD * deviation

    def _add(self, loss: float) -> None:
        if len(self._recent) == WINDOW_SIZE:
            del self._sorted[bisect_left(self._sorted, self._recent.popleft())]
        self._recent.append(loss)
        insort(self._sorted, loss)


def _median_of_sorted(ordered: list[float]) -> float:
    half = len(ordered) // 2
    return (ordered[half] + ordered[~half]) / 2
