"""Sets without corruptions: an official archive, class directories, or any labelled source."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from c2fmae.core.errors import UserError
from c2fmae.core.granularity import GRANULARITIES
from c2fmae.core.labels import is_wnid
from c2fmae.core.text import format_count
from c2fmae.data.digest import compute_scenes_digest
from c2fmae.data.info import DatasetInfo
from c2fmae.data.scenes import Scenes
from c2fmae.data.sources import open_scenes
from c2fmae.data.stored import StoredScenes
from c2fmae.data.suites.class_check import check_classes, describe_missing_classes
from c2fmae.data.suites.class_dir_scenes import ClassDirScenes
from c2fmae.data.suites.dir_tree import is_ignored_dir
from c2fmae.data.suites.file_tree import FileTree, find_class_root, is_shard, open_file_tree
from c2fmae.data.suites.folder_check import (
    NUM_SAMPLED,
    check_images_below,
    check_sampled_images,
    classify_files,
    describe_unexpected_files,
    format_summary,
)
from c2fmae.data.suites.label_map import SetLabels
from c2fmae.data.suites.shifted_set import Cell, ShiftedSet, describe_count_difference
from c2fmae.data.suites.suite import Suite, SuiteCheckReport, choose_set_name


class LabelledImages:
    """The layout CLASS/NAME.jpg in a directory or a tar, or any source of scenes with labels; one cell."""

    def open(self, suite: Suite, source: str | Path) -> ShiftedSet:
        """Open a set. Raise a `UserError` if it has classes that the suite does not have."""
        scenes, labels = _open_labelled_scenes(suite, source)
        identity = compute_scenes_digest(scenes, suite.name)
        cell = Cell(None, None, scenes, suite.num_images, identity)
        warnings = (describe_missing_classes(suite, _collect_used_labels(scenes, labels)), cell.count_sentence)
        return ShiftedSet(
            name=choose_set_name(suite, source, scenes.info),
            suite=suite.name,
            cells=(cell,),
            labels=labels,
            protocol_wnids=suite.protocol_wnids,
            is_cropped=suite.image_size is not None,
            creation_sentence=None,
            warnings=tuple(text for text in warnings if text),
            identity=identity,
            label_map=suite.label_map(labels),
        )

    def check(self, suite: Suite, source: str | Path) -> SuiteCheckReport:
        """Compare a set with the complete one by names, counts and a sample of its images."""
        class_dirs = find_class_dirs(source)
        if class_dirs is None:
            return _check_labelled_scenes(suite, source)
        tree, subdir = class_dirs
        dir_names, contents = tree.list_dirs(subdir), classify_files(tree.list_files(subdir))
        if not dir_names:
            raise _missing_class_dirs_error(suite, tree.describe_location(subdir))
        findings, num_sampled = check_images_below(tree, subdir, NUM_SAMPLED, suite.image_size)
        return SuiteCheckReport(
            (*describe_unexpected_files(suite, dir_names, contents), *findings),
            format_summary(suite.name, contents.images.total(), len(dir_names), num_sampled),
        )


def _open_labelled_scenes(suite: Suite, source: str | Path) -> tuple[Scenes, SetLabels]:
    """Return the images of a set, and its classes."""
    class_dirs = find_class_dirs(source)
    labels: SetLabels
    if class_dirs is None:
        stored = open_scenes(source, granularities=("rgb",))
        labels = tuple(
            entry and entry.model_copy(update={"wnid": entry.wnid or (entry.name if is_wnid(entry.name) else None)})
            for entry in stored.info.labels
        )
        if not labels or (isinstance(stored, StoredScenes) and bool((stored.labels < 0).any())):
            raise UserError(f"{source}: has images without a label. Use labelled shards, or a directory for each class")
        check_classes(suite, _collect_used_labels(stored, labels), str(source))
        return stored, labels
    tree, subdir = class_dirs
    names = tree.list_dirs(subdir)
    if not names:
        raise _missing_class_dirs_error(suite, tree.describe_location(subdir))
    labels = tuple(map(suite.name_to_label, names))
    check_classes(suite, labels, tree.describe_location(subdir))
    scenes = ClassDirScenes(tree, subdir, labels)
    scenes.list_images()
    return scenes, labels


def find_class_dirs(source: str | Path) -> tuple[FileTree, str] | None:
    """Return the tree and the directory of class directories; None for a source whose labels `open_scenes` reads."""
    path = Path(source)
    root = next(iter(_find_only_tar(path)), path) if path.is_dir() else path
    if _is_native_source(root):
        return None
    tree = open_file_tree(root)
    return tree, find_class_root(tree)


def _find_only_tar(folder: Path) -> Sequence[Path]:
    """Return the tar of a directory that contains one archive and no directories."""
    tars = [*folder.glob("*.tar")]
    has_dirs = any(path.is_dir() and not is_ignored_dir(path.name) for path in folder.iterdir())
    return tars if len(tars) == 1 and not is_shard(tars[0]) and not has_dirs else ()


def _is_native_source(root: Path) -> bool:
    """Return whether `open_scenes` reads the labels: shards, a tree by granularity, or one with `dataset.json`."""
    if not root.is_dir():
        return not root.exists() or is_shard(root)  # a pattern, a URL, a registered name
    info = DatasetInfo.read_from_dir(root)
    if (info and info.labels) or any((root / name).is_dir() for name in GRANULARITIES):
        return True
    return any(is_shard(tar) for tar in sorted(root.glob("*.tar")))


def _collect_used_labels(scenes: Scenes, labels: SetLabels) -> SetLabels:
    """Return the classes that images have, where labels are known without decoding; elsewhere all classes."""
    if not isinstance(scenes, StoredScenes):
        return labels
    return tuple(labels[label] for label in sorted({*scenes.labels.tolist()}) if label < len(labels))


def _check_labelled_scenes(suite: Suite, source: str | Path) -> SuiteCheckReport:
    """Check a source whose labels `open_scenes` reads."""
    scenes, labels = _open_labelled_scenes(suite, source)
    used = _collect_used_labels(scenes, labels)
    findings = [describe_missing_classes(suite, used), describe_count_difference(len(scenes), suite.num_images)]
    if suite.images_per_class is not None and isinstance(scenes, StoredScenes):
        counts = Counter(Counter(scenes.labels.tolist()).values())
        others = sum(num_classes for count, num_classes in counts.items() if count != suite.images_per_class)
        classes = format_count(others, "class", "classes")
        findings.append(f"{classes} with a number of images other than {suite.images_per_class}" if others else None)
    image_findings, num_sampled = check_sampled_images(scenes, NUM_SAMPLED, suite.image_size)
    summary = format_summary(suite.name, len(scenes), len(used), num_sampled)
    return SuiteCheckReport((*(text for text in findings if text), *image_findings), summary)


def _missing_class_dirs_error(suite: Suite, location: str) -> UserError:
    return UserError(f"{location}: no class directories (expected CLASS/NAME.jpg). {suite.class_dirs_hint}")
