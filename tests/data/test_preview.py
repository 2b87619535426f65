from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from c2fmae.core.labels import ClassInfo, LabelInfo
from c2fmae.core.scene import Scene
from c2fmae.data import preview
from c2fmae.data.geometry import subsample_ids
from c2fmae.data.info import DatasetInfo
from c2fmae.data.preview import draw_preview
from c2fmae.report.drawing import MARGIN, colour_classes, colour_instances


@dataclass(frozen=True)
class Plain:
    """Scenes of 256 × 192 pixels; the image of the i-th is grey i, with a cat in its upper left quarter."""

    length: int = 10
    stride: int = 1
    granularities: tuple[str, ...] = ("semantic", "instance", "rgb")
    object_id: int = 3

    @property
    def info(self) -> DatasetInfo:
        classes, labels = (ClassInfo(name="sky"), ClassInfo(name="cat")), (LabelInfo(name="indoors"),)
        return DatasetInfo(classes=classes, labels=labels, label_stride=self.stride, granularities=self.granularities)

    @property
    def keys(self) -> Sequence[str]:
        return [str(i) for i in range(self.length)]

    def __len__(self) -> int:
        return self.length

    def read_image_bytes(self, index: int) -> None:
        return None

    def __getitem__(self, index: int) -> Scene:
        semantic = torch.zeros(192, 256, dtype=torch.int32)
        semantic[:96, :128] = 1
        maps = {
            "semantic": subsample_ids(semantic, self.stride),
            "instance": subsample_ids(semantic * self.object_id, self.stride),
            "rgb": torch.full((3, 192, 256), index, dtype=torch.uint8),
        }
        return Scene(str(index), {name: maps[name] for name in self.granularities}, index % 3, self.stride)


def tiles(scenes: Plain, count: int = 1) -> np.ndarray:
    """Return the tiles of a sheet [rows, columns, 192, 256, 3]."""
    page = np.asarray(draw_preview(scenes, count, title="title"))
    columns = len(scenes.granularities) + ("semantic" in scenes.granularities)
    right = page.shape[1] - MARGIN - np.arange(columns)[::-1] * (256 + 10)
    below = page.shape[0] - MARGIN - np.arange(count)[::-1] * (192 + 10)
    return np.stack([[page[y - 192 : y, x - 256 : x] for x in right] for y in below])


@pytest.mark.parametrize("stride", [1, 2, 4, 8])
def test_maps_at_any_stride_are_shown_at_the_size_of_the_image(stride: int) -> None:
    ((image, semantic, instance, classes),) = tiles(Plain(stride=stride))
    expected = np.zeros((192, 256), int)
    expected[:96, :128] = 1
    assert (image == 5).all()
    np.testing.assert_array_equal(semantic, colour_classes(expected))
    np.testing.assert_array_equal(instance, colour_instances(3 * expected))
    for i in (0, 1):  # the colour of each class in the legend
        assert (classes == colour_classes(np.array([[i]]))[0, 0]).all(axis=-1).sum() >= 100
    assert not (classes == colour_classes(np.array([[2]]))[0, 0]).all(axis=-1).any()


def test_scenes_are_evenly_spaced() -> None:
    assert tiles(Plain(length=12), 4)[:, 0, 0, 0, 0].tolist() == [1, 4, 7, 10]
    assert tiles(Plain(length=5), 5)[:, 0, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]


def test_at_most_all_scenes_are_shown() -> None:
    assert draw_preview(Plain(length=2), 9, title="").tobytes() == draw_preview(Plain(length=2), 2, title="").tobytes()


def test_images_without_maps_are_shown_in_one_column() -> None:
    page = np.asarray(draw_preview(Plain(granularities=("rgb",)), 1, title=""))
    assert (page == 5).all(axis=-1).sum() == 192 * 256
    assert page.shape[1] < 2 * 256


def test_objects_with_high_ids_are_coloured_as_objects_and_not_as_unlabelled() -> None:
    ids = np.array([[0, 1, 254, 255, 256, 509, 65535]])
    folded = preview._wrap_ids(ids)
    assert folded[0, :4].tolist() == [0, 1, 254, 255]
    assert ((folded[0, 4:] > 0) & (folded[0, 4:] < 255)).all()
    assert draw_preview(Plain(object_id=300), 1, title="").height > 192


def test_the_name_of_a_label_is_shown_if_it_has_one() -> None:
    info = Plain().info
    titles = [preview.make_row_title(Scene("k", {}, label), info) for label in (None, 0, 2)]
    assert titles == ["k", "k\nindoors", "k\nlabel 2"]
