"""The record of how a corruption set was created, which `dataset.json` stores under `corrupted`."""

from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field

from c2fmae.core.config import Config
from c2fmae.data.info import DATASET_FILE, DatasetInfo

RECORD_KEY = "corrupted"
"""The key of `dataset.json` under which the record is stored."""

_MAY_DIFFER = ("made_by", "unfinished")  # between runs that write the same set


class CreationRecord(Config):
    """Source and settings of a corruption set, which determine its bytes, and its unfinished cells.

    >>> CreationRecord(made_by="c2fmae 1", tool="t 2", source="cats", size=(224, 224), quality=85).description
    'created by c2fmae 1 with t 2 from cats at 224×224, JPEG quality 85; not the released ImageNet-C'
    """

    model_config = ConfigDict(extra="allow", populate_by_name=True)

    made_by: str
    """Name and version of this package."""
    tool: str
    """Name and version of the corruption package."""
    source: str
    samples: int | None = None
    size: tuple[int, int] | None = None
    """Height and width to which images were cropped; None if each has its own."""
    crop: float | None = None
    """Fraction of the shorter side that was cropped."""
    quality: int
    """JPEG quality."""
    seed: int | None = None
    keys: str | None = None
    """Digest of the keys of the scenes."""
    first_image: str | None = Field(None, alias="first photo")
    """Digest of the first image."""
    unfinished: tuple[str, ...] = ()
    """Cells that may lack images."""

    @property
    def description(self) -> str:
        """A sentence about how the set was created."""
        size = f"at {self.size[1]}×{self.size[0]}" if self.size else "at the images' own sizes"
        return (
            f"created by {self.made_by} with {self.tool} from {self.source} {size}, JPEG quality {self.quality};"
            " not the released ImageNet-C"
        )

    @property
    def unfinished_note(self) -> str | None:
        """A note that lists the unfinished cells; None if all are complete."""
        return f"unfinished cells: {', '.join(self.unfinished)}" if self.unfinished else None

    @property
    def identity(self) -> dict[str, Any]:
        """All values except `unfinished`. Sets with equal values have the same images."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude={"unfinished"})

    def describe_differences(self, other: "CreationRecord") -> list[str]:
        """Return a phrase for each value that changes images and differs in another record."""
        old, new = self.identity, other.identity
        keys = [key for key in new if key not in _MAY_DIFFER and old.get(key) != new[key]]
        return [f"{key} {old.get(key)!r}, now {new[key]!r}" for key in keys]

    def to_dict(self) -> dict[str, Any]:
        """Return the values for `dataset.json`."""
        return self.identity | ({"unfinished": list(self.unfinished)} if self.unfinished else {})


def read_creation_record(root: Path) -> tuple[DatasetInfo, CreationRecord | None]:
    """Read `dataset.json` of a directory: its info (empty without the file), and the record of a corruption set."""
    info = (DatasetInfo.read_from_dir(root) if root.is_dir() else None) or DatasetInfo()
    values = (info.model_extra or {}).get(RECORD_KEY)
    if not isinstance(values, dict):
        return info, None
    return info, CreationRecord.from_dict(values, source=f"{root / DATASET_FILE}: {RECORD_KEY}")
