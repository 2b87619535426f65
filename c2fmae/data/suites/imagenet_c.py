"""ImageNet-C's layout: CORRUPTION/SEVERITY/CLASS/NAME.jpg, in folders, in the official tars, or some in each."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from c2fmae.core.errors import did_you_mean
from c2fmae.data.corruption.names import CORRUPTIONS, EXTRA, GROUPS, SEVERITIES
from c2fmae.data.suites.file_tree import FolderPlace, Place, is_shard, place_at

ALL = (*CORRUPTIONS, *EXTRA)


@dataclass(frozen=True)
class Spot:
    """Where a cell lies."""

    corruption: str
    severity: int
    place: Place
    under: str


def find_spots(source: Path) -> tuple[tuple[Spot, ...], tuple[str, ...]]:
    """Return where each cell lies, in the order of the benchmark, and what there is besides; folders before tars."""
    found, odd = dict[tuple[str, int], Spot](), list[str]()
    for place in _places(source, found):
        for spot in _below(place, "", odd):
            found.setdefault((spot.corruption, spot.severity), spot)
    ordered = sorted(found.values(), key=lambda spot: (ALL.index(spot.corruption), spot.severity))
    return tuple(ordered), tuple(odd)


def missing_cells(spots: Collection[Spot]) -> tuple[str, ...]:
    """Say which of the 15 corruptions, and which severities of those that are there, a set lacks."""
    there = {name: {spot.severity for spot in spots if spot.corruption == name} for name in ALL}
    lacking = [name for name in CORRUPTIONS if not there[name]]
    notes = [f"{len(lacking)} of the {len(CORRUPTIONS)} corruptions missing: {', '.join(lacking)}"] if lacking else []
    for name, severities in there.items():
        if severities and (rest := [str(severity) for severity in SEVERITIES if severity not in severities]):
            notes.append(f"{name}: severity {', '.join(rest)} missing")
    return tuple(notes)


def _places(source: Path, found: Collection[tuple[str, int]]) -> Iterator[Place]:
    """A folder, and then the tars in it, but for official ones that were unpacked whole: their index takes minutes."""
    if not source.is_dir():
        yield place_at(source)
        return
    yield FolderPlace(source)
    for tar in sorted(source.glob("*.tar")):
        cells = {(name, severity) for name in GROUPS.get(tar.stem, ()) for severity in SEVERITIES}
        if not (cells and cells <= set(found)) and not is_shard(tar):
            yield place_at(tar)


def _below(place: Place, under: str, odd: list[str]) -> Iterator[Spot]:
    """The cells below a folder; those of a group's folder, or of the only one there is, count as well."""
    names = place.folders(under)
    is_layout = bool({*names} & {*ALL, *GROUPS}) or under != ""
    for name in names:
        inner = f"{under}/{name}".lstrip("/")
        if name in ALL:
            yield from _severities(place, name, inner, odd)
        elif (name in GROUPS or len(names) == 1) and under.count("/") < 1:
            yield from _below(place, inner, odd)
        elif is_layout:
            text = f"{place.where(inner)}: no corruption that ImageNet-C has. {did_you_mean(name, ALL)}"
            odd.append(text.rstrip().removesuffix("."))


def _severities(place: Place, corruption: str, under: str, odd: list[str]) -> Iterator[Spot]:
    for name in place.folders(under):
        if name in map(str, SEVERITIES):
            yield Spot(corruption, int(name), place, f"{under}/{name}")
        else:
            odd.append(f"{place.where(f'{under}/{name}')}: no severity; those are {SEVERITIES[0]} to {SEVERITIES[-1]}")


def class_folders(spots: Sequence[Spot]) -> tuple[str, ...]:
    """Return the names of the class folders of all cells."""
    return tuple(sorted({name for spot in spots for name in spot.place.folders(spot.under)}))
