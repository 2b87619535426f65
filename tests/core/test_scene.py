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
