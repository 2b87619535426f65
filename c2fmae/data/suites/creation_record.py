"""By what a self-made set was made, as its `dataset.json` says under `corrupted`."""

from pathlib import Path

from pydantic import ConfigDict

from c2fmae.core.config import Config
from c2fmae.data import DatasetInfo
from c2fmae.data.info import DATASET_FILE


class CreationRecord(Config):
    """What tells a self-made set from a released one.

    >>> CreationRecord(made_by="c2fmae 1", tool="t 2", source="cats", size=(224, 224), quality=85).description
    'self-made by c2fmae 1 with t 2 from cats at 224×224, JPEG quality 85: not the released ImageNet-C'
    """

    model_config = ConfigDict(extra="allow")

    made_by: str
    tool: str
    source: str
    size: tuple[int, int] | None = None
    """Height and width to which photos were cut; null where each has its own."""
    quality: int
    unfinished: tuple[str, ...] = ()
    """Cells whose making was begun."""

    @property
    def description(self) -> str:
        """Say what it is."""
        at = f"at {self.size[1]}×{self.size[0]}" if self.size else "at the photos' own sizes"
        how = f"{at}, JPEG quality {self.quality}"
        return f"self-made by {self.made_by} with {self.tool} from {self.source} {how}: not the released ImageNet-C"

    @property
    def unfinished_note(self) -> str | None:
        """Say which cells are not whole yet."""
        return f"its making is not finished: {', '.join(self.unfinished)}" if self.unfinished else None


def read_creation_record(root: Path) -> tuple[DatasetInfo, CreationRecord | None]:
    """Return what `dataset.json` says of a set, and of its making if it was made here."""
    info = (DatasetInfo.read_from_dir(root) if root.is_dir() else None) or DatasetInfo()
    record = (info.model_extra or {}).get("corrupted")
    return info, CreationRecord.from_dict(record, source=f"{root / DATASET_FILE}: corrupted") if isinstance(
        record, dict
    ) else None
