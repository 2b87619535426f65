from collections.abc import Callable
from itertools import accumulate, count

import torch
from torch import nn

from c2fmae.eval.cost.speed_and_memory import (
    compute_median_interval,
    measure_peak_bytes,
    measure_saved_bytes,
    time_in_turn,
)


def make_slowing_clock() -> Callable[[], float]:
    """Return a clock that shows 0, 1, 3, 6, …: every interval is one second longer than the previous one."""
    return accumulate(count()).__next__


def test_variants_are_timed_in_turn_after_warm_up() -> None:
    turns = list[str]()
    variants = {name: lambda name=name: turns.append(name) for name in "ab"}
    assert time_in_turn(variants, rounds=2, clock=make_slowing_clock()) == {"a": [5, 9], "b": [7, 11]}
    assert "".join(turns) == "abababab"


def test_median_interval_is_the_narrowest_of_order_statistics() -> None:
    assert compute_median_interval(range(5)) is None
    assert compute_median_interval(range(8)) == (0, 7)
    assert compute_median_interval(range(9)) == (1, 7)
    assert compute_median_interval(range(20)) == (5, 14)


def test_median_interval_covers_the_median_as_often_as_its_level() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = torch.rand(2000, 12, generator=generator).tolist()
    covers = [interval[0] <= 0.5 <= interval[1] for row in draws if (interval := compute_median_interval(row))]
    assert 0.95 <= sum(covers) / len(draws) < 0.97


def test_tensors_saved_twice_count_once_and_weights_do_not_count() -> None:
    layer, x = nn.Linear(4, 8, bias=False), torch.zeros(3, 4, requires_grad=True)
    assert measure_saved_bytes(layer, lambda: layer(x)) == 4 * 3 * 4
    assert measure_saved_bytes(layer, lambda: layer(x) + layer(x[:2]).sum()) == 4 * 3 * 4
    assert measure_saved_bytes(nn.Identity(), lambda: layer(x)) == 4 * (3 * 4 + 4 * 8)
    assert measure_saved_bytes(layer, lambda: layer(x).exp()) == 4 * (3 * 4 + 3 * 8)


def test_saved_bytes_are_measured_inside_no_grad() -> None:
    layer, x = nn.Linear(4, 8, bias=False), torch.zeros(3, 4)
    with torch.no_grad():
        assert measure_saved_bytes(layer, lambda: layer(x)) == 4 * 3 * 4


def test_peak_bytes_are_those_allocated_at_the_same_time() -> None:
    def call() -> int:
        first = torch.zeros(1000)
        second = first.exp()
        del first
        third = second[:100].exp()
        return len(third)

    assert measure_peak_bytes(call) == 4 * 2000
