import pickle
import re
from dataclasses import fields
from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from c2fmae.core.errors import UserError
from c2fmae.core.scene import Scene
from c2fmae.core.seeding import derive_seed
from c2fmae.data.generated import GeneratedScenes
from c2fmae.data.generated.difficulty import DIFFICULTY_LEVELS, Difficulty
from c2fmae.data.generated.domains import Domain
from c2fmae.data.generated.layout import sample_layout
from c2fmae.data.generated.stuff import STUFF
from c2fmae.data.generated.things import THING_PARTS

pytestmark = pytest.mark.numeric

NUM_STUFF = len(STUFF)
DOMAINS: tuple[Domain, ...] = get_args(Domain)
some_scenes = given(
    st.builds(
        GeneratedScenes,
        size=st.sampled_from([32, 57, 96]),
        length=st.integers(1, 10**6),
        seed=st.integers(0, 2**31),
        difficulty=st.sampled_from(get_args(Difficulty)),
        domain=st.sampled_from(DOMAINS),
    )
)


def last(scenes: GeneratedScenes) -> Scene:
    """Return the last scene: in the strategy, shape checks would read random items."""
    return scenes[len(scenes) - 1]


def is_same(one: Scene, other: Scene) -> bool:
    same_maps = all(torch.equal(one.maps[name], other.maps[name]) for name in one.maps)
    return same_maps and (one.key, one.label) == (other.key, other.label)


@settings(max_examples=30)
@some_scenes
def test_maps_have_the_documented_names_shapes_and_types(scenes: GeneratedScenes) -> None:
    scene = last(scenes)
    size = len(scene.maps["semantic"])
    assert {name: tuple(tensor.shape) for name, tensor in scene.maps.items()} == {
        "semantic": (size, size),
        "instance": (size, size),
        "rgb": (3, size, size),
    }
    assert all(tensor.dtype == torch.uint8 and tensor.is_contiguous() for tensor in scene.maps.values())
    assert re.fullmatch(r"\d{8}", scene.key)


@settings(max_examples=60)
@some_scenes
def test_instance_ids_are_contiguous_from_1_and_each_has_one_class(scenes: GeneratedScenes) -> None:
    scene = last(scenes)
    ids = set(scene.maps["instance"].unique().tolist()) - {0}
    assert ids == set(range(1, len(ids) + 1))
    assert 1 <= len(ids) <= 14
    for number in ids:
        (class_id,) = scene.maps["semantic"][scene.maps["instance"] == number].unique().tolist()
        assert NUM_STUFF <= class_id < NUM_STUFF + len(THING_PARTS)


def test_completely_hidden_things_have_no_id() -> None:
    num_hidden = 0
    for seed in range(40):
        instance = GeneratedScenes(size=32, seed=seed, difficulty="hard")[0].maps["instance"]
        ids = instance.unique().tolist()
        assert ids == list(range(len(ids)))
        rng = np.random.default_rng(derive_seed(seed, "scene", 0))
        num_hidden += len(sample_layout(rng, DIFFICULTY_LEVELS["hard"])[1]) - (len(ids) - 1)
    assert num_hidden > 0


@settings(max_examples=60)
@some_scenes
def test_a_pixel_is_stuff_if_and_only_if_it_has_no_instance(scenes: GeneratedScenes) -> None:
    scene = last(scenes)
    semantic, instance = scene.maps["semantic"], scene.maps["instance"]
    assert torch.equal(semantic < NUM_STUFF, instance == 0)
    assert len(semantic[instance == 0].unique()) <= 4


@settings(max_examples=60)
@some_scenes
def test_the_label_is_the_class_of_the_largest_visible_thing(scenes: GeneratedScenes) -> None:
    scene = last(scenes)
    areas = np.bincount(scene.maps["instance"].numpy().ravel())
    areas[0] = 0
    largest = {
        scene.maps["semantic"][scene.maps["instance"] == number].unique().item() - NUM_STUFF
        for number in np.flatnonzero(areas == areas.max())
    }
    assert scene.label in largest


@pytest.mark.parametrize("domain", DOMAINS)
def test_scenes_do_not_depend_on_the_order_of_access(domain: Domain) -> None:
    ascending = [GeneratedScenes(size=48, length=6, domain=domain)[index] for index in range(6)]
    scenes = GeneratedScenes(size=48, length=9, domain=domain)
    descending = [scenes[index] for index in reversed(range(6))][::-1]
    assert all(map(is_same, ascending, descending))


def test_scenes_are_the_same_after_pickling() -> None:
    for domain in DOMAINS:
        scenes = GeneratedScenes(size=48, seed=5, difficulty="hard", domain=domain)
        assert is_same(pickle.loads(pickle.dumps(scenes))[3], scenes[3])


def test_scenes_differ_by_seed_and_index() -> None:
    scenes = [GeneratedScenes(size=48, seed=seed)[index] for seed in range(3) for index in range(4)]
    assert len({scene.maps["rgb"].numpy().tobytes() for scene in scenes}) == len(scenes)


@pytest.mark.parametrize("difficulty", get_args(Difficulty))
@pytest.mark.parametrize(("size", "times", "max_difference"), [(64, 3, 6), (32, 7, 11)])
def test_a_scene_is_the_same_at_every_size(
    difficulty: Difficulty, size: int, times: int, max_difference: float
) -> None:
    num_other_labels = 0
    for index in range(12):
        small, large = (GeneratedScenes(size=s, difficulty=difficulty)[index] for s in (size, size * times))
        middles = large.maps["semantic"][times // 2 :: times, times // 2 :: times]  # of times × times pixels
        assert (small.maps["semantic"] == middles).float().mean() > 0.999
        num_other_labels += small.label != large.label
        colours = [F.adaptive_avg_pool2d(scene.maps["rgb"].float(), 16) for scene in (small, large)]
        assert (colours[0] - colours[1]).abs().mean() < max_difference  # of 255
    assert num_other_labels <= 1  # two things may have about the same visible area


def test_all_classes_and_labels_occur_and_no_label_dominates() -> None:
    scenes = GeneratedScenes(size=32, length=600)
    all_scenes = [scenes[index] for index in range(len(scenes))]
    class_ids = torch.stack([scene.maps["semantic"] for scene in all_scenes]).unique().tolist()
    assert class_ids == list(range(len(scenes.classes)))
    frequencies = np.bincount([scene.label or 0 for scene in all_scenes]) / len(all_scenes)
    assert len(frequencies) == len(scenes.labels)
    assert frequencies.min() > 0.04
    assert frequencies.max() < 0.15
    assert scenes.classes == (*STUFF, *scenes.labels)


def test_the_largest_thing_is_smaller_in_harder_scenes() -> None:
    fractions = []
    for difficulty in get_args(Difficulty):
        scenes = GeneratedScenes(size=64, length=60, difficulty=difficulty)
        instances = [scenes[index].maps["instance"] for index in range(60)]
        fractions.append(np.mean([instance[instance > 0].bincount().max() / 64**2 for instance in instances]))
    assert fractions == sorted(fractions, reverse=True)
    assert fractions[0] > 3 * fractions[-1]


def test_colours_change_at_the_borders_of_the_maps() -> None:
    across_borders, elsewhere = [], []
    for index in range(20):
        maps = GeneratedScenes(size=96)[index].maps
        steps = maps["rgb"].float().diff(dim=2).abs().sum(0)
        is_border = maps["instance"].diff(dim=1) != 0
        across_borders.append(steps[is_border])
        elsewhere.append(steps[~is_border])
    assert torch.cat(across_borders).mean() > 3 * torch.cat(elsewhere).mean()


@pytest.mark.parametrize("index", [3, -1])
def test_an_index_out_of_range_is_an_index_error(index: int) -> None:
    with pytest.raises(IndexError, match=rf"^scene {index} of 3$"):
        GeneratedScenes(length=3)[index]


def test_too_small_scenes_are_refused() -> None:
    with pytest.raises(UserError, match=re.escape("size: generated scenes need at least 32 pixels, got 31")):
        GeneratedScenes(size=31)


@pytest.mark.parametrize(
    ("option", "unknown", "message"),
    [
        ("difficulty", "hart", "no difficulty named 'hart'. Did you mean 'hard'? Known: easy, hard, medium, plain"),
        (
            "domain",
            "sketches",
            f"no domain named 'sketches'. Did you mean 'sketch'? Known: {', '.join(sorted(get_args(Domain)))}",
        ),
    ],
)
def test_unknown_difficulties_and_domains_are_refused(option: str, unknown: str, message: str) -> None:
    # With shape checks, jaxtyping raises a TypeError first.
    with pytest.raises((UserError, TypeError), match=f"^{re.escape(message)}$|Actual value: '{unknown}'"):
        GeneratedScenes(**{option: unknown})  # type: ignore[arg-type]


def test_new_options_come_after_the_old_ones() -> None:
    names = [field.name for field in fields(GeneratedScenes)]
    assert names[:5] == ["size", "length", "seed", "difficulty", "domain"]
