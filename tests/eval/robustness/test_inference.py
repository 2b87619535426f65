from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from c2fmae.core.distributed import World
from c2fmae.core.errors import UserError
from c2fmae.core.scene import Scene
from c2fmae.data import CentralView
from c2fmae.eval.engine import BatchingConfig
from c2fmae.eval.evaluation import Precision
from c2fmae.eval.robustness import prediction_store
from c2fmae.eval.robustness.image_classifier import CentralImageView, ImageClassifier, UncroppedImageView
from c2fmae.eval.robustness.inference import CellRequests, PredictionRequest, run_predictions, select_pending
from tests.eval.robustness.colour_classifier import (
    IMAGENET_LABELS,
    ColourNet,
    make_class_image,
    make_colour_classifier,
    make_labelled_scenes,
)
from tests.eval.tiny_backbones import InMemoryScenes

pytestmark = pytest.mark.numeric

ANSWERS = [3, 141, 592, 653, 589, 793, 238]
HANDS = BatchingConfig(batch_size=3, num_workers=0)


def some_scenes(count: int = 7) -> InMemoryScenes:
    return make_labelled_scenes([(n, make_class_image(column)) for n, column in enumerate(ANSWERS[:count])])


def question(
    of: ImageClassifier, folder: Path, columns: Sequence[int] = range(1000), *, cell: str = "cell"
) -> PredictionRequest:
    told = prediction_store.compute_prediction_identity(of.digest, "set", (cell,), columns, {"precision": "fp32"})
    return PredictionRequest(
        of, of.view, tuple(columns), prediction_store.prediction_path(folder / of.source, cell, told), told
    )


def ask(
    rounds: Sequence[CellRequests],
    hands: BatchingConfig = HANDS,
    world: World = World(),  # noqa: B008 - is immutable
    *,
    probabilities: bool = False,
) -> None:
    run_predictions(select_pending(rounds, world), world, hands, precision="fp32", save_probabilities=probabilities)


@pytest.mark.parametrize(
    "hands", [HANDS, BatchingConfig(batch_size=64, num_workers=0), BatchingConfig(batch_size=2, num_workers=2)]
)
def test_answers_are_in_the_order_of_the_photos_for_any_batches_and_workers(
    tmp_path: Path, hands: BatchingConfig
) -> None:
    asked = question(make_colour_classifier(), tmp_path)
    ask([CellRequests(some_scenes(), (asked,))], hands)
    found = prediction_store.read_predictions(asked.path)
    assert found.predicted.tolist() == found.predicted_all.tolist() == ANSWERS
    assert found.labels.tolist() == list(range(7))
    assert found.num_resized == 0
    assert torch.allclose(found.confidence, torch.tensor(1.0))


def test_only_open_classes_are_answered_and_the_confidence_is_among_them(tmp_path: Path) -> None:
    drawn = make_labelled_scenes([(0, make_class_image(5, 7)), (1, make_class_image(7, 5))])
    asked = question(make_colour_classifier(), tmp_path, (7, 9))
    ask([CellRequests(drawn, (asked,))])
    found = prediction_store.read_predictions(asked.path)
    assert found.predicted.tolist() == [7, 7]
    assert found.predicted_all.tolist() == [5, 7]
    expected = torch.tensor([[40.0, 0.0], [60.0, 0.0]]).softmax(dim=1)[:, 0]
    assert torch.allclose(found.confidence, expected)


def test_a_photo_is_decoded_once_for_all_models_and_each_distinct_view_made_once(tmp_path: Path) -> None:
    made: list[str] = []

    @dataclass(frozen=True)
    class Counting:
        name: str
        note: Callable[[str], None]

        @property
        def identity(self) -> dict[str, str]:
            return {"kind": self.name}

        def __call__(self, shown: Tensor) -> Tensor:
            self.note(self.name)
            return shown

    alike, other = Counting("alike", made.append), Counting("other", made.append)
    models = [make_colour_classifier(source=f"model {n}", view=view) for n, view in enumerate((alike, alike, other))]
    drawn = some_scenes()
    again = question(models[0], tmp_path, (3, 141), cell="again")
    ask([CellRequests(drawn, (*(question(each, tmp_path) for each in models), again))])
    assert drawn.num_reads == 7
    assert (made.count("alike"), made.count("other")) == (7, 7)
    assert [_seen(each) for each in models] == [7, 7, 7]  # asked twice, the first looked once


def test_a_model_that_is_asked_about_two_views_answers_by_each(tmp_path: Path) -> None:
    edged = make_class_image(5, size=20)
    edged[:, 5:15, 5:15] = make_class_image(3)
    half, of = CentralImageView(CentralView(size=(10, 10), crop=0.5)), make_colour_classifier()
    whole, centre = question(of, tmp_path), replace(question(of, tmp_path, cell="centre"), view=half)
    ask([CellRequests(make_labelled_scenes([(3, edged)]), (whole, centre))])
    assert [prediction_store.read_predictions(each.path).predicted.tolist() for each in (whole, centre)] == [[5], [3]]


def _seen(of: ImageClassifier) -> int:
    assert isinstance(of.model, ColourNet)
    return of.model.num_images


def test_a_killed_run_goes_on_and_only_who_lacks_a_cell_is_asked(tmp_path: Path) -> None:
    class Dying(InMemoryScenes):
        def __getitem__(self, index: int) -> Scene:
            if index == 5:
                raise KeyboardInterrupt
            return super().__getitem__(index)

    one, two = make_colour_classifier(source="one"), make_colour_classifier(source="two")
    whole, rest = some_scenes(), Dying([some_scenes()[n] for n in range(7)])
    first = tuple(question(each, tmp_path, cell="first") for each in (one, two))
    second = tuple(question(each, tmp_path, cell="second") for each in (one, two))
    with pytest.raises(KeyboardInterrupt):
        ask([CellRequests(whole, first), CellRequests(rest, second)])
    assert all(each.path.exists() for each in first)
    assert not any(each.path.exists() for each in second)
    first[1].path.unlink()
    whole.num_reads, seen = 0, (_seen(one), _seen(two))
    ask([CellRequests(whole, first), CellRequests(some_scenes(), second)])
    assert whole.num_reads == 7
    assert (_seen(one) - seen[0], _seen(two) - seen[1]) == (7, 14)
    ask([CellRequests(whole, first)])
    assert whole.num_reads == 7


def test_processes_take_whole_batches_and_add_up_to_what_one_finds(tmp_path: Path) -> None:
    alone = question(make_colour_classifier(), tmp_path / "alone")
    ask([CellRequests(some_scenes(), (alone,))])
    parts: list[Tensor] = []

    class Alone(World):
        def broadcast_object(self, value: Any) -> Any:  # each rank has the first batch of its own
            return value

    class Second(Alone):
        def all_reduce(self, tensor: Tensor) -> Tensor:
            parts.append(tensor)
            return tensor

    class First(Alone):
        def all_reduce(self, tensor: Tensor) -> Tensor:
            return tensor.add_(parts.pop(0))

    one, two = question(make_colour_classifier(source="one"), tmp_path), make_colour_classifier(source="two")
    run_predictions([CellRequests(some_scenes(), (question(two, tmp_path),))], Second(1, 2), HANDS, precision="fp32")
    assert _seen(two) == 3
    run_predictions([CellRequests(some_scenes(), (one,))], First(0, 2), HANDS, precision="fp32")
    assert not (tmp_path / "two").exists()
    found, expected = prediction_store.read_predictions(one.path), prediction_store.read_predictions(alone.path)
    for name in ("predicted", "predicted_all", "confidence", "labels", "image_digests"):
        assert torch.equal(getattr(found, name), getattr(expected, name))


def test_probabilities_are_kept_where_they_are_asked_for(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    asked = question(make_colour_classifier(IMAGENET_LABELS[:10]), tmp_path, range(10))
    ask([CellRequests(make_labelled_scenes([(0, make_class_image(3, 4))]), (asked,))], probabilities=True)
    kept = load_file(asked.path)["probabilities"]
    assert kept.dtype == torch.float16
    logits = torch.zeros(1, 10)
    logits[0, 3], logits[0, 4] = 60, 40
    assert torch.equal(kept, logits.softmax(dim=1).half())


def test_what_was_answered_is_asked_once_more_only_where_that_is_wanted(tmp_path: Path) -> None:
    rounds = [CellRequests(some_scenes(), (question(make_colour_classifier(), tmp_path),))]
    ask(rounds)
    assert select_pending(rounds, World()) == []
    assert select_pending(rounds, World(), recompute=True) == rounds


def test_in_bf16_logits_are_those_of_rounded_weights_and_photos(tmp_path: Path) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(300, 10)

    class Straight(nn.Module):
        def forward(self, photos: Tensor) -> Tensor:
            return linear(photos.flatten(1).float() / 255)  # type: ignore[no-any-return]

    of, photos = replace(make_colour_classifier(IMAGENET_LABELS[:10]), model=Straight()), some_scenes()
    seen = torch.stack([photos[n].maps["rgb"] for n in range(7)]).flatten(1).float() / 255
    expected = {
        "fp32": linear(seen),
        "bf16": nn.functional.linear(seen.bfloat16(), linear.weight.bfloat16(), linear.bias.bfloat16()).float(),
    }
    asked = replace(question(of, tmp_path, range(10)), view=UncroppedImageView((10, 10)))
    found = dict[str, Tensor]()
    precisions: tuple[Precision, ...] = ("fp32", "bf16")
    for precision in precisions:
        run_predictions([CellRequests(photos, (asked,))], World(), HANDS, precision=precision)
        found[precision] = prediction_store.read_predictions(asked.path).confidence
        assert torch.allclose(found[precision], expected[precision].softmax(dim=1).amax(dim=1), atol=1e-6)
    assert not torch.allclose(found["fp32"], found["bf16"], atol=1e-6)


def test_a_broken_photo_is_an_error_that_names_it(tmp_path: Path) -> None:
    class Broken(InMemoryScenes):
        def __getitem__(self, index: int) -> Scene:
            raise UserError(f"photo {index}: is damaged")

    for workers in (0, 1):
        rounds = [CellRequests(Broken([some_scenes()[0]]), (question(make_colour_classifier(), tmp_path),))]
        with pytest.raises(UserError, match=r"^photo 0: is damaged$"):
            ask(rounds, BatchingConfig(num_workers=workers))


def test_photos_that_are_to_be_taken_as_they_are_are_resized_only_to_another_size(tmp_path: Path) -> None:
    asked = [
        PredictionRequest(
            each, UncroppedImageView(each.image_size), tuple(range(1000)), tmp_path / f"{each.image_size}", ""
        )
        for each in (make_colour_classifier(), make_colour_classifier(size=(20, 20)))
    ]
    ask([CellRequests(some_scenes(), tuple(asked))])
    assert [prediction_store.read_predictions(each.path).num_resized for each in asked] == [0, 7]
    assert prediction_store.read_predictions(asked[1].path).predicted.tolist() == ANSWERS
    noise = torch.randint(256, (3, 10, 10), dtype=torch.uint8)
    assert torch.equal(UncroppedImageView((10, 10))(noise), noise)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    asked = question(make_colour_classifier(), tmp_path)
    ask([CellRequests(some_scenes(), (asked,))])
    asked.path.write_bytes(asked.path.read_bytes()[:50])
    with pytest.raises(UserError) as caught:
        prediction_store.read_predictions(asked.path)
    assert str(caught.value) == f"{asked.path}: is corrupted. Delete it; the next evaluation computes it again"
