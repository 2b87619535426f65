import pytest
import torch
from timm.models.vision_transformer import Block
from torch import nn

from c2fmae.core.layers import LayeredModel
from c2fmae.core.specs import BackboneSpec, EncoderConfig
from c2fmae.models import DECODERS, MultiGranularAutoencoder
from c2fmae.models.attention import CrossBlock
from c2fmae.models.backbones import create_untrained_backbone
from c2fmae.models.classifiers import classifier_from_backbone
from tests.models.tiny_models import make_autoencoder


def layer_names(model: nn.Module) -> list[set[str]]:
    """The names of the parameters of each layer that a model declares."""
    assert isinstance(model, LayeredModel)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    layers = [[names[id(parameter)] for parameter in layer] for layer in model.trunk_layers()]
    assert len({name for layer in layers for name in layer}) == sum(map(len, layers))
    return [set(layer) for layer in layers]


def expected_layer_names(model: nn.Module, prefix: str = "") -> list[set[str]]:
    """The names of embeddings and tokens, then those of the first two blocks."""
    names = [name.removeprefix(prefix) for name, _ in model.named_parameters() if name.startswith(prefix)]
    stem = ("embeddings.", "encoder.cls_token", "encoder.reg_token", "encoder.norm_pre.")
    return [
        {prefix + name for name in names if name.startswith(start)}
        for start in (stem, "encoder.blocks.0.", "encoder.blocks.1.")
    ]


def test_the_layers_of_a_backbone_and_its_classifier_are_embeddings_and_tokens_then_blocks() -> None:
    encoder = EncoderConfig(name="test_vit2", depth=2, has_norm=True)
    spec = BackboneSpec(encoder=encoder, image_size=(32, 32), channels={"semantic": 5, "rgb": 3})
    backbone = create_untrained_backbone(spec)
    assert layer_names(backbone) == expected_layer_names(backbone)
    classifier = classifier_from_backbone(
        backbone,
        [None, None],
        pool="mean",
        granularities=("semantic", "rgb"),
        drop_path=0.0,
        crop=1.0,
        generator=torch.Generator(),
    )
    assert layer_names(classifier) == expected_layer_names(classifier, "backbone.")
    assert classifier.sharding_units() == list(classifier.backbone.encoder.blocks)


@pytest.mark.parametrize("decoder", [*DECODERS])
def test_an_autoencoder_declares_the_layers_of_its_encoder_and_the_blocks_of_all_its_parts(decoder: str) -> None:
    model = make_autoencoder(decoder, depth=2)
    assert layer_names(model) == expected_layer_names(model)[:2]  # its encoder has one block
    blocks = [module for module in model.modules() if isinstance(module, Block | CrossBlock)]
    assert len(blocks) == 1 if decoder == "direct" else len(blocks) > 2  # whose only blocks are the encoder's
    assert model.sharding_units() == blocks


def test_a_decoder_that_declares_no_blocks_has_no_sharding_units() -> None:
    model = make_autoencoder()
    other = MultiGranularAutoencoder(model.embeddings, model.encoder, nn.Sequential(nn.Linear(2, 2)), {})
    assert other.sharding_units() == list(model.encoder.blocks)
