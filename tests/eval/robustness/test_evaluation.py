from collections.abc import Sequence
from dataclasses import replace
from math import isnan, sqrt
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from c2fmae.core.distributed import World
from c2fmae.core.errors import UserError
from c2fmae.core.labels import LabelInfo
from c2fmae.data import CentralView
from c2fmae.data.corruption.names import CORRUPTIONS, SEVERITIES
from c2fmae.data.suites import Cell, ShiftedSet, open_shifted_set
from c2fmae.data.suites.official import imagenet_a_wnids, imagenet_r_wnids
from c2fmae.eval.intervals import wilson_interval
from c2fmae.eval.metrics import Metric
from c2fmae.eval.robustness.config import RobustnessEvaluation
from c2fmae.eval.robustness.evaluation import RobustnessResult, evaluate_robustness
from c2fmae.eval.robustness.image_classifier import CentralImageView, ImageClassifier
from c2fmae.eval.robustness.scores import ALEXNET_ERRORS
from tests.eval.robustness.colour_classifier import (
    IMAGENET_LABELS,
    ColourNet,
    make_class_image,
    make_colour_classifier,
    make_labelled_scenes,
    make_shifted_set,
)
from tests.eval.tiny_backbones import InMemoryScenes

pytestmark = [pytest.mark.numeric, pytest.mark.unchecked]

CONFIG = RobustnessEvaluation(batch_size=3, workers=0)
COLUMN = {label.wnid: column for column, label in enumerate(IMAGENET_LABELS)}
A = [label for wnid in imagenet_a_wnids() for label in IMAGENET_LABELS if label.wnid == wnid]
OUTSIDE = next(column for column, label in enumerate(IMAGENET_LABELS) if label.wnid not in imagenet_a_wnids())


def evaluate(
    sets: Sequence[ShiftedSet],
    folder: Path,
    *,
    models: Sequence[ImageClassifier] | None = None,
    clean: ShiftedSet | None = None,
    config: RobustnessEvaluation = CONFIG,
) -> list[RobustnessResult]:
    models = models or [make_colour_classifier()]
    return evaluate_robustness(config, models, sets, clean, [folder / model.source for model in models], World())


def evaluate_metrics(sets: Sequence[ShiftedSet], folder: Path, **options: Any) -> dict[str, Metric]:
    """Return the metrics of a single model by label."""
    (result,) = evaluate(sets, folder, **options)
    return {metric.label: metric for metric in result.metrics}


def make_imagenet_a() -> ShiftedSet:
    """Return a set of four images: two predictions are right, one is only among the 200 classes, and one is wrong.

    The labels are in the reverse order of the classes.
    """
    labels = list(reversed(A))
    columns = [COLUMN[label.wnid] for label in labels]
    scenes = make_labelled_scenes(
        [
            (0, make_class_image(columns[0])),
            (1, make_class_image(columns[1])),
            (2, make_class_image(OUTSIDE, columns[2])),
            (3, make_class_image(columns[9], columns[3])),
        ],
    )
    cell = Cell(None, None, scenes, 5)
    return make_shifted_set(
        [cell], labels, suite="imagenet-a", protocol_wnids=imagenet_a_wnids(), warnings=("4 of 5 images",)
    )


def make_clean_set(wrong: Sequence[int] = ()) -> ShiftedSet:
    """Return a set of two images of each class; the first image of a `wrong` class is misclassified."""
    images = [
        (column, make_class_image((column + 1) % 1000 if n == 0 and column in wrong else column))
        for column in range(1000)
        for n in range(2)
    ]
    return make_shifted_set(
        [Cell(None, None, make_labelled_scenes(images, "clean"), None)], IMAGENET_LABELS, suite="imagenet-val"
    )


def test_imagenet_a_is_classified_among_its_200_classes_and_among_all(tmp_path: Path) -> None:
    metrics = evaluate_metrics([make_imagenet_a()], tmp_path)
    assert metrics["imagenet-a: top-1, subset-200"].value == 75
    assert metrics["imagenet-a: top-1, all classes"].value == 50
    assert metrics["imagenet-a: top-1, subset-200"].interval == wilson_interval(0.75, 4, scale=100)
    assert metrics["imagenet-a: top-1, subset-200"].notes == ("4 of 5 images",)
    assert "imagenet-a: drop from clean images" not in metrics


def test_clean_accuracy_and_drop_are_over_images_of_the_same_classes(tmp_path: Path) -> None:
    present = [COLUMN[label.wnid] for label in reversed(A)][:4]
    absent = [column for column in range(1000) if column not in present][:500]
    metrics = evaluate_metrics([make_imagenet_a()], tmp_path, clean=make_clean_set([present[0], *absent]))
    neighbour_is_open = IMAGENET_LABELS[present[0] + 1].wnid in imagenet_a_wnids()
    clean = metrics["imagenet-a: top-1 on clean images of the same classes"]
    # If the neighbour's logit is not open, all open logits are 0, and the first of them is chosen, which is wrong too.
    assert (clean.value, clean.count) == (87.5, 8), neighbour_is_open
    assert metrics["imagenet-a: drop from clean images"].value == 12.5
    assert metrics["imagenet-val: top-1"].value == 100 * (2000 - 501) / 2000


def test_clean_images_are_classified_with_the_same_logits_open(tmp_path: Path) -> None:
    column = COLUMN[A[-1].wnid]
    clean = make_shifted_set(
        [Cell(None, None, make_labelled_scenes([(column, make_class_image(OUTSIDE, column))]), None)],
        IMAGENET_LABELS,
        suite="imagenet-val",
    )
    metrics = evaluate_metrics([make_imagenet_a()], tmp_path, clean=clean)
    assert metrics["imagenet-a: top-1 on clean images of the same classes"].value == 100
    assert metrics["imagenet-val: top-1"].value == 0


def test_the_200_classes_of_a_and_r_differ(tmp_path: Path) -> None:
    only_r = next(wnid for wnid in imagenet_r_wnids() if wnid not in imagenet_a_wnids())
    label = IMAGENET_LABELS[COLUMN[only_r]]
    scenes = make_labelled_scenes([(0, make_class_image(OUTSIDE, COLUMN[only_r]))])
    metrics = evaluate_metrics(
        [
            make_shifted_set(
                [Cell(None, None, scenes, None)], [label], suite="imagenet-r", protocol_wnids=imagenet_r_wnids()
            )
        ],
        tmp_path,
    )
    assert metrics["imagenet-r: top-1, subset-200"].count == 1


def make_corruption_set(
    errors: dict[tuple[str, int], int],
    *,
    num_images: int = 4,
    labels: Sequence[LabelInfo | None] = IMAGENET_LABELS,
    **options: object,
) -> ShiftedSet:
    """Return a corruption set; `errors` is the number of misclassified images in each cell."""
    cells = []
    for (name, severity), wrong in errors.items():
        images = [(n, make_class_image(n + 1 if n < wrong else n)) for n in range(num_images)]
        cells.append(Cell(name, severity, make_labelled_scenes(images), num_images))
    return make_shifted_set(cells, labels, suite="imagenet-c", is_cropped=True, **options)  # type: ignore[arg-type]


FULL = {(name, severity): (row + severity) % 5 for row, name in enumerate(CORRUPTIONS) for severity in SEVERITIES}


def test_mce_of_imagenet_c_equals_a_manual_computation(tmp_path: Path) -> None:
    metrics = evaluate_metrics([make_corruption_set(FULL)], tmp_path)
    # For each corruption, 0, 1, 2, 3 and 4 of 4 predictions are wrong at the five severities: errors add up to 2.5.
    assert metrics["imagenet-c: mCE (AlexNet)"].value == pytest.approx(
        100 * sum(2.5 / (5 * alexnet) for alexnet in ALEXNET_ERRORS.values()) / 15
    )
    assert metrics["imagenet-c: mean error"].value == pytest.approx(50)
    assert metrics["imagenet-c: mean accuracy"].value == pytest.approx(50)
    assert metrics["imagenet-c: mean error"].count == 300
    wrong = torch.tensor([[n < wrong for n in range(4)] for wrong in FULL.values()]).double()
    half_width = 100 * compute_half_width(wrong.mean(dim=0))
    assert metrics["imagenet-c: mean error"].interval == pytest.approx((50 - half_width, 50 + half_width))
    alexnet = torch.tensor([ALEXNET_ERRORS[name] for name, _ in FULL]).double()[:, None]
    mce, half_width = metrics["imagenet-c: mCE (AlexNet)"], 100 * compute_half_width((wrong / alexnet).mean(dim=0))
    assert mce.interval == pytest.approx((mce.value - half_width, mce.value + half_width))


def compute_half_width(image_values: Tensor) -> float:
    """Return half the 95 % interval of the mean of a value of each image."""
    return 1.959963984540054 * image_values.std().item() / sqrt(len(image_values))


def test_custom_corruption_set_and_its_interval_use_its_own_classes(tmp_path: Path) -> None:
    # Most pixels of images 0 and 2 are of a class that is not open; among open classes, 0 is right and 2 is wrong.
    hard = make_labelled_scenes(
        [
            (0, make_class_image(500, 0)),
            (1, make_class_image(1)),
            (2, make_class_image(500, 3)),
            (3, make_class_image(3)),
        ]
    )
    cells = [
        Cell("fog", 1, hard, None),
        Cell("fog", 2, make_labelled_scenes([(n, make_class_image(n)) for n in range(4)]), None),
    ]
    metrics = evaluate_metrics([make_shifted_set(cells, IMAGENET_LABELS[:4], name="made", is_cropped=True)], tmp_path)
    cells_text, half_width = "2 of 75 cells", 100 * compute_half_width(torch.tensor([0, 0, 0.5, 0]).double())
    assert metrics[f"made: mean error, {cells_text}"].value == pytest.approx(12.5)
    assert half_width > 12.5  # the interval ends at 0
    assert metrics[f"made: mean error, {cells_text}"].interval == pytest.approx((0, 12.5 + half_width))
    assert metrics[f"made: mean accuracy, {cells_text}, all classes"].value == pytest.approx(75)


def test_cells_without_images_of_known_classes_are_excluded_from_means(tmp_path: Path) -> None:
    cells = [
        Cell("fog", n, make_labelled_scenes([(n, make_class_image(n)), (n, make_class_image(0))]), None) for n in (1, 2)
    ]
    metrics = evaluate_metrics(
        [make_shifted_set(cells, IMAGENET_LABELS[:3], suite="imagenet-c")],
        tmp_path,
        models=[make_colour_classifier(IMAGENET_LABELS[:2])],
    )
    assert metrics["imagenet-c: mean error, 1 of 75 cells"].value == 50
    assert not [name for name, metric in metrics.items() if isnan(metric.value)]


@pytest.mark.parametrize(
    ("options", "model_labels", "reason"),
    [
        ({"creation_sentence": "self-made by someone"}, IMAGENET_LABELS, "which are those on the released images"),
        ({}, IMAGENET_LABELS[:6], "since the model lacks classes"),
        ({"labels": IMAGENET_LABELS[:5]}, IMAGENET_LABELS, "since the set has 5 of the 1,000 classes"),
    ],
    ids=["self-made", "model", "set"],
)
def test_sets_to_which_alexnets_errors_do_not_apply_have_no_mce_but_a_note(
    options: dict[str, Any], model_labels: Sequence[LabelInfo], reason: str, tmp_path: Path
) -> None:
    metrics = evaluate_metrics(
        [make_corruption_set(FULL, **options)], tmp_path, models=[make_colour_classifier(model_labels)]
    )
    assert not [name for name in metrics if "AlexNet" in name]
    (notes,) = [metric.notes for name, metric in metrics.items() if name.endswith("mean error")]
    assert notes[0] == f"no mCE by AlexNet's errors, {reason}"


def test_custom_corruption_sets_have_no_note_about_a_missing_mce(tmp_path: Path) -> None:
    custom_set = replace(make_corruption_set(FULL, labels=IMAGENET_LABELS[:5]), suite="custom", name="made")
    assert evaluate_metrics([custom_set], tmp_path)["made: mean error"].notes == ()


@pytest.mark.parametrize("crop", [0.5, 1.0])
def test_clean_images_are_cropped_as_imagenet_c_for_cropped_sets_and_by_the_model_for_others(
    crop: float, tmp_path: Path
) -> None:
    # The central 7/8 is mostly class 3; the full image is mostly class 5, and its central half entirely.
    clean = make_class_image(5, size=80)
    clean[:, 5:75, 5:75] = make_class_image(3, size=70)
    clean[:, 18:62, 18:62] = make_class_image(5, size=44)
    size = (70, 70)
    model = make_colour_classifier(size=size, view=CentralImageView(CentralView(size=size, crop=crop)))
    val = make_shifted_set(
        [Cell(None, None, make_labelled_scenes([(3, clean)]), None)], IMAGENET_LABELS, suite="imagenet-val"
    )
    cell = Cell("fog", 1, make_labelled_scenes([(3, make_class_image(3, size=70))]), None)
    grid = make_shifted_set([cell], IMAGENET_LABELS, suite="imagenet-c", is_cropped=True)
    sketch = make_shifted_set(
        [Cell(None, None, make_labelled_scenes([(3, make_class_image(3, size=70))]), None)],
        IMAGENET_LABELS,
        suite="sketch",
    )
    metrics = evaluate_metrics([grid, sketch], tmp_path, models=[model], clean=val)
    assert metrics["imagenet-c: top-1 on clean images of the same classes"].value == 100
    assert metrics["sketch: top-1 on clean images of the same classes"].value == 0
    assert metrics["imagenet-val: top-1"].value == 0


def test_extra_corruptions_have_a_metric_of_their_own_and_change_no_mean(tmp_path: Path) -> None:
    extra = {("spatter", severity): 4 for severity in SEVERITIES}
    metrics = evaluate_metrics([make_corruption_set(FULL | extra)], tmp_path)
    without = evaluate_metrics([make_corruption_set(FULL)], tmp_path / "without")
    assert metrics["imagenet-c: mCE (AlexNet)"].value == without["imagenet-c: mCE (AlexNet)"].value
    assert metrics["imagenet-c: mean error"].value == pytest.approx(50)
    assert metrics["imagenet-c: mean error of extra corruptions"].value == 100
    assert metrics["imagenet-c: mean error of extra corruptions"].notes == ("of spatter",)


def test_incomplete_sets_have_no_mce_and_a_note_at_the_mean(tmp_path: Path) -> None:
    incomplete = {cell: wrong for cell, wrong in FULL.items() if cell != ("fog", 3)}
    metrics = evaluate_metrics([make_corruption_set(incomplete, warnings=("fog: severity 3 missing",))], tmp_path)
    assert not [name for name in metrics if "mCE" in name]
    mean = metrics["imagenet-c: mean error, 74 of 75 cells"]
    assert mean.value == pytest.approx(100 * sum(incomplete.values()) / (4 * 74))
    assert mean.notes == ("incomplete, so there is no mCE", "fog: severity 3 missing")


def test_self_made_sets_have_no_mce_by_alexnet_but_by_a_reference(tmp_path: Path) -> None:
    self_made = make_corruption_set(FULL, labels=IMAGENET_LABELS[:5], creation_sentence="self-made by someone")
    models = [
        make_colour_classifier(IMAGENET_LABELS[:5], source="one"),
        make_colour_classifier(source="two", labels=IMAGENET_LABELS),
    ]
    config = CONFIG.model_copy(update={"reference": "two"})
    one, two = evaluate([self_made], tmp_path, models=models, config=config, clean=make_clean_set([0]))
    names = [metric.label for metric in one.metrics]
    assert "imagenet-c (self-made): mean error" in names
    assert not [name for name in names if "AlexNet" in name]
    values = {metric.label: metric.value for metric in two.metrics}
    assert values["imagenet-c (self-made): mCE, relative to two"] == pytest.approx(100)
    assert values["imagenet-c (self-made): relative mCE, relative to two"] == pytest.approx(100)
    assert "Score" not in names


def test_relative_mce_subtracts_the_clean_error_of_each_model(tmp_path: Path) -> None:
    swapped = [*IMAGENET_LABELS[:3], IMAGENET_LABELS[4], IMAGENET_LABELS[3], *IMAGENET_LABELS[5:]]
    models = [make_colour_classifier(source="one"), make_colour_classifier(swapped, source="two")]
    config = CONFIG.model_copy(update={"reference": "two"})
    one, _ = evaluate([make_corruption_set(FULL)], tmp_path, models=models, config=config, clean=make_clean_set([0]))
    values = {metric.label: metric.value for metric in one.metrics}
    # Over the severities, 0, 1, 2, 3, 4 of 4 predictions are wrong. The second model, which confuses 3 and 4, has
    # 1, 2, 3, 4 and 3 wrong.
    error_sum, reference_sum = 10 / 4, 13 / 4
    assert values["imagenet-c: mCE, relative to two"] == pytest.approx(100 * error_sum / reference_sum)
    # Of 8 clean images of the same classes, 1 is wrong; for the second model, the two of class 3 as well.
    relative = (error_sum - 5 * 1 / 8) / (reference_sum - 5 * 3 / 8)
    assert values["imagenet-c: relative mCE, relative to two"] == pytest.approx(100 * relative)


def test_uncropped_images_of_another_size_are_resized_and_noted(tmp_path: Path) -> None:
    one, two = evaluate(
        [make_corruption_set(FULL)],
        tmp_path,
        models=[make_colour_classifier(source="one"), make_colour_classifier(source="two", size=(20, 20))],
    )
    notes = [
        next(metric.notes for metric in result.metrics if metric.label == "imagenet-c: mean error")
        for result in (one, two)
    ]
    assert notes == [(), ("resized: 300 images were resized to 20×20",)]


def test_missing_images_of_a_set_are_noted(tmp_path: Path) -> None:
    cell = Cell("fog", 1, make_labelled_scenes([(0, make_class_image(0))]), 50_000)
    metrics = evaluate_metrics(
        [make_shifted_set([cell], IMAGENET_LABELS, suite="imagenet-c", is_cropped=True)], tmp_path
    )
    assert metrics["imagenet-c: mean error, 1 of 75 cells"].notes == (
        "incomplete, so there is no mCE",
        "1 of 50,000 images in 1 cell",
    )


def test_notes_about_one_image_are_in_the_singular(tmp_path: Path) -> None:
    cell = Cell("fog", 1, make_labelled_scenes([(0, make_class_image(0, size=20))]), None)
    metrics = evaluate_metrics(
        [make_shifted_set([cell], IMAGENET_LABELS, suite="imagenet-c", is_cropped=True)], tmp_path
    )
    assert "resized: 1 image was resized to 10×10" in metrics["imagenet-c: mean error, 1 of 75 cells"].notes
    scenes = make_labelled_scenes([(0, make_class_image(0)), (3, make_class_image(3))])
    night = make_shifted_set([Cell(None, None, scenes, None)], [*IMAGENET_LABELS[:3], None], name="night")
    (note,) = evaluate_metrics([night], tmp_path)["night: top-1, own classes"].notes
    assert note == "1 image without a class is left out"


def test_images_of_classes_that_a_model_lacks_are_left_out_and_noted(tmp_path: Path) -> None:
    scenes = make_labelled_scenes([(n, make_class_image(n)) for n in range(4)])
    sketch = make_shifted_set([Cell(None, None, scenes, None)], IMAGENET_LABELS[:4], suite="sketch")
    few = make_colour_classifier(IMAGENET_LABELS[:3], source="few")
    metrics = evaluate_metrics([sketch], tmp_path, models=[few])
    first = metrics["sketch: top-1"]
    assert (first.value, first.count) == (100, 3)
    assert first.notes == (
        f"a subset: the model lacks 1 of the 4 classes ({IMAGENET_LABELS[3].name}), whose 1 image is left out",
    )


def test_metrics_are_independent_of_the_order_of_a_sets_classes(tmp_path: Path) -> None:
    labels = [IMAGENET_LABELS[column] for column in (999, 3, 500)]
    scenes = make_labelled_scenes([(0, make_class_image(999)), (1, make_class_image(3)), (2, make_class_image(500))])
    assert (
        evaluate_metrics([make_shifted_set([Cell(None, None, scenes, None)], labels, suite="sketch")], tmp_path)[
            "sketch: top-1"
        ].value
        == 100
    )


def test_folders_of_official_sets_are_matched_with_logits_by_name(tmp_path: Path) -> None:
    columns = {999: 999, 3: 3, 500: 501}  # one is misclassified; if classes were matched by index, all would be
    for place in ("sketch", "c/fog/2", "c/snow/5"):
        for column, shown in columns.items():
            folder = tmp_path / place / str(IMAGENET_LABELS[column].wnid)
            folder.mkdir(parents=True)
            Image.fromarray(make_class_image(shown).permute(1, 2, 0).numpy()).save(folder / "a.png")
    sets = [open_shifted_set("sketch", tmp_path / "sketch"), open_shifted_set("imagenet-c", tmp_path / "c")]
    metrics = evaluate_metrics(sets, tmp_path / "predictions")
    assert metrics["sketch: top-1"].value == pytest.approx(200 / 3)
    assert metrics["imagenet-c: mean error, 2 of 75 cells"].value == pytest.approx(100 / 3)
    assert "3 of 50,889 images: the set is incomplete" in metrics["sketch: top-1"].notes


def test_accuracy_at_chance_has_a_warning(tmp_path: Path) -> None:
    scenes = make_labelled_scenes([(n, make_class_image(n + 1)) for n in range(200)])
    metrics = evaluate_metrics(
        [make_shifted_set([Cell(None, None, scenes, None)], IMAGENET_LABELS, suite="sketch")], tmp_path
    )
    assert metrics["sketch: top-1"].notes == ("close to chance (0.1 %). Check classes, weights, mean and std",)


@pytest.mark.parametrize(
    ("classes", "right", "has_warning"), [(9, 11, True), (9, 12, False), (10, 29, True), (10, 31, False)]
)
def test_warnings_about_chance_depend_on_the_number_of_open_classes(
    classes: int, right: int, has_warning: bool, tmp_path: Path
) -> None:
    scenes = make_labelled_scenes([(n % classes, make_class_image((n + (n >= right)) % classes)) for n in range(100)])
    metrics = evaluate_metrics(
        [make_shifted_set([Cell(None, None, scenes, None)], IMAGENET_LABELS[:classes], name="night")], tmp_path
    )
    assert metrics["night: top-1, own classes"].value == pytest.approx(right)
    warning = f"close to chance ({100 / classes:.2g} %). Check classes, weights, mean and std"
    assert metrics["night: top-1, own classes"].notes == ((warning,) if has_warning else ())


def test_custom_sets_are_classified_among_their_classes_and_among_all(tmp_path: Path) -> None:
    names = [LabelInfo(name=name) for name in ("cat", "dog", "owl")]
    scenes = make_labelled_scenes(
        [(0, make_class_image(0)), (1, make_class_image(2, 1))]
    )  # most pixels of the second are of the owl
    night = make_shifted_set([Cell(None, None, scenes, None)], names[:2], name="night")
    metrics = evaluate_metrics([night], tmp_path, models=[make_colour_classifier(names)])
    assert metrics["night: top-1, own classes"].value == 100
    assert metrics["night: top-1, all classes"].value == 50


def test_score_combines_all_four_sets(tmp_path: Path) -> None:
    r = make_shifted_set(
        [Cell(None, None, make_labelled_scenes([(0, make_class_image(COLUMN[imagenet_r_wnids()[0]]))]), None)],
        [IMAGENET_LABELS[COLUMN[imagenet_r_wnids()[0]]]],
        suite="imagenet-r",
        protocol_wnids=imagenet_r_wnids(),
    )
    sketch = make_shifted_set(
        [Cell(None, None, make_labelled_scenes([(0, make_class_image(0)), (1, make_class_image(0))]), None)],
        IMAGENET_LABELS,
        suite="sketch",
    )
    metrics = evaluate_metrics([make_imagenet_a(), r, sketch, make_corruption_set(FULL)], tmp_path)
    mce = metrics["imagenet-c: mCE (AlexNet)"].value
    assert metrics["Score"].value == pytest.approx((75 + 100 + 50 + 100 - mce) / 4)
    assert metrics["Score"].notes == ("(A + R + Sketch + (100 - mCE)) / 4", "see the notes of the sets")
    metrics = evaluate_metrics(
        [replace(make_imagenet_a(), warnings=()), r, sketch, make_corruption_set(FULL)], tmp_path
    )
    assert metrics["Score"].notes == ("(A + R + Sketch + (100 - mCE)) / 4",)


def test_calibration_error_uses_the_confidence_among_open_classes(tmp_path: Path) -> None:
    metrics = evaluate_metrics([make_imagenet_a()], tmp_path)
    assert metrics["imagenet-a: calibration error"].value == pytest.approx(25, abs=1e-3)  # confidence 1, accuracy 75 %


def test_references_that_are_not_evaluated_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        evaluate([make_imagenet_a()], tmp_path, config=CONFIG.model_copy(update={"reference": "plantd"}))
    assert "no model in this call for reference named 'plantd'. Did you mean 'planted'?" in str(caught.value)


def test_corruption_sets_are_rejected_as_clean_sets(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        evaluate([make_imagenet_a()], tmp_path, clean=make_corruption_set(FULL))
    assert str(caught.value) == (
        "imagenet-c: is a corruption set (expected a clean set without corruptions). "
        "Use the images that it was made from"
    )


def test_sets_without_images_of_known_classes_are_rejected(tmp_path: Path) -> None:
    scenes = make_labelled_scenes([(1, make_class_image(1))])
    sketch = make_shifted_set([Cell(None, None, scenes, None)], IMAGENET_LABELS[:2], suite="sketch")
    with pytest.raises(UserError) as caught:
        evaluate([sketch], tmp_path, models=[make_colour_classifier(IMAGENET_LABELS[:1])])
    assert str(caught.value) == "sketch: has no images of classes that planted has. Use another set"


def test_cached_predictions_are_reused_when_a_set_is_added(tmp_path: Path) -> None:
    one, two = make_imagenet_a(), make_corruption_set(FULL)
    evaluate([one], tmp_path)
    scenes = one.cells[0].scenes
    assert isinstance(scenes, InMemoryScenes)
    assert scenes.num_reads == 4
    evaluate([one, two], tmp_path)
    assert scenes.num_reads == 4


def test_cached_predictions_are_reused_when_a_cell_is_added(tmp_path: Path) -> None:
    scenes = [make_labelled_scenes([(0, make_class_image(0))]) for _ in range(2)]
    cells = [Cell("fog", n, cell_scenes, None, identity=f"fog {n}") for n, cell_scenes in enumerate(scenes, start=1)]
    first = replace(make_shifted_set(cells[:1], IMAGENET_LABELS, suite="imagenet-c"), identity="of one cell")
    evaluate([first], tmp_path)
    evaluate([replace(first, cells=tuple(cells), identity="of two cells")], tmp_path)
    assert [cell_scenes.num_reads for cell_scenes in scenes] == [1, 1]


def test_models_with_the_same_predictions_directory_do_not_share_predictions(tmp_path: Path) -> None:
    class ReversedNet(ColourNet):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images).flip(1)

    night = make_shifted_set(
        [Cell(None, None, make_labelled_scenes([(0, make_class_image(0)), (1, make_class_image(1))]), None)],
        IMAGENET_LABELS[:3],
        name="night",
    )
    models = [
        make_colour_classifier(IMAGENET_LABELS[:3], source="one"),
        replace(make_colour_classifier(IMAGENET_LABELS[:3], source="two"), model=ReversedNet(3)),
    ]
    for ordered_models in (models, models[::-1]):
        for result in evaluate_robustness(CONFIG, ordered_models, [night], None, [tmp_path, tmp_path], World()):
            assert result.metrics[0].value == {"one": 100, "two": 50}[result.classifier.source]


def test_every_class_that_a_label_accepts_is_correct(tmp_path: Path) -> None:
    cat, fox, wolf = (LabelInfo(name=name) for name in ("cat", "fox", "wolf"))
    images = [(0, make_class_image(0)), (1, make_class_image(1)), (1, make_class_image(2)), (1, make_class_image(0))]
    night = replace(
        make_shifted_set([Cell(None, None, make_labelled_scenes(images), None)], [cat, None], name="night"),
        label_map=((cat,), (fox, wolf)),
    )
    clean = make_shifted_set(
        [Cell(None, None, make_labelled_scenes([(2, make_class_image(1)), (1, make_class_image(1))]), None)],
        [cat, fox, wolf],
        name="clean",
    )
    metrics = evaluate_metrics([night], tmp_path, models=[make_colour_classifier([cat, fox, wolf])], clean=clean)
    assert metrics["night: top-1, own classes"].value == 75
    assert metrics["night: top-1 on clean images of the same classes"].value == 50
