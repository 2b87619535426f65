"""A set without corruptions, opened: an official archive, class folders, or any labelled source."""

from collections.abc import Sequence
from pathlib import Path

from c2fmae.core.errors import UserError
from c2fmae.core.granularity import GRANULARITIES
from c2fmae.core.labels import is_wnid
from c2fmae.data import DatasetInfo, Scenes, open_scenes
from c2fmae.data.stored import StoredScenes
from c2fmae.data.suites.cells import ClassDirScenes, SetLabels, dir_names_to_labels
from c2fmae.data.suites.class_check import check_classes
from c2fmae.data.suites.file_tree import FileTree, find_class_root, is_ignored_dir, is_shard, open_file_tree


def open_labelled_scenes(suite: str, source: str | Path) -> tuple[Scenes, SetLabels]:
    """Return the photos of a set without corruptions, and its classes."""
    found = find_class_dirs(source)
    scenes: Scenes
    if found is None:
        scenes = open_scenes(source, granularities=("rgb",))
        labels = tuple(
            entry and entry.model_copy(update={"wnid": entry.wnid or (entry.name if is_wnid(entry.name) else None)})
            for entry in scenes.info.labels
        )
        if not labels or (isinstance(scenes, StoredScenes) and bool((scenes.labels < 0).any())):
            raise UserError(f"{source}: photos without a label. Give labelled shards, or a folder for each class")
        check_classes(suite, collect_used_labels(scenes, labels), str(source))
        return scenes, labels
    tree, subdir = found
    names = tree.list_dirs(subdir)
    if not names:
        raise missing_class_dirs_error(suite, tree.describe_location(subdir))
    labels = dir_names_to_labels(names)
    check_classes(suite, labels, tree.describe_location(subdir))
    scenes = ClassDirScenes(tree, subdir, labels)
    scenes.list_images()
    return scenes, labels


def find_class_dirs(source: str | Path) -> tuple[FileTree, str] | None:
    """Return where class folders lie whose names are all that tells the classes; None for other sources of labels."""
    path = Path(source)
    root = next(iter(_find_only_tar(path)), path) if path.is_dir() else path
    if _is_native_source(root):
        return None
    tree = open_file_tree(root)
    return tree, find_class_root(tree)


def collect_used_labels(scenes: Scenes, labels: SetLabels) -> SetLabels:
    """Return the classes that photos have, where that can be told without reading them."""
    if not isinstance(scenes, StoredScenes):
        return labels
    return tuple(labels[label] for label in sorted({*scenes.labels.tolist()}) if label < len(labels))


def _find_only_tar(folder: Path) -> Sequence[Path]:
    """The tar of a folder that holds an archive and nothing else to open."""
    tars = [*folder.glob("*.tar")]
    has_folders = any(each.is_dir() and not is_ignored_dir(each.name) for each in folder.iterdir())
    return tars if len(tars) == 1 and not is_shard(tars[0]) and not has_folders else ()


def _is_native_source(root: Path) -> bool:
    """Whether it is a source as all data here may be: shards, a tree by granularity, or with `dataset.json`."""
    if not root.is_dir():
        return not root.exists() or is_shard(root)  # a pattern, a URL, a registered name
    info = DatasetInfo.read_from_dir(root)
    if (info and info.labels) or any((root / name).is_dir() for name in GRANULARITIES):
        return True
    return any(is_shard(tar) for tar in sorted(root.glob("*.tar")))


def missing_class_dirs_error(suite: str, location: str) -> UserError:
    """Return the error for photos whose classes nothing tells."""
    if suite == "imagenet-val":
        return UserError(
            f"{location}: photos without class folders, as the official archive of ImageNet's validation photos has "
            "them."
            " Sort them into a folder for each WordNet id, by the devkit's ground truth"
        )
    return UserError(f"{location}: no class folders. Expected CLASS/NAME.jpg")
