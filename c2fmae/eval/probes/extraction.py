"""Feature extraction, stored chunk by chunk, so that an interrupted extraction resumes.

A chunk is a fixed number of consecutive scenes, and each rank computes whole chunks, so features are the same for any
number of processes, and no image is duplicated.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from c2fmae.core.files import check_disk_space, write_atomic
from c2fmae.core.scene import SceneBatch
from c2fmae.data import CentralView, Scenes
from c2fmae.eval.cache import compute_json_digest, save_tensors
from c2fmae.eval.engine import BatchingConfig, iterate_batches, split_chunks
from c2fmae.eval.evaluation import ModelUnderTest
from c2fmae.eval.probes.config import FEATURES_DIR, FeatureSpec
from c2fmae.eval.probes.feature_store import FeatureStore
from c2fmae.models.backbones import Backbone

MAX_SCENES_PER_CHUNK = 1024
"""Maximum number of scenes in a chunk."""

_FEATURE_FORMAT = 2
_MAX_BYTES_PER_CHUNK = 1 << 28  # a chunk is in memory up to three times


def extract_features(
    model: ModelUnderTest,
    scenes: Scenes,
    view: CentralView,
    spec: FeatureSpec,
    *,
    identity: str,
    batching: BatchingConfig,
) -> FeatureStore:
    """Return the features of all images, computing only chunks that are not stored yet.

    `identity` is a digest of the scenes.
    """
    world, bytes_per_scene = model.world, _bytes_per_scene(model.backbone, view, spec)
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
        **model.identify_positions(view.size),
    }
    feature_dir = model.output_dir / FEATURES_DIR / compute_json_digest(identity_fields, length=16)
    num_chunks = -(-len(scenes) // chunk_size)
    store = FeatureStore(tuple(feature_dir / f"chunk-{n:05d}.safetensors" for n in range(num_chunks)), chunk_size)
    if world.is_main:
        write_atomic(feature_dir / "what.json", json.dumps(identity_fields).encode(), is_shared=True)
        if num_missing := sum(not path.exists() for path in store.chunk_paths):
            num_bytes = min(chunk_size * num_missing, len(scenes)) * bytes_per_scene
            check_disk_space(feature_dir, num_bytes=num_bytes, purpose="features", alternative="use fewer layers")
    world.barrier()
    rank_chunks = world.rank_chunks(len(scenes), chunk_size)
    missing_chunks = [rows for rows in rank_chunks if not store.chunk_paths[rows.start // chunk_size].exists()]
    _extract_chunks(model, _ImageLoader(scenes, view, spec.has_maps), spec, batching, store, missing_chunks)
    world.barrier()
    return store


@torch.inference_mode()
def _extract_chunks(
    model: ModelUnderTest,
    load: "_ImageLoader",
    spec: FeatureSpec,
    batching: BatchingConfig,
    store: FeatureStore,
    chunks: Sequence[range],
) -> None:
    """Compute and write some chunks."""
    device = model.world.device
    backbone = model.backbone.to(device).eval()
    loaded = iterate_batches(load, split_chunks(chunks, batching.batch_size), model.world, batching)
    for number, chunk in groupby(loaded, key=lambda batch: batch[0].start // store.chunk_size):
        outputs: list[dict[str, Tensor]] = []
        for _, (images, extras) in chunk:
            with torch.autocast(device.type, torch.bfloat16, enabled=spec.precision == "bf16"):
                outputs.append(compute_features(backbone, images.to(device, non_blocking=True), spec) | extras)
        save_tensors(store.chunk_paths[number], {name: torch.cat([o[name] for o in outputs]) for name in outputs[0]})


def compute_features(
    backbone: Backbone, images: UInt8[Tensor, "batch channels height width"], spec: FeatureSpec
) -> dict[str, Tensor]:
    """Return the features of images on the CPU, by the name of their column, or `patches DEPTH`."""
    depths = sorted({column.depth for column in spec.columns} | set(spec.patch_depths))
    tokens = dict(zip(depths, backbone.get_intermediate_layers(backbone.standardise(images), depths), strict=True))
    features = {
        str(column): backbone.pool(tokens[column.depth], column.pool, depth=column.depth) for column in spec.columns
    }
    features |= {f"patches {depth}": tokens[depth][:, backbone.num_prefix_tokens :] for depth in spec.patch_depths}
    return {name: values.float().cpu().contiguous() for name, values in features.items()}


@dataclass(frozen=True)
class _ImageLoader:
    """Loads images with the labels, digests and maps that are stored next to their features."""

    scenes: Scenes
    view: CentralView
    has_maps: bool

    def __call__(self, rows: range) -> tuple[Tensor, dict[str, Tensor]]:
        scenes = [self.scenes[row] for row in rows]
        batch = SceneBatch.stack([self.view(scene) for scene in scenes])
        digests = [
            hashlib.blake2b(
                self.scenes.read_image_bytes(row) or scene.maps["rgb"].numpy().tobytes(), digest_size=16
            ).digest()
            for row, scene in zip(rows, scenes, strict=True)
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
