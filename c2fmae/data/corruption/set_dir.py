"""The directory of a corruption set, in the layout of ImageNet-C.

    OUT/CORRUPTION/SEVERITY/CLASS/NAME.jpg
    OUT/dataset.json

CLASS is the WordNet id of the label, or its name; images without a label have none. `dataset.json` has a
`CreationRecord`, which lists unfinished cells while a run is writing.
"""

import json
import os
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from c2fmae.core.errors import UserError
from c2fmae.core.files import PARTIAL_SUFFIX, write_atomic
from c2fmae.core.labels import LabelInfo
from c2fmae.data.class_dirs import to_file_name
from c2fmae.data.corruption.creation_record import RECORD_KEY, CreationRecord, read_creation_record
from c2fmae.data.corruption.names import CORRUPTIONS, EXTRA_CORRUPTIONS, SEVERITIES
from c2fmae.data.info import DATASET_FILE, DatasetInfo

CellKey = tuple[str, int]
"""A corruption and its severity."""

_ALL_CELLS: tuple[CellKey, ...] = tuple(
    (name, severity) for name in (*CORRUPTIONS, *EXTRA_CORRUPTIONS) for severity in SEVERITIES
)


def image_file_names(keys: Sequence[str]) -> list[str]:
    """Return the file name of each image: the last part of its key, or the complete key if last parts are not unique.

    >>> image_file_names(["val/a.1", "val/b"]), image_file_names(["cat/1", "dog/1"])
    (['a.1', 'b'], ['cat_1', 'dog_1'])
    """
    names = [to_file_name(PurePosixPath(key).name) for key in keys]
    if len(set(names)) < len(names):
        names = [to_file_name(key) for key in keys]
    if len(set(names)) < len(names):
        duplicate = Counter(names).most_common(1)[0][0]
        first, second, *_ = (key for key, name in zip(keys, names, strict=True) if name == duplicate)
        raise UserError(f"samples {first!r} and {second!r} would both be written as {duplicate}.jpg. Rename one")
    return names


@dataclass(frozen=True)
class CorruptionSetDir:
    """The directory of a corruption set, with its name, labels and creation record."""

    path: Path
    name: str
    labels: tuple[LabelInfo | None, ...]
    record: CreationRecord
    """The record that a set in this directory must have."""

    def image_path(self, cell: CellKey, class_dir: str, name: str) -> Path:
        """Return the path of an image."""
        return self.path / cell[0] / str(cell[1]) / class_dir / f"{name}.jpg"

    def read_unfinished(self) -> tuple[CellKey, ...]:
        """Return the cells that an earlier run started and did not finish.

        Raises a `UserError` if the directory contains anything but this set.
        """
        try:
            unexpected = sorted(entry.name for entry in self.path.iterdir() if not entry.name.endswith(PARTIAL_SUFFIX))
        except OSError as error:
            raise UserError(f"{self.path}: cannot be listed: {error.strerror}. Choose another directory") from error
        info, existing = read_creation_record(self.path)
        if existing is None:
            if unexpected:
                text = f"contains {unexpected[0]!r} but no {DATASET_FILE} of a corruption set"
                raise UserError(f"{self.path}: {text}. Choose a new or empty directory")
            return ()
        changes = existing.describe_differences(self.record)
        if info.labels != self.labels:
            changes.append("other labels")
        if changes:
            raise UserError(
                f"{self.path / DATASET_FILE}: this set was started with {'; '.join(changes)}. Corrupt the same scenes"
                " with the same settings, or choose another directory"
            )
        return tuple(cell for cell in _ALL_CELLS if _cell_name(cell) in existing.unfinished)

    def write_metadata(self, unfinished: Collection[CellKey]) -> None:
        """Write `dataset.json`; an existing record stays, except for `unfinished`."""
        record = read_creation_record(self.path)[1] or self.record
        names = tuple(_cell_name(cell) for cell in _ALL_CELLS if cell in set(unfinished))
        info = DatasetInfo(name=self.name, granularities=("rgb",), labels=self.labels)
        values = json.loads(info.to_json()) | {RECORD_KEY: record.model_copy(update={"unfinished": names}).to_dict()}
        write_atomic(self.path / DATASET_FILE, (json.dumps(values, indent=1, ensure_ascii=False) + "\n").encode())

    def count_images(self, cells: Collection[CellKey]) -> Counter[str]:
        """Return the number of cells with an image, by image name; remove partial files of a killed run."""
        counts: Counter[str] = Counter()
        for path in self.path.glob(f".*{PARTIAL_SUFFIX}"):
            path.unlink(missing_ok=True)
        for corruption, severity in cells:
            for folder, _, files in os.walk(self.path / corruption / str(severity)):
                for name in files:
                    if name.endswith(PARTIAL_SUFFIX):
                        Path(folder, name).unlink(missing_ok=True)
                    else:
                        counts[name.removesuffix(".jpg")] += 1
        return counts


def _cell_name(cell: CellKey) -> str:
    return f"{cell[0]}/{cell[1]}"
