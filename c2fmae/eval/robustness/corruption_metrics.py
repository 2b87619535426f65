"""The numbers of a set of corruptions: mCE, and what is often taken for it, each under its own name."""

from collections.abc import Mapping

from c2fmae.data.corruption.names import SEVERITIES
from c2fmae.data.suites.official import imagenet_wnids
from c2fmae.eval.metrics import Metric, TagValue
from c2fmae.eval.robustness.accuracy_metrics import (
    ALL_CLASSES,
    CellPredictions,
    SetPredictions,
    compute_clean_metrics,
    describe_caveats,
    index_images,
)
from c2fmae.eval.robustness.scores import (
    ALEXNET_ERRORS,
    CellKey,
    compute_calibration_error,
    compute_clustered_half_width,
    compute_corruption_errors,
    compute_mean_corruption_error,
    compute_relative_corruption_errors,
    find_missing_cells,
)

NUM_CELLS = len(ALEXNET_ERRORS) * len(SEVERITIES)


def group_by_cell(set_predictions: SetPredictions) -> dict[CellKey, CellPredictions]:
    """Return a set's answers by corruption and severity."""
    return {
        (cell.cell.corruption, cell.cell.severity): cell
        for cell in set_predictions.cells
        if cell.cell.corruption is not None and cell.cell.severity is not None
    }


def compute_cell_errors(set_predictions: SetPredictions) -> dict[CellKey, float]:
    """Return the error on each cell that has photos."""
    return {where: cell.error for where, cell in group_by_cell(set_predictions).items() if cell.num_images}


def is_official_imagenet_c(set_predictions: SetPredictions) -> bool:
    """Return whether a set is ImageNet-C with its thousand classes, and the model knows them all: what AlexNet did."""
    wnids = {label.wnid for label in set_predictions.shifted_set.labels if label}
    return (
        set_predictions.shifted_set.creation_sentence is None
        and wnids == set(imagenet_wnids())
        and not set_predictions.class_matching.missing_names
    )


def compute_corruption_metrics(
    set_predictions: SetPredictions, tags: Mapping[str, TagValue], reference: SetPredictions | None = None
) -> list[Metric]:
    """Return mean error and accuracy, mCE by AlexNet on ImageNet-C, and by a reference model where there is one.

    There is no mCE where any of the 75 cells is missing; the means are tagged with the number of their cells then.
    """
    cells, errors = group_by_cell(set_predictions), compute_cell_errors(set_predictions)
    official_errors = {where: error for where, error in errors.items() if where[0] in ALEXNET_ERRORS}
    extra_errors = {where: error for where, error in errors.items() if where[0] not in ALEXNET_ERRORS}
    metrics = []
    if is_official_imagenet_c(set_predictions):
        value, weights = compute_mean_corruption_error(compute_corruption_errors(errors)), _alexnet_weights()
        if value is not None:
            caveats = describe_caveats(set_predictions, 1.0)  # those of the accuracy stand beside the mean error
            count = sum(cells[where].num_images for where in weights)
            metrics.append(_percent_metric("mce", value, count, tags, _half_width(cells, weights), caveats))
    if official_errors:
        metrics += _mean_metrics(set_predictions, official_errors, tags)
    if extra_errors:
        names = ", ".join(dict.fromkeys(corruption for corruption, _ in extra_errors))
        count = sum(cells[where].num_images for where in extra_errors)
        mean = sum(extra_errors.values()) / len(extra_errors)
        metrics.append(_percent_metric("mean_error_extra", mean, count, tags, notes=(f"of {names}",)))
    return metrics + (_reference_metrics(set_predictions, tags, reference) if reference is not None else [])


def _mean_metrics(
    set_predictions: SetPredictions, errors: Mapping[CellKey, float], tags: Mapping[str, TagValue]
) -> list[Metric]:
    """Return the means over the cells of the 15 corruptions."""
    cells = group_by_cell(set_predictions)
    count = sum(cells[where].num_images for where in errors)
    mean = sum(errors.values()) / len(errors)
    is_complete = not find_missing_cells(errors)
    mce_note = _explain_missing_mce(set_predictions) if is_complete else "not complete, so there is no mCE"
    notes = (*filter(None, [mce_note]), *describe_caveats(set_predictions, 1 - mean))
    half_width = _half_width(cells, dict.fromkeys(errors, 1 / len(errors)))
    mean_tags = tags if len(errors) == NUM_CELLS else {**tags, "cells": f"{len(errors)} of {NUM_CELLS}"}
    metrics = [
        _percent_metric("mean_error", mean, count, mean_tags, half_width, notes),
        _percent_metric("mean_accuracy", 1 - mean, count, mean_tags, half_width),
    ]
    if set_predictions.is_restricted:
        accuracies = [cells[where].is_correct_among_all.double().mean().item() for where in errors]
        all_tags = {**mean_tags, "classes": ALL_CLASSES}
        metrics.append(_percent_metric("mean_accuracy", sum(accuracies) / len(accuracies), count, all_tags))
    metrics += compute_clean_metrics(set_predictions, tags, 100 * (1 - mean))
    calibration_errors = [compute_calibration_error(cells[c].confidence, cells[c].is_correct) for c in errors]
    mean = sum(calibration_errors) / len(calibration_errors)
    return [*metrics, _percent_metric("mean_calibration_error", mean, count, tags)]


def _explain_missing_mce(set_predictions: SetPredictions) -> str:
    """Say why a set given for ImageNet-C has no mCE by AlexNet, if it has none; of others nobody expects it."""
    if set_predictions.shifted_set.suite != "imagenet-c" or is_official_imagenet_c(set_predictions):
        return ""
    if set_predictions.shifted_set.creation_sentence is not None:
        return "no mCE by AlexNet, whose errors are of the photos that were released"
    if set_predictions.class_matching.missing_names:
        return "no mCE by AlexNet, since the model lacks classes"
    return f"no mCE by AlexNet, since the set has {len(set_predictions.shifted_set.labels):,} of the 1,000 classes"


def _alexnet_weights() -> dict[CellKey, float]:
    """Return how much each cell's error weighs in mCE."""
    return {
        (name, severity): 1 / (len(ALEXNET_ERRORS) * len(SEVERITIES) * error)
        for name, error in ALEXNET_ERRORS.items()
        for severity in SEVERITIES
    }


def _half_width(cells: dict[CellKey, CellPredictions], weights: dict[CellKey, float]) -> float | None:
    weighted_cells = [cells[where] for where in weights]
    image_ids = index_images(weighted_cells)
    errors = {
        where: (each, ~cell.is_correct) for where, each, cell in zip(weights, image_ids, weighted_cells, strict=True)
    }
    return compute_clustered_half_width(errors, weights)


def _reference_metrics(
    set_predictions: SetPredictions, tags: Mapping[str, TagValue], reference: SetPredictions
) -> list[Metric]:
    """Return mCE with another model in AlexNet's place, and the same of what corruptions add to the clean error."""
    errors, reference_errors = compute_cell_errors(set_predictions), compute_cell_errors(reference)
    tags = {**tags, "reference": reference.classifier.source}
    values = {"mce_vs_reference": compute_mean_corruption_error(compute_corruption_errors(errors, reference_errors))}
    if set_predictions.clean is not None and reference.clean is not None:
        values["relative_mce_vs_reference"] = compute_mean_corruption_error(
            compute_relative_corruption_errors(
                errors, set_predictions.clean.error, reference_errors, reference.clean.error
            )
        )
    count = sum(cell.num_images for cell in set_predictions.cells)
    return [_percent_metric(key, value, count, tags) for key, value in values.items() if value is not None]


def _percent_metric(
    key: str,
    fraction: float,
    count: int,
    tags: Mapping[str, TagValue],
    half_width: float | None = None,
    notes: tuple[str, ...] = (),
) -> Metric:
    interval = None if half_width is None else (100 * (fraction - half_width), 100 * (fraction + half_width))
    return Metric(key, 100 * fraction, count, interval, tags=tags, notes=notes)
