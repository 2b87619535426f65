"""A timm classifier gives what timm's own transform and the model give; ours, what fine-tuning's test gives."""

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


def photos() -> list[UInt8[Tensor, "3 height width"]]:
    """Photos of several sizes, smooth as photos are."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for height, width in ((200, 240), (170, 161), (160, 160), (90, 300)):
        small = torch.rand(1, 3, 8, 8, generator=generator) * 255
        found.append(torch.nn.functional.interpolate(small, (height, width), mode="bilinear")[0].to(torch.uint8))
    return found


def saved(name: str, folder: Path) -> tuple[torch.nn.Module, str]:
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    folder.mkdir(exist_ok=True)
    save_file(model.state_dict(), folder / "weights.safetensors")
    return model, f"timm:{name}@{folder / 'weights.safetensors'}"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_are_those_of_timms_own_transform_and_model(name: str, tmp_path: Path) -> None:
    model, source = saved(name, tmp_path)
    entrant = load_image_classifier(source)
    transform = create_transform(**resolve_data_config(model=model), is_training=False)  # type: ignore[no-untyped-call]
    shown = torch.stack([transform(Image.fromarray(each.permute(1, 2, 0).numpy())) for each in photos()])
    with torch.no_grad():
        expected = model(shown)
        found = entrant.model(torch.stack([entrant.view(each) for each in photos()]))
    assert torch.allclose(found, expected, atol=1e-5, rtol=1e-4)
    assert entrant.labels == imagenet_labels()
    assert entrant.image_size == (160, 160)


def test_a_folder_as_timm_saves_it_tells_its_own_classes(tmp_path: Path) -> None:
    names = ["n01440764", "n01443537", "cat"]
    model = timm.create_model("test_vit", num_classes=3).eval()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    told = {
        "architecture": "test_vit",
        "num_classes": 3,
        "label_names": names,
        "label_descriptions": {"n01440764": "tench"},
        "pretrained_cfg": {"input_size": [3, 160, 160], "crop_pct": 0.5, "num_classes": 3, "classifier": "head"},
    }
    (tmp_path / "config.json").write_text(json.dumps(told))
    entrant = load_image_classifier(str(tmp_path))
    assert entrant.labels == (
        LabelInfo(name="tench", wnid="n01440764"),
        LabelInfo(name="n01443537", wnid="n01443537"),
        LabelInfo(name="cat"),
    )
    assert isinstance(entrant.view, TimmImageView)
    assert dict(entrant.view.data_config)["crop_pct"] == 0.5
    shown = entrant.view(photos()[0])[None]
    with torch.no_grad():
        head = model(torch.zeros(1, 3, 160, 160)).shape
        assert entrant.model(shown).shape == head == (1, 3)
    del told["label_names"]
    (tmp_path / "config.json").write_text(json.dumps(told))
    with pytest.raises(UserError) as caught:
        load_image_classifier(str(tmp_path))
    assert str(caught.value) == (
        f"{tmp_path}: does not say which its 3 classes are. Give a folder as timm saves it, whose config.json has "
        "label_names: WordNet ids, or names, by class"
    )


def test_weights_views_and_classes_tell_entrants_apart(tmp_path: Path) -> None:
    model, source = saved("test_vit", tmp_path / "one")
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
def test_what_no_tensor_tells_of_a_model_tells_entrants_apart(
    one: dict[str, object], other: dict[str, object], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=2)
    torch.nn.init.normal_(model.get_parameter("head.weight"))  # of zeros all logits would be alike
    told = {"architecture": "test_vit", "num_classes": 2, "label_names": ["cat", "dog"], "pretrained_cfg": {}}
    told["pretrained_cfg"] = {"input_size": [3, 160, 160], "num_classes": 2, "classifier": "head"}
    entrants = []
    for name, args in (("one", one), ("other", other), ("again", one)):
        (tmp_path / name).mkdir()
        save_file(model.state_dict(), tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text(json.dumps(told | {"model_args": args}))
        entrants.append(load_image_classifier(str(tmp_path / name)))
    shown = entrants[0].view(photos()[0])[None]
    with torch.no_grad():
        logits = [each.model(shown) for each in entrants]
    assert [torch.equal(logits[0], each) for each in logits] == [True, False, True]
    assert [entrants[0].digest == each.digest for each in entrants] == [True, False, True]


def test_a_file_that_does_not_fit_is_refused_with_what_timm_says(tmp_path: Path) -> None:
    _, source = saved("test_convnext", tmp_path)
    with pytest.raises(UserError, match=r"^timm:test_vit@.*: cannot be made by timm: .*state_dict"):
        load_image_classifier(source.replace("test_convnext", "test_vit"))


def test_one_of_ours_is_shown_the_centre_and_standardises_by_itself() -> None:
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
    entrant = wrap_classifier("ours", classifier)
    photo = photos()[0]
    view = CentralView(size=(16, 16), crop=0.5)
    expected = view(Scene("", {"rgb": photo})).maps["rgb"]
    assert torch.equal(entrant.view(photo), expected)
    with torch.no_grad():
        logits = classifier({"rgb": classifier.backbone.standardise(expected[None])})
        assert torch.allclose(entrant.model(expected[None]), logits, atol=1e-6)
    assert (entrant.labels, entrant.image_size) == (tuple(labels), (16, 16))
    assert str(entrant.view) == "the central 50 % of the photo, brought to 16×16 bicubically"
