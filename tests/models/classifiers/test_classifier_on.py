"""A new classifier has a copy of the backbone's weights and a head whose logits are near zero."""

import copy
import json

import pytest
import torch
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.labels import LabelInfo
from c2fmae.core.specs import BackboneSpec, ClassifierSpec, EncoderConfig, Pooling
from c2fmae.models.backbones import Backbone
from c2fmae.models.classifiers import Classifier, classifier_from_backbone, classifier_from_spec
from tests.eval.tiny_backbones import tiny_backbone
from tests.exports.noise_sources import make_noise_backbone

pytestmark = pytest.mark.numeric

LABELS = [LabelInfo(name="cat", wnid="n02121808"), None, LabelInfo(name="dog")]
CLASSES = {"semantic": 6, "instance": 5, "rgb": 3}


def three() -> Backbone:
    """A backbone of three granularities."""
    return tiny_backbone(
        BackboneSpec(
            encoder=EncoderConfig(name="test_vit", patch_size=8, depth=3),
            image_size=(16, 16),
            channels=CLASSES,
            class_names=("sky",),
        )
    )


def on(
    backbone: Backbone,
    pool: Pooling = "mean",
    *,
    granularities: tuple[str, ...] = ("rgb",),
    drop_path: float = 0.0,
    seed: int = 0,
) -> Classifier:
    """A classifier of three labels."""
    return classifier_from_backbone(
        backbone,
        LABELS,
        pool=pool,
        granularities=granularities,
        drop_path=drop_path,
        crop=0.875,
        generator=torch.Generator().manual_seed(seed),
    )


def maps_of(batch: int = 4) -> dict[str, Tensor]:
    """A map of noise for each granularity."""
    generator = torch.Generator().manual_seed(3)
    ids = {name: torch.randint(CLASSES[name], (batch, 4, 4), generator=generator) for name in ("semantic", "instance")}
    return {**ids, "rgb": torch.randn(batch, 3, 16, 16, generator=generator)}


def is_copy(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether tensors are equal and do not share memory."""
    return one.keys() == other.keys() and all(
        torch.equal(one[name], other[name]) and one[name].data_ptr() != other[name].data_ptr() for name in one
    )


@pytest.mark.parametrize("keep_positions", [False, True])
@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_weights_are_copied_and_the_backbone_is_unchanged(pool: Pooling, keep_positions: bool) -> None:
    backbone = make_noise_backbone(keep_positions=keep_positions).train()
    before = copy.deepcopy(backbone.state_dict())
    classifier = on(backbone, pool, drop_path=0.2)
    ours = classifier.backbone.state_dict()
    theirs = {name: each for name, each in before.items() if name in ours}
    assert set(ours) - set(theirs) == ({"fc_norm.weight", "fc_norm.bias"} if pool == "mean" else set())
    assert set(before) - set(theirs) == ({"encoder.norm.weight", "encoder.norm.bias"} if pool == "mean" else set())
    assert is_copy({name: ours[name] for name in theirs}, {name: backbone.state_dict()[name] for name in theirs})
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.add_(1)
    assert all(torch.equal(each, before[name]) for name, each in backbone.state_dict().items())
    assert all(module.training for module in backbone.modules())
    assert backbone.spec.encoder.drop_path == 0


def test_mean_pooling_replaces_the_norm_by_a_new_one_after_pooling() -> None:
    backbone = make_noise_backbone()
    classifier = on(backbone, "mean")
    fc_norm = classifier.backbone.fc_norm
    assert isinstance(fc_norm, torch.nn.LayerNorm)
    assert fc_norm.weight.tolist() == [1] * backbone.dim
    assert fc_norm.bias.tolist() == [0] * backbone.dim
    assert isinstance(classifier.backbone.encoder.norm, torch.nn.Identity)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        classifier.head.weight.normal_()
        bare = classifier.backbone.tokens(images)
        torch.testing.assert_close(backbone.encoder.norm(bare), backbone.tokens(images))
        vector = torch.nn.functional.layer_norm(bare[:, 1:].mean(dim=1), (backbone.dim,), eps=1e-6)
        torch.testing.assert_close(classifier(images), vector @ classifier.head.weight.T)


def test_class_token_pooling_keeps_the_norm() -> None:
    backbone = make_noise_backbone()
    classifier = on(backbone, "cls")
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        classifier.head.weight.normal_()
        assert torch.equal(classifier.backbone.tokens(images), backbone.tokens(images))
        torch.testing.assert_close(classifier(images), backbone.tokens(images)[:, 0] @ classifier.head.weight.T)


def test_a_pretrained_norm_after_pooling_stays() -> None:
    backbone = make_noise_backbone(has_fc_norm=True)
    classifier, images = on(backbone, "mean"), torch.randn(2, 3, 32, 32)
    assert is_copy(dict(classifier.backbone.state_dict()), dict(backbone.state_dict()))
    with torch.no_grad():
        assert torch.equal(classifier.backbone.pooled(images), backbone.pooled(images))


def test_selected_granularities_have_the_order_of_the_backbone() -> None:
    backbone, maps = three(), maps_of()
    classifier = on(backbone, "cls", granularities=("rgb", "semantic"))
    assert classifier.backbone.granularities == ("semantic", "rgb")
    assert classifier.spec.backbone.channels == {"semantic": 6, "rgb": 3}
    assert classifier.spec.backbone.class_names == ("sky",)
    assert not any("instance" in name for name in classifier.state_dict())
    del maps["instance"]
    assert classifier.backbone.tokens(maps).shape == (4, 1 + 2 * 4, backbone.dim)
    for names in (("semantic", "rgb"), ("rgb",), ("semantic",)):
        some = {name: maps[name] for name in names}
        assert torch.equal(classifier.backbone.tokens(some), backbone.tokens(some))
        assert classifier(some).shape == (4, classifier.num_labels)
    assert on(backbone, granularities=("rgb",)).spec.backbone.class_names == ()


def test_a_granularity_that_the_backbone_lacks_is_rejected() -> None:
    with pytest.raises(UserError) as caught:
        on(three(), granularities=("rgb", "depth"))
    message = "no granularity of this backbone named 'depth'. Known: instance, rgb, semantic"
    assert str(caught.value) == message


def test_class_token_pooling_needs_a_class_token() -> None:
    with pytest.raises(UserError) as caught:
        on(make_noise_backbone("test_vit2"), "cls")
    assert str(caught.value) == "new backbone: has no class token. Set pool=mean"


@pytest.mark.parametrize("depth", [2, 4])
def test_drop_path_rates_rise_linearly_as_in_timm(depth: int) -> None:
    import timm

    classifier = on(make_noise_backbone(depth=depth), drop_path=0.3)
    vit = timm.create_model("test_vit", depth=depth, drop_path_rate=0.3)

    def chances(blocks: object) -> list[float]:
        return [float(getattr(block.drop_path1, "drop_prob", 0.0)) for block in blocks]  # type: ignore[attr-defined]

    expected = [0.3 * index / (depth - 1) for index in range(depth)]
    assert chances(classifier.backbone.encoder.blocks) == pytest.approx(expected)
    assert chances(classifier.backbone.encoder.blocks) == chances(vit.blocks)
    assert classifier.spec.backbone.encoder.drop_path == 0.3


def test_the_head_is_initialised_near_zero_from_the_generator_only() -> None:
    torch.manual_seed(1)
    one = on(make_noise_backbone(), seed=5)
    torch.manual_seed(2)
    same, other = on(make_noise_backbone(), seed=5), on(make_noise_backbone(), seed=6)
    assert torch.equal(one.head.weight, same.head.weight)
    assert not torch.equal(one.head.weight, other.head.weight)
    assert one.head.bias.tolist() == [0, 0, 0]
    assert one.head.weight.std().item() == pytest.approx(2e-5, rel=0.2)


def test_drop_path_is_active_in_training_mode_only() -> None:
    classifier, images = on(make_noise_backbone(depth=4), drop_path=0.9), torch.randn(8, 3, 32, 32)
    state = torch.get_rng_state()
    with torch.no_grad():
        assert torch.equal(classifier(images), classifier(images))
        assert torch.equal(torch.get_rng_state(), state)
        classifier.train()
        assert not torch.equal(classifier.backbone.pooled(images), classifier.backbone.pooled(images))


@pytest.mark.parametrize("pool", ["mean", "cls"])
@pytest.mark.parametrize("name", ["plain", "stored positions", "a norm after pooling", "three granularities"])
def test_a_spec_survives_json_and_rebuilds_the_same_classifier(name: str, pool: Pooling) -> None:
    backbone = {
        "plain": lambda: make_noise_backbone(size=(32, 48)),
        "stored positions": lambda: make_noise_backbone(keep_positions=True, size=(48, 32)),
        "a norm after pooling": lambda: make_noise_backbone(has_fc_norm=True, keep_positions=True),
        "three granularities": three,
    }[name]()
    classifier = on(backbone, pool, granularities=backbone.granularities, drop_path=0.1)
    dumped = json.loads(json.dumps(classifier.spec.model_dump(mode="json")))
    again = classifier_from_spec(ClassifierSpec.from_dict(dumped))
    assert again.spec == classifier.spec
    assert again.backbone.spec == classifier.backbone.spec == classifier.spec.backbone
    again.load_state_dict(classifier.state_dict())
    channels, size = backbone.spec.channels["rgb"], backbone.spec.image_size
    images = torch.randn(2, channels, *size)
    with torch.no_grad():
        assert torch.equal(again.backbone.pooled(images), classifier.backbone.pooled(images))
        assert torch.equal(again(images), classifier(images))


def test_a_spec_needs_labels_and_a_crop_within_the_image() -> None:
    backbone = make_noise_backbone().spec
    with pytest.raises(UserError, match="labels: tuple should have at least 1 item"):
        ClassifierSpec.from_dict({"backbone": backbone, "labels": []})
    with pytest.raises(UserError, match="crop: input should be less than or equal to 1, got 1.5"):
        ClassifierSpec.from_dict({"backbone": backbone, "labels": LABELS, "crop": 1.5})
