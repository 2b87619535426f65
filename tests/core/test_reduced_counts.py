from collections.abc import Callable
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from c2fmae.core.distributed import World
from c2fmae.core.reduced_counts import ReducedCounts

pytestmark = pytest.mark.numeric


class RecordingWorld(World):
    """A rank of two with equal numbers, which records when sums are started and awaited."""

    events: ClassVar[list[object]] = []

    def start_all_reduce(self, tensor: Tensor) -> Callable[[], Tensor]:
        self.events.append(tensor.tolist())

        def wait() -> Tensor:
            self.events.append("awaited")
            return 2 * tensor

        return wait


def test_counts_and_flags_are_summed_at_once_and_awaited_when_one_is_read() -> None:
    events = RecordingWorld.events
    events.clear()
    by_micro_batch = [{"cells": torch.tensor(3), "samples": torch.tensor(2)} for _ in range(2)]
    counts = ReducedCounts(by_micro_batch, {"stop": 1}, RecordingWorld(0, 2))
    assert list(counts) == ["cells", "samples"]
    assert len(counts) == 2
    assert events == [[6, 4, 1]]
    assert {name: int(count) for name, count in counts.items()} == {"cells": 12, "samples": 8}
    assert counts.sums.tolist() == [12, 8, 2]
    assert events == [[6, 4, 1], "awaited"]


def test_counts_of_a_single_process_are_sums_over_micro_batches() -> None:
    counts = ReducedCounts([{"samples": torch.tensor(number)} for number in (1, 2, 4)], {}, World())
    assert counts.sums.tolist() == [7]
    assert "samples" in counts
    with pytest.raises(KeyError):
        counts["stop"]
