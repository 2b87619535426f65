"""Segmenters and detectors that were trained here label images with their own classes."""

from pathlib import Path

import pytest
import torch

from c2fmae.core.errors import UserError
from c2fmae.data.geometry import subsample_ids
from c2fmae.eval.segmentation.prediction import predict_cells, predict_ids
from c2fmae.eval.segmentation.testing_config import TestingConfig
from c2fmae.labelling.context import LabellerContext
from c2fmae.labelling.protocol import LabelInput
from c2fmae.labelling.registry import build_labellers
from c2fmae.models.segmenters.upsampling import upsample_at, upsample_logits
from tests.eval.segmentation.tiny_segmenters import CLASSES, draw_image, tiny_segmenter
from tests.models.detectors.built_detectors import build_detector, write_detection_run
from tests.models.segmenters.noise_segmenters import write_segmentation_run

CONTEXT = LabellerContext()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_segmentation_run(tmp_path_factory.mktemp("segmenter") / "run", tiny_segmenter())


@pytest.mark.parametrize("size", [(5, 7), (13, 30), (4, 40)])
def test_logits_at_pixels_are_those_of_the_upsampled_map(size: tuple[int, int]) -> None:
    logits = torch.randn(3, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows, columns = torch.tensor([0, 2, size[0] - 1]), torch.tensor([1, size[1] // 2, size[1] - 1])
    expected = upsample_logits(logits[None], size)[0][:, rows][:, :, columns]
    torch.testing.assert_close(upsample_at(logits, size, (rows, columns)), expected)


@pytest.mark.parametrize(
    "testing",
    [
        TestingConfig(),
        TestingConfig(mode="whole"),
        TestingConfig(mode="whole", short_side=24),
        TestingConfig(scales=(0.5, 1.0), flip=True),
    ],
    ids=["windows", "whole", "resized", "views"],
)
def test_cells_have_the_classes_of_their_pixels(testing: TestingConfig) -> None:
    segmenter, image = tiny_segmenter(), draw_image(41, 50)
    expected = predict_ids(segmenter, image, testing)
    for stride in (1, 4):
        ids, confidence = predict_cells(segmenter, image, testing, stride)
        assert (ids != subsample_ids(expected, stride)).float().mean() < 0.005  # where two classes are almost equal
        assert 1 / len(CLASSES) <= float(confidence.min()) <= float(confidence.max()) <= 1


def test_a_segmenter_makes_semantic_maps_of_its_classes(run: Path) -> None:
    (labeller,) = build_labellers(f"trained:{run}", None, CONTEXT)
    assert labeller.granularities == {"semantic"}
    assert labeller.classes == CLASSES
    image = draw_image(41, 50)
    (result,) = labeller.label([LabelInput("a", image)], 4)
    ids, confidence = predict_cells(tiny_segmenter(), image, TestingConfig(), 4)
    assert result.maps["semantic"].equal(ids)
    assert result.metadata == {"confidence": float(confidence.double().mean())}


def test_cells_of_low_confidence_are_not_labelled(run: Path) -> None:
    image = draw_image(41, 50)
    _, confidence = predict_cells(tiny_segmenter(), image, TestingConfig(), 4)
    limit = float(confidence.median())
    (labeller,) = build_labellers(f"trained:{run}", None, CONTEXT, semantics_options={"min_confidence": limit})
    (result,) = labeller.label([LabelInput("a", image)], 4)
    assert (result.maps["semantic"] == 255).equal(confidence < limit)


def test_a_detector_makes_objects_with_its_classes(tmp_path: Path) -> None:
    detector = build_detector(num_classes=3)
    run = write_detection_run(tmp_path / "run", detector)
    options = {"min_score": 0.1, "testing": {"short_side": 48, "max_side": 64}, "rules": {"min_area": 0}}
    (labeller,) = build_labellers(None, f"trained:{run}", CONTEXT, instances_options=options)
    (result,) = labeller.label([LabelInput("a", draw_image(41, 50))], 1)
    assert len(result.objects) > 0
    names = [entry.name for entry in detector.spec.classes]
    for each in result.objects:
        assert each.class_id is not None
        assert (each.class_name, each.threshold) == (names[each.class_id], 0.1)
        assert each.score >= 0.1


def test_runs_that_make_no_maps_are_rejected(run: Path, tmp_path: Path) -> None:
    boxes = write_detection_run(tmp_path / "run", build_detector(num_classes=3, mask_head=None))
    for text, message in (
        (f"trained:{tmp_path}", "is not a run. Give the run directory of"),
        (f"trained:{boxes}", "its detector predicts boxes only. Use a detector that predicts masks"),
        (f"trained:{run}", "makes semantic maps only .expected instance maps."),
    ):
        with pytest.raises(UserError, match=message):
            build_labellers(None, text, CONTEXT)
    with pytest.raises(UserError, match="testing of .*: windw: no such setting. Did you mean 'window'?"):
        build_labellers(f"trained:{run}", None, CONTEXT, semantics_options={"testing": {"windw": 3}})
