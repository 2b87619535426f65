"""Features of a set of scenes, kept on the disk chunk by chunk: what was killed goes on, what was done stays done.

A chunk is so many scenes in order, whatever the processes, each of which makes whole chunks. So the features are the
same for any number of them, and no photo counts twice.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from c2fmae.core.errors import UserError
from c2fmae.core.progress import Progress
from c2fmae.core.run_folder import check_room
from c2fmae.core.scene import SceneBatch
from c2fmae.data import CentralView, Scenes
from c2fmae.data.loader import telling_of_dead_workers
from c2fmae.eval.evaluation import Subject
from c2fmae.eval.keeping import keep
from c2fmae.models.backbones import Backbone, Pool

log = logging.getLogger(__name__)

CHUNK = 1024
"""Scenes of a file."""

Precision = Literal["fp32", "bf16"]

_FORMAT = 1
_IN_MEMORY = 4 << 30  # bytes of features that are read at once rather than row by row


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

    def __str__(self) -> str:
        return ", ".join([*map(str, self.columns), *(f"patches of layer {depth}" for depth in self.patches)])


@dataclass(frozen=True, kw_only=True)
class Hands:
    """How the work is done, which changes nothing about the result but its last bits."""

    batch_size: int = 64
    workers: int = 2
    precision: Precision = "fp32"


@dataclass(frozen=True)
class Extracted:
    """Features of scenes, in their order, as they lie on the disk."""

    chunks: tuple[Path, ...]

    def blocks(self, name: object) -> Iterator[Tensor]:
        """Return a tensor chunk by chunk: that of a column, `patches 12`, `semantic`."""
        for path in self.chunks:
            with safe_open(path, framework="pt") as file:
                yield file.get_tensor(str(name))

    def column(self, column: Column) -> Tensor:
        """Return a column's features, [scene, dim]."""
        return torch.cat([*self.blocks(column)])

    def reader(self, name: object) -> Callable[[Int64[Tensor, " row"]], Tensor]:
        """Return what reads rows of a tensor: from memory where all of it fits there, else from where they lie."""
        if sum(path.stat().st_size for path in self.chunks) <= _IN_MEMORY:
            return torch.cat([*self.blocks(name)]).__getitem__
        files = [safe_open(path, framework="pt") for path in self.chunks]

        def read(rows: Int64[Tensor, " row"]) -> Tensor:
            places = (divmod(row, CHUNK) for row in rows.tolist())
            return torch.cat([files[chunk].get_slice(str(name))[place : place + 1] for chunk, place in places])

        return read

    @cached_property
    def labels(self) -> Tensor:
        """Return the scenes' labels; -1 for those without."""
        return torch.cat([*self.blocks("labels")])

    @cached_property
    def photos(self) -> np.ndarray:
        """Return a digest of each photo."""
        digests = torch.cat([*self.blocks("photos")]).numpy()
        return digests.view(f"V{digests.shape[1]}")[:, 0]


def extract(
    subject: Subject, scenes: Scenes, view: CentralView, wanted: Wanted, *, identity: str, hands: Hands = Hands()
) -> Extracted:
    """Return the features of all scenes' photos; `identity` tells these scenes from others of the same keys."""
    what = {
        "format": _FORMAT,
        "weights": weights_digest(subject.backbone),
        "scenes": identity,
        "view": [*view.size, view.crop, view.label_stride],
        "columns": [str(column) for column in wanted.columns],
        "patches": wanted.patches,
        "maps": wanted.has_maps,
        "precision": hands.precision,
    }
    text = json.dumps(what)
    folder = subject.cache / hashlib.sha256(text.encode()).hexdigest()[:16]
    starts = range(0, len(scenes), CHUNK)
    paths = tuple(folder / f"chunk-{number:05d}.safetensors" for number in range(len(starts)))
    world = subject.world
    if world.is_first:
        missing = sum(not path.exists() for path in paths)
        if missing:
            needed = min(missing * CHUNK, len(scenes)) * _bytes_of_scene(subject.backbone, view, wanted)
            check_room(folder, needed=needed, what="features", or_do="take fewer layers")
        keep(folder / "what.json", text.encode())
    world.wait()
    mine = [number for number, path in enumerate(paths) if number % world.size == world.rank and not path.exists()]
    _make(subject, scenes, view, wanted, hands, {number: paths[number] for number in mine})
    world.wait()
    return Extracted(paths)


def identity_of(scenes: Scenes, source: str) -> str:
    """Return a digest of what tells scenes from others: where they are from, their keys, some of their photos."""
    digest = hashlib.sha256(source.encode())
    for key in scenes.keys:
        digest.update(key.encode() + b"\n")
    for index in np.linspace(0, len(scenes), min(64, len(scenes)), endpoint=False).astype(int).tolist():
        digest.update(scenes.photo(index) or b"-")
    return digest.hexdigest()


def weights_digest(backbone: Backbone) -> str:
    """Return a digest of a backbone: what it is, and its weights."""
    digest = hashlib.sha256(backbone.spec.model_dump_json().encode())
    for name, tensor in sorted(backbone.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


@torch.inference_mode()
def _make(
    subject: Subject,
    scenes: Scenes,
    view: CentralView,
    wanted: Wanted,
    hands: Hands,
    paths: Mapping[int, Path],
) -> None:
    """Make some chunks."""
    rows = [
        (number, range(first, min(first + hands.batch_size, (number + 1) * CHUNK, len(scenes))))
        for number in paths
        for first in range(number * CHUNK, min((number + 1) * CHUNK, len(scenes)), hands.batch_size)
    ]
    if not rows:
        return
    backbone, device = subject.backbone.to(subject.world.device).eval(), subject.world.device
    loader = DataLoader(
        _Batches(scenes, view, [each for _, each in rows], wanted.has_maps),
        batch_size=None,
        num_workers=min(hands.workers, len(rows)),
        pin_memory=device.type == "cuda",
        collate_fn=_as_it_is,
    )
    made: list[dict[str, Tensor]] = []
    clock = time.perf_counter()
    with (
        telling_of_dead_workers(),
        Progress(total=len(rows), samples_per_step=hands.batch_size, is_quiet=not subject.world.is_first) as progress,
    ):
        for step, (batch, (number, _)) in enumerate(zip(loader, rows, strict=True), start=1):
            if isinstance(batch, UserError):
                raise batch
            photos, facts = batch
            waited = time.perf_counter() - clock
            with torch.autocast(device.type, torch.bfloat16, enabled=hands.precision == "bf16"):
                made.append(_features(backbone, photos.to(device, non_blocking=True), wanted) | facts)
            if step == len(rows) or rows[step][0] != number:
                whole = {name: torch.cat([each[name] for each in made]) for name in made[0]}
                keep(paths[number], save(whole))
                made = []
            now = time.perf_counter()
            progress.step(step, {}, seconds=now - clock, waited=waited / (now - clock))
            clock = now


def _features(backbone: Backbone, photos: Tensor, wanted: Wanted) -> dict[str, Tensor]:
    depths = sorted({column.depth for column in wanted.columns} | set(wanted.patches))
    tokens = dict(zip(depths, backbone.layers(backbone.standardise(photos), depths), strict=True))
    found = {str(column): backbone.pool(tokens[column.depth], column.pool) for column in wanted.columns}
    found |= {f"patches {depth}": tokens[depth][:, backbone.num_prefix :] for depth in wanted.patches}
    return {name: tensor.float().cpu().contiguous() for name, tensor in found.items()}


Made = tuple[Tensor, dict[str, Tensor]] | UserError
"""A batch's photos, and what is noted of its scenes beside features."""


@dataclass(frozen=True)
class _Batches(Dataset[object]):
    """Batches by number, for worker processes."""

    scenes: Scenes
    view: CentralView
    rows: Sequence[range]
    has_maps: bool
    """Whether the semantic maps are noted."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Made:
        try:
            scenes = [self.scenes[row] for row in self.rows[number]]
            batch = SceneBatch.stack([self.view(scene) for scene in scenes])
        except UserError as error:  # raised in a worker, it would come out with a traceback for a message
            return error
        photos = [
            hashlib.blake2b(self.scenes.photo(row) or scene.maps["rgb"].numpy().tobytes(), digest_size=16).digest()
            for row, scene in zip(self.rows[number], scenes, strict=True)
        ]
        facts = {
            "labels": torch.tensor([-1 if label is None else label for label in batch.labels]),
            "photos": torch.from_numpy(np.frombuffer(b"".join(photos), np.uint8).reshape(-1, 16).copy()),
        }
        if self.has_maps:
            facts["semantic"] = batch.maps["semantic"]
        return batch.maps["rgb"], facts


def _as_it_is(sample: object) -> object:
    return sample


def _bytes_of_scene(backbone: Backbone, view: CentralView, wanted: Wanted) -> int:
    patches = (view.size[0] // backbone.patch) * (view.size[1] // backbone.patch)
    vectors = len(wanted.columns) + len(wanted.patches) * patches
    return 4 * backbone.dim * vectors + view.size[0] * view.size[1] // view.label_stride**2 + 64
