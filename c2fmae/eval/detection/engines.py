"""COCO's metrics by pycocotools or faster-coco-eval, which give the same numbers from the same dictionaries."""

import contextlib
import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
from jaxtyping import Float64

from c2fmae.core.errors import UserError
from c2fmae.eval.detection.testing_config import EngineChoice

Engine = Literal["pycocotools", "faster-coco-eval"]
Kind = Literal["bbox", "segm"]
CocoDict = Mapping[str, Any]
CocoResults = Sequence[Mapping[str, Any]]

NUM_IOUS, NUM_RECALLS = 10, 101
"""COCO's IoU thresholds are 0.5, 0.55 … 0.95, its recalls 0, 0.01 … 1."""
MAX_DETECTIONS = (1, 10, 100)
"""COCO's limits of the detections of a class in an image. Its tools return -1 for most metrics with other limits."""

COCO_KEYS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""COCO's twelve metrics, in the order of its tools."""

_ALL, _SMALL, _MEDIUM, _LARGE = range(4)  # ranges of areas


@dataclass(frozen=True)
class CocoEvaluation:
    """What an engine computes for boxes or masks. Classes are in the order of ascending category ids."""

    precision: Float64[np.ndarray, "iou recall class area limit"]
    """-1 for a class without an object of the area."""
    recall: Float64[np.ndarray, "iou class area limit"]
    """-1 for a class without an object of the area."""
    ious: Mapping[tuple[Any, Any], Any]
    """IoUs [detection, object] by image and category id; detections by descending score, at most 100."""

    def compute_metrics(self) -> dict[str, float | None]:
        """Return COCO's twelve metrics in [0, 1]; None where its tools return -1, since no object has the size."""
        ap = {area: mean_of_valid(self.precision[:, :, :, area, -1]) for area in range(4)}
        ap50, ap75 = (mean_of_valid(self.precision[iou, :, :, _ALL, -1]) for iou in (0, 5))
        ar = [mean_of_valid(self.recall[:, :, _ALL, limit]) for limit in range(3)]
        ar_by_area = [mean_of_valid(self.recall[:, :, area, -1]) for area in (_SMALL, _MEDIUM, _LARGE)]
        values = (ap[_ALL], ap50, ap75, ap[_SMALL], ap[_MEDIUM], ap[_LARGE], *ar, *ar_by_area)
        return dict(zip(COCO_KEYS, values, strict=True))


def choose_engine(choice: EngineChoice) -> Engine:
    """Return the engine to use, or raise a `UserError` if it is not installed."""
    if choice == "pycocotools":
        return "pycocotools"
    if find_spec("faster_coco_eval") is not None:
        return "faster-coco-eval"
    if choice == "faster":
        raise UserError(
            "testing.engine: faster-coco-eval is not installed. Run pip install 'c2fmae[fast-eval]', or use "
            "testing.engine=auto"
        )
    return "pycocotools"


def describe_engine(choice: EngineChoice) -> str:
    """Return the name and the version of the engine to use."""
    engine = choose_engine(choice)
    return f"{engine} {version(engine)}"


def evaluate_coco(truth: CocoDict, results: CocoResults, kind: Kind, engine: Engine) -> CocoEvaluation:
    """Return the evaluation of boxes or masks: `truth` as in a file of annotations, `results` as in one of detections.

    The area of a detection is that of its box or of its mask. pycocotools takes that of the box for masks too if
    detections have both, which would sort masks into other sizes.
    """
    dataset = {**truth, "annotations": _number(truth["annotations"])}
    detections = {**truth, "annotations": _complete_results(results, kind)}
    if engine == "pycocotools":
        return _run_pycocotools(dataset, detections, kind)
    return _run_faster_coco_eval(dataset, detections, kind)


def _run_pycocotools(truth: CocoDict, detections: CocoDict, kind: Kind) -> CocoEvaluation:
    from pycocotools.coco import COCO  # type: ignore[import-untyped]
    from pycocotools.cocoeval import COCOeval  # type: ignore[import-untyped]

    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        indices = []
        for dataset in (truth, detections):
            index = COCO()
            index.dataset = dataset
            index.createIndex()
            indices.append(index)
        evaluation = COCOeval(*indices, kind)
        evaluation.evaluate()
        evaluation.accumulate()
    return CocoEvaluation(evaluation.eval["precision"], evaluation.eval["recall"], evaluation.ious)


def _run_faster_coco_eval(truth: CocoDict, detections: CocoDict, kind: Kind) -> CocoEvaluation:
    from faster_coco_eval import COCO, COCOeval_faster  # type: ignore[import-untyped]

    evaluation = COCOeval_faster(COCO(dict(truth)), COCO(dict(detections)), kind, print_function=_log_debug)
    evaluation.evaluate()
    evaluation.accumulate()
    shape = evaluation.eval["counts"]
    precision = np.asarray(evaluation.eval["precision"], np.float64).reshape(shape)
    recall = np.asarray(evaluation.eval["recall"], np.float64).reshape(shape[0], *shape[2:])
    return CocoEvaluation(precision, recall, evaluation.ious)


def _log_debug(message: object) -> None:
    logging.getLogger(__name__).debug("%s", message)


def _number(annotations: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return copies with ids from 1: to both engines, an object with id 0 is one without a detection.

    The engines add entries to the copies.
    """
    return [{**annotation, "id": number} for number, annotation in enumerate(annotations, start=1)]


def _complete_results(results: CocoResults, kind: Kind) -> list[dict[str, Any]]:
    """Return detections with ids and areas, as `loadRes` of both engines does; it fails for no detections."""
    if kind == "bbox":
        areas = [result["bbox"][2] * result["bbox"][3] for result in results]
    else:
        from pycocotools import mask  # type: ignore[import-untyped]

        areas = [int(mask.area(result["segmentation"])) for result in results]  # a list of over 255 is an error
    return [
        {**result, "area": area, "iscrowd": 0, "id": number}
        for number, (result, area) in enumerate(zip(results, areas, strict=True), start=1)
    ]


def mean_of_valid(values: Float64[np.ndarray, "..."]) -> float | None:
    """Return the mean of the values that are not -1; None if there is none."""
    valid = values[values > -1]
    return float(valid.mean()) if valid.size else None
