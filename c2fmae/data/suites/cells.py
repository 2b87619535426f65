"""One cell of a set: some photos of known classes, all changed in one way."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from c2fmae.core.errors import UserError, did_you_mean
from c2fmae.core.labels import LabelInfo, is_wnid
from c2fmae.core.scene import Scene
from c2fmae.data import DatasetInfo, Scenes
from c2fmae.data.corruption.set_dir import class_dir_names
from c2fmae.data.suites.file_tree import FileTree

SetLabels = tuple[LabelInfo | None, ...]


@dataclass(frozen=True)
class Cell:
    """Photos with one corruption at one severity, or all of a set that has none."""

    corruption: str | None
    severity: int | None
    scenes: Scenes
    """Of ImageNet-C they are found when they are first asked for: millions of files take minutes to list."""
    expected_images: int | None
    """How many photos the whole set has here, where that is known."""
    identity: str = ""
    """Changes when photos come to this cell or go, and not with the others of its set: see `ShiftedSet.identity`."""

    @property
    def count_sentence(self) -> str | None:
        """Say how the photos differ in number from what the whole set has, if they do; lists the files if need be."""
        return describe_count_difference(len(self.scenes), self.expected_images)


def format_count(count: int, one: str, many: str) -> str:
    """Say how many there are, in the singular of one.

    >>> format_count(1, "class", "classes"), format_count(1000, "class", "classes")
    ('1 class', '1,000 classes')
    """
    return f"{count:,} {one if count == 1 else many}"


def describe_count_difference(count: int, expected: int | None) -> str | None:
    """Say how a number of photos differs from that of the whole set, if it does.

    >>> describe_count_difference(7123, 7500)
    '7,123 of 7,500 images: not the whole set'
    """
    if expected is None or count == expected:
        return None
    if count < expected:
        return f"{count:,} of {expected:,} images: not the whole set"
    return f"{count:,} images, more than the {expected:,} of the set"


class ClassDirScenes:
    """The photos below a folder, found when they are first asked for, and labelled by what their folder is called."""

    def __init__(self, tree: FileTree, subdir: str, labels: SetLabels) -> None:
        self._tree, self._subdir, self._labels = tree, subdir, labels
        self.info = DatasetInfo(granularities=("rgb",), labels=labels)

    @cached_property
    def _listed_scenes(self) -> tuple[Scenes, dict[int, int]]:
        """What is there, and which of our labels each of its own is."""
        scenes, location = self._tree.open_images(self._subdir), self._tree.describe_location(self._subdir)
        if stray := next((key for key in scenes.keys if "/" not in key), None):
            raise UserError(
                f"{location}: {stray!r} lies in no class folder, so its class is not known. Move or remove it"
            )
        label_of, set_label_by_dir_label = map_dirs_to_labels(self._labels), dict[int, int]()
        for label, name in enumerate(scenes.info.label_names):
            if name not in label_of:
                known = did_you_mean(name, label_of) or "Move or remove it"
                raise UserError(f"{location}: class folder {name!r} is none of the set's classes. {known}")
            set_label_by_dir_label[label] = label_of[name]
        return scenes, set_label_by_dir_label

    def list_images(self) -> None:
        """Find the photos now, and refuse what cannot be labelled."""
        _ = self._listed_scenes

    @property
    def keys(self) -> Sequence[str]:
        """Class folder and name of each photo."""
        return self._listed_scenes[0].keys

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Scene:
        scenes, label_of = self._listed_scenes
        scene = scenes[index]
        assert scene.label is not None
        return replace(scene, label=label_of[scene.label])

    def read_image_bytes(self, index: int) -> bytes | None:
        """Return the photo as it is stored."""
        return self._listed_scenes[0].read_image_bytes(index)


def map_dirs_to_labels(labels: SetLabels) -> Mapping[str, int]:
    """Return the label of each name that a class folder may have: the class's name, or its WordNet id.

    Self-made sets have folders for names that no folder can have.

    >>> map_dirs_to_labels((LabelInfo(name="tench", wnid="n01440764"), None, LabelInfo(name="cat/dog")))
    {'tench': 0, 'n01440764': 0, 'cat/dog': 2, 'cat_dog': 2}
    """
    found = dict[str, int]()
    for label, (entry, folder) in enumerate(zip(labels, class_dir_names(labels), strict=True)):
        if entry:
            found |= {name: label for name in (entry.name, entry.wnid, folder) if name}
    return found


def dir_names_to_labels(names: Sequence[str]) -> SetLabels:
    """Return the classes of folders: WordNet ids are known by their form, all else is a name."""
    return tuple(LabelInfo(name=name, wnid=name if is_wnid(name) else None) for name in names)
