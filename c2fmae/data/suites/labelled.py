"""A set without corruptions, opened: an official archive, class folders, or any labelled source."""

from collections.abc import Sequence
from pathlib import Path

from c2fmae.core.errors import UserError
from c2fmae.core.labels import is_wnid
from c2fmae.core.scene import GRANULARITIES
from c2fmae.data import DatasetInfo, Scenes, open_scenes
from c2fmae.data.stored import StoredScenes
from c2fmae.data.suites.cells import CellScenes, Labels, labels_of_folders
from c2fmae.data.suites.class_check import refuse_other_classes
from c2fmae.data.suites.file_tree import Place, below_wrapping, is_passed_over, is_shard, place_at


def open_labelled(kind: str, source: str | Path) -> tuple[Scenes, Labels]:
    """Return the photos of a set without corruptions, and its classes."""
    found = class_place(source)
    scenes: Scenes
    if found is None:
        scenes = open_scenes(source, granularities=("rgb",))
        labels = tuple(
            entry and entry.model_copy(update={"wnid": entry.wnid or (entry.name if is_wnid(entry.name) else None)})
            for entry in scenes.info.labels
        )
        if not labels or (isinstance(scenes, StoredScenes) and bool((scenes.labels < 0).any())):
            raise UserError(f"{source}: photos without a label. Give labelled shards, or a folder for each class")
        refuse_other_classes(kind, used_labels(scenes, labels), str(source))
        return scenes, labels
    place, under = found
    names = place.folders(under)
    if not names:
        raise no_class_folders(kind, place.where(under))
    labels = labels_of_folders(names)
    refuse_other_classes(kind, labels, place.where(under))
    scenes = CellScenes(place, under, labels)
    scenes.find()
    return scenes, labels


def class_place(source: str | Path) -> tuple[Place, str] | None:
    """Return where class folders lie whose names are all that tells the classes; None for other sources of labels."""
    path = Path(source)
    root = next(iter(_lone_tar(path)), path) if path.is_dir() else path
    if _is_ours(root):
        return None
    place = place_at(root)
    return place, below_wrapping(place)


def used_labels(scenes: Scenes, labels: Labels) -> Labels:
    """Return the classes that photos have, where that can be told without reading them."""
    if not isinstance(scenes, StoredScenes):
        return labels
    return tuple(labels[label] for label in sorted({*scenes.labels.tolist()}) if label < len(labels))


def _lone_tar(folder: Path) -> Sequence[Path]:
    """The tar of a folder that holds an archive and nothing else to open."""
    tars = [*folder.glob("*.tar")]
    has_folders = any(each.is_dir() and not is_passed_over(each.name) for each in folder.iterdir())
    return tars if len(tars) == 1 and not is_shard(tars[0]) and not has_folders else ()


def _is_ours(root: Path) -> bool:
    """Whether it is a source as all data here may be: shards, a tree by granularity, or with `dataset.json`."""
    if not root.is_dir():
        return not root.exists() or is_shard(root)  # a pattern, a URL, a registered name
    told = DatasetInfo.beside(root)
    if (told and told.labels) or any((root / name).is_dir() for name in GRANULARITIES):
        return True
    return any(is_shard(tar) for tar in sorted(root.glob("*.tar")))


def no_class_folders(kind: str, where: str) -> UserError:
    """Return the error for photos whose classes nothing tells."""
    if kind == "imagenet-val":
        return UserError(
            f"{where}: photos without class folders, as the official archive of ImageNet's validation photos has them."
            " Sort them into a folder for each WordNet id, by the devkit's ground truth"
        )
    return UserError(f"{where}: no class folders. Expected CLASS/NAME.jpg")
