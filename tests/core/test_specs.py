import pytest

from c2fmae.core.detector_spec import DetectorSpec
from c2fmae.core.errors import UserError
from c2fmae.core.specs import BackboneSpec, ClassifierSpec, EncoderConfig, spec_identity

OLD_ENCODER = {"name": "vit_tiny_patch16_224", "drop_path": 0.1, "checkpoint": True}


def test_encoders_of_version_0_1_are_read() -> None:
    expected = EncoderConfig(name="vit_tiny_patch16_224", drop_path=0.1, grad_checkpointing=True)
    assert EncoderConfig.from_dict(OLD_ENCODER) == expected
    spec = {"backbone": {"encoder": OLD_ENCODER, "image_size": [32, 32]}, "labels": [None]}
    assert ClassifierSpec.from_dict(spec).backbone.encoder == expected


def test_digests_of_version_0_1_stay_valid() -> None:
    identity = spec_identity(BackboneSpec(encoder=EncoderConfig(), image_size=(32, 16)))
    assert identity == (
        '{"encoder":{"name":"vit_base_patch16_224","patch_size":null,"dim":null,"depth":null,"num_heads":null,'
        '"mlp_ratio":null,"norm_eps":null,"drop_path":0.0,"has_norm":false,"keep_positions":false,"checkpoint":false},'
        '"image_size":[32,16],"channels":{"rgb":3},"mean":[0.485,0.456,0.406],"std":[0.229,0.224,0.225],'
        '"pool":"mean","has_fc_norm":false,"class_names":[]}'
    )


def test_digests_include_a_position_grid_that_differs_from_the_images() -> None:
    own, stretched = (
        spec_identity(BackboneSpec(encoder=EncoderConfig(position_grid=grid), image_size=(32, 16)))
        for grid in (None, (4, 4))
    )
    assert own == stretched.replace(',"position_grid":[4,4]', "")
    assert own != stretched


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"channels": {"rbg": 3}}, "no granularity named 'rbg'. Did you mean 'rgb'? Known: "),
        ({"channels": {"rgb": 4}}, "mean: expected 4 numbers, one for each channel of rgb, got 3"),
        ({"image_size": [32]}, "image_size.1: is required"),
    ],
)
def test_invalid_backbones_are_rejected(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as caught:
        BackboneSpec.from_dict({"encoder": {}, "image_size": [32, 32], **values}, source="spec.json")
    assert str(caught.value).startswith(f"spec.json: {message}")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": ""}, "name: expected a name, got nothing"),
        ({"drop_path": 1.0}, "drop_path: input should be less than 1, got 1.0"),
        ({"drop_path": -0.1}, "drop_path: input should be greater than or equal to 0, got -0.1"),
        ({"has_nrom": True}, "has_nrom: no such setting. Did you mean 'has_norm'?"),
        ({"dim": 64, "num_heads": 6}, "num_heads: 6 heads do not divide dim=64"),
        (
            {"position_grid": [4, 4], "keep_positions": True},
            "position_grid: is for sines and cosines. Leave it out, or set keep_positions=false",
        ),
    ],
)
def test_invalid_encoders_are_rejected(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as caught:
        EncoderConfig.from_dict(values, source="model.yaml")
    assert str(caught.value) == f"model.yaml: {message}"


def test_the_default_encoder_is_a_plain_vit_base() -> None:
    assert EncoderConfig().model_dump() == {
        "name": "vit_base_patch16_224",
        "patch_size": None,
        "dim": None,
        "depth": None,
        "num_heads": None,
        "mlp_ratio": None,
        "norm_eps": None,
        "drop_path": 0.0,
        "has_norm": False,
        "keep_positions": False,
        "grad_checkpointing": False,
        "position_grid": None,
    }


def make_detector_spec(**values: object) -> DetectorSpec:
    spec = {"backbone": {"encoder": {}, "image_size": [800, 1344]}, "classes": [{"name": "cat"}], **values}
    return DetectorSpec.from_dict(spec, source="spec.json")


def test_a_detector_has_an_anchor_size_for_each_map() -> None:
    spec = make_detector_spec()
    assert len(spec.anchors.sizes) == len(spec.pyramid.strides) == 5
    assert spec.pyramid.roi_strides == (4, 8, 16, 32)
    assert make_detector_spec(**spec.model_dump(mode="json")) == spec


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pyramid": {"strides": [4, 8, 32]}}, "pyramid: strides: expected each to be twice the one before, as in [4,"),
        ({"pyramid": {"strides": [4]}}, "pyramid: top_level: needs a map below it. Add a stride, or set"),
        ({"pyramid": {"depths": [12]}}, "pyramid: depths: fpn takes a map for each stride (expected 4 blocks, got 1)"),
        ({"pyramid": {"name": "simple"}}, "pyramid: depths: the simple pyramid takes one map (expected 1 blocks, got"),
        ({"anchors": {"sizes": [32]}}, "anchors.sizes: expected one for each of the pyramid's 5 strides, got 1."),
    ],
)
def test_detectors_that_cannot_be_built_are_rejected(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as caught:
        make_detector_spec(**values)
    assert str(caught.value).startswith(f"spec.json: {message}")
