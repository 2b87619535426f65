"""The numbers of a set of corruptions: mCE, and what is often taken for it, each under its own name."""

from c2fmae.data.corruption.names import SEVERITIES
from c2fmae.data.suites.official import imagenet_wnids
from c2fmae.eval.evaluation import Metric
from c2fmae.eval.robustness.accuracy_metrics import (
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
MCE = "mCE (AlexNet)"


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
    set_predictions: SetPredictions, name: str, reference: SetPredictions | None = None
) -> list[Metric]:
    """Return mean error and accuracy, mCE by AlexNet of ImageNet-C, and by a reference where there is one.

    Where any of the 75 cells is missing there is no mCE, and the mean says over how many cells it is.
    """
    cells, errors = group_by_cell(set_predictions), compute_cell_errors(set_predictions)
    official_errors = {where: error for where, error in errors.items() if where[0] in ALEXNET_ERRORS}
    count = sum(cells[where].num_images for where in official_errors)
    metrics = []
    if is_official_imagenet_c(set_predictions):
        caveats = describe_caveats(set_predictions, 1.0)  # an accuracy that none is suspicious of
        metrics += _mce_metric(f"{name}, {MCE}", compute_corruption_errors(errors), cells, _alexnet_weights(), caveats)
    if official_errors:
        over = "" if len(official_errors) == NUM_CELLS else f" over {len(official_errors)} of {NUM_CELLS} cells"
        mean = sum(official_errors.values()) / len(official_errors)
        is_complete = not find_missing_cells(errors)
        caveats = describe_caveats(set_predictions, 1 - mean)
        note = "; ".join(
            filter(
                None,
                [_explain_missing_mce(set_predictions) if is_complete else "not complete, so there is no mCE", caveats],
            )
        )
        half_width = _half_width(cells, dict.fromkeys(official_errors, 1 / len(official_errors)))
        metrics.append(_percent_metric(f"{name}, mean error{over}", mean, count, half_width, note))
        metrics.append(_percent_metric(f"{name}, mean accuracy{over}", 1 - mean, count, half_width))
        if set_predictions.is_restricted:
            mean_among_all = sum(
                cells[where].is_correct_among_all.double().mean().item() for where in official_errors
            ) / len(official_errors)
            metrics.append(
                _percent_metric(f"{name}, mean accuracy{over}, all of the model's classes", mean_among_all, count)
            )
        metrics += compute_clean_metrics(set_predictions, name, 100 * (1 - mean))
        calibration_errors = [
            compute_calibration_error(cells[where].confidence, cells[where].is_correct) for where in official_errors
        ]
        metrics.append(
            _percent_metric(
                f"{name}, calibration error, mean over cells", sum(calibration_errors) / len(calibration_errors), count
            )
        )
    if extra_errors := [error for where, error in errors.items() if where[0] not in ALEXNET_ERRORS]:
        names = ", ".join(dict.fromkeys(where[0] for where in errors if where[0] not in ALEXNET_ERRORS))
        num_images = sum(cell.num_images for where, cell in cells.items() if where[0] not in ALEXNET_ERRORS)
        metrics.append(
            _percent_metric(
                f"{name}, mean error of extras", sum(extra_errors) / len(extra_errors), num_images, note=f"of {names}"
            )
        )
    return metrics + (_reference_metrics(set_predictions, name, reference) if reference is not None else [])


def _explain_missing_mce(set_predictions: SetPredictions) -> str:
    """Say why a set given for ImageNet-C has no mCE by AlexNet, if it has none; of others nobody expects it."""
    if set_predictions.shifted_set.suite != "imagenet-c" or is_official_imagenet_c(set_predictions):
        return ""
    if set_predictions.shifted_set.creation_sentence is not None:
        return "no mCE by AlexNet, whose errors are of the photos that were released"
    if set_predictions.class_matching.missing_names:
        return "no mCE by AlexNet, since the model lacks classes"
    return f"no mCE by AlexNet, since the set has {len(set_predictions.shifted_set.labels):,} of the 1,000 classes"


def _mce_metric(
    name: str,
    errors_by_corruption: dict[str, float],
    cells: dict[CellKey, CellPredictions],
    weights: dict[CellKey, float],
    note: str,
) -> list[Metric]:
    value = compute_mean_corruption_error(errors_by_corruption)
    if value is None:
        return []
    count = sum(cells[where].num_images for where in weights)
    return [_percent_metric(name, value, count, _half_width(cells, weights), note)]


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


def _reference_metrics(set_predictions: SetPredictions, name: str, reference: SetPredictions) -> list[Metric]:
    """Return mCE with another model in AlexNet's place, and the same of what corruptions add to the clean error."""
    cell_errors, reference_errors, reference_name = (
        compute_cell_errors(set_predictions),
        compute_cell_errors(reference),
        reference.classifier.source,
    )
    count = sum(cell.num_images for cell in set_predictions.cells)
    metrics = []
    if (value := compute_mean_corruption_error(compute_corruption_errors(cell_errors, reference_errors))) is not None:
        metrics.append(_percent_metric(f"{name}, mCE beside {reference_name}", value, count))
    if set_predictions.clean is not None and reference.clean is not None:
        errors_by_corruption = compute_relative_corruption_errors(
            cell_errors, set_predictions.clean.error, reference_errors, reference.clean.error
        )
        if (value := compute_mean_corruption_error(errors_by_corruption)) is not None:
            metrics.append(_percent_metric(f"{name}, relative mCE beside {reference_name}", value, count))
    return metrics


def _percent_metric(name: str, fraction: float, count: int, half_width: float | None = None, note: str = "") -> Metric:
    interval = None if half_width is None else (100 * (fraction - half_width), 100 * (fraction + half_width))
    return Metric(name, 100 * fraction, count, interval, note)
