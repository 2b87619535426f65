"""Classification as a task of the training loop, and the inputs of classifiers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from c2fmae.core.distributed import World
from c2fmae.core.errors import UserError
from c2fmae.core.granularity import GRANULARITIES
from c2fmae.core.loop import StepLoss, Task
from c2fmae.core.scene import SceneBatch
from c2fmae.core.seeding import derive_seed
from c2fmae.core.specs import BackboneSpec
from c2fmae.eval.classification.config import MixingConfig
from c2fmae.eval.classification.mixing import mix_map, mix_targets, pair_samples, sample_mix_params
from c2fmae.methods.masked.model_inputs import prepare_input_maps
from c2fmae.models import label_stride
from c2fmae.models.backbones import Backbone
from c2fmae.models.classifiers import Classifier


@dataclass(frozen=True)
class ClassificationMicroBatch:
    """A part of a batch, prepared for the classifier."""

    keys: tuple[str, ...]
    maps: Mapping[str, Tensor]
    targets: Float[Tensor, "sample label"]


@dataclass(frozen=True)
class ClassificationTask(Task[SceneBatch, ClassificationMicroBatch]):
    """Steps of fine-tuning. Random choices depend only on the seed and the step, and are the same on all ranks."""

    classifier: Classifier
    mixing: MixingConfig
    granularity_dropout: float
    """Probability of leaving out each granularity in a step; at least one is always used."""
    seed: int
    num_views: int = 1
    """Number of consecutive views of each image in a batch."""

    def split(
        self, batch: SceneBatch, *, num_micro_batches: int, step: int, progress: float, world: World
    ) -> list[ClassificationMicroBatch]:
        """Mix images and labels, and split them into micro-batches."""
        del progress
        rng = np.random.default_rng(derive_seed(self.seed, "mix", step))
        maps = prepare_classifier_inputs(self.classifier, batch.to(world.device), self._sample_granularities(rng))
        grid_size = _grid_size(maps)
        mix_params = sample_mix_params(self.mixing, grid_size, rng)
        labels = torch.tensor(require_labels(batch), device=world.device)
        partners = pair_samples(len(batch), self.num_views).to(world.device)
        mixed = {name: mix_map(name, values, mix_params, grid_size, partners) for name, values in maps.items()}
        targets = mix_targets(
            labels, self.classifier.num_labels, lam=mix_params.lam, smoothing=self.mixing.smoothing, partners=partners
        )
        micro_batch_size = len(batch) // num_micro_batches
        return [
            ClassificationMicroBatch(
                batch.keys[first : first + micro_batch_size],
                {name: values[first : first + micro_batch_size] for name, values in mixed.items()},
                targets[first : first + micro_batch_size],
            )
            for first in range(0, len(batch), micro_batch_size)
        ]

    def compute_counts(self, micro_batch: ClassificationMicroBatch) -> dict[str, Tensor]:
        """Return the number of samples, by which the loss is divided."""
        return {"samples": torch.tensor(len(micro_batch.keys), device=micro_batch.targets.device)}

    def compute_losses(
        self, model: nn.Module, micro_batch: ClassificationMicroBatch, counts: Mapping[str, Tensor]
    ) -> StepLoss:
        """Return the micro-batch's part of the cross-entropy. Unused embeddings get a gradient of 0."""
        logits = model(micro_batch.maps)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # the loss needs at least fp32
        loss = -(micro_batch.targets * logits.log_softmax(dim=1)).sum() / counts["samples"]
        for name, embedding in self.classifier.backbone.embeddings.items():
            if name not in micro_batch.maps:
                loss = loss + sum(0.0 * weight.sum() for weight in embedding.parameters() if weight.requires_grad)
        return StepLoss(loss, {})

    def sample_keys(self, micro_batch: ClassificationMicroBatch) -> Sequence[str]:
        """Return the keys of the samples."""
        return micro_batch.keys

    def _sample_granularities(self, rng: np.random.Generator) -> tuple[str, ...]:
        """Draw the granularities of a step."""
        names = self.classifier.backbone.granularities
        noise = rng.random(len(names))
        visible = tuple(name for name, u in zip(names, noise, strict=True) if u >= self.granularity_dropout)
        return visible or (names[int(noise.argmax())],)


def _grid_size(maps: Mapping[str, Tensor]) -> tuple[int, int]:
    """Return the size of id maps if there are any, or else of the images."""
    ids = next((values for name, values in maps.items() if GRANULARITIES.get(name).kind == "ids"), None)
    shape = next(iter(maps.values())).shape if ids is None else ids.shape
    return shape[-2], shape[-1]


def require_labels(batch: SceneBatch) -> list[int]:
    """Return the labels of a batch; raise a `UserError` if a scene has none."""
    for key, label in zip(batch.keys, batch.labels, strict=True):
        if label is None:
            raise UserError(f"{key}: has no label. Label it, or leave it out")
    return [label for label in batch.labels if label is not None]


def build_view_options(backbone: Backbone, image_size: tuple[int, int]) -> dict[str, Any]:
    """Return the arguments of a view for a backbone."""
    instances = backbone.spec.channels.get("instance", GRANULARITIES.get("instance").channels)
    return {"size": image_size, "label_stride": label_stride(backbone.patch), "max_instances": instances}


def prepare_classifier_inputs(
    classifier: Classifier, scenes: SceneBatch, granularities: Sequence[str]
) -> dict[str, Tensor]:
    """Return these granularities of scenes as inputs of the classifier."""
    backbone = classifier.backbone
    channels = {name: backbone.spec.channels[name] for name in granularities}
    return prepare_input_maps(scenes, channels, backbone.patch, lambda name: _normalisation(backbone.spec, name))


def _normalisation(spec: BackboneSpec, granularity: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and standard deviation of an image granularity: 0.5 and 0.25 for all but `rgb`."""
    if granularity == "rgb":
        return spec.mean, spec.std
    return (0.5,) * spec.channels[granularity], (0.25,) * spec.channels[granularity]
