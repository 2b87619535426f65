"""Classifiers of all sources: the logits of the original library, and the names of their classes."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import save_for_hf
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.labels import LabelInfo
from c2fmae.models.backbones import load_backbone
from c2fmae.models.classifiers import Classifier, imagenet_labels, load_classifier
from tests.exports.noise_sources import make_noise_backbone
from tests.exports.noise_sources import write_noise_run as pretrained
from tests.methods.tiny_methods import perturb_parameters
from tests.models.backbones.official_mae import linear, mae_tokens, mae_weights, norm
from tests.models.backbones.test_load_hugging_face import vit as transformers_vit
from tests.models.classifiers.noise_classifiers import make_noise_classifier, write_finetuned_run

pytestmark = pytest.mark.numeric


def images(height: int = 64, width: int = 64) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def same(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def logits(classifier: Classifier, seen: Tensor) -> Tensor:
    with torch.no_grad():
        return classifier(seen)  # type: ignore[no-any-return]


def refused(source: str | Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_classifier(source, **options)
    return str(caught.value).removeprefix(f"{source}: ")


TIMMS: dict[str, dict[str, Any]] = {
    "class token": {},
    "mean, norm before": {"global_pool": "avg", "fc_norm": False},
    "mean, norm after": {"global_pool": "avg", "fc_norm": True},
    "class token, norm after": {"fc_norm": True},
}


def timms(name: str = "test_vit", classes: int = 7, **options: Any) -> VisionTransformer:
    vit = timm.create_model(name, img_size=64, num_classes=classes, **options).eval()
    assert isinstance(vit, VisionTransformer)
    perturb_parameters(vit)
    return vit


@pytest.mark.parametrize("kind", TIMMS)
def test_a_directory_saved_by_timm_gives_the_logits_of_timm(kind: str, tmp_path: Path) -> None:
    vit = timms(**TIMMS[kind])
    save_for_hf(vit, str(tmp_path), model_args={"img_size": 64, **TIMMS[kind]})
    classifier = load_classifier(tmp_path)
    with torch.no_grad():
        same(logits(classifier, images()), vit(images()))
    assert classifier.num_labels == 7
    assert not classifier.training
    assert classifier.load_report.notes == ["the names of its 7 classes are not stored"]
    assert classifier.spec.labels == (None,) * 7
    assert classifier.spec.crop == 0.95  # as timm's test_vit has it
    assert classifier.load_report.unused == {}
    assert {"head.weight", "head.bias"} < set(classifier.load_report.loaded)
    assert load_backbone(tmp_path).load_report.unused == {"head": 2}


@pytest.mark.parametrize("kind", ["class token", "mean, norm after"])
def test_a_file_with_a_timm_name_gives_the_logits_of_timm(kind: str, tmp_path: Path) -> None:
    vit = timm.create_model("test_vit", num_classes=1000, **TIMMS[kind]).eval()
    perturb_parameters(vit)
    save_file(vit.state_dict(), tmp_path / "vit.safetensors")
    classifier = load_classifier(f"timm:test_vit@{tmp_path / 'vit.safetensors'}")
    with torch.no_grad():
        same(logits(classifier, images(160, 160)), vit(images(160, 160)))
    assert classifier.spec.labels == imagenet_labels()
    assert classifier.load_report.notes == [
        "the names of its 1,000 classes are not stored: those of ImageNet are assumed"
    ]


def test_weights_downloaded_by_timm_keep_their_head(monkeypatch: pytest.MonkeyPatch) -> None:
    vit, create = timm.create_model("test_vit", num_classes=7).eval(), timm.create_model
    perturb_parameters(vit)
    monkeypatch.setattr(
        timm,
        "create_model",
        lambda *args, **options: vit if options == {"pretrained": True} else create(*args, **options),
    )
    with torch.no_grad():
        same(logits(load_classifier("timm:test_vit"), images(160, 160)), vit(images(160, 160)))


def test_timm_label_names_that_are_wordnet_ids_are_read_as_such(tmp_path: Path) -> None:
    config = {"label_names": ["n01440764", "cat", "n01443537"], "label_descriptions": {"n01440764": "tench"}}
    save_for_hf(timms(classes=3), str(tmp_path), model_config=dict(config), model_args={"img_size": 64})
    expected = (
        LabelInfo(name="tench", wnid="n01440764"),
        LabelInfo(name="cat"),
        LabelInfo(name="n01443537", wnid="n01443537"),
    )
    assert load_classifier(tmp_path).spec.labels == expected
    config = json.loads((tmp_path / "config.json").read_text())
    config["label_names"] = {"0": "n01440764", "2": "cat"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load_classifier(tmp_path).spec.labels == (expected[0], None, expected[1])
    config["label_names"] = ["cat", "dog"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert refused(tmp_path) == "has 2 labels, but its head has 3 logits. Use the config of these weights"


def test_a_head_on_an_unsupported_pooling_is_rejected(tmp_path: Path) -> None:
    vit = timm.create_model("test_vit3", num_classes=7)
    save_file(vit.state_dict(), tmp_path / "vit.safetensors")
    assert refused(f"timm:test_vit3@{tmp_path / 'vit.safetensors'}") == (
        "the head of test_vit3 needs another pooling than the class token or the mean of the patch tokens, "
        "which is not supported. Use another classifier"
    )


def mae_file(tmp_path: Path, classes: int, *, fine_tuned: bool) -> tuple[Path, dict[str, Tensor]]:
    weights = mae_weights(decoder=None, is_finetuned=fine_tuned)
    generator = torch.Generator().manual_seed(5)
    weights["head.weight"] = torch.randn(classes, 128, generator=generator) * 0.1
    weights["head.bias"] = torch.randn(classes, generator=generator)
    torch.save({"model": weights}, tmp_path / "mae.pth")
    return tmp_path / "mae.pth", weights


@pytest.mark.parametrize("is_pooled", [True, False])
def test_a_finetuned_file_of_mae_gives_the_logits_of_the_original(is_pooled: bool, tmp_path: Path) -> None:
    file, weights = mae_file(tmp_path, 1000, fine_tuned=is_pooled)
    classifier = load_classifier(file)
    tokens = mae_tokens(weights, images(), heads=2)
    vector = norm(weights, "fc_norm", tokens[:, 1:].mean(dim=1)) if is_pooled else tokens[:, 0]
    same(logits(classifier, images()), linear(weights, "head", vector))
    assert classifier.spec.labels == imagenet_labels()
    assert (
        "the names of its 1,000 classes are not stored: those of ImageNet are assumed" in classifier.load_report.notes
    )
    assert classifier.spec.crop == 0.875
    assert load_backbone(file).load_report.unused == {"head": 2}


def test_attention_heads_and_image_size_can_be_set(tmp_path: Path) -> None:
    file, weights = mae_file(tmp_path, 10, fine_tuned=True)
    vector = norm(weights, "fc_norm", mae_tokens(weights, images(), heads=8)[:, 1:].mean(dim=1))
    same(logits(load_classifier(file, num_heads=8), images()), linear(weights, "head", vector))
    assert load_classifier(file, image_size=(96, 32)).spec.backbone.image_size == (96, 32)


@pytest.mark.parametrize("began_with", [None, "mean"])
def test_a_model_of_transformers_gives_its_logits(began_with: str | None, tmp_path: Path) -> None:
    model = transformers_vit("ViTForImageClassification", id2label={0: "cat", 1: "LABEL_1", 2: "dog"})
    model.config.c2fmae_pool = began_with  # as in an export that was fine-tuned with transformers
    model.save_pretrained(tmp_path)
    classifier = load_classifier(tmp_path)
    with torch.no_grad():
        same(logits(classifier, images()), model(images()).logits)
    assert classifier.spec.labels == (LabelInfo(name="cat"), None, LabelInfo(name="dog"))
    assert classifier.spec.crop == 1  # its image processor does not crop
    assert load_backbone(tmp_path).load_report.unused == {"head": 2}


def test_imagenet_classes_are_recognised_by_their_names(tmp_path: Path) -> None:
    names = {index: label.name for index, label in enumerate(imagenet_labels())}
    names[7] = "rooster"
    transformers_vit("ViTForImageClassification", id2label=names).save_pretrained(tmp_path)
    classifier = load_classifier(tmp_path)
    assert classifier.spec.labels == imagenet_labels()
    assert "its class names are those of ImageNet: the classes of ImageNet are assumed" in classifier.load_report.notes
    in_another_order = {index: names[999 - index] for index in names}
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "id2label": in_another_order}))
    assert load_classifier(tmp_path).spec.labels[0] == LabelInfo(name=names[999])


@pytest.mark.parametrize("id2label", [["cat"], {"0": "cat", "2": "dog"}, {"a": "cat"}])
def test_a_label_list_that_does_not_cover_all_logits_is_rejected(id2label: Any, tmp_path: Path) -> None:
    transformers_vit("ViTForImageClassification", num_labels=3).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "id2label": id2label}))
    with pytest.raises(UserError) as caught:
        load_classifier(tmp_path)
    message = "id2label: expected a name for each of 0, 1, 2, …. Fix it"
    assert str(caught.value) == f"{tmp_path / 'config.json'}: {message}"


def test_a_finetuned_run_gives_the_trained_classifier(tmp_path: Path) -> None:
    trained = make_noise_classifier(make_noise_backbone(keep_positions=True, size=(32, 48)))
    run = write_finetuned_run(tmp_path / "run", trained)
    again = load_classifier(run)
    assert again.spec == trained.spec
    assert again.load_report.notes[0] == "step 20"
    assert not again.load_report.unused
    assert set(again.load_report.loaded) == {name.removeprefix("backbone.") for name in trained.state_dict()}
    assert torch.equal(logits(again, images(32, 48)), logits(trained, images(32, 48)))
    assert torch.equal(
        logits(load_classifier(run / "checkpoints" / "step-00000020"), images()), logits(again, images())
    )


def test_the_best_checkpoint_and_averaged_weights_can_be_loaded(tmp_path: Path) -> None:
    run = write_finetuned_run(tmp_path / "run", make_noise_classifier())
    last, best = load_classifier(run), load_classifier(run / "best")
    assert best.load_report.notes[0] == "step 10"
    assert torch.equal(best.head.bias, last.head.bias + 1)
    averaged = load_classifier(run, use_ema=True)
    assert torch.equal(averaged.head.bias, last.head.bias + 0.125)
    for name, each in averaged.backbone.named_parameters():
        assert torch.equal(each, last.backbone.get_parameter(name) + 0.125)
    assert load_classifier(run / "checkpoints", step=20).load_report.notes[0] == "step 20"


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_a_finetuned_run_can_be_loaded_as_a_backbone(pool: Any, tmp_path: Path) -> None:
    trained = make_noise_classifier(pool=pool)
    backbone = load_backbone(write_finetuned_run(tmp_path / "run", trained))
    assert backbone.spec == trained.spec.backbone
    assert backbone.load_report.unused == {"head": 2}
    assert not backbone.load_report.missing
    with torch.no_grad():
        assert torch.equal(backbone.tokens(images()), trained.backbone.tokens(images()))
        assert torch.equal(backbone.pooled(images()), trained.backbone.pooled(images()))


def test_a_source_without_a_head_is_rejected(tmp_path: Path) -> None:
    run = pretrained(tmp_path / "run")
    assert refused(run) == (
        "is a ViT without a classification head (test_vit of semantic, instance, rgb). "
        f"Fine-tune it first: c2fmae eval finetune {run}"
    )
    torch.save({"model": mae_weights()}, tmp_path / "mae.pth")
    assert refused(tmp_path / "mae.pth").startswith(
        "is a ViT without a classification head (vit_base_patch16_224 of rgb). "
    )
    assert refused(tmp_path / "nowhere").startswith("does not exist. Use a run directory")


def test_missing_and_unexpected_tensors_of_a_head_are_an_error_unless_allowed(tmp_path: Path) -> None:
    file, weights = mae_file(tmp_path, 10, fine_tuned=True)
    del weights["head.bias"]
    weights["head.scale"] = torch.ones(1)
    torch.save({"model": weights}, file)
    assert refused(file).startswith("1 missing tensor (head.bias) and 1 unexpected tensor (head.scale). ")
    classifier = load_classifier(file, allow_missing=["head.*"])
    assert classifier.head.bias.tolist() == [0] * 10
    assert (classifier.load_report.missing, classifier.load_report.unexpected) == (["head.bias"], ["head.scale"])
    weights["head.weight"] = torch.ones(10, 128, 1)
    torch.save({"model": weights}, file)
    assert refused(file) == (
        "head.weight: expected a floating-point matrix, got torch.float32 (10, 128, 1). Use another classifier"
    )


def test_imagenet_has_a_thousand_classes_in_the_order_of_their_ids() -> None:
    wnids = [label.wnid or "" for label in imagenet_labels()]
    assert len(set(wnids)) == 1000
    assert wnids == sorted(wnids)
    assert (wnids[0], wnids[999]) == ("n01440764", "n15075141")
