import pytest
import torch

from c2fmae.data.corruption.names import CORRUPTIONS, SEVERITIES
from c2fmae.eval.intervals import NORMAL_QUANTILE_975
from c2fmae.eval.robustness.scores import (
    ALEXNET_ERRORS,
    TABLE_IV,
    PaperScores,
    compute_calibration_error,
    compute_clustered_half_width,
    compute_corruption_errors,
    compute_mean_corruption_error,
    compute_paper_score,
    compute_relative_corruption_errors,
    find_missing_cells,
)

pytestmark = pytest.mark.numeric

CELLS = [(name, severity) for name in CORRUPTIONS for severity in SEVERITIES]


def test_alexnets_errors_are_of_the_15_corruptions() -> None:
    assert tuple(ALEXNET_ERRORS) == tuple(CORRUPTIONS)


def test_alexnets_errors_are_those_of_the_paper() -> None:
    assert ALEXNET_ERRORS == {
        "gaussian_noise": 0.886428, "shot_noise": 0.894468, "impulse_noise": 0.922640, "defocus_blur": 0.819880,
        "glass_blur": 0.826268, "motion_blur": 0.785948, "zoom_blur": 0.798360, "snow": 0.866816, "frost": 0.826572,
        "fog": 0.819324, "brightness": 0.564592, "contrast": 0.853204, "elastic_transform": 0.646056,
        "pixelate": 0.717840, "jpeg_compression": 0.606500,
    }  # fmt: skip


@pytest.mark.parametrize("row", TABLE_IV.values(), ids=TABLE_IV)
def test_scores_of_the_paper_are_reproduced_to_the_printed_digit(row: PaperScores) -> None:
    assert f"{compute_paper_score(row.a, row.r, row.sketch, row.mce):.1f}" == f"{row.score:.1f}"


def test_mce_equals_a_manual_computation() -> None:
    errors = {(name, severity): 0.1 * severity for name, severity in CELLS}  # 0.1 + … + 0.5 = 1.5 for each corruption
    expected = sum(1.5 / (5 * alexnet) for alexnet in ALEXNET_ERRORS.values()) / 15
    by_corruption = compute_corruption_errors(errors)
    assert by_corruption["gaussian_noise"] == pytest.approx(1.5 / (5 * 0.886428))
    assert compute_mean_corruption_error(by_corruption) == pytest.approx(expected)
    assert compute_mean_corruption_error(by_corruption) != pytest.approx(
        0.3
    )  # the mean error, which is often reported as mCE


def test_alexnet_and_any_reference_have_an_mce_of_one() -> None:
    alexnet = {(name, severity): ALEXNET_ERRORS[name] for name, severity in CELLS}
    assert compute_mean_corruption_error(compute_corruption_errors(alexnet)) == pytest.approx(1)
    other = {cell: 0.01 * number for number, cell in enumerate(CELLS, start=1)}
    assert compute_mean_corruption_error(compute_corruption_errors(other, other)) == pytest.approx(1)
    assert compute_mean_corruption_error(
        compute_relative_corruption_errors(other, 0.005, other, 0.005)
    ) == pytest.approx(1)


def test_relative_errors_are_increases_over_the_clean_error() -> None:
    errors, reference_errors = (dict.fromkeys(CELLS, value) for value in (0.5, 0.8))
    assert compute_mean_corruption_error(
        compute_relative_corruption_errors(errors, 0.2, reference_errors, 0.4)
    ) == pytest.approx(0.3 / 0.4)


def test_incomplete_errors_have_no_mce() -> None:
    errors = dict.fromkeys(CELLS[1:], 0.5)
    assert compute_mean_corruption_error(compute_corruption_errors(errors)) is None
    assert find_missing_cells(errors) == (CELLS[0],)
    extra = {**dict.fromkeys(CELLS, 0.5), ("spatter", 1): 1.0}
    assert compute_mean_corruption_error(compute_corruption_errors(extra)) == compute_mean_corruption_error(
        compute_corruption_errors(dict.fromkeys(CELLS, 0.5))
    )


def test_calibration_error_equals_a_loop_over_bins() -> None:
    generator = torch.Generator().manual_seed(0)
    confidences, is_correct = torch.rand(500, generator=generator), torch.rand(500, generator=generator) < 0.6
    expected = 0.0
    for number in range(15):
        inside = (confidences > number / 15) & (confidences <= (number + 1) / 15)
        if inside.any():
            gap = confidences[inside].double().mean() - is_correct[inside].double().mean()
            expected += inside.sum().item() / 500 * abs(gap.item())
    assert compute_calibration_error(confidences, is_correct) == pytest.approx(expected)


@pytest.mark.parametrize("number", range(1, 16))
def test_bins_include_their_upper_edge(number: int) -> None:
    edge, inside = number / 15, (number - 0.5) / 15
    error = compute_calibration_error(torch.tensor([edge, inside], dtype=torch.double), torch.tensor([True, False]))
    assert error == pytest.approx(abs(edge + inside - 1) / 2)  # in two bins, it would be (1 - edge + inside) / 2


def test_half_width_over_cells_of_the_same_images_is_that_of_their_mean_errors() -> None:
    wrong = torch.rand(3, 40, generator=torch.Generator().manual_seed(1)) < 0.4
    images = torch.arange(40)
    cells = {(name, 1): (images, is_wrong) for name, is_wrong in zip(CORRUPTIONS, wrong, strict=False)}
    half_width = compute_clustered_half_width(cells, dict.fromkeys(cells, 1 / 3))
    expected = NORMAL_QUANTILE_975 * (wrong.double().mean(dim=0).std() / 40**0.5).item()
    assert half_width == pytest.approx(expected)


def test_equal_predictions_in_several_cells_do_not_narrow_the_interval() -> None:
    wrong, images = torch.rand(40, generator=torch.Generator().manual_seed(1)) < 0.4, torch.arange(40)
    one = compute_clustered_half_width({("fog", 1): (images, wrong)}, {("fog", 1): 1.0})
    same = {("fog", severity): (images, wrong) for severity in SEVERITIES}
    apart = {cell: (images + 40 * number, wrong) for number, cell in enumerate(same)}
    assert one is not None
    assert compute_clustered_half_width(same, dict.fromkeys(same, 0.2)) == pytest.approx(one)
    assert compute_clustered_half_width(apart, dict.fromkeys(same, 0.2)) == pytest.approx(one / 5**0.5, rel=0.02)


def test_single_images_have_no_interval() -> None:
    cell = {("fog", 1): (torch.tensor([0]), torch.tensor([True]))}
    assert compute_clustered_half_width(cell, {("fog", 1): 1.0}) is None
