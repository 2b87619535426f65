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
# Their constants trade one thing for another from one severity to the next, so that pixels are not always further off:
# glass blur shuffles further but less often, frost has less photo and more ice, severity 3 of saturation gives
# colour where 1 and 2 take it, and 2 and 3 of snow differ in the size of the flakes.
NOT_ALWAYS_FURTHER = ("glass_blur", "snow", "frost", "saturate")


def noise(channels: int, height: int, width: int) -> Tensor:
    pixels = np.random.default_rng(0).integers(256, size=(channels, height, width), dtype=np.uint8)
    return torch.from_numpy(pixels)


@cache
def scenes() -> tuple[Tensor, ...]:
    made = GeneratedScenes(size=48, length=24)
    return tuple(made[index].maps["rgb"] for index in range(24))


def distance(first: Tensor, second: Tensor) -> float:
    return float((first.float() - second.float()).square().mean().sqrt())


@pytest.mark.parametrize("corruption", ALL)
def test_a_photo_is_what_the_tool_makes_of_it_when_it_is_seeded_by_hand(corruption: str) -> None:
    imagecorruptions = importlib.import_module("imagecorruptions")
    photo, seed = scenes()[0][:, :40], 2**32 - 7
    for severity in SEVERITIES:
        np.random.seed(seed)
        options = {"seed": seed} if corruption in ("glass_blur", "impulse_noise") else {}
        pixels = np.ascontiguousarray(photo.permute(1, 2, 0).numpy())
        expected = imagecorruptions.corrupt(pixels, severity=severity, corruption_name=corruption, **options)
        np.random.seed(1)  # whatever it is before
        spoilt = corrupt_image(photo, corruption, severity, seed)
        np.testing.assert_array_equal(spoilt.permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_every_corruption_changes_colour_and_grey_photos_that_are_not_square_and_keeps_their_size(
    channels: int,
) -> None:
    photo = to_rgb(noise(channels, 33, 50))
    for corruption, severity in itertools.product(ALL, SEVERITIES):
        spoilt = corrupt_image(photo, corruption, severity, 3)
        assert spoilt.shape == (3, 33, 50)
        assert spoilt.dtype == torch.uint8
        is_grey_kept = channels == 1 and corruption == "saturate" and severity <= 3  # no colour to change
        assert torch.equal(spoilt, photo) == is_grey_kept, (corruption, severity)


@pytest.mark.parametrize("corruption", ALL)
def test_photos_are_further_off_with_severity(corruption: str) -> None:
    means = []
    for severity in SEVERITIES:
        seeds = (corruption_seed(0, str(index), corruption, severity) for index in range(len(scenes())))
        spoilt = [corrupt_image(photo, corruption, severity, seed) for photo, seed in zip(scenes(), seeds, strict=True)]
        means.append(np.mean([distance(*pair) for pair in zip(spoilt, scenes(), strict=True)]))
    assert 1 < means[0] < means[4]
    assert means == sorted(means) or corruption in NOT_ALWAYS_FURTHER


def test_neither_numpys_generator_nor_opencvs_threads_nor_what_is_printed_tells_of_it(
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


def test_a_seed_tells_all_coordinates_apart() -> None:
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
def test_another_seed_gives_another_photo(corruption: str) -> None:
    photo = scenes()[1]
    assert not torch.equal(corrupt_image(photo, corruption, 3, 1), corrupt_image(photo, corruption, 3, 2))


def test_a_photo_that_no_drop_fell_on_is_kept_where_the_tool_shows_black() -> None:
    photo = noise(3, 32, 32)
    assert torch.equal(corrupt_image(photo, "spatter", 1, 35), photo)


def test_a_photo_of_one_colour_is_corrupted_without_a_warning() -> None:
    for corruption, severity, shade in itertools.product(ALL, SEVERITIES, (0, 255)):
        spoilt = corrupt_image(torch.full((3, 32, 40), shade, dtype=torch.uint8), corruption, severity, 0)
        assert spoilt.shape == (3, 32, 40)


def test_a_photo_that_is_too_small_is_refused() -> None:
    with pytest.raises(UserError) as caught:
        corrupt_image(noise(3, 40, 31), "fog", 1, 0)
    assert str(caught.value) == (
        "a photo of 31×40 pixels, but corruptions take at least 32 a side. Bring all photos to one size, as with"
        " --image-size 32, or leave it out"
    )


@pytest.mark.parametrize(("size", "shorter"), [(224, 256), (64, 73), (32, 37)])
@pytest.mark.parametrize("shape", [(300, 401), (111, 40)])
def test_the_centre_is_that_of_torchvisions_resize_and_crop(size: int, shorter: int, shape: tuple[int, int]) -> None:
    photo = noise(3, *shape)
    image = Image.fromarray(photo.permute(1, 2, 0).numpy())
    official = transforms.Compose([transforms.Resize(shorter), transforms.CenterCrop(size)])
    np.testing.assert_array_equal(centre_crop(photo, size).permute(1, 2, 0).numpy(), np.asarray(official(image)))


def test_photos_are_encoded_as_those_of_imagenet_c() -> None:
    photo, stream = noise(3, 40, 50), io.BytesIO()
    Image.fromarray(photo.permute(1, 2, 0).numpy()).save(stream, "JPEG", quality=85, optimize=True)
    assert encode_jpeg(photo, 85) == stream.getvalue()
    assert len(encode_jpeg(photo, 50)) < len(encode_jpeg(photo, 85))


def test_what_corrupts_is_named_with_its_version() -> None:
    assert corruption_tool_version() == f"imagecorruptions-imaug {importlib.metadata.version('imagecorruptions-imaug')}"


@pytest.mark.parametrize("is_other_there", [False, True], ids=["no package", "the package with faults"])
def test_without_the_extra_one_sentence_names_it(is_other_there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if is_other_there:

        def version(name: str) -> str:
            raise importlib.metadata.PackageNotFoundError(name)

        monkeypatch.setattr(importlib.metadata, "version", version)
    else:
        monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    with pytest.raises(UserError) as caught:
        corruption_tool_version()
    assert str(caught.value) == ("data corrupt needs imagecorruptions-imaug. Install it: pip install 'c2fmae[corrupt]'")
