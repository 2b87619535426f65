import pytest
import torch

from c2fmae.core.errors import UserError
from c2fmae.core.scene import Scene, SceneBatch


def scene(key: str, size: int = 4, label: int | None = None) -> Scene:
    image = torch.zeros(3, size, size, dtype=torch.uint8)
    return Scene(key, {"rgb": image, "semantic": image[0]}, label)


def test_scenes_are_stacked_in_order() -> None:
    batch = SceneBatch.stack([scene("a", label=3), scene("b")])
    assert len(batch) == 2
    assert batch.keys == ("a", "b")
    assert batch.labels == (3, None)
    assert {name: tuple(tensor.shape) for name, tensor in batch.maps.items()} == {
        "rgb": (2, 3, 4, 4),
        "semantic": (2, 4, 4),
    }
    assert batch.to("cpu").keys == batch.keys


def test_a_scene_of_another_size_is_reported() -> None:
    with pytest.raises(UserError) as caught:
        SceneBatch.stack([Scene("a", {"rgb": torch.zeros(3, 4, 4)}), Scene("b", {"rgb": torch.zeros(3, 5, 4)})])
    assert str(caught.value) == "b: rgb has shape (3, 5, 4), but (3, 4, 4) in a. Crop both alike"


def test_a_scene_without_a_map_is_reported() -> None:
    with pytest.raises(UserError) as caught:
        SceneBatch.stack([scene("a"), Scene("b", {"rgb": scene("b").maps["rgb"]})])
    assert str(caught.value) == "b: semantic has shape None, but (4, 4) in a. Crop both alike"


def scene_with_views(key: str, count: int = 2) -> Scene:
    views = {"second": torch.full((1, 3, 2, 2), ord(key)), "local": torch.full((count, 3, 1, 1), ord(key))}
    return Scene(key, scene(key).maps, 5, views={name: view.byte() for name, view in views.items()})


def test_views_are_stacked_and_sliced_with_the_maps() -> None:
    batch = SceneBatch.stack([scene_with_views(key) for key in "abca"])
    assert {name: tuple(tensor.shape) for name, tensor in batch.views.items()} == {
        "second": (4, 1, 3, 2, 2),
        "local": (4, 2, 3, 1, 1),
    }
    part = batch.slice_scenes(1, 3)
    assert (part.keys, part.labels) == (("b", "c"), (5, 5))
    assert part.maps.keys() == batch.maps.keys()
    for sliced, complete in ((part.maps, batch.maps), (part.views, batch.views)):
        assert all(torch.equal(sliced[name], complete[name][1:3]) for name in complete)
    assert part.views["local"][:, 1, 0, 0, 0].tolist() == [ord("b"), ord("c")]
    moved = part.to("meta")
    assert {tensor.device.type for tensor in [*moved.maps.values(), *moved.views.values()]} == {"meta"}


def test_a_scene_with_another_number_of_views_is_reported() -> None:
    with pytest.raises(UserError) as caught:
        SceneBatch.stack([scene_with_views("a"), scene_with_views("b", count=3)])
    assert str(caught.value) == "b: local has shape (3, 3, 1, 1), but (2, 3, 1, 1) in a. Crop both alike"
