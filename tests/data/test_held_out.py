"""Division of scenes into those to train on and those to hold out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from c2fmae.core.errors import UserError
from c2fmae.data.combine import SubsetScenes
from c2fmae.data.generated import GeneratedScenes
from c2fmae.data.held_out import split_held_out


@given(st.integers(2, 60), st.floats(0.01, 0.5), st.floats(0.01, 0.5))
def test_the_division_depends_on_keys_alone_and_grows_with_the_fraction(length: int, one: float, other: float) -> None:
    scenes = GeneratedScenes(length=length)
    train, held_out = split_held_out(scenes, one)
    assert sorted([*train.keys, *held_out.keys]) == list(scenes.keys)
    assert len(held_out) == max(1, round(one * length))
    assert train[0].key == train.keys[0]
    smaller, larger = (set(split_held_out(scenes, fraction)[1].keys) for fraction in sorted((one, other)))
    assert smaller <= larger


def test_the_held_out_scenes_are_those_of_the_smallest_digests() -> None:
    _, held_out = split_held_out(GeneratedScenes(length=20), 0.2)
    assert list(held_out.keys) == ["00000012", "00000015", "00000017", "00000018"]


def test_nothing_left_to_train_on_is_an_error() -> None:
    scenes = SubsetScenes(GeneratedScenes(length=1))
    with pytest.raises(UserError, match=r"^data\.held_out: 0\.1 of 1 scenes leaves none to train on"):
        split_held_out(scenes, 0.1)
