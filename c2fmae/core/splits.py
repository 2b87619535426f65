"""Sets that share a directory, such as train and val: folders of these names, or shards such as `train-*.tar`."""

from pathlib import Path

from c2fmae.core.errors import UserError, did_you_mean
from c2fmae.core.granularity import GRANULARITIES

TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("val", "valid", "validation", "test")


def find_set(root: Path, names: tuple[str, ...]) -> str | None:
    """Return the path or the pattern of the first of several sets that a directory holds; None if it holds none."""
    for name in names:
        if (root / name).is_dir():
            return str(root / name)
        if any(root.glob(f"{name}[-_0-9]*.tar")):
            return str(root / f"{name}[-_0-9]*.tar")
        if (root / f"{name}.tar").exists():
            return str(root / f"{name}.tar")
    return None


def find_splits(source: str | Path) -> dict[str, str]:
    """Return the path or pattern of each set by its name, the training set first, if a directory holds that and others.

    Returns nothing for any other source: a class may be called `train`, and a tree has directories of granularities.
    """
    root = Path(source)
    if not root.is_dir() or any((root / name).is_dir() for name in GRANULARITIES):
        return {}
    found = {name: path for name in (*TRAIN_NAMES, *TEST_NAMES) if (path := find_set(root, (name,))) is not None}
    return found if {*TRAIN_NAMES} & found.keys() and {*TEST_NAMES} & found.keys() else {}


def find_train_test(source: str) -> dict[str, str]:
    """Return the paths of a training and a test set in a folder: shards `train-*.tar`, or folders of these names."""
    if source == "generated":
        return {"train": source, "test": source}
    root = Path(source)
    if not root.is_dir():
        hint = did_you_mean(source, ["generated"])
        raise UserError(
            f"{source}: is not a folder with a training and a test set. {hint or 'Choose them with --data and --test'}"
        )
    sets = {"train": find_set(root, TRAIN_NAMES), "test": find_set(root, TEST_NAMES)}
    if missing := [split for split, path in sets.items() if path is None]:
        expected = {"train": TRAIN_NAMES[0], "test": f"{', '.join(TEST_NAMES[:-1])} or {TEST_NAMES[-1]}"}
        names = ", and ".join(expected[split] for split in missing)
        what = f"{'/'.join(missing)} {'split' if len(missing) > 1 else 'set'}"
        raise UserError(
            f"{root}: no {what} found (expected folders or shards named {names}). Give --data TRAIN --test TEST"
        )
    return {split: path for split, path in sets.items() if path is not None}
