"""Channels, range of values, mean and deviation of images."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from c2fmae.core.errors import UserError
from c2fmae.data import open_scenes
from c2fmae.data.image_statistics import ImageStatistics, list_split_folders, measure_images, write_image_statistics
from c2fmae.data.stored import StoredScenes
from tests.data.dataset_files import assert_user_error

RNG = np.random.default_rng(0)


def measure(folder: Path) -> ImageStatistics:
    scenes = open_scenes(folder)
    assert isinstance(scenes, StoredScenes)
    return measure_images(scenes)


def test_bytes_are_described_by_channels_mean_and_deviation(tmp_path: Path) -> None:
    images = RNG.integers(256, size=(3, 20, 30, 3), dtype=np.uint8)
    for index, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
    statistics = measure(tmp_path)
    assert (statistics.num_images, statistics.channels, statistics.value_range) == (3, 3, None)
    assert statistics.mean == pytest.approx(images.mean(axis=(0, 1, 2)) / 255, abs=1e-4)
    assert statistics.std == pytest.approx(images.std(axis=(0, 1, 2)) / 255, abs=1e-4)
    assert statistics.to_info().keys() == {"channels", "mean", "std"}


@pytest.mark.numeric
def test_other_values_get_the_range_of_almost_all_pixels_and_statistics_within_it(tmp_path: Path) -> None:
    images = RNG.integers(800, 1056, size=(4, 40, 50)).astype(np.uint16)
    images[0, 0, 0] = 65535  # a defective pixel
    for index, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
    statistics = measure(tmp_path)
    assert statistics.value_range is not None
    assert statistics.value_range[0] == pytest.approx((800, 1055), abs=1)
    write_image_statistics([tmp_path], statistics)
    scenes = open_scenes(tmp_path)
    pixels = np.stack([scenes[index].maps["rgb"].numpy() for index in range(4)]) / 255
    assert (statistics.mean[0], statistics.std[0]) == pytest.approx((pixels.mean(), pixels.std()), abs=1e-3)
    assert (scenes.info.mean, scenes.info.std, scenes.info.channels) == (statistics.mean, statistics.std, 1)


def test_channels_are_measured_one_by_one(tmp_path: Path) -> None:
    for index in range(2):
        np.save(tmp_path / f"{index}.npy", RNG.uniform(size=(2, 20, 30)) * [[[1]], [[100]]] + [[[5]], [[0]]])
    statistics = measure(tmp_path)
    assert statistics.value_range is not None
    assert np.array(statistics.value_range) == pytest.approx(np.array([[5, 6], [0, 100]]), abs=0.5)


@pytest.mark.parametrize("value", [0.25, 1000, -3e7])
def test_a_constant_channel_has_a_range_and_a_deviation(tmp_path: Path, value: float) -> None:
    np.save(tmp_path / "a.npy", np.full((20, 30), value, np.float32))
    statistics = measure(tmp_path)
    assert statistics.std[0] > 0
    write_image_statistics([tmp_path], statistics)
    assert open_scenes(tmp_path)[0].maps["rgb"].unique().tolist() == [0]


def test_a_narrow_range_far_from_zero_has_all_levels(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.linspace(1_000_000, 1_000_001, 600).reshape(20, 30))
    write_image_statistics([tmp_path], measure(tmp_path))
    assert len(open_scenes(tmp_path)[0].maps["rgb"].unique()) == 256


def test_pixels_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    image = np.full((20, 30), np.nan, np.float32)
    np.save(tmp_path / "a.npy", image)
    with pytest.raises(UserError, match=r"a\.npy: a channel has no numbers"):
        measure(tmp_path)
    image[:10] = RNG.uniform(1, 2, size=(10, 30))
    np.save(tmp_path / "a.npy", image)
    assert measure(tmp_path).value_range == pytest.approx(np.array([(1, 2)]), abs=0.02)


def test_images_of_different_channels_are_refused_but_grey_among_colours_is_repeated(tmp_path: Path) -> None:
    Image.fromarray(RNG.integers(256, size=(20, 30, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(RNG.integers(256, size=(20, 30), dtype=np.uint8)).save(tmp_path / "b.png")
    assert measure(tmp_path).channels == 3
    np.save(tmp_path / "c.npy", RNG.integers(256, size=(20, 30, 5), dtype=np.uint8))
    message = f"{tmp_path}/c.npy: has 5 channels, but {tmp_path}/a.png has 3. Remove one of them"
    assert_user_error(lambda: measure(tmp_path), message)


def test_other_keys_stay_and_other_values_are_only_replaced_on_request(tmp_path: Path) -> None:
    statistics = ImageStatistics(1, 1, ((0.0, 4095.0),), (0.5,), (0.25,))
    path = tmp_path / "dataset.json"
    path.write_text('{"labels": [{"name": "a"}], "made_by": "me", "channels": 3}')
    message = f"{path}: has channels 3 already. Add --overwrite to replace it, or remove it"
    assert_user_error(lambda: write_image_statistics([tmp_path], statistics), message)
    assert json.loads(path.read_text())["channels"] == 3
    write_image_statistics([tmp_path], statistics, overwrite=True)
    expected = {"channels": 1, "mean": [0.5], "std": [0.25], "value_range": [[0.0, 4095.0]]}
    assert json.loads(path.read_text()) == {"labels": [{"name": "a"}], "made_by": "me", **expected}
    assert write_image_statistics([tmp_path], statistics) == [path]  # the same values


def test_a_folder_of_train_and_val_stands_for_both(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    for split in ("val", "train"):
        (tmp_path / "own" / split).mkdir(parents=True)
    expected = [tmp_path / "own/train", tmp_path / "own/val", tmp_path / "plain"]
    assert list_split_folders([tmp_path / "own", tmp_path / "plain"]) == expected
