"""One step of masked autoencoding: scenes and noise in, a loss out; and predictions for whatever is visible."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from c2fmae.core.errors import UserError
from c2fmae.core.masks import Masks
from c2fmae.core.scene import GRANULARITIES, IGNORE, SceneBatch
from c2fmae.data.transforms import middle_statistics, standardise
from c2fmae.masking import Policy, mask_scenes, patch_regions
from c2fmae.methods.checks import check_continuous, check_guide, check_ids, check_photos, map_of
from c2fmae.methods.config import MethodConfig
from c2fmae.models.losses import hidden_count, hidden_error
from c2fmae.models.patches import grid_of, label_stride, unpatchify
from c2fmae.models.targets import Target

Maps = Mapping[str, Shaped[Tensor, "batch *map"]]
Counts = Mapping[str, Int[Tensor, ""]]


class StepLoss(NamedTuple):
    """The loss of a step, and what it is made of."""

    total: Float[Tensor, ""]
    parts: dict[str, Float[Tensor, ""]]
    """By head, without weights or graph."""


@dataclass(frozen=True)
class Objective:
    """What one head learns."""

    granularity: str
    target: Target
    weight: float = 1.0


@dataclass(frozen=True)
class MaskedAutoencoding:
    """A model, what its heads learn, and what is hidden from it.

    `dataclasses.replace(method, model=…)` takes the same steps with a compiled or distributed model.
    """

    config: MethodConfig
    model: nn.Module
    objectives: Mapping[str, Objective]
    policy: Policy
    patch: int

    def loss(self, scenes: SceneBatch, *, progress: float, generator: torch.Generator) -> StepLoss:
        """Hide patches by this noise, predict them, and return how wrong that is."""
        maps = self.prepare(scenes)
        masks = self.hide(scenes, progress=progress, generator=generator)
        return self.compare(self.model(maps, masks), maps, masks)

    def predict(self, scenes: SceneBatch, masks: Masks) -> SceneBatch:
        """Return photos and maps as the heads complete them; what was visible is pasted in.

        `Masks.showing` and `Masks.of` make the masks: all, none, some granularities, these patches. A granularity of
        which nothing is visible may be missing from the scenes: a photo alone will do.

        A target that is relative to the true patch or map, as `normalized_pixels`, borrows mean and deviation from it;
        where that is missing, there is no picture of it.
        """
        present, scenes = set(scenes.maps), self._with_blanks(scenes, masks)
        maps = self.prepare(scenes)
        modes = [(module, module.training) for module in self.model.modules()]
        self.model.eval()  # drop path is for training
        try:
            with torch.no_grad():
                predictions = self.model(maps, masks)
        finally:
            for module, is_training in modes:
                module.training = is_training
        pictures = {}
        for name, objective, is_masked in self._hidden(masks):
            if getattr(objective.target, "is_relative", False) and objective.granularity not in present:
                continue
            given = scenes.maps[objective.granularity]
            picture = objective.target.picture(predictions[name], maps[objective.granularity])
            pictures[name] = _where_masked(is_masked, self._restore(objective.granularity, picture, given), given)
        return SceneBatch(scenes.keys, pictures, scenes.labels)

    def prepare(self, scenes: SceneBatch) -> dict[str, Tensor]:
        """Return the maps as the model takes them: photos standardised, ids at the label stride; all checked."""
        maps = {}
        for name in self.config.granularities:
            kind, given = GRANULARITIES.get(name).kind, map_of(scenes, name)
            if kind == "ids":
                check_ids(name, scenes, self.config.channels_of(name), patch=self.patch)
                maps[name] = given
            elif kind == "image":
                check_photos(name, given, self.config.channels_of(name))
                maps[name] = standardise(given, *self._normalisation(name, given.device))
            else:
                check_continuous(name, scenes)
                mean, deviation = middle_statistics(given)
                maps[name] = ((given - mean) / deviation).unsqueeze(1)
        return maps

    def _with_blanks(self, scenes: SceneBatch, masks: Masks) -> SceneBatch:
        """Stand in for missing maps that are wholly hidden, of which only the size matters."""
        names = self.config.granularities
        if not (absent := [name for name in names if name not in scenes.maps]):
            return scenes
        (rows, columns), maps = self._grid(scenes), dict(scenes.maps)
        device = next(iter(maps.values())).device
        for name in absent:
            if not masks.is_masked[:, names.index(name)].all():
                raise UserError(f"the scenes lack {name}, of which the masks show patches")
            kind = GRANULARITIES.get(name).kind
            side = self.patch // (label_stride(self.patch) if kind == "ids" else 1)
            channels = [self.config.channels_of(name)] if kind == "image" else []
            size, value = (len(scenes), *channels, rows * side, columns * side), IGNORE if kind == "ids" else 0
            maps[name] = torch.full(size, value, dtype=torch.uint8, device=device)
        return SceneBatch(scenes.keys, maps, scenes.labels)

    def _restore(self, name: str, picture: Tensor, given: Tensor) -> Tensor:
        """Undo what `prepare` did to a map."""
        kind = GRANULARITIES.get(name).kind
        if kind == "image":
            mean, std = (values.view(-1, 1, 1) for values in self._normalisation(name, given.device))
            return ((picture * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
        if kind == "continuous":
            mean, deviation = middle_statistics(given)
            return picture.squeeze(1) * deviation + mean
        return picture

    def _normalisation(self, name: str, device: torch.device) -> tuple[Tensor, Tensor]:
        mean, std = (torch.tensor(values).to(device, non_blocking=True) for values in self.config.normalisation(name))
        return mean, std

    def hide(
        self,
        scenes: SceneBatch,
        *,
        progress: float,
        generator: torch.Generator,
        rows: tuple[int, int] | None = None,
    ) -> Masks:
        """Draw what is hidden; `rows = (first, total)` are the scenes' places in a global batch."""
        config = self.config
        grid = self._grid(scenes)
        guides = {name: self._patches(scenes, name, grid) for name in ("semantic", "instance")}
        return mask_scenes(
            self.policy,
            guides["semantic"],
            guides["instance"],
            num_visible=config.visible_of(grid[0] * grid[1]),
            progress=progress,
            generator=generator,
            granularities=config.granularities,
            concentration=[config.concentration.get(name, 1.0) for name in config.granularities],
            grid=grid,
            rows=rows,
        )

    def counts(self, maps: Maps, masks: Masks) -> dict[str, Tensor]:
        """Return what each loss is the mean over: to be added up over processes and micro-batches."""
        return {
            name: hidden_count(objective.target.valid(maps[objective.granularity]), is_masked, self.config.average)
            for name, objective, is_masked in self._hidden(masks)
        }

    def compare(
        self, predictions: Mapping[str, Tensor], maps: Maps, masks: Masks, counts: Counts | None = None
    ) -> StepLoss:
        """Return the loss of predictions.

        Given the `counts` of a larger batch, of which this is a part, the parts' losses add up to that of the whole.
        """
        counts = self.counts(maps, masks) if counts is None else counts
        total, parts = predictions[next(iter(predictions))].new_zeros((), dtype=torch.float32), {}
        for name, objective, is_masked in self._hidden(masks):
            true = maps[objective.granularity]
            error = objective.target.error(predictions[name], true)
            part = hidden_error(error, objective.target.valid(true), is_masked, self.config.average)
            part = part / counts[name].clamp(min=1)
            parts[name] = part.detach()
            total = total + objective.weight * part
        return StepLoss(total, parts)

    def _hidden(self, masks: Masks) -> list[tuple[str, Objective, Tensor]]:
        places = {name: masks.is_masked[:, index] for index, name in enumerate(masks.granularities)}
        return [(name, objective, places[objective.granularity]) for name, objective in self.objectives.items()]

    def _grid(self, scenes: SceneBatch) -> tuple[int, int]:
        names = self.config.granularities
        name = next((name for name in reversed(names) if name in scenes.maps), names[-1])
        stride = label_stride(self.patch) if GRANULARITIES.get(name).kind == "ids" else 1
        return grid_of(name, map_of(scenes, name), self.patch // stride)

    def _patches(self, scenes: SceneBatch, name: str, grid: tuple[int, int]) -> Tensor:
        """Return which region of a guiding map each patch lies in; where nothing is guided, one region."""
        if name in getattr(self.policy, "guides", ("semantic", "instance")):
            if name not in scenes.maps:
                policy = self.config.masking.policy
                raise UserError(
                    f"masking.policy {policy!r} goes by the {name} map, which the scenes lack. Take 'random'"
                )
            check_guide(name, scenes.maps[name], len(scenes), grid)
            return patch_regions(scenes.maps[name], scenes.maps[name].shape[1] // grid[0])
        device = next(iter(scenes.maps.values())).device
        return torch.zeros(len(scenes), grid[0] * grid[1], dtype=torch.uint8, device=device)


def _where_masked(
    is_masked: Tensor, picture: Shaped[Tensor, "batch *map"], true: Shaped[Tensor, "batch *map"]
) -> Shaped[Tensor, "batch *map"]:
    """Return the picture in hidden patches and the truth elsewhere."""
    height, width = true.shape[-2:]
    num_patches = is_masked.shape[1]
    patch = round((height * width / num_patches) ** 0.5)
    hidden = unpatchify(is_masked.unsqueeze(2).expand(-1, -1, patch**2), (height // patch, width // patch))
    return torch.where(hidden if true.ndim == 3 else hidden.unsqueeze(1), picture, true)
