"""Records of a labelling: `KEY.json` in a shard, and a row of `manifest.jsonl` for each image, failed ones included."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer

from c2fmae.core.files import atomic_writer, read_file, write_atomic
from c2fmae.core.granularity import IGNORE
from c2fmae.data.instance_ids import WIDE_IGNORE
from c2fmae.labelling.protocol import LabelledObject

MANIFEST_FILE = "manifest.jsonl"
"""All rows, sorted by key."""
FAILED_FILE, GOOD_FILE = "failed.txt", "good.txt"
"""The images that failed, with reasons, and the keys of all others. They exist if an image has failed."""

_DIGITS = 4  # of floats in records
_STATUS = {status: f'"status": "{status}"'.encode() for status in ("done", "empty", "failed")}


@dataclass(frozen=True)
class ManifestCounts:
    """Numbers of images by the status in their rows."""

    done: int = 0
    empty: int = 0
    failed: int = 0

    @property
    def total(self) -> int:
        """Number of rows."""
        return self.done + self.empty + self.failed

    def __add__(self, other: "ManifestCounts") -> "ManifestCounts":
        return ManifestCounts(self.done + other.done, self.empty + other.empty, self.failed + other.failed)


def make_record(
    size: tuple[int, int],
    maps: Mapping[str, Integer[np.ndarray, "_ _"]],
    objects: Sequence[LabelledObject],
    metadata: Mapping[str, float | int | str],
    plan_digest: str,
) -> dict[str, Any]:
    """Return the content of `KEY.json`; `size` is height and width in pixels."""
    others = dict(metadata)
    record: dict[str, Any] = {"size": [size[1], size[0]], "plan": plan_digest}
    if "instance" in maps:
        record["instances"] = [{**asdict(each), "id": _to_stored_id(each.id)} for each in objects]
        if "threshold" in others:
            record["threshold"] = others.pop("threshold")
    if "semantic" in maps:
        record["semantic"] = {"ignored": _ignored_fraction(maps["semantic"])}
        if "confidence" in others:
            record["semantic"]["confidence"] = others.pop("confidence")
    return {**record, "metadata": others} if others else record


def _to_stored_id(id_: int) -> int:
    """Return an id as in the stored map of 16 bits, where "not labelled" is 65535 instead of 255."""
    return IGNORE if id_ == WIDE_IGNORE else id_


def make_row(key: str, record: Mapping[str, Any], maps: Mapping[str, Integer[np.ndarray, "_ _"]]) -> dict[str, Any]:
    """Return the manifest row of an image that was labelled."""
    objects, semantic = record.get("instances"), record.get("semantic", {})
    is_empty = not objects if objects is not None else semantic["ignored"] == 1
    instance, classes = maps.get("instance"), maps.get("semantic")
    return {
        "key": key,
        "status": "empty" if is_empty else "done",
        "why": None,
        "instances": None if objects is None else len(objects),
        "threshold": record.get("threshold"),
        "covered": None if instance is None else float(((instance != 0) & (instance != IGNORE)).mean()),
        "confidence": semantic.get("confidence"),
        "ignored": semantic.get("ignored"),
        "classes": None if classes is None else len(set(np.unique(classes).tolist()) - {IGNORE}),
    }


def make_failed_row(key: str, reason: str) -> dict[str, Any]:
    """Return the manifest row of an image that cannot be decoded."""
    others = dict.fromkeys(("instances", "threshold", "covered", "confidence", "ignored", "classes"))
    return {"key": key, "status": "failed", "why": reason, **others}


def to_json_line(document: Mapping[str, Any], *, sort_keys: bool = False) -> bytes:
    """Return a document as one line; equal documents give equal bytes."""
    rounded = _round_floats(document)
    text = json.dumps(rounded, sort_keys=sort_keys, ensure_ascii=False) + "\n"
    return text.encode(errors="backslashreplace")  # names of files may be invalid UTF-8


def count_rows(path: Path) -> ManifestCounts:
    """Count the rows of a manifest by status, without parsing it: quotes inside of values are escaped."""
    data = read_file(path)
    return ManifestCounts(**{status: data.count(pattern) for status, pattern in _STATUS.items()})


def read_failed_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield number and content of each row of an image that failed."""
    for number, line in enumerate(read_file(path).splitlines()):
        if _STATUS["failed"] in line:
            yield number, json.loads(line)


def write_manifest(out: Path, rows: Sequence[Path], keys: Iterator[Sequence[str]]) -> None:
    """Join the rows of all shards in `manifest.jsonl`, and list the images that failed and, for `--keys`, the others.

    `keys` yields the keys of the images in each of the files, as in the source.
    """
    failed, good = list[str](), list[str]()
    with atomic_writer(out / MANIFEST_FILE) as file:
        for path, shard_keys in zip(rows, keys, strict=True):
            file.write(read_file(path))
            failures = {number: row["why"] for number, row in read_failed_rows(path)}
            failed += [f"{shard_keys[number]}: {' '.join(why.split())}\n" for number, why in failures.items()]
            good += [f"{key}\n" for number, key in enumerate(shard_keys) if number not in failures]
    for name, lines in ((FAILED_FILE, failed), (GOOD_FILE, good)):
        if failed:
            write_atomic(out / name, "".join(lines).encode(errors="backslashreplace"))
        else:
            (out / name).unlink(missing_ok=True)


def _ignored_fraction(ids: Integer[np.ndarray, "_ _"]) -> float:
    return float((ids == IGNORE).mean())


def _round_floats(node: Any) -> Any:
    if isinstance(node, float):
        return round(node, _DIGITS)
    if isinstance(node, Mapping):
        return {key: _round_floats(value) for key, value in node.items()}
    return [_round_floats(value) for value in node] if isinstance(node, list | tuple) else node
