"""Whether a set is what it is given as: seen in its layout, its counts, and a few of its photos."""

import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from c2fmae.data.stored import StoredScenes
from c2fmae.data.suites.cells import describe_count_difference, format_count
from c2fmae.data.suites.class_check import describe_missing_classes
from c2fmae.data.suites.creation_record import read_creation_record
from c2fmae.data.suites.folder_check import (
    check_images_below,
    check_sampled_images,
    classify_files,
    describe_unexpected_files,
)
from c2fmae.data.suites.imagenet_c import describe_missing_cells, find_cells
from c2fmae.data.suites.labelled import (
    collect_used_labels,
    find_class_dirs,
    missing_class_dirs_error,
    open_labelled_scenes,
)
from c2fmae.data.suites.official import CUSTOM, IMAGENET_C, OFFICIAL_SETS, resolve_suite
from c2fmae.data.suites.shifted_set import not_imagenet_c_error

log = logging.getLogger(__name__)

_NUM_SAMPLED, _NUM_SAMPLED_PER_CELL = 64, 8
_RELEASED_SIZE = (224, 224)  # ImageNet-C as it was released


@dataclass(frozen=True)
class SuiteCheckReport:
    """What was found."""

    findings: tuple[str, ...]
    """A sentence for each thing that is missing, or that the official set has not."""
    summary: str


def check_suite(suite: str, source: str | Path) -> SuiteCheckReport:
    """Return what is odd about a set, as far as names, counts and a look at a few photos tell it."""
    suite = resolve_suite(suite)
    if suite == IMAGENET_C:
        return _check_imagenet_c(Path(source))
    found = find_class_dirs(source)
    if found is None:
        return _check_labelled_scenes(suite, source)
    tree, subdir = found
    folders, contents = tree.list_dirs(subdir), classify_files(tree.list_files(subdir))
    if not folders:
        raise missing_class_dirs_error(suite, tree.describe_location(subdir))
    unexpected, num_sampled = check_images_below(tree, subdir, _NUM_SAMPLED, None)
    total = contents.images.total()
    return SuiteCheckReport(
        (*describe_unexpected_files(suite, folders, contents), *unexpected),
        _summary_sentence(suite, total, len(folders), num_sampled),
    )


def _check_labelled_scenes(suite: str, source: str | Path) -> SuiteCheckReport:
    """Check shards, and whatever has its labels from `dataset.json`."""
    scenes, labels = open_labelled_scenes(suite, source)
    used = collect_used_labels(scenes, labels)
    unexpected = [
        describe_missing_classes(suite, used),
        describe_count_difference(len(scenes), OFFICIAL_SETS[suite].num_images if suite != CUSTOM else None),
    ]
    per_class = OFFICIAL_SETS[suite].images_per_class if suite != CUSTOM else None
    if per_class is not None and isinstance(scenes, StoredScenes):
        counts = Counter(Counter(scenes.labels.tolist()).values())
        others = sum(classes for count, classes in counts.items() if count != per_class)
        classes = format_count(others, "class", "classes")
        unexpected.append(f"{classes} with another number of photos than {per_class}" if others else None)
    broken, num_sampled = check_sampled_images(scenes, _NUM_SAMPLED)
    summary = _summary_sentence(suite, len(scenes), len(used), num_sampled)
    return SuiteCheckReport((*(text for text in unexpected if text), *broken), summary)


def _check_imagenet_c(root: Path) -> SuiteCheckReport:
    locations, strange = find_cells(root)
    if not locations:
        raise not_imagenet_c_error(root)
    _, record = read_creation_record(root)
    size = record.size if record else _RELEASED_SIZE
    cells_by_finding, total, num_sampled, classes = dict[str, list[str]](), 0, 0, set[str]()
    for cell_location in locations:
        if cell_location.severity == 1 or not classes:
            log.info("%s: looking at %s", root, cell_location.corruption)
        folders, contents = (
            cell_location.tree.list_dirs(cell_location.subdir),
            classify_files(cell_location.tree.list_files(cell_location.subdir)),
        )
        unexpected, count = check_images_below(cell_location.tree, cell_location.subdir, _NUM_SAMPLED_PER_CELL, size)
        for sentence in (*describe_unexpected_files(IMAGENET_C, folders, contents), *unexpected):
            cells_by_finding.setdefault(sentence, []).append(f"{cell_location.corruption}/{cell_location.severity}")
        total, num_sampled = total + contents.images.total(), num_sampled + count
        classes.update(folders)
    sentences = [
        f"{_describe_cells(location, len(locations))}: {sentence}" for sentence, location in cells_by_finding.items()
    ]
    record_sentences = [text for text in (record.description, record.unfinished_note) if text] if record else []
    summary = _summary_sentence(
        f"{IMAGENET_C}: {format_count(len(locations), 'cell', 'cells')}", total, len(classes), num_sampled
    )
    return SuiteCheckReport((*record_sentences, *describe_missing_cells(locations), *strange, *sentences), summary)


def _describe_cells(names: list[str], count: int) -> str:
    if len(names) == count and count > 1:
        return "every cell"
    return names[0] if len(names) == 1 else f"{names[0]} and {format_count(len(names) - 1, 'more cell', 'more cells')}"


def _summary_sentence(what: str, num_images: int, classes: int, num_sampled: int) -> str:
    contents = f"{format_count(num_images, 'photo', 'photos')} of {format_count(classes, 'class', 'classes')}"
    return f"{what}, {contents}, {num_sampled:,} of them looked at"
