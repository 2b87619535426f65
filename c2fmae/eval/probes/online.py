"""Probes of the encoder during its pre-training, on labelled images in memory.

The figures are those that `eval knn` and `eval linear` compute for a checkpoint with the same images and settings.
Images are drawn once, with a fixed seed, and each rank computes whole chunks of them, so a figure is a function of the
weights: the same for any number of processes, and after a resume.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import nan
from typing import Literal

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from c2fmae.config.data import DatasetConfig, DataSourceOption
from c2fmae.config.unseen_scenes import UnseenScenes, is_generated
from c2fmae.config.watching import OnlineProbeName, OnlineProbesConfig
from c2fmae.core.distributed import World
from c2fmae.core.errors import UserError
from c2fmae.core.seeding import derive_seed
from c2fmae.core.specs import BackboneSpec
from c2fmae.core.splits import find_train_test
from c2fmae.core.watching import is_due
from c2fmae.data import CentralView
from c2fmae.data.combine import read_stored_labels
from c2fmae.eval.datasets import OpenedSet, open_set
from c2fmae.eval.engine import BatchingConfig, BatchReader, gather_rows, iterate_batches
from c2fmae.eval.probes.batching import VALIDATION_DIVISOR
from c2fmae.eval.probes.config import QUICK_SWEEP, FeatureColumn, FeatureSpec, KnnEvaluation, LinearProbeEvaluation
from c2fmae.eval.probes.extraction import compute_features
from c2fmae.eval.probes.knn import compute_knn_accuracies
from c2fmae.eval.probes.linear import compute_top_k_accuracies, fit_linear_probe
from c2fmae.models.backbones import Backbone
from c2fmae.models.backbones.assemble import SourceContents, backbone_from_c2fmae_names, split_c2fmae_tensors

Split = Literal["train", "test"]

KEY_PREFIX = "probe/"
DISPLAY_NAMES = {f"{KEY_PREFIX}knn": "k-NN", f"{KEY_PREFIX}linear": "linear"}
"""Name of each probe by the key of its metric."""
NUM_NEIGHBOURS = 20
_LINEAR = LinearProbeEvaluation(**QUICK_SWEEP, epochs=40)
_IMAGES_PER_CHUNK = 64
_SPLITS: tuple[Split, Split] = ("train", "test")


@dataclass(frozen=True)
class _Images:
    """Images of this rank by their rows in a set, and the labels of all rows."""

    chunks: tuple[tuple[range, UInt8[Tensor, "_ channels height width"]], ...]
    labels: Int64[Tensor, " row"]


@dataclass(frozen=True)
class OnlineProbes:
    """Probes of one encoder at several steps of its training."""

    config: OnlineProbesConfig
    spec: BackboneSpec
    sets: tuple[OpenedSet, OpenedSet]
    world: World
    num_workers: int
    """Number of processes that load the images, once."""

    @cached_property
    def _images(self) -> tuple[_Images, _Images]:
        train, test = (self._load(opened, limit) for opened, limit in zip(self.sets, _limits(self.config), strict=True))
        _check_labels(self.sets, (train.labels, test.labels))
        return train, test

    def _load(self, opened: OpenedSet, limit: int) -> _Images:
        rows = _draw_rows(opened, limit)
        view = CentralView(size=self.spec.image_size)
        batches = iterate_batches(
            BatchReader(opened.scenes, view, rows.tolist()),
            self.world.rank_chunks(len(rows), _IMAGES_PER_CHUNK),
            self.world,
            BatchingConfig(batch_size=_IMAGES_PER_CHUNK, num_workers=self.num_workers),
            show_progress=False,  # training has a progress display
        )
        chunks, labels = list[tuple[range, Tensor]](), list[tuple[range, dict[str, Tensor]]]()
        for chunk, batch in batches:
            chunks.append((chunk, batch.maps["rgb"]))
            labels.append((chunk, {"labels": torch.tensor([-1 if n is None else n for n in batch.labels])}))
        return _Images(tuple(chunks), gather_rows(labels, len(rows), self.world)["labels"])

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of the accuracies."""
        return tuple(f"{KEY_PREFIX}{name}" for name in self.config.names)

    def is_due(self, step: int, total_steps: int) -> bool:
        """Return whether the encoder is probed after a step: the untrained encoder is, and the last one."""
        return step == 0 or is_due(step, self.config.every or max(total_steps // 10, 1), total_steps)

    def compute_accuracies(self, tensors: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the accuracy of each probe in percent, by key; NaN if features are not finite.

        `tensors` are the weights of the model in training, or averages of them. All ranks call it.
        """
        selected, _ = split_c2fmae_tensors(tensors)
        contents = SourceContents(source="watching.probes", spec=self.spec, tensors=selected)
        backbone = backbone_from_c2fmae_names(contents).to(self.world.device)
        train, test = (self._compute_features(backbone, images) for images in self._images)
        if not (train.isfinite().all() and test.isfinite().all()):
            return dict.fromkeys(self.keys, nan)
        return {f"{KEY_PREFIX}{name}": 100 * self._compute_accuracy(name, train, test) for name in self.config.names}

    @torch.inference_mode()
    def _compute_features(self, backbone: Backbone, images: _Images) -> Float[Tensor, "row dim"]:
        column = FeatureColumn(backbone.depth, self.spec.pool)
        outputs = (
            (chunk, compute_features(backbone, pixels.to(self.world.device), FeatureSpec(columns=(column,))))
            for chunk, pixels in images.chunks
        )
        return gather_rows(outputs, len(images.labels), self.world)[str(column)]

    def _compute_accuracy(self, name: OnlineProbeName, train: Tensor, test: Tensor) -> float:
        train_labels, test_labels = (images.labels for images in self._images)
        if name == "knn":
            k = min(NUM_NEIGHBOURS, len(train))
            accuracies = compute_knn_accuracies(
                KnnEvaluation(ks=(k,)), self.world, train, test, (train_labels, test_labels)
            )
            return accuracies["weighted", k]
        accuracy = 0.0
        if self.world.is_main:
            fit = fit_linear_probe(
                _LINEAR,
                {"features": train},
                train_labels,
                torch.arange(len(train)),
                num_labels=int(torch.cat([train_labels, test_labels]).max()) + 1,
            )
            accuracy = compute_top_k_accuracies(fit.probe, test, test_labels)["top1"]
        return float(self.world.broadcast_object(accuracy))


def describe_accuracies(accuracies: Mapping[str, float]) -> str:
    """Return the accuracies of probes as text.

    >>> describe_accuracies({"probe/knn": 57.32, "probe/linear": 61.2})
    'probes: k-NN 57.3 %, linear 61.2 %'
    """
    return f"probes: {', '.join(f'{DISPLAY_NAMES[key]} {value:.1f} %' for key, value in accuracies.items())}"


def open_online_probes(
    config: OnlineProbesConfig,
    spec: BackboneSpec,
    training_data: DataSourceOption | None,
    world: World,
    *,
    num_workers: int,
) -> OnlineProbes:
    """Open the labelled sets, and raise a `UserError` if they cannot be used for this encoder."""
    try:
        if "rgb" not in spec.channels:
            raise UserError("the probes need an encoder of images, and this one has none. Set watching.probes=null")
        sources, unseen = find_probe_sets(config), UnseenScenes.of_source(training_data)
        train, test = (
            open_set(split, unseen.fill(sources[split], length=limit), spec.image_size, ("rgb",), unseen)
            for split, limit in zip(_SPLITS, _limits(config), strict=True)
        )
        KnnEvaluation().check_sets((train, test))
        for split, opened in (("train", train), ("test", test)):
            channels = opened.scenes.info.channels
            if channels != spec.channels["rgb"] and (channels, spec.channels["rgb"]) != (1, 3):  # grey is repeated
                raise UserError(
                    f"{split}: the images of {opened.name} have {channels} channels, but the "
                    f"encoder takes {spec.channels['rgb']}. Use images like those of the training data"
                )
    except UserError as error:
        raise UserError(f"watching.probes: {error}") from error
    stored = [
        None if (labels := read_stored_labels(opened.scenes)) is None else labels[_draw_rows(opened, limit)]
        for opened, limit in zip((train, test), _limits(config), strict=True)
    ]
    if stored[0] is not None and stored[1] is not None:  # others are checked when they have been loaded
        _check_labels((train, test), (stored[0], stored[1]))
    return OnlineProbes(config, spec, (train, test), world, num_workers)


def find_probe_sets(config: OnlineProbesConfig) -> dict[Split, DataSourceOption]:
    """Return the sources of the training and the test set. Generated ones get different seeds when they are opened."""
    data, test = config.data, config.test
    if test is not None:
        if test == data:
            raise UserError("test: expected other scenes than those of watching.probes.data. Use another set")
        return {"train": data, "test": test}
    if isinstance(data, str):
        found = find_train_test(data)
        return {"train": found["train"], "test": found["test"]}
    if isinstance(data, DatasetConfig) and is_generated(data) and "seed" not in data.given_options():
        return {"train": data, "test": data}
    raise UserError("test: is required with this data. Set watching.probes.test")


def _limits(config: OnlineProbesConfig) -> tuple[int, int]:
    return config.train_samples, config.test_samples


def _draw_rows(opened: OpenedSet, limit: int) -> Int64[Tensor, " row"]:
    """Return at most `limit` rows, sorted. They are drawn, since labels may alternate in a fixed order."""
    generator = torch.Generator().manual_seed(derive_seed(0, "online probes"))
    return torch.randperm(len(opened.scenes), generator=generator)[:limit].sort().values


def _check_labels(sets: tuple[OpenedSet, OpenedSet], labels: tuple[Tensor, Tensor]) -> None:
    """Raise a `UserError` if an image has no label, or the labels do not suffice for a probe."""
    for split, opened, split_labels in zip(_SPLITS, sets, labels, strict=True):
        if missing := int((split_labels < 0).sum()):
            raise UserError(
                f"watching.probes: {split}: {missing} of {len(split_labels)} images of {opened.name} have no label. "
                "Label them, or leave them out"
            )
    num_images, num_labels = len(labels[0]), len(labels[0].unique())
    if num_images < VALIDATION_DIVISOR or num_labels < 2:
        raise UserError(
            f"watching.probes: train: expected at least {VALIDATION_DIVISOR} images of two labels, got {num_images} of "
            f"{num_labels}. Use more images"
        )
