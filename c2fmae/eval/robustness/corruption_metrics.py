"""The numbers of a set of corruptions: mCE, and what is often taken for it, each under its own name."""

from c2fmae.data.corruption.names import SEVERITIES
from c2fmae.data.suites.official import imagenet_wnids
from c2fmae.eval.evaluation import Metric
from c2fmae.eval.robustness.accuracy_metrics import Answered, Answers, clean_metrics, photo_numbers, remarks
from c2fmae.eval.robustness.scores import (
    ALEXNET,
    Where,
    calibration_error,
    clustered_reach,
    corruption_errors,
    mean_over_corruptions,
    missing_cells,
    relative_corruption_errors,
)

NUM_CELLS = len(ALEXNET) * len(SEVERITIES)
MCE = "mCE (AlexNet)"


def by_cell(answers: Answers) -> dict[Where, Answered]:
    """Return a set's answers by corruption and severity."""
    return {
        (cell.cell.corruption, cell.cell.severity): cell
        for cell in answers.cells
        if cell.cell.corruption is not None and cell.cell.severity is not None
    }


def errors_of(answers: Answers) -> dict[Where, float]:
    """Return the error on each cell that has photos."""
    return {where: cell.error for where, cell in by_cell(answers).items() if cell.num_photos}


def is_imagenet_c(answers: Answers) -> bool:
    """Return whether a set is ImageNet-C with its thousand classes, and the model knows them all: what AlexNet did."""
    wnids = {label.wnid for label in answers.of.labels if label}
    return answers.of.self_made is None and wnids == set(imagenet_wnids()) and not answers.matched.missing


def corrupted_metrics(answers: Answers, name: str, reference: Answers | None = None) -> list[Metric]:
    """Return mean error and accuracy, mCE by AlexNet of ImageNet-C, and by a reference where there is one.

    Where any of the 75 cells is missing there is no mCE, and the mean says over how many cells it is.
    """
    cells, errors = by_cell(answers), errors_of(answers)
    ours = {where: error for where, error in errors.items() if where[0] in ALEXNET}
    count = sum(cells[where].num_photos for where in ours)
    metrics = []
    if is_imagenet_c(answers):
        said = remarks(answers, 1.0)  # an accuracy that none is suspicious of
        metrics += _mce(f"{name}, {MCE}", corruption_errors(errors), cells, _alexnet_weights(), said)
    if ours:
        over = "" if len(ours) == NUM_CELLS else f" over {len(ours)} of {NUM_CELLS} cells"
        mean = sum(ours.values()) / len(ours)
        is_whole = not missing_cells(errors)
        said = remarks(answers, 1 - mean)
        note = "; ".join(filter(None, [_why_no_mce(answers) if is_whole else "not complete, so there is no mCE", said]))
        reach = _reach(cells, dict.fromkeys(ours, 1 / len(ours)))
        metrics.append(_percent(f"{name}, mean error{over}", mean, count, reach, note))
        metrics.append(_percent(f"{name}, mean accuracy{over}", 1 - mean, count, reach))
        if answers.is_masked:
            every = sum(cells[where].is_right_of_all.double().mean().item() for where in ours) / len(ours)
            metrics.append(_percent(f"{name}, mean accuracy{over}, all of the model's classes", every, count))
        metrics += clean_metrics(answers, name, 100 * (1 - mean))
        gaps = [calibration_error(cells[where].confidence, cells[where].is_right) for where in ours]
        metrics.append(_percent(f"{name}, calibration error, mean over cells", sum(gaps) / len(gaps), count))
    if extra := [error for where, error in errors.items() if where[0] not in ALEXNET]:
        names = ", ".join(dict.fromkeys(where[0] for where in errors if where[0] not in ALEXNET))
        photos = sum(cell.num_photos for where, cell in cells.items() if where[0] not in ALEXNET)
        metrics.append(_percent(f"{name}, mean error of extras", sum(extra) / len(extra), photos, note=f"of {names}"))
    return metrics + (_beside(answers, name, reference) if reference is not None else [])


def _why_no_mce(answers: Answers) -> str:
    """Say why a set given for ImageNet-C has no mCE by AlexNet, if it has none; of others nobody expects it."""
    if answers.of.kind != "imagenet-c" or is_imagenet_c(answers):
        return ""
    if answers.of.self_made is not None:
        return "no mCE by AlexNet, whose errors are of the photos that were released"
    if answers.matched.missing:
        return "no mCE by AlexNet, since the model lacks classes"
    return f"no mCE by AlexNet, since the set has {len(answers.of.labels):,} of the 1,000 classes"


def _mce(
    name: str, found: dict[str, float], cells: dict[Where, Answered], weights: dict[Where, float], note: str
) -> list[Metric]:
    value = mean_over_corruptions(found)
    if value is None:
        return []
    count = sum(cells[where].num_photos for where in weights)
    return [_percent(name, value, count, _reach(cells, weights), note)]


def _alexnet_weights() -> dict[Where, float]:
    """Return how much each cell's error weighs in mCE."""
    return {
        (name, severity): 1 / (len(ALEXNET) * len(SEVERITIES) * error)
        for name, error in ALEXNET.items()
        for severity in SEVERITIES
    }


def _reach(cells: dict[Where, Answered], weights: dict[Where, float]) -> float | None:
    some = [cells[where] for where in weights]
    numbers = photo_numbers(some)
    wrong = {where: (each, ~cell.is_right) for where, each, cell in zip(weights, numbers, some, strict=True)}
    return clustered_reach(wrong, weights)


def _beside(answers: Answers, name: str, reference: Answers) -> list[Metric]:
    """Return mCE with another model in AlexNet's place, and the same of what corruptions add to the clean error."""
    ours, theirs, who = errors_of(answers), errors_of(reference), reference.entrant.source
    count = sum(cell.num_photos for cell in answers.cells)
    metrics = []
    if (value := mean_over_corruptions(corruption_errors(ours, theirs))) is not None:
        metrics.append(_percent(f"{name}, mCE beside {who}", value, count))
    if answers.clean is not None and reference.clean is not None:
        found = relative_corruption_errors(ours, answers.clean.error, theirs, reference.clean.error)
        if (value := mean_over_corruptions(found)) is not None:
            metrics.append(_percent(f"{name}, relative mCE beside {who}", value, count))
    return metrics


def _percent(name: str, share: float, count: int, reach: float | None = None, note: str = "") -> Metric:
    interval = None if reach is None else (100 * (share - reach), 100 * (share + reach))
    return Metric(name, 100 * share, count, interval, note)
