"""`eval dense`: how well a linear classifier of frozen patches says which class every place of a photo shows."""

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Integer
from torch import Tensor

from c2fmae.core.config import PositiveInt
from c2fmae.core.errors import UserError
from c2fmae.core.granularity import IGNORE
from c2fmae.core.seeding import derive_seed
from c2fmae.eval.datasets import OpenedSet, check_same_names
from c2fmae.eval.engine import BatchingConfig, iterate_batches, split_chunks, sum_outputs
from c2fmae.eval.evaluation import EVALUATIONS, ModelUnderTest
from c2fmae.eval.metrics import Metric
from c2fmae.eval.probes.batching import split_training_validation
from c2fmae.eval.probes.bootstrap import NUM_REPLICATES, percentile_interval, poisson_weights, replicate_sums
from c2fmae.eval.probes.confusion import class_ious, confusion_matrices, mean_iou, overall_accuracy
from c2fmae.eval.probes.extraction import FeatureSpec
from c2fmae.eval.probes.feature_store import FeatureStore
from c2fmae.eval.probes.linear_heads import ChosenHead, LinearProbe, choose_linear_head
from c2fmae.eval.probes.probe_config import ProbeConfig, TrainTestFeatures
from c2fmae.eval.probes.sweep import SweepConfig, describe_chosen_head
from c2fmae.models.backbones import Backbone
from c2fmae.models.patches import label_stride, patchify

_IMAGES_PER_BATCH = 64  # photos whose places are classified together


@EVALUATIONS.register("dense")
class DenseProbeEvaluation(SweepConfig, ProbeConfig):
    """A linear classifier of frozen patches, its settings chosen on a fifth of the training photos: mIoU."""

    max_patches: PositiveInt = 500_000
    """So many training patches at most, drawn evenly from the photos."""

    def feature_spec(self, backbone: Backbone) -> FeatureSpec:
        """Return what is to be known of every scene."""
        return FeatureSpec(patch_depths=self.resolve_layers(backbone), has_maps=True, precision=self.precision)

    def required_granularities(self) -> tuple[str, ...]:
        """Return the granularities that scenes have to have."""
        return ("rgb", "semantic")

    def check_sets(self, sets: tuple[OpenedSet, OpenedSet]) -> None:
        """Refuse classes that are not the same, or have no names."""
        if not check_same_names(sets, "class_names"):
            raise UserError(f"train: {sets[0].name} does not name its classes. Give it a dataset.json")

    def describe_protocol(self, model: ModelUnderTest) -> str:
        """Say what is done."""
        number = len(self.lrs) * len(self.weight_decays) * len(self.resolve_layers(model.backbone))
        stride = label_stride(model.backbone.patch)
        return (
            f"{self.describe_setup(model)} A linear classifier of standardised features of patches, "
            f"{self.describe_fit()}; what "
            f"is right of a patch is how much of each class its cells hold, one cell being {stride}×{stride} pixels. "
            f"Up to {self.max_patches:,} training patches. Of {number} settings (learning rate × weight decay × layer, "
            "fitted in one pass) the best on a fifth of the training photos is fitted again to all of them; the test "
            "photos have no part in the choice. Its scores are brought to the cells bilinearly, and all labelled cells "
            "of all test photos counted at once: mIoU is the mean over classes that are there or were found. "
            f"Intervals: {NUM_REPLICATES} bootstrap samples of the test photos."
        )

    def run(self, model: ModelUnderTest) -> Iterator[Metric]:
        """Fit all settings at once, in one process for all, and count what the best finds."""
        sets, names = self.extract_sets(model), self.open_sets(model)[0].scenes.info.class_names
        count = sets.num_test_images
        yield sets.overlap_metric()
        best = self._choose_head(sets, model.backbone, len(names)) if model.world.is_main else None
        chosen: ChosenHead = model.world.broadcast_object(best)
        total, replicates = self._count_predictions(model, sets.test, chosen, len(names))
        interval = percentile_interval(100 * mean_iou(replicates))
        notes = (describe_chosen_head(chosen),)
        yield Metric("mean_iou", 100 * mean_iou(total).item(), count, interval, notes=notes)
        interval = percentile_interval(100 * overall_accuracy(replicates))
        yield Metric("cell_accuracy", 100 * overall_accuracy(total).item(), count, interval)
        for name, iou in zip(names, class_ious(total).tolist(), strict=True):
            if not math.isnan(iou):
                yield Metric("iou", 100 * iou, count, tags={"class": name})

    def _choose_head(self, sets: TrainTestFeatures, backbone: Backbone, num_classes: int) -> ChosenHead:
        features, counts, image_indices = self._training_patches(sets.train, backbone, num_classes)
        rows = torch.arange(len(counts))
        _, validation_images = split_training_validation(image_indices.unique(), seed=self.seed)
        is_validation = torch.isin(image_indices, validation_images)
        return choose_linear_head(
            features,
            counts,
            self.list_settings([*features]),
            rows=rows[~is_validation],
            validation_rows=rows[is_validation],
            num_labels=num_classes,
            epochs=self.resolve_epochs(len(rows)),
            batch_size=self.head_batch_size,
            seed=derive_seed(self.seed, "heads"),
        )

    def _training_patches(
        self, train: FeatureStore, backbone: Backbone, num_classes: int
    ) -> tuple[dict[str, Tensor], Float[Tensor, "row label"], Int[Tensor, " row"]]:
        """Return features of patches by layer, how much of each class they hold, and which photo they are of."""
        side, chunk_indices = backbone.patch // label_stride(backbone.patch), range(len(train.chunk_paths))
        is_labelled = torch.cat(
            [(patchify(train.read_chunk("semantic", n), side) != IGNORE).any(dim=2) for n in chunk_indices]
        )
        patches_per_image, rows = is_labelled.shape[1], is_labelled.flatten().nonzero()[:, 0]
        if len(rows) > self.max_patches:
            noise = torch.rand(len(rows), generator=torch.Generator().manual_seed(derive_seed(self.seed, "patches")))
            rows = rows[noise.argsort()[: self.max_patches].sort().values]
        chunk = train.chunk_size * patches_per_image

        def gather_rows(make: Callable[[int], Tensor]) -> Tensor:
            return torch.cat([make(n).flatten(0, 1)[rows[rows // chunk == n] - n * chunk] for n in chunk_indices])

        counts = gather_rows(lambda n: count_cell_classes(train.read_chunk("semantic", n), side, num_classes))
        names = {f"layer {depth}": f"patches {depth}" for depth in self.resolve_layers(backbone)}
        features = {name: gather_rows(lambda n, of=source: train.read_chunk(of, n)) for name, source in names.items()}  # type: ignore[misc]
        return features, counts, rows // patches_per_image

    def _count_predictions(
        self, model: ModelUnderTest, test: FeatureStore, chosen: ChosenHead, num_classes: int
    ) -> tuple[Tensor, Float[Tensor, "replicate truth found"]]:
        """Return what was found where which class is, over all photos and in each bootstrap sample."""
        name = chosen.setting.column.replace("layer", "patches")

        def load(rows: range) -> tuple[Tensor, Tensor]:
            return test.read_rows(name, rows), test.read_rows("semantic", rows)

        def count(rows: range, patches: Tensor, truth: Tensor) -> dict[str, Tensor]:
            predicted = predict_cells(chosen.probe, patches, (truth.shape[1], truth.shape[2]))
            counts = confusion_matrices(predicted, truth, num_classes)
            weights = poisson_weights(torch.arange(rows.start, rows.stop), seed=self.seed)
            return {"total": counts.sum(dim=0), "replicates": replicate_sums(counts, weights)}

        rank_chunks = model.world.rank_chunks(len(test.labels), test.chunk_size)
        batching = BatchingConfig(batch_size=_IMAGES_PER_BATCH, num_workers=0)
        batches = iterate_batches(load, split_chunks(rank_chunks, _IMAGES_PER_BATCH), model.world, batching)
        sums = sum_outputs((count(rows, *loaded) for rows, loaded in batches), model.world)
        return sums["total"], sums["replicates"]


def predict_cells(
    probe: LinearProbe, patches: Float[Tensor, "photo patch dim"], size: tuple[int, int]
) -> Int[Tensor, "photo row column"]:
    """Return the class of every cell of a map of that size: patches' scores are brought to it bilinearly."""
    rows = round(math.sqrt(patches.shape[1] * size[0] / size[1]))
    scores = probe.logits(patches.flatten(0, 1)).unflatten(0, patches.shape[:2])
    grid = scores.transpose(1, 2).unflatten(2, (rows, -1))
    return F.interpolate(grid, size=size, mode="bilinear", align_corners=False).argmax(dim=1)


def count_cell_classes(
    ids: Integer[Tensor, "photo row column"], patch_cells: int, num_classes: int
) -> Float[Tensor, "photo patch label"]:
    """Return how many labelled cells of each class a patch of `patch_cells` × `patch_cells` cells holds.

    >>> count_cell_classes(torch.tensor([[[0, 1, 1, 1], [255, 0, 1, 1]]]), 2, 2).tolist()
    [[[2.0, 1.0], [0.0, 4.0]]]
    """
    cells = patchify(ids, patch_cells).long()
    is_labelled = cells != IGNORE
    counts = torch.zeros(*cells.shape[:2], num_classes)
    return counts.scatter_add(2, cells.where(is_labelled, 0), is_labelled.float())
