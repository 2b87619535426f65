import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from c2fmae.core.errors import UserError
from c2fmae.core.operation_count import count_with_fvcore
from c2fmae.core.specs import BackboneSpec, EncoderConfig
from c2fmae.eval.cost import measure
from c2fmae.eval.cost.backbone import compute_backbone_cost
from c2fmae.eval.cost.config import CostEvaluation
from c2fmae.eval.cost.measure import measure_backbones
from c2fmae.eval.cost.memory import peak_bytes, saved_tensor_bytes
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
"""Width, depth, width inside the MLP, heads; patches of 16 and a global token."""
QUICK = CostEvaluation(image_size=(32, 48), batch_size=2, rounds=1, precisions=("fp32",))


def backbone_of(
    name: str = "test_vit", *, depth: int | None = None, device: str = "meta", **changes: object
) -> Backbone:
    values = {"encoder": {"name": name, "has_norm": True, "depth": depth}, "image_size": (224, 224), **changes}
    spec = BackboneSpec.model_validate(values)
    with torch.device(device):
        return wrap_vit(vit_from_spec(spec), spec)


def products(name: str, size: tuple[int, int], depth: int | None = None) -> int:
    """Multiplications of a photo's forward pass, from sizes alone."""
    dim, whole, inside, _ = VITS[name]
    depth = depth or whole
    patches = size[0] // 16 * (size[1] // 16)
    tokens = 1 + patches
    block = tokens * (4 * dim**2 + 2 * dim * inside) + 2 * tokens**2 * dim
    return patches * 3 * 16**2 * dim + depth * block


SIZES = [(224, 224), (512, 512), (96, 160)]


@pytest.mark.parametrize(("size", "depth"), list(zip(SIZES, (None, 1, 3), strict=True)))
@pytest.mark.parametrize("name", VITS)
def test_operations_are_what_arithmetic_says(name: str, size: tuple[int, int], depth: int | None) -> None:
    cost, dim = compute_backbone_cost(backbone_of(name, depth=depth), size), VITS[name][0]
    assert cost.flops == 2 * products(name, size, depth)
    assert cost.part_costs["embeddings"].flops == 2 * (size[0] * size[1] * 3) * dim


def test_a_vit_b_takes_what_is_said_of_it() -> None:
    head = 768 * 1000  # which others count
    assert (compute_backbone_cost(backbone_of("vit_base_patch16_224")).flops / 2 + head) / 1e9 == pytest.approx(
        17.564, abs=5e-4
    )


@pytest.mark.compile  # a trace, in which sizes are tensors: shape checks cannot read them
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", list(VITS)[1:])
def test_fvcore_counts_what_torch_does(name: str, size: tuple[int, int]) -> None:
    backbone = backbone_of(name, depth=2)  # a trace of each of many blocks that are alike takes long
    assert compute_backbone_cost(backbone, size, counter=count_with_fvcore) == compute_backbone_cost(backbone, size)


@pytest.mark.parametrize(("side", "depth"), [(224, 12), (512, 1)])
def test_fvcore_counts_as_much_of_timms_own_model_and_norms_besides(side: int, depth: int) -> None:
    name = "vit_tiny_patch16_224"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from fvcore.nn import FlopCountAnalysis  # type: ignore[import-untyped]

        backbone = backbone_of(name, depth=depth, image_size=(side, side))
        vit = vit_from_spec(backbone.spec).eval()
        for module in vit.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = False  # type: ignore[assignment]  # what is fused it would not count
        analysis = FlopCountAnalysis(vit, torch.zeros(1, 3, side, side)).unsupported_ops_warnings(False)
        theirs = 2 * analysis.tracer_warnings("none").total()
    ours = compute_backbone_cost(backbone).flops
    norms = 2 * 5 * (2 * depth + 1) * (1 + (side // 16) ** 2) * 192  # which we do not count
    assert theirs - norms == ours


def test_parameters_are_those_of_the_backbone() -> None:
    backbone = backbone_of(channels={"semantic": 9, "rgb": 3}, has_fc_norm=True)
    parts = compute_backbone_cost(backbone).part_costs
    assert sum(part.parameters for part in parts.values()) == sum(p.numel() for p in backbone.parameters())
    classes = 10 * 64 + (64 * 4 * 4 + 1) * 64
    assert parts["embeddings"].parameters == classes + (3 * 16 * 16 + 1) * 64
    block = 4 * 64**2 + 4 * 64 + 2 * 64 * 192 + 192 + 64 + 4 * 64
    assert parts["encoder"].parameters == 64 + 6 * block + 2 * 64


def test_embeddings_of_maps_have_nothing_to_do_with_photos_alone() -> None:
    assert (
        compute_backbone_cost(backbone_of(channels={"semantic": 9, "rgb": 3})).flops
        == compute_backbone_cost(backbone_of()).flops
    )


def test_a_cost_needs_no_weights() -> None:
    backbone = backbone_of(device="cpu")
    for parameter in backbone.parameters():
        parameter.data.normal_()  # what nobody has drawn may be anything, NaN too
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    assert compute_backbone_cost(backbone) == compute_backbone_cost(backbone_of())
    assert all(torch.equal(before[name], tensor) for name, tensor in backbone.state_dict().items())


def test_photos_are_of_the_size_that_the_backbone_learned_from_unless_told_otherwise() -> None:
    backbone = backbone_of(image_size=(64, 32))
    assert compute_backbone_cost(backbone).flops == 2 * products("test_vit", (64, 32))


def test_photos_that_patches_do_not_divide_are_refused() -> None:
    with pytest.raises(UserError, match="^image_size: 32×40 is not divisible into patches of 16×16$"):
        compute_backbone_cost(backbone_of(), (32, 40))


def test_a_backbone_that_takes_no_photos_is_refused() -> None:
    message = "^what a photo costs cannot be said of a backbone that takes none, but semantic$"
    with pytest.raises(UserError, match=message):
        compute_backbone_cost(backbone_of(channels={"semantic": 9}))


def activations(size: tuple[int, int]) -> int:
    """Bytes that a float32 forward pass of a small ViT keeps of one image of several, operation by operation."""
    dim, depth, inside, heads = VITS["test_vit"]
    patches = size[0] // 16 * (size[1] // 16)
    tokens = 1 + patches
    norm = tokens * dim + 2 * tokens  # its input; mean and deviation
    attention = tokens * dim + 3 * tokens * dim + heads * tokens**2 + tokens * dim  # to q, k and v; these; shares; out
    mlp = tokens * dim + 2 * tokens * inside  # to the first product, to GELU, to the second
    embedding = patches * 3 * 16**2 + patches * dim  # pixels; tokens on their way to their places
    places = 8 * patches
    return 4 * (embedding + depth * (2 * norm + attention + mlp) + norm) + places


@pytest.mark.parametrize("size", [(32, 48), (64, 64)])
def test_activations_are_what_a_count_by_hand_says(size: tuple[int, int]) -> None:
    backbone = backbone_of(device="cpu")
    settings = QUICK.model_copy(update={"image_size": size})
    metric = find_metric(measure_backbones({"it": backbone}, settings)["it"], "activation_bytes", precision="fp32")
    assert metric is not None
    assert metric.value == activations(size)


def test_what_is_kept_twice_counts_once_and_weights_do_not_count() -> None:
    layer, x = nn.Linear(4, 8, bias=False), torch.zeros(3, 4, requires_grad=True)
    assert saved_tensor_bytes(layer, lambda: layer(x)) == 4 * 3 * 4
    assert saved_tensor_bytes(layer, lambda: layer(x) + layer(x[:2]).sum()) == 4 * 3 * 4
    assert saved_tensor_bytes(nn.Identity(), lambda: layer(x)) == 4 * (3 * 4 + 4 * 8)
    assert saved_tensor_bytes(layer, lambda: layer(x).exp()) == 4 * (3 * 4 + 3 * 8)


def test_bytes_are_kept_even_where_gradients_are_off() -> None:
    layer, x = nn.Linear(4, 8, bias=False), torch.zeros(3, 4)
    with torch.no_grad():
        assert saved_tensor_bytes(layer, lambda: layer(x)) == 4 * 3 * 4


def test_a_peak_is_what_is_held_at_once() -> None:
    def call() -> int:
        first = torch.zeros(1000)
        second = first.exp()
        del first
        third = second[:100].exp()
        return len(third)

    assert peak_bytes(call) == 4 * 2000


def test_an_evaluation_yields_all_that_it_says(tmp_path: Path) -> None:
    evaluation = EVALUATIONS.get("cost").from_dict(
        {"image_size": [32, 48], "batch_size": 2, "rounds": 6, "precisions": ["fp32", "bf16"]}
    )
    subject = ModelUnderTest.in_memory("tiny", tmp_path, backbone=backbone_of(device="cpu"), method=None)
    metrics = {(metric.key, *metric.tags.values()): metric for metric in next(evaluation.run_models([subject])).metrics}
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
    protocol = evaluation.describe_protocol(subject)
    assert protocol.startswith("For one image of 32×48. ")
    assert "median of 6 forward passes of 2 images each" in protocol
    assert evaluation.identify_inputs(subject)["machine"] in protocol
    assert "1 thread of" in protocol


def test_sources_are_timed_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[tuple[int, str]] = []
    true = measure._forward_without_grad

    def infer(backbone: Backbone, photos: torch.Tensor, precision: Precision) -> torch.Tensor:
        if len(photos) == 2:
            turns.append((backbone.depth, precision))
        return true(backbone, photos, precision)

    monkeypatch.setattr(measure, "_forward_without_grad", infer)
    one, other = (backbone_of(device="cpu", encoder=EncoderConfig(name="test_vit", depth=n)) for n in (1, 2))
    measure_backbones({"one": one, "other": other}, QUICK)
    assert turns == 3 * [(1, "fp32"), (2, "fp32")]


def test_a_table_has_a_row_for_every_source_and_compares_it_to_the_first() -> None:
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
