import numpy as np
import pytest
import torch

from c2fmae.core.errors import UserError
from c2fmae.core.labels import ClassInfo
from c2fmae.core.rle import decode_mask
from c2fmae.core.scene import Scene
from c2fmae.data.generated import GeneratedScenes
from c2fmae.data.info import DatasetInfo
from c2fmae.data.objects import open_objects
from c2fmae.data.objects.maps import MapObjects

CLASSES = tuple(ClassInfo(name=name, is_thing=name != "sky") for name in ("cat", "sky", "dog"))
INFO = DatasetInfo(name="maps", classes=CLASSES)


class OneScene:
    """A source of one scene with given maps."""

    def __init__(self, semantic: np.ndarray, instance: np.ndarray, info: DatasetInfo = INFO) -> None:
        self.info, self.keys = info, ("key",)
        s = info.label_stride
        rgb = torch.zeros(3, semantic.shape[0] * s, semantic.shape[1] * s, dtype=torch.uint8)
        maps = {"semantic": torch.from_numpy(semantic), "instance": torch.from_numpy(instance), "rgb": rgb}
        self._scene = Scene("key", maps, label_stride=s)

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Scene:
        return self._scene

    def read_image_bytes(self, index: int) -> None:
        return None


def test_generated_objects_are_the_regions_of_the_instance_map() -> None:
    source = GeneratedScenes(size=48, length=3, difficulty="hard")
    scenes = open_objects("generated", size=48, length=3, difficulty="hard")
    assert [entry.name for entry in scenes.info.object_classes] == list(source.labels)
    assert scenes.info.granularities == ("rgb",)
    ids = set[int]()
    for index in range(3):
        maps, objects = source[index].maps, scenes[index].objects
        assert list(scenes[index].maps) == ["rgb"]
        assert objects is not None
        assert objects.masks is not None
        numbers = [number for number in maps["instance"].unique().tolist() if number]
        assert len(objects) == len(numbers)
        for row, number in enumerate(numbers):
            region = (maps["instance"] == number).numpy()
            assert np.array_equal(decode_mask(objects.masks[row], 48, 48), region)
            rows, columns = region.nonzero()
            assert objects.boxes[row].tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert objects.areas[row] == region.sum()
            (class_id,) = maps["semantic"][torch.from_numpy(region)].unique().tolist()
            assert scenes.info.object_classes[int(objects.labels[row])].name == source.classes[class_id]
        ids |= {*objects.ids.tolist()}
        assert not objects.is_crowd.any()
    assert len(ids) == sum(len(scenes[index].objects or ()) for index in range(3))


def test_more_than_32_objects_stay_apart_and_unlabelled_pixels_are_none() -> None:
    instance = np.arange(400, dtype=np.int32).reshape(20, 20)
    instance[0, 5] = 65535  # how object 255 is stored
    objects = MapObjects(OneScene(np.zeros((20, 20), np.uint8), instance))[0].objects
    assert objects is not None
    assert objects.ids.tolist() == [number for number in (*range(1, 400), 65535) if number not in (5, 255)]
    assert objects.masks is not None
    assert len(set(objects.masks)) == 398


def test_the_class_is_that_of_most_pixels_of_things() -> None:
    semantic = np.array([[1, 1, 1, 0, 2, 2], [255, 255, 255, 1, 1, 0]], np.uint8)
    instance = np.array([[1, 1, 1, 1, 1, 1], [7, 255, 0, 8, 8, 9]], np.uint8)
    objects = MapObjects(OneScene(semantic, instance))[0].objects
    assert objects is not None
    assert objects.ids.tolist() == [1, 9]  # 7 is not labelled, and 8 is on stuff
    assert objects.labels.tolist() == [1, 0]  # the second and the first class of things
    assert objects.areas.tolist() == [6, 1]


def test_one_long_run_of_a_class_counts_more_than_several_short_ones() -> None:
    semantic = np.array([[0, 2, 0, 2, 0, 2, 0, 2, 2, 2, 2, 2, 2]], np.uint8)
    for label, ids in ((1, semantic), (0, 2 - semantic)):
        objects = MapObjects(OneScene(ids, np.ones_like(ids)))[0].objects
        assert objects is not None
        assert objects.labels.tolist() == [label]


def test_cells_of_a_label_stride_stand_for_all_their_pixels() -> None:
    info = INFO.model_copy(update={"label_stride": 4})
    objects = MapObjects(OneScene(np.zeros((3, 4), np.uint8), np.eye(3, 4, dtype=np.uint8), info))[0].objects
    assert objects is not None
    assert objects.masks is not None
    expected = np.kron(np.eye(3, 4), np.ones((4, 4))).astype(np.uint8)
    assert np.array_equal(decode_mask(objects.masks[0], 12, 16), expected)


def test_all_classes_are_things_if_none_is_described() -> None:
    info = DatasetInfo(classes=(ClassInfo(name="a"), ClassInfo(name="b")))
    scenes = MapObjects(OneScene(np.ones((2, 2), np.uint8), np.ones((2, 2), np.uint8), info), masks=False)
    assert scenes.info.object_classes == info.classes
    objects = scenes[0].objects
    assert objects is not None
    assert objects.labels.tolist() == [1]
    assert objects.masks is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"granularities": ("semantic", "rgb")}, "has no instance map, but objects are found by their semantic and"),
        ({"classes": ()}, "dataset.json names no classes, which objects need. Add them, with is_thing"),
        ({"classes": CLASSES[1:2]}, "no class of dataset.json has is_thing, so there are no objects. Add"),
    ],
)  # fmt: skip
def test_maps_without_objects_are_an_error(changes: dict[str, object], message: str) -> None:
    blank = np.zeros((2, 2), np.uint8)
    with pytest.raises(UserError, match=f"^maps: {message}"):
        MapObjects(OneScene(blank, blank, INFO.model_copy(update=changes)))
