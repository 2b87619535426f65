"""RandAugment and random erasing: functions of a sample's own noise that leave its maps unchanged."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform

from c2fmae.core.errors import UserError
from c2fmae.core.scene import Scene
from c2fmae.data import CentralView
from c2fmae.data.augment import GEOMETRIC_OPS, AugmentedView, random_erase, seeded_global_rngs
from c2fmae.data.generated import GeneratedScenes

pytestmark = pytest.mark.numeric

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.2, 0.2)
SCENES = GeneratedScenes(size=32, length=4)
IMAGE_SCENE = Scene("a", {"rgb": SCENES[0].maps["rgb"]}, 1)
VIEW = CentralView(size=(32, 32))


def build_view(rand_augment: str | None = "rand-m9-mstd0.5-inc1", erasing: float = 0.0) -> AugmentedView:
    return AugmentedView(view=VIEW, rand_augment=rand_augment, erase_prob=erasing, mean=MEAN, std=STD)


def augment_image(augment: AugmentedView, scene: Scene = IMAGE_SCENE, seed: int = 0) -> torch.Tensor:
    return augment(scene, np.random.default_rng(seed)).maps["rgb"]


def test_an_image_depends_only_on_its_noise_and_global_generators_are_unchanged() -> None:
    augment = build_view(erasing=0.5)
    before = np.random.get_state()[1].tolist()  # type: ignore[index]
    first = [augment_image(augment, seed=seed) for seed in range(20)]
    assert np.random.get_state()[1].tolist() == before  # type: ignore[index]
    random.seed(1)
    np.random.seed(1)
    assert all(torch.equal(augment_image(augment, seed=seed), image) for seed, image in enumerate(first))
    assert len({image.numpy().tobytes() for image in first}) > 10
    assert all(image.dtype == torch.uint8 and image.shape == (3, 32, 32) for image in first)


def test_seeded_draws_leave_the_global_generators_unchanged() -> None:
    """Python's generator is tested only here, since shape checks draw from it at every call."""
    before = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
    with seeded_global_rngs(3):
        drawn = random.random(), np.random.rand()
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # type: ignore[index]
    with seeded_global_rngs(3):
        assert (random.random(), np.random.rand()) == drawn


def test_rand_augment_equals_that_of_timm() -> None:
    hparams = {
        "translate_const": 100,
        "img_mean": tuple(round(255 * value) for value in MEAN),
        "interpolation": Image.Resampling.BICUBIC,
    }
    theirs = rand_augment_transform("rand-m9-mstd0.5-inc1", dict(hparams))
    for seed in range(10):
        noise = int(np.random.default_rng(seed).integers(1 << 32))
        with seeded_global_rngs(noise):
            expected = theirs(Image.fromarray(IMAGE_SCENE.maps["rgb"].permute(1, 2, 0).numpy()))
        assert np.array_equal(np.asarray(expected), augment_image(build_view(), seed=seed).permute(1, 2, 0).numpy())


def test_scenes_with_maps_get_no_geometric_operation() -> None:
    """The edge between a dark and a bright half stays where it is; only colours change."""
    image = torch.zeros(3, 32, 32, dtype=torch.uint8)
    image[:, :, 16:] = 200
    ids = (image[0] > 0).to(torch.uint8)
    scene = Scene("a", {"semantic": ids, "rgb": image}, 0)
    augment, moved = build_view("rand-m9-n5-inc1"), 0
    for seed in range(60):
        sample = augment(scene, np.random.default_rng(seed))
        assert torch.equal(sample.maps["semantic"], ids)
        row = sample.maps["rgb"][:, 5].float()
        assert (row[:, :14] == row[:, :1]).all()
        assert (row[:, 18:] == row[:, -1:]).all()
        unmapped = augment(Scene("a", {"rgb": image}, 0), np.random.default_rng(seed)).maps["rgb"][:, 5].float()
        moved += not (unmapped[:, :14] == unmapped[:, :1]).all() or not (unmapped[:, 18:] == unmapped[:, -1:]).all()
    assert moved > 10
    assert {op.name for op in augment._photometric_transform.ops}.isdisjoint(GEOMETRIC_OPS)  # type: ignore[attr-defined]
    assert {op.name for op in augment._any_transform.ops} >= set(GEOMETRIC_OPS)  # type: ignore[attr-defined]


def test_an_erased_part_is_a_rectangle_of_noise_with_the_given_mean() -> None:
    grey = torch.full((3, 40, 30), 7, dtype=torch.uint8)
    areas, values = [], []
    for seed in range(300):
        erased = random_erase(grey, np.random.default_rng(seed), mean=MEAN, std=STD)
        changed = (erased != 7).any(dim=0)
        rows, columns = changed.any(dim=1).nonzero(), changed.any(dim=0).nonzero()
        area = len(rows) * len(columns)
        assert int(changed.sum()) > 0.9 * area  # noise that happens to be 7 in all channels is rare
        areas.append(area / 1200)
        values.append(erased[:, changed].double())
    assert 0.015 < min(areas) < 0.04
    assert 0.28 < max(areas) <= 0.36
    mean = torch.cat(values, dim=1).mean(dim=1) / 255
    torch.testing.assert_close(mean, torch.tensor(MEAN, dtype=torch.double), atol=0.02, rtol=0)
    assert (grey == 7).all()


def test_images_are_erased_with_the_given_probability() -> None:
    scene = Scene("a", {"rgb": torch.full((3, 32, 32), 7, dtype=torch.uint8)}, 0)
    augment = build_view(None, erasing=0.25)
    hits = sum(bool((augment_image(augment, scene, seed) != 7).any()) for seed in range(800))
    assert hits / 800 == pytest.approx(0.25, abs=0.05)
    assert not any((augment_image(build_view(None), scene, seed) != 7).any() for seed in range(20))


def test_invalid_rand_augment_options_are_refused() -> None:
    with pytest.raises(UserError) as caught:
        augment_image(build_view("rand-z9"))
    assert str(caught.value) == "rand_augment: expected timm's format, such as rand-m9-mstd0.5-inc1, got 'rand-z9'"
    with pytest.raises(UserError) as caught:
        augment_image(build_view(), Scene("a", {"rgb": IMAGE_SCENE.maps["rgb"][:1]}, 0))
    assert str(caught.value) == "rand_augment: expected images of 3 channels, got 1. Set it to null"
