from collections.abc import Sequence
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

COLUMNS = [3, 141, 592, 653, 589, 793, 238]
BATCHING = BatchingConfig(batch_size=3, num_workers=0)


def make_scenes(count: int = 7) -> InMemoryScenes:
    return make_labelled_scenes([(n, make_class_image(column)) for n, column in enumerate(COLUMNS[:count])])


def make_request(
    classifier: ImageClassifier, folder: Path, columns: Sequence[int] = range(1000), *, cell: str = "cell"
) -> PredictionRequest:
    settings = {"precision": "fp32"}
    identity = prediction_store.compute_prediction_identity(classifier.digest, "set", (cell,), columns, settings)
    path = prediction_store.prediction_path(folder / classifier.source, cell, identity)
    return PredictionRequest(classifier, classifier.view, tuple(columns), path, identity)


def run_pending(
    cell_requests: Sequence[CellRequests],
    batching: BatchingConfig = BATCHING,
    world: World = World(),  # noqa: B008 - is immutable
    *,
    probabilities: bool = False,
) -> None:
    run_predictions(
        select_pending(cell_requests, world), world, batching, precision="fp32", save_probabilities=probabilities
    )


@pytest.mark.parametrize(
    "batching", [BATCHING, BatchingConfig(batch_size=64, num_workers=0), BatchingConfig(batch_size=2, num_workers=2)]
)
def test_predictions_are_in_the_order_of_images_for_all_batch_sizes_and_workers(
    tmp_path: Path, batching: BatchingConfig
) -> None:
    request = make_request(make_colour_classifier(), tmp_path)
    run_pending([CellRequests(make_scenes(), (request,))], batching)
    stored = prediction_store.read_predictions(request.path)
    assert stored.predicted.tolist() == stored.predicted_all.tolist() == COLUMNS
    assert stored.labels.tolist() == list(range(7))
    assert stored.num_resized == 0
    assert torch.allclose(stored.confidence, torch.tensor(1.0))


def test_predictions_and_confidence_are_among_open_classes(tmp_path: Path) -> None:
    scenes = make_labelled_scenes([(0, make_class_image(5, 7)), (1, make_class_image(7, 5))])
    request = make_request(make_colour_classifier(), tmp_path, (7, 9))
    run_pending([CellRequests(scenes, (request,))])
    stored = prediction_store.read_predictions(request.path)
    assert stored.predicted.tolist() == [7, 7]
    assert stored.predicted_all.tolist() == [5, 7]
    expected = torch.tensor([[40.0, 0.0], [60.0, 0.0]]).softmax(dim=1)[:, 0]
    assert torch.allclose(stored.confidence, expected)


def test_images_are_decoded_once_and_equal_views_computed_once(tmp_path: Path) -> None:
    calls: list[str] = []

    @dataclass(frozen=True)
    class RecordingView:
        name: str

        @property
        def identity(self) -> dict[str, str]:
            return {"kind": self.name}

        def __call__(self, image: Tensor) -> Tensor:
            calls.append(self.name)
            return image

    views = (RecordingView("shared"), RecordingView("shared"), RecordingView("other"))
    models = [make_colour_classifier(source=f"model {n}", view=view) for n, view in enumerate(views)]
    scenes = make_scenes()
    second_request = make_request(models[0], tmp_path, (3, 141), cell="again")
    run_pending([CellRequests(scenes, (*(make_request(model, tmp_path) for model in models), second_request))])
    assert scenes.num_reads == 7
    assert (calls.count("shared"), calls.count("other")) == (7, 7)
    assert [_num_predicted(model) for model in models] == [7, 7, 7]  # two requests of model 0 share its logits


def test_requests_with_different_views_have_their_own_predictions(tmp_path: Path) -> None:
    image = make_class_image(5, size=20)
    image[:, 5:15, 5:15] = make_class_image(3)
    central_view, model = CentralImageView(CentralView(size=(10, 10), crop=0.5)), make_colour_classifier()
    full = make_request(model, tmp_path)
    central = replace(make_request(model, tmp_path, cell="centre"), view=central_view)
    run_pending([CellRequests(make_labelled_scenes([(3, image)]), (full, central))])
    predicted = [prediction_store.read_predictions(request.path).predicted.tolist() for request in (full, central)]
    assert predicted == [[5], [3]]


def _num_predicted(classifier: ImageClassifier) -> int:
    assert isinstance(classifier.model, ColourNet)
    return classifier.model.num_images


def test_interrupted_runs_resume_with_the_missing_predictions(tmp_path: Path) -> None:
    class InterruptedScenes(InMemoryScenes):
        def __getitem__(self, index: int) -> Scene:
            if index == 5:
                raise KeyboardInterrupt
            return super().__getitem__(index)

    one, two = make_colour_classifier(source="one"), make_colour_classifier(source="two")
    scenes, interrupted_scenes = make_scenes(), InterruptedScenes([make_scenes()[n] for n in range(7)])
    first = tuple(make_request(model, tmp_path, cell="first") for model in (one, two))
    second = tuple(make_request(model, tmp_path, cell="second") for model in (one, two))
    with pytest.raises(KeyboardInterrupt):
        run_pending([CellRequests(scenes, first), CellRequests(interrupted_scenes, second)])
    assert all(request.path.exists() for request in first)
    assert not any(request.path.exists() for request in second)
    first[1].path.unlink()
    scenes.num_reads, before = 0, (_num_predicted(one), _num_predicted(two))
    run_pending([CellRequests(scenes, first), CellRequests(make_scenes(), second)])
    assert scenes.num_reads == 7
    assert (_num_predicted(one) - before[0], _num_predicted(two) - before[1]) == (7, 14)
    run_pending([CellRequests(scenes, first)])
    assert scenes.num_reads == 7


def test_ranks_predict_disjoint_batches_that_add_up_to_all(tmp_path: Path) -> None:
    alone = make_request(make_colour_classifier(), tmp_path / "alone")
    run_pending([CellRequests(make_scenes(), (alone,))])
    reduced: list[Tensor] = []

    class SimulatedWorld(World):
        def broadcast_object(self, value: Any) -> Any:  # the first batch of each rank is its own
            return value

    class SecondRank(SimulatedWorld):
        def all_reduce(self, tensor: Tensor) -> Tensor:
            reduced.append(tensor)
            return tensor

    class FirstRank(SimulatedWorld):
        def all_reduce(self, tensor: Tensor) -> Tensor:
            return tensor.add_(reduced.pop(0))

    one, two = make_request(make_colour_classifier(source="one"), tmp_path), make_colour_classifier(source="two")
    run_predictions(
        [CellRequests(make_scenes(), (make_request(two, tmp_path),))], SecondRank(1, 2), BATCHING, precision="fp32"
    )
    assert _num_predicted(two) == 3
    run_predictions([CellRequests(make_scenes(), (one,))], FirstRank(0, 2), BATCHING, precision="fp32")
    assert not (tmp_path / "two").exists()
    stored, expected = prediction_store.read_predictions(one.path), prediction_store.read_predictions(alone.path)
    for name in ("predicted", "predicted_all", "confidence", "labels", "image_digests"):
        assert torch.equal(getattr(stored, name), getattr(expected, name))


def test_probabilities_are_stored_if_requested(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    request = make_request(make_colour_classifier(IMAGENET_LABELS[:10]), tmp_path, range(10))
    run_pending([CellRequests(make_labelled_scenes([(0, make_class_image(3, 4))]), (request,))], probabilities=True)
    probabilities = load_file(request.path)["probabilities"]
    assert probabilities.dtype == torch.float16
    logits = torch.zeros(1, 10)
    logits[0, 3], logits[0, 4] = 60, 40
    assert torch.equal(probabilities, logits.softmax(dim=1).half())


def test_stored_predictions_are_pending_only_with_recompute(tmp_path: Path) -> None:
    cell_requests = [CellRequests(make_scenes(), (make_request(make_colour_classifier(), tmp_path),))]
    run_pending(cell_requests)
    assert select_pending(cell_requests, World()) == []
    assert select_pending(cell_requests, World(), recompute=True) == cell_requests


def test_bf16_rounds_weights_and_images(tmp_path: Path) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(300, 10)

    class LinearNet(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return linear(images.flatten(1).float() / 255)  # type: ignore[no-any-return]

    classifier, scenes = replace(make_colour_classifier(IMAGENET_LABELS[:10]), model=LinearNet()), make_scenes()
    pixels = torch.stack([scenes[n].maps["rgb"] for n in range(7)]).flatten(1).float() / 255
    expected = {
        "fp32": linear(pixels),
        "bf16": nn.functional.linear(pixels.bfloat16(), linear.weight.bfloat16(), linear.bias.bfloat16()).float(),
    }
    request = replace(make_request(classifier, tmp_path, range(10)), view=UncroppedImageView((10, 10)))
    confidences = dict[str, Tensor]()
    precisions: tuple[Precision, ...] = ("fp32", "bf16")
    for precision in precisions:
        run_predictions([CellRequests(scenes, (request,))], World(), BATCHING, precision=precision)
        confidences[precision] = prediction_store.read_predictions(request.path).confidence
        assert torch.allclose(confidences[precision], expected[precision].softmax(dim=1).amax(dim=1), atol=1e-6)
    assert not torch.allclose(confidences["fp32"], confidences["bf16"], atol=1e-6)


def test_errors_of_corrupted_images_are_raised(tmp_path: Path) -> None:
    class CorruptedScenes(InMemoryScenes):
        def __getitem__(self, index: int) -> Scene:
            raise UserError(f"image {index}: is corrupted")

    for workers in (0, 1):
        cell_requests = [
            CellRequests(CorruptedScenes([make_scenes()[0]]), (make_request(make_colour_classifier(), tmp_path),))
        ]
        with pytest.raises(UserError, match=r"^image 0: is corrupted$"):
            run_pending(cell_requests, BatchingConfig(num_workers=workers))


def test_uncropped_images_are_resized_only_to_another_size(tmp_path: Path) -> None:
    requests = [
        PredictionRequest(
            model, UncroppedImageView(model.image_size), tuple(range(1000)), tmp_path / f"{model.image_size}", ""
        )
        for model in (make_colour_classifier(), make_colour_classifier(size=(20, 20)))
    ]
    run_pending([CellRequests(make_scenes(), tuple(requests))])
    stored = [prediction_store.read_predictions(request.path) for request in requests]
    assert [predictions.num_resized for predictions in stored] == [0, 7]
    assert stored[1].predicted.tolist() == COLUMNS
    noise = torch.randint(256, (3, 10, 10), dtype=torch.uint8)
    assert torch.equal(UncroppedImageView((10, 10))(noise), noise)


def test_corrupted_prediction_files_are_named_in_the_error(tmp_path: Path) -> None:
    request = make_request(make_colour_classifier(), tmp_path)
    run_pending([CellRequests(make_scenes(), (request,))])
    request.path.write_bytes(request.path.read_bytes()[:50])
    with pytest.raises(UserError) as caught:
        prediction_store.read_predictions(request.path)
    assert str(caught.value) == f"{request.path}: is corrupted. Delete it; the next evaluation computes it again"
