"""Sets with a cell for each corruption and severity: ImageNet-C, and those made by `data corrupt`."""

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

from c2fmae.core.errors import UserError
from c2fmae.core.text import format_count
from c2fmae.data.class_dirs import map_dirs_to_labels
from c2fmae.data.corruption.creation_record import read_creation_record
from c2fmae.data.suites.cell_locations import CellLocation, describe_missing_cells, find_cells, list_class_dirs
from c2fmae.data.suites.class_check import check_classes, describe_missing_classes
from c2fmae.data.suites.class_dir_scenes import ClassDirScenes
from c2fmae.data.suites.file_tree import is_shard
from c2fmae.data.suites.folder_check import (
    check_images_below,
    classify_files,
    describe_unexpected_files,
    format_summary,
)
from c2fmae.data.suites.label_map import SetLabels
from c2fmae.data.suites.labelled import LabelledImages
from c2fmae.data.suites.shifted_set import Cell, ShiftedSet
from c2fmae.data.suites.suite import Suite, SuiteCheckReport, choose_set_name

log = logging.getLogger(__name__)

_NUM_SAMPLED_PER_CELL = 8  # images that a check decodes


class CorruptionGrid:
    """The layout CORRUPTION/SEVERITY/CLASS/NAME.JPEG, in directories, in the official tars, or in both."""

    def open(self, suite: Suite, source: str | Path) -> ShiftedSet:
        """Open a set without listing its images."""
        return _open_grid(suite, Path(source), *_find_cells_or_raise(Path(source)))

    def check(self, suite: Suite, source: str | Path) -> SuiteCheckReport:
        """Compare a set with the complete one by names, counts and a sample of each cell's images."""
        return _check_grid(suite, Path(source), *_find_cells_or_raise(Path(source)))


class GridOrLabelledImages:
    """The layout of custom sets: a corruption grid if the source contains one, or else labelled images."""

    def open(self, suite: Suite, source: str | Path) -> ShiftedSet:
        """Open a set in its layout."""
        locations, unexpected = _find_cells(Path(source))
        if locations:
            return _open_grid(suite, Path(source), locations, unexpected)
        return LabelledImages().open(suite, source)

    def check(self, suite: Suite, source: str | Path) -> SuiteCheckReport:
        """Check a set in its layout."""
        locations, unexpected = _find_cells(Path(source))
        if locations:
            return _check_grid(suite, Path(source), locations, unexpected)
        return LabelledImages().check(suite, source)


def _find_cells(source: Path) -> tuple[Sequence[CellLocation], Sequence[str]]:
    return find_cells(source) if source.exists() and not is_shard(source) else ((), ())


def _find_cells_or_raise(source: Path) -> tuple[Sequence[CellLocation], Sequence[str]]:
    locations, unexpected = _find_cells(source)
    if not locations:
        expected = "expected CORRUPTION/SEVERITY/CLASS/NAME.JPEG, or tars of it"
        problem = f"not the layout of ImageNet-C ({expected})" if source.exists() else "does not exist"
        raise UserError(f"{source}: {problem}. Give the directory that holds the corruptions")
    return locations, unexpected


def _open_grid(suite: Suite, root: Path, locations: Sequence[CellLocation], unexpected: Sequence[str]) -> ShiftedSet:
    info, record = read_creation_record(root)
    class_dirs = list_class_dirs(locations)
    if not class_dirs:
        raise UserError(
            f"{root}: no class directories (expected CORRUPTION/SEVERITY/CLASS/NAME.jpg). Download or create it again"
        )
    labels: SetLabels = info.labels or tuple(map(suite.name_to_label, class_dirs))
    label_by_dir = map_dirs_to_labels(labels)
    used = tuple(labels[label_by_dir[name]] for name in class_dirs if name in label_by_dir)
    check_classes(suite, used, str(root))
    identity_parts = [suite.name, record and record.identity, [entry and entry.model_dump() for entry in labels]]
    cells = [
        Cell(
            location.corruption,
            location.severity,
            ClassDirScenes(location.tree, location.subdir, labels),
            suite.num_images,
            _json_digest(
                [
                    *identity_parts,
                    location.corruption,
                    location.severity,
                    location.tree.compute_fingerprint(location.subdir),
                ]
            ),
        )
        for location in locations
    ]
    warnings = (
        *describe_missing_cells(locations),
        *unexpected,
        describe_missing_classes(suite, used),
        record and record.unfinished_note,
    )
    return ShiftedSet(
        name=choose_set_name(suite, root, info),
        suite=suite.name,
        cells=tuple(cells),
        labels=labels,
        protocol_wnids=suite.protocol_wnids,
        is_cropped=(record.size if record else suite.image_size) is not None,
        creation_sentence=record.description if record else None,
        warnings=tuple(text for text in warnings if text),
        identity=_json_digest([cell.identity for cell in cells]),
        label_map=suite.label_map(labels),
    )


def _check_grid(
    suite: Suite, root: Path, locations: Sequence[CellLocation], unexpected: Sequence[str]
) -> SuiteCheckReport:
    _, record = read_creation_record(root)
    size = record.size if record else suite.image_size
    cells_by_finding, num_images, num_sampled, classes = dict[str, list[str]](), 0, 0, set[str]()
    for location in locations:
        if location.severity == 1 or not classes:
            log.info("%s: checking %s", root, location.corruption)
        contents = classify_files(location.tree.list_files(location.subdir))
        findings, count = check_images_below(location.tree, location.subdir, _NUM_SAMPLED_PER_CELL, size)
        for sentence in (*describe_unexpected_files(suite, location.class_dirs, contents), *findings):
            cells_by_finding.setdefault(sentence, []).append(f"{location.corruption}/{location.severity}")
        num_images, num_sampled = num_images + contents.images.total(), num_sampled + count
        classes.update(location.class_dirs)
    sentences = [f"{_describe_cells(names, len(locations))}: {text}" for text, names in cells_by_finding.items()]
    is_released = suite.wnids is not None
    record_sentences = [record.description if is_released else None, record.unfinished_note] if record else []
    return SuiteCheckReport(
        (
            *(text for text in record_sentences if text),
            *describe_missing_cells(locations),
            *unexpected,
            *sentences,
        ),
        format_summary(
            f"{suite.name}: {format_count(len(locations), 'cell', 'cells')}", num_images, len(classes), num_sampled
        ),
    )


def _describe_cells(names: list[str], count: int) -> str:
    if len(names) == count and count > 1:
        return "every cell"
    return names[0] if len(names) == 1 else f"{names[0]} and {format_count(len(names) - 1, 'more cell', 'more cells')}"


def _json_digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
