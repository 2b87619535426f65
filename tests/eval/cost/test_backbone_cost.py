import warnings
from pathlib import Path

import pytest
import torch

from c2fmae.core.errors import UserError
from c2fmae.core.operation_count import count_with_fvcore
from c2fmae.core.specs import BackboneSpec, EncoderConfig
from c2fmae.core.text import format_count
from c2fmae.eval.cost import backbone_cost
from c2fmae.eval.cost.backbone_cost import compute_backbone_cost, measure_backbones
from c2fmae.eval.cost.config import CostEvaluation
from c2fmae.eval.cost.tables import format_backbone_costs
from c2fmae.eval.evaluation import EVALUATIONS, ModelUnderTest, Precision
from c2fmae.eval.metrics import Metric, find_metric
from c2fmae.models.backbones import Backbone
from c2fmae.models.backbones.backbone import vit_from_spec, wrap_vit

VITS = {
    "test_vit": (64, 6, 192, 2),
    "vit_tiny_patch16_224": (192, 12, 768, 3),
    "vit_small_patch16_224": (384, 12, 1536, 6),
    "vit_base_patch16_224": (768, 12, 3072, 12),
}
"""Width, depth, hidden width of the MLP, number of heads; patches of 16 and a global token."""
QUICK = CostEvaluation(image_size=(32, 48), batch_size=2, rounds=1, precisions=("fp32",))


def make_backbone(
    name: str = "test_vit", *, depth: int | None = None, device: str = "meta", **changes: object
) -> Backbone:
    values = {"encoder": {"name": name, "has_norm": True, "depth": depth}, "image_size": (224, 224), **changes}
    spec = BackboneSpec.model_validate(values)
    with torch.device(device):
        return wrap_vit(vit_from_spec(spec), spec)


def count_products(name: str, size: tuple[int, int], depth: int | None = None) -> int:
    """Return the number of multiplications of an image's forward pass, computed from the sizes of the layers."""
    dim, full_depth, hidden_dim, _ = VITS[name]
    depth = depth or full_depth
    patches = size[0] // 16 * (size[1] // 16)
    tokens = 1 + patches
    block = tokens * (4 * dim**2 + 2 * dim * hidden_dim) + 2 * tokens**2 * dim
    return patches * 3 * 16**2 * dim + depth * block


SIZES = [(224, 224), (512, 512), (96, 160)]


@pytest.mark.parametrize(("size", "depth"), list(zip(SIZES, (None, 1, 3), strict=True)))
@pytest.mark.parametrize("name", VITS)
def test_operations_equal_those_computed_from_layer_sizes(name: str, size: tuple[int, int], depth: int | None) -> None:
    cost, dim = compute_backbone_cost(make_backbone(name, depth=depth), size), VITS[name][0]
    assert cost.flops == 2 * count_products(name, size, depth)
    assert cost.part_costs["embeddings"].flops == 2 * (size[0] * size[1] * 3) * dim


def test_vit_b_has_the_published_number_of_operations() -> None:
    head = 768 * 1000  # which the published number includes
    assert (compute_backbone_cost(make_backbone("vit_base_patch16_224")).flops / 2 + head) / 1e9 == pytest.approx(
        17.564, abs=5e-4
    )


@pytest.mark.compile  # a trace, in which sizes are tensors: shape checks cannot read them
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", list(VITS)[1:])
def test_fvcore_and_torch_count_the_same(name: str, size: tuple[int, int]) -> None:
    backbone = make_backbone(name, depth=2)  # tracing takes long
    assert compute_backbone_cost(backbone, size, counter=count_with_fvcore) == compute_backbone_cost(backbone, size)


@pytest.mark.parametrize(("side", "depth"), [(224, 12), (512, 1)])
def test_fvcore_counts_the_same_for_timms_own_model_plus_norms(side: int, depth: int) -> None:
    name = "vit_tiny_patch16_224"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from fvcore.nn import FlopCountAnalysis  # type: ignore[import-untyped]

        backbone = make_backbone(name, depth=depth, image_size=(side, side))
        vit = vit_from_spec(backbone.spec).eval()
        for module in vit.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = False  # type: ignore[assignment]  # fvcore does not count fused attention
        analysis = FlopCountAnalysis(vit, torch.zeros(1, 3, side, side)).unsupported_ops_warnings(False)
        fvcore_flops = 2 * analysis.tracer_warnings("none").total()
    flops = compute_backbone_cost(backbone).flops
    norms = 2 * 5 * (2 * depth + 1) * (1 + (side // 16) ** 2) * 192  # not counted by compute_backbone_cost
    assert fvcore_flops - norms == flops


def test_parameters_equal_those_of_the_backbone() -> None:
    backbone = make_backbone(channels={"semantic": 9, "rgb": 3}, has_fc_norm=True)
    parts = compute_backbone_cost(backbone).part_costs
    assert sum(part.parameters for part in parts.values()) == sum(p.numel() for p in backbone.parameters())
    semantic = 10 * 64 + (64 * 4 * 4 + 1) * 64
    assert parts["embeddings"].parameters == semantic + (3 * 16 * 16 + 1) * 64
    block = 4 * 64**2 + 4 * 64 + 2 * 64 * 192 + 192 + 64 + 4 * 64
    assert parts["encoder"].parameters == 64 + 6 * block + 2 * 64


def test_embeddings_of_label_maps_add_no_operations() -> None:
    assert (
        compute_backbone_cost(make_backbone(channels={"semantic": 9, "rgb": 3})).flops
        == compute_backbone_cost(make_backbone()).flops
    )


def test_cost_is_independent_of_weights_and_leaves_them_unchanged() -> None:
    backbone = make_backbone(device="cpu")
    for parameter in backbone.parameters():
        parameter.data.normal_()  # uninitialised values may be NaN
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    assert compute_backbone_cost(backbone) == compute_backbone_cost(make_backbone())
    assert all(torch.equal(before[name], tensor) for name, tensor in backbone.state_dict().items())


def test_default_image_size_is_that_of_the_backbones_training() -> None:
    backbone = make_backbone(image_size=(64, 32))
    assert compute_backbone_cost(backbone).flops == 2 * count_products("test_vit", (64, 32))


def test_image_sizes_that_patches_do_not_divide_are_rejected() -> None:
    message = r"^image_size: 40 is not a multiple of the patch size 16 \(of this backbone\)\. Nearest: 32 or 48$"
    with pytest.raises(UserError, match=message):
        compute_backbone_cost(make_backbone(), (32, 40))


def test_backbones_without_image_input_are_rejected() -> None:
    message = "^cost: only backbones that take images can be measured .expected a granularity 'rgb', got semantic"
    with pytest.raises(UserError, match=message):
        compute_backbone_cost(make_backbone(channels={"semantic": 9}))


def count_activation_bytes(size: tuple[int, int]) -> int:
    """Return the bytes per image that a float32 forward pass of a small ViT saves, summed over operations."""
    dim, depth, hidden_dim, heads = VITS["test_vit"]
    patches = size[0] // 16 * (size[1] // 16)
    tokens = 1 + patches
    norm = tokens * dim + 2 * tokens  # input; mean and deviation
    attention = tokens * dim + 3 * tokens * dim + heads * tokens**2 + tokens * dim  # input; q, k and v; weights; output
    mlp = tokens * dim + 2 * tokens * hidden_dim  # inputs of the first layer, of GELU, of the second layer
    embedding = patches * 3 * 16**2 + patches * dim  # pixels; tokens before they are scattered to their positions
    positions = 8 * patches
    return 4 * (embedding + depth * (2 * norm + attention + mlp) + norm) + positions


@pytest.mark.parametrize("size", [(32, 48), (64, 64)])
def test_activation_bytes_equal_a_manual_count(size: tuple[int, int]) -> None:
    backbone = make_backbone(device="cpu")
    settings = QUICK.model_copy(update={"image_size": size})
    metric = find_metric(measure_backbones({"tiny": backbone}, settings)["tiny"], "activation_bytes", precision="fp32")
    assert metric is not None
    assert metric.value == count_activation_bytes(size)


def test_evaluation_yields_every_metric_and_describes_its_protocol(tmp_path: Path) -> None:
    evaluation = EVALUATIONS.get("cost").from_dict(
        {"image_size": [32, 48], "batch_size": 2, "rounds": 6, "precisions": ["fp32", "bf16"]}
    )
    model = ModelUnderTest.in_memory("tiny", tmp_path, backbone=make_backbone(device="cpu"), method=None)
    metrics = {(metric.key, *metric.tags.values()): metric for metric in next(evaluation.run_models([model])).metrics}
    assert list(metrics) == [
        *(("parameters",), ("parameters", "embeddings"), ("parameters", "encoder")),
        *(("flops",), ("flops", "embeddings"), ("flops", "encoder")),
        *(("activation_bytes", "fp32"), ("forward_bytes", "fp32"), ("activation_bytes", "bf16")),
        *(("forward_bytes", "bf16"), ("images_per_second", "fp32"), ("images_per_second", "bf16")),
    ]
    assert all(metric.value > 0 for metric in metrics.values())
    assert metrics["activation_bytes", "bf16"].value < metrics["activation_bytes", "fp32"].value
    speed = metrics["images_per_second", "bf16"]
    assert speed.count == 12
    assert speed.interval is not None
    assert speed.interval[0] <= speed.value <= speed.interval[1]
    protocol = evaluation.describe_protocol(model)
    assert protocol.startswith("For one image of 32×48. ")
    assert "median of 6 forward passes of 2 images each" in protocol
    assert evaluation.identify_inputs(model)["machine"] in protocol
    assert format_count(torch.get_num_threads(), "thread", "threads") + " of" in protocol


def test_backbones_are_timed_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[tuple[int, str]] = []
    forward = backbone_cost._forward_without_grad

    def record_forward(backbone: Backbone, images: torch.Tensor, precision: Precision) -> torch.Tensor:
        if len(images) == 2:
            turns.append((backbone.depth, precision))
        return forward(backbone, images, precision)

    monkeypatch.setattr(backbone_cost, "_forward_without_grad", record_forward)
    one, other = (make_backbone(device="cpu", encoder=EncoderConfig(name="test_vit", depth=n)) for n in (1, 2))
    measure_backbones({"one": one, "other": other}, QUICK)
    assert turns == 3 * [(1, "fp32"), (2, "fp32")]


def test_table_has_a_row_per_source_with_ratios_to_the_first() -> None:
    def metrics(scale: float, interval: tuple[float, float] | None = None) -> list[Metric]:
        return [
            Metric("parameters", scale * 20e6, 1),
            Metric("parameters", scale * 19e6, 1, tags={"part": "encoder"}),
            Metric("flops", scale * 4e9, 1),
            Metric("flops", scale * 3e9, 1, tags={"part": "encoder"}),
            Metric("activation_bytes", scale * 8e6, 1, tags={"precision": "fp32"}),
            Metric("images_per_second", 10 / scale, 18, interval, tags={"precision": "fp32"}),
        ]

    assert format_backbone_costs({"mine": metrics(1, (9, 12)), "theirs": metrics(2.5)}) == "\n".join(
        [
            "source  parameters, M  encoder        GFLOP  activations, MB fp32           images/s fp32",
            "mine      20.00 ×1.00    19.00   4.00 ×1.00             8.0 ×1.00  10.0 [9.0, 12.0] ×1.00",
            "theirs    50.00 ×2.50    47.50  10.00 ×2.50            20.0 ×2.50               4.0 ×0.40",
        ]
    )
    assert "×" not in format_backbone_costs({"mine": metrics(1)})
