import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from c2fmae.core.crop_box import CropBox
from c2fmae.core.objects import Objects
from c2fmae.core.rle import decode_mask, encode_mask
from c2fmae.core.scene import Scene
from c2fmae.data.geometry import (
    central_crop_box,
    resize_scene,
    resized_crop,
    resized_crop_ids,
    resized_crop_image,
    subsample_ids,
)

pytestmark = pytest.mark.numeric

sides = st.integers(1, 60)
strides = st.sampled_from([1, 2, 3, 4, 8])


@st.composite
def boxes(draw: st.DrawFn) -> tuple[int, int, CropBox]:
    """Draw the height and width of an image, and a box in it."""
    height, width = draw(sides), draw(sides)
    rows, columns = draw(st.integers(1, height)), draw(st.integers(1, width))
    return (
        height,
        width,
        CropBox(draw(st.integers(0, height - rows)), draw(st.integers(0, width - columns)), rows, columns),
    )


def self_describing(height: int, width: int, stride: int = 1) -> Scene:
    """Return a scene whose image and maps hold the row and column of each pixel."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    rows, columns = (3 * rows).to(torch.uint8), (3 * columns).to(torch.uint8)
    maps = {"semantic": subsample_ids(rows, stride), "instance": subsample_ids(columns, stride)}
    return Scene("key", {**maps, "rgb": torch.stack([rows, columns, rows])}, 4, stride)


@given(boxes(), st.integers(1, 12), st.integers(1, 12), strides, st.booleans())
def test_an_id_is_the_stored_one_nearest_to_the_centre_of_its_cell(
    case: tuple[int, int, CropBox], rows: int, columns: int, stride: int, is_flipped: bool
) -> None:
    height, width, box = case
    positions = torch.arange(height * width).view(height, width)
    cropped = resized_crop_ids(
        subsample_ids(positions, stride), box, (rows, columns), stride=stride, is_flipped=is_flipped
    )
    if is_flipped:
        cropped = cropped.flip(1)
    for chosen, start, length, cells, total in (
        (cropped[:, 0] // width, box.top, box.height, rows, height),
        (cropped[0] % width, box.left, box.width, columns, width),
    ):
        stored = (torch.arange(-(-total // stride)) * stride + stride // 2).clamp(max=total - 1)
        # The pixel of the last cell may be clamped to the image; its nominal position is not.
        nominal = torch.arange(len(stored)) * stride + stride // 2 + 0.5
        centres = start + (torch.arange(cells) + 0.5).double() * length / cells
        distance = (nominal[:, None] - centres).abs()
        index = torch.stack([(stored == position).nonzero()[0, 0] for position in chosen])
        assert (distance.gather(0, index[None])[0] <= distance.min(dim=0).values + 1e-9).all()


@given(boxes(), st.integers(1, 6))
def test_at_full_size_ids_agree_with_nearest_exact_of_torch(case: tuple[int, int, CropBox], times: int) -> None:
    height, width, box = case
    ids = torch.randint(256, (height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(height))
    part = ids[box.top : box.top + box.height, box.left : box.left + box.width]
    expected = F.interpolate(part[None, None], scale_factor=times, mode="nearest-exact")[0, 0]
    assert torch.equal(resized_crop_ids(ids, box, (box.height * times, box.width * times)), expected)


@pytest.mark.parametrize("stride", [1, 4])
@pytest.mark.parametrize("is_flipped", [False, True])
@given(boxes=st.tuples(st.integers(24, 80), st.integers(24, 80), st.floats(0.5, 1), st.floats(0, 1)))
def test_image_and_maps_stay_aligned(boxes: tuple[int, int, float, float], stride: int, is_flipped: bool) -> None:
    height, width, fraction, offset = boxes
    rows, columns = round(height * fraction), round(width * fraction)
    box = CropBox(round((height - rows) * offset), round((width - columns) * offset), rows, columns)
    sample = resized_crop(self_describing(height, width, stride), box, (32, 48), is_flipped=is_flipped)
    image = sample.maps["rgb"].int()
    inner = slice(4, -4)  # at the border the filter of the image is one-sided
    for channel, name in enumerate(("semantic", "instance")):
        deviation = (image[channel] - sample.maps[name].int())[inner, inner].abs().max()
        assert deviation <= 3 * (stride / 2 + 1)  # values increase by 3 per pixel
    assert (sample.key, sample.label, sample.label_stride) == ("key", 4, 1)


@given(boxes(), strides)
def test_a_crop_has_no_new_ids(case: tuple[int, int, CropBox], stride: int) -> None:
    height, width, box = case
    ids = torch.randint(256, (height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(width))
    cropped = resized_crop_ids(subsample_ids(ids, stride), box, (8, 8), stride=stride)
    assert set(cropped.unique().tolist()) <= set(ids.unique().tolist())


@given(sides, sides, strides)
def test_stored_cells_are_the_pixels_at_their_centre(height: int, width: int, stride: int) -> None:
    ids = torch.arange(height * width).view(height, width)
    cells = subsample_ids(ids, stride)
    assert cells.shape == (-(-height // stride), -(-width // stride))
    for i, j in ((0, 0), (cells.shape[0] - 1, cells.shape[1] - 1)):
        y, x = min(stride * i + stride // 2, height - 1), min(stride * j + stride // 2, width - 1)
        assert cells[i, j] == ids[y, x]


def test_a_crop_at_a_stride_is_the_subsampled_crop_at_full_size() -> None:
    scene = self_describing(64, 64)
    at_4 = resized_crop(scene, CropBox(0, 0, 64, 64), (64, 64), label_stride=4)
    assert at_4.label_stride == 4
    assert torch.equal(at_4.maps["semantic"], scene.maps["semantic"][2::4, 2::4])


def test_a_label_stride_that_does_not_divide_the_size_is_refused() -> None:
    with pytest.raises(ValueError, match="^label stride 4 does not divide the size 30×32$"):
        resized_crop(self_describing(64, 64), CropBox(0, 0, 64, 64), (30, 32), label_stride=4)


@pytest.mark.parametrize("channels", [1, 3, 4, 7])
def test_images_of_any_number_of_channels_are_cropped(channels: int) -> None:
    image = torch.randint(256, (channels, 20, 30), dtype=torch.uint8)
    assert resized_crop_image(image, CropBox(2, 3, 10, 12), (16, 24)).shape == (channels, 16, 24)
    assert torch.equal(resized_crop_image(image, CropBox(2, 3, 10, 12), (10, 12)), image[:, 2:12, 3:15])


@pytest.mark.parametrize("size", [(37, 24), (90, 150)])
def test_images_are_resized_like_pillow(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    smooth = np.cumsum(np.cumsum(rng.standard_normal((75, 100, 3)), axis=0), axis=1)
    low, high = smooth.min(), smooth.max()
    pixels = (255 * (smooth - low) / (high - low)).astype(np.uint8)
    box = CropBox(5, 8, 60, 80)
    ours = resized_crop_image(torch.from_numpy(pixels).permute(2, 0, 1), box, size)
    part = Image.fromarray(pixels).crop((box.left, box.top, box.left + box.width, box.top + box.height))
    theirs = np.asarray(part.resize(size[::-1], Image.Resampling.BICUBIC))
    error = (ours.permute(1, 2, 0).double() - torch.from_numpy(theirs.copy())).square().mean()
    assert 10 * torch.log10(255**2 / error) > 50


def test_downscaling_an_image_averages_fine_detail() -> None:
    checks = ((torch.arange(64)[:, None] + torch.arange(64)) % 2 * 255).to(torch.uint8)
    image = resized_crop_image(checks.expand(3, 64, 64), CropBox(0, 0, 64, 64), (16, 16))
    assert (image.int() - 128).abs().max() <= 12


def test_bicubic_overshoot_is_clipped() -> None:
    edge = torch.zeros(3, 16, 16, dtype=torch.uint8)
    edge[:, :, 8:] = 255
    image = resized_crop_image(edge, CropBox(0, 0, 16, 16), (64, 64))
    assert (image.int().diff(dim=2) >= -1).all()  # 256 wrapped to 0 would be a drop


@given(sides, sides, st.floats(0.3, 3), st.floats(0.2, 1))
def test_a_central_box_is_centred_and_as_large_as_possible(
    height: int, width: int, aspect: float, fraction: float
) -> None:
    box = central_crop_box(height, width, aspect, fraction)
    assert 1 <= box.height <= height
    assert 1 <= box.width <= width
    assert abs(2 * box.top + box.height - height) <= 1
    assert abs(2 * box.left + box.width - width) <= 1
    longest = max(box.height / height, box.width / width)
    assert abs(longest - fraction) <= 0.5 / min(height, width) + 1e-9 or max(box.height, box.width) == 1


def test_a_scene_is_not_modified() -> None:
    scene = self_describing(20, 30)
    before = {name: tensor.clone() for name, tensor in scene.maps.items()}
    for tensor in resize_scene(scene, 20, 30).maps.values():
        tensor.zero_()
    assert all(torch.equal(scene.maps[name], before[name]) for name in before)


def test_a_scene_without_image_can_be_resized() -> None:
    maps: dict[str, Tensor] = {"semantic": torch.arange(6, dtype=torch.uint8).view(2, 3)}
    assert resize_scene(Scene("key", maps), 4, 6).maps["semantic"][::2, ::2].tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("is_flipped", [False, True])
def test_objects_are_cropped_beside_the_maps(is_flipped: bool) -> None:
    mask = torch.zeros(12, 16, dtype=torch.uint8)
    mask[2:9, 4:7] = 1
    numbers = torch.tensor([5])
    objects = Objects(
        torch.tensor([[4.0, 2, 7, 9]]), numbers, numbers < 0, numbers.float(), numbers, (encode_mask(mask.numpy()),)
    )
    scene = Scene("key", {"rgb": torch.zeros(3, 12, 16, dtype=torch.uint8), "instance": mask}, objects=objects)
    cropped = resized_crop(scene, CropBox(1, 2, 10, 9), (15, 27), is_flipped=is_flipped)
    assert cropped.objects is not None
    assert cropped.objects.masks is not None
    assert np.array_equal(decode_mask(cropped.objects.masks[0], 15, 27), cropped.maps["instance"].numpy())
    assert cropped.objects.labels.tolist() == [5]
