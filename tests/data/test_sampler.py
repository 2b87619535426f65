import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from c2fmae.data.sampler import DataPosition, Sampler
from tests.data.dataset_files import assert_user_error


@st.composite
def samplers(draw: st.DrawFn) -> Sampler:
    """Any sampler of one process."""
    repeats, groups = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    batch = repeats * groups
    return Sampler(
        num_samples=draw(st.integers(batch, 60)), batch_size=batch, seed=draw(st.integers(0, 99)), repeats=repeats
    )


@given(samplers(), st.integers(0, 5))
def test_an_epoch_has_as_many_draws_as_there_are_samples_and_none_twice(sampler: Sampler, epoch: int) -> None:
    draws = sampler.epoch_draws(epoch)
    assert len({tuple(draw) for draw in draws.tolist()}) == len(draws) == sampler.num_samples
    counts = np.bincount(draws[:, 0], minlength=sampler.num_samples)
    assert counts.max() == sampler.repeats
    assert (counts > 0).sum() == -(-sampler.num_samples // sampler.repeats)
    assert np.array_equal(draws, sampler.epoch_draws(epoch))


@given(samplers())
def test_the_repetitions_of_a_sample_are_in_one_batch(sampler: Sampler) -> None:
    for _, draws in sampler.iterate_batches(DataPosition(), 2):
        indices, copies = draws.T.tolist()
        assert sorted(zip(indices, copies, strict=True)) == [
            (index, copy) for index in sorted(set(indices)) for copy in range(sampler.repeats)
        ]


@given(samplers(), st.data())
def test_a_run_goes_on_from_any_position_as_if_it_had_not_stopped(sampler: Sampler, data: st.DataObject) -> None:
    whole = list(sampler.iterate_batches(DataPosition(), 3))
    assert len(whole) == 3 * len(sampler)
    done = data.draw(st.integers(0, len(whole)))
    position = DataPosition()
    for _ in range(done):
        position = sampler.next_position(position)
    rest = list(sampler.iterate_batches(position, 3))
    assert [epoch for epoch, _ in rest] == [epoch for epoch, _ in whole[done:]]
    assert all(np.array_equal(ours, theirs) for (_, ours), (_, theirs) in zip(rest, whole[done:], strict=True))


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_global_batches_are_the_same_for_every_number_of_ranks(world_size: int) -> None:
    def batches(rank: int, world_size: int) -> list[np.ndarray]:
        sampler = Sampler(num_samples=43, batch_size=8, seed=1, rank=rank, world_size=world_size)
        return [draws for _, draws in sampler.iterate_batches(DataPosition(1, 2), 3)]

    alone = batches(0, 1)
    together = zip(*(batches(rank, world_size) for rank in range(world_size)), strict=True)
    for batch, parts in zip(alone, together, strict=True):
        assert np.array_equal(batch, np.concatenate(parts))
        assert {len(part) for part in parts} == {8 // world_size}


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = {
        tuple(Sampler(num_samples=50, batch_size=5, seed=seed).epoch_draws(epoch)[:, 0].tolist())
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert len(orders) == 4


def test_in_order_every_sample_comes_once_and_the_last_batch_is_what_is_left() -> None:
    sampler = Sampler(num_samples=10, batch_size=4, shuffle=False)
    assert [draws[:, 0].tolist() for _, draws in sampler.iterate_batches(DataPosition(), 1)] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9],
    ]


def test_a_position_that_is_not_there_is_refused() -> None:
    sampler = Sampler(num_samples=10, batch_size=4)
    advice = "Resume with the data and the batch size of before"
    message = f"position: 3 batches of epoch 1 are said to be done, of 2. {advice}"
    assert_user_error(lambda: next(sampler.iterate_batches(DataPosition(1, 3), 5)), message)
    at_the_end = [place for place, _ in sampler.iterate_batches(DataPosition(0, 2), 2)]
    assert at_the_end == [DataPosition(1, 0), DataPosition(1, 1)]


def test_batches_that_cannot_be_made_are_refused() -> None:
    assert_user_error(lambda: Sampler(num_samples=9, batch_size=0), "batch_size: expected at least 1, got 0")
    assert_user_error(
        lambda: Sampler(num_samples=9, batch_size=2, world_size=0), "world_size: expected at least 1, got 0"
    )
    assert_user_error(lambda: Sampler(num_samples=9, batch_size=2, rank=1), "rank: expected 0 to 0, got 1")
    message = "repeats: in order, for evaluation, every sample comes once"
    assert_user_error(lambda: Sampler(num_samples=9, batch_size=2, repeats=2, shuffle=False), message)
    assert_user_error(
        lambda: Sampler(num_samples=9, batch_size=6, world_size=4), "batch_size: 6 cannot be divided among 4 processes"
    )
    assert_user_error(
        lambda: Sampler(num_samples=9, batch_size=16), "batch_size: 16 is more than the 9 samples that there are"
    )
    assert_user_error(
        lambda: Sampler(num_samples=9, batch_size=8, repeats=3), "repeats: 3 does not divide the batch size, 8"
    )
