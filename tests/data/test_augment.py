"""RandAugment and erasing: functions of a sample's own noise that leave maps where they are."""

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
PHOTO = Scene("a", {"rgb": SCENES[0].maps["rgb"]}, 1)
VIEW = CentralView(size=(32, 32))


def augmented(rand_augment: str | None = "rand-m9-mstd0.5-inc1", erasing: float = 0.0) -> AugmentedView:
    return AugmentedView(view=VIEW, rand_augment=rand_augment, erase_prob=erasing, mean=MEAN, std=STD)


def take(augment: AugmentedView, scene: Scene = PHOTO, seed: int = 0) -> torch.Tensor:
    return augment(scene, np.random.default_rng(seed)).maps["rgb"]


def test_a_photo_is_changed_by_its_noise_alone_and_global_generators_stay_as_they_were() -> None:
    augment = augmented(erasing=0.5)
    before = np.random.get_state()[1].tolist()  # type: ignore[index]
    first = [take(augment, seed=seed) for seed in range(20)]
    assert np.random.get_state()[1].tolist() == before  # type: ignore[index]
    random.seed(1)
    np.random.seed(1)
    assert all(torch.equal(take(augment, seed=seed), each) for seed, each in enumerate(first))
    assert len({each.numpy().tobytes() for each in first}) > 10
    assert all(each.dtype == torch.uint8 and each.shape == (3, 32, 32) for each in first)


def test_what_was_drawn_by_a_seed_leaves_no_trace_in_global_generators() -> None:
    """Python's is looked at here alone: in the run with shape checks, these draw from it at every call."""
    before = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
    with seeded_global_rngs(3):
        drawn = random.random(), np.random.rand()
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # type: ignore[index]
    with seeded_global_rngs(3):
        assert (random.random(), np.random.rand()) == drawn


def test_it_is_timms_rand_augment() -> None:
    """The same seed, photo and words: the same pixels."""
    hparams = {
        "translate_const": 100,
        "img_mean": tuple(round(255 * each) for each in MEAN),
        "interpolation": Image.Resampling.BICUBIC,
    }
    theirs = rand_augment_transform("rand-m9-mstd0.5-inc1", dict(hparams))
    for seed in range(10):
        noise = int(np.random.default_rng(seed).integers(1 << 32))
        with seeded_global_rngs(noise):
            expected = theirs(Image.fromarray(PHOTO.maps["rgb"].permute(1, 2, 0).numpy()))
        assert np.array_equal(np.asarray(expected), take(augmented(), seed=seed).permute(1, 2, 0).numpy())


def test_where_there_are_maps_nothing_is_moved() -> None:
    """A photo whose halves are black and white keeps its edge where it is, whatever happens to its colours."""
    photo = torch.zeros(3, 32, 32, dtype=torch.uint8)
    photo[:, :, 16:] = 200
    ids = (photo[0] > 0).to(torch.uint8)
    scene = Scene("a", {"semantic": ids, "rgb": photo}, 0)
    augment, moved = augmented("rand-m9-n5-inc1"), 0
    for seed in range(60):
        sample = augment(scene, np.random.default_rng(seed))
        assert torch.equal(sample.maps["semantic"], ids)
        row = sample.maps["rgb"][:, 5].float()
        assert (row[:, :14] == row[:, :1]).all()
        assert (row[:, 18:] == row[:, -1:]).all()
        alone = augment(Scene("a", {"rgb": photo}, 0), np.random.default_rng(seed)).maps["rgb"][:, 5].float()
        moved += not (alone[:, :14] == alone[:, :1]).all() or not (alone[:, 18:] == alone[:, -1:]).all()
    assert moved > 10
    assert {op.name for op in augment._photometric_transform.ops}.isdisjoint(GEOMETRIC_OPS)  # type: ignore[attr-defined]
    assert {op.name for op in augment._any_transform.ops} >= set(GEOMETRIC_OPS)  # type: ignore[attr-defined]


def test_an_erased_part_is_a_rectangle_of_noise_like_the_photos() -> None:
    grey = torch.full((3, 40, 30), 7, dtype=torch.uint8)
    areas, values = [], []
    for seed in range(300):
        found = random_erase(grey, np.random.default_rng(seed), mean=MEAN, std=STD)
        changed = (found != 7).any(dim=0)
        rows, columns = changed.any(dim=1).nonzero(), changed.any(dim=0).nonzero()
        area = len(rows) * len(columns)
        assert int(changed.sum()) > 0.9 * area  # noise that happens to be 7 in all channels is rare
        areas.append(area / 1200)
        values.append(found[:, changed].double())
    assert 0.015 < min(areas) < 0.04
    assert 0.28 < max(areas) <= 0.36
    mean = torch.cat(values, dim=1).mean(dim=1) / 255
    torch.testing.assert_close(mean, torch.tensor(MEAN, dtype=torch.double), atol=0.02, rtol=0)
    assert (grey == 7).all()


def test_how_often_a_part_is_erased() -> None:
    scene = Scene("a", {"rgb": torch.full((3, 32, 32), 7, dtype=torch.uint8)}, 0)
    augment = augmented(None, erasing=0.25)
    hits = sum(bool((take(augment, scene, seed) != 7).any()) for seed in range(800))
    assert hits / 800 == pytest.approx(0.25, abs=0.05)
    assert not any((take(augmented(None), scene, seed) != 7).any() for seed in range(20))


def test_words_that_timm_does_not_know_are_refused() -> None:
    with pytest.raises(UserError) as caught:
        take(augmented("rand-z9"))
    assert str(caught.value) == "rand_augment: expected timm's words, as in rand-m9-mstd0.5-inc1, got 'rand-z9'"
    with pytest.raises(UserError) as caught:
        take(augmented(), Scene("a", {"rgb": PHOTO.maps["rgb"][:1]}, 0))
    assert str(caught.value) == "rand_augment: is for photos of 3 channels, and these have 1. Set it to null"
