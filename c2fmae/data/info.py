"""`dataset.json`: what the ids of a data set mean and how its maps are stored. It travels with the data."""

import json
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator

from c2fmae.core.config import Config
from c2fmae.core.errors import UserError
from c2fmae.core.granularity import COARSE_TO_FINE, GRANULARITIES, IGNORE
from c2fmae.core.labels import LabelInfo

DATASET_FILE = "dataset.json"
PACK_PLAN_FILE = "pack.json"
"""What `pack` writes first; beside no `dataset.json`, which it writes last, it means that a pack is not finished."""
DATASET_FORMAT = 1

NonEmptyStr = Annotated[str, Field(min_length=1)]
UInt8Value = Annotated[int, Field(ge=0, le=255)]


class ClassInfo(Config):
    """One semantic id."""

    model_config = ConfigDict(extra="allow")

    name: NonEmptyStr
    is_thing: bool | None = None
    """Things can be counted (a car), stuff cannot (the sky)."""
    coco_id: int | None = None
    """COCO's own category id, which has holes."""


class DatasetInfo(Config):
    """What `dataset.json` says. A data set without one has no names, and its maps are at full size."""

    model_config = ConfigDict(extra="allow")  # who made it, and from what, may be told too

    format: Annotated[int, Field(ge=1, le=DATASET_FORMAT)] = DATASET_FORMAT
    name: str = ""
    granularities: tuple[str, ...] = COARSE_TO_FINE
    """Those that every sample has."""
    classes: tuple[ClassInfo, ...] = ()
    """By semantic id; none where the data does not tell."""
    labels: tuple[LabelInfo | None, ...] = ()
    """By label; null for a label that the data leaves out."""
    maps_know_labels: bool | None = None
    """Whether whoever made the maps knew the photos' labels, as a detector does that is asked for them: a map may then
    hold the answer. Null where nobody says."""
    ignore: UInt8Value = IGNORE
    """The semantic id of what nobody labelled; 65535 means the same in 16-bit maps."""
    label_stride: Annotated[int, Field(ge=1, le=64)] = 1
    """Cell (i, j) of a map is the pixel at (s·i + s//2, s·j + s//2), held to the photo."""
    channels: Literal[1, 3, 4] = 3
    mean: tuple[float, ...] | None = None
    std: tuple[Annotated[float, Field(gt=0)], ...] | None = None

    @model_validator(mode="after")
    def _check_consistency(self) -> "DatasetInfo":
        for name in self.granularities:
            GRANULARITIES.get(name)
        if len(self.classes) > IGNORE:
            raise UserError(f"classes: at most {IGNORE} can be told apart, got {len(self.classes)}")
        for extra in self.model_extra or {}:
            # Only what is all but one of ours: other tools may tell more than we know.
            if near := get_close_matches(extra, type(self).model_fields, n=1, cutoff=0.8):
                raise UserError(f"{extra}: no such setting. Did you mean {near[0]!r}?")
        for key in ("mean", "std"):
            values = getattr(self, key)
            if values is not None and len(values) != self.channels:
                raise UserError(f"{key}: expected {self.channels} numbers, one a channel, got {len(values)}")
        return self

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names by semantic id."""
        return tuple(entry.name for entry in self.classes)

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names by label, empty for those that the data leaves out."""
        return tuple(entry.name if entry else "" for entry in self.labels)

    @classmethod
    def read_from_dir(cls, folder: Path) -> "DatasetInfo | None":
        """Read the `dataset.json` of a folder, if it has one."""
        path = folder / DATASET_FILE
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise UserError(f"{path}: not JSON ({error}). Mend it, or remove it") from error
        if not isinstance(document, dict):
            raise UserError(f"{path}: expected an object with `classes`, `ignore`, `label_stride`, …")
        return cls.from_dict(document, source=str(path))

    def to_json(self) -> str:
        """Return the text of a `dataset.json`; the same info gives the same text."""
        document = self.model_dump(mode="json", exclude_none=True)
        document["labels"] = [entry and entry.model_dump(mode="json", exclude_none=True) for entry in self.labels]
        return json.dumps(document, indent=1, ensure_ascii=False) + "\n"
