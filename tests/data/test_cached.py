import pickle

import pytest
import torch

from c2fmae.core.errors import UserError
from c2fmae.core.scene import Scene
from c2fmae.data.cached import CachedScenes
from c2fmae.data.generated import GeneratedScenes
from c2fmae.data.info import DatasetInfo
from c2fmae.data.scenes import Scenes


class CountingScenes:
    """Three scenes that record each access; the last is broken until `is_fixed`."""

    info = DatasetInfo(name="counted")
    keys = ("a", "b", "c")

    def __init__(self) -> None:
        self.accessed: list[int] = []
        self.is_fixed = False

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Scene:
        if index not in range(3):
            raise IndexError(f"scene {index} of 3")
        self.accessed.append(index)
        if index == 2 and not self.is_fixed:
            raise UserError("c: broken")
        return Scene(self.keys[index], {"semantic": torch.full((2, 2), index)})

    def read_image_bytes(self, index: int) -> bytes | None:
        return f"image {index}".encode()


def test_a_scene_is_loaded_once() -> None:
    counted = CountingScenes()
    scenes = CachedScenes(counted)
    assert [scenes[index].key for index in (1, 0, 1, 1, 0)] == ["b", "a", "b", "b", "a"]
    assert counted.accessed == [1, 0]
    assert scenes[1] is scenes[1]


def test_all_else_is_passed_on_to_the_source() -> None:
    counted = CountingScenes()
    scenes = CachedScenes(counted)
    assert isinstance(scenes, Scenes)
    assert (len(scenes), scenes.info, scenes.keys) == (3, counted.info, counted.keys)
    assert scenes.read_image_bytes(1) == b"image 1"
    for index in (3, -1):
        with pytest.raises(IndexError, match=f"^scene {index} of 3$"):
            scenes[index]
    assert [scene.key for scene in (scenes[0], scenes[1])] == ["a", "b"]


def test_a_broken_scene_is_not_cached() -> None:
    counted = CountingScenes()
    scenes = CachedScenes(counted)
    with pytest.raises(UserError, match="^c: broken$"):
        scenes[2]
    counted.is_fixed = True
    assert scenes[2].key == "c"


def test_cached_scenes_equal_those_of_the_source_also_in_a_worker() -> None:
    source = GeneratedScenes(size=32, length=3)
    scenes = CachedScenes(source)
    first = scenes[1]
    for copy in (scenes, pickle.loads(pickle.dumps(scenes))):
        assert all(torch.equal(copy[1].maps[name], tensor) for name, tensor in source[1].maps.items())
    assert first.label == source[1].label
