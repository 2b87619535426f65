"""`dataset.json`, which is stored with the data: the meaning of ids, and the storage of maps."""

import json
import os
from collections import Counter
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, model_serializer, model_validator

from c2fmae.core.config import Config
from c2fmae.core.errors import UserError
from c2fmae.core.granularity import COARSE_TO_FINE, GRANULARITIES, IGNORE
from c2fmae.core.json_file import read_json
from c2fmae.core.labels import ClassInfo, LabelInfo

DATASET_FILE = "dataset.json"
PACK_PLAN_FILE = "pack.json"
"""The file that `pack` writes first; without `dataset.json`, which it writes last, the pack is unfinished."""
DATASET_FORMAT = 1

_LATER_KEYS = ("value_range", "offset", "colours", "object_classes")
_MAX_FILE_BYTES = 1 << 26  # tens of thousands of classes with names


def _check_range(pair: tuple[float, float]) -> tuple[float, float]:
    if not pair[0] < pair[1]:
        raise UserError(f"expected the lower value first, got {list(pair)}. Swap them")
    return pair


def _list_ranges(value: Any) -> Any:
    """Return a list of ranges; a single pair may be written without the outer list."""
    is_pair = isinstance(value, list | tuple) and not any(isinstance(item, list | tuple) for item in value)
    return [value] if is_pair else value


def _is_byte(value: Any) -> bool:
    return type(value) is int and 0 <= value <= 255


def _parse_colour(value: Any) -> Any:
    """Return red, green and blue; a single number is short for grey."""
    channels = (value, value, value) if isinstance(value, int) else value
    if not isinstance(channels, list | tuple) or len(channels) != 3 or not all(map(_is_byte, channels)):
        raise UserError(f"expected [red, green, blue] or one number, from 0 to 255, got {value!r}")
    return tuple(channels)


def _parse_ignore(value: Any) -> Any:
    """Return an id or a colour."""
    if isinstance(value, list | tuple):
        return _parse_colour(value)
    if not _is_byte(value):
        raise UserError(f"expected an id from 0 to 255, or with `colours` a colour, got {value!r}")
    return value


ValueRange = Annotated[tuple[float, float], AfterValidator(_check_range)]
RGBColour = Annotated[tuple[int, int, int], BeforeValidator(_parse_colour)]
IgnoredValue = Annotated[int | tuple[int, int, int], BeforeValidator(_parse_ignore)]


class DatasetInfo(Config):
    """Content of `dataset.json`. A data set without the file has no names, and its maps are at full size."""

    model_config = ConfigDict(extra="allow")  # other tools may add keys

    format: Annotated[int, Field(ge=1, le=DATASET_FORMAT)] = DATASET_FORMAT
    name: str = ""
    granularities: tuple[str, ...] = COARSE_TO_FINE
    """Granularities that every sample has."""
    classes: tuple[ClassInfo, ...] = ()
    """Classes by semantic id; empty if unknown."""
    object_classes: tuple[ClassInfo, ...] = ()
    """Classes of objects (boxes and masks) by label, with the category ids of COCO files; empty without objects."""
    labels: tuple[LabelInfo | None, ...] = ()
    """Image classes by label; null for a label that no image has."""
    maps_know_labels: bool | None = None
    """Whether the maps were created from the images' labels, for example by a detector that is prompted with them, so
    that a map may reveal the label. Null if unknown."""
    ignore: IgnoredValue = IGNORE
    """Semantic id of pixels without a class, as in the files, or with `colours` their colour; in 16-bit maps 65535
    means the same."""
    offset: Annotated[int, Field(ge=0, le=65534)] = 0
    """Number of the first class in the files of semantic maps."""
    colours: tuple[RGBColour, ...] = ()
    """Colour of each class in the files of semantic maps, if they are colour images; a number is short for grey."""
    label_stride: Annotated[int, Field(ge=1, le=64)] = 1
    """Cell (i, j) of a map is the pixel at (s·i + s//2, s·j + s//2), clamped to the image."""
    channels: Annotated[int, Field(ge=1, le=1024)] = 3
    value_range: Annotated[tuple[ValueRange, ...], BeforeValidator(_list_ranges)] | None = None
    """Stored values that become 0 and 255 in memory: one pair, or one for each channel. By default, 0 and 255 of bytes,
    0 and 65535 of 16-bit images."""
    mean: tuple[float, ...] | None = None
    std: tuple[Annotated[float, Field(gt=0)], ...] | None = None

    @model_serializer(mode="wrap")
    def _omit_later_defaults(self, dump: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """Omit defaults of later keys: digests of data, and so stored results, are those of version 0.1."""
        tree = dump(self)
        return {key: value for key, value in tree.items() if key not in _LATER_KEYS or getattr(self, key)}

    @model_validator(mode="after")
    def _check_consistency(self) -> "DatasetInfo":
        for name in self.granularities:
            GRANULARITIES.get(name)
        if len(self.classes) > IGNORE:
            raise UserError(
                f"classes: expected at most {IGNORE}, got {len(self.classes)}: ids are bytes, and {IGNORE} is"
                ' "not labelled". Merge classes'
            )
        self._check_colours()
        for extra in self.model_extra or {}:
            # Only misspelt names are errors: other keys may belong to another tool.
            if near := get_close_matches(extra, type(self).model_fields, n=1, cutoff=0.8):
                raise UserError(f"{extra}: no such setting. Did you mean {near[0]!r}?")
        for key in ("mean", "std"):
            values = getattr(self, key)
            if values is not None and len(values) != self.channels:
                raise UserError(f"{key}: expected {self.channels} numbers, one per channel, got {len(values)}")
        if self.value_range is not None and len(self.value_range) not in (1, self.channels):
            raise UserError(
                f"value_range: expected one pair [low, high] or {self.channels}, one per channel, "
                f"got {len(self.value_range)}"
            )
        return self

    def _check_colours(self) -> None:
        if not self.colours:
            if not isinstance(self.ignore, int):
                raise UserError(f"ignore: {list(self.ignore)} is a colour, but there are no `colours`. Give an id")
            return
        if len(self.colours) != len(self.classes):
            raise UserError(
                f"colours: expected one for each of the {len(self.classes)} classes, got {len(self.colours)}. Name each"
                " class in `classes`"
            )
        colour, count = Counter(self.colours).most_common(1)[0]
        if count > 1:
            raise UserError(f"colours: {list(colour)} is the colour of {count} classes. Give each its own")
        if self.offset:
            raise UserError("offset: has no meaning with `colours`. Remove it")

    @property
    def ignore_colour(self) -> tuple[int, int, int]:
        """Colour of pixels without a class in the files of semantic maps, with `colours`."""
        return (self.ignore, self.ignore, self.ignore) if isinstance(self.ignore, int) else self.ignore

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names by semantic id."""
        return tuple(entry.name for entry in self.classes)

    @property
    def object_class_names(self) -> tuple[str, ...]:
        """Names of the classes of objects by label."""
        return tuple(entry.name for entry in self.object_classes)

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names by label, empty for those that no image has."""
        return tuple(entry.name if entry else "" for entry in self.labels)

    @classmethod
    def read_from_dir(cls, folder: Path) -> "DatasetInfo | None":
        """Read the `dataset.json` of a directory; return None if there is none."""
        path = folder / DATASET_FILE
        if not os.path.exists(path):  # noqa: PTH110 - Path.exists raises in a directory without permission
            return None
        return cls.from_dict(read_json(path, max_bytes=_MAX_FILE_BYTES, fix="Fix or remove it"), source=str(path))

    def to_json(self) -> str:
        """Return the text of a `dataset.json`; equal infos give equal texts."""
        document = self.model_dump(mode="json", exclude_none=True)
        document["labels"] = [entry and entry.model_dump(mode="json", exclude_none=True) for entry in self.labels]
        return json.dumps(document, indent=1, ensure_ascii=False) + "\n"
