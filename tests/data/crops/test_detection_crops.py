"""Random crops for detection: scales, sides, positions and sizes, each against an independent rule."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from c2fmae.core.scene import Scene
from c2fmae.data.crops.resize import fit_sides, resize_to_sides
from c2fmae.data.crops.scale_jitter import ScaleJitter
from c2fmae.data.crops.short_side import ShortSideResize
from c2fmae.data.detection_batch import DetectionBatch, DetectionSample
from c2fmae.data.sampler import sample_generator
from tests.data.crops.object_scenes import draw_blobs, make_objects, make_scene, paint_masks
from tests.data.dataset_files import assert_user_error

Crop = Callable[[Scene, np.random.Generator], DetectionSample]

CROPS: dict[str, Callable[..., Crop]] = {
    "scale jitter": lambda **options: ScaleJitter(canvas=(64, 60), **options),
    "short side": lambda **options: ShortSideResize(sides=(48, 56), max_side=90, **options),
    # The sides of DETR's crops are relative to 400 to 600 pixels, so `max_side` must be larger than those.
    "crops": lambda **options: ShortSideResize(sides=(48, 56), max_side=1333, crops=True, **options),
}


def make_blob_scene(seed: int, height: int, width: int) -> Scene:
    return make_scene(height, width, make_objects(draw_blobs(np.random.default_rng(seed), height, width, 4)))


def test_the_scales_of_jitter_are_uniform_and_its_crops_inside() -> None:
    scene = make_scene(60, 90, make_objects([]))
    jitter = ScaleJitter(canvas=(300, 64), scale=(0.1, 2.0))
    sizes = np.array([jitter.draw_size((60, 90), np.random.default_rng(seed)) for seed in range(1500)])
    assert sizes[:, 1].max() == 64
    for seed in range(50):
        sample = jitter(scene, np.random.default_rng(seed))
        assert int(sample.image[:2].max()) <= 89
        assert int(sample.image[0].max()) <= 59
    # The canvas cuts no rows, which are 64 · r / 1.5, rounded; the distance of Kolmogorov and Smirnov at 1 %.
    rows = sizes[:, 0]
    expected = np.array([(rows <= n).mean() - ((n + 0.5) * 1.5 / 64 - 0.1) / 1.9 for n in range(5, 85)])
    assert np.abs(expected).max() < 1.63 / np.sqrt(1500)


@pytest.mark.parametrize("name", ["scale jitter", "crops"])
def test_the_source_box_shows_the_pixels_of_the_scaled_image(name: str) -> None:
    scene = make_scene(200, 240, make_objects([]))
    ratios = []
    for seed in range(40):
        sample = CROPS[name](flip=0)(scene, np.random.default_rng(seed))
        if min(sample.image.shape[1:]) < 16:
            continue
        rows, columns = sample.image[0].float(), sample.image[1].float()
        step = [float(rows[4:-4, 0].diff().mean()), float(columns[0, 4:-4].diff().mean())]
        # The box has whole pixels, so the two scales differ a little.
        ratios.append(step[0] / step[1])
    assert np.abs(np.array(ratios) - 1).max() < 0.08
    assert np.abs(np.array(ratios) - 1).mean() < 0.015


def test_the_shorter_side_is_drawn_from_the_sides_and_the_longer_is_limited() -> None:
    resize = ShortSideResize(sides=(40, 48, 56), max_side=70)
    sizes = [resize.draw_size((60, 80), np.random.default_rng(seed)) for seed in range(600)]
    assert {size: sizes.count(size) > 150 for size in sizes} == {(40, 53): True, (48, 64): True, (52, 70): True}


def test_crops_have_the_sides_of_the_policy_of_detr() -> None:
    height, width = 480, 640
    resize = ShortSideResize(sides=(480,), max_side=1333, crops=True)
    fractions = []
    for seed in range(2000):
        box, size, _ = resize._draw_crop((height, width), np.random.default_rng(seed))
        assert 0 <= box.top <= height - box.height
        assert 0 <= box.left <= width - box.width
        assert min(size) == 480
        assert size[0] / size[1] == pytest.approx(box.height / box.width, rel=0.01)
        fractions.append((box.height / height, box.width / width))
    is_cropped = np.array([min(pair) < 1 for pair in fractions])
    # Of a shorter side of 400, a crop has 384 to 400 pixels, one of 17 of which is the whole; of 533, 384 to 533.
    assert is_cropped.mean() == pytest.approx(0.5, abs=0.04)
    rows, columns = np.array(fractions)[is_cropped].T
    assert rows.min() == pytest.approx(384 / 600, abs=0.01)
    assert columns.min() == pytest.approx(384 / 800, abs=0.01)
    assert columns.max() == 1
    # By hand, the mean of 384/400 … 1, of 384/500 … 1 and of 384/600 … 1 is that of 0.98, 0.884 and 0.82.
    assert rows.mean() == pytest.approx((0.98 + 0.884 + 0.82) / 3, abs=0.01)
    assert columns.mean() == pytest.approx((0.86 + 0.738 + 0.615) / 3, abs=0.02)


@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize("name", CROPS)
def test_image_and_masks_are_aligned_to_a_pixel(name: str, flip: float) -> None:
    rows, columns = np.mgrid[:90, :130]
    checker = (rows // 15 + columns // 15) % 2
    scene = make_scene(90, 130, make_objects([checker]), brightness=200 * checker)
    for seed in range(12):
        sample = CROPS[name](flip=flip)(scene, np.random.default_rng(seed))
        if min(sample.image.shape[1:]) < 24:
            continue
        (mask,) = torch.from_numpy(paint_masks(sample))
        shown = (sample.image[0] > 100).to(torch.uint8)
        agreement = {
            (down, across): (shown.roll((down, across), (0, 1)) == mask)[2:-2, 2:-2].float().mean().item()
            for down in (-1, 0, 1)
            for across in (-1, 0, 1)
        }
        assert max(agreement, key=agreement.__getitem__) == (0, 0)
        borders = sum(mask != mask.roll(shift, axis) for shift in (-1, 1) for axis in (0, 1)) > 0
        assert not ((shown != mask) & ~borders)[1:-1, 1:-1].any()


@pytest.mark.parametrize("name", CROPS)
def test_the_size_of_a_sample_is_known_without_its_image(name: str) -> None:
    crop: Any = CROPS[name]()
    for seed in range(30):
        height, width = (int(side) for side in np.random.default_rng(seed).integers(20, 70, 2))
        sample = crop(make_scene(height, width, make_objects([])), np.random.default_rng(seed))
        assert crop.draw_size((height, width), np.random.default_rng(seed)) == tuple(sample.image.shape[1:])


@pytest.mark.parametrize("name", CROPS)
def test_a_sample_is_a_function_of_seed_epoch_and_index(name: str) -> None:
    def draw(epoch: int, index: int) -> tuple[torch.Tensor, ...]:
        sample = CROPS[name]()(make_blob_scene(index, 40 + index, 50), sample_generator(3, epoch, index, 0))
        assert sample.masks is not None
        return sample.image, sample.boxes, sample.labels, sample.masks.windows, sample.masks.bits

    places = [(epoch, index) for epoch in (0, 1) for index in (0, 1, 2)]
    first = {place: draw(*place) for place in places}
    for place in reversed(places):  # whatever was drawn before
        assert all(map(torch.equal, first[place], draw(*place)))
    assert not torch.equal(first[0, 1][0], first[1, 1][0])


def test_on_a_fixed_canvas_a_sample_does_not_depend_on_its_batch() -> None:
    samples = [CROPS["scale jitter"]()(make_blob_scene(i, 40, 50), np.random.default_rng(i)) for i in range(4)]
    batch = DetectionBatch.stack(samples, size=(64, 60))
    for part, sample in zip(batch.split(1), samples, strict=True):
        alone = DetectionBatch.stack([sample], size=(64, 60))
        assert torch.equal(part.images, alone.images)
        assert torch.equal(part.boxes, alone.boxes)
        assert part.masks is not None
        assert alone.masks is not None
        assert torch.equal(part.masks.bits, alone.masks.bits)


def test_an_image_is_flipped_with_the_given_probability() -> None:
    scene = make_scene(40, 50, make_objects([]))
    for name, build in CROPS.items():
        for flip in (0.0, 0.25, 1.0):
            images = [build(flip=flip)(scene, np.random.default_rng(seed)).image[1].int() for seed in range(60)]
            share = np.mean([int(image[0, 0]) > int(image[0, -1]) for image in images])
            assert share == pytest.approx(flip, abs=0.17 if flip == 0.25 else 0), name


@pytest.mark.parametrize(
    ("size", "sides", "expected"),
    [
        ((480, 640), (800, 1333), (800, 1067)),
        ((640, 480), (800, 1333), (1067, 800)),
        ((200, 5000), (800, 1333), (53, 1333)),
        ((480, 640), (1024, 1024), (768, 1024)),
        ((1, 5000), (64, 64), (1, 64)),
        ((800, 1000), (800, 1333), (800, 1000)),
    ],
)
def test_the_resize_of_a_test_keeps_both_limits(
    size: tuple[int, int], sides: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert fit_sides(size, *sides) == expected
    image, factors = resize_to_sides(torch.zeros(3, *size, dtype=torch.uint8), *sides)
    assert image.shape == (3, *expected)
    assert [side * factor for side, factor in zip(size, factors, strict=True)] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        (ScaleJitter, {"canvas": (0, 8)}, "canvas: expected at least 1 pixel, got (0, 8)"),
        (ScaleJitter, {"scale": (2.0, 0.5)}, "scale: expected two ascending numbers above 0, got (2.0, 0.5)"),
        (ScaleJitter, {"flip": 2.0}, "flip: expected 0 to 1, got 2.0"),
        (ScaleJitter, {"min_visible": -1.0}, "min_visible: expected 0 to 1, got -1.0"),
        (ShortSideResize, {"sides": ()}, "sides: expected at least one number of pixels, got ()"),
        (ShortSideResize, {"max_side": 7}, "max_side: expected at least the largest of sides, 8, got 7"),
        (ShortSideResize, {"flip": -0.5}, "flip: expected 0 to 1, got -0.5"),
    ],
)
def test_invalid_options_are_errors(build: Callable[..., Crop], options: dict[str, object], message: str) -> None:
    valid = {"canvas": (8, 8)} if build is ScaleJitter else {"sides": (8,), "max_side": 8}
    assert_user_error(lambda: build(**{**valid, **options}), message)
