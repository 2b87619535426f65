"""Metrics of a corruption set: mCE, and the mean error, which is often reported as mCE."""

from collections.abc import Mapping

import torch

from c2fmae.data.corruption.names import SEVERITIES
from c2fmae.data.suites.official import imagenet_wnids
from c2fmae.eval.metrics import Metric, TagValue
from c2fmae.eval.robustness.accuracy_metrics import (
    ALL_CLASSES,
    CellPredictions,
    SetPredictions,
    compute_clean_metrics,
    describe_caveats,
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
    """Return the predictions of each corruption and severity."""
    return {
        (cell.cell.corruption, cell.cell.severity): cell
        for cell in set_predictions.cells
        if cell.cell.corruption is not None and cell.cell.severity is not None
    }


def compute_cell_errors(set_predictions: SetPredictions) -> dict[CellKey, float]:
    """Return the error of each cell in which images count."""
    return {key: cell.error for key, cell in group_by_cell(set_predictions).items() if cell.num_images}


def is_official_imagenet_c(set_predictions: SetPredictions) -> bool:
    """Return whether AlexNet's errors apply: the set is the released ImageNet-C, and the model has all its classes."""
    wnids = {label.wnid for label in set_predictions.shifted_set.labels if label}
    return (
        set_predictions.shifted_set.creation_sentence is None
        and wnids == set(imagenet_wnids())
        and not set_predictions.class_matching.missing_names
    )


def compute_corruption_metrics(
    set_predictions: SetPredictions, tags: Mapping[str, TagValue], reference: SetPredictions | None = None
) -> list[Metric]:
    """Return mean error and accuracy, mCE by AlexNet's errors on ImageNet-C, and mCE by those of a reference model.

    If any of the 75 cells is missing, there is no mCE, and the means are tagged with their number of cells.
    """
    cells, errors = group_by_cell(set_predictions), compute_cell_errors(set_predictions)
    official_errors = {key: error for key, error in errors.items() if key[0] in ALEXNET_ERRORS}
    extra_errors = {key: error for key, error in errors.items() if key[0] not in ALEXNET_ERRORS}
    metrics = []
    if is_official_imagenet_c(set_predictions):
        value, weights = compute_mean_corruption_error(compute_corruption_errors(errors)), _compute_alexnet_weights()
        if value is not None:
            caveats = describe_caveats(set_predictions, 1.0)  # an accuracy close to chance is noted with the mean error
            count = sum(cells[key].num_images for key in weights)
            metrics.append(
                _make_percent_metric("mce", value, count, tags, _compute_half_width(cells, weights), caveats)
            )
    if official_errors:
        metrics += _compute_mean_metrics(set_predictions, official_errors, tags)
    if extra_errors:
        names = ", ".join(dict.fromkeys(corruption for corruption, _ in extra_errors))
        count = sum(cells[key].num_images for key in extra_errors)
        mean = sum(extra_errors.values()) / len(extra_errors)
        metrics.append(_make_percent_metric("mean_error_extra", mean, count, tags, notes=(f"of {names}",)))
    return metrics + (_compute_reference_metrics(set_predictions, tags, reference) if reference is not None else [])


def _compute_mean_metrics(
    set_predictions: SetPredictions, errors: Mapping[CellKey, float], tags: Mapping[str, TagValue]
) -> list[Metric]:
    """Return the means over the cells of the 15 corruptions."""
    cells = group_by_cell(set_predictions)
    count = sum(cells[key].num_images for key in errors)
    mean = sum(errors.values()) / len(errors)
    is_complete = not find_missing_cells(errors)
    mce_note = _explain_missing_mce(set_predictions) if is_complete else "incomplete, so there is no mCE"
    notes = (*filter(None, [mce_note]), *describe_caveats(set_predictions, 1 - mean))
    half_width = _compute_half_width(cells, dict.fromkeys(errors, 1 / len(errors)))
    mean_tags = tags if len(errors) == NUM_CELLS else {**tags, "cells": f"{len(errors)} of {NUM_CELLS}"}
    metrics = [
        _make_percent_metric("mean_error", mean, count, mean_tags, half_width, notes),
        _make_percent_metric("mean_accuracy", 1 - mean, count, mean_tags, half_width),
    ]
    if set_predictions.is_restricted:
        accuracies = [cells[key].is_correct_among_all.double().mean().item() for key in errors]
        all_tags = {**mean_tags, "classes": ALL_CLASSES}
        metrics.append(_make_percent_metric("mean_accuracy", sum(accuracies) / len(accuracies), count, all_tags))
    metrics += compute_clean_metrics(set_predictions, tags, 100 * (1 - mean))
    calibration_errors = [compute_calibration_error(cells[key].confidence, cells[key].is_correct) for key in errors]
    mean = sum(calibration_errors) / len(calibration_errors)
    return [*metrics, _make_percent_metric("mean_calibration_error", mean, count, tags)]


def _explain_missing_mce(set_predictions: SetPredictions) -> str:
    """Return the reason why a set of the suite imagenet-c has no mCE by AlexNet's errors; empty if it has one."""
    if set_predictions.shifted_set.suite != "imagenet-c" or is_official_imagenet_c(set_predictions):
        return ""
    if set_predictions.shifted_set.creation_sentence is not None:
        return "no mCE by AlexNet's errors, which are those on the released images"
    if set_predictions.class_matching.missing_names:
        return "no mCE by AlexNet's errors, since the model lacks classes"
    num_classes = len(set_predictions.shifted_set.labels)
    return f"no mCE by AlexNet's errors, since the set has {num_classes:,} of the 1,000 classes"


def _compute_alexnet_weights() -> dict[CellKey, float]:
    """Return the weight of each cell's error in mCE."""
    return {
        (name, severity): 1 / (len(ALEXNET_ERRORS) * len(SEVERITIES) * error)
        for name, error in ALEXNET_ERRORS.items()
        for severity in SEVERITIES
    }


def _compute_half_width(cells: dict[CellKey, CellPredictions], weights: dict[CellKey, float]) -> float | None:
    """Return half the 95 % interval of a weighted sum of cells' errors."""
    digests = [cells[key].stored.image_digests[cells[key].is_counted] for key in weights]
    image_ids = torch.cat(digests).unique(return_inverse=True)[1].split(list(map(len, digests)))
    errors = {key: (ids, ~cells[key].is_correct) for key, ids in zip(weights, image_ids, strict=True)}
    return compute_clustered_half_width(errors, weights)


def _compute_reference_metrics(
    set_predictions: SetPredictions, tags: Mapping[str, TagValue], reference: SetPredictions
) -> list[Metric]:
    """Return mCE and relative mCE with the errors of another model instead of AlexNet's."""
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
    return [_make_percent_metric(key, value, count, tags) for key, value in values.items() if value is not None]


def _make_percent_metric(
    key: str,
    fraction: float,
    count: int,
    tags: Mapping[str, TagValue],
    half_width: float | None = None,
    notes: tuple[str, ...] = (),
) -> Metric:
    interval = None if half_width is None else (100 * (fraction - half_width), 100 * (fraction + half_width))
    return Metric(key, 100 * fraction, count, interval, tags=tags, notes=notes)
