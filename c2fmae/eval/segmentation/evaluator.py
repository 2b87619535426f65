"""Tests of segmenters: predictions of all images of a set, compared with labels that are never resized."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from c2fmae.core.distributed import World
from c2fmae.core.errors import UserError
from c2fmae.core.scene import Scene
from c2fmae.data import Scenes
from c2fmae.data.geometry import subsample_ids
from c2fmae.eval.confusion import class_totals, confusion_matrices
from c2fmae.eval.engine import BatchingConfig, gather_rows, iterate_batches, sum_outputs
from c2fmae.eval.segmentation.prediction import predict_ids
from c2fmae.eval.segmentation.prediction_store import PredictionStore, PredictionWriter
from c2fmae.eval.segmentation.scores import SegmentationScores
from c2fmae.eval.segmentation.testing_config import TestingConfig
from c2fmae.models.segmenters import Segmenter


@dataclass(frozen=True)
class SegmenterEvaluator:
    """Evaluates segmenters on scenes with semantic maps.

    Images are predicted one by one, so the scores are the same for any number of processes.
    """

    scenes: Scenes
    testing: TestingConfig
    world: World
    num_workers: int = 2
    show_progress: bool = False

    def evaluate(
        self,
        segmenter: Segmenter,
        weights: Mapping[str, Tensor] | None = None,
        *,
        store: PredictionStore | None = None,
    ) -> SegmentationScores:
        """Return the scores of a segmenter, optionally with other `weights`.

        With a `store`, predictions are written to it, and images that have one are not predicted again.
        """
        is_training = segmenter.training
        segmenter.eval()
        try:
            return self._score(
                segmenter.num_classes,
                lambda image: predict_ids(segmenter, image, self.testing, weights=weights),
                store,
            )
        finally:
            segmenter.train(is_training)

    def score_predictions(self, store: PredictionStore, num_classes: int) -> SegmentationScores:
        """Return the scores of stored predictions, without a model."""
        return self._score(num_classes, None, store)

    def _score(
        self,
        num_classes: int,
        predict: Callable[[UInt8[Tensor, "channels height width"]], UInt8[Tensor, "height width"]] | None,
        store: PredictionStore | None,
    ) -> SegmentationScores:
        if store is not None and predict is not None:
            store.open(self.world)
        total = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        image_totals = []
        with store.open_writer() if store is not None else nullcontext() as writer:
            for row, scene in self._iterate_scenes():
                counts = count_pixels(scene, _read_or_predict(scene, predict, store, writer), num_classes)
                total += counts
                image_totals.append((row, {"totals": class_totals(counts)[None]}))
        confusion = sum_outputs([{"confusion": total}], self.world)["confusion"]
        if not confusion.any():
            raise UserError(
                f"test: none of the {len(self.scenes):,} images has a labelled pixel. Check the maps: c2fmae data check"
            )
        totals = gather_rows(image_totals, len(self.scenes), self.world)["totals"]
        return SegmentationScores(confusion, totals)

    def _iterate_scenes(self) -> Iterator[tuple[range, Scene]]:
        """Yield this rank's scenes, with the index of each as a range."""
        return iterate_batches(
            _SceneReader(self.scenes),
            self.world.rank_chunks(len(self.scenes), 1),
            self.world,
            BatchingConfig(batch_size=1, num_workers=self.num_workers),
            show_progress=self.show_progress,
        )


def count_pixels(
    scene: Scene, predicted: UInt8[Tensor, "height width"], num_classes: int
) -> Int64[Tensor, "truth predicted"]:
    """Return the confusion matrix of an image. Of maps at a stride, each cell is compared with the pixel that it holds.

    Raise a `UserError` that names the image if an id is not that of a class.
    """
    truth = scene.maps["semantic"]
    cells = subsample_ids(predicted, scene.label_stride) if scene.label_stride > 1 else predicted
    if cells.shape != truth.shape:
        sizes = [f"{shape[0]}×{shape[1]}" for shape in (cells.shape, truth.shape)]
        raise UserError(
            f"{scene.key}: semantic: expected {sizes[0]} cells for this image, got {sizes[1]}. Store the map at the "
            "size of its image"
        )
    try:
        return confusion_matrices(cells[None], truth[None], num_classes)[0]
    except UserError as error:
        raise UserError(f"{scene.key}: {error}") from error


def _read_or_predict(
    scene: Scene,
    predict: Callable[[Tensor], Tensor] | None,
    store: PredictionStore | None,
    writer: PredictionWriter | None,
) -> UInt8[Tensor, "height width"]:
    image = scene.maps["rgb"]
    stored = store.read(scene.key, (image.shape[1], image.shape[2])) if store is not None else None
    if stored is not None:
        return stored
    if predict is None:
        raise UserError(
            f"{scene.key}: has no stored prediction. Test the run again: c2fmae eval segment RUN --recompute"
        )
    ids = predict(image)
    if writer is not None:
        writer.write(scene.key, ids)
    return ids


@dataclass(frozen=True)
class _SceneReader:
    """Reads scenes in worker processes."""

    scenes: Scenes

    def __call__(self, rows: range) -> Scene:
        return self.scenes[rows.start]
