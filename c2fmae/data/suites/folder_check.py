"""Checks of class directories: names, counts, and a sample of images."""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice

from c2fmae.core.errors import UserError
from c2fmae.core.text import format_count
from c2fmae.data.scenes import Scenes
from c2fmae.data.spacing import evenly_spaced_indices
from c2fmae.data.stored import DOTTED_IMAGE_SUFFIXES
from c2fmae.data.suites.class_check import describe_unexpected_classes
from c2fmae.data.suites.file_tree import FileTree
from c2fmae.data.suites.shifted_set import describe_count_difference
from c2fmae.data.suites.suite import Suite

NUM_SAMPLED = 64
"""Number of images that a check decodes."""
_MAX_LISTED = 5  # names in a finding


@dataclass
class ClassDirContents:
    """The files of a directory with class directories, by category."""

    images: Counter[str] = field(default_factory=Counter)
    """Number of images by class directory."""
    unclassified_images: list[str] = field(default_factory=list)
    """Images in no class directory."""
    nested_dirs: set[str] = field(default_factory=set)
    """Directories with files inside class directories."""
    other_files: list[str] = field(default_factory=list)
    """Files in class directories without the suffix of an image."""
    macos_files: list[str] = field(default_factory=list)
    """Files that macOS adds."""


def classify_files(paths: Iterable[str]) -> ClassDirContents:
    """Classify files; hidden files, and files that are not images outside of class directories, are ignored."""
    contents = ClassDirContents()
    for path in paths:
        folder, _, name = path.rpartition("/")
        is_image = name.lower().endswith(DOTTED_IMAGE_SUFFIXES)
        if name.startswith("._") or name == ".DS_Store" or path.startswith("__MACOSX/"):
            contents.macos_files.append(path)
        elif name.startswith(".") or path.startswith(".") or "/." in path:
            continue
        elif "/" in folder:
            contents.nested_dirs.add(folder)
        elif folder and is_image:
            contents.images[folder] += 1
        elif folder:
            contents.other_files.append(path)
        elif is_image:
            contents.unclassified_images.append(path)
    return contents


def describe_unexpected_files(suite: Suite, dir_names: Sequence[str], contents: ClassDirContents) -> list[str]:
    """Return a sentence for each way in which files differ from those of the complete set."""
    wnids = suite.wnids() if suite.wnids else ()
    per_class = suite.images_per_class
    labels = tuple(map(suite.name_to_label, dir_names))
    present = {label.wnid for label in labels}
    missing = [wnid for wnid in wnids if wnid not in present]
    empty = [name for name in dir_names if not contents.images[name]]
    other = [f"{name} ({count})" for name, count in sorted(contents.images.items()) if per_class not in (None, count)]
    sentences = [
        describe_unexpected_classes(suite, labels),
        _list_if_any(f"{len(missing)} of {len(wnids):,} class directories missing", missing),
        _list_if_any(f"{format_count(len(empty), 'class directory', 'class directories')} without images", empty),
        _list_if_any(
            f"{format_count(len(other), 'class', 'classes')} with a number of images other than {per_class}", other
        ),
        describe_count_difference(contents.images.total(), suite.num_images),
        _list_if_any(
            f"{format_count(len(contents.nested_dirs), 'directory', 'directories')} inside class directories",
            sorted(contents.nested_dirs),
        ),
        _list_if_any(
            f"{format_count(len(contents.unclassified_images), 'image', 'images')} in no class directory",
            contents.unclassified_images,
        ),
        _list_if_any(
            format_count(len(contents.other_files), "file that is not an image", "files that are not images"),
            contents.other_files,
        ),
        _list_if_any(
            f"{format_count(len(contents.macos_files), 'file', 'files')} added by macOS, ignored",
            contents.macos_files,
        ),
    ]
    return [sentence for sentence in sentences if sentence]


def check_images_below(tree: FileTree, subdir: str, count: int, size: tuple[int, int] | None) -> tuple[list[str], int]:
    """Return findings about a sample of the images below a directory, and the size of the sample."""
    try:
        return check_sampled_images(tree.open_images(subdir), count, size)
    except UserError as error:  # two images of one name, or no image
        return [str(error)], 0


def check_sampled_images(scenes: Scenes, count: int, size: tuple[int, int] | None) -> tuple[list[str], int]:
    """Return findings about at most `count` images, evenly spaced, and the number of images that were decoded.

    `size` is the expected height and width; None accepts any.
    """
    indices = evenly_spaced_indices(len(scenes), count)
    broken, other = list[str](), list[str]()
    for index in indices:
        try:
            height, width = scenes[index].maps["rgb"].shape[-2:]
        except UserError as error:
            broken.append(str(error))
            continue
        if size not in (None, (height, width)):
            other.append(f"{scenes.keys[index]} ({width}×{height})")
    findings = []
    if broken:
        findings.append(f"{len(broken)} of {len(indices)} sampled images cannot be decoded. {broken[0]}")
    if other and size:
        findings.append(_list_some(f"{len(other)} of {len(indices)} sampled images are not {size[1]}×{size[0]}", other))
    return findings, len(indices)


def format_summary(name: str, num_images: int, num_classes: int, num_sampled: int) -> str:
    """Return the last line of a check.

    >>> format_summary("imagenet-a", 7500, 200, 64)
    'imagenet-a: 7,500 images of 200 classes, 64 of them decoded'
    """
    contents = f"{format_count(num_images, 'image', 'images')} of {format_count(num_classes, 'class', 'classes')}"
    return f"{name}: {contents}, {num_sampled:,} of them decoded"


def _list_if_any(text: str, names: Sequence[str]) -> str | None:
    return _list_some(text, names) if names else None


def _list_some(text: str, names: Collection[str]) -> str:
    more = ", …" if len(names) > _MAX_LISTED else ""
    return f"{text}: {', '.join(islice(names, _MAX_LISTED))}{more}"
