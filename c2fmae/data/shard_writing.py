"""Shards of a data set that is being written: an interrupted command continues where it stopped.

`pack.json`, the plan, is written first. Shards are written atomically, sorted by key, and `dataset.json` is written
last, so that a directory with it is complete. `pack` and `label` write in this way.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from c2fmae.core.errors import UserError
from c2fmae.core.files import PARTIAL_SUFFIX, atomic_writer, write_atomic
from c2fmae.core.json_file import read_json
from c2fmae.core.locks import LOCK_SUFFIX
from c2fmae.data.encode import TAR_END, encode_tar_member, keys_to_member_keys
from c2fmae.data.info import PACK_PLAN_FILE
from c2fmae.data.key_list import KeyList
from c2fmae.data.tar_index import index_new_shard


@dataclass(frozen=True)
class ShardSet:
    """The shards of a directory, by number, and the samples in each."""

    out: Path
    name: str
    """Shards are named NAME-000000.tar and so on."""
    shard_size: int
    """Samples per shard."""
    member_keys: KeyList
    """Key in a shard of each sample, by its index in the source."""
    order: Int[np.ndarray, " samples"]
    """Indices of all samples, sorted by `member_keys`."""

    @classmethod
    def from_keys(cls, out: Path, keys: Sequence[str], *, name: str, shard_size: int) -> "ShardSet":
        """Divide the samples of a source. Keys that a shard cannot hold are errors."""
        names = keys_to_member_keys(keys)
        order = np.array(sorted(range(len(names)), key=names.__getitem__))
        return cls(out, name, shard_size, KeyList.from_names(names), order)

    def __len__(self) -> int:
        return -(-len(self.order) // self.shard_size)

    def path(self, shard: int) -> Path:
        """Return the file of a shard."""
        return self.out / f"{self.name}-{shard:06d}.tar"

    def indices(self, shard: int) -> list[int]:
        """Return the indices of a shard's samples in the source, in their order in the shard."""
        start = shard * self.shard_size
        indices: list[int] = self.order[start : start + self.shard_size].tolist()
        return indices

    def missing(self, shards: Iterable[int] | None = None) -> list[int]:
        """Return the shards, of all or of some, that have not been written."""
        return [shard for shard in (range(len(self)) if shards is None else shards) if not self.path(shard).exists()]

    def num_bytes(self) -> int:
        """Return the size of all shards, which exist."""
        return sum(self.path(shard).stat().st_size for shard in range(len(self)))

    def digest_keys(self) -> str:
        """Return a digest of the keys, whatever their order in the source."""
        state = _new_digest()
        for shard in range(len(self)):  # not all at once: there may be millions
            names = "\n".join(self.member_keys[index] for index in self.indices(shard))
            state.update(("\n" + names if shard else names).encode())
        return state.hexdigest()


def write_shard(path: Path, samples: Iterable[Iterable[tuple[str, bytes]]]) -> Iterator[int]:
    """Write samples, each of which is names and contents of its members, and then their index; yield 1 after each."""
    # A worker that outlives a killed run by a moment must not share the temporary file of the next run.
    with atomic_writer(path, is_shared=True) as file:
        for members in samples:
            for name, data in members:
                file.write(encode_tar_member(name, data))
            yield 1
        file.write(TAR_END)
    index_new_shard(path)


def start_or_continue(
    out: Path, plan: Mapping[str, Any], *, verb: str, noun: str, may_differ: Collection[str] = ()
) -> dict[str, Any]:
    """Write the plan into an empty directory, or check that the directory has the same one; return the stored plan.

    `verb` and `noun` are those of messages, such as "pack" and "scenes". Keys in `may_differ`, dotted for nested ones,
    are not compared; neither are those below them.
    """
    path = out / PACK_PLAN_FILE
    try:
        names = sorted(entry.name for entry in out.iterdir() if not entry.name.endswith((PARTIAL_SUFFIX, LOCK_SUFFIX)))
    except OSError as error:
        raise UserError(f"{out}: cannot be listed: {error.strerror}. Choose another directory") from error
    if not names:
        write_atomic(path, (json.dumps(plan, indent=1) + "\n").encode())
        return dict(plan)
    if PACK_PLAN_FILE not in names:
        raise UserError(f"{out}: contains {names[0]!r} but no {PACK_PLAN_FILE}. Choose a new or empty directory")
    stored = read_json(path, fix=f"Remove {out}, and {verb} again")
    if changes := describe_plan_changes(stored, plan, may_differ):
        raise UserError(
            f"{path}: this pack was started with {'; '.join(changes)}. {verb.capitalize()} the same {noun} with the"
            " same settings, or choose another directory"
        )
    return stored


def describe_plan_changes(
    stored: Mapping[str, Any], plan: Mapping[str, Any], may_differ: Collection[str] = ()
) -> list[str]:
    """Return the keys that differ, dotted for nested ones, with their values.

    >>> describe_plan_changes({"a": 1, "b": {"c": 2, "d": 3}}, {"a": 1, "b": {"c": 4, "d": 3}})
    ['b.c 2, now 4']
    """
    before, after = _flatten(stored), _flatten(plan)
    return [
        f"{key} {before.get(key)!r}, now {after.get(key)!r}"
        for key in dict.fromkeys([*after, *before])
        if before.get(key) != after.get(key) and not any(f"{key}.".startswith(f"{other}.") for other in may_differ)
    ]


def remove_unfinished(out: Path, pattern: str = "*") -> None:
    """Remove temporary files of files whose names match a pattern, as a killed process leaves them."""
    for path in out.glob(f".{pattern}{PARTIAL_SUFFIX}"):
        path.unlink(missing_ok=True)


def digest(*chunks: bytes) -> str:
    """Return a digest of bytes as 16 hexadecimal characters."""
    state = _new_digest()
    for chunk in chunks:
        state.update(chunk)
    return state.hexdigest()


def _new_digest() -> hashlib.blake2b:
    return hashlib.blake2b(digest_size=8)


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
