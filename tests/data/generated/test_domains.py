from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from c2fmae.core.scene import Scene
from c2fmae.data.generated import GeneratedScenes
from c2fmae.data.generated.difficulty import DIFFICULTY_LEVELS, Difficulty
from c2fmae.data.generated.domains import Domain, displace_ground
from c2fmae.data.generated.layout import sample_layout
from c2fmae.data.generated.things import IMPLAUSIBLE_STUFF

pytestmark = pytest.mark.numeric

DOMAINS: tuple[Domain, ...] = get_args(Domain)
seeds = st.integers(0, 2**31)
difficulties = st.sampled_from(get_args(Difficulty))


@settings(max_examples=30)
@given(seeds, st.integers(0, 1023), difficulties)
def test_all_domains_show_the_same_scene(seed: int, index: int, difficulty: Difficulty) -> None:
    scene, *others = (
        GeneratedScenes(size=48, seed=seed, difficulty=difficulty, domain=domain)[index] for domain in DOMAINS
    )
    is_thing = scene.maps["instance"] > 0
    for domain, other in zip(DOMAINS[1:], others, strict=True):
        assert (other.key, other.label) == (scene.key, scene.label)
        assert torch.equal(other.maps["instance"], scene.maps["instance"])
        is_equal = is_thing if domain == "displaced" else torch.ones_like(is_thing)
        assert torch.equal(other.maps["semantic"][is_equal], scene.maps["semantic"][is_equal])
        assert not torch.equal(other.maps["rgb"], scene.maps["rgb"])


@settings(max_examples=20)
@given(seeds, difficulties)
def test_sketches_have_no_colour_and_are_mostly_paper(seed: int, difficulty: Difficulty) -> None:
    rgb = GeneratedScenes(size=96, seed=seed, difficulty=difficulty, domain="sketch")[0].maps["rgb"]
    assert torch.equal(rgb[0], rgb[1])
    assert torch.equal(rgb[0], rgb[2])
    assert (rgb[0] > 200).float().mean() > 0.3
    assert (rgb[0] < 80).float().mean() > 0.01


def test_renditions_have_few_colours() -> None:
    for index in range(6):
        scene = GeneratedScenes(size=96, domain="rendition")[index]
        colours = scene.maps["rgb"].flatten(1).unique(dim=1).shape[1]
        assert colours <= 4 * (int(scene.maps["instance"].max()) + 4)  # four tones for each thing and region


@given(seeds, difficulties)
def test_displaced_things_are_on_implausible_stuff_and_other_regions_are_unchanged(
    seed: int, difficulty: Difficulty
) -> None:
    rng = np.random.default_rng(seed)
    regions, things = sample_layout(rng, DIFFICULTY_LEVELS[difficulty])
    areas = rng.integers(1, 10**6, len(things))
    moved = displace_ground(rng, regions, things, areas)
    for number, (before, after) in enumerate(zip(regions, moved, strict=True)):
        things_on_it = [k for k, thing in enumerate(things) if thing.region_index == number]
        if things_on_it:
            assert after.stuff in IMPLAUSIBLE_STUFF[things[max(things_on_it, key=lambda k: areas[k])].class_name]
        else:
            assert after == before


def is_on_implausible_stuff(scene: Scene) -> bool:
    """Return whether the largest thing has implausible stuff within two pixels below its lowest ones."""
    instance, semantic = scene.maps["instance"], scene.maps["semantic"]
    largest = instance[instance > 0].bincount().argmax()
    rows, columns = (instance == largest).nonzero(as_tuple=True)
    below = semantic[rows.max() + 1 : rows.max() + 3, columns[rows.argmax()]].tolist()
    class_name = GeneratedScenes.labels[scene.label or 0]
    return any(GeneratedScenes.classes[id_] in IMPLAUSIBLE_STUFF[class_name] for id_ in below)


@pytest.mark.parametrize(("domain", "fewest", "most"), [("photo", 0, 9), ("displaced", 80, 100)])
def test_displacement_is_visible_in_the_maps(domain: Domain, fewest: int, most: int) -> None:
    """Not in all scenes: edges are smooth and pixels are not, and some feet are hidden."""
    scenes = GeneratedScenes(size=64, length=100, difficulty="easy", domain=domain)
    assert fewest <= sum(is_on_implausible_stuff(scenes[index]) for index in range(100)) <= most
