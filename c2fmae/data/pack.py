"""Scenes into tar shards: every one is decoded first, and a pack that was interrupted goes on where it stopped.

The folder is the same to the byte whatever happened on the way: kills, reruns, any number of workers. `pack.json` is
written first and says what is being made, shards appear whole, and `dataset.json` comes last: a folder with it is
finished.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from jaxtyping import Int, Integer
from pydantic import Field
from torch import Tensor

from c2fmae.core.config import Config
from c2fmae.core.errors import UserError
from c2fmae.core.granularity import COARSE_TO_FINE, GRANULARITIES, IGNORE
from c2fmae.core.locks import lock_dir
from c2fmae.core.scene import Scene
from c2fmae.data.encode import (
    PARTIAL_SUFFIX,
    TAR_END,
    atomic_writer,
    encode_image,
    encode_sample,
    encode_tar_member,
    is_packable_image,
    keys_to_member_keys,
    make_output_dir,
)
from c2fmae.data.geometry import resize_scene, scene_size, subsample_ids
from c2fmae.data.info import DATASET_FILE, PACK_PLAN_FILE, DatasetInfo
from c2fmae.data.key_list import KeyList
from c2fmae.data.process_pool import run_in_processes
from c2fmae.data.scenes import Scenes

ProgressCallback = Callable[[int], None]
"""Told how many more scenes are done."""


class PackConfig(Config):
    """What a pack's bytes depend on, besides its scenes."""

    label_stride: Annotated[int, Field(ge=1, le=64)] = 4
    """Maps keep one cell for so many pixels a side: 4 is what the paper's models predict; 1 keeps all."""
    short_side: Annotated[int, Field(ge=1)] | None = None
    """Photos whose shorter side has more pixels are brought down to it; the others keep their very bytes."""
    shard_size: Annotated[int, Field(ge=1)] = 1000
    """Scenes in a shard."""
    name: Annotated[str, Field(pattern=r"^\w[\w-]*$")] = "scenes"
    """Shards are called NAME-000000.tar and so on."""


@dataclass(frozen=True)
class PackReport:
    """What a pack came to."""

    num_scenes: int
    num_shards: int
    num_existing_shards: int
    """Of the shards, those that an earlier run had finished."""
    num_bytes: int


def pack_scenes(
    scenes: Scenes,
    out: str | Path,
    config: PackConfig,
    *,
    workers: int = 1,
    progress: ProgressCallback = lambda _: None,
) -> PackReport:
    """Write scenes to `out` by key; run it again to finish what was interrupted."""
    out = Path(out)
    if not len(scenes):
        raise UserError("there are no scenes to pack")
    _check_settings(scenes.info, config)
    names = keys_to_member_keys(scenes.keys)
    order = np.array(sorted(range(len(names)), key=names.__getitem__))
    plan = _pack_plan(scenes, config, names, int(order[0]))
    make_output_dir(out)
    with lock_dir(out, busy_message=f"{out}: another process is packing into it. Wait for it, or give another folder"):
        _start_or_continue(out, plan)
        job = _ShardWriter(scenes, out, config, KeyList.from_names(names), order)
        shards = range(-(-len(names) // config.shard_size))
        missing = [shard for shard in shards if not job.path(shard).exists()]
        progress(len(names) - sum(len(job.indices(shard)) for shard in missing))
        try:
            with closing(run_in_processes(job, missing, workers)) as results:
                for done in results:
                    progress(done)
        finally:
            _remove_unfinished(out)
        info = scenes.info.model_copy(
            update={
                "ignore": IGNORE,  # whatever it was in the files of the source
                "label_stride": config.label_stride if _has_maps(scenes.info) else 1,
            }
        )
        with atomic_writer(out / DATASET_FILE) as stream:
            stream.write(info.to_json().encode())
        num_bytes = sum(job.path(shard).stat().st_size for shard in shards)
        return PackReport(len(names), len(shards), len(shards) - len(missing), num_bytes)


@dataclass(frozen=True)
class _ShardWriter:
    """What a worker knows; given the number of a shard it writes that and says after each scene that one is done."""

    scenes: Scenes
    out: Path
    config: PackConfig
    packed_keys: KeyList
    """Under which scenes are packed, by index."""
    order: Int[np.ndarray, " scenes"]

    def path(self, shard: int) -> Path:
        return self.out / f"{self.config.name}-{shard:06d}.tar"

    def indices(self, shard: int) -> list[int]:
        start = shard * self.config.shard_size
        indices: list[int] = self.order[start : start + self.config.shard_size].tolist()
        return indices

    def __call__(self, shard: int) -> Iterator[int]:
        with atomic_writer(self.path(shard)) as stream:
            for index in self.indices(shard):
                for name, data in self.members(index):
                    stream.write(encode_tar_member(name, data))
                yield 1
            stream.write(TAR_END)

    def members(self, index: int) -> list[tuple[str, bytes]]:
        scene = _read_scene(self.scenes, index)
        resized = _shrink_scene(scene, self.config.short_side)
        image_bytes = self.scenes.read_image_bytes(index) if resized is scene else None
        names = (*COARSE_TO_FINE, *sorted(set(scene.maps) - set(COARSE_TO_FINE)))
        try:
            maps = {
                name: _to_label_stride(resized.maps[name], resized.label_stride, self.config.label_stride).numpy()
                for name in names
                if name in scene.maps and name != "rgb"
            }
            image_bytes = (
                image_bytes if image_bytes and is_packable_image(image_bytes) else encode_image(resized.maps["rgb"])
            )
            return list(encode_sample(self.packed_keys[index], image_bytes, maps, scene.label))
        except UserError as error:
            raise UserError(f"sample {scene.key!r}: {error}") from error


def _to_label_stride(ids: Integer[Tensor, "height width"], stored: int, stride: int) -> Integer[Tensor, "rows columns"]:
    """Keep the cells that are stored at a stride; what has been thinned out once cannot be exactly again."""
    if stored == stride:
        return ids
    if stored != 1:
        raise UserError(
            f"its maps are stored at label_stride {stored} and cannot be brought to {stride}. Pack with label_stride"
            f" {stored}, or pack the full-size maps that they were made from"
        )
    return subsample_ids(ids, stride)


def _check_settings(info: DatasetInfo, config: PackConfig) -> None:
    """Refuse before the first shard what would be refused in it."""
    if "rgb" not in info.granularities:
        raise UserError("these scenes have no photos, which a pack needs. Add rgb")
    for name in info.granularities:
        if name != "rgb" and GRANULARITIES.get(name).kind != "ids":
            raise UserError(f"{name}: only photos and maps of ids can be packed. Leave it out")
    stored = info.label_stride
    if stored != 1 and _has_maps(info) and config.label_stride != stored:
        raise UserError(
            f"label_stride: the maps of this source are stored at {stored} and cannot be brought to"
            f" {config.label_stride}. Give {stored}, or pack the full-size maps that they were made from"
        )
    if stored != 1 and _has_maps(info) and config.short_side is not None:
        raise UserError(
            f"short_side: the maps of this source are stored at label_stride {stored}, so its scenes cannot be"
            " resized exactly. Leave it out, or pack the full-size maps that they were made from"
        )


def _read_scene(scenes: Scenes, index: int) -> Scene:
    try:
        return scenes[index]
    except UserError as error:
        raise UserError(
            f"{error}\nTo pack the others: `c2fmae data check SOURCE --fix-list good.txt` lists all that is broken,"
            " then add `--keys good.txt` here"
        ) from error


def _shrink_scene(scene: Scene, short_side: int | None) -> Scene:
    """Bring the shorter side down to that many pixels; the same scene comes back where nothing is to do."""
    height, width = scene_size(scene)
    shorter = min(height, width)
    if short_side is None or shorter <= short_side:
        return scene
    if scene.label_stride != 1 and set(scene.maps) != {"rgb"}:  # one of a mixture, say
        raise UserError(
            f"sample {scene.key!r}: its maps are stored at label_stride {scene.label_stride}, so it cannot be resized"
            " exactly. Leave short_side out, or pack the full-size maps that they were made from"
        )
    return resize_scene(scene, *(max(round(side * short_side / shorter), 1) for side in (height, width)))


def _has_maps(info: DatasetInfo) -> bool:
    return set(info.granularities) != {"rgb"}


def _pack_plan(scenes: Scenes, config: PackConfig, names: Sequence[str], index: int) -> dict[str, Any]:
    """Return what tells one pack from another: settings, keys, and a sample of what is behind the keys."""
    first = _read_scene(scenes, index)
    # The photo as it is stored, where it is: decoders of several versions need not agree to the bit.
    image_bytes = scenes.read_image_bytes(index) or first.maps["rgb"].numpy().tobytes()
    maps = [first.maps[name].numpy().tobytes() for name in sorted(set(first.maps) - {"rgb"})]
    return {
        **config.model_dump(),
        "scenes": len(names),
        "keys": _digest("\n".join(sorted(names)).encode(errors="surrogateescape")),
        "first scene": _digest(image_bytes, *maps, str(first.label).encode()),
        "dataset": _digest(scenes.info.to_json().encode()),
    }


def _digest(*parts: bytes) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _start_or_continue(out: Path, plan: dict[str, Any]) -> None:
    """Make the folder ours: by the plan in it, or by writing one where nothing is."""
    path = out / PACK_PLAN_FILE
    try:
        begun = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        unexpected = sorted(entry.name for entry in out.iterdir() if not entry.name.endswith(PARTIAL_SUFFIX))
    except OSError as error:
        raise UserError(f"{out}: cannot be used: {error.strerror}. Give another folder") from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}). Remove {out}, and pack again") from error
    if begun is None and unexpected:
        raise UserError(f"{out}: holds {unexpected[0]!r} and no {PACK_PLAN_FILE}. Give a folder that is new or empty")
    if begun not in (None, plan):
        known = begun if isinstance(begun, dict) else {}
        changes = [f"{key} {known.get(key)!r}, now {plan[key]!r}" for key in plan if known.get(key) != plan[key]]
        raise UserError(
            f"{path}: this pack was begun with {'; '.join(changes)}. Pack the same scenes with the same settings, or"
            " give another folder"
        )
    _remove_unfinished(out)
    if begun is None:
        with atomic_writer(path) as stream:
            stream.write((json.dumps(plan, indent=1) + "\n").encode())


def _remove_unfinished(out: Path) -> None:
    for path in out.glob(f".*{PARTIAL_SUFFIX}"):
        path.unlink(missing_ok=True)
