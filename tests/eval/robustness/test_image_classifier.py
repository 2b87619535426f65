"""Logits of timm's classifiers equal timm's own, and those of fine-tuned classifiers equal those of fine-tuning."""

import json
from pathlib import Path

import pytest
import timm
import torch
from jaxtyping import UInt8
from PIL import Image
from safetensors.torch import save_file
from timm.data.config import resolve_data_config
from timm.data.transforms_factory import create_transform
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.labels import LabelInfo
from c2fmae.core.scene import Scene
from c2fmae.data import CentralView
from c2fmae.eval.robustness.image_classifier import TimmImageView, load_image_classifier, wrap_classifier
from c2fmae.models.classifiers import classifier_from_backbone, imagenet_labels
from tests.eval.tiny_backbones import tiny_backbone

pytestmark = pytest.mark.numeric

ARCHITECTURES = ("test_vit", "test_convnext")


def draw_images() -> list[UInt8[Tensor, "3 height width"]]:
    """Return smooth images of several sizes."""
    generator = torch.Generator().manual_seed(0)
    images = []
    for height, width in ((200, 240), (170, 161), (160, 160), (90, 300)):
        small = torch.rand(1, 3, 8, 8, generator=generator) * 255
        images.append(torch.nn.functional.interpolate(small, (height, width), mode="bilinear")[0].to(torch.uint8))
    return images


def save_timm_model(name: str, folder: Path) -> tuple[torch.nn.Module, str]:
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    folder.mkdir(exist_ok=True)
    save_file(model.state_dict(), folder / "weights.safetensors")
    return model, f"timm:{name}@{folder / 'weights.safetensors'}"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_equal_those_of_timms_own_transform_and_model(name: str, tmp_path: Path) -> None:
    model, source = save_timm_model(name, tmp_path)
    classifier = load_image_classifier(source)
    transform = create_transform(**resolve_data_config(model=model), is_training=False)  # type: ignore[no-untyped-call]
    inputs = torch.stack([transform(Image.fromarray(image.permute(1, 2, 0).numpy())) for image in draw_images()])
    with torch.no_grad():
        expected = model(inputs)
        logits = classifier.model(torch.stack([classifier.view(image) for image in draw_images()]))
    assert torch.allclose(logits, expected, atol=1e-5, rtol=1e-4)
    assert classifier.labels == imagenet_labels()
    assert classifier.image_size == (160, 160)


def test_folders_saved_by_timm_define_classes(tmp_path: Path) -> None:
    names = ["n01440764", "n01443537", "cat"]
    model = timm.create_model("test_vit", num_classes=3).eval()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    config = {
        "architecture": "test_vit",
        "num_classes": 3,
        "label_names": names,
        "label_descriptions": {"n01440764": "tench"},
        "pretrained_cfg": {"input_size": [3, 160, 160], "crop_pct": 0.5, "num_classes": 3, "classifier": "head"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    classifier = load_image_classifier(str(tmp_path))
    assert classifier.labels == (
        LabelInfo(name="tench", wnid="n01440764"),
        LabelInfo(name="n01443537", wnid="n01443537"),
        LabelInfo(name="cat"),
    )
    assert isinstance(classifier.view, TimmImageView)
    assert dict(classifier.view.data_config)["crop_pct"] == 0.5
    inputs = classifier.view(draw_images()[0])[None]
    with torch.no_grad():
        head = model(torch.zeros(1, 3, 160, 160)).shape
        assert classifier.model(inputs).shape == head == (1, 3)
    del config["label_names"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError) as caught:
        load_image_classifier(str(tmp_path))
    assert str(caught.value) == (
        f"{tmp_path}: the names of its 3 classes are unknown. Use a folder saved by timm, and list WordNet ids or "
        "names of the classes as label_names in its config.json"
    )


def test_digests_depend_on_weights(tmp_path: Path) -> None:
    model, source = save_timm_model("test_vit", tmp_path / "one")
    same = load_image_classifier(source)
    assert load_image_classifier(source).digest == same.digest
    assert load_image_classifier(source).view == same.view
    with torch.no_grad():
        next(model.parameters()).add_(1)
    save_file(model.state_dict(), tmp_path / "other.safetensors")
    assert load_image_classifier(f"timm:test_vit@{tmp_path / 'other.safetensors'}").digest != same.digest


@pytest.mark.parametrize(
    ("one", "other"),
    [({}, {"global_pool": "avg", "fc_norm": False, "class_token": True}), ({}, {"num_heads": 4})],
    ids=["pooling", "heads"],
)
def test_digests_depend_on_architecture_that_tensors_do_not_show(
    one: dict[str, object], other: dict[str, object], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=2)
    torch.nn.init.normal_(model.get_parameter("head.weight"))  # with zeros, all logits would be equal
    config = {"architecture": "test_vit", "num_classes": 2, "label_names": ["cat", "dog"], "pretrained_cfg": {}}
    config["pretrained_cfg"] = {"input_size": [3, 160, 160], "num_classes": 2, "classifier": "head"}
    classifiers = []
    for name, args in (("one", one), ("other", other), ("again", one)):
        (tmp_path / name).mkdir()
        save_file(model.state_dict(), tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text(json.dumps(config | {"model_args": args}))
        classifiers.append(load_image_classifier(str(tmp_path / name)))
    inputs = classifiers[0].view(draw_images()[0])[None]
    with torch.no_grad():
        logits = [classifier.model(inputs) for classifier in classifiers]
    assert [torch.equal(logits[0], other_logits) for other_logits in logits] == [True, False, True]
    assert [classifiers[0].digest == classifier.digest for classifier in classifiers] == [True, False, True]


def test_files_of_another_architecture_are_rejected_with_the_reason_of_timm(tmp_path: Path) -> None:
    _, source = save_timm_model("test_convnext", tmp_path)
    with pytest.raises(
        UserError,
        match=r"^timm:test_vit@.*: timm cannot load the model \(.*state_dict.*\)\. Check the name and the file$",
    ):
        load_image_classifier(source.replace("test_convnext", "test_vit"))


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("resnet18", "Use timm:resnet18@{file}, which has the same tensors"),
        ("convnext_atto", "Use timm:convnext_atto@{file}, which has the same tensors"),
        ("ghostnet_050", "If timm has the model, use timm:NAME@{file}"),
    ],
)
def test_the_timm_name_of_a_file_of_another_architecture_is_suggested(
    name: str, suggestion: str, tmp_path: Path
) -> None:
    file = tmp_path / "model.pth"
    torch.save(timm.create_model(name).state_dict(), file)
    with pytest.raises(UserError) as caught:
        load_image_classifier(str(file))
    assert str(caught.value).endswith(suggestion.format(file=file))
    if "NAME" not in suggestion:
        assert load_image_classifier(f"timm:{name}@{file}").image_size == (224, 224)


def test_files_of_plain_vits_with_other_problems_have_no_suggestion(tmp_path: Path) -> None:
    file = tmp_path / "model.pth"
    torch.save(timm.create_model("test_vit", num_classes=0).state_dict(), file)
    with pytest.raises(UserError) as caught:
        load_image_classifier(str(file))
    assert "timm:" not in str(caught.value)


def test_fine_tuned_classifiers_crop_and_standardise_images() -> None:
    labels = [LabelInfo(name="cat"), LabelInfo(name="dog")]
    classifier = classifier_from_backbone(
        tiny_backbone(),
        labels,
        pool="mean",
        granularities=("rgb",),
        drop_path=0.0,
        crop=0.5,
        generator=torch.Generator().manual_seed(0),
    )
    torch.nn.init.normal_(classifier.head.weight)
    image_classifier = wrap_classifier("ours", classifier)
    image = draw_images()[0]
    view = CentralView(size=(16, 16), crop=0.5)
    expected = view(Scene("", {"rgb": image})).maps["rgb"]
    assert torch.equal(image_classifier.view(image), expected)
    with torch.no_grad():
        logits = classifier({"rgb": classifier.backbone.standardise(expected[None])})
        assert torch.allclose(image_classifier.model(expected[None]), logits, atol=1e-6)
    assert (image_classifier.labels, image_classifier.image_size) == (tuple(labels), (16, 16))
    assert str(image_classifier.view) == "the central 50 % of the image, resized to 16×16 bicubically"
