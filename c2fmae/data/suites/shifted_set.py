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
from c2fmae.data.digest import compute_scenes_digest
from c2fmae.data.suites.cells import Cell, ClassDirScenes, SetLabels, dir_names_to_labels, map_dirs_to_labels
from c2fmae.data.suites.class_check import check_classes, describe_missing_classes
from c2fmae.data.suites.creation_record import read_creation_record
from c2fmae.data.suites.file_tree import is_shard
from c2fmae.data.suites.imagenet_c import CellLocation, describe_missing_cells, find_cells, list_class_dirs
from c2fmae.data.suites.labelled import collect_used_labels, open_labelled_scenes
from c2fmae.data.suites.official import CUSTOM, IMAGENET_C, OFFICIAL_SETS, SUBSET_SUITES, resolve_suite


@dataclass(frozen=True)
class ShiftedSet:
    """What a classifier is tried on."""

    name: str
    suite: str
    cells: tuple[Cell, ...]
    labels: SetLabels
    """The set's own classes, to which the labels of its scenes refer."""
    protocol_wnids: tuple[str, ...] | None
    """The classes among which the protocol asks to choose, where they are a list of the set's own: ImageNet-A, -R."""
    is_cropped: bool
    """Whether photos are cut to what the model sees already: then there is nothing to resize or crop."""
    creation_sentence: str | None
    """By what and from what it was made, where it is no released set."""
    warnings: tuple[str, ...]
    """What is missing or odd, a sentence each. What a cell lacks, it says itself: `Cell.count_sentence`."""
    identity: str
    """Changes when photos come to the set or go, seen by the times of folders or tars, or by keys and some photos.

    Photos of a folder that were replaced in place, under the same names, may leave it as it was.
    """


def open_shifted_set(suite: str, source: str | Path, name: str | None = None) -> ShiftedSet:
    """Return a set as it lies in a folder or a tar; what cannot be evaluated is refused, what is odd is noted."""
    suite, path = resolve_suite(suite), Path(source)
    if suite in (IMAGENET_C, CUSTOM) and path.exists() and not is_shard(path):
        locations, unexpected = find_cells(path)
        if locations:
            return _open_imagenet_c(suite, path, name, locations, unexpected)
    if suite == IMAGENET_C:
        raise not_imagenet_c_error(path)
    scenes, labels = open_labelled_scenes(suite, source)
    expected = OFFICIAL_SETS[suite].num_images if suite != CUSTOM else None
    identity = compute_scenes_digest(scenes, suite)
    cell = Cell(None, None, scenes, expected, identity)
    return ShiftedSet(
        name=name or _default_name(suite, path, scenes.info),
        suite=suite,
        cells=(cell,),
        labels=labels,
        protocol_wnids=OFFICIAL_SETS[suite].wnids() if suite in SUBSET_SUITES else None,
        is_cropped=False,
        creation_sentence=None,
        warnings=tuple(
            note
            for note in (describe_missing_classes(suite, collect_used_labels(scenes, labels)), cell.count_sentence)
            if note
        ),
        identity=identity,
    )


def not_imagenet_c_error(source: Path) -> UserError:
    """Return the error for what has no cell of ImageNet-C in it."""
    text = "not ImageNet-C's layout, CORRUPTION/SEVERITY/CLASS/NAME.JPEG or tars of it"
    return UserError(f"{source}: {text if source.exists() else 'does not exist'}. Give the folder that holds them")


def _open_imagenet_c(
    suite: str, root: Path, name: str | None, locations: Sequence[CellLocation], unexpected: Sequence[str]
) -> ShiftedSet:
    """A set with a cell for each corruption and severity; their photos are not listed yet."""
    info, record = read_creation_record(root)
    folders = list_class_dirs(locations)
    if not folders:
        raise UserError(f"{root}: no class folders. Expected CORRUPTION/SEVERITY/CLASS/NAME.jpg")
    labels: SetLabels = info.labels or dir_names_to_labels(folders)
    label_of = map_dirs_to_labels(labels)
    used = tuple(labels[label_of[folder]] for folder in folders if folder in label_of)
    check_classes(suite, used, str(root))
    expected = OFFICIAL_SETS[suite].num_images if suite != CUSTOM else None
    record_values = record and record.model_dump(exclude={"unfinished"})
    identity_parts = [suite, record_values, [entry and entry.model_dump() for entry in labels]]
    cells = [
        Cell(
            cell_location.corruption,
            cell_location.severity,
            ClassDirScenes(cell_location.tree, cell_location.subdir, labels),
            expected,
            _json_digest(
                [
                    *identity_parts,
                    cell_location.corruption,
                    cell_location.severity,
                    cell_location.tree.compute_fingerprint(cell_location.subdir),
                ]
            ),
        )
        for cell_location in locations
    ]
    noted = (
        *describe_missing_cells(locations),
        *unexpected,
        describe_missing_classes(suite, used),
        record and record.unfinished_note,
    )
    return ShiftedSet(
        name=name or _default_name(suite, root, info),
        suite=suite,
        cells=tuple(cells),
        labels=labels,
        protocol_wnids=None,
        is_cropped=record.size is not None if record else suite == IMAGENET_C,
        creation_sentence=record.description if record else None,
        warnings=tuple(note for note in noted if note),
        identity=_json_digest([cell.identity for cell in cells]),
    )


def _json_digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _default_name(suite: str, path: Path, info: DatasetInfo) -> str:
    return suite if suite != CUSTOM else info.name or path.name.removesuffix(".tar")
