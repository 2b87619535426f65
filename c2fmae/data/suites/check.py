"""Whether a set is what it is given as: seen in its layout, its counts, and a few of its photos."""

import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from c2fmae.data.stored import StoredScenes
from c2fmae.data.suites.cells import count_note, numbered
from c2fmae.data.suites.class_check import lacking_classes
from c2fmae.data.suites.creation_record import making_of
from c2fmae.data.suites.folder_check import contents_of, look_at, odd_files, odd_photos
from c2fmae.data.suites.imagenet_c import find_spots, missing_cells
from c2fmae.data.suites.labelled import class_place, no_class_folders, open_labelled, used_labels
from c2fmae.data.suites.official import CUSTOM, IMAGENET_C, OFFICIAL, kind_named
from c2fmae.data.suites.shifted_set import not_a_grid

log = logging.getLogger(__name__)

_LOOKED_AT, _LOOKED_AT_A_CELL = 64, 8
_CUT = (224, 224)  # ImageNet-C as it was released


@dataclass(frozen=True)
class Checked:
    """What was found."""

    odd: tuple[str, ...]
    """A sentence for each thing that is missing, or that the official set has not."""
    summary: str


def check_as(kind: str, source: str | Path) -> Checked:
    """Return what is odd about a set, as far as names, counts and a look at a few photos tell it."""
    kind = kind_named(kind)
    if kind == IMAGENET_C:
        return _check_grid(Path(source))
    found = class_place(source)
    if found is None:
        return _check_labelled(kind, source)
    place, under = found
    folders, contents = place.folders(under), contents_of(place.files(under))
    if not folders:
        raise no_class_folders(kind, place.where(under))
    odd, looked_at = odd_photos(place, under, _LOOKED_AT, None)
    total = contents.photos.total()
    return Checked((*odd_files(kind, folders, contents), *odd), _summary(kind, total, len(folders), looked_at))


def _check_labelled(kind: str, source: str | Path) -> Checked:
    """Check shards, and whatever has its labels from `dataset.json`."""
    scenes, labels = open_labelled(kind, source)
    used = used_labels(scenes, labels)
    odd = [lacking_classes(kind, used), count_note(len(scenes), OFFICIAL[kind].images if kind != CUSTOM else None)]
    per_class = OFFICIAL[kind].per_class if kind != CUSTOM else None
    if per_class is not None and isinstance(scenes, StoredScenes):
        counts = Counter(Counter(scenes.labels.tolist()).values())
        others = sum(classes for count, classes in counts.items() if count != per_class)
        classes = numbered(others, "class", "classes")
        odd.append(f"{classes} with another number of photos than {per_class}" if others else None)
    broken, looked_at = look_at(scenes, _LOOKED_AT)
    summary = _summary(kind, len(scenes), len(used), looked_at)
    return Checked((*(text for text in odd if text), *broken), summary)


def _check_grid(root: Path) -> Checked:
    spots, strange = find_spots(root)
    if not spots:
        raise not_a_grid(root)
    _, making = making_of(root)
    size = making.size if making else _CUT
    cells_of, total, looked_at, classes = dict[str, list[str]](), 0, 0, set[str]()
    for spot in spots:
        if spot.severity == 1 or not classes:
            log.info("%s: looking at %s", root, spot.corruption)
        folders, contents = spot.place.folders(spot.under), contents_of(spot.place.files(spot.under))
        odd, count = odd_photos(spot.place, spot.under, _LOOKED_AT_A_CELL, size)
        for sentence in (*odd_files(IMAGENET_C, folders, contents), *odd):
            cells_of.setdefault(sentence, []).append(f"{spot.corruption}/{spot.severity}")
        total, looked_at = total + contents.photos.total(), looked_at + count
        classes.update(folders)
    sentences = [f"{_cells(where, len(spots))}: {sentence}" for sentence, where in cells_of.items()]
    told = [text for text in (making.sentence, making.note) if text] if making else []
    summary = _summary(f"{IMAGENET_C}: {numbered(len(spots), 'cell', 'cells')}", total, len(classes), looked_at)
    return Checked((*told, *missing_cells(spots), *strange, *sentences), summary)


def _cells(names: list[str], count: int) -> str:
    if len(names) == count and count > 1:
        return "every cell"
    return names[0] if len(names) == 1 else f"{names[0]} and {numbered(len(names) - 1, 'more cell', 'more cells')}"


def _summary(what: str, photos: int, classes: int, looked_at: int) -> str:
    of = f"{numbered(photos, 'photo', 'photos')} of {numbered(classes, 'class', 'classes')}"
    return f"{what}, {of}, {looked_at:,} of them looked at"
