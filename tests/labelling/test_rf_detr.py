"""The labeller `rf-detr` on a tiny model with random weights, whose masks mean nothing."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.data.label_spaces import COCO_PANOPTIC
from c2fmae.labelling.context import LabellerContext
from c2fmae.labelling.protocol import LabelInput, LabelResult
from c2fmae.labelling.rf_detr import COCO_THINGS, RfDetrLabeller, RfDetrLabellerConfig, match_outputs
from tests.labelling.test_grounded import draw_image
from tests.labelling.tiny_models import build_rf_detr

TinyModel = Callable[[str], Path]
NAMES = [entry.name for entry in COCO_THINGS.classes]
COCO_IDS = [entry.coco_id for entry in COCO_THINGS.classes]
UNNAMED = {index: f"LABEL_{index}" for index in range(91)}
WITH_GAPS = {index: NAMES[COCO_IDS.index(index)] if index in COCO_IDS else "N/A" for index in range(91)}

pytestmark = pytest.mark.usefixtures("no_network")


def build(folder: Path, **options: Any) -> RfDetrLabeller:
    config = RfDetrLabellerConfig(model=str(folder), **{"space": "coco", "thresholds": (0.0,), **options})
    return RfDetrLabeller(config, LabellerContext())


def label(labeller: RfDetrLabeller, *images: Tensor, stride: int = 1) -> list[LabelResult]:
    return labeller.label([LabelInput(str(row), image) for row, image in enumerate(images)], stride)


@pytest.mark.numeric
def test_masks_and_classes_are_those_of_transformers(tiny_model: TinyModel) -> None:
    import transformers

    folder, images = tiny_model("rf-detr"), [draw_image(48, 80, seed=1), draw_image(80, 48, seed=2)]
    labeller = build(folder, min_area=0, max_pieces=1000, mask_overlap=1.0, min_visible=0, order="score")
    processor: Any = transformers.RfDetrImageProcessor.from_pretrained(folder)
    model: Any = transformers.RfDetrForInstanceSegmentation.from_pretrained(folder)
    is_class = torch.tensor([index in COCO_IDS for index in range(91)])

    for image, result in zip(images, label(labeller, *images), strict=True):
        with torch.inference_mode():
            outputs = model.eval()(**processor(images=image, return_tensors="pt"))
        logits = outputs.logits.where(is_class, -torch.inf)
        outputs.logits = logits.where(logits == logits.amax(dim=2, keepdim=True), -torch.inf)  # one class for each mask
        (expected,) = processor.post_process_instance_segmentation(
            outputs, threshold=0.0, target_sizes=[image.shape[1:]], return_binary_maps=True
        )
        infos = expected["segments_info"]
        assert len(result.objects) > 3
        for each in result.objects:
            nearest = min(range(len(infos)), key=lambda row: abs(infos[row]["score"] - each.score))
            assert abs(infos[nearest]["score"] - each.score) < 1e-5
            assert each.class_id is not None
            assert (COCO_IDS[each.class_id], NAMES[each.class_id]) == (infos[nearest]["label_id"], each.class_name)
            is_visible = result.maps["instance"] == each.id
            assert (is_visible & ~expected["segmentation"][nearest].bool()).sum() <= 0.01 * is_visible.sum()


def test_outputs_without_a_class_are_never_objects(tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    labeller = build(tiny_model("rf-detr"), thresholds=(0.5,))
    logits = torch.full((1, 3, 91), -5.0)
    logits[0, 0, 0], logits[0, 1, 12], logits[0, 2, 90], logits[0, 2, 12] = 5, 5, 2, 5
    masks = torch.full((1, 3, 16, 16), -5.0)
    masks[0, 0, :4], masks[0, 1, 4:8], masks[0, 2, 8:] = 5, 5, 5
    outputs = SimpleNamespace(logits=logits, pred_masks=masks)
    monkeypatch.setattr(type(labeller._pretrained.model), "forward", lambda self, **inputs: outputs)

    (result,) = label(labeller, draw_image(32, 64), stride=4)

    (toothbrush,) = result.objects
    assert (toothbrush.class_name, toothbrush.class_id) == ("toothbrush", 79)
    assert toothbrush.score == pytest.approx(torch.tensor(2.0).sigmoid().item())
    assert result.maps["instance"].tolist() == [[0] * 16] * 4 + [[1] * 16] * 4


def test_outputs_are_matched_by_name_or_by_category_id() -> None:
    expected = (tuple(COCO_IDS), tuple(range(80)))
    assert match_outputs(UNNAMED, origin="folder", are_coco_ids=True) == expected
    assert match_outputs(WITH_GAPS, origin="folder", are_coco_ids=False) == expected
    others = {index: f"LABEL_{index}" if name == "N/A" else name for index, name in WITH_GAPS.items()}
    assert match_outputs({**others, 0: "background"}, origin="folder", are_coco_ids=False) == expected
    assert match_outputs(dict.fromkeys(range(91), "N/A"), origin="folder", are_coco_ids=True) == expected
    assert match_outputs(dict(enumerate(NAMES[::-1])), origin="folder", are_coco_ids=False) == (
        tuple(range(80)),
        tuple(range(79, -1, -1)),
    )
    assert [entry.name for entry in COCO_PANOPTIC.classes[:80]] == NAMES


@pytest.mark.parametrize(
    ("id2label", "are_coco_ids", "message"),
    [
        (UNNAMED, False, "no names of classes .*as in the published models, add --set instances.space=coco$"),
        (dict.fromkeys(range(91), "N/A"), False, "no names of classes .LABEL_0, … or N/A."),
        ({**WITH_GAPS, 17: "LABEL_17"}, False, "1 of its 80 classes are not in coco: LABEL_17"),
        ({0: "LABEL_0", 1: "LABEL_1"}, True, "has 2 outputs without names .expected 91"),
        ({0: "cat", 1: "unicorn"}, False, "1 of its 2 classes are not in coco: unicorn"),
    ],
)
def test_other_classes_are_refused(id2label: dict[int, str], are_coco_ids: bool, message: str) -> None:
    with pytest.raises(UserError, match=f"^folder: .*{message}"):
        match_outputs(id2label, origin="folder", are_coco_ids=are_coco_ids)


def test_a_model_with_names_needs_no_statement(tmp_path: Path) -> None:
    build_rf_detr(tmp_path / "model", WITH_GAPS)
    labeller = build(tmp_path / "model", space=None)
    assert labeller.describe()["segmenter"]["model"] == "rf_detr"
    assert labeller.maps_know_labels is False


def test_image_processors_without_a_fixed_size_are_refused(tiny_model: TinyModel, tmp_path: Path) -> None:
    from transformers import RfDetrImageProcessor

    for path in tiny_model("rf-detr").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    RfDetrImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"its image processor has no fixed size \(expected `size` with height"):
        build(tmp_path)
