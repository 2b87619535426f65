"""Scenes cached in memory."""

from c2fmae.core.scene import Scene
from c2fmae.data.scenes import Scenes, WrappedScenes


class CachedScenes(WrappedScenes):
    """Scenes that are generated or decoded once and then cached in memory, so that later epochs only crop them.

    Generated scenes of 32 pixels take 5 KiB each, those of 224 a quarter of a MiB: 10,000 take 50 MiB or 2.4 GiB. Each
    worker process of a loader has a cache of its own.
    """

    def __init__(self, source: Scenes) -> None:
        super().__init__(source)
        self._cache: dict[int, Scene] = {}

    def __getitem__(self, index: int) -> Scene:
        if index not in self._cache:
            self._cache[index] = self.source[index]
        return self._cache[index]
