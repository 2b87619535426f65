"""ImageNet-C's layout: CORRUPTION/SEVERITY/CLASS/NAME.jpg, in folders, in the official tars, or some in each."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from c2fmae.core.errors import did_you_mean
from c2fmae.data.corruption.names import CORRUPTION_GROUPS, CORRUPTIONS, EXTRA_CORRUPTIONS, SEVERITIES
from c2fmae.data.suites.file_tree import DirFileTree, FileTree, is_shard, open_file_tree

ALL_CORRUPTIONS = (*CORRUPTIONS, *EXTRA_CORRUPTIONS)


@dataclass(frozen=True)
class CellLocation:
    """Where a cell lies."""

    corruption: str
    severity: int
    tree: FileTree
    subdir: str


def find_cells(source: Path) -> tuple[tuple[CellLocation, ...], tuple[str, ...]]:
    """Return where each cell lies, in the order of the benchmark, and what there is besides; folders before tars."""
    found, unexpected = dict[tuple[str, int], CellLocation](), list[str]()
    for tree in _open_file_trees(source, found):
        for cell_location in _find_cells_below(tree, "", unexpected):
            found.setdefault((cell_location.corruption, cell_location.severity), cell_location)
    ordered = sorted(found.values(), key=lambda spot: (ALL_CORRUPTIONS.index(spot.corruption), spot.severity))
    return tuple(ordered), tuple(unexpected)


def describe_missing_cells(locations: Collection[CellLocation]) -> tuple[str, ...]:
    """Say which of the 15 corruptions, and which severities of those that are there, a set lacks."""
    there = {
        name: {cell_location.severity for cell_location in locations if cell_location.corruption == name}
        for name in ALL_CORRUPTIONS
    }
    lacking = [name for name in CORRUPTIONS if not there[name]]
    notes = [f"{len(lacking)} of the {len(CORRUPTIONS)} corruptions missing: {', '.join(lacking)}"] if lacking else []
    for name, severities in there.items():
        if severities and (rest := [str(severity) for severity in SEVERITIES if severity not in severities]):
            notes.append(f"{name}: severity {', '.join(rest)} missing")
    return tuple(notes)


def _open_file_trees(source: Path, known_cells: Collection[tuple[str, int]]) -> Iterator[FileTree]:
    """A folder, and then the tars in it, but for official ones that were unpacked whole: their index takes minutes."""
    if not source.is_dir():
        yield open_file_tree(source)
        return
    yield DirFileTree(source)
    for tar in sorted(source.glob("*.tar")):
        cells = {(name, severity) for name in CORRUPTION_GROUPS.get(tar.stem, ()) for severity in SEVERITIES}
        if not (cells and cells <= set(known_cells)) and not is_shard(tar):
            yield open_file_tree(tar)


def _find_cells_below(tree: FileTree, subdir: str, unexpected: list[str]) -> Iterator[CellLocation]:
    """The cells below a folder; those of a group's folder, or of the only one there is, count as well."""
    names = tree.list_dirs(subdir)
    is_layout = bool({*names} & {*ALL_CORRUPTIONS, *CORRUPTION_GROUPS}) or subdir != ""
    for name in names:
        inner = f"{subdir}/{name}".lstrip("/")
        if name in ALL_CORRUPTIONS:
            yield from _find_severities(tree, name, inner, unexpected)
        elif (name in CORRUPTION_GROUPS or len(names) == 1) and subdir.count("/") < 1:
            yield from _find_cells_below(tree, inner, unexpected)
        elif is_layout:
            hint = did_you_mean(name, ALL_CORRUPTIONS)
            text = f"{tree.describe_location(inner)}: no corruption that ImageNet-C has. {hint}"
            unexpected.append(text.rstrip().removesuffix("."))


def _find_severities(tree: FileTree, corruption: str, subdir: str, unexpected: list[str]) -> Iterator[CellLocation]:
    for name in tree.list_dirs(subdir):
        if name in map(str, SEVERITIES):
            yield CellLocation(corruption, int(name), tree, f"{subdir}/{name}")
        else:
            unexpected.append(
                f"{tree.describe_location(f'{subdir}/{name}')}: no severity; those are {SEVERITIES[0]} to "
                f"{SEVERITIES[-1]}"
            )


def list_class_dirs(locations: Sequence[CellLocation]) -> tuple[str, ...]:
    """Return the names of the class folders of all cells."""
    return tuple(
        sorted({name for cell_location in locations for name in cell_location.tree.list_dirs(cell_location.subdir)})
    )
