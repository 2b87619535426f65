"""The start of a labelling: its plan, the locks of its parts, and the shards that are missing."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from json import dumps
from pathlib import Path
from typing import Any

from c2fmae.core.errors import UserError
from c2fmae.core.json_file import write_json
from c2fmae.core.locks import LOCK_SUFFIX, is_file_locked, lock_file
from c2fmae.data.encode import make_output_dir
from c2fmae.data.info import DATASET_FILE, PACK_PLAN_FILE
from c2fmae.data.scenes import Scenes
from c2fmae.data.shard_writing import ShardSet, describe_plan_changes, digest, remove_unfinished, start_or_continue
from c2fmae.labelling.config import LabelConfig, Part
from c2fmae.labelling.context import LabellerContext
from c2fmae.labelling.manifest import count_rows
from c2fmae.labelling.protocol import Labeller
from c2fmae.labelling.registry import GRANULARITY_BY_OPTION

MIXED_MACHINES = "mixed_machines"
"""Key of `pack.json` and `dataset.json` that records further kinds of devices and versions of packages."""

_PACKAGES = ("scikit-image", "timm", "transformers")  # whose versions labellers describe
_MACHINE_KEYS = ("device", "versions", *(f"{option}.{name}" for option in GRANULARITY_BY_OPTION for name in _PACKAGES))


@dataclass(frozen=True)
class LabelWork:
    """What the ranks of one command label."""

    missing: Sequence[int]
    """Shards of the part that have not been written."""
    num_existing: int
    plan_digest: str
    mixed_machines: Sequence[str]
    """Differences between the machines of this and earlier commands."""


def label_plan(
    scenes: Scenes, labellers: Sequence[Labeller], shards: ShardSet, config: LabelConfig, context: LabellerContext
) -> dict[str, Any]:
    """Return the values that identify a labelling: all that its bytes depend on."""
    described = {
        option: dict(labeller.describe())
        for option, granularity in GRANULARITY_BY_OPTION.items()
        for labeller in labellers
        if granularity in labeller.granularities
    }
    return {
        **config.model_dump(include={"label_stride", "images", "shard_size", "name", "batch_size"}),
        "precision": context.precision,
        "num_images": len(scenes),
        "keys": shards.digest_keys(),
        "first image": _digest_image(scenes, int(shards.order[0])),
        "dataset": digest(scenes.info.to_json().encode()),
        **described,
        "device": context.device.partition(":")[0],
        "versions": {name: version(name) for name in ("c2fmae", "torch")},
    }


@contextmanager
def lock_part(out: Path, part: Part) -> Iterator[None]:
    """Create the output directory, and exclude other processes from a part of it."""
    make_output_dir(out)
    busy = f"{out}: another process labels part {part} of it. Wait for it, or choose another part or directory"
    with lock_file(out / f".part-{part.index}-of-{part.count}{LOCK_SUFFIX}", busy_message=busy):
        yield


@contextmanager
def lock_plan(out: Path) -> Iterator[None]:
    """Wait for, and exclude, other processes that start or finish a part of a directory."""
    with lock_file(out / f".plan{LOCK_SUFFIX}"):
        yield


def remove_unused_locks(out: Path) -> None:
    """Remove the lock files of killed processes."""
    for path in out.glob(f".part-*{LOCK_SUFFIX}"):
        if not is_file_locked(path):
            path.unlink(missing_ok=True)


def start_work(
    plan: dict[str, Any], shards: ShardSet, part: Part, *, mixed_machines: bool = False, again: bool = False
) -> LabelWork:
    """Write the plan, or compare it with that of the directory, and return the shards of a part that are missing.

    `again` first removes the shards with images that failed.
    """
    out = shards.out
    with lock_plan(out):
        _check_division(out, part)
        may_differ = [MIXED_MACHINES, *(_MACHINE_KEYS if mixed_machines else ())]
        stored = start_or_continue(out, plan, verb="label", noun="images", may_differ=may_differ)
        mixed: list[str] = stored.get(MIXED_MACHINES, [])
        changes = describe_plan_changes(stored, plan, [MIXED_MACHINES])
        if new := [change for change in changes if change not in mixed]:
            mixed = [*mixed, *new]
            write_json(out / PACK_PLAN_FILE, {**stored, MIXED_MACHINES: mixed})
        own = part.select(len(shards))
        if again:
            _remove_failed_shards(shards, own)
        missing = shards.missing(own)
    for shard in missing:
        remove_unfinished(out, f"{shards.path(shard).stem}.*")
    identity = {key: value for key, value in stored.items() if key != MIXED_MACHINES}
    return LabelWork(missing, len(own) - len(missing), digest(dumps(identity, sort_keys=True).encode())[:8], mixed)


def rows_path(shards: ShardSet, shard: int) -> Path:
    """Return the file of the manifest rows of a shard."""
    return shards.path(shard).with_suffix(".jsonl")


def _digest_image(scenes: Scenes, index: int) -> str | None:
    """Return a digest of an image as stored, or of its pixels; None if it cannot be read."""
    try:
        return digest(scenes.read_image_bytes(index) or scenes[index].maps["rgb"].numpy().tobytes())
    except UserError:  # it will fail
        return None


def _check_division(out: Path, part: Part) -> None:
    """Raise an error if another process labels a part of another division, in which shards belong to other parts."""
    for path in out.glob(f".part-*-of-*{LOCK_SUFFIX}"):
        index, _, count = path.name.removeprefix(".part-").removesuffix(LOCK_SUFFIX).partition("-of-")
        if count != str(part.count) and is_file_locked(path):
            raise UserError(
                f"{out}: another process labels part {index}/{count} of it. Wait for it, or divide it by {count} too"
            )


def _remove_failed_shards(shards: ShardSet, own: Sequence[int]) -> None:
    for shard in own:
        if shards.path(shard).exists() and count_rows(rows_path(shards, shard)).failed:
            for path in (shards.out / DATASET_FILE, shards.path(shard), rows_path(shards, shard)):
                path.unlink(missing_ok=True)
