"""A set of corrupted photos as it lies in a folder, in the layout of ImageNet-C.

    OUT/CORRUPTION/SEVERITY/CLASS/NAME.jpg
    OUT/dataset.json

CLASS is the WordNet id of the label, or its name; photos without a label have none. `dataset.json` says under
`corrupted` by what the set was made and, while it is being made, which cells of it are not `unfinished`.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from c2fmae.core.errors import UserError
from c2fmae.core.labels import LabelInfo
from c2fmae.data.corruption.names import CORRUPTIONS, EXTRA, SEVERITIES
from c2fmae.data.encode import UNFINISHED, whole_file
from c2fmae.data.info import FILE_NAME, DatasetInfo

Where = tuple[str, int]
"""A corruption and its severity."""

_ALL: tuple[Where, ...] = tuple((name, severity) for name in (*CORRUPTIONS, *EXTRA) for severity in SEVERITIES)
_NOT_COMPARED = ("made_by", "unfinished")


def photo_names(keys: Sequence[str]) -> list[str]:
    """Return what photos are called in their class folders: the last part of the key, or all of it if that repeats.

    >>> photo_names(["val/a.1", "val/b"]), photo_names(["cat/1", "dog/1"])
    (['a.1', 'b'], ['cat_1', 'dog_1'])
    """
    names = [_safe(PurePosixPath(key).name) for key in keys]
    if len(set(names)) < len(names):
        names = [_safe(key) for key in keys]
    if len(set(names)) < len(names):
        again = Counter(names).most_common(1)[0][0]
        first, second, *_ = (key for key, name in zip(keys, names, strict=True) if name == again)
        raise UserError(f"samples {first!r} and {second!r} would both be written as {again}.jpg. Rename one")
    return names


def class_folders(labels: Sequence[LabelInfo | None]) -> list[str]:
    """Return the folder of each label, empty for one that the data leaves out."""
    folders = [_safe(entry.wnid or entry.name) if entry else "" for entry in labels]
    seen: dict[str, int] = {}
    for label, folder in enumerate(folders):
        if folder and (first := seen.setdefault(folder, label)) != label:
            raise UserError(
                f"labels {first} and {label} would both have the folder {folder!r}. Give them a wnid, or names that"
                " differ, in dataset.json"
            )
    return folders


def _safe(name: str) -> str:
    """Return a name that a file may have and that readers do not take for a hidden one."""
    return re.sub(r"^\.|[/\\\x00-\x1f\x7f]", "_", name)


@dataclass(frozen=True)
class CorruptedSet:
    """The folder of a set, and what tells it from any other."""

    path: Path
    name: str
    labels: tuple[LabelInfo | None, ...]
    made: Mapping[str, Any]
    """What its bytes depend on, as `dataset.json` has it under `corrupted`."""

    def photo(self, where: Where, folder: str, name: str) -> Path:
        """Return where a photo is."""
        return self.path / where[0] / str(where[1]) / folder / f"{name}.jpg"

    def unfinished(self) -> tuple[Where, ...]:
        """Return the cells that were begun and not finished; a folder with anything but this set in it is refused."""
        try:
            strangers = sorted(entry.name for entry in self.path.iterdir() if not entry.name.endswith(UNFINISHED))
        except OSError as error:
            raise UserError(f"{self.path}: cannot be used: {error.strerror}. Give another folder") from error
        told = DatasetInfo.beside(self.path)
        made = told and (told.model_extra or {}).get("corrupted")
        if not told or not isinstance(made, dict):
            if strangers:
                text = f"holds {strangers[0]!r} and no {FILE_NAME} of a corrupted set"
                raise UserError(f"{self.path}: {text}. Give a folder that is new or empty")
            return ()
        changes = [
            f"{key} {made.get(key)!r}, now {value!r}"
            for key, value in self.made.items()
            if key not in _NOT_COMPARED and made.get(key) != value
        ]
        if told.labels != self.labels:
            changes.append("other labels")
        if changes:
            raise UserError(
                f"{self.path / FILE_NAME}: this set was begun with {'; '.join(changes)}. Corrupt the same scenes with"
                " the same settings, or give another folder"
            )
        left = set(made.get("unfinished", ()))
        return tuple(where for where in _ALL if _say(where) in left)

    def say(self, unfinished: Collection[Where]) -> None:
        """Write `dataset.json`; who began the set stays named in it."""
        told = DatasetInfo.beside(self.path)
        made = dict((told.model_extra or {})["corrupted"] if told else self.made)
        made.pop("unfinished", None)
        if unfinished:
            made["unfinished"] = [_say(where) for where in _ALL if where in set(unfinished)]
        info = DatasetInfo(name=self.name, granularities=("rgb",), labels=self.labels)
        values = {**json.loads(info.to_json()), "corrupted": made}
        write(self.path / FILE_NAME, (json.dumps(values, indent=1, ensure_ascii=False) + "\n").encode())

    def present(self, cells: Collection[Where]) -> Counter[str]:
        """Return how many of the cells have a photo of each name; what a killed run left half written goes."""
        found: Counter[str] = Counter()
        for path in self.path.glob(f".*{UNFINISHED}"):
            path.unlink(missing_ok=True)
        for corruption, severity in cells:
            for place, _, files in os.walk(self.path / corruption / str(severity)):
                for name in files:
                    if name.endswith(UNFINISHED):
                        Path(place, name).unlink(missing_ok=True)
                    else:
                        found[name.removesuffix(".jpg")] += 1
        return found


def write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, its folder made where need be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path.parent}: cannot be made: {error.strerror}. Mend that and run this again") from error
    with whole_file(path) as stream:
        stream.write(data)


def _say(where: Where) -> str:
    return f"{where[0]}/{where[1]}"
