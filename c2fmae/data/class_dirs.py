"""Class directories: conversion between labels and the names of directories."""

import re
from collections.abc import Mapping, Sequence

from c2fmae.core.errors import UserError
from c2fmae.core.labels import LabelInfo, is_wnid


def class_dir_names(labels: Sequence[LabelInfo | None]) -> list[str]:
    """Return the directory name of each label: its WordNet id, or else its name; empty for a label without a class."""
    names = [class_dir_name(entry) if entry else "" for entry in labels]
    seen: dict[str, int] = {}
    for label, name in enumerate(names):
        if name and (first := seen.setdefault(name, label)) != label:
            raise UserError(
                f"dataset.json: labels {first} and {label} have the same class directory {name!r}. Give each a `wnid`,"
                " or different names"
            )
    return names


def class_dir_name(label: LabelInfo) -> str:
    """Return the directory name of one class."""
    return to_file_name(label.wnid or label.name)


def to_file_name(name: str) -> str:
    """Replace characters that a file name cannot hold, and a leading dot, which would hide the file.

    >>> to_file_name("cat/dog"), to_file_name(".git")
    ('cat_dog', '_git')
    """
    return re.sub(r"^\.|[/\\\x00-\x1f\x7f]", "_", name)


def map_dirs_to_labels(labels: Sequence[LabelInfo | None]) -> Mapping[str, int]:
    """Return the label of each directory name that denotes a class: its name, WordNet id or `class_dir_name`.

    >>> map_dirs_to_labels((LabelInfo(name="tench", wnid="n01440764"), None, LabelInfo(name="cat/dog")))
    {'n01440764': 0, 'cat_dog': 2, 'tench': 0, 'cat/dog': 2}
    """
    entries = [(label, entry) for label, entry in enumerate(labels) if entry]
    exact = {name: label for label, entry in entries for name in (entry.name, entry.wnid) if name}
    return {class_dir_name(entry): label for label, entry in entries} | exact


def dir_name_to_label(name: str) -> LabelInfo:
    """Return the class of a directory. A name in the form of a WordNet id becomes the class's `wnid` too."""
    return LabelInfo(name=name, wnid=name if is_wnid(name) else None)
