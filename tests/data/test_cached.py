import pickle

import pytest
import torch

from c2fmae.core.errors import UserError
from c2fmae.core.scene import Scene
from c2fmae.data.cached import CachedScenes
from c2fmae.data.generated import GeneratedScenes
from c2fmae.data.info import DatasetInfo
from c2fmae.data.scenes import Scenes


class Counted:
    """Three scenes, the last broken until it is mended; each time one is asked for is written down."""

    info = DatasetInfo(name="counted")
    keys = ("a", "b", "c")

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.is_mended = False

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Scene:
        if index not in range(3):
            raise IndexError(f"scene {index} of 3")
        self.asked.append(index)
        if index == 2 and not self.is_mended:
            raise UserError("c: broken")
        return Scene(self.keys[index], {"semantic": torch.full((2, 2), index)})

    def read_image_bytes(self, index: int) -> bytes | None:
        return f"photo {index}".encode()


def test_a_scene_is_made_once_however_often_it_is_asked_for() -> None:
    counted = Counted()
    scenes = CachedScenes(counted)
    assert [scenes[index].key for index in (1, 0, 1, 1, 0)] == ["b", "a", "b", "b", "a"]
    assert counted.asked == [1, 0]
    assert scenes[1] is scenes[1]


def test_all_else_is_as_the_source_says() -> None:
    counted = Counted()
    scenes = CachedScenes(counted)
    assert isinstance(scenes, Scenes)
    assert (len(scenes), scenes.info, scenes.keys) == (3, counted.info, counted.keys)
    assert scenes.read_image_bytes(1) == b"photo 1"
    for index in (3, -1):
        with pytest.raises(IndexError, match=f"^scene {index} of 3$"):
            scenes[index]
    assert [scene.key for scene in (scenes[0], scenes[1])] == ["a", "b"]


def test_a_broken_scene_is_not_kept() -> None:
    counted = Counted()
    scenes = CachedScenes(counted)
    with pytest.raises(UserError, match="^c: broken$"):
        scenes[2]
    counted.is_mended = True
    assert scenes[2].key == "c"


def test_kept_scenes_are_those_of_the_source_in_a_worker_too() -> None:
    source = GeneratedScenes(size=32, length=3)
    scenes = CachedScenes(source)
    first = scenes[1]
    for again in (scenes, pickle.loads(pickle.dumps(scenes))):
        assert all(torch.equal(again[1].maps[name], tensor) for name, tensor in source[1].maps.items())
    assert first.label == source[1].label
