"""The labeller `sam3` on a tiny model with random weights, whose masks mean nothing."""

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
from c2fmae.data.info import DatasetInfo
from c2fmae.labelling.candidates import MaskCandidates
from c2fmae.labelling.context import LabellerContext
from c2fmae.labelling.families import SAM3
from c2fmae.labelling.protocol import LabelInput
from c2fmae.labelling.sam3 import NameSegmenter, Sam3Config, Sam3Labeller
from c2fmae.labelling.weights import load_pretrained
from tests.labelling.test_grounded import draw_image

TinyModel = Callable[[str], Path]
NAMES = ("cat", "fire hydrant", "dog")

pytestmark = pytest.mark.usefixtures("no_network")


def make_segmenter(folder: Path, names: Sequence[str] = NAMES, **options: Any) -> NameSegmenter:
    rules = Sam3Config(model=str(folder), **{"thresholds": (0.0,), **options})
    pretrained = load_pretrained(str(folder), SAM3, option="instances.model")
    return NameSegmenter(pretrained, names, rules=rules, autocast=nullcontext)


@pytest.mark.numeric
@pytest.mark.parametrize("pairs_per_pass", [2, 16])
def test_images_and_names_in_one_call_give_what_single_calls_give(
    tiny_model: TinyModel, pairs_per_pass: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoProcessor, Sam3Model

    monkeypatch.setattr("c2fmae.labelling.sam3.select_candidates", lambda candidates, rules: candidates)
    folder = tiny_model("sam3")
    processor: Any = AutoProcessor.from_pretrained(folder)  # type: ignore[no-untyped-call]
    model: Any = Sam3Model.from_pretrained(folder)
    images = [draw_image(48, 80, seed=1), draw_image(80, 48, seed=2), draw_image(30, 31, seed=3)]
    names = [NAMES, (), ("dog",)]

    found = make_segmenter(folder, pairs_per_pass=pairs_per_pass).find(images, names)

    assert [each.names for each in found] == [tuple(name for name in NAMES for _ in range(9)), (), ("dog",) * 9]
    for image, image_names, candidates in zip(images, names, found, strict=True):
        for index, name in enumerate(image_names):
            inputs = processor(images=image, text=name, return_tensors="pt")
            inputs.pop("original_sizes")
            with torch.inference_mode():
                outputs = model.eval()(**inputs)
            (expected,) = processor.post_process_instance_segmentation(outputs, threshold=-1.0)
            rows = slice(9 * index, 9 * index + 9)
            torch.testing.assert_close(candidates.scores[rows], expected["scores"], atol=1e-6, rtol=0)
            torch.testing.assert_close(candidates.logits[rows], outputs.pred_masks[0], atol=1e-5, rtol=0)


def test_the_masks_of_an_image_do_not_depend_on_the_names_of_others(tiny_model: TinyModel) -> None:
    segmenter = make_segmenter(tiny_model("sam3"), pairs_per_pass=2)
    images = [draw_image(48, 80, seed=1), draw_image(80, 48, seed=2)]
    together = segmenter.find(images, [NAMES, NAMES[1:]])
    alone = [segmenter.find([image], [names])[0] for image, names in zip(images, (NAMES, NAMES[1:]), strict=True)]
    assert all(len(each.names) > 3 for each in alone)
    for one, other in zip(alone, together, strict=True):
        assert one.names == other.names
        torch.testing.assert_close(one.scores, other.scores, atol=1e-6, rtol=0)


def give_masks(segmenter: NameSegmenter, monkeypatch: pytest.MonkeyPatch, *masks: tuple[float, int, int]) -> None:
    """Let each name have one mask, with a score and columns from, to; pairs are those of `names` in order."""
    logits = torch.full((len(masks), 1, 4, 10), -5.0)
    for mask, (_, left, right) in zip(logits, masks, strict=True):
        mask[..., left:right] = 5

    def forward(vision: object, image_rows: Sequence[int], name_rows: Sequence[int]) -> Any:
        scores = torch.tensor([[masks[row][0]] for row in name_rows]).logit()
        presence = torch.full((len(name_rows), 1), 50.0)
        return SimpleNamespace(pred_logits=scores, presence_logits=presence, pred_masks=logits[list(name_rows)])

    monkeypatch.setattr(segmenter, "_forward", forward)


@pytest.mark.parametrize("pairs_per_pass", [1, 2, 16])
def test_masks_are_selected_from_those_of_all_names(
    tiny_model: TinyModel, pairs_per_pass: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dog overlaps the cat's mask, which overlaps the hydrant's; dog and hydrant overlap little."""
    folder, images = tiny_model("sam3"), [draw_image(48, 80)]
    segmenter = make_segmenter(folder, pairs_per_pass=pairs_per_pass, mask_overlap=0.5)
    give_masks(segmenter, monkeypatch, (0.8, 0, 6), (0.7, 1, 7), (0.9, 0, 4))
    assert segmenter.find(images, [NAMES])[0].names == ("dog", "fire hydrant")
    monkeypatch.setattr("c2fmae.labelling.sam3._MAX_FOUND", 2)  # without the hydrant
    segmenter = make_segmenter(folder, pairs_per_pass=pairs_per_pass, mask_overlap=0.5, max_masks=2)
    give_masks(segmenter, monkeypatch, (0.8, 0, 6), (0.7, 1, 7), (0.9, 0, 4))
    assert segmenter.find(images, [NAMES])[0].names == ("dog",)


def test_masks_above_the_lowest_threshold_are_candidates(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    segmenter = make_segmenter(tiny_model("sam3"), thresholds=(0.9, 0.2))
    give_masks(segmenter, monkeypatch, (0.5, 0, 4), (0.95, 5, 8), (0.1, 8, 10))
    (found,) = segmenter.find([draw_image(48, 80)], [NAMES])
    assert found.names == ("fire hydrant", "cat")


def test_a_folder_of_the_video_model_is_the_same_model(tiny_model: TinyModel) -> None:
    images = [draw_image(48, 80)]
    (one,), (other,) = (make_segmenter(tiny_model(name)).find(images, [NAMES]) for name in ("sam3", "sam3-video"))
    assert one.names == other.names
    assert one.logits.equal(other.logits)


@pytest.mark.parametrize("num_letters", [30, 31, 40])
def test_names_that_are_too_long_are_refused(tiny_model: TinyModel, num_letters: int) -> None:
    names = ("cat", "a" * num_letters)
    if num_letters == 30:  # and the tokens for start and end
        make_segmenter(tiny_model("sam3"), names).find([draw_image(48, 80)], [names])
        return
    message = rf"^names: '{names[1]}' has {num_letters + 2} tokens \(expected at most 32\)\. Shorten the name$"
    with pytest.raises(UserError, match=message):
        make_segmenter(tiny_model("sam3"), names)


def label(labeller: Sam3Labeller, *images: Tensor, labels: Sequence[int | None] | None = None) -> list[Any]:
    labels = labels or [0] * len(images)
    inputs = [LabelInput(str(row), image, each) for row, (image, each) in enumerate(zip(images, labels, strict=True))]
    return labeller.label(inputs, 4)


def test_images_without_objects_have_empty_maps_of_their_size(tiny_model: TinyModel, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    context = LabellerContext(names=str(tmp_path / "names.txt"))
    labeller = Sam3Labeller(Sam3Config(model=str(tiny_model("sam3")), thresholds=(1.0,)), context)
    results = label(labeller, draw_image(48, 81), draw_image(1, 1))
    assert [result.maps["instance"].tolist() for result in results] == [[[0] * 21] * 12, [[0]]]
    assert all((result.objects, result.metadata) == ((), {"threshold": 1.0}) for result in results)


def test_own_names_are_those_of_the_label(tiny_model: TinyModel) -> None:
    info = DatasetInfo(labels=(LabelInfo(name="cat"), LabelInfo(name="dog")))
    config = Sam3Config(model=str(tiny_model("sam3")), thresholds=(0.0,), min_area=0, max_pieces=1000)
    labeller = Sam3Labeller(config, LabellerContext(info=info, names="own"))
    assert labeller.maps_know_labels
    results = label(labeller, *[draw_image(48, 80)] * 3, labels=[0, 1, None])
    names = [{each.class_name for each in result.objects} for result in results]
    assert names == [{"cat"}, {"dog"}, set()]
    assert labeller.describe()["prompts"] == 1
    assert not Sam3Labeller(config, LabellerContext(info=info, names="labels")).maps_know_labels


def test_images_without_names_are_not_read(tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter = make_segmenter(tiny_model("sam3"))
    monkeypatch.setattr(segmenter._pretrained.model, "get_vision_features", None)
    (found,) = segmenter.find([draw_image(48, 80)], [()])
    assert isinstance(found, MaskCandidates)
    assert found.names == ()
