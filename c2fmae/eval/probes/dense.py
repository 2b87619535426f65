"""Dense probes: a linear classifier of frozen patches, scored on the cells of semantic maps."""

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Integer
from torch import Tensor

from c2fmae.core.granularity import IGNORE
from c2fmae.core.seeding import derive_seed
from c2fmae.eval.confusion import class_ious, confusion_matrices, mean_iou, overall_accuracy
from c2fmae.eval.engine import BatchingConfig, iterate_batches, split_chunks, sum_outputs
from c2fmae.eval.evaluation import ModelUnderTest
from c2fmae.eval.intervals import percentile_interval, poisson_weights, replicate_sums
from c2fmae.eval.metrics import Metric
from c2fmae.eval.probes.batching import split_training_validation
from c2fmae.eval.probes.config import DenseProbeEvaluation
from c2fmae.eval.probes.feature_store import FeatureStore
from c2fmae.eval.probes.linear_heads import ChosenHead, LinearProbe, choose_linear_head, list_settings
from c2fmae.eval.probes.train_test import TrainTestFeatures, extract_sets, open_sets
from c2fmae.models.backbones import Backbone
from c2fmae.models.patches import label_stride, patchify

_IMAGES_PER_BATCH = 64  # images whose cells are classified together


def run_dense_probe(config: DenseProbeEvaluation, model: ModelUnderTest) -> Iterator[Metric]:
    """Fit all settings at once on the main process, and yield the scores of the best on the test images."""
    sets, names = extract_sets(config, model), open_sets(config, model)[0].scenes.info.class_names
    count = sets.num_test_images
    yield sets.overlap_metric()
    best = choose_patch_classifier(config, sets, model.backbone, len(names)) if model.world.is_main else None
    chosen: ChosenHead = model.world.broadcast_object(best)
    total, replicates = _count_predictions(config, model, sets.test, chosen, len(names))
    interval, notes = percentile_interval(100 * mean_iou(replicates)), (str(chosen.setting),)
    yield Metric("mean_iou", 100 * mean_iou(total).item(), count, interval, notes=notes)
    interval = percentile_interval(100 * overall_accuracy(replicates))
    yield Metric("cell_accuracy", 100 * overall_accuracy(total).item(), count, interval)
    for name, iou in zip(names, class_ious(total).tolist(), strict=True):
        if not math.isnan(iou):
            yield Metric("iou", 100 * iou, count, tags={"class": name})


def choose_patch_classifier(
    config: DenseProbeEvaluation, sets: TrainTestFeatures, backbone: Backbone, num_classes: int
) -> ChosenHead:
    """Fit all settings to the training patches, and return the one that is best on a fifth of the images."""
    features, counts, image_indices = read_training_patches(config, sets.train, backbone, num_classes)
    rows = torch.arange(len(counts))
    _, validation_images = split_training_validation(image_indices.unique(), seed=config.seed)
    is_validation = torch.isin(image_indices, validation_images)
    return choose_linear_head(
        features,
        counts,
        list_settings([*features], config.lrs, config.weight_decays),
        rows=rows[~is_validation],
        validation_rows=rows[is_validation],
        num_labels=num_classes,
        epochs=config.resolve_epochs(len(rows)),
        batch_size=config.head_batch_size,
        seed=derive_seed(config.seed, "heads"),
    )


def read_training_patches(
    config: DenseProbeEvaluation, train: FeatureStore, backbone: Backbone, num_classes: int
) -> tuple[dict[str, Tensor], Float[Tensor, "row label"], Int[Tensor, " row"]]:
    """Return features of labelled patches by layer, their cells of each class, and the indices of their images."""
    side, chunk_indices = backbone.patch // label_stride(backbone.patch), range(len(train.chunk_paths))
    is_labelled = torch.cat(
        [(patchify(train.read_chunk("semantic", n), side) != IGNORE).any(dim=2) for n in chunk_indices]
    )
    patches_per_image, rows = is_labelled.shape[1], is_labelled.flatten().nonzero()[:, 0]
    if len(rows) > config.max_patches:
        noise = torch.rand(len(rows), generator=torch.Generator().manual_seed(derive_seed(config.seed, "patches")))
        rows = rows[noise.argsort()[: config.max_patches].sort().values]
    chunk = train.chunk_size * patches_per_image

    def read_rows(read_chunk: Callable[[int], Tensor]) -> Tensor:
        return torch.cat([read_chunk(n).flatten(0, 1)[rows[rows // chunk == n] - n * chunk] for n in chunk_indices])

    counts = read_rows(lambda n: count_cell_classes(train.read_chunk("semantic", n), side, num_classes))
    names = {f"layer {depth}": f"patches {depth}" for depth in config.resolve_layers(backbone)}
    features = {name: read_rows(lambda n, source=source: train.read_chunk(source, n)) for name, source in names.items()}  # type: ignore[misc]
    return features, counts, rows // patches_per_image


def _count_predictions(
    config: DenseProbeEvaluation, model: ModelUnderTest, test: FeatureStore, chosen: ChosenHead, num_classes: int
) -> tuple[Tensor, Float[Tensor, "replicate truth predicted"]]:
    """Return the confusion matrix of all test images, and that of each bootstrap sample."""
    name = chosen.setting.column.replace("layer", "patches")

    def load(rows: range) -> tuple[Tensor, Tensor]:
        return test.read_rows(name, rows), test.read_rows("semantic", rows)

    def count(rows: range, patches: Tensor, truth: Tensor) -> dict[str, Tensor]:
        predicted = predict_cells(chosen.probe, patches, (truth.shape[1], truth.shape[2]))
        counts = confusion_matrices(predicted, truth, num_classes)
        weights = poisson_weights(torch.arange(rows.start, rows.stop), seed=config.seed)
        return {"total": counts.sum(dim=0), "replicates": replicate_sums(counts, weights)}

    rank_chunks = model.world.rank_chunks(len(test.labels), test.chunk_size)
    batching = BatchingConfig(batch_size=_IMAGES_PER_BATCH, num_workers=0)
    batches = iterate_batches(load, split_chunks(rank_chunks, _IMAGES_PER_BATCH), model.world, batching)
    sums = sum_outputs((count(rows, *loaded) for rows, loaded in batches), model.world)
    return sums["total"], sums["replicates"]


def predict_cells(
    probe: LinearProbe, patches: Float[Tensor, "image patch dim"], size: tuple[int, int]
) -> Int[Tensor, "image row column"]:
    """Return the class of every cell of a map of this size, from the patches' logits, interpolated bilinearly."""
    rows = round(math.sqrt(patches.shape[1] * size[0] / size[1]))
    logits = probe.logits(patches.flatten(0, 1)).unflatten(0, patches.shape[:2])
    grid = logits.transpose(1, 2).unflatten(2, (rows, -1))
    return F.interpolate(grid, size=size, mode="bilinear", align_corners=False).argmax(dim=1)


def count_cell_classes(
    ids: Integer[Tensor, "image row column"], patch_cells: int, num_classes: int
) -> Float[Tensor, "image patch label"]:
    """Return the number of cells of each class in each patch of `patch_cells` × `patch_cells` cells.

    >>> count_cell_classes(torch.tensor([[[0, 1, 1, 1], [255, 0, 1, 1]]]), 2, 2).tolist()
    [[[2.0, 1.0], [0.0, 4.0]]]
    """
    cells = patchify(ids, patch_cells).long()
    is_labelled = cells != IGNORE
    counts = torch.zeros(*cells.shape[:2], num_classes)
    return counts.scatter_add(2, cells.where(is_labelled, 0), is_labelled.float())
