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

pytestmark = pytest.mark.numeric

CONFIG = RobustnessEvaluation(batch_size=3, workers=0)
COLUMN = {label.wnid: column for column, label in enumerate(IMAGENET_LABELS)}
A = [label for wnid in imagenet_a_wnids() for label in IMAGENET_LABELS if label.wnid == wnid]
OUTSIDE = next(column for column, label in enumerate(IMAGENET_LABELS) if label.wnid not in imagenet_a_wnids())


def found(
    sets: Sequence[ShiftedSet],
    folder: Path,
    *,
    models: Sequence[ImageClassifier] | None = None,
    clean: ShiftedSet | None = None,
    config: RobustnessEvaluation = CONFIG,
) -> list[RobustnessResult]:
    models = models or [make_colour_classifier()]
    return evaluate_robustness(config, models, sets, clean, [folder / each.source for each in models], World())


def metrics(sets: Sequence[ShiftedSet], folder: Path, **more: Any) -> dict[str, Metric]:
    (one,) = found(sets, folder, **more)
    return {metric.label: metric for metric in one.metrics}


def imagenet_a() -> ShiftedSet:
    """Four photos of the last classes first: two right, one right among the 200 alone, one wrong."""
    labels = list(reversed(A))
    own = [COLUMN[label.wnid] for label in labels]
    drawn = make_labelled_scenes(
        [
            (0, make_class_image(own[0])),
            (1, make_class_image(own[1])),
            (2, make_class_image(OUTSIDE, own[2])),
            (3, make_class_image(own[9], own[3])),
        ],
    )
    cell = Cell(None, None, drawn, 5)
    return make_shifted_set(
        [cell], labels, kind="imagenet-a", protocol_wnids=imagenet_a_wnids(), notes=("4 of 5 images",)
    )


def clean_photos(wrong: Sequence[int] = ()) -> ShiftedSet:
    """Two photos of each class, in the order of the logits; some of them answered wrongly."""
    photos = [
        (column, make_class_image((column + 1) % 1000 if n == 0 and column in wrong else column))
        for column in range(1000)
        for n in range(2)
    ]
    return make_shifted_set(
        [Cell(None, None, make_labelled_scenes(photos, "clean"), None)], IMAGENET_LABELS, kind="imagenet-val"
    )


def test_imagenet_a_is_answered_among_its_200_classes_and_among_all(tmp_path: Path) -> None:
    numbers = metrics([imagenet_a()], tmp_path)
    assert numbers["imagenet-a: top-1, subset-200"].value == 75
    assert numbers["imagenet-a: top-1, all classes"].value == 50
    assert numbers["imagenet-a: top-1, subset-200"].interval == wilson_interval(0.75, 4, scale=100)
    assert numbers["imagenet-a: top-1, subset-200"].notes == ("4 of 5 images",)
    assert "imagenet-a: drop from clean images" not in numbers


def test_clean_photos_of_the_same_classes_are_asked_in_the_same_way(tmp_path: Path) -> None:
    there = [COLUMN[label.wnid] for label in reversed(A)][:4]
    elsewhere = [column for column in range(1000) if column not in there][:500]
    numbers = metrics([imagenet_a()], tmp_path, clean=clean_photos([there[0], *elsewhere]))
    neighbour_is_open = IMAGENET_LABELS[there[0] + 1].wnid in imagenet_a_wnids()
    clean = numbers["imagenet-a: top-1 on clean images of the same classes"]
    # Where the neighbour's logit is not open, all open ones are 0, and the first of them is taken: wrong as well.
    assert (clean.value, clean.count) == (87.5, 8), neighbour_is_open
    assert numbers["imagenet-a: drop from clean images"].value == 12.5
    assert numbers["imagenet-val: top-1"].value == 100 * (2000 - 501) / 2000


def test_clean_photos_are_asked_with_the_same_logits_open(tmp_path: Path) -> None:
    there = COLUMN[A[-1].wnid]
    clean = make_shifted_set(
        [Cell(None, None, make_labelled_scenes([(there, make_class_image(OUTSIDE, there))]), None)],
        IMAGENET_LABELS,
        kind="imagenet-val",
    )
    numbers = metrics([imagenet_a()], tmp_path, clean=clean)
    assert numbers["imagenet-a: top-1 on clean images of the same classes"].value == 100
    assert numbers["imagenet-val: top-1"].value == 0


def test_the_200_classes_of_a_and_r_are_not_the_same(tmp_path: Path) -> None:
    only_r = next(wnid for wnid in imagenet_r_wnids() if wnid not in imagenet_a_wnids())
    label = IMAGENET_LABELS[COLUMN[only_r]]
    drawn = make_labelled_scenes([(0, make_class_image(OUTSIDE, COLUMN[only_r]))])
    numbers = metrics(
        [
            make_shifted_set(
                [Cell(None, None, drawn, None)], [label], kind="imagenet-r", protocol_wnids=imagenet_r_wnids()
            )
        ],
        tmp_path,
    )
    assert numbers["imagenet-r: top-1, subset-200"].count == 1


def corrupted(
    errors: dict[tuple[str, int], int],
    *,
    photos: int = 4,
    labels: Sequence[LabelInfo | None] = IMAGENET_LABELS,
    **told: object,
) -> ShiftedSet:
    """In each cell so many of the photos are answered wrongly, the first ones."""
    cells = []
    for (name, severity), wrong in errors.items():
        some = [(n, make_class_image(n + 1 if n < wrong else n)) for n in range(photos)]
        cells.append(Cell(name, severity, make_labelled_scenes(some), photos))
    return make_shifted_set(cells, labels, kind="imagenet-c", is_cut=True, **told)  # type: ignore[arg-type]


FULL = {(name, severity): (row + severity) % 5 for row, name in enumerate(CORRUPTIONS) for severity in SEVERITIES}


def test_mce_of_imagenet_c_is_that_of_a_table_by_hand(tmp_path: Path) -> None:
    numbers = metrics([corrupted(FULL)], tmp_path)
    # For each corruption, 0, 1, 2, 3 and 4 of four photos are wrong at the five severities: 2.5 in all.
    assert numbers["imagenet-c: mCE (AlexNet)"].value == pytest.approx(
        100 * sum(2.5 / (5 * alexnet) for alexnet in ALEXNET_ERRORS.values()) / 15
    )
    assert numbers["imagenet-c: mean error"].value == pytest.approx(50)
    assert numbers["imagenet-c: mean accuracy"].value == pytest.approx(50)
    assert numbers["imagenet-c: mean error"].count == 300
    wrong = torch.tensor([[n < wrong for n in range(4)] for wrong in FULL.values()]).double()
    reach = 100 * reach_of(wrong.mean(dim=0))
    assert numbers["imagenet-c: mean error"].interval == pytest.approx((50 - reach, 50 + reach))
    alexnet = torch.tensor([ALEXNET_ERRORS[name] for name, _ in FULL]).double()[:, None]
    mce, reach = numbers["imagenet-c: mCE (AlexNet)"], 100 * reach_of((wrong / alexnet).mean(dim=0))
    assert mce.interval == pytest.approx((mce.value - reach, mce.value + reach))


def reach_of(photos: Tensor) -> float:
    """Half the 95 % interval of the mean of a number that each photo has."""
    return 1.959963984540054 * photos.std().item() / sqrt(len(photos))


def test_a_grid_of_ones_own_is_answered_among_its_classes_and_so_is_its_interval(tmp_path: Path) -> None:
    # The colour of a class that is not open hides that of photo 0, which is right, and of photo 2, which is not.
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
    numbers = metrics([make_shifted_set(cells, IMAGENET_LABELS[:4], name="made", is_cut=True)], tmp_path)
    over, reach = "2 of 75 cells", 100 * reach_of(torch.tensor([0, 0, 0.5, 0]).double())
    assert numbers[f"made: mean error, {over}"].value == pytest.approx(12.5)
    assert numbers[f"made: mean error, {over}"].interval == pytest.approx((12.5 - reach, 12.5 + reach))
    assert numbers[f"made: mean accuracy, {over}, all classes"].value == pytest.approx(75)


def test_a_cell_without_a_photo_of_a_known_class_is_in_no_mean(tmp_path: Path) -> None:
    cells = [
        Cell("fog", n, make_labelled_scenes([(n, make_class_image(n)), (n, make_class_image(0))]), None) for n in (1, 2)
    ]
    numbers = metrics(
        [make_shifted_set(cells, IMAGENET_LABELS[:3], kind="imagenet-c")],
        tmp_path,
        models=[make_colour_classifier(IMAGENET_LABELS[:2])],
    )
    assert numbers["imagenet-c: mean error, 1 of 75 cells"].value == 50
    assert not [name for name, metric in numbers.items() if isnan(metric.value)]


@pytest.mark.parametrize(
    ("told", "known", "why"),
    [
        ({"self_made": "self-made by someone"}, IMAGENET_LABELS, "whose errors are of the photos that were released"),
        ({}, IMAGENET_LABELS[:6], "since the model lacks classes"),
        ({"labels": IMAGENET_LABELS[:5]}, IMAGENET_LABELS, "since the set has 5 of the 1,000 classes"),
    ],
    ids=["self-made", "model", "set"],
)
def test_what_is_not_what_alexnet_did_has_no_mce_by_it_and_says_why(
    told: dict[str, Any], known: Sequence[LabelInfo], why: str, tmp_path: Path
) -> None:
    numbers = metrics([corrupted(FULL, **told)], tmp_path, models=[make_colour_classifier(known)])
    assert not [name for name in numbers if "AlexNet" in name]
    (notes,) = [metric.notes for name, metric in numbers.items() if name.endswith("mean error")]
    assert notes[0] == f"no mCE by AlexNet, {why}"


def test_of_a_set_that_nobody_takes_for_imagenet_c_no_mce_is_missed(tmp_path: Path) -> None:
    of = replace(corrupted(FULL, labels=IMAGENET_LABELS[:5]), suite="custom", name="made")
    assert metrics([of], tmp_path)["made: mean error"].notes == ()


@pytest.mark.parametrize("crop", [0.5, 1.0])
def test_clean_photos_are_cut_as_imagenet_c_was_beside_what_is_cut_and_else_as_the_model_sees(
    crop: float, tmp_path: Path
) -> None:
    # Most of the central 7/8 is of class 3, most of the whole and all of the central half of class 5.
    clean = make_class_image(5, size=80)
    clean[:, 5:75, 5:75] = make_class_image(3, size=70)
    clean[:, 18:62, 18:62] = make_class_image(5, size=44)
    size = (70, 70)
    model = make_colour_classifier(size=size, view=CentralImageView(CentralView(size=size, crop=crop)))
    val = make_shifted_set(
        [Cell(None, None, make_labelled_scenes([(3, clean)]), None)], IMAGENET_LABELS, kind="imagenet-val"
    )
    cell = Cell("fog", 1, make_labelled_scenes([(3, make_class_image(3, size=70))]), None)
    grid = make_shifted_set([cell], IMAGENET_LABELS, kind="imagenet-c", is_cut=True)
    sketch = make_shifted_set(
        [Cell(None, None, make_labelled_scenes([(3, make_class_image(3, size=70))]), None)],
        IMAGENET_LABELS,
        kind="sketch",
    )
    numbers = metrics([grid, sketch], tmp_path, models=[model], clean=val)
    assert numbers["imagenet-c: top-1 on clean images of the same classes"].value == 100
    assert numbers["sketch: top-1 on clean images of the same classes"].value == 0
    assert numbers["imagenet-val: top-1"].value == 0


def test_extra_corruptions_are_told_apart_and_change_no_mean(tmp_path: Path) -> None:
    extra = {("spatter", severity): 4 for severity in SEVERITIES}
    numbers = metrics([corrupted(FULL | extra)], tmp_path)
    without = metrics([corrupted(FULL)], tmp_path / "without")
    assert numbers["imagenet-c: mCE (AlexNet)"].value == without["imagenet-c: mCE (AlexNet)"].value
    assert numbers["imagenet-c: mean error"].value == pytest.approx(50)
    assert numbers["imagenet-c: mean error of extra corruptions"].value == 100
    assert numbers["imagenet-c: mean error of extra corruptions"].notes == ("of spatter",)


def test_with_a_cell_missing_there_is_no_mce_and_the_mean_says_so(tmp_path: Path) -> None:
    some = {where: wrong for where, wrong in FULL.items() if where != ("fog", 3)}
    numbers = metrics([corrupted(some, notes=("fog: severity 3 missing",))], tmp_path)
    assert not [name for name in numbers if "mCE" in name]
    mean = numbers["imagenet-c: mean error, 74 of 75 cells"]
    assert mean.value == pytest.approx(100 * sum(some.values()) / (4 * 74))
    assert mean.notes == ("not complete, so there is no mCE", "fog: severity 3 missing")


def test_a_self_made_set_has_no_mce_by_alexnet_but_by_a_reference(tmp_path: Path) -> None:
    made = corrupted(FULL, labels=IMAGENET_LABELS[:5], self_made="self-made by someone")
    models = [
        make_colour_classifier(IMAGENET_LABELS[:5], source="one"),
        make_colour_classifier(source="two", labels=IMAGENET_LABELS),
    ]
    config = CONFIG.model_copy(update={"reference": "two"})
    one, two = found([made], tmp_path, models=models, config=config, clean=clean_photos([0]))
    names = [metric.label for metric in one.metrics]
    assert "imagenet-c (self-made): mean error" in names
    assert not [name for name in names if "AlexNet" in name]
    values = {metric.label: metric.value for metric in two.metrics}
    assert values["imagenet-c (self-made): mCE, relative to two"] == pytest.approx(100)
    assert values["imagenet-c (self-made): relative mCE, relative to two"] == pytest.approx(100)
    assert "Score" not in names


def test_relative_mce_takes_each_models_own_clean_error_off(tmp_path: Path) -> None:
    swapped = [*IMAGENET_LABELS[:3], IMAGENET_LABELS[4], IMAGENET_LABELS[3], *IMAGENET_LABELS[5:]]
    models = [make_colour_classifier(source="one"), make_colour_classifier(swapped, source="two")]
    config = CONFIG.model_copy(update={"reference": "two"})
    one, _ = found([corrupted(FULL)], tmp_path, models=models, config=config, clean=clean_photos([0]))
    values = {metric.label: metric.value for metric in one.metrics}
    # Of 4 photos with each corruption 0, 1, 2, 3, 4 are wrong; by the second 1, 2, 3, 4, and 3, as it takes 3 for 4.
    ours, theirs = 10 / 4, 13 / 4
    assert values["imagenet-c: mCE, relative to two"] == pytest.approx(100 * ours / theirs)
    # Of 8 clean ones of the same classes 1 is wrong, and by the second the two of class 3 as well.
    relative = (ours - 5 * 1 / 8) / (theirs - 5 * 3 / 8)
    assert values["imagenet-c: relative mCE, relative to two"] == pytest.approx(100 * relative)


def test_photos_of_another_size_than_the_models_are_resized_and_said_to_be(tmp_path: Path) -> None:
    one, two = found(
        [corrupted(FULL)],
        tmp_path,
        models=[make_colour_classifier(source="one"), make_colour_classifier(source="two", size=(20, 20))],
    )
    notes = [next(m.notes for m in each.metrics if m.label == "imagenet-c: mean error") for each in (one, two)]
    assert notes == [(), ("resized: 300 photos were brought to 20×20",)]


def test_fewer_photos_than_a_set_has_are_said_beside_the_number(tmp_path: Path) -> None:
    cell = Cell("fog", 1, make_labelled_scenes([(0, make_class_image(0))]), 50_000)
    numbers = metrics([make_shifted_set([cell], IMAGENET_LABELS, kind="imagenet-c", is_cut=True)], tmp_path)
    assert numbers["imagenet-c: mean error, 1 of 75 cells"].notes == (
        "not complete, so there is no mCE",
        "1 of 50,000 images in 1 cell",
    )


def test_one_photo_is_told_in_the_singular(tmp_path: Path) -> None:
    cell = Cell("fog", 1, make_labelled_scenes([(0, make_class_image(0, size=20))]), None)
    numbers = metrics([make_shifted_set([cell], IMAGENET_LABELS, kind="imagenet-c", is_cut=True)], tmp_path)
    assert "resized: 1 photo was brought to 10×10" in numbers["imagenet-c: mean error, 1 of 75 cells"].notes
    drawn = make_labelled_scenes([(0, make_class_image(0)), (3, make_class_image(3))])
    night = make_shifted_set([Cell(None, None, drawn, None)], [*IMAGENET_LABELS[:3], None], name="night")
    (note,) = metrics([night], tmp_path)["night: top-1, own classes"].notes
    assert note == "1 photo without a class is left out"


def test_photos_of_classes_that_a_model_lacks_are_left_out_and_counted(tmp_path: Path) -> None:
    drawn = make_labelled_scenes([(n, make_class_image(n)) for n in range(4)])
    sketch = make_shifted_set([Cell(None, None, drawn, None)], IMAGENET_LABELS[:4], kind="sketch")
    few = make_colour_classifier(IMAGENET_LABELS[:3], source="few")
    numbers = metrics([sketch], tmp_path, models=[few])
    first = numbers["sketch: top-1"]
    assert (first.value, first.count) == (100, 3)
    assert first.notes == (
        f"a subset: the model lacks 1 of the 4 classes ({IMAGENET_LABELS[3].name}), whose 1 photo is left out",
    )


def test_the_order_of_a_sets_classes_does_not_matter(tmp_path: Path) -> None:
    labels = [IMAGENET_LABELS[column] for column in (999, 3, 500)]
    drawn = make_labelled_scenes([(0, make_class_image(999)), (1, make_class_image(3)), (2, make_class_image(500))])
    assert (
        metrics([make_shifted_set([Cell(None, None, drawn, None)], labels, kind="sketch")], tmp_path)[
            "sketch: top-1"
        ].value
        == 100
    )


def test_official_folders_whose_order_is_not_that_of_the_logits_score_exactly(tmp_path: Path) -> None:
    columns = {999: 999, 3: 3, 500: 501}  # one is answered wrongly; by place in the list, all would be
    for place in ("sketch", "c/fog/2", "c/snow/5"):
        for column, shown in columns.items():
            folder = tmp_path / place / str(IMAGENET_LABELS[column].wnid)
            folder.mkdir(parents=True)
            Image.fromarray(make_class_image(shown).permute(1, 2, 0).numpy()).save(folder / "a.png")
    sets = [open_shifted_set("sketch", tmp_path / "sketch"), open_shifted_set("imagenet-c", tmp_path / "c")]
    numbers = metrics(sets, tmp_path / "kept")
    assert numbers["sketch: top-1"].value == pytest.approx(200 / 3)
    assert numbers["imagenet-c: mean error, 2 of 75 cells"].value == pytest.approx(100 / 3)
    assert "3 of 50,889 images: the set is incomplete" in numbers["sketch: top-1"].notes


def test_accuracy_at_chance_is_warned_of(tmp_path: Path) -> None:
    drawn = make_labelled_scenes([(n, make_class_image(n + 1)) for n in range(200)])
    numbers = metrics([make_shifted_set([Cell(None, None, drawn, None)], IMAGENET_LABELS, kind="sketch")], tmp_path)
    assert numbers["sketch: top-1"].notes == ("hardly above chance, 0.1 %: are classes, weights, mean and std right?",)


@pytest.mark.parametrize(
    ("classes", "right", "is_warned_of"), [(9, 11, True), (9, 12, False), (10, 29, True), (10, 31, False)]
)
def test_what_is_hardly_above_chance_is_told_by_the_open_classes_and_depends_on_their_number(
    classes: int, right: int, is_warned_of: bool, tmp_path: Path
) -> None:
    drawn = make_labelled_scenes([(n % classes, make_class_image((n + (n >= right)) % classes)) for n in range(100)])
    numbers = metrics(
        [make_shifted_set([Cell(None, None, drawn, None)], IMAGENET_LABELS[:classes], name="night")], tmp_path
    )
    assert numbers["night: top-1, own classes"].value == pytest.approx(right)
    warned = f"hardly above chance, {100 / classes:.2g} %: are classes, weights, mean and std right?"
    assert numbers["night: top-1, own classes"].notes == ((warned,) if is_warned_of else ())


def test_a_set_of_ones_own_is_answered_among_its_classes_and_among_all(tmp_path: Path) -> None:
    names = [LabelInfo(name=name) for name in ("cat", "dog", "owl")]
    drawn = make_labelled_scenes(
        [(0, make_class_image(0)), (1, make_class_image(2, 1))]
    )  # the owl is more than half of the second
    night = make_shifted_set([Cell(None, None, drawn, None)], names[:2], name="night")
    numbers = metrics([night], tmp_path, models=[make_colour_classifier(names)])
    assert numbers["night: top-1, own classes"].value == 100
    assert numbers["night: top-1, all classes"].value == 50


def test_the_score_is_of_all_four_sets(tmp_path: Path) -> None:
    r = make_shifted_set(
        [Cell(None, None, make_labelled_scenes([(0, make_class_image(COLUMN[imagenet_r_wnids()[0]]))]), None)],
        [IMAGENET_LABELS[COLUMN[imagenet_r_wnids()[0]]]],
        kind="imagenet-r",
        protocol_wnids=imagenet_r_wnids(),
    )
    sketch = make_shifted_set(
        [Cell(None, None, make_labelled_scenes([(0, make_class_image(0)), (1, make_class_image(0))]), None)],
        IMAGENET_LABELS,
        kind="sketch",
    )
    numbers = metrics([imagenet_a(), r, sketch, corrupted(FULL)], tmp_path)
    mce = numbers["imagenet-c: mCE (AlexNet)"].value
    assert numbers["Score"].value == pytest.approx((75 + 100 + 50 + 100 - mce) / 4)
    assert numbers["Score"].notes == ("(A + R + Sketch + (100 - mCE)) / 4", "of sets with notes of their own")
    numbers = metrics([replace(imagenet_a(), warnings=()), r, sketch, corrupted(FULL)], tmp_path)
    assert numbers["Score"].notes == ("(A + R + Sketch + (100 - mCE)) / 4",)


def test_calibration_error_is_of_the_confidence_among_open_classes(tmp_path: Path) -> None:
    numbers = metrics([imagenet_a()], tmp_path)
    assert numbers["imagenet-a: calibration error"].value == pytest.approx(25, abs=1e-3)  # sure of all, right in 75 %


def test_a_reference_that_is_not_in_the_call_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        found([imagenet_a()], tmp_path, config=CONFIG.model_copy(update={"reference": "plantd"}))
    assert "no model in this call for reference named 'plantd'. Did you mean 'planted'?" in str(caught.value)


def test_a_set_of_corruptions_is_refused_as_the_clean_one(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        found([imagenet_a()], tmp_path, clean=corrupted(FULL))
    assert str(caught.value) == (
        "imagenet-c: is a corruption set, so it cannot be the set without a shift. Use the images that it was made of"
    )


def test_a_set_without_a_photo_of_a_known_class_is_refused(tmp_path: Path) -> None:
    drawn = make_labelled_scenes([(1, make_class_image(1))])
    sketch = make_shifted_set([Cell(None, None, drawn, None)], IMAGENET_LABELS[:2], kind="sketch")
    with pytest.raises(UserError) as caught:
        found([sketch], tmp_path, models=[make_colour_classifier(IMAGENET_LABELS[:1])])
    assert str(caught.value) == "sketch: has no images of classes that planted has. Use another set"


def test_what_was_answered_is_not_asked_again_for_another_set_beside_it(tmp_path: Path) -> None:
    one, two = imagenet_a(), corrupted(FULL)
    found([one], tmp_path)
    drawn = one.cells[0].scenes
    drawn.asked = 0  # type: ignore[attr-defined]
    found([one, two], tmp_path)
    assert drawn.asked == 0  # type: ignore[attr-defined]


def test_a_cell_that_comes_to_a_set_is_all_that_is_asked_of_it(tmp_path: Path) -> None:
    drawn = [make_labelled_scenes([(0, make_class_image(0))]) for _ in range(2)]
    cells = [Cell("fog", n, each, None, identity=f"fog {n}") for n, each in enumerate(drawn, start=1)]
    first = replace(make_shifted_set(cells[:1], IMAGENET_LABELS, kind="imagenet-c"), identity="of one cell")
    found([first], tmp_path)
    found([replace(first, cells=tuple(cells), identity="of two cells")], tmp_path)
    assert [each.num_reads for each in drawn] == [1, 1]


def test_models_whose_answers_lie_in_one_folder_do_not_get_each_others(tmp_path: Path) -> None:
    class Backwards(ColourNet):
        def forward(self, photos: Tensor) -> Tensor:
            return super().forward(photos).flip(1)

    night = make_shifted_set(
        [Cell(None, None, make_labelled_scenes([(0, make_class_image(0)), (1, make_class_image(1))]), None)],
        IMAGENET_LABELS[:3],
        name="night",
    )
    models = [
        make_colour_classifier(IMAGENET_LABELS[:3], source="one"),
        replace(make_colour_classifier(IMAGENET_LABELS[:3], source="two"), model=Backwards(3)),
    ]
    for asked in (models, models[::-1]):
        for each in evaluate_robustness(CONFIG, asked, [night], None, [tmp_path, tmp_path], World()):
            assert each.metrics[0].value == {"one": 100, "two": 50}[each.classifier.source]


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
    numbers = metrics([night], tmp_path, models=[make_colour_classifier([cat, fox, wolf])], clean=clean)
    assert numbers["night: top-1, own classes"].value == 75
    assert numbers["night: top-1 on clean images of the same classes"].value == 50
