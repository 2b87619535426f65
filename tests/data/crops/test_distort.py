"""Photometric distortion: each step against OpenCV, and the sequence against mmsegmentation's."""

import colorsys

import numpy as np
import pytest
import torch

from c2fmae.data.crops import distort
from c2fmae.data.crops.distort import PhotometricDistortion, change_saturation_and_hue, map_bytes
from tests.data.dataset_files import assert_user_error


def random_image(channels: int = 3, low: int = 0, high: int = 256) -> np.ndarray:
    return np.random.default_rng(channels + low).integers(low, high, (channels, 96, 128)).astype(np.uint8)


def convert(values: np.ndarray, alpha: float = 1, beta: float = 0) -> np.ndarray:
    """The conversion of mmsegmentation."""
    changed: np.ndarray = np.clip(values.astype(np.float32) * alpha + beta, 0, 255).astype(np.uint8)
    return changed


def opencv_step(image: np.ndarray, factor: float = 1, rotation: int = 0) -> np.ndarray:
    """Saturation or hue as mmsegmentation changes them, by OpenCV's conversions."""
    cv2 = pytest.importorskip("cv2")
    hsv: np.ndarray = cv2.cvtColor(np.ascontiguousarray(image.transpose(1, 2, 0)), cv2.COLOR_RGB2HSV)
    hsv[..., 1] = convert(hsv[..., 1], alpha=factor)
    hsv[..., 0] = (hsv[..., 0].astype(int) + rotation) % 180
    rgb: np.ndarray = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    return np.moveaxis(rgb, 2, 0)


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_brightness_and_contrast_equal_those_of_mmsegmentation(channels: int) -> None:
    image = random_image(channels)
    for shift in (-31.4, -1.0, 0.5, 17.99):
        ours = map_bytes(torch.from_numpy(image), distort._linear_table(shift=shift)).numpy()
        assert (ours == convert(image, beta=shift)).all()
    for factor in (0.5, 0.93, 1.27, 1.5):
        ours = map_bytes(torch.from_numpy(image), distort._linear_table(factor=factor)).numpy()
        assert (ours == convert(image, alpha=factor)).all()


@pytest.mark.parametrize(("low", "high"), [(0, 256), (90, 160), (0, 4)])
@pytest.mark.parametrize(("factor", "rotation"), [(1.3, 0), (0.6, 0), (1.0, 7), (1.0, -18)])
def test_saturation_and_hue_are_those_of_opencv(low: int, high: int, factor: float, rotation: int) -> None:
    image = random_image(low=low, high=high)
    ours = change_saturation_and_hue(torch.from_numpy(image), factor, rotation).numpy()
    difference = np.abs(ours.astype(int) - opencv_step(image, factor, rotation))
    # OpenCV truncates where we round, and a hue between two steps may be rounded to the other.
    assert (difference <= 1).mean() > 0.99
    assert difference.max() <= 255 // 30 + 1


def test_both_in_one_pass_are_within_two_levels_of_two_passes() -> None:
    image = random_image()
    ours = change_saturation_and_hue(torch.from_numpy(image), 1.4, -5).numpy()
    theirs = opencv_step(opencv_step(image, factor=1.4), rotation=-5)
    assert (np.abs(ours.astype(int) - theirs) <= 2).mean() > 0.99


def test_hue_and_saturation_are_those_of_python() -> None:
    """Colours whose hue is a multiple of two degrees have no rounding."""
    for hue in range(0, 360, 10):
        colour = np.rint(255 * np.array(colorsys.hsv_to_rgb(hue / 360, 1, 1))).astype(np.uint8)
        expected = 255 * np.array(colorsys.hsv_to_rgb((hue + 20) % 360 / 360, 0.5, 1))
        pixel = torch.from_numpy(colour).view(3, 1, 1)
        assert np.abs(change_saturation_and_hue(pixel, 0.5, 10).view(3).numpy() - expected).max() <= 2


def test_grey_has_no_hue() -> None:
    grey = torch.arange(256, dtype=torch.uint8).expand(3, 1, 256).contiguous()
    assert change_saturation_and_hue(grey, 1.5, 13).equal(grey)


def mmsegmentation_steps(image: np.ndarray, rng: np.random.Generator, steps: list[str]) -> np.ndarray:
    """Apply the steps in the order of mmsegmentation, with the numbers that ours draws."""
    chances, values = rng.random((2, 5))
    uses = chances < 0.5
    if uses[0]:
        steps.append("brightness")
        image = convert(image, beta=-32 + 64 * values[0])
    for is_before in (True, False):
        if uses[1] and uses[4] == is_before:
            steps.append("contrast")
            image = convert(image, alpha=0.5 + values[1])
        if is_before and uses[2]:
            steps.append("saturation")
            image = opencv_step(image, factor=0.5 + values[2])
        if is_before and uses[3]:
            steps.append("hue")
            image = opencv_step(image, rotation=int(values[3] * 36) - 18)
    return image


def test_the_sequence_is_that_of_mmsegmentation() -> None:
    image, orders = random_image(low=40, high=200), set()
    for seed in range(60):
        steps: list[str] = []
        expected = mmsegmentation_steps(image, np.random.default_rng(seed), steps)
        ours = PhotometricDistortion()(torch.from_numpy(image), np.random.default_rng(seed)).numpy()
        orders.add(" ".join(steps))
        assert ours.dtype == np.uint8
        assert (np.abs(ours.astype(int) - expected) <= 4).mean() > 0.99, steps  # contrast enlarges two levels
    assert any("contrast saturation" in order for order in orders)
    assert any("saturation hue contrast" in order for order in orders)
    assert {"", "brightness", "hue"} <= orders


def test_without_chances_the_image_is_the_same() -> None:
    image = torch.from_numpy(random_image())
    for seed in range(20):
        assert PhotometricDistortion(probability=0)(image, np.random.default_rng(seed)) is image


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_other_channels_have_brightness_and_contrast_only(channels: int) -> None:
    image = torch.from_numpy(random_image(channels))
    for seed in range(10):
        chances, values = np.random.default_rng(seed).random((2, 5))
        expected = image.numpy()
        if chances[0] < 0.5:
            expected = convert(expected, beta=-32 + 64 * values[0])
        if chances[1] < 0.5:
            expected = convert(expected, alpha=0.5 + values[1])
        assert (PhotometricDistortion()(image, np.random.default_rng(seed)).numpy() == expected).all()


def test_a_distortion_does_not_change_its_argument() -> None:
    image = torch.from_numpy(random_image())
    copy = image.clone()
    for seed in range(10):
        PhotometricDistortion(probability=1)(image, np.random.default_rng(seed))
    assert image.equal(copy)


def test_invalid_settings_are_errors() -> None:
    message = "contrast: expected two ascending factors from 0, got (1.5, 0.5)"
    assert_user_error(lambda: PhotometricDistortion(contrast=(1.5, 0.5)), message)
    assert_user_error(lambda: PhotometricDistortion(probability=2), "probability: expected 0 to 1, got 2")
