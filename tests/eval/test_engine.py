import signal
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from c2fmae.core.distributed import World
from c2fmae.core.errors import UserError
from c2fmae.core.signals import TestStopped, catch_signals
from c2fmae.eval.engine import BatchingConfig, gather_rows, iterate_batches, sum_outputs

NUM_ROWS, BATCH_SIZE = 11, 3


class UnreducedRank(World):
    """A rank without communication: the test adds the tensors of ranks."""

    def all_reduce(self, tensor: Tensor) -> Tensor:
        return tensor

    def broadcast_object(self, value: Any) -> Any:
        return value


def square(rows: range) -> Tensor:
    return torch.tensor([float(row) for row in rows]).square() + 0.1


def compute_outputs(world: World) -> Iterator[tuple[range, dict[str, Tensor]]]:
    batching = BatchingConfig(batch_size=BATCH_SIZE, num_workers=0)
    for rows, values in iterate_batches(square, world.rank_chunks(NUM_ROWS, BATCH_SIZE), world, batching):
        yield rows, {"values": values, "pairs": torch.stack([values, -values], dim=1)}


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_rows_are_gathered_in_order_for_any_world_size(world_size: int) -> None:
    expected = square(range(NUM_ROWS))
    rank_outputs = [
        gather_rows(compute_outputs(world), NUM_ROWS, world)
        for world in (UnreducedRank(rank, world_size) for rank in range(world_size))
    ]
    assert torch.equal(torch.stack([output["values"] for output in rank_outputs]).sum(dim=0), expected)
    assert torch.equal(
        torch.stack([output["pairs"] for output in rank_outputs]).sum(dim=0), torch.stack([expected, -expected], dim=1)
    )


@pytest.mark.parametrize("num_workers", [0, 2])
def test_outputs_are_summed_over_batches(num_workers: int) -> None:
    batching = BatchingConfig(batch_size=BATCH_SIZE, num_workers=num_workers)
    batches = iterate_batches(torch.tensor, World().rank_chunks(NUM_ROWS, BATCH_SIZE), World(), batching)
    total = sum_outputs(({"count": torch.tensor(len(values)), "sum": values.sum()} for _, values in batches), World())
    assert total["count"].item() == NUM_ROWS
    assert total["sum"].item() == sum(range(NUM_ROWS))


def test_an_error_of_a_worker_is_raised_at_its_batch() -> None:
    batches = iterate_batches(fail_at_six, World().rank_chunks(NUM_ROWS, BATCH_SIZE), World(), BatchingConfig())
    assert [next(batches)[0].start, next(batches)[0].start] == [0, 3]
    with pytest.raises(UserError, match=r"^row 6: is corrupted$"):
        next(batches)


def fail_at_six(rows: range) -> int:
    if 6 in rows:
        raise UserError("row 6: is corrupted")
    return len(rows)


def test_a_signal_ends_the_iteration_after_the_current_batch() -> None:
    batches, batching = [range(first, first + 2) for first in range(0, 8, 2)], BatchingConfig(num_workers=0)
    with catch_signals():
        iteration = iterate_batches(square, batches, World(), batching, show_progress=False)
        assert [next(iteration)[0] for _ in range(2)] == batches[:2]
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(TestStopped):
            next(iteration)


def test_a_signal_during_the_last_batch_does_not_stop_a_complete_iteration() -> None:
    with catch_signals() as stop:
        for _ in iterate_batches(square, [range(2)], World(), BatchingConfig(num_workers=0), show_progress=False):
            signal.raise_signal(signal.SIGTERM)
    assert stop


def test_a_rank_that_is_done_stops_with_the_others() -> None:
    class OtherRankStopped(UnreducedRank):
        def all_reduce(self, tensor: Tensor) -> Tensor:
            return tensor + 1

    batching = BatchingConfig(num_workers=0)
    with catch_signals(), pytest.raises(TestStopped):
        list(iterate_batches(square, [range(2)], OtherRankStopped(0, 2), batching, show_progress=False))
