"""Images that are labelled by the name of their class directory."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

from c2fmae.core.errors import UserError, did_you_mean
from c2fmae.core.scene import Scene
from c2fmae.data.class_dirs import map_dirs_to_labels
from c2fmae.data.info import DatasetInfo
from c2fmae.data.scenes import Scenes
from c2fmae.data.suites.file_tree import FileTree
from c2fmae.data.suites.label_map import SetLabels


class ClassDirScenes:
    """The images below a directory, listed on first use, with the labels of a set that may have further classes."""

    def __init__(self, tree: FileTree, subdir: str, labels: SetLabels) -> None:
        self._tree, self._subdir, self._labels = tree, subdir, labels
        self.info = DatasetInfo(granularities=("rgb",), labels=labels)

    @cached_property
    def _listed_scenes(self) -> tuple[Scenes, dict[int, int]]:
        """The images with labels by directory, and the set's label for each of these labels."""
        scenes, location = self._tree.open_images(self._subdir), self._tree.describe_location(self._subdir)
        if unlabelled := next((key for key in scenes.keys if "/" not in key), None):
            raise UserError(f"{location}: {unlabelled!r} is in no class directory. Move it into one, or remove it")
        label_by_dir, set_label_by_dir_label = map_dirs_to_labels(self._labels), dict[int, int]()
        for label, name in enumerate(scenes.info.label_names):
            if name not in label_by_dir:
                hint = did_you_mean(name, label_by_dir) or "Rename or remove it"
                raise UserError(f"{location}: directory {name!r} is not a class of the set. {hint}")
            set_label_by_dir_label[label] = label_by_dir[name]
        return scenes, set_label_by_dir_label

    def list_images(self) -> None:
        """List the images now, and raise an error for those without a label."""
        _ = self._listed_scenes

    @property
    def keys(self) -> Sequence[str]:
        """Class directory and name of each image."""
        return self._listed_scenes[0].keys

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Scene:
        scenes, set_label_by_dir_label = self._listed_scenes
        scene = scenes[index]
        assert scene.label is not None
        return replace(scene, label=set_label_by_dir_label[scene.label])

    def read_image_bytes(self, index: int) -> bytes | None:
        """Return the encoded image as stored."""
        return self._listed_scenes[0].read_image_bytes(index)
