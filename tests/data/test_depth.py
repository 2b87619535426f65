"""Depth, a granularity that is defined in one small file, from reading to cropping."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from c2fmae.core.crop_box import CropBox
from c2fmae.core.pixels import trimmed_mean_std
from c2fmae.core.scene import Scene
from c2fmae.data import open_scenes
from c2fmae.data.geometry import resized_crop
from tests.data.dataset_files import assert_user_error, encode_png, make_sample, write_tar, write_tree

pytestmark = pytest.mark.numeric


def test_depth_is_read_unchanged_with_maps_at_a_stride(tmp_path: Path) -> None:
    depth = np.arange(65501, 65536, dtype=np.uint16).reshape(5, 7)  # 255 and 65535 have no special meaning here
    files, maps = make_sample("a")
    files_by_name = {
        "rgb": files["a.jpg"],
        "depth": encode_png(depth),
        "semantic": encode_png(maps["semantic"][::2, ::2]),
    }
    tree = {f"{name}/a.png": data for name, data in files_by_name.items()} | {"dataset.json": b'{"label_stride": 2}'}
    scene = open_scenes(str(write_tree(tmp_path / "tree", tree)), granularities=("rgb", "depth", "semantic"))[0]
    assert scene.maps["depth"].dtype == torch.int32
    np.testing.assert_array_equal(scene.maps["depth"], depth)
    shard = write_tar(tmp_path / "a.tar", {"a.jpg": files_by_name["rgb"], "a.depth.png": files_by_name["depth"]})
    np.testing.assert_array_equal(open_scenes(str(shard), granularities=("rgb", "depth"))[0].maps["depth"], depth)


def test_depth_of_another_size_than_the_image_is_refused(tmp_path: Path) -> None:
    files, maps = make_sample("a")
    tree = {"rgb/a.png": files["a.jpg"], "depth/a.png": encode_png(maps["semantic"][::2, ::2])}
    scenes = open_scenes(str(write_tree(tmp_path, tree)), granularities=("rgb", "depth"))
    path = tmp_path / "depth/a.png"
    assert_user_error(
        lambda: scenes[0],
        f"{path}: has 4×3 cells (expected 7×5 for an image of 7×5 pixels). Store both at one size",
    )


@pytest.mark.parametrize("is_flipped", [False, True])
def test_depth_is_cropped_at_full_size_without_interpolation(is_flipped: bool) -> None:
    numbers = torch.arange(64, dtype=torch.int32).view(8, 8)
    scene = Scene("a", {"rgb": numbers.to(torch.uint8).expand(3, -1, -1), "depth": numbers, "semantic": numbers})
    same = resized_crop(scene, CropBox(2, 1, 4, 4), (4, 4), label_stride=2, is_flipped=is_flipped)
    assert torch.equal(same.maps["depth"], same.maps["rgb"][0].int())
    assert same.maps["semantic"].shape == (2, 2)
    larger = resized_crop(scene, CropBox(2, 1, 4, 4), (12, 12), is_flipped=is_flipped).maps["depth"]
    assert torch.equal(larger, same.maps["depth"].repeat_interleave(3, 0).repeat_interleave(3, 1))


@given(st.floats(0.1, 100), st.floats(-100, 100))
def test_trimmed_statistics_are_robust_and_scale_with_the_unit(scale: float, shift: float) -> None:
    values = torch.rand(2, 10, 10, generator=torch.Generator().manual_seed(0)) + 1
    mean, deviation = trimmed_mean_std(values)
    extreme = values.clone()
    extreme[:, 0, 0] = 1e6  # one more value in the tenth that is left out
    assert (trimmed_mean_std(extreme)[0] - mean).abs().max() < 0.02
    moved = trimmed_mean_std(scale * values + shift)
    torch.testing.assert_close(moved[0], scale * mean + shift, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(moved[1], scale * deviation, rtol=2e-3, atol=2e-3)


def test_trimmed_statistics_are_those_of_the_middle_eight_tenths() -> None:
    values = torch.tensor([0, 3, 1, 2, 4, 5, 6, 7, 8, 900]).view(1, 2, 5)
    mean, deviation = trimmed_mean_std(values)
    assert mean.item() == 4.5
    assert deviation.item() == pytest.approx(6**0.5)  # of 1 … 8, unbiased


def test_constant_depth_does_not_divide_by_zero() -> None:
    mean, deviation = trimmed_mean_std(torch.full((1, 4, 4), 7))
    assert ((torch.full((1, 4, 4), 7) - mean) / deviation).abs().max() == 0
