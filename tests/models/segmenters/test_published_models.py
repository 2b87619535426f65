"""ViT-B with UPerNet has the parameters, costs and layers of the published models."""

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from c2fmae.core.labels import ClassInfo
from c2fmae.core.operation_count import count_parameters
from c2fmae.core.optimiser import build_parameter_groups
from c2fmae.core.specs import BackboneSpec, EncoderConfig, HeadSpec, SegmenterSpec
from c2fmae.models.segmenters import Segmenter, segmenter_from_spec

GOLDEN = Path(__file__).parent / "golden" / "upernet_vit_base.txt"
"""Name, shape, layer (of 13) and whether the weight decays, of each parameter; {i} is a block from 0 to 11."""


def make_vit_base(channels: int = 768) -> Segmenter:
    """A ViT-B with UPerNet for ADE20K, without memory."""
    spec = SegmenterSpec(
        backbone=BackboneSpec(encoder=EncoderConfig(drop_path=0.1), image_size=(512, 512)),
        classes=tuple(ClassInfo(name=f"class {index}") for index in range(150)),
        head=HeadSpec(name="upernet", options={"channels": channels}),
        depths=(4, 6, 8, 12),
    )
    with torch.device("meta"):
        return segmenter_from_spec(spec)


@pytest.mark.parametrize(("channels", "millions", "giga_macs"), [(768, 163.3, 606.8), (512, 127.7, 341.8)])
def test_sizes_and_costs_are_those_of_the_published_models(channels: int, millions: float, giga_macs: float) -> None:
    segmenter = make_vit_base(channels).train()
    positions = 32 * 32 * 768  # a parameter of others, computed here
    assert (count_parameters(segmenter) + positions) / 1e6 == pytest.approx(millions, rel=2e-3)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        segmenter(torch.empty(2, 3, 512, 512, device="meta"))
    assert counter.get_total_flops() / 2 / 2 / 1e9 == pytest.approx(giga_macs, rel=2e-3)


def test_parameters_layers_and_weight_decay_are_the_golden_ones() -> None:
    segmenter = make_vit_base()
    groups = build_parameter_groups(segmenter, weight_decay=0.05, layer_decay=0.65)
    settings = {name: (group["lr_scale"], group["weight_decay"]) for group in groups for name in group["names"]}
    lines = [line.split() for line in GOLDEN.read_text().splitlines()]
    golden = {}
    for name, shape, layer, decay in lines:
        for index in range(12) if "{i}" in name else (0,):
            number = index + 1 if layer == "{i}+1" else int(layer)
            golden[name.format(i=index)] = (shape, 0.65 ** (13 - number), 0.05 if decay == "decay" else 0.0)
    found = {
        name: ("×".join(map(str, parameter.shape)), *settings[name]) for name, parameter in segmenter.named_parameters()
    }
    assert found == golden
    assert len({scale for scale, _ in settings.values()}) == 12 + 2
