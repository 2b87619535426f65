from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from c2fmae.core.distributed import World
from c2fmae.core.reduced_counts import ReducedCounts

pytestmark = pytest.mark.numeric


class SlowWorld(World):
    """A rank of two whose sums are there when they are waited for."""

    def start_all_reduce(self, tensor: Tensor) -> Callable[[], Tensor]:
        started.append(tensor.clone())
        return lambda: tensor.mul_(2)


started: list[Tensor] = []


def test_counts_are_summed_at_once_and_awaited_when_they_are_read() -> None:
    started.clear()
    by_micro_batch = [{"cells": torch.tensor(3), "samples": torch.tensor(2)} for _ in range(2)]
    counts = ReducedCounts(by_micro_batch, {"stop": 1}, SlowWorld(0, 2))
    assert [tensor.tolist() for tensor in started] == [[6, 4, 1]]
    assert list(counts) == ["cells", "samples"]
    assert len(counts) == 2
    assert {name: int(count) for name, count in counts.items()} == {"cells": 12, "samples": 8}
    assert counts.sums.tolist() == [12, 8, 2]
    assert len(started) == 1


def test_counts_of_a_single_process_are_sums_over_micro_batches() -> None:
    counts = ReducedCounts([{"samples": torch.tensor(number)} for number in (1, 2, 4)], {}, World())
    assert counts.sums.tolist() == [7]
    assert "samples" in counts
    with pytest.raises(KeyError):
        counts["stop"]
