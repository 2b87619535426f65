import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from c2fmae.core.errors import UserError
from c2fmae.core.scene import Scene
from c2fmae.data import GeneratedScenes
from c2fmae.data.drawing import KINDS, STUFF, noise

NUM_STUFF = len(STUFF)
some_scenes = given(st.integers(0, 2**31), st.integers(0, 10**6), st.sampled_from([32, 57, 96]))


def scene_of(seed: int, index: int, size: int) -> Scene:
    return GeneratedScenes(size=size, length=index + 1, seed=seed)[index]


def is_same(one: Scene, other: Scene) -> bool:
    same_maps = all(torch.equal(one.maps[name], other.maps[name]) for name in one.maps)
    return same_maps and (one.key, one.label) == (other.key, other.label)


@settings(max_examples=20)
@some_scenes
def test_maps_have_the_promised_names_shapes_and_types(seed: int, index: int, size: int) -> None:
    scene = scene_of(seed, index, size)
    assert {name: tuple(tensor.shape) for name, tensor in scene.maps.items()} == {
        "semantic": (size, size),
        "instance": (size, size),
        "rgb": (3, size, size),
    }
    assert all(tensor.dtype == torch.uint8 and tensor.is_contiguous() for tensor in scene.maps.values())
    assert scene.key == f"{index:08d}"


@settings(max_examples=40)
@some_scenes
def test_instance_ids_are_contiguous_from_one_and_each_is_of_one_kind(seed: int, index: int, size: int) -> None:
    maps = scene_of(seed, index, size).maps
    ids = set(maps["instance"].unique().tolist()) - {0}
    assert ids == set(range(1, len(ids) + 1))
    assert 1 <= len(ids) <= 6
    for number in ids:
        (kind,) = maps["semantic"][maps["instance"] == number].unique().tolist()
        assert NUM_STUFF <= kind < NUM_STUFF + len(KINDS)


@settings(max_examples=40)
@some_scenes
def test_a_pixel_is_stuff_exactly_where_no_instance_is(seed: int, index: int, size: int) -> None:
    maps = scene_of(seed, index, size).maps
    assert torch.equal(maps["semantic"] < NUM_STUFF, maps["instance"] == 0)
    assert len(maps["semantic"][maps["instance"] == 0].unique()) <= 4


@settings(max_examples=40)
@some_scenes
def test_the_label_is_the_kind_of_the_thing_that_shows_most(seed: int, index: int, size: int) -> None:
    scene = scene_of(seed, index, size)
    areas = np.bincount(scene.maps["instance"].numpy().ravel())
    areas[0] = 0
    largest = {
        scene.maps["semantic"][scene.maps["instance"] == number].unique().item() - NUM_STUFF
        for number in np.flatnonzero(areas == areas.max())
    }
    assert scene.label in largest


def test_scenes_depend_on_seed_and_index_but_not_on_the_order_they_are_asked_for() -> None:
    forwards = [GeneratedScenes(size=48, length=6)[index] for index in range(6)]
    scenes = GeneratedScenes(size=48, length=9)
    backwards = [scenes[index] for index in reversed(range(6))][::-1]
    assert all(map(is_same, forwards, backwards))


def test_other_seeds_and_other_indices_are_other_scenes() -> None:
    scenes = [GeneratedScenes(size=48, seed=seed)[index] for seed in range(3) for index in range(4)]
    assert len({scene.maps["rgb"].numpy().tobytes() for scene in scenes}) == len(scenes)


def test_a_scene_is_the_same_at_every_size() -> None:
    for index in range(8):
        small, large = (GeneratedScenes(size=size)[index].maps["semantic"] for size in (64, 192))
        assert (small == large[1::3, 1::3]).float().mean() > 0.995  # the middle one of 3 × 3 pixels


def test_every_class_and_every_label_turns_up() -> None:
    scenes = GeneratedScenes(size=32, length=300)
    seen: set[int] = set()
    labels: set[int | None] = set()
    for index in range(len(scenes)):
        scene = scenes[index]
        seen |= set(scene.maps["semantic"].unique().tolist())
        labels.add(scene.label)
    assert seen == set(range(len(scenes.classes)))
    assert labels == set(range(len(scenes.labels)))
    assert scenes.classes == (*STUFF, *scenes.labels)


def test_what_is_painted_follows_the_maps() -> None:
    """Colours jump where an id ends: the photo and the maps tell of the same outlines."""
    across_borders, elsewhere = [], []
    for index in range(20):
        maps = GeneratedScenes(size=96)[index].maps
        steps = maps["rgb"].float().diff(dim=2).abs().sum(0)
        is_border = maps["instance"].diff(dim=1) != 0
        across_borders.append(steps[is_border])
        elsewhere.append(steps[~is_border])
    assert torch.cat(across_borders).mean() > 3 * torch.cat(elsewhere).mean()


@given(st.integers(0, 99), st.integers(1, 9), st.integers(1, 9), st.integers(1, 4))
def test_noise_stays_between_0_and_1(seed: int, rows: int, columns: int, octaves: int) -> None:
    axis = (np.arange(16, dtype=np.float32) + 0.5) / 16
    values = noise(np.random.default_rng(seed), axis, axis, rows, columns, octaves)
    assert values.dtype == np.float32
    assert values.min() >= 0
    assert values.max() <= 1 + 1e-6


@pytest.mark.parametrize("index", [3, -1])
def test_an_index_beyond_the_length_is_an_index_error(index: int) -> None:
    with pytest.raises(IndexError, match=rf"^scene {index} of 3$"):
        GeneratedScenes(length=3)[index]


def test_scenes_too_small_to_show_things_are_refused() -> None:
    with pytest.raises(UserError, match=re.escape("size: generated scenes need at least 32 pixels, got 31")):
        GeneratedScenes(size=31)
