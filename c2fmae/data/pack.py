"""Packing of scenes into tar shards; an interrupted pack continues where it stopped.

Every scene is decoded first. The bytes of a pack do not depend on the number of workers or on interruptions.
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from jaxtyping import Integer
from pydantic import Field
from torch import Tensor

from c2fmae.core.config import Config
from c2fmae.core.errors import UserError
from c2fmae.core.files import write_atomic
from c2fmae.core.granularity import COARSE_TO_FINE, GRANULARITIES, IGNORE
from c2fmae.core.locks import lock_dir
from c2fmae.core.scene import Scene
from c2fmae.data.encode import encode_image, encode_sample, image_suffix, make_output_dir
from c2fmae.data.geometry import resize_scene, scene_size, subsample_ids
from c2fmae.data.info import DATASET_FILE, DatasetInfo
from c2fmae.data.object_json import encode_objects
from c2fmae.data.process_pool import run_in_processes
from c2fmae.data.scenes import Scenes, read_scene
from c2fmae.data.shard_writing import ShardSet, digest, remove_unfinished, start_or_continue, write_shard

ProgressCallback = Callable[[int], None]
"""Called with the number of scenes that were completed since the last call."""


class PackConfig(Config):
    """Settings of a pack. Its bytes depend only on these settings and on the scenes."""

    label_stride: Annotated[int, Field(ge=1, le=64)] = 4
    """Side in pixels of a cell of the stored maps: 4 as the paper's models predict, 1 for full-size maps."""
    short_side: Annotated[int, Field(ge=1)] | None = None
    """Images with a longer shorter side, in pixels, are resized to it; all others are stored unchanged."""
    shard_size: Annotated[int, Field(ge=1)] = 1000
    """Scenes per shard."""
    name: Annotated[str, Field(pattern=r"^\w[\w-]*$")] = "scenes"
    """Shards are named NAME-000000.tar and so on."""


@dataclass(frozen=True)
class PackReport:
    """Counts of a finished pack."""

    num_scenes: int
    num_shards: int
    num_existing_shards: int
    """Number of shards that an earlier run had finished."""
    num_bytes: int


def pack_scenes(
    scenes: Scenes,
    out: str | Path,
    config: PackConfig,
    *,
    workers: int = 1,
    progress: ProgressCallback = lambda _: None,
) -> PackReport:
    """Write scenes to shards in `out`, sorted by key; call it again to finish an interrupted pack."""
    out = Path(out)
    if not len(scenes):
        raise UserError("there are no scenes to pack. Check the source")
    _check_settings(scenes.info, config)
    shards = ShardSet.from_keys(out, scenes.keys, name=config.name, shard_size=config.shard_size)
    plan = _pack_plan(scenes, config, shards)
    make_output_dir(out)
    with lock_dir(
        out, busy_message=f"{out}: another process is packing into it. Wait for it, or choose another directory"
    ):
        start_or_continue(out, plan, verb="pack", noun="scenes")
        remove_unfinished(out)
        missing = shards.missing()
        progress(len(scenes) - sum(len(shards.indices(shard)) for shard in missing))
        try:
            with closing(run_in_processes(_ShardWriter(scenes, config, shards), missing, workers)) as results:
                for done in results:
                    progress(done)
        finally:
            remove_unfinished(out)
        info = scenes.info.model_copy(
            update={
                # Written maps have the ids in memory, which may differ from those of the source.
                "ignore": IGNORE,
                "offset": 0,
                "colours": (),
                "label_stride": config.label_stride if _has_maps(scenes.info) else 1,
            }
        )
        write_atomic(out / DATASET_FILE, info.to_json().encode())
        return PackReport(len(scenes), len(shards), len(shards) - len(missing), shards.num_bytes())


@dataclass(frozen=True)
class _ShardWriter:
    """The task of a worker process: write shards by number, and yield 1 after each scene."""

    scenes: Scenes
    config: PackConfig
    shards: ShardSet

    def __call__(self, shard: int) -> Iterator[int]:
        return write_shard(self.shards.path(shard), map(self.members, self.shards.indices(shard)))

    def members(self, index: int) -> list[tuple[str, bytes]]:
        scene = read_scene(self.scenes, index, purpose="pack")
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
                image_bytes if image_bytes and image_suffix(image_bytes) else encode_image(resized.maps["rgb"])
            )
            return list(encode_sample(self.shards.member_keys[index], image_bytes, maps, scene.label, resized.objects))
        except UserError as error:
            raise UserError(f"sample {scene.key!r}: {error}") from error


def _to_label_stride(ids: Integer[Tensor, "height width"], stored: int, stride: int) -> Integer[Tensor, "rows columns"]:
    """Subsample a map to a stride; one that is subsampled already cannot be converted to another stride exactly."""
    if stored == stride:
        return ids
    if stored != 1:
        raise UserError(
            f"its maps are stored at label_stride {stored} and cannot be converted to {stride}. Pack with label_stride"
            f" {stored}, or pack the full-size maps"
        )
    return subsample_ids(ids, stride)


def _check_settings(info: DatasetInfo, config: PackConfig) -> None:
    """Raise the errors of settings that do not fit the data, before the first shard is written."""
    if "rgb" not in info.granularities:
        raise UserError("these scenes have no rgb images, which a pack needs. Add the granularity rgb")
    for name in info.granularities:
        if name != "rgb" and GRANULARITIES.get(name).kind != "ids":
            raise UserError(f"{name}: only images and id maps can be packed. Leave it out of the granularities")
    if info.value_range is not None and config.short_side is not None:
        raise UserError(
            "short_side: resized images are stored as JPEG, which has no value_range. Leave it unset: images are then"
            " stored unchanged"
        )
    stored = info.label_stride
    if stored != 1 and _has_maps(info) and config.label_stride != stored:
        raise UserError(
            f"label_stride: the maps of this source are stored at {stored} and cannot be converted to"
            f" {config.label_stride}. Set it to {stored}, or pack the full-size maps"
        )
    if stored != 1 and _has_maps(info) and config.short_side is not None:
        raise UserError(
            f"short_side: the maps of this source are stored at label_stride {stored}, so its scenes cannot be"
            " resized exactly. Leave it unset, or pack the full-size maps"
        )


def _shrink_scene(scene: Scene, short_side: int | None) -> Scene:
    """Resize a scene to a shorter side of `short_side` pixels; return the same object if it is no larger."""
    height, width = scene_size(scene)
    shorter = min(height, width)
    if short_side is None or shorter <= short_side:
        return scene
    if scene.label_stride != 1 and set(scene.maps) != {"rgb"}:  # possible in concatenated sources
        raise UserError(
            f"sample {scene.key!r}: its maps are stored at label_stride {scene.label_stride}, so it cannot be resized"
            " exactly. Leave short_side unset, or pack the full-size maps"
        )
    return resize_scene(scene, *(max(round(side * short_side / shorter), 1) for side in (height, width)))


def _has_maps(info: DatasetInfo) -> bool:
    return set(info.granularities) != {"rgb"}


def _pack_plan(scenes: Scenes, config: PackConfig, shards: ShardSet) -> dict[str, Any]:
    """Return the values that identify a pack: settings, and digests of keys, first scene and `dataset.json`."""
    index = int(shards.order[0])
    first = read_scene(scenes, index, purpose="pack")
    # The stored bytes rather than pixels, if there are any: decoders of several versions may differ.
    image_bytes = scenes.read_image_bytes(index) or first.maps["rgb"].numpy().tobytes()
    maps = [first.maps[name].numpy().tobytes() for name in sorted(set(first.maps) - {"rgb"})]
    objects = [encode_objects(first.objects)] if first.objects is not None else []
    return {
        **config.model_dump(),
        "scenes": len(scenes),
        "keys": shards.digest_keys(),
        "first scene": digest(image_bytes, *maps, *objects, str(first.label).encode()),
        "dataset": digest(scenes.info.to_json().encode()),
    }
