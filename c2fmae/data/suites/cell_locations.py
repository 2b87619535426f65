"""Locations of the cells of a corruption set: CORRUPTION/SEVERITY/CLASS/NAME.JPEG, in directories, in tars, or both."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from c2fmae.core.errors import did_you_mean
from c2fmae.data.corruption.names import CORRUPTION_GROUPS, CORRUPTIONS, EXTRA_CORRUPTIONS, SEVERITIES
from c2fmae.data.suites.dir_tree import DirTree
from c2fmae.data.suites.file_tree import FileTree, is_shard, open_file_tree

_ALL_CORRUPTIONS = (*CORRUPTIONS, *EXTRA_CORRUPTIONS)


@dataclass(frozen=True)
class CellLocation:
    """The directory of a cell in a tree."""

    corruption: str
    severity: int
    tree: FileTree
    subdir: str

    @property
    def class_dirs(self) -> tuple[str, ...]:
        """Sorted names of the cell's class directories."""
        return self.tree.list_dirs(self.subdir)


def find_cells(source: Path) -> tuple[tuple[CellLocation, ...], tuple[str, ...]]:
    """Return the location of each cell, in the order of the benchmark, and a sentence for each unexpected directory.

    A cell that is in a directory and in a tar is read from the directory.
    """
    cells, unexpected = dict[tuple[str, int], CellLocation](), list[str]()
    for tree in _open_file_trees(source, cells):
        for cell in _find_cells_below(tree, "", unexpected):
            cells.setdefault((cell.corruption, cell.severity), cell)
    ordered = sorted(cells.values(), key=lambda cell: (_ALL_CORRUPTIONS.index(cell.corruption), cell.severity))
    return tuple(ordered), tuple(unexpected)


def describe_missing_cells(cells: Collection[CellLocation]) -> tuple[str, ...]:
    """Return a sentence about the missing ones of the 15 corruptions, and sentences about missing severities."""
    present = {name: {cell.severity for cell in cells if cell.corruption == name} for name in _ALL_CORRUPTIONS}
    missing = [name for name in CORRUPTIONS if not present[name]]
    sentences = (
        [f"{len(missing)} of the {len(CORRUPTIONS)} corruptions missing: {', '.join(missing)}"] if missing else []
    )
    corruptions_by_rest: dict[str, list[str]] = {}
    for name, severities in present.items():
        rest = ", ".join(str(severity) for severity in SEVERITIES if severity not in severities)
        if severities and rest:
            corruptions_by_rest.setdefault(rest, []).append(name)
    for rest, names in corruptions_by_rest.items():
        sentences.append(f"{', '.join(names)}: {'severities' if ',' in rest else 'severity'} {rest} missing")
    return tuple(sentences)


def list_class_dirs(cells: Sequence[CellLocation]) -> tuple[str, ...]:
    """Return the sorted names of the class directories of all cells."""
    return tuple(sorted({name for cell in cells for name in cell.class_dirs}))


def _open_file_trees(source: Path, known_cells: Collection[tuple[str, int]]) -> Iterator[FileTree]:
    """Yield a directory, then the tars in it that add cells: indexing an official tar takes minutes."""
    if not source.is_dir():
        yield open_file_tree(source)
        return
    yield DirTree(source)
    for tar in sorted(source.glob("*.tar")):
        cells = {(name, severity) for name in CORRUPTION_GROUPS.get(tar.stem, ()) for severity in SEVERITIES}
        if not (cells and cells <= set(known_cells)) and not is_shard(tar):
            yield open_file_tree(tar)


def _find_cells_below(tree: FileTree, subdir: str, unexpected: list[str]) -> Iterator[CellLocation]:
    """Yield the cells below a directory, also those inside the directory of a group or of the whole archive."""
    names = tree.list_dirs(subdir)
    is_layout = bool({*names} & {*_ALL_CORRUPTIONS, *CORRUPTION_GROUPS}) or subdir != ""
    for name in names:
        inner = f"{subdir}/{name}".lstrip("/")
        if name in _ALL_CORRUPTIONS:
            yield from _find_severities(tree, name, inner, unexpected)
        elif (name in CORRUPTION_GROUPS or len(names) == 1) and subdir.count("/") < 1:
            yield from _find_cells_below(tree, inner, unexpected)
        elif is_layout:
            hint = did_you_mean(name, _ALL_CORRUPTIONS)
            text = f"{tree.describe_location(inner)}: not a corruption of ImageNet-C. {hint}"
            unexpected.append(text.rstrip().removesuffix("."))


def _find_severities(tree: FileTree, corruption: str, subdir: str, unexpected: list[str]) -> Iterator[CellLocation]:
    for name in tree.list_dirs(subdir):
        inner = f"{subdir}/{name}"
        if name in map(str, SEVERITIES):
            yield CellLocation(corruption, int(name), tree, inner)
        else:
            expected = f"expected {SEVERITIES[0]} to {SEVERITIES[-1]}"
            unexpected.append(f"{tree.describe_location(inner)}: not a severity ({expected})")
