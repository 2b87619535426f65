"""Scenes cached in memory."""

from c2fmae.core.scene import Scene
from c2fmae.data.scenes import Scenes


class CachedScenes:
    """Scenes that are generated or decoded once and then cached in memory, so that later epochs only crop them.

    Generated scenes of 32 pixels take 5 KiB each, those of 224 a quarter of a MiB: 10,000 take 50 MiB or 2.4 GiB. Each
    worker process of a loader has a cache of its own.
    """

    def __init__(self, scenes: Scenes) -> None:
        self._scenes = scenes
        self._cache: dict[int, Scene] = {}
        self.info = scenes.info
        self.keys = scenes.keys

    def __len__(self) -> int:
        return len(self._scenes)

    def __getitem__(self, index: int) -> Scene:
        if index not in self._cache:
            self._cache[index] = self._scenes[index]
        return self._cache[index]

    def read_image_bytes(self, index: int) -> bytes | None:
        """Return the encoded image as stored."""
        return self._scenes.read_image_bytes(index)
