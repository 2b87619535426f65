"""The training crop of segmentation: its scales, positions, ids and redraws, each against an independent rule."""

import numpy as np
import pytest
import torch
from torch import Tensor

from c2fmae.core.granularity import IGNORE
from c2fmae.core.scene import Scene
from c2fmae.core.seeding import derive_seed
from c2fmae.data.crops.scaled_crop import ScaledCrop, crop_lengths, largest_class_share, scale_factor
from c2fmae.data.geometry import subsample_ids
from tests.data.dataset_files import assert_user_error


def coordinates_scene(height: int, width: int) -> Scene:
    """Return a scene whose image holds the row and the column of each pixel, and whose ids hold both, modulo 250."""
    rows, columns = torch.arange(height).view(-1, 1), torch.arange(width)
    image = torch.stack([rows.expand(height, width), columns.expand(height, width), (rows + columns) // 2])
    ids = (7 * rows + 3 * columns) % 250
    return Scene("key", {"semantic": ids.to(torch.uint8), "rgb": image.to(torch.uint8)})


def checker_scene(height: int, width: int, side: int) -> Scene:
    rows, columns = torch.arange(height).view(-1, 1) // side, torch.arange(width) // side
    ids = ((rows + columns) % 2).to(torch.uint8)
    return Scene("key", {"semantic": ids, "rgb": (200 * ids).expand(3, height, width).contiguous()})


def test_scales_are_uniform_and_crops_inside_with_ids_of_the_source() -> None:
    scene = coordinates_scene(60, 90)
    source = set(scene.maps["semantic"].unique().tolist())
    # A crop that is 62 wide cuts 90 · scale columns from scale 0.69 on, but never 60 · scale rows.
    crop = ScaledCrop(size=(64, 62), short_side=32, max_class_share=1, distort=False)
    rows = []
    for seed in range(2000):
        sample = crop(scene, np.random.default_rng(seed))
        assert sample.ids.shape == sample.image.shape[1:]
        assert abs(sample.ids.shape[1] - min(1.5 * sample.ids.shape[0], 62)) < 1.3
        assert source.issuperset(np.unique(sample.ids.numpy()).tolist())
        rows.append(sample.ids.shape[0])
    # The rows are 32 · r, rounded; the distance of Kolmogorov and Smirnov at 1 %.
    expected = np.array([(np.array(rows) <= n).mean() - (n + 0.5 - 16) / 48 for n in range(16, 64)])
    assert np.abs(expected).max() < 1.63 / np.sqrt(2000)


def test_the_source_box_shows_the_pixels_of_the_scaled_image() -> None:
    scene = coordinates_scene(200, 240)
    crop = ScaledCrop(size=(64, 64), short_side=100, flip=0, max_class_share=1, distort=False)
    for seed in range(40):
        sample = crop(scene, np.random.default_rng(seed))
        scale = (0.5 + 1.5 * np.random.default_rng(seed).random()) / 2
        if sample.image.shape[1:] == (64, 64):
            rows, columns = sample.image[0].float(), sample.image[1].float()
            assert rows.min() >= 0
            assert rows.max() <= 199
            step = torch.stack([rows[4:-4, 0].diff().mean(), columns[0, 4:-4].diff().mean()])
            # The box has whole pixels: ⌈64 / scale⌉ instead of 64 / scale of them.
            assert ((step - 1 / scale).abs() < 1 / 64 + 0.02).all(), (step, 1 / scale)


def test_the_longer_side_is_limited_to_four_times_the_shorter() -> None:
    assert scale_factor(100, 300, 50) == 0.5
    assert scale_factor(100, 1000, 50) == 0.2
    assert scale_factor(1000, 100, 50) == 0.2


@pytest.mark.parametrize(("side", "scale"), [(600, 2.0), (600, 0.5), (512, 1.0), (511, 1.0), (1, 0.01), (3000, 0.17)])
def test_a_crop_is_never_longer_than_the_scaled_side(side: int, scale: float) -> None:
    source, target = crop_lengths(side, scale, 512)
    assert 1 <= source <= side
    assert 1 <= target <= 512
    assert target == 512 or (source == side and target == max(round(side * scale), 1))


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_image_and_ids_are_aligned_to_a_pixel(flip: float) -> None:
    crop = ScaledCrop(size=(64, 64), short_side=64, flip=flip, max_class_share=1, distort=False)
    for seed in range(25):
        sample = crop(checker_scene(90, 130, 15), np.random.default_rng(seed))
        shown = (sample.image[0] > 100).to(torch.uint8)
        agreement = {
            (down, across): (shown.roll((down, across), (0, 1)) == sample.ids)[2:-2, 2:-2].float().mean().item()
            for down in (-1, 0, 1)
            for across in (-1, 0, 1)
        }
        assert max(agreement, key=agreement.__getitem__) == (0, 0)
        borders = sample.ids != sample.ids.roll(1, 0)
        borders |= sample.ids != sample.ids.roll(1, 1)
        borders |= sample.ids != sample.ids.roll(-1, 0)
        borders |= sample.ids != sample.ids.roll(-1, 1)
        assert not ((shown != sample.ids) & ~borders)[1:-1, 1:-1].any()


def test_maps_at_a_label_stride_give_the_nearest_cell_at_full_size() -> None:
    scene = checker_scene(96, 129, 15)
    strided = Scene("key", {**scene.maps, "semantic": subsample_ids(scene.maps["semantic"], 3)}, label_stride=3)
    crop = ScaledCrop(size=(64, 64), short_side=96, distort=False)
    for seed in range(10):
        full, coarse = (crop(each, np.random.default_rng(seed)) for each in (scene, strided))
        assert coarse.label_stride == 1
        assert coarse.image.equal(full.image)
        assert coarse.ids.equal(full.ids)  # every cell holds the id of all its pixels


def naive_is_accepted(ids: np.ndarray, max_class_share: float) -> bool:
    """The rule of `cat_max_ratio` in mmsegmentation."""
    labels, counts = np.unique(ids, return_counts=True)
    counts = counts[labels != IGNORE]
    return len(counts) > 1 and counts.max() / counts.sum() < max_class_share


def test_a_crop_with_a_dominant_class_is_drawn_again_like_a_naive_rule() -> None:
    rng = np.random.default_rng(0)
    blobs = np.repeat(np.repeat(rng.choice([1, 1, 1, 1, 2, 3, IGNORE], (6, 9)), 12, 0), 12, 1).astype(np.uint8)
    scene = Scene("key", {"semantic": torch.from_numpy(blobs), "rgb": torch.zeros(3, 72, 108, dtype=torch.uint8)})
    outcomes = []
    for seed in range(200):
        sample = ScaledCrop(size=(24, 24), short_side=72, scale=(1, 1), flip=0, distort=False)(
            scene, np.random.default_rng(seed)
        )
        noise = np.random.default_rng(seed)
        noise.random(2)
        candidates: list[np.ndarray] = []
        while len(candidates) < 11 and not (candidates and naive_is_accepted(candidates[-1], 0.75)):
            down, across = noise.random(2)
            top, left = int(down * (72 - 24 + 1)), int(across * (108 - 24 + 1))
            candidates.append(blobs[top : top + 24, left : left + 24])
        assert (sample.ids.numpy() == candidates[-1]).all()
        outcomes.append(len(candidates) - 1)
    assert 0 < np.mean(np.array(outcomes) == 0) < 1
    assert max(outcomes) > 3


@pytest.mark.parametrize("values", [[7], [IGNORE], [7, IGNORE]])
def test_an_image_of_one_class_or_of_none_is_cropped_all_the_same(values: list[int]) -> None:
    ids = torch.tensor(values, dtype=torch.uint8).repeat(60 * 60 // len(values)).view(60, 60)
    scene = Scene("key", {"semantic": ids, "rgb": torch.zeros(3, 60, 60, dtype=torch.uint8)})
    crop = ScaledCrop(size=(32, 32), short_side=32, distort=False)
    assert set(crop(scene, np.random.default_rng(0)).ids.unique().tolist()) == set(values)


def test_largest_class_share_counts_labelled_pixels_only() -> None:
    ids = torch.tensor([[0, 0, 0, 1], [IGNORE] * 4], dtype=torch.uint8)
    assert largest_class_share(ids) == 0.75
    assert largest_class_share(torch.full((2, 2), IGNORE, dtype=torch.uint8)) == 1


def test_a_narrow_image_is_not_padded_by_the_crop() -> None:
    sample = ScaledCrop(size=(512, 512), short_side=512, scale=(1, 1), distort=False)(
        coordinates_scene(40, 600), np.random.default_rng(0)
    )
    # 600 pixels become 4 · 512, so 40 become 137.
    assert sample.image.shape == (3, 137, 512)


def crop_scene(epoch: int, index: int) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(derive_seed(3, "view", epoch, index))
    sample = ScaledCrop(size=(32, 32), short_side=32)(coordinates_scene(40 + index, 50), rng)
    return sample.image, sample.ids


def test_a_crop_is_a_function_of_seed_epoch_and_index() -> None:
    places = [(epoch, index) for epoch in (0, 1) for index in (0, 1, 2)]
    first = {place: crop_scene(*place) for place in places}
    for place in reversed(places):  # whatever was drawn before
        assert all(map(torch.equal, first[place], crop_scene(*place)))
    assert not first[0, 1][0].equal(first[1, 1][0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": (0, 32)}, "size, short_side: expected at least 1 pixel, got (0, 32) and 32"),
        ({"scale": (2.0, 0.5)}, "scale: expected two ascending numbers above 0, got (2.0, 0.5)"),
        ({"flip": 2.0}, "flip: expected 0 to 1, got 2.0"),
        ({"max_class_share": -1.0}, "max_class_share: expected 0 to 1, got -1.0"),
    ],
)
def test_invalid_options_are_errors(options: dict[str, object], message: str) -> None:
    values = {"size": (32, 32), "short_side": 32, **options}
    assert_user_error(lambda: ScaledCrop(**values), message)  # type: ignore[arg-type]
