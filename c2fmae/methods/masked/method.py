"""Masked autoencoding: the loss of a batch of scenes, and predictions for given masks."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from c2fmae.config.data import DataConfig
from c2fmae.config.masked_method import MaskedConfig
from c2fmae.config.method import ImageSize
from c2fmae.core.loop import StepLoss
from c2fmae.core.masks import Masks
from c2fmae.core.operation_count import ForwardCost
from c2fmae.core.scene import SceneBatch
from c2fmae.core.training import CompiledParts, TrainingPlan
from c2fmae.data import Transform
from c2fmae.masking import Policy
from c2fmae.masking.noise import MaskGenerator
from c2fmae.methods.masked.mask_sampler import MaskSampler
from c2fmae.methods.masked.model_inputs import (
    denormalise_map,
    fill_missing_maps,
    paste_visible,
    prepare_inputs,
)
from c2fmae.methods.masked.objectives import InputMaps, Objective, count_hidden_values, pair_with_masks
from c2fmae.models.losses import sum_hidden_error
from c2fmae.models.patches import label_stride, spread_patches

if TYPE_CHECKING:
    from c2fmae.methods.masked.task import PretrainingTask

LossCounts = Mapping[str, Int[Tensor, ""]]


@dataclass(frozen=True)
class MaskedAutoencoding:
    """A model, the objectives of its heads and its masking policy.

    `dataclasses.replace(method, model=…)` computes the same steps with a compiled or distributed model.
    """

    config: MaskedConfig
    model: nn.Module
    objectives: Mapping[str, Objective]
    policy: Policy
    patch_size: int

    @property
    def teacher(self) -> None:
        """None: targets are the maps themselves."""
        return None

    @property
    def loss_weights(self) -> dict[str, float]:
        """The weight of each loss, by name."""
        return {name: objective.weight for name, objective in self.objectives.items()}

    @property
    def masking(self) -> MaskSampler:
        """The masking of the method, without its model."""
        return MaskSampler(self.config, self.policy, self.patch_size)

    @property
    def view_options(self) -> dict[str, Any]:
        """Arguments of the `RandomView` or `CentralView` that crops scenes for this method."""
        return {
            "size": self.config.image_size,
            "label_stride": label_stride(self.patch_size),
            "max_instances": self.config.num_channels("instance"),
        }

    def training_view(self, data: DataConfig, image_size: ImageSize) -> Transform:
        """Return the transform that crops training scenes to a size."""
        return data.build_training_view(**{**self.view_options, "size": image_size})

    def held_out_view(self, data: DataConfig) -> Transform:
        """Return the transform that crops held-out scenes."""
        return data.build_held_out_view(**self.view_options)

    def build_task(self, plan: TrainingPlan, *, seed: int, compiled_parts: CompiledParts = "off") -> "PretrainingTask":
        """Return the training task; nothing in it depends on the plan."""
        from c2fmae.methods.masked.task import PretrainingTask

        del plan
        return PretrainingTask(self, seed, compiled_parts=compiled_parts)

    def sum_held_out_losses(self, scenes: SceneBatch, *, seed: int) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the sum and the count of each loss. Masks are those of the end of training, to compare epochs."""
        masks = self.sample_masks(scenes, progress=1.0, generator=torch.Generator().manual_seed(seed))
        maps = self.prepare_inputs(scenes)
        counts = self.loss_counts(maps, masks)
        ones = {name: torch.ones_like(count) for name, count in counts.items()}
        error_sums = self.compute_loss(self.model(maps, masks), maps, masks, ones).terms
        return {name: (error_sums[name], counts[name]) for name in self.objectives}

    def describe(self) -> str:
        """Return the architecture as a table."""
        from c2fmae.methods.masked.describe import describe_architecture, format_architecture

        return format_architecture(describe_architecture(self.config))

    def compute_cost(self) -> ForwardCost:
        """Return the cost of the forward pass of one image."""
        from c2fmae.methods.masked.cost import compute_pretraining_cost

        return compute_pretraining_cost(self.config)

    def compute_step_loss(self, scenes: SceneBatch, *, progress: float, generator: MaskGenerator) -> StepLoss:
        """Draw masks from the generator, predict the hidden patches and return the loss."""
        maps = self.prepare_inputs(scenes)
        masks = self.masking.sample(scenes, progress=progress, generator=generator, decodes_all=False)
        return self.compute_loss(self.model(maps, masks), maps, masks)

    def predict(self, scenes: SceneBatch, masks: Masks) -> SceneBatch:
        """Return images and maps with all hidden patches predicted by the heads, and visible patches copied.

        `Masks.from_visible_granularities` and `Masks.from_mask` make masks. The scenes may lack a granularity that is
        hidden entirely: images alone are enough if nothing else is visible.

        A target relative to the true patch or map, such as `normalized_pixels`, takes mean and deviation from it; it
        is left out of the result where the true map is missing. So is one from which no map follows, such as `hog`.
        """
        masks = replace(masks, decoded_idx=None)
        given, scenes = set(scenes.maps), fill_missing_maps(self.config, self.patch_size, scenes, masks)
        maps = self.prepare_inputs(scenes)
        modes = [(module, module.training) for module in self.model.modules()]
        self.model.eval()  # disables drop path
        try:
            with torch.no_grad():
                predictions = self.model(maps, masks)
        finally:
            for module, is_training in modes:
                module.training = is_training
        completed_maps = {}
        for name, objective, is_masked in pair_with_masks(self.objectives, masks):
            if not getattr(objective.target, "has_maps", True):
                continue
            if getattr(objective.target, "needs_true_map", False) and objective.granularity not in given:
                continue
            original = scenes.maps[objective.granularity]
            prediction = objective.target.predictions_to_maps(predictions[name], maps[objective.granularity])
            prediction = denormalise_map(self.config, objective.granularity, prediction, original)
            completed_maps[name] = paste_visible(prediction, original, is_masked)
        return SceneBatch(scenes.keys, completed_maps, scenes.labels)

    def prepare_inputs(self, scenes: SceneBatch) -> dict[str, Tensor]:
        """Return the inputs of the model: standardised images, and ids at the label stride.

        Raise a UserError if the scenes do not fit the method.
        """
        return prepare_inputs(self.config, self.patch_size, scenes)

    def sample_masks(
        self,
        scenes: SceneBatch,
        *,
        progress: float,
        generator: MaskGenerator,
        global_rows: tuple[int, int] | None = None,
    ) -> Masks:
        """Draw masks whose hidden patches are all decoded, as in evaluation.

        `global_rows = (first, total)` is the number of the first scene in a global batch of `total`.
        """
        return self.masking.sample(scenes, progress=progress, generator=generator, global_rows=global_rows)

    def loss_counts(self, maps: InputMaps, masks: Masks) -> dict[str, Tensor]:
        """Return the count that each loss is divided by; the counts of ranks and micro-batches add up."""
        counts = count_hidden_values(self.objectives, maps, masks, self.config.loss_average)
        return {name: counts[name] for name in self.objectives}

    def compute_loss(
        self, predictions: Mapping[str, Tensor], maps: InputMaps, masks: Masks, counts: LossCounts | None = None
    ) -> StepLoss:
        """Return the loss of predictions.

        With the `counts` of a larger batch, the losses of its micro-batches add up to the loss of the larger batch.
        """
        counts = self.loss_counts(maps, masks) if counts is None else counts
        total, terms = predictions[next(iter(predictions))].new_zeros((), dtype=torch.float32), {}
        for name, objective, is_masked in pair_with_masks(self.objectives, masks):
            target_maps, decoded_idx = maps[objective.granularity], masks.decoded_idx_of(objective.granularity)
            # A target sees all patches: its error of one may depend on others.
            predicted = spread_patches(predictions[name], decoded_idx, is_masked.shape[1])
            error = objective.target.error(predicted, target_maps)
            term = sum_hidden_error(
                error, objective.target.count_valid(target_maps), is_masked, self.config.loss_average
            )
            term = term / counts[name].clamp(min=1)
            terms[name] = term.detach()
            total = total + objective.weight * term
        return StepLoss(total, terms)
