import hashlib
import importlib
import importlib.metadata
import io
import itertools
import sys
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms

from c2fmae.core.errors import UserError
from c2fmae.data.corruption.apply import (
    centre_crop,
    corrupt_image,
    corruption_seed,
    corruption_tool_version,
    encode_jpeg,
    to_rgb,
)
from c2fmae.data.corruption.names import CORRUPTIONS, EXTRA_CORRUPTIONS, SEVERITIES
from c2fmae.data.generated import GeneratedScenes

pytestmark = pytest.mark.numeric

ALL = (*CORRUPTIONS, *EXTRA_CORRUPTIONS)
# The distance to the original does not always grow with the severity: glass blur shuffles further but less often, frost
# has less of the image and more ice, saturation 3 adds colour where 1 and 2 remove it, and snow 2 and 3 differ in the
# size of the flakes.
NOT_MONOTONIC = ("glass_blur", "snow", "frost", "saturate")


def noise(channels: int, height: int, width: int) -> Tensor:
    pixels = np.random.default_rng(0).integers(256, size=(channels, height, width), dtype=np.uint8)
    return torch.from_numpy(pixels)


@cache
def scenes() -> tuple[Tensor, ...]:
    generated = GeneratedScenes(size=48, length=24)
    return tuple(generated[index].maps["rgb"] for index in range(24))


def distance(first: Tensor, second: Tensor) -> float:
    return float((first.float() - second.float()).square().mean().sqrt())


@pytest.mark.parametrize("corruption", ALL)
def test_a_corrupted_image_equals_that_of_the_seeded_package(corruption: str) -> None:
    imagecorruptions = importlib.import_module("imagecorruptions")
    image, seed = scenes()[0][:, :40], 2**32 - 7
    for severity in SEVERITIES:
        np.random.seed(seed)
        options = {"seed": seed} if corruption in ("glass_blur", "impulse_noise") else {}
        pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
        expected = imagecorruptions.corrupt(pixels, severity=severity, corruption_name=corruption, **options)
        np.random.seed(1)  # any other state
        corrupted = corrupt_image(image, corruption, severity, seed)
        np.testing.assert_array_equal(corrupted.permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_every_corruption_changes_pixels_but_not_the_size(
    channels: int,
) -> None:
    image = to_rgb(noise(channels, 33, 50))
    for corruption, severity in itertools.product(ALL, SEVERITIES):
        corrupted = corrupt_image(image, corruption, severity, 3)
        assert corrupted.shape == (3, 33, 50)
        assert corrupted.dtype == torch.uint8
        is_unchanged = channels == 1 and corruption == "saturate" and severity <= 3  # no colour to change
        assert torch.equal(corrupted, image) == is_unchanged, (corruption, severity)


@pytest.mark.parametrize("corruption", ALL)
def test_the_distance_to_the_original_grows_with_the_severity(corruption: str) -> None:
    means = []
    for severity in SEVERITIES:
        seeds = (corruption_seed(0, str(index), corruption, severity) for index in range(len(scenes())))
        corrupted = [
            corrupt_image(image, corruption, severity, seed) for image, seed in zip(scenes(), seeds, strict=True)
        ]
        means.append(np.mean([distance(*pair) for pair in zip(corrupted, scenes(), strict=True)]))
    assert 1 < means[0] < means[4]
    assert means == sorted(means) or corruption in NOT_MONOTONIC


def test_corruption_has_no_effect_on_global_state_or_output(
    capsys: pytest.CaptureFixture[str],
) -> None:
    import cv2

    threads = cv2.getNumThreads()
    try:
        cv2.setNumThreads(2)
        np.random.seed(5)
        expected = np.random.random(3)
        np.random.seed(5)
        for corruption in ALL:
            corrupt_image(noise(3, 33, 50), corruption, 1, 0)
        assert cv2.getNumThreads() == 2
    finally:
        cv2.setNumThreads(threads)
    np.testing.assert_array_equal(np.random.random(3), expected)
    assert capsys.readouterr() == ("", "")


def test_seeds_differ_by_every_coordinate() -> None:
    seeds = {
        corruption_seed(seed, key, corruption, severity)
        for seed, key, corruption, severity in itertools.product((0, 1), ("a", "b/a"), ("snow", "fog"), SEVERITIES)
    }
    assert len(seeds) == 2 * 2 * 2 * 5
    assert all(0 <= seed < 2**32 for seed in seeds)
    digest = hashlib.blake2b(b"0/snow/b/a/1", digest_size=8).digest()
    assert corruption_seed(0, "b/a", "snow", 1) == (int.from_bytes(digest, "big") >> 1) % 2**32


@pytest.mark.parametrize(
    "corruption",
    [
        *("gaussian_noise", "shot_noise", "impulse_noise", "glass_blur", "motion_blur", "snow", "frost", "fog"),
        *("elastic_transform", "speckle_noise", "spatter"),
    ],
)
def test_images_differ_by_seed(corruption: str) -> None:
    image = scenes()[1]
    assert not torch.equal(corrupt_image(image, corruption, 3, 1), corrupt_image(image, corruption, 3, 2))


def test_spatter_without_a_drop_returns_the_image() -> None:
    image = noise(3, 32, 32)
    assert torch.equal(corrupt_image(image, "spatter", 1, 35), image)


def test_an_image_of_one_colour_is_corrupted_without_a_warning() -> None:
    for corruption, severity, shade in itertools.product(ALL, SEVERITIES, (0, 255)):
        corrupted = corrupt_image(torch.full((3, 32, 40), shade, dtype=torch.uint8), corruption, severity, 0)
        assert corrupted.shape == (3, 32, 40)


def test_a_too_small_image_is_refused() -> None:
    with pytest.raises(UserError) as caught:
        corrupt_image(noise(3, 40, 31), "fog", 1, 0)
    assert str(caught.value) == (
        "the image has 31×40 pixels (expected at least 32 on each side). Resize all images with --image-size 32, or"
        " remove the image"
    )


@pytest.mark.parametrize(("size", "shorter"), [(224, 256), (64, 73), (32, 37)])
@pytest.mark.parametrize("shape", [(300, 401), (111, 40)])
def test_the_centre_crop_equals_that_of_torchvision(size: int, shorter: int, shape: tuple[int, int]) -> None:
    image = noise(3, *shape)
    pil_image = Image.fromarray(image.permute(1, 2, 0).numpy())
    official = transforms.Compose([transforms.Resize(shorter), transforms.CenterCrop(size)])
    np.testing.assert_array_equal(centre_crop(image, size).permute(1, 2, 0).numpy(), np.asarray(official(pil_image)))


def test_images_are_encoded_like_those_of_imagenet_c() -> None:
    image, stream = noise(3, 40, 50), io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(stream, "JPEG", quality=85, optimize=True)
    assert encode_jpeg(image, 85) == stream.getvalue()
    assert len(encode_jpeg(image, 50)) < len(encode_jpeg(image, 85))


def test_the_package_is_named_with_its_version() -> None:
    assert corruption_tool_version() == f"imagecorruptions-imaug {importlib.metadata.version('imagecorruptions-imaug')}"


@pytest.mark.parametrize("has_other_package", [False, True], ids=["no package", "other package"])
def test_a_missing_package_is_an_error_with_the_install_command(
    has_other_package: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if has_other_package:

        def version(name: str) -> str:
            raise importlib.metadata.PackageNotFoundError(name)

        monkeypatch.setattr(importlib.metadata, "version", version)
    else:
        monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    with pytest.raises(UserError) as caught:
        corruption_tool_version()
    assert str(caught.value) == ("data corrupt needs imagecorruptions-imaug. Install it: pip install 'c2fmae[corrupt]'")
