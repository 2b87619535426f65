import re

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.scene import Scene
from c2fmae.data import resize_and_crop

sides = st.integers(1, 60)
sizes = st.integers(1, 40)


def noise_scene(height: int, width: int) -> Scene:
    generator = torch.Generator().manual_seed(height * 100 + width)

    def noise(*shape: int) -> Tensor:
        return torch.randint(256, shape, generator=generator, dtype=torch.uint8)

    maps = {"semantic": noise(height, width), "instance": noise(height, width), "rgb": noise(3, height, width)}
    return Scene("key", maps, label=4)


@given(sides, sides, sizes)
def test_every_scene_becomes_a_square_of_that_size_and_keeps_its_name(height: int, width: int, size: int) -> None:
    result = resize_and_crop(noise_scene(height, width), size)
    shapes = {name: tuple(tensor.shape) for name, tensor in result.maps.items()}
    assert shapes == {"semantic": (size, size), "instance": (size, size), "rgb": (3, size, size)}
    assert all(tensor.dtype == torch.uint8 for tensor in result.maps.values())
    assert (result.key, result.label) == ("key", 4)


@given(sides, sides, sizes)
def test_no_id_comes_out_that_did_not_go_in(height: int, width: int, size: int) -> None:
    scene = noise_scene(height, width)
    result = resize_and_crop(scene, size)
    for name in ("semantic", "instance"):
        assert set(result.maps[name].unique().tolist()) <= set(scene.maps[name].unique().tolist())


@given(sides, sides, sizes)
def test_an_id_is_that_of_the_pixel_around_the_centre_of_its_cell(height: int, width: int, size: int) -> None:
    places = torch.arange(height * width).view(height, width)
    found = resize_and_crop(Scene("key", {"semantic": places}), size).maps["semantic"]
    for source, length in ((found[:, 0] // width, height), (found[0] % width, width)):
        resized = round(length * size / min(height, width))
        centres = (torch.arange(size) + (resized - size) // 2 + 0.5).double() * length / resized
        assert ((source + 0.5) - centres).abs().max() <= 0.5 + 1e-9


@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 5))
def test_ids_agree_with_nearest_exact_of_torch(height: int, width: int, times: int) -> None:
    scene = noise_scene(height, width)
    size = min(height, width) * times
    resized = F.interpolate(scene.maps["semantic"][None, None], scale_factor=times, mode="nearest-exact")[0, 0]
    top, left = (height * times - size) // 2, (width * times - size) // 2
    assert torch.equal(resize_and_crop(scene, size).maps["semantic"], resized[top : top + size, left : left + size])


@given(st.integers(1, 40))
def test_a_square_of_that_size_stays_as_it_is(size: int) -> None:
    scene = noise_scene(size, size)
    result = resize_and_crop(scene, size)
    assert all(torch.equal(result.maps[name], scene.maps[name]) for name in scene.maps)


@pytest.mark.parametrize(("height", "width", "size"), [(90, 60, 40), (61, 100, 37), (48, 48, 20), (50, 73, 120)])
def test_photo_and_maps_stay_aligned(height: int, width: int, size: int) -> None:
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    rows, columns = (2 * rows).to(torch.uint8), (2 * columns).to(torch.uint8)
    scene = Scene("key", {"semantic": rows, "instance": columns, "rgb": torch.stack([rows, columns, rows])})
    maps = {name: tensor.int() for name, tensor in resize_and_crop(scene, size).maps.items()}
    inner = slice(3, -3)  # at the rim the photo's filter sees only one side
    for channel, ids in enumerate((maps["semantic"], maps["instance"])):
        assert (maps["rgb"][channel] - ids)[inner, inner].abs().max() <= 2  # one pixel of the original


def test_shrinking_a_photo_averages_what_is_too_fine_to_show() -> None:
    checks = ((torch.arange(64)[:, None] + torch.arange(64)) % 2 * 255).to(torch.uint8)
    photo = resize_and_crop(Scene("key", {"rgb": checks.expand(3, 64, 64)}), 16).maps["rgb"]
    assert (photo.int() - 128).abs().max() <= 12


def test_bicubic_overshoot_is_held_to_what_a_pixel_can_be() -> None:
    edge = torch.zeros(3, 16, 16, dtype=torch.uint8)
    edge[:, :, 8:] = 255
    photo = resize_and_crop(Scene("key", {"rgb": edge}), 64).maps["rgb"]
    assert (photo.int().diff(dim=2) >= -1).all()  # 256 taken for 0 would be a fall


def test_the_scene_given_is_not_written_to() -> None:
    scene = noise_scene(20, 30)
    before = {name: tensor.clone() for name, tensor in scene.maps.items()}
    for tensor in resize_and_crop(scene, 20).maps.values():
        tensor.zero_()
    assert all(torch.equal(scene.maps[name], before[name]) for name in before)


def test_maps_of_different_sizes_are_refused_by_name() -> None:
    maps = {"semantic": torch.zeros(4, 6, dtype=torch.uint8), "rgb": torch.zeros(3, 4, 5, dtype=torch.uint8)}
    message = "key: maps of one scene must have one size, got semantic 4×6, rgb 4×5"
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        resize_and_crop(Scene("key", maps), 4)
