"""Robustness of a user's module: the numbers of the command for the same classifier."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data.config import resolve_data_config
from timm.data.transforms_factory import create_transform
from torch import nn
from torchvision import transforms
from torchvision.transforms.functional import InterpolationMode

from c2fmae.core.errors import UserError
from c2fmae.core.labels import LabelInfo
from c2fmae.data.generated import GeneratedScenes
from c2fmae.eval.evaluation import ModelUnderTest
from c2fmae.eval.results import run_evaluation
from c2fmae.eval.robustness.config import EvaluationSetConfig, RobustnessEvaluation
from c2fmae.eval.robustness.image_classifier import ImageClassifier, load_image_classifier
from c2fmae.eval.robustness.own_model import classifier_from_module
from c2fmae.models.classifiers import imagenet_labels
from tests.cli.commands import run_eval

pytestmark = pytest.mark.numeric

WNIDS = [label.wnid or "" for label in imagenet_labels()[:3]]


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    return timm.create_model("test_vit").eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    scenes = GeneratedScenes(size=180, length=9)
    for index in range(9):
        path = folder / WNIDS[index % 3] / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(scenes[index].maps["rgb"].permute(1, 2, 0).numpy()).save(path)
    return folder


def evaluate(classifier: ImageClassifier, folder: Path, out: Path) -> dict[str, Any]:
    """Return the values of all metrics."""
    shifted_set = EvaluationSetConfig(source=str(folder), name="own")
    config = RobustnessEvaluation(sets=(shifted_set,), workers=0)
    under_test = ModelUnderTest.in_memory(classifier.source, out, classifier=classifier)
    (result,) = run_evaluation("robustness", config, [under_test])
    assert (result.result_dir / "results.json").is_file()
    return {metric.label: (metric.value, metric.count) for metric in result.metrics}


def timm_transform(model: Any) -> Any:
    return create_transform(**resolve_data_config(model=model), is_training=False)  # type: ignore[no-untyped-call]


def test_a_module_with_its_transform_has_the_results_of_the_command(model: Any, folder: Path, tmp_path: Path) -> None:
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    source = f"timm:test_vit@{tmp_path / 'weights.safetensors'}"
    config = resolve_data_config(model=model)  # type: ignore[no-untyped-call]
    transform, labels = timm_transform(model), imagenet_labels()
    own = classifier_from_module(model, labels, transform, mean=tuple(config["mean"]), std=tuple(config["std"]))
    stored = load_image_classifier(source)
    image = GeneratedScenes(size=180, length=1)[0].maps["rgb"]
    assert torch.equal(own.view(image), stored.view(image))
    expected = evaluate(stored, folder, tmp_path / "stored")
    assert evaluate(own, folder, tmp_path / "own") == expected
    printed = run_eval("robustness", source, "--custom", f"own={folder}", "--out", str(tmp_path / "command"))
    value, count = expected["own: top-1, own classes"]
    assert count == 9
    assert f"{value:.2f}" in printed


@pytest.mark.parametrize("kind", ["standardised", "bytes", "image"])
def test_a_transform_may_standardise_or_not(model: Any, kind: str) -> None:
    steps: list[Callable[[Any], Any]] = [transforms.Resize(192, InterpolationMode.BICUBIC), transforms.CenterCrop(160)]
    geometry = transforms.Compose(list(steps))
    if kind == "standardised":
        steps += [transforms.ToTensor(), transforms.Normalize((0.5, 0.4, 0.3), (0.2, 0.2, 0.2))]
    elif kind == "bytes":
        steps += [transforms.PILToTensor()]
    transform = transforms.Compose(steps)
    own = classifier_from_module(model, imagenet_labels(), transform, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2))
    assert own.image_size == (160, 160)
    image = GeneratedScenes(size=240, length=1)[0].maps["rgb"]
    expected = transforms.PILToTensor()(geometry(Image.fromarray(image.permute(1, 2, 0).numpy())))
    assert torch.equal(own.view(image), expected)
    standardise = transforms.Normalize((0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
    with torch.no_grad():
        logits = own.model(expected.unsqueeze(0))
        assert torch.allclose(logits, model(standardise(expected / 255).unsqueeze(0)), atol=1e-5, rtol=1e-4)


def test_predictions_are_reused_for_a_transform_whose_text_describes_it(model: Any) -> None:
    crop = transforms.CenterCrop(160)
    labels = imagenet_labels()
    first, second = (classifier_from_module(model, labels, transforms.Compose([crop])) for _ in range(2))
    assert (first.view.identity, first.digest) == (second.view.identity, second.digest)
    unnamed = [classifier_from_module(model, labels, lambda image: crop(image)) for _ in range(2)]
    assert unnamed[0].view.identity != unnamed[1].view.identity


def test_labels_are_names_or_wordnet_ids() -> None:
    class Brightness(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean(dim=(2, 3))

    crop = transforms.CenterCrop(32)
    labels = classifier_from_module(Brightness(), ["cat", "n01440764", None], crop).labels
    assert labels == (LabelInfo(name="cat"), LabelInfo(name="n01440764", wnid="n01440764"), None)
    with pytest.raises(UserError, match=r"^labels: expected one for each logit of the model, got 2 and an output of"):
        classifier_from_module(Brightness(), ["cat", "dog"], crop)


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (
            transforms.Compose([transforms.CenterCrop(32), transforms.ToTensor()]),
            "transform: a black image does not become black again with mean (0.485, 0.456, 0.406) and std (0.229,"
            " 0.224, 0.225). Set mean and std to those of the transform's normalisation, or to 0 and 1 if it has none",
        ),
        (
            lambda image: image.size,
            "transform: expected a tensor [3, height, width] or a Pillow image, got tuple",
        ),
        (
            lambda image: torch.zeros(1, 3, 32, 32),
            "transform: expected a tensor [3, height, width] or a Pillow image, got torch.float32 (1, 3, 32, 32)",
        ),
    ],
)
def test_a_transform_that_does_not_fit_is_refused(model: Any, transform: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        classifier_from_module(model, imagenet_labels(), transform)
    assert str(caught.value) == message
