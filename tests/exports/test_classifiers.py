"""Exported classifiers: other libraries reload them with the same logits and class names."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import ModelCard
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from c2fmae.core.errors import RunError, UserError
from c2fmae.core.labels import LabelInfo
from c2fmae.core.metric_rows import RowWriter
from c2fmae.core.run_dir import RunDir
from c2fmae.core.specs import BackboneSpec, EncoderConfig
from c2fmae.core.tensor_file import write_tensors
from c2fmae.eval.cache import compute_weights_digest
from c2fmae.exports import as_safetensors, as_timm, export
from c2fmae.exports.as_graph import onnx_target, torch_export_target
from c2fmae.exports.as_hf import hf_target
from c2fmae.exports.as_safetensors import safetensors_target
from c2fmae.exports.as_timm import timm_target
from c2fmae.exports.export import write_export
from c2fmae.exports.provenance import read_provenance
from c2fmae.exports.timm_vit import restrict_to_rgb
from c2fmae.models.backbones import load_backbone
from c2fmae.models.classifiers import Classifier, load_classifier
from tests.eval.tiny_backbones import tiny_backbone
from tests.exports.noise_sources import NOISE_ORIGIN, draw_noise_images, is_close, make_noise_backbone
from tests.models.classifiers.noise_classifiers import make_noise_classifier, write_finetuned_run

pytestmark = pytest.mark.numeric

CLASSIFIERS: dict[str, Callable[[], Classifier]] = {
    "mean pooling": lambda: make_noise_classifier(),
    "class token, stored positions": lambda: make_noise_classifier(make_noise_backbone(keep_positions=True), "cls"),
    "one channel, H≠W": lambda: make_noise_classifier(make_noise_backbone(channels=1, size=(48, 32))),
    "registers, no class token": lambda: make_noise_classifier(make_noise_backbone("test_vit2")),
}


def three() -> Classifier:
    """A classifier of three granularities."""
    encoder = EncoderConfig(name="test_vit", depth=2)
    channels = {"semantic": 6, "instance": 5, "rgb": 3}
    spec = BackboneSpec(encoder=encoder, image_size=(32, 32), channels=channels, class_names=("sky",))
    return make_noise_classifier(tiny_backbone(spec), granularities=tuple(channels))


def images_for(classifier: Classifier, seed: int = 1) -> Tensor:
    spec = classifier.spec.backbone
    return classifier.backbone.standardise(draw_noise_images(spec.image_size, spec.channels["rgb"], seed=seed))


def logits(classifier: Classifier, given: Any = None) -> Tensor:
    with torch.inference_mode():
        return classifier(images_for(classifier) if given is None else given)  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_timm_computes_the_logits_of_an_exported_classifier(kind: str, tmp_path: Path) -> None:
    classifier = CLASSIFIERS[kind]()
    done = write_export(timm_target(classifier), NOISE_ORIGIN, tmp_path / "out")
    assert done.max_difference < 1e-4
    assert all(str(each).startswith("tokens, pooled features and logits of images") for each in done.comparisons)
    vit = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True, weight_init="skip").eval()
    assert isinstance(vit, VisionTransformer)
    assert vit.num_classes == 4
    with torch.inference_mode():
        assert is_close(vit(images_for(classifier)), logits(classifier))
    config: Any = vit.pretrained_cfg
    assert config["crop_pct"] == 0.9
    assert config["label_names"] == {"0": "n02121808", "2": "dog, hound", "3": "sea"}
    assert config["label_descriptions"] == {"n02121808": "cat"}
    again = load_classifier(tmp_path / "out")
    assert again.spec.labels == classifier.spec.labels
    assert again.spec.crop == 0.9
    assert is_close(logits(again), logits(classifier))


def test_timm_label_names_are_a_list_if_all_classes_have_names(tmp_path: Path) -> None:
    labels = [LabelInfo(name="Katze"), LabelInfo(name="Möwe")]
    write_export(timm_target(make_noise_classifier(labels=labels)), NOISE_ORIGIN, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert config["label_names"] == ["Katze", "Möwe"]
    assert load_classifier(tmp_path / "out").spec.labels == tuple(labels)


def test_transformers_computes_the_logits_of_an_exported_classifier(tmp_path: Path) -> None:
    from transformers import ViTForImageClassification

    classifier = make_noise_classifier(pool="cls")
    done = write_export(hf_target(classifier), NOISE_ORIGIN, tmp_path / "out")
    assert done.max_difference < 1e-4
    assert str(done.comparisons[0]).startswith("tokens and logits of images of 32×32")
    model = ViTForImageClassification.from_pretrained(tmp_path / "out")
    model.train(False)
    with torch.inference_mode():
        assert is_close(model(images_for(classifier)).logits, logits(classifier))
    assert model.config.id2label == {0: "cat", 1: "LABEL_1", 2: "dog, hound", 3: "sea"}
    assert (model.config.label2id or {}).get("sea") == 3
    again = load_classifier(tmp_path / "out")
    assert [label and label.name for label in again.spec.labels] == ["cat", None, "dog, hound", "sea"]
    assert again.spec.crop == 0.9
    assert is_close(logits(again), logits(classifier))
    assert 'ViTForImageClassification.from_pretrained("out")' in (tmp_path / "out" / "README.md").read_text()


def test_export_to_transformers_rejects_a_head_on_mean_pooling() -> None:
    with pytest.raises(UserError) as caught:
        hf_target(make_noise_classifier(pool="mean"))
    assert str(caught.value) == (
        "new backbone: transformers' ViTForImageClassification cannot express this ViT: its head takes the mean of the "
        "patch tokens instead of the class token. Use: c2fmae export timm"
    )


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_an_exported_classifier_is_reloaded_exactly(pool: Any, tmp_path: Path) -> None:
    classifier = make_noise_classifier(pool=pool)
    done = write_export(safetensors_target(classifier), NOISE_ORIGIN, tmp_path / "out")
    assert done.max_difference == 0
    again = load_classifier(tmp_path / "out")
    assert again.spec == classifier.spec
    assert torch.equal(logits(again), logits(classifier))
    backbone = load_backbone(tmp_path / "out")
    assert backbone.spec == classifier.spec.backbone
    assert backbone.load_report.unused == {"head": 2}
    one = export("safetensors", tmp_path / "out", tmp_path / "two")
    assert one.sha256 == done.sha256
    assert (tmp_path / "out" / "config.json").read_bytes() == (tmp_path / "two" / "config.json").read_bytes()


@pytest.mark.compile
def test_an_exported_program_returns_tokens_and_logits(tmp_path: Path) -> None:
    classifier = make_noise_classifier()
    assert write_export(torch_export_target(classifier), NOISE_ORIGIN, tmp_path / "out").max_difference < 1e-4
    model = torch.export.load(tmp_path / "out" / "model.pt2").module()
    with torch.inference_mode():
        tokens, pooled, found = model(images_for(classifier))
        assert is_close(tokens, classifier.backbone.tokens(images_for(classifier)))
        assert is_close(pooled, classifier.backbone.pooled(images_for(classifier)))
        assert is_close(found, logits(classifier))
    assert "Outputs: `tokens`, `pooled` and `logits`." in (tmp_path / "out" / "README.md").read_text()
    assert "tokens, pooled, logits = model(images)" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.compile
def test_onnx_runtime_returns_tokens_and_logits(tmp_path: Path) -> None:
    import onnxruntime  # type: ignore[import-untyped]

    classifier = make_noise_classifier(make_noise_backbone(depth=1), pool="cls")
    assert write_export(onnx_target(classifier), NOISE_ORIGIN, tmp_path / "out").max_difference < 1e-4
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"))
    assert [each.name for each in session.get_outputs()] == ["tokens", "pooled", "logits"]
    found = session.run(["logits"], {"photos": images_for(classifier).numpy()})[0]
    assert is_close(torch.from_numpy(found), logits(classifier))


def test_a_finetuned_run_is_exported_as_a_classifier_by_default(tmp_path: Path) -> None:
    trained = make_noise_classifier()
    run = write_finetuned_run(tmp_path / "run", trained)
    export("timm", run, tmp_path / "timm")
    export("safetensors", run / "best", tmp_path / "best")
    export("safetensors", run, tmp_path / "encoder", part="encoder")
    with torch.inference_mode():
        vit = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
        assert is_close(vit(images_for(trained)), logits(trained))
    assert is_close(logits(load_classifier(tmp_path / "best")), logits(trained) + 1)
    with pytest.raises(UserError, match="is a ViT without a classification head"):
        load_classifier(tmp_path / "encoder")
    assert is_close(
        load_backbone(tmp_path / "encoder").pooled(images_for(trained)), trained.backbone.pooled(images_for(trained))
    )
    with pytest.raises(UserError, match="run: has no decoder. Use --part autoencoder only with a pre-training run"):
        export("safetensors", run, tmp_path / "whole", part="autoencoder")


def test_timm_exports_hold_rgb_only_and_safetensors_all_granularities(tmp_path: Path) -> None:
    trained = three()
    run = write_finetuned_run(tmp_path / "run", trained)
    export("timm", run, tmp_path / "timm")
    export("safetensors", run, tmp_path / "rgb", part="rgb")
    export("safetensors", run, tmp_path / "all")
    assert restrict_to_rgb(trained).spec.backbone.channels == {"rgb": 3}  # type: ignore[union-attr]
    vit = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    with torch.inference_mode():
        assert is_close(vit(images_for(trained)), logits(trained))
    alone, whole = load_classifier(tmp_path / "rgb"), load_classifier(tmp_path / "all")
    assert (alone.backbone.granularities, whole.spec) == (("rgb",), trained.spec)
    assert torch.equal(logits(alone), logits(trained))
    maps = {"semantic": torch.randint(6, (3, 8, 8)), "rgb": images_for(trained)}
    assert torch.equal(logits(whole, maps), logits(trained, maps))


def test_verification_detects_a_wrong_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path, tensors: dict[str, Tensor]) -> None:
        write_tensors(path, {**tensors, "head.bias": tensors["head.bias"].roll(1)})

    for module in (as_timm, as_safetensors):
        monkeypatch.setattr(module, "write_tensors", broken)
    for target, tool in ((timm_target, "timm"), (safetensors_target, "safetensors")):
        with pytest.raises(RunError, match=f"was not written, because {tool} .* computes other outputs"):
            write_export(target(make_noise_classifier()), NOISE_ORIGIN, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def measured(run: Path, trained: Classifier) -> Path:
    with RowWriter(RunDir(run).metrics) as rows:
        rows.write({"step": 10, "test/top-1": 75.0})
        rows.write({"step": 20, "test/top-1": 62.5, "test/loss": 1.5, "average/top-1": 70.0})
    of = {"classifier": compute_weights_digest(trained), "backbone": compute_weights_digest(trained.backbone)}
    for name, digest in {**of, "another": "those of another"}.items():
        (run / "evaluations" / name).mkdir(parents=True)
        metric = {"name": "accuracy", "value": 0.5, "count": 8, "interval": None, "note": "of few"}
        result = {"evaluation": f"of the {name}", "source": str(run), "metrics": [metric], "weights": digest}
        result["protocol"] = "Evaluated on /home/somebody/data/test.tar, 90 %."
        (run / "evaluations" / name / "results.json").write_text(json.dumps(result))
    return run


def test_a_card_describes_fine_tuning_and_classes(tmp_path: Path) -> None:
    config: dict[str, Any] = {
        "data": {"train": "/home/somebody/data/cats-{000..012}.tar"},
        "init": "/home/somebody/runs/pretrained",
        "drop_path": 0.1,
        "mixing": {"mixup": 0.8, "smoothing": 0.1},
        "training": {"steps": 20, "epochs": 5, "batch_size": 32, "base_lr": 5e-4, "layer_decay": 0.65},
    }
    trained = three()
    run = measured(write_finetuned_run(tmp_path / "run", trained, **config), trained)
    export("timm", run, tmp_path / "out")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.pipeline_tag == "image-classification"
    for line in (
        "# tuned",
        "- Classes: 4 (“cat”, “dog, hound”, “sea”; 1 without a name).",
        "- Evaluation crop: the central 90 % of an image, resized to the image size (bicubic).",
        "| Data | cats-{000..012}.tar |",
        "| Samples | 640 |",
        "| Weights | step 20 of 20 |",
        "| Length | epochs 5, batch size 32 |",
        "| Optimisation | base lr 0.0005, layer decay 0.65 |",
        "| Granularities, coarse to fine | semantic, instance, rgb |",
        "| Fine-tuned from | pretrained |",
        "| Regularisation | drop path 0.1 |",
        "| Mixing | mixup 0.8, smoothing 0.1 |",
        "Scores on the test set at step 20:",
        "| top-1 | 62.5 |",
        "| of the classifier | run | accuracy (of few) | 0.5 | 8 |",
        "| of the backbone | run | accuracy (of few) | 0.5 | 8 |",
        "- of the classifier: Evaluated on test.tar, 90 %.",
    ):
        assert line in card.text.splitlines(), line
    assert "A linear head with 4 logits follows." in card.text
    assert "of the another" not in card.text
    assert "Unknown" not in card.text
    assert "/home/somebody" not in card.text
    best, average = read_provenance(str(run / "best")), read_provenance(str(run), use_ema=True)
    assert best.held_out_metrics == {"top-1": 75}
    assert best.details["Weights"] == (
        "step 10 of 20, selected by its score on the test set, so that this score is optimistic"
    )
    assert (average.held_out_metrics, average.is_ema) == ({"top-1": 70}, False)


def test_a_card_names_the_first_of_many_classes(tmp_path: Path) -> None:
    labels = [LabelInfo(name=f"kind {index}") for index in range(1200)]
    write_export(timm_target(make_noise_classifier(labels=labels)), NOISE_ORIGIN, tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "- Classes: 1,200 (“kind 0”, “kind 1”, “kind 2”, “kind 3”, “kind 4”, …).\n" in text
    write_export(timm_target(make_noise_classifier(labels=[None, None])), NOISE_ORIGIN, tmp_path / "none")
    assert "- Classes: 2 (2 without a name).\n" in (tmp_path / "none" / "README.md").read_text()
