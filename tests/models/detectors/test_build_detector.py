"""A detector holds what its maps need and no more, all of which is trained, each block at its own rate."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from c2fmae.core.detector_spec import DetectorSpec, MaskHeadSpec, WindowSpec
from c2fmae.core.errors import UserError
from c2fmae.core.optimiser import build_parameter_groups
from c2fmae.core.specs import BackboneSpec, EncoderConfig
from c2fmae.models.backbones import load_backbone
from c2fmae.models.detectors import Detector, detector_from_spec, load_detector
from c2fmae.models.norms import synchronise_batch_norms
from tests.exports.noise_sources import make_noise_backbone, write_noise_run
from tests.models.backbones.test_feature_maps import make_backbone_of_maps
from tests.models.detectors.built_detectors import FPN, WINDOWS, build_detector, write_detection_run
from tests.models.detectors.noise_detectors import draw_inputs, make_spec
from tests.models.tiny_models import randomise_parameters


@pytest.mark.parametrize(
    "changes",
    [
        {"pyramid": FPN},
        {"pyramid": {"depths": [1], "norm": "layer"}},
        {"windows": WINDOWS, "pyramid": {"norm": "group"}, "relative": "decomposed"},
        {"windows": WINDOWS, "pyramid": {"norm": "group"}, "relative": "bias", "mask_head": None},
    ],
)
def test_every_parameter_is_trained(changes: dict[str, Any]) -> None:
    detector = build_detector(**changes).train()
    inputs = draw_inputs([3, 2])
    torch.manual_seed(0)
    torch.stack([*detector(**inputs).values()]).sum().backward()
    without = [name for name, parameter in detector.named_parameters() if parameter.grad is None]
    assert without == []
    groups = build_parameter_groups(detector, weight_decay=0.1)
    assert {name for group in groups for name in group["names"]} == {name for name, _ in detector.named_parameters()}


def test_modules_without_effect_on_the_maps_are_left_out_and_reported() -> None:
    backbone = make_noise_backbone(patch_size=8, depth=3, dim=16, num_heads=2)
    detector = build_detector(backbone)
    names = {name.removeprefix("backbone.") for name, _ in detector.named_parameters()}
    assert "encoder.cls_token" in names
    assert not any(name.startswith(("encoder.blocks.2", "encoder.norm")) for name in names)
    note = "not needed and left out: encoder.blocks.2, encoder.norm"
    assert note in detector.load_report.notes
    assert detector.backbone.spec.encoder.depth == 2
    windowed = build_detector(backbone, windows=WINDOWS)
    assert windowed.backbone.encoder.cls_token is None
    assert windowed.backbone.num_prefix_tokens == 0
    assert "encoder.cls_token" in windowed.load_report.notes[-1]


def test_only_images_of_several_granularities_are_needed() -> None:
    backbone = randomise_parameters(make_backbone_of_maps())
    detector = build_detector(backbone, pyramid={"depths": [1], "strides": [8, 16, 32]})
    assert detector.backbone.granularities == ("rgb",)
    assert "left out: embeddings.semantic" in detector.load_report.notes[-1]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"relative": "bias"},
        {"relative": "decomposed"},
        {"windows": WINDOWS},
        {"windows": {"global_blocks": [1, 2]}},
    ],
)
def test_units_of_sharding_are_called_as_modules(changes: dict[str, Any]) -> None:
    """FSDP gathers the weights of a unit when its `forward` is called, and those of the detector at its own."""
    detector = build_detector(**changes)
    called: list[object] = []
    for unit in detector.sharding_units():
        unit.register_forward_pre_hook(lambda module, _: called.append(module))
    detector.feature_maps(draw_inputs([1])["images"])
    assert called == detector.sharding_units()
    assert bool(called) is ("windows" not in changes and changes.get("relative") != "decomposed")


def test_batch_norms_of_all_parts_are_synchronised() -> None:
    """Names, values and evaluation stay the same."""
    norms: dict[str, Any] = {name: {"norm": "batch"} for name in ("pyramid", "box_head", "mask_head")}
    detector, images = build_detector(**norms), draw_inputs([1])["images"]
    before, plain = dict(detector.state_dict()), [m for m in detector.modules() if type(m) is nn.BatchNorm2d]
    with torch.no_grad():
        expected = detector.feature_maps(images)
        assert synchronise_batch_norms(detector) is detector
        assert all(map(torch.equal, detector.feature_maps(images), expected))
    names = {name.split(".")[0] for name, m in detector.named_modules() if isinstance(m, nn.SyncBatchNorm)}
    assert names == norms.keys()
    assert len(plain) == sum(isinstance(module, nn.SyncBatchNorm) for module in detector.modules())
    assert not any(type(module) is nn.BatchNorm2d for module in detector.modules())
    assert detector.state_dict().keys() == before.keys()
    assert all(tensor is before[name] or torch.equal(tensor, before[name]) for name, tensor in before.items())


@pytest.mark.parametrize("windows", [None, WINDOWS])
def test_maps_are_those_of_the_backbone(windows: dict[str, Any] | None) -> None:
    backbone = make_noise_backbone(patch_size=8, dim=16, num_heads=2)
    detector, images = build_detector(backbone, (72, 48), windows=windows), draw_inputs([1], (72, 48))["images"]
    spec = WindowSpec.model_validate(windows) if windows else None
    with torch.no_grad():
        maps = backbone.feature_maps(images, (2,), normed=False, windows=spec)
        for ours, theirs in zip(detector.feature_maps(images), detector.pyramid(maps), strict=True):
            assert torch.equal(ours, theirs)
    rebuilt = detector_from_spec(DetectorSpec.from_dict(detector.spec.model_dump(mode="json")))
    rebuilt.load_state_dict(detector.state_dict())
    with torch.no_grad():
        assert all(map(torch.equal, rebuilt.feature_maps(images), detector.feature_maps(images)))


def test_initial_weights_depend_on_the_seed_only() -> None:
    torch.manual_seed(1)
    first = build_detector().state_dict()
    torch.manual_seed(2)
    assert all(torch.equal(first[name], tensor) for name, tensor in build_detector().state_dict().items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pyramid": {"depths": [3]}}, "depths: expected blocks from 1 to 2, as new backbone has, got 3"),
        ({"windows": {"global_blocks": [2, 5]}}, "windows.global_blocks: expected blocks from 1 to 2, got 5"),
        ({"size": (64, 60)}, "image_size: 60 is not a multiple of the patch size 8"),
        (
            {"pyramid": {"strides": [1, 2, 4]}},
            "pyramid.strides: with patches of 8 pixels a stride is one of 2, 4, 8",
        ),
    ],
)
def test_detectors_that_do_not_fit_a_backbone_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_detector(**changes)


def make_vit_base(relative: str) -> Detector:
    """ViTDet's detector for a ViT-B, without memory."""
    spec = make_spec(
        backbone=BackboneSpec(encoder=EncoderConfig(patch_size=16), image_size=(1024, 1024)),
        pyramid={"depths": [12], "norm": "layer", "channels": 256},
        windows={},
        relative=relative,
    )
    with torch.device("meta"):
        return detector_from_spec(spec)


@pytest.mark.parametrize("decay", [0.7, 0.75])
def test_layers_have_the_learning_rates_of_published_models(decay: float) -> None:
    """Of detectron2's `get_vit_lr_decay_rate` with 12 layers, and of CAE's; relative positions have those of blocks."""
    detector = make_vit_base("decomposed")
    groups = build_parameter_groups(detector, weight_decay=0.05, layer_decay=decay)
    scales = {name: group["lr_scale"] for group in groups for name in group["names"]}
    golden: dict[str, float] = {"backbone.embeddings.rgb.": decay**13}
    for index in range(12):
        golden |= {f"backbone.encoder.blocks.{index}.": decay ** (12 - index)}
        golden |= {f"relative.{axis}.{index}": decay ** (12 - index) for axis in ("rows", "columns")}
    golden |= dict.fromkeys(("pyramid.", "rpn.", "box_head.", "mask_head."), 1.0)
    for name, scale in scales.items():
        assert scale == golden[max((prefix for prefix in golden if name.startswith(prefix)), key=len)], name
    assert scales["backbone.encoder.blocks.11.attn.qkv.weight"] == decay
    assert scales["backbone.encoder.blocks.0.attn.qkv.weight"] == decay**12
    decays = {name: group["weight_decay"] for group in groups for name in group["names"]}
    assert {decays[name] for name in decays if name.startswith("relative.") or name.endswith("bias")} == {0.0}
    assert tuple(detector.get_parameter("relative.rows.0").shape) == (27, 64)
    assert tuple(detector.get_parameter("relative.rows.2").shape) == (127, 64)


@pytest.mark.parametrize("changes", [{"pyramid": FPN}, {"windows": WINDOWS, "relative": "bias", "mask_head": None}])
def test_a_checkpoint_is_loaded(changes: dict[str, Any], tmp_path: Path) -> None:
    detector = build_detector(**changes)
    loaded = load_detector(write_detection_run(tmp_path / "run", detector))
    assert (loaded.spec, loaded.training) == (detector.spec, False)
    assert loaded.state_dict().keys() == detector.state_dict().keys()
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in detector.state_dict().items())
    assert str(loaded.load_report).endswith("step 7")
    assert isinstance(loaded.spec.mask_head, MaskHeadSpec) is (changes.get("mask_head", 1) is not None)


def test_averaged_weights_are_loaded_on_request(tmp_path: Path) -> None:
    detector = build_detector()
    run = write_detection_run(tmp_path / "run", detector, with_ema=True)
    name = "box_head.class_logits.bias"
    assert torch.equal(load_detector(run, use_ema=True).get_parameter(name), detector.get_parameter(name) + 1)


def test_other_sources_are_refused_with_the_command_that_makes_a_detector(tmp_path: Path) -> None:
    run, file = write_noise_run(tmp_path / "run"), tmp_path / "weights.pth"
    file.touch()
    for source, problem in (
        (run, "is a pretraining run without a detector"),
        (file, "is not a run of this package"),
    ):
        with pytest.raises(UserError) as error:
            load_detector(source)
        assert str(error.value) == f"{source}: {problem}. Make a detector: c2fmae eval detect {source} --data D"


def test_the_backbone_of_a_detector_is_a_backbone_like_any_other(tmp_path: Path) -> None:
    detector, images = build_detector(), draw_inputs([1])["images"]
    backbone = load_backbone(write_detection_run(tmp_path / "run", detector))
    with torch.no_grad():
        for one, other in zip(
            backbone.feature_maps(images, (1, 2), normed=False),
            detector.backbone.feature_maps(images, (1, 2), normed=False),
            strict=True,
        ):
            assert torch.equal(one, other)
    assert "the backbone of a detector, step 7" in str(backbone.load_report)
    others: list[tuple[dict[str, Any], str]] = [
        ({"windows": WINDOWS}, "windows and without a class token"),
        ({"relative": "bias"}, "relative positions"),
    ]
    for number, (changes, feature) in enumerate(others):
        run = write_detection_run(tmp_path / str(number), build_detector(**changes))
        with pytest.raises(UserError, match=rf"trained with {feature}, which only its detector has \(load_detector\)"):
            load_backbone(run)
