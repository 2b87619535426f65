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

from c2fmae.core.progress import Progress
from c2fmae.core.run_dir import check_room
from c2fmae.core.scene import SceneBatch
from c2fmae.data import CentralView, Scenes
from c2fmae.data.prefetch import made_ahead
from c2fmae.eval.evaluation import Subject
from c2fmae.eval.keeping import keep
from c2fmae.eval.probes.feature_store import Extracted
from c2fmae.models.backbones import Backbone, Pool

CHUNK = 1024
"""Scenes of a file, where they are small."""

Precision = Literal["fp32", "bf16"]

_FORMAT = 2
_CHUNK_BYTES = 1 << 28  # of a file: some of it is in memory three times


class Column(NamedTuple):
    """One kind of feature of a photo: behind which block, and pooled how."""

    depth: int
    pool: Pool

    def __str__(self) -> str:
        return f"layer {self.depth}, {self.pool}"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is to be known of every scene."""

    columns: tuple[Column, ...] = ()
    patches: tuple[int, ...] = ()
    """Blocks behind which every patch's feature is kept."""
    has_maps: bool = False
    """Whether the semantic maps are kept too."""
    precision: Precision = "fp32"

    def __str__(self) -> str:
        return ", ".join([*map(str, self.columns), *(f"patches of layer {depth}" for depth in self.patches)])


@dataclass(frozen=True, kw_only=True)
class Hands:
    """How the work is done, which changes nothing about the result but its last bits."""

    batch_size: int = 64
    workers: int = 2


def extract(
    subject: Subject, scenes: Scenes, view: CentralView, wanted: Wanted, *, identity: str, hands: Hands = Hands()
) -> Extracted:
    """Return the features of all scenes' photos; `identity` tells these scenes from others of the same keys."""
    each = _bytes_of_scene(subject.backbone, view, wanted)
    length = max(1, min(CHUNK, _CHUNK_BYTES // each))
    what = {
        "format": _FORMAT,
        "weights": subject.digest,
        "scenes": identity,
        "view": [*view.size, view.crop, view.label_stride],
        "columns": [str(column) for column in wanted.columns],
        "patches": wanted.patches,
        "maps": wanted.has_maps,
        "precision": wanted.precision,
        "chunk": length,
    }
    text = json.dumps(what)
    folder = subject.cache / hashlib.sha256(text.encode()).hexdigest()[:16]
    starts = range(0, len(scenes), length)
    paths = tuple(folder / f"chunk-{number:05d}.safetensors" for number in range(len(starts)))
    world = subject.world
    if world.is_first:
        keep(folder / "what.json", text.encode())
        missing = min(length * sum(not path.exists() for path in paths), len(scenes))
        if missing:
            check_room(folder, needed=missing * each, what="features", or_do="take fewer layers")
    world.wait()
    mine = [number for number, path in enumerate(paths) if number % world.size == world.rank and not path.exists()]
    rows = {number: range(starts[number], min(starts[number] + length, len(scenes))) for number in mine}
    _make(subject, scenes, view, wanted, hands, {paths[number]: each for number, each in rows.items()})
    world.wait()
    return Extracted(paths, length)


@torch.inference_mode()
def _make(
    subject: Subject,
    scenes: Scenes,
    view: CentralView,
    wanted: Wanted,
    hands: Hands,
    chunks: Mapping[Path, range],
) -> None:
    """Make some chunks."""
    batches = [
        (path, rows[first : first + hands.batch_size])
        for path, rows in chunks.items()
        for first in range(0, len(rows), hands.batch_size)
    ]
    backbone, device = subject.backbone.to(subject.world.device).eval(), subject.world.device
    make = _Batches(scenes, view, [rows for _, rows in batches], wanted.has_maps)
    loaded = made_ahead(make, len(batches), workers=hands.workers, pin=device.type == "cuda")
    made: list[dict[str, Tensor]] = []
    is_quiet = not subject.world.is_first or not batches
    clock = time.perf_counter()
    with Progress(total=len(batches), samples_per_step=hands.batch_size, is_quiet=is_quiet) as progress:
        for step, ((photos, facts), (path, rows)) in enumerate(zip(loaded, batches, strict=True), start=1):
            waited = time.perf_counter() - clock
            with torch.autocast(device.type, torch.bfloat16, enabled=wanted.precision == "bf16"):
                made.append(_features(backbone, photos.to(device, non_blocking=True), wanted) | facts)
            if rows[-1] == chunks[path][-1]:
                keep(path, save({name: torch.cat([each[name] for each in made]) for name in made[0]}))
                made = []
            now = time.perf_counter()
            progress.step(step, {}, seconds=now - clock, waited=waited / (now - clock))
            clock = now


def _features(backbone: Backbone, photos: Tensor, wanted: Wanted) -> dict[str, Tensor]:
    depths = sorted({column.depth for column in wanted.columns} | set(wanted.patches))
    tokens = dict(zip(depths, backbone.layers(backbone.standardise(photos), depths), strict=True))
    found = {str(each): backbone.pool(tokens[each.depth], each.pool, depth=each.depth) for each in wanted.columns}
    found |= {f"patches {depth}": tokens[depth][:, backbone.num_prefix :] for depth in wanted.patches}
    return {name: tensor.float().cpu().contiguous() for name, tensor in found.items()}


@dataclass(frozen=True)
class _Batches:
    """Batches by number: photos, and what is noted of its scenes beside features."""

    scenes: Scenes
    view: CentralView
    rows: Sequence[range]
    has_maps: bool
    """Whether the semantic maps are noted."""

    def __call__(self, number: int) -> tuple[Tensor, dict[str, Tensor]]:
        scenes = [self.scenes[row] for row in self.rows[number]]
        stored = [self.scenes.photo(row) for row in self.rows[number]]
        batch = SceneBatch.stack([self.view(scene) for scene in scenes])
        photos = [
            hashlib.blake2b(photo or scene.maps["rgb"].numpy().tobytes(), digest_size=16).digest()
            for photo, scene in zip(stored, scenes, strict=True)
        ]
        facts = {
            "labels": torch.tensor([-1 if label is None else label for label in batch.labels]),
            "photos": torch.from_numpy(np.frombuffer(b"".join(photos), np.uint8).reshape(-1, 16).copy()),
        }
        if self.has_maps:
            facts["semantic"] = batch.maps["semantic"]
        return batch.maps["rgb"], facts


def _bytes_of_scene(backbone: Backbone, view: CentralView, wanted: Wanted) -> int:
    patches = (view.size[0] // backbone.patch) * (view.size[1] // backbone.patch)
    vectors = len(wanted.columns) + len(wanted.patches) * patches
    return 4 * backbone.dim * vectors + view.size[0] * view.size[1] // view.label_stride**2 + 64
