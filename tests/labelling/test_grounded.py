"""The labeller `grounded` on tiny models with random weights, whose boxes and masks mean nothing."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.labels import LabelInfo
from c2fmae.data.geometry import subsample_ids
from c2fmae.data.info import DatasetInfo
from c2fmae.labelling.context import LabellerContext
from c2fmae.labelling.families import BOX_SEGMENTERS, GROUNDING_DINO, OWLV2
from c2fmae.labelling.grounded.detector import Detections
from c2fmae.labelling.grounded.grounding_dino import GroundingDinoDetector
from c2fmae.labelling.grounded.labeller import GroundedConfig, GroundedLabeller
from c2fmae.labelling.grounded.owlv2 import NAME_TEMPLATE, Owlv2Detector
from c2fmae.labelling.grounded.segmenter import BoxSegmenter, EncodedImage
from c2fmae.labelling.protocol import LabelInput
from c2fmae.labelling.weights import load_pretrained

TinyModel = Callable[[str], Path]

pytestmark = pytest.mark.usefixtures("no_network")


def draw_image(height: int, width: int, seed: int = 0) -> Tensor:
    """Return an image of smooth random colours."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand((1, 3, 4, 5), generator=generator)
    return (torch.nn.functional.interpolate(small, (height, width), mode="bilinear")[0] * 255).to(torch.uint8)


@pytest.fixture(scope="module")
def detectors(tiny_model: TinyModel) -> Callable[[str], Any]:
    """Return a function from the name of a tiny model to a detector."""
    loaded: dict[str, Any] = {}

    def get(name: str) -> Any:
        if name not in loaded:
            pretrained = load_pretrained(str(tiny_model(name)), {**GROUNDING_DINO, **OWLV2}, option="detector")
            loaded[name] = (
                Owlv2Detector(pretrained, NAMES, autocast=nullcontext)
                if name == "owlv2"
                else GroundingDinoDetector(pretrained, names_per_prompt=2, reduction="max", autocast=nullcontext)
            )
        return loaded[name]

    return get


@pytest.fixture(scope="module")
def segmenters(tiny_model: TinyModel) -> Callable[[str], BoxSegmenter]:
    """Return a function from the name of a tiny model to a segmenter."""
    loaded: dict[str, BoxSegmenter] = {}

    def get(name: str) -> BoxSegmenter:
        if name not in loaded:
            pretrained = load_pretrained(str(tiny_model(name)), BOX_SEGMENTERS, option="segmenter")
            loaded[name] = BoxSegmenter(pretrained, autocast=nullcontext)
        return loaded[name]

    return get


NAMES = ("cat", "fire hydrant", "dog")


def detect(detector: Any, images: Sequence[Tensor], names: Sequence[tuple[str, ...]] | None = None) -> list[Detections]:
    with torch.inference_mode():
        found: list[Detections] = detector.detect(images, names or [NAMES] * len(images))
    return found


def assert_same_boxes(one: Detections, other: Detections) -> None:
    torch.testing.assert_close(one.scores, other.scores, atol=1e-5, rtol=0)
    torch.testing.assert_close(one.boxes, other.boxes, atol=1e-3, rtol=0)
    assert torch.equal(one.name_indices, other.name_indices)


@pytest.mark.numeric
@pytest.mark.parametrize("name", ["grounding-dino", "owlv2"])
def test_the_boxes_of_an_image_do_not_depend_on_its_batch(detectors: Callable[[str], Any], name: str) -> None:
    detector = detectors(name)
    sizes = [(48, 80), (80, 48), (64, 64), (48, 81), (20, 90), (7, 9)]
    images = [draw_image(*size, seed=seed) for seed, size in enumerate(sizes)]
    assert len({detector.batch_key(*size) for size in sizes}) == 1  # sides of all canvases are 128

    for alone, together in zip(
        [detect(detector, [image])[0] for image in images], detect(detector, images), strict=True
    ):
        assert_same_boxes(alone, together)


@pytest.mark.numeric
def test_boxes_are_those_of_the_processor_of_transformers(
    detectors: Callable[[str], Any], tiny_model: TinyModel
) -> None:
    from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

    image, texts = draw_image(50, 80), "cat. fire hydrant."
    folder = tiny_model("grounding-dino")
    processor: Any = AutoProcessor.from_pretrained(folder)  # type: ignore[no-untyped-call]
    inputs = processor(images=image, text=texts, return_tensors="pt", pad_size={"height": 128, "width": 128})
    model: Any = AutoModelForZeroShotObjectDetection.from_pretrained(folder)
    with torch.inference_mode():
        outputs = model.eval()(**inputs)
    expected = processor.image_processor.post_process_object_detection(outputs, threshold=-1.0)[0]

    (found,) = detect(detectors("grounding-dino"), [image], [("cat", "fire hydrant")])

    scale = torch.tensor([80, 50, 80, 50])
    torch.testing.assert_close(found.boxes.float(), expected["boxes"] * scale, atol=1e-3, rtol=0)


@pytest.mark.numeric
def test_owlv2_scores_names_as_transformers_does(detectors: Callable[[str], Any], tiny_model: TinyModel) -> None:
    from transformers import AutoProcessor, Owlv2ForObjectDetection

    image = draw_image(50, 80)
    processor: Any = AutoProcessor.from_pretrained(tiny_model("owlv2"))  # type: ignore[no-untyped-call]
    texts = [[NAME_TEMPLATE.format(name=name) for name in NAMES]]
    inputs = processor(images=image, text=texts, return_tensors="pt", max_length=32, padding="max_length")
    model: Any = Owlv2ForObjectDetection.from_pretrained(tiny_model("owlv2"))
    with torch.inference_mode():
        outputs = model.eval()(**inputs)
    post = processor.post_process_grounded_object_detection(outputs, target_sizes=[(50, 80)], threshold=-1.0)[0]

    (found,) = detect(detectors("owlv2"), [image])

    torch.testing.assert_close(found.scores, post["scores"], atol=1e-5, rtol=0)
    torch.testing.assert_close(found.boxes.float(), post["boxes"], atol=1e-3, rtol=0)
    has_score = found.scores > 1e-6  # other scores are zero for all names
    assert has_score.sum() > 3
    assert torch.equal(found.name_indices[has_score], post["labels"][has_score])


def test_texts_that_a_processor_decodes_are_not_used(
    detectors: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = detectors("grounding-dino")
    processor = detector._pretrained.processor

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a text of the processor was used")

    for name in ("post_process_grounded_object_detection", "batch_decode", "decode"):
        monkeypatch.setattr(type(processor), name, refuse)
    peak = torch.full((1, 2, 256), float("-inf"))
    peak[0, 0, 15] = 2.0  # the `t` of hydrant, after [CLS] and "cat."
    outputs = SimpleNamespace(logits=peak, pred_boxes=torch.tensor([[[0.5, 0.5, 0.5, 0.25], [0.5] * 4]]))
    monkeypatch.setattr(type(detector._pretrained.model), "forward", lambda self, **inputs: outputs)

    (found,) = detect(detector, [draw_image(40, 80)], [("cat", "fire hydrant")])

    assert found.name_indices.tolist() == [1, 0]
    assert found.scores.tolist() == [pytest.approx(torch.tensor(2.0).sigmoid().item()), 0.0]
    assert found.boxes[0].tolist() == [20, 15, 60, 25]


def test_each_image_is_searched_for_its_own_names(detectors: Callable[[str], Any]) -> None:
    for name in ("grounding-dino", "owlv2"):
        detector = detectors(name)
        images = [draw_image(48, 80, seed=1), draw_image(48, 80, seed=2)]
        names = [("dog",), ("cat", "fire hydrant", "dog")]

        together = detect(detector, images, names)

        for image, each, found in zip(images, names, together, strict=True):
            assert int(found.name_indices.max()) < len(each)
            assert_same_boxes(found, detect(detector, [image], [each])[0])


@pytest.mark.numeric
@pytest.mark.parametrize("name", ["sam-hq", "sam", "sam2"])
def test_masks_are_those_of_a_direct_call_of_the_model(
    segmenters: Callable[[str], BoxSegmenter], tiny_model: TinyModel, name: str
) -> None:
    from transformers import AutoModelForMaskGeneration, AutoProcessor

    images = [draw_image(48, 80, seed=1), draw_image(80, 60, seed=2)]
    boxes = [[[5.0, 5.0, 40.0, 30.0], [10.0, 10.0, 60.0, 40.0], [0.0, 0.0, 80.0, 48.0]], [[3.0, 20.0, 30.0, 70.0]]]
    processor: Any = AutoProcessor.from_pretrained(tiny_model(name))  # type: ignore[no-untyped-call]
    model: Any = AutoModelForMaskGeneration.from_pretrained(tiny_model(name))
    segmenter = segmenters(name)
    with torch.inference_mode():
        encoded = segmenter.encode(images)
    for image, image_boxes, each in zip(images, boxes, encoded, strict=True):
        inputs = processor(images=image, input_boxes=[image_boxes], return_tensors="pt")
        sizes = [inputs.pop(key) for key in ("original_sizes", "reshaped_input_sizes") if key in inputs]
        inputs["input_boxes"] = inputs["input_boxes"].float()
        with torch.inference_mode():
            outputs = model.eval()(**inputs, multimask_output=False)
            (logits,) = processor.post_process_masks(outputs.pred_masks, *sizes, binarize=False)
            masks, sampled = (
                torch.empty((len(image_boxes), *(-(-side // stride) for side in each.size)), dtype=torch.bool)
                for stride in (1, 4)
            )
            qualities = segmenter.segment(each, torch.tensor(image_boxes), 1, masks)
            segmenter.segment(each, torch.tensor(image_boxes), 4, sampled)
        is_clear = logits[:, 0].abs() > 1e-3 * logits.abs().max()
        assert torch.equal(masks[is_clear], logits[:, 0][is_clear] > 0)
        assert is_clear.float().mean() > 0.99
        torch.testing.assert_close(qualities, outputs.iou_scores[0, :, 0], atol=1e-5, rtol=0)
        for mask, cells in zip(masks, sampled, strict=True):
            assert (subsample_ids(mask, 4) != cells).float().mean() < 0.01


class CountingSegmenter:
    """Stands for a segmenter: the mask of a box is the box, and calls are recorded."""

    max_aspect = 1000.0

    def __init__(self) -> None:
        self.encoded: list[int] = []
        self.boxes: list[list[list[float]]] = []

    def encode(self, images: Sequence[Tensor]) -> list[EncodedImage]:
        self.encoded.append(len(images))
        return [EncodedImage((image.shape[1], image.shape[2]), (64, 64), {}) for image in images]

    def segment(self, encoded: EncodedImage, boxes: Tensor, stride: int, masks: Tensor) -> Tensor:
        self.boxes.append(boxes.tolist())
        rows, columns = (torch.arange(-(-size // stride)) * stride + stride // 2 for size in encoded.size)
        x0, y0, x1, y1 = boxes[:, :, None, None].unbind(dim=1)
        masks.copy_((rows[:, None] >= y0) & (rows[:, None] < y1) & (columns >= x0) & (columns < x1))
        return torch.ones(len(boxes))

    def describe(self) -> dict[str, Any]:
        return {}


class FixedDetector:
    """Stands for a detector: the boxes of an image are given."""

    max_aspect = 1000.0

    def __init__(self, *detections: Detections) -> None:
        self.detections = list(detections)

    def batch_key(self, height: int, width: int) -> str:
        return "one"

    def count_prompts(self, names: Sequence[str]) -> int:
        return 1

    def detect(self, images: Sequence[Tensor], names: Sequence[tuple[str, ...]]) -> list[Detections]:
        return self.detections[: len(images)]

    def describe(self) -> dict[str, Any]:
        return {}


def make_detections(*boxes: tuple[float, tuple[float, float, float, float]]) -> Detections:
    return Detections(
        torch.tensor([box for _, box in boxes], dtype=torch.float64).reshape(-1, 4),
        torch.tensor([score for score, _ in boxes]),
        torch.arange(len(boxes)),
    )


@pytest.fixture
def label_with(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[GroundedLabeller, CountingSegmenter]]:
    """Return a function that builds a labeller with given boxes instead of models."""

    def build(*detections: Detections, **options: Any) -> tuple[GroundedLabeller, CountingSegmenter]:
        segmenter, module = CountingSegmenter(), "c2fmae.labelling.grounded.labeller"
        monkeypatch.setattr(f"{module}._load_detector", lambda *args: FixedDetector(*detections))
        monkeypatch.setattr(f"{module}._load_segmenter", lambda *args: segmenter)
        return GroundedLabeller(GroundedConfig(detector="d", segmenter="s", **options), LabellerContext()), segmenter

    return build


LabelWith = Callable[..., tuple[GroundedLabeller, CountingSegmenter]]


def make_inputs(*sizes: tuple[int, int]) -> list[LabelInput]:
    return [LabelInput(str(row), torch.zeros(3, *size, dtype=torch.uint8)) for row, size in enumerate(sizes)]


def test_each_box_is_segmented_once_and_lower_ones_only_if_needed(label_with: LabelWith) -> None:
    clear = make_detections((0.9, (0, 0, 40, 40)), (0.45, (50, 50, 90, 90)))
    small_first = make_detections((0.9, (0, 0, 4, 4)), (0.45, (50, 50, 90, 90)), (0.25, (0, 50, 40, 90)))
    labeller, segmenter = label_with(clear, small_first)

    one, other = labeller.label(make_inputs((100, 100), (100, 100)), 1)

    assert segmenter.boxes == [[[0, 0, 40, 40]], [[0, 0, 4, 4]], [[50, 50, 90, 90]]]
    assert one.metadata == {"threshold": 0.5}
    assert [(each.area, each.threshold, each.class_name) for each in one.objects] == [(1600, 0.5, "person")]
    assert other.metadata == {"threshold": 0.4}
    assert [(each.area, each.threshold) for each in other.objects] == [(1600, 0.4), (16, 0.5)]
    assert [each.class_name for each in other.objects] == ["bicycle", "person"]


def test_an_image_without_boxes_is_empty_beside_one_with_three(label_with: LabelWith) -> None:
    three = make_detections(*((0.9, (30.0 * row, 0.0, 30.0 * row + 20, 20.0)) for row in range(3)))
    outside = make_detections((0.9, (110, 0, 130, 50)), (0.1, (0, 0, 50, 50)))
    labeller, segmenter = label_with(three, outside)

    one, other = labeller.label(make_inputs((60, 100), (60, 100)), 4)

    assert len(one.objects) == 3
    assert segmenter.encoded == [1]
    assert other.objects == ()
    assert other.metadata == {"threshold": 0.2}
    assert torch.equal(other.maps["instance"], torch.zeros(15, 25, dtype=torch.uint8))


def test_boxes_that_overlap_are_one_object_whatever_their_names(label_with: LabelWith) -> None:
    detections = make_detections((0.8, (0, 0, 40, 40)), (0.9, (0, 0, 40, 38)), (0.7, (60, 0, 90, 30)))
    labeller, segmenter = label_with(detections)

    (result,) = labeller.label(make_inputs((100, 100)), 1)

    assert segmenter.boxes == [[[0, 0, 40, 38], [60, 0, 90, 30]]]
    assert [each.class_name for each in result.objects] == ["bicycle", "car"]


def test_boxes_are_segmented_in_groups(
    segmenters: Callable[[str], BoxSegmenter], monkeypatch: pytest.MonkeyPatch
) -> None:
    segmenter, sizes = segmenters("sam-hq"), list[int]()
    decode = segmenter._decode

    def record(encoded: EncodedImage, boxes: Tensor) -> Any:
        sizes.append(len(boxes))
        return decode(encoded, boxes)

    monkeypatch.setattr(segmenter, "_decode", record)
    with torch.inference_mode():
        (encoded,) = segmenter.encode([draw_image(48, 80)])
        masks = torch.empty((70, 12, 20), dtype=torch.bool)
        qualities = segmenter.segment(encoded, torch.rand(70, 4).sort(dim=1).values * 48, 4, masks)

    assert sizes == [32, 32, 6]
    assert qualities.shape == (70,)


def test_an_image_that_is_too_narrow_for_the_models_is_empty(tiny_model: TinyModel) -> None:
    config = GroundedConfig(detector=str(tiny_model("owlv2")), segmenter=str(tiny_model("sam")))
    labeller = GroundedLabeller(config, LabellerContext())

    (result,) = labeller.label(make_inputs((1, 65)), 1)

    assert labeller.batch_key(1, 64) is not None
    assert labeller.batch_key(1, 65) is None
    assert result.objects == ()
    assert result.maps["instance"].shape == (1, 65)


def test_only_names_of_labels_make_maps_that_know_labels(tiny_model: TinyModel, tmp_path: Path) -> None:
    config = GroundedConfig(
        detector=str(tiny_model("owlv2")), segmenter=str(tiny_model("sam-hq")), thresholds=(0.0,), min_area=0
    )
    info = DatasetInfo(labels=(LabelInfo(name="cat"), LabelInfo(name="dog")))
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    inputs = [LabelInput("a", draw_image(48, 64), 0), LabelInput("b", draw_image(48, 64), 1)]

    know_labels = {}
    for names in ("things", "labels", str(tmp_path / "names.txt"), "own", "own+things"):
        labeller = GroundedLabeller(config, LabellerContext(info=info, names=names))
        know_labels[names] = labeller.maps_know_labels
        one, other = labeller.label(inputs, 4)
        if not labeller.maps_know_labels:
            assert torch.equal(one.maps["instance"], other.maps["instance"])
            assert one.objects == other.objects

    assert list(know_labels.values()) == [False, False, False, True, True]


def test_the_preset_of_the_paper_refuses_other_models(tiny_model: TinyModel) -> None:
    paths = {"detector": str(tiny_model("owlv2")), "segmenter": str(tiny_model("sam-hq"))}

    with pytest.raises(UserError, match=r"^instances\.preset: 'paper' needs Grounding DINO, but .* type 'owlv2'"):
        GroundedLabeller(GroundedConfig(**paths, preset="paper"), LabellerContext())
