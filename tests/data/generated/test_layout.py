from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from c2fmae.data.generated.difficulty import DIFFICULTY_LEVELS, Difficulty
from c2fmae.data.generated.layout import sample_layout
from c2fmae.data.generated.things import IMPLAUSIBLE_STUFF


@pytest.mark.parametrize(
    ("difficulty", "minimum", "maximum"), [("plain", 1, 1), ("easy", 1, 3), ("medium", 2, 6), ("hard", 8, 14)]
)
def test_a_difficulty_determines_the_number_of_things(difficulty: Difficulty, minimum: int, maximum: int) -> None:
    counts = {len(sample_layout(np.random.default_rng(seed), DIFFICULTY_LEVELS[difficulty])[1]) for seed in range(100)}
    assert counts == set(range(minimum, maximum + 1))


@given(st.integers(0, 2**31), st.sampled_from(get_args(Difficulty)))
def test_things_are_sorted_from_back_to_front_and_never_on_implausible_stuff(seed: int, difficulty: Difficulty) -> None:
    regions, things = sample_layout(np.random.default_rng(seed), DIFFICULTY_LEVELS[difficulty])
    assert things == sorted(things, key=lambda thing: thing.position)
    for thing in things:
        y, x = (np.array([coordinate], np.float32) for coordinate in thing.position)
        under = [number for number, region in enumerate(regions) if region.distance(y, x) < 0]
        assert thing.region_index == under[-1]
        assert regions[thing.region_index].stuff not in IMPLAUSIBLE_STUFF[thing.class_name]
