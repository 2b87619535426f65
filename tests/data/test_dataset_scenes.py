"""Map-style data sets of users as scenes."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, TensorDataset

from c2fmae.core.errors import UserError
from c2fmae.core.labels import ClassInfo, LabelInfo
from c2fmae.data import DatasetInfo, DatasetScenes
from c2fmae.data.scenes import Scenes
from tests.data.dataset_files import assert_user_error

IMAGE = torch.arange(3 * 4 * 5, dtype=torch.uint8).view(3, 4, 5)
IDS = torch.arange(20).view(4, 5)


class Items(Dataset[Any]):
    """A data set of given items; callables are called at each access."""

    def __init__(self, *items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        item = self.items[index]
        return item() if callable(item) else item


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (IMAGE, IMAGE),
        (IMAGE.permute(1, 2, 0).numpy(), IMAGE),
        (Image.fromarray(IMAGE.permute(1, 2, 0).numpy()), IMAGE),
        (IMAGE[0], IMAGE[:1]),
        (Image.fromarray(IMAGE[0].numpy()), IMAGE[:1]),
        (IMAGE.repeat(2, 1, 1), IMAGE.repeat(2, 1, 1)),
    ],
)
def test_images_are_tensors_arrays_or_pillow_images(image: Any, expected: torch.Tensor) -> None:
    labelled = {"rgb": image, "label": torch.tensor(1)}
    for item, label in ((image, None), ((image, 1), 1), ({"image": image}, None), (labelled, 1)):
        scenes: Scenes = DatasetScenes(Items(item))
        assert torch.equal(scenes[0].maps["rgb"], expected)
        assert scenes[0].label == label
        assert (scenes.info.granularities, scenes.info.channels) == (("rgb",), len(expected))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_maps_become_ids_like_those_of_stored_scenes(dtype: torch.dtype) -> None:
    info = DatasetInfo(classes=tuple(ClassInfo(name=f"class {i}") for i in range(20)))
    item = {"image": IMAGE, "instance": IDS * 100, "semantic": IDS.to(dtype)}
    scenes = DatasetScenes(Items(item), info=info)
    assert scenes.info.granularities == ("semantic", "instance", "rgb")
    assert scenes.info.class_names[:2] == ("class 0", "class 1")
    maps = scenes[0].maps
    assert (maps["semantic"].dtype, maps["instance"].dtype) == (torch.uint8, torch.int32)
    assert torch.equal(maps["instance"].long(), IDS * 100)


def test_names_of_classes_are_those_of_torchvision() -> None:
    items = Items((IMAGE, 1), (IMAGE, 0))
    items.classes = ["cat", "dog"]  # type: ignore[attr-defined]
    assert DatasetScenes(items).info.label_names == ("cat", "dog")
    named = DatasetScenes(items, info=DatasetInfo(labels=(LabelInfo(name="a"), LabelInfo(name="b"))))
    assert named.info.label_names == ("a", "b")
    assert DatasetScenes(TensorDataset(IMAGE[None], torch.tensor([1])))[0].label == 1


def test_keys_are_indices_or_given() -> None:
    items = Items(IMAGE, IMAGE)
    assert list(DatasetScenes(items).keys) == ["00000000", "00000001"]
    assert DatasetScenes(items, keys=["a", "b"])[1].key == "b"
    message = "keys: expected 2 unique names, one for each item, got 1"
    assert_user_error(lambda: DatasetScenes(items, keys=["a", "a"]), message)
    with pytest.raises(IndexError):
        DatasetScenes(items)[2]


BYTES = "Return images as bytes, without normalisation: c2fmae standardises them later"


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (
            IMAGE / 255,
            f"rgb: expected a uint8 tensor [channels, height, width], got float32 (3, 4, 5). {BYTES}",
        ),
        ("a.png", f"rgb: expected a uint8 tensor [channels, height, width], got str. {BYTES}"),
        (
            {"image": IMAGE, "mask": IDS},
            "'mask' is not a granularity. Use image, depth, instance, rgb, semantic, label",
        ),
        (
            {"image": IMAGE, "semantic": IDS[:2]},
            "expected an image and maps of one size, got semantic 2×5, rgb 4×5. Resize maps by nearest",
        ),
        (
            {"image": IMAGE, "semantic": IDS / 2},
            "semantic: expected an integer tensor [height, width], got float32 (4, 5)",
        ),
        (
            {"image": IMAGE, "instance": IDS - 1},
            "instance: expected ids from 0, and 255 for unlabelled pixels, got -1",
        ),
        ((IMAGE, "cat"), "label: expected an integer, got 'cat'"),
        (lambda: dict[str, int]()["a"], "the data set raised KeyError: 'a'. Fix this item, or leave it out"),
        ((IMAGE[:1]), "expected 3 channels, got 1. Convert all images to the same channels"),
        ({"image": IMAGE, "instance": IDS}, "expected rgb, as the first item has, got instance, rgb"),
    ],
)
def test_other_items_are_errors_that_name_the_sample(item: Any, message: str) -> None:
    scenes = DatasetScenes(Items(IMAGE, item))
    assert_user_error(lambda: scenes[1], f"sample '00000001': {message}")


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (iter([IMAGE]), "list_iterator: expected a map-style data set, got one without __len__"),
        (Items(), "Items: has no items. Check its arguments"),
    ],
)
def test_data_sets_without_items_or_length_are_refused(dataset: Any, message: str) -> None:
    with pytest.raises((UserError, TypeError)) as refusal:  # with shape checks wrong types are a TypeError
        DatasetScenes(dataset)
    assert str(refusal.value).startswith(message) or type(refusal.value).__name__ == "TypeCheckError"


def test_an_item_may_be_an_array_of_many_channels() -> None:
    scenes = DatasetScenes(Items(np.zeros((4, 5, 7), np.uint8)))
    assert (tuple(scenes[0].maps["rgb"].shape), scenes.info.channels) == ((7, 4, 5), 7)
