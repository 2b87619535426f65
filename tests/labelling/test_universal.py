"""The labeller `universal`, on tiny models with random weights and on models with given outputs."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.data.geometry import subsample_ids
from c2fmae.data.label_spaces import COCO_PANOPTIC
from c2fmae.labelling.canvases import pad_to_canvas
from c2fmae.labelling.context import LabellerContext
from c2fmae.labelling.families import UNIVERSAL_SEGMENTERS
from c2fmae.labelling.model_classes import list_class_names, match_classes
from c2fmae.labelling.protocol import LabelInput, LabelResult
from c2fmae.labelling.registry import build_labellers
from c2fmae.labelling.universal.labeller import UniversalConfig, UniversalLabeller
from c2fmae.labelling.universal.query_maps import ObjectMasks, QueryObjects, SemanticMap
from c2fmae.labelling.universal.segmenter import QueryOutputs, UniversalSegmenter
from c2fmae.labelling.weights import PretrainedModel, load_pretrained
from tests.labelling.test_grounded import draw_image

TinyModel = Callable[[str], Path]
NAMES = [entry.name for entry in COCO_PANOPTIC.classes]
SHUFFLED = [NAMES[index] for index in torch.randperm(133, generator=torch.Generator().manual_seed(0)).tolist()]
CAT, SKY, SEA = NAMES.index("cat"), NAMES.index("sky-other-merged"), NAMES.index("sea")

IMAGE_MEAN, IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of all image processors here

pytestmark = pytest.mark.usefixtures("no_network")


def make_image_processor(model_type: str) -> Any:
    import transformers

    if model_type == "eomt":
        size = {"shortest_edge": 64, "longest_edge": 64}
        return transformers.EomtImageProcessor(size=size, do_pad=True, do_split_image=False)
    size = {"shortest_edge": 64, "longest_edge": 128}
    if model_type == "oneformer":
        return transformers.OneFormerImageProcessor(size=size)
    return transformers.Mask2FormerImageProcessor(size=size, size_divisor=32)


class ColourModel:
    """A model with three queries: red pixels are a cat, blue ones the sky, and padding is the sea."""

    device = torch.device("cpu")

    def __init__(self, names: Sequence[str]) -> None:
        id2label = dict(enumerate(names))
        self.config = SimpleNamespace(id2label=id2label, image_size=64, task_seq_len=77)
        self.num_forwards = 0
        self.class_logits = torch.full((3, 134), -10.0)
        for query, class_id in enumerate((CAT, SKY, SEA)):
            self.class_logits[query, list(names).index(NAMES[class_id])] = 10

    def __call__(self, pixel_values: Tensor, task_inputs: Tensor | None = None) -> Any:
        self.num_forwards += 1
        torch.rand([])  # as Mask2Former of transformers 5.17 does
        mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGE_MEAN, IMAGE_STD))
        red, green, blue = F.avg_pool2d(pixel_values * std + mean, 4).unbind(dim=1)
        is_padding = (green > 0.2) | (red + blue < 0.5)
        difference = (20 * (red - blue)).masked_fill(is_padding, 0)
        masks = torch.stack([difference, -difference, is_padding * 20.0 - 10], dim=1)
        return SimpleNamespace(
            masks_queries_logits=masks, class_queries_logits=self.class_logits.expand(len(masks), -1, -1)
        )


def draw_colours(height: int, width: int) -> Tensor:
    """Return an image of which a third of the columns is red, and the others are blue."""
    image = torch.zeros((3, height, width), dtype=torch.uint8)
    image[0, :, : width // 3] = 255
    image[2, :, width // 3 :] = 255
    return image


@pytest.fixture
def colour_model(monkeypatch: pytest.MonkeyPatch) -> Callable[..., ColourModel]:
    """Return a function that makes every folder a model of a type with given outputs, and returns this model."""

    def install(model_type: str = "mask2former", names: Sequence[str] = NAMES) -> ColourModel:
        model, processor = ColourModel(names), make_image_processor(model_type)
        for method in ("semantic", "instance", "panoptic"):
            monkeypatch.setattr(processor, f"post_process_{method}_segmentation", None)
        if model_type == "oneformer":
            tokens = {"input_ids": torch.ones(1, 77).long(), "attention_mask": torch.ones(1, 77).long()}
            processor = SimpleNamespace(image_processor=processor, tokenizer=lambda *_, **__: tokens)
        loaded = PretrainedModel(Path("model"), model_type, model, processor, "0" * 64, "licence not stated")
        monkeypatch.setattr("c2fmae.labelling.universal.labeller.load_pretrained", lambda *_, **__: loaded)
        return model

    return install


def build() -> UniversalLabeller:
    return UniversalLabeller(UniversalConfig(model="model"), LabellerContext())


def label(labeller: UniversalLabeller, *images: Tensor, stride: int = 1) -> list[LabelResult]:
    return labeller.label([LabelInput(str(row), image) for row, image in enumerate(images)], stride)


@pytest.mark.parametrize("model_type", ["mask2former", "oneformer", "eomt"])
def test_no_padding_reaches_the_maps(colour_model: Callable[..., ColourModel], model_type: str) -> None:
    colour_model(model_type)
    labeller = build()
    images = [draw_colours(60, 120), draw_colours(120, 60), draw_colours(30, 120)]
    assert len({labeller.batch_key(*image.shape[1:]) for image in images}) == 1
    for results in ([label(labeller, image)[0] for image in images], label(labeller, *images)):
        for image, result in zip(images, results, strict=True):
            border = image.shape[2] // 3
            semantic, instance = result.maps["semantic"], result.maps["instance"]
            columns = torch.arange(image.shape[2]) + 0.5
            expected = torch.where(columns < border, CAT, SKY).expand_as(semantic)
            assert not ((semantic != expected) & ((columns - border).abs() > 1)).any()
            assert instance.equal((semantic == CAT).to(instance.dtype))  # stuff is no object
            (cat,) = result.objects
            assert (cat.class_name, cat.class_id, cat.threshold) == ("cat", CAT, 0.8 if model_type == "eomt" else 0.5)


def make_outputs(num_queries: int, *, seed: int = 0) -> QueryOutputs:
    """Return random queries of an image of 50×75 pixels, read at 43×64 on a canvas of 64×64."""
    generator = torch.Generator().manual_seed(seed)
    return QueryOutputs(
        torch.randn((num_queries, 16, 16), generator=generator) * 4,
        torch.randn((num_queries, 6), generator=generator) * 2,
        canvas=(64, 64),
        resized_size=(43, 64),
        size=(50, 75),
    )


def sample_all_pixels(outputs: QueryOutputs) -> Tensor:
    """Return the mask probabilities of all pixels by resizing, cutting and resizing, in float64."""
    logits = F.interpolate(outputs.mask_logits[None].double(), outputs.canvas, mode="bilinear", align_corners=False)
    logits = logits[..., : outputs.resized_size[0], : outputs.resized_size[1]]
    return F.interpolate(logits, outputs.size, mode="bilinear", align_corners=False)[0].sigmoid()


@pytest.mark.parametrize("stride", [1, 4])
@pytest.mark.parametrize("max_bytes", [1 << 24, 1 << 11])
def test_stored_cells_are_those_of_the_full_map(stride: int, max_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("c2fmae.labelling.universal.segmenter._MAX_BYTES", max_bytes)
    outputs = make_outputs(9)
    probabilities = outputs.class_logits.softmax(dim=1)[:, :-1]
    sums = torch.einsum("qc,qyx->cyx", probabilities.double(), sample_all_pixels(outputs))
    best = sums.topk(2, dim=0).values
    is_clear = subsample_ids((best[0] - best[1] > 1e-4).to(torch.uint8), stride).bool()
    semantic = SemanticMap(probabilities, 0.0)
    for rows in outputs.sample_masks(stride):
        semantic.add_rows(rows)
    ids, confidence = semantic.finish()
    expected = subsample_ids(sums.argmax(dim=0).to(torch.uint8), stride)
    assert ids[is_clear].equal(expected[is_clear])
    assert is_clear.float().mean() > 0.95
    assert 0 < confidence <= 1


def test_cells_of_low_confidence_are_not_labelled() -> None:
    probabilities = torch.tensor([[0.9, 0.1], [0.2, 0.3]])
    masks = torch.tensor([[[1.0, 0.0, 0.5]], [[0.0, 1.0, 1.0]]])
    semantic = SemanticMap(probabilities, 0.5)
    semantic.add_rows(masks)
    ids, confidence = semantic.finish()
    assert ids.tolist() == [[0, 255, 0]]
    assert confidence == pytest.approx((0.9 + 0.3 + 0.65) / 3)


def find_objects(
    masks: Tensor, probabilities: Tensor, is_thing: Tensor, min_visible: float, num_parts: int
) -> QueryObjects:
    objects = ObjectMasks(probabilities, is_thing, min_score=0.3, mask_threshold=0.5, min_visible=min_visible)
    for rows in masks.chunk(num_parts, dim=1):
        objects.add_rows(rows)
    return objects.finish()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("min_visible", [0.3, 0.8])
def test_objects_are_the_things_of_the_panoptic_rule(seed: int, min_visible: float) -> None:
    from transformers.models.eomt import image_processing_eomt

    peer: Any = image_processing_eomt  # without annotations

    outputs = make_outputs(12, seed=seed)
    masks, probabilities = sample_all_pixels(outputs).float(), outputs.class_logits.softmax(dim=1)
    is_thing = torch.tensor([True, True, False, True, False])
    scores, labels = probabilities.max(dim=1)
    remaining = peer.remove_low_and_no_objects(masks.logit(), scores, labels, 0.3, 5)
    map_, segments = peer.compute_segments(*remaining, [], 0.5, min_visible)
    expected = [(each["label_id"], map_ == each["id"]) for each in segments if is_thing[each["label_id"]]]
    found = find_objects(masks, probabilities, is_thing, min_visible, num_parts=3)
    assert found.labels.tolist() == [label_id for label_id, _ in expected]
    assert all(mask.equal(other) for mask, (_, other) in zip(found.masks, expected, strict=True))


def test_no_query_above_the_score_gives_no_object() -> None:
    probabilities = torch.tensor([[0.2, 0.2, 0.6], [0.25, 0.2, 0.55]])  # the last is "no object"
    found = find_objects(torch.ones(2, 4, 5), probabilities, torch.tensor([True, True]), 0.8, num_parts=2)
    assert tuple(found.masks.shape) == (0, 4, 5)


def match(names: Sequence[str], **options: bool) -> tuple[int, ...]:
    settings = {"is_in_order": False, "needs_all": True, **options}
    return match_classes(names, COCO_PANOPTIC, origin="folder", **settings)


def test_classes_have_the_ids_of_the_label_space(colour_model: Callable[..., ColourModel]) -> None:
    assert [NAMES[id_] for id_ in match(SHUFFLED)] == SHUFFLED
    varied = [name.upper().replace("-", " ").removesuffix(" MERGED") for name in SHUFFLED]
    assert match(varied) == match(SHUFFLED)
    assert match(NAMES[10:80], needs_all=False) == tuple(range(10, 80))

    image = draw_colours(60, 120)
    colour_model(names=NAMES)
    (expected,) = label(build(), image)
    colour_model(names=SHUFFLED)
    labeller = build()
    (result,) = label(labeller, image)
    assert labeller.classes == COCO_PANOPTIC.classes
    assert result.objects == expected.objects
    assert all(ids.equal(expected.maps[name]) for name, ids in result.maps.items())


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (
            [*NAMES[:131], "unicorn", "dragon"],
            {},
            "folder: 2 of its 133 classes are not in coco-panoptic: unicorn, dra",
        ),
        ([*NAMES[:132], "tree"], {}, "several of its classes are the same class of coco-panoptic: tree, tree-merged"),
        (
            NAMES[:80],
            {},
            r"has 80 classes, without 53 of coco-panoptic: banner, .*\(43 more\)\. Use it for --instances",
        ),
        ([f"LABEL_{index}" for index in range(133)], {}, "no names of classes.*--set semantics.space=coco-panoptic"),
        (["LABEL_0", "LABEL_1"], {"is_in_order": True}, "has 2 classes without names .expected the 133 classes"),
    ],
)
def test_classes_that_do_not_match_are_refused(names: list[str], options: dict[str, bool], message: str) -> None:
    with pytest.raises(UserError, match=message):
        match(names, **options)


def test_names_that_are_not_those_of_the_outputs_are_refused() -> None:
    assert list_class_names({1: "dog", 0: "cat"}, "folder") == ["cat", "dog"]
    with pytest.raises(UserError, match=r"^folder: the keys of id2label .* are not the outputs of the model, 0 to 1\."):
        list_class_names({1: "cat", 2: "dog"}, "folder")


def test_unnamed_classes_are_those_of_a_stated_space() -> None:
    assert match([f"LABEL_{index}" for index in range(133)], is_in_order=True) == tuple(range(133))


def test_both_maps_need_one_forward_of_one_model(colour_model: Callable[..., ColourModel]) -> None:
    model = colour_model()
    (labeller,) = build_labellers("universal:model", "universal:model", LabellerContext())
    images = [draw_colours(60, 120), draw_colours(120, 60)]
    results = labeller.label([LabelInput(str(row), image) for row, image in enumerate(images)], 4)
    assert model.num_forwards == 1
    assert all(set(result.maps) == {"semantic", "instance"} for result in results)

    (semantic, instance) = build_labellers(
        "universal:model", "universal:model", LabellerContext(), semantics_options={"min_confidence": 0.1}
    )
    assert (set(label_one(semantic).maps), set(label_one(instance).maps)) == ({"semantic"}, {"instance"})
    assert (label_one(semantic).objects, instance.classes) == ((), ())


def test_a_model_that_draws_numbers_leaves_the_random_state_as_it_was(colour_model: Callable[..., ColourModel]) -> None:
    colour_model()
    state = torch.random.get_rng_state()
    label(build(), draw_colours(60, 120))
    assert torch.random.get_rng_state().equal(state)


def label_one(labeller: Any) -> LabelResult:
    (result,) = labeller.label([LabelInput("a", draw_colours(60, 120))], 4)
    return result  # type: ignore[no-any-return]


def test_images_that_are_too_narrow_have_no_classes(colour_model: Callable[..., ColourModel]) -> None:
    colour_model()
    labeller = build()
    assert labeller.batch_key(1, 4000) is None
    (result,) = label(labeller, draw_colours(1, 4000), stride=4)
    assert result.maps["semantic"].tolist() == [[255] * 1000]
    assert result.maps["instance"].tolist() == [[0] * 1000]
    assert result.metadata == {"confidence": 0.0}


@pytest.mark.parametrize("name", ["mask2former", "oneformer", "eomt", "eomt-dinov3"])
def test_each_model_labels_images(tiny_model: TinyModel, name: str) -> None:
    labeller = UniversalLabeller(UniversalConfig(model=str(tiny_model(name))), LabellerContext())
    (result,) = label(labeller, draw_colours(60, 120), stride=4)
    assert result.maps["semantic"].shape == (15, 30)
    assert len(result.maps["semantic"].unique()) > 1
    assert 0 < float(result.metadata["confidence"]) <= 1
    description = labeller.describe()
    assert description["segmenter"]["sha256"]
    assert description["min_score"] == (0.8 if "eomt" in name else 0.5)


@pytest.mark.numeric
@pytest.mark.parametrize("size", [(48, 80), (100, 37), (500, 375)])
@pytest.mark.parametrize("name", ["mask2former", "oneformer", "eomt", "eomt-dinov3"])
def test_models_read_images_and_tasks_as_transformers_does(
    tiny_model: TinyModel, name: str, size: tuple[int, int]
) -> None:
    """The sizes are no multiples of 32 after resizing, to which Mask2Former stretches images."""
    pretrained = load_pretrained(str(tiny_model(name)), UNIVERSAL_SEGMENTERS, option="semantics.model")
    image, is_eomt = draw_image(*size), name.startswith("eomt")
    options = {"task_inputs": ["panoptic"]} if name == "oneformer" else {}
    inputs = pretrained.processor(images=[image], return_tensors="pt", **options)

    (outputs,) = UniversalSegmenter(pretrained, autocast=nullcontext).predict([image])

    resized = pretrained.processor(images=[image], do_pad=False, return_tensors="pt") if is_eomt else inputs
    assert outputs.resized_size == tuple(resized["pixel_values"].shape[2:])
    assert outputs.size == size
    with torch.inference_mode():
        expected = pretrained.model(
            pixel_values=pad_to_canvas(list(inputs["pixel_values"]), outputs.canvas)[0],
            **({"task_inputs": inputs["task_inputs"]} if name == "oneformer" else {}),
        )
    torch.testing.assert_close(outputs.mask_logits, expected.masks_queries_logits[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(outputs.class_logits, expected.class_queries_logits[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"do_split_image": True}, r"reads an image in several crops \(do_split_image\)"),
        ({"size": SimpleNamespace(shortest_edge=32, longest_edge=64)}, r"fits images to 32×64 pixels \(expected 64×64"),
    ],
)
def test_other_canvases_than_that_of_the_model_are_refused(changes: dict[str, Any], message: str) -> None:
    processor = make_image_processor("eomt")
    for key, value in changes.items():
        setattr(processor, key, value)
    loaded = PretrainedModel(Path("model"), "eomt", ColourModel(NAMES), processor, "0" * 64, "licence not stated")
    with pytest.raises(UserError, match=message):
        UniversalSegmenter(loaded, autocast=nullcontext)
