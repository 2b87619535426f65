"""Sets of photos of another kind than a classifier learned from: official layouts, self-made ones, anyone's own.

    imagenet-a/CLASS/NAME.jpg, imagenet-r/…, sketch/…, val/…       as a folder, or in the official tar
    CORRUPTION/SEVERITY/CLASS/NAME.JPEG                            as folders, official tars, or some in each
    shards and folder trees with dataset.json, as all data here may be

Classes are told by WordNet id, never by the order of folders.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from c2fmae.core.errors import UserError
from c2fmae.data import DatasetInfo
from c2fmae.data.digest import scenes_digest
from c2fmae.data.suites.cells import Cell, CellScenes, Labels, label_by_folder, labels_of_folders
from c2fmae.data.suites.class_check import lacking_classes, refuse_other_classes
from c2fmae.data.suites.creation_record import making_of
from c2fmae.data.suites.file_tree import is_shard
from c2fmae.data.suites.imagenet_c import Spot, class_folders, find_spots, missing_cells
from c2fmae.data.suites.labelled import open_labelled, used_labels
from c2fmae.data.suites.official import CUSTOM, IMAGENET_C, OFFICIAL, PROTOCOLS, kind_named


@dataclass(frozen=True)
class ShiftedSet:
    """What a classifier is tried on."""

    name: str
    kind: str
    cells: tuple[Cell, ...]
    labels: Labels
    """The set's own classes, to which the labels of its scenes refer."""
    protocol_wnids: tuple[str, ...] | None
    """The classes among which the protocol asks to choose, where they are a list of the set's own: ImageNet-A, -R."""
    is_cut: bool
    """Whether photos are cut to what the model sees already: then there is nothing to resize or crop."""
    self_made: str | None
    """By what and from what it was made, where it is no released set."""
    notes: tuple[str, ...]
    """What is missing or odd, a sentence each. What a cell lacks, it says itself: `Cell.note`."""
    identity: str
    """Changes when photos come to the set or go, seen by the times of folders or tars, or by keys and some photos.

    Photos of a folder that were replaced in place, under the same names, may leave it as it was.
    """


def open_shifted(kind: str, source: str | Path, name: str | None = None) -> ShiftedSet:
    """Return a set as it lies in a folder or a tar; what cannot be evaluated is refused, what is odd is noted."""
    kind, path = kind_named(kind), Path(source)
    if kind in (IMAGENET_C, CUSTOM) and path.exists() and not is_shard(path):
        spots, odd = find_spots(path)
        if spots:
            return _grid(kind, path, name, spots, odd)
    if kind == IMAGENET_C:
        raise not_a_grid(path)
    scenes, labels = open_labelled(kind, source)
    expected = OFFICIAL[kind].images if kind != CUSTOM else None
    identity = scenes_digest(scenes, kind)
    cell = Cell(None, None, scenes, expected, identity)
    return ShiftedSet(
        name=name or _default_name(kind, path, scenes.info),
        kind=kind,
        cells=(cell,),
        labels=labels,
        protocol_wnids=OFFICIAL[kind].wnids() if kind in PROTOCOLS else None,
        is_cut=False,
        self_made=None,
        notes=tuple(note for note in (lacking_classes(kind, used_labels(scenes, labels)), cell.note) if note),
        identity=identity,
    )


def not_a_grid(source: Path) -> UserError:
    """Return the error for what has no cell of ImageNet-C in it."""
    text = "not ImageNet-C's layout, CORRUPTION/SEVERITY/CLASS/NAME.JPEG or tars of it"
    return UserError(f"{source}: {text if source.exists() else 'does not exist'}. Give the folder that holds them")


def _grid(kind: str, root: Path, name: str | None, spots: Sequence[Spot], odd: Sequence[str]) -> ShiftedSet:
    """A set with a cell for each corruption and severity; their photos are not listed yet."""
    info, making = making_of(root)
    folders = class_folders(spots)
    if not folders:
        raise UserError(f"{root}: no class folders. Expected CORRUPTION/SEVERITY/CLASS/NAME.jpg")
    labels: Labels = info.labels or labels_of_folders(folders)
    label_of = label_by_folder(labels)
    used = tuple(labels[label_of[folder]] for folder in folders if folder in label_of)
    refuse_other_classes(kind, used, str(root))
    expected = OFFICIAL[kind].images if kind != CUSTOM else None
    made = making and making.model_dump(exclude={"unfinished"})
    told = [kind, made, [entry and entry.model_dump() for entry in labels]]
    cells = [
        Cell(
            at.corruption,
            at.severity,
            CellScenes(at.place, at.under, labels),
            expected,
            _digest([*told, at.corruption, at.severity, at.place.stamp(at.under)]),
        )
        for at in spots
    ]
    noted = (*missing_cells(spots), *odd, lacking_classes(kind, used), making and making.note)
    return ShiftedSet(
        name=name or _default_name(kind, root, info),
        kind=kind,
        cells=tuple(cells),
        labels=labels,
        protocol_wnids=None,
        is_cut=making.size is not None if making else kind == IMAGENET_C,
        self_made=making.sentence if making else None,
        notes=tuple(note for note in noted if note),
        identity=_digest([cell.identity for cell in cells]),
    )


def _digest(told: object) -> str:
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _default_name(kind: str, path: Path, info: DatasetInfo) -> str:
    return kind if kind != CUSTOM else info.name or path.name.removesuffix(".tar")
