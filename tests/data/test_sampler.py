from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from c2fmae.data.sampler import (
    DataPosition,
    SampleDraws,
    Sampler,
    SampleSizes,
    SizePredictor,
    sample_generator,
    split_by_size,
)
from tests.data.dataset_files import assert_user_error


@st.composite
def samplers(draw: st.DrawFn) -> Sampler:
    """Draw a sampler of one process."""
    repeats, groups = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    batch = repeats * groups
    return Sampler(
        num_samples=draw(st.integers(batch, 60)), batch_size=batch, seed=draw(st.integers(0, 99)), repeats=repeats
    )


@given(samplers(), st.integers(0, 5))
def test_an_epoch_has_one_distinct_draw_per_sample(sampler: Sampler, epoch: int) -> None:
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
def test_batches_after_a_position_do_not_depend_on_a_restart(sampler: Sampler, data: st.DataObject) -> None:
    batches = list(sampler.iterate_batches(DataPosition(), 3))
    assert len(batches) == 3 * len(sampler)
    done = data.draw(st.integers(0, len(batches)))
    position = DataPosition()
    for _ in range(done):
        position = sampler.next_position(position)
    rest = list(sampler.iterate_batches(position, 3))
    assert [epoch for epoch, _ in rest] == [epoch for epoch, _ in batches[done:]]
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(rest, batches[done:], strict=True))


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_global_batches_are_the_same_for_every_number_of_ranks(world_size: int) -> None:
    def batches(rank: int, world_size: int) -> list[np.ndarray]:
        sampler = Sampler(num_samples=43, batch_size=8, seed=1, rank=rank, world_size=world_size)
        return [draws for _, draws in sampler.iterate_batches(DataPosition(1, 2), 3)]

    global_batches = batches(0, 1)
    rank_batches = zip(*(batches(rank, world_size) for rank in range(world_size)), strict=True)
    for batch, parts in zip(global_batches, rank_batches, strict=True):
        assert np.array_equal(batch, np.concatenate(parts))
        assert {len(part) for part in parts} == {8 // world_size}


def test_epochs_and_seeds_have_different_orders() -> None:
    orders = {
        tuple(Sampler(num_samples=50, batch_size=5, seed=seed).epoch_draws(epoch)[:, 0].tolist())
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert len(orders) == 4


def test_without_shuffle_every_sample_is_drawn_once_and_the_last_batch_is_smaller() -> None:
    sampler = Sampler(num_samples=10, batch_size=4, shuffle=False)
    assert [draws[:, 0].tolist() for _, draws in sampler.iterate_batches(DataPosition(), 1)] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9],
    ]


def test_a_position_after_the_end_of_an_epoch_is_refused() -> None:
    sampler = Sampler(num_samples=10, batch_size=4)
    message = "position: expected at most 2 batches of epoch 1, got 3. Resume with the same data and batch size"
    assert_user_error(lambda: next(sampler.iterate_batches(DataPosition(1, 3), 5)), message)
    at_the_end = [position for position, _ in sampler.iterate_batches(DataPosition(0, 2), 2)]
    assert at_the_end == [DataPosition(1, 0), DataPosition(1, 1)]


def test_invalid_samplers_are_refused() -> None:
    assert_user_error(lambda: Sampler(num_samples=9, batch_size=0), "batch_size: expected at least 1, got 0")
    assert_user_error(
        lambda: Sampler(num_samples=9, batch_size=2, world_size=0), "world_size: expected at least 1, got 0"
    )
    assert_user_error(lambda: Sampler(num_samples=9, batch_size=2, rank=1), "rank: expected 0 to 0, got 1")
    message = "predict_sizes: expected shuffle and repeats=1, since batches are made by size"
    grouped = Sampler(num_samples=9, batch_size=2, predict_sizes=draw_sizes)
    assert_user_error(lambda: replace(grouped, shuffle=False), message)
    assert_user_error(lambda: replace(grouped, repeats=2), message)
    message = "repeats: expected 1 without shuffle, got 2"
    assert_user_error(lambda: Sampler(num_samples=9, batch_size=2, repeats=2, shuffle=False), message)
    assert_user_error(
        lambda: Sampler(num_samples=9, batch_size=6, world_size=4),
        "batch_size: expected a multiple of the 4 processes, got 6",
    )
    assert_user_error(
        lambda: Sampler(num_samples=9, batch_size=16), "batch_size: expected at most the 9 samples of the data, got 16"
    )
    assert_user_error(
        lambda: Sampler(num_samples=9, batch_size=8, repeats=3),
        "repeats: expected a divisor of the batch size 8, got 3",
    )


def draw_sizes(epoch: int, draws: SampleDraws) -> SampleSizes:
    """Return sizes like those of resized images: landscape and portrait, at several scales."""
    sides = np.array([sample_generator(7, epoch, index, 0).integers((48, 60), (80, 90)) for index, _ in draws.tolist()])
    is_portrait = draws[:, :1] % 4 == 0
    return np.where(is_portrait, sides[:, ::-1], sides)


def measure_padding(sizes: SampleSizes, batch_size: int) -> float:
    """Return the share of padding if batches are padded to their largest height and width."""
    batches = sizes[: len(sizes) // batch_size * batch_size].reshape(-1, batch_size, 2)
    padded = batches.max(axis=1).prod(axis=1).sum() * batch_size
    return float(1 - batches.prod(axis=2).sum() / padded)


def make_grouped_sampler(num_samples: int, rank: int = 0, world_size: int = 1, seed: int = 5) -> Sampler:
    return Sampler(
        num_samples=num_samples,
        batch_size=8,
        seed=seed,
        rank=rank,
        world_size=world_size,
        predict_sizes=draw_sizes,
    )


@pytest.mark.parametrize("num_samples", [8, 15, 600, 1100])
def test_batches_by_size_hold_the_samples_of_the_epoch_with_little_padding(num_samples: int) -> None:
    sampler = make_grouped_sampler(num_samples)
    plain = Sampler(num_samples=num_samples, batch_size=8, seed=5)
    for epoch in (0, 1):
        draws, shuffled = sampler.epoch_draws(epoch), plain.epoch_draws(epoch)
        for first in range(0, num_samples, 64 * 8):
            group = slice(first, min(first + 64 * 8, num_samples // 8 * 8))
            assert sorted(draws[group].tolist()) == sorted(shuffled[group].tolist())
        assert np.array_equal(draws[num_samples // 8 * 8 :], shuffled[num_samples // 8 * 8 :])
        if num_samples > 15:
            padding = [measure_padding(draw_sizes(epoch, each), 8) for each in (draws, shuffled)]
            assert padding[0] < 0.12 < 0.3 < padding[1]
    assert not np.array_equal(sampler.epoch_draws(0), sampler.epoch_draws(1))


def test_batches_by_size_have_a_random_order() -> None:
    sampler = make_grouped_sampler(512)
    sizes = draw_sizes(0, sampler.epoch_draws(0)).reshape(-1, 8, 2).mean(axis=1)
    assert np.abs(np.corrcoef(np.arange(64), sizes[:, 0])[0, 1]) < 0.3
    assert (
        len({tuple(sampler.epoch_draws(0)[:, 0]), tuple(make_grouped_sampler(512, seed=6).epoch_draws(0)[:, 0])}) == 2
    )


@pytest.mark.parametrize("world_size", [2, 4])
def test_batches_by_size_are_the_same_for_every_number_of_ranks_and_after_a_restart(world_size: int) -> None:
    def batches(rank: int, world_size: int, start: DataPosition) -> list[np.ndarray]:
        sampler = make_grouped_sampler(91, rank, world_size)
        return [draws for _, draws in sampler.iterate_batches(start, 2)]

    start = DataPosition(0, 3)
    expected = batches(0, 1, DataPosition())[3:]
    ranks = [batches(rank, world_size, start) for rank in range(world_size)]
    assert len(expected) == 2 * 11 - 3
    for batch, parts in zip(expected, zip(*ranks, strict=True), strict=True):
        assert np.array_equal(batch, np.concatenate(parts))


def test_samples_are_split_where_their_sides_differ_most() -> None:
    sizes = np.array([[10, 90], [90, 10], [11, 90], [10, 60], [90, 11], [60, 10], [10, 61], [61, 10]])
    batches = split_by_size(sizes, 2).reshape(-1, 2).tolist()
    assert sorted(map(sorted, batches)) == [[0, 2], [1, 4], [3, 6], [5, 7]]


def test_predicted_sizes_are_those_of_the_views() -> None:
    def draw_size(image_size: tuple[int, int], rng: np.random.Generator) -> tuple[int, int]:
        return image_size[0] + int(rng.integers(1000)), image_size[1]

    draws = np.array([[2, 0], [0, 0], [2, 1]])
    sizes = SizePredictor(draw_size, np.array([[1000, 1], [2000, 2], [3000, 3]]), seed=4)(6, draws)
    expected = [
        sample_generator(4, 6, index, copy).integers(1000) + 1000 * (index + 1) for index, copy in draws.tolist()
    ]
    assert sizes.tolist() == [[expected[0], 3], [expected[1], 1], [expected[2], 3]]
