"""Features of a set of scenes, kept on the disk chunk by chunk: what was killed goes on, what was done stays done.

A chunk is so many scenes in order, whatever the processes, each of which makes whole chunks. So the features are the
same for any number of them, and no photo counts twice.
"""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from c2fmae.core.files import check_disk_space, write_atomic
from c2fmae.core.progress import ProgressDisplay
from c2fmae.core.scene import SceneBatch
from c2fmae.core.specs import Pooling
from c2fmae.data import CentralView, Scenes
from c2fmae.data.prefetch import prefetch
from c2fmae.eval.evaluation import ModelUnderTest
from c2fmae.eval.probes.feature_store import FeatureStore
from c2fmae.models.backbones import Backbone

MAX_SCENES_PER_CHUNK = 1024
"""Scenes of a file, where they are small."""

Precision = Literal["fp32", "bf16"]

_FEATURE_FORMAT = 2
_MAX_BYTES_PER_CHUNK = 1 << 28  # of a file: some of it is in memory three times


class FeatureColumn(NamedTuple):
    """One kind of feature of a photo: behind which block, and pooled how."""

    depth: int
    pool: Pooling

    def __str__(self) -> str:
        return f"layer {self.depth}, {self.pool}"


@dataclass(frozen=True, kw_only=True)
class FeatureSpec:
    """What is to be known of every scene."""

    columns: tuple[FeatureColumn, ...] = ()
    patch_depths: tuple[int, ...] = ()
    """Blocks behind which every patch's feature is kept."""
    has_maps: bool = False
    """Whether the semantic maps are kept too."""
    precision: Precision = "fp32"

    def __str__(self) -> str:
        return ", ".join([*map(str, self.columns), *(f"patches of layer {depth}" for depth in self.patch_depths)])


@dataclass(frozen=True, kw_only=True)
class BatchingConfig:
    """How the work is done, which changes nothing about the result but its last bits."""

    batch_size: int = 64
    num_workers: int = 2


def extract_features(
    model: ModelUnderTest,
    scenes: Scenes,
    view: CentralView,
    spec: FeatureSpec,
    *,
    identity: str,
    batching: BatchingConfig = BatchingConfig(),
) -> FeatureStore:
    """Return the features of all scenes' photos; `identity` tells these scenes from others of the same keys."""
    bytes_per_scene = _bytes_per_scene(model.backbone, view, spec)
    chunk_size = max(1, min(MAX_SCENES_PER_CHUNK, _MAX_BYTES_PER_CHUNK // bytes_per_scene))
    identity_fields = {
        "format": _FEATURE_FORMAT,
        "weights": model.digest,
        "scenes": identity,
        "view": [*view.size, view.crop, view.label_stride],
        "columns": [str(column) for column in spec.columns],
        "patches": spec.patch_depths,
        "maps": spec.has_maps,
        "precision": spec.precision,
        "chunk": chunk_size,
    }
    identity_json = json.dumps(identity_fields)
    feature_dir = model.cache_dir / hashlib.sha256(identity_json.encode()).hexdigest()[:16]
    starts = range(0, len(scenes), chunk_size)
    paths = tuple(feature_dir / f"chunk-{number:05d}.safetensors" for number in range(len(starts)))
    world = model.world
    if world.is_main:
        write_atomic(feature_dir / "what.json", identity_json.encode(), is_shared=True)
        missing = min(chunk_size * sum(not path.exists() for path in paths), len(scenes))
        if missing:
            check_disk_space(
                feature_dir, num_bytes=missing * bytes_per_scene, purpose="features", alternative="take fewer layers"
            )
    world.barrier()
    rank_chunks = [
        number for number, path in enumerate(paths) if number % world.size == world.rank and not path.exists()
    ]
    rows = {number: range(starts[number], min(starts[number] + chunk_size, len(scenes))) for number in rank_chunks}
    _extract_chunks(
        model,
        scenes,
        view,
        spec,
        batching,
        {paths[number]: bytes_per_scene for number, bytes_per_scene in rows.items()},
    )
    world.barrier()
    return FeatureStore(paths, chunk_size)


@torch.inference_mode()
def _extract_chunks(
    model: ModelUnderTest,
    scenes: Scenes,
    view: CentralView,
    spec: FeatureSpec,
    batching: BatchingConfig,
    rows_by_path: Mapping[Path, range],
) -> None:
    """Make some chunks."""
    batches = [
        (path, rows[first : first + batching.batch_size])
        for path, rows in rows_by_path.items()
        for first in range(0, len(rows), batching.batch_size)
    ]
    backbone, device = model.backbone.to(model.world.device).eval(), model.world.device
    make = _ImageBatches(scenes, view, [rows for _, rows in batches], spec.has_maps)
    loaded = prefetch(make, len(batches), num_workers=batching.num_workers, pin_memory=device.type == "cuda")
    outputs: list[dict[str, Tensor]] = []
    is_quiet = not model.world.is_main or not batches
    clock = time.perf_counter()
    with ProgressDisplay(total_steps=len(batches), samples_per_step=batching.batch_size, is_quiet=is_quiet) as progress:
        for step, ((photos, extras), (path, rows)) in enumerate(zip(loaded, batches, strict=True), start=1):
            data_seconds = time.perf_counter() - clock
            with torch.autocast(device.type, torch.bfloat16, enabled=spec.precision == "bf16"):
                outputs.append(_compute_features(backbone, photos.to(device, non_blocking=True), spec) | extras)
            if rows[-1] == rows_by_path[path][-1]:
                write_atomic(
                    path,
                    save({name: torch.cat([each[name] for each in outputs]) for name in outputs[0]}),
                    is_shared=True,
                )
                outputs = []
            now = time.perf_counter()
            progress.update(step, {}, seconds=now - clock, wait_fraction=data_seconds / (now - clock))
            clock = now


def _compute_features(backbone: Backbone, images: Tensor, spec: FeatureSpec) -> dict[str, Tensor]:
    depths = sorted({column.depth for column in spec.columns} | set(spec.patch_depths))
    tokens = dict(zip(depths, backbone.get_intermediate_layers(backbone.standardise(images), depths), strict=True))
    features = {str(each): backbone.pool(tokens[each.depth], each.pool, depth=each.depth) for each in spec.columns}
    features |= {f"patches {depth}": tokens[depth][:, backbone.num_prefix_tokens :] for depth in spec.patch_depths}
    return {name: tensor.float().cpu().contiguous() for name, tensor in features.items()}


@dataclass(frozen=True)
class _ImageBatches:
    """Batches by number: photos, and what is noted of its scenes beside features."""

    scenes: Scenes
    view: CentralView
    rows: Sequence[range]
    has_maps: bool
    """Whether the semantic maps are noted."""

    def __call__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        scenes = [self.scenes[row] for row in self.rows[index]]
        encoded_images = [self.scenes.read_image_bytes(row) for row in self.rows[index]]
        batch = SceneBatch.stack([self.view(scene) for scene in scenes])
        digests = [
            hashlib.blake2b(photo or scene.maps["rgb"].numpy().tobytes(), digest_size=16).digest()
            for photo, scene in zip(encoded_images, scenes, strict=True)
        ]
        extras = {
            "labels": torch.tensor([-1 if label is None else label for label in batch.labels]),
            "photos": torch.from_numpy(np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 16).copy()),
        }
        if self.has_maps:
            extras["semantic"] = batch.maps["semantic"]
        return batch.maps["rgb"], extras


def _bytes_per_scene(backbone: Backbone, view: CentralView, spec: FeatureSpec) -> int:
    patches = (view.size[0] // backbone.patch) * (view.size[1] // backbone.patch)
    vectors = len(spec.columns) + len(spec.patch_depths) * patches
    return 4 * backbone.dim * vectors + view.size[0] * view.size[1] // view.label_stride**2 + 64
