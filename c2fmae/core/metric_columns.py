"""The numbers of metric rows in arrays: as dictionaries, a million rows would take two gigabytes."""

from array import array
from collections import Counter
from collections.abc import Iterable
from math import nan

import numpy as np
from jaxtyping import Float64

from c2fmae.core.metric_rows import MetricRow, is_number


class MetricColumns:
    """Metrics by key, over the steps of their rows.

    >>> columns = MetricColumns([{"step": 1, "loss": 2.0}, {"step": 2, "loss": None, "skipped": "not finite"}])
    >>> columns.last_step, columns.points("loss").tolist(), columns.count_texts("skipped")
    (2, [[1.0, 2.0], [2.0, nan]], Counter({'not finite': 1}))
    """

    def __init__(self, rows: Iterable[MetricRow]) -> None:
        self.last_step = 0
        """The highest step."""
        self._columns: dict[str, tuple[array[float], array[float]]] = {}
        self._texts: dict[str, Counter[str]] = {}
        for row in rows:
            if (step := row.get("step")) is None:
                continue
            self.last_step = max(self.last_step, step)
            for key, value in row.items():
                if key not in self._columns:
                    self._columns[key] = (array("d"), array("d"))
                steps, values = self._columns[key]
                steps.append(step)
                values.append(value if type(value) is float or is_number(value) else nan)
                if isinstance(value, str):
                    self._texts.setdefault(key, Counter())[value] += 1

    def find_keys(self, prefix: str) -> list[str]:
        """Return the keys that begin with a prefix, in the order in which they appear."""
        return [key for key in self._columns if key.startswith(prefix)]

    def points(self, key: str) -> Float64[np.ndarray, "points 2"]:
        """Return step and value of each row that has a metric. Null and text are NaN."""
        return np.stack(self._columns.get(key, (array("d"), array("d"))), axis=1)

    def finite_points(self, key: str) -> list[tuple[int, float]]:
        """Return step and value of each row in which a metric is finite."""
        points = self.points(key)
        return [(int(step), value) for step, value in points[np.isfinite(points[:, 1])].tolist()]

    def count_texts(self, key: str) -> Counter[str]:
        """Return how often each text is the value of a metric."""
        return self._texts.get(key, Counter())
