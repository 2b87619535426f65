"""Pyramids have the parameters of the published ones, and maps of the strides of their spec."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from c2fmae.core.detector_spec import PyramidSpec
from c2fmae.core.errors import UserError
from c2fmae.core.operation_count import count_parameters
from c2fmae.models.detectors.pyramids import create_pyramid, initialise_pyramid
from tests.models.tiny_models import draw_normal, randomise_parameters

pytestmark = pytest.mark.numeric

PAPER = PyramidSpec()
VITDET = PyramidSpec(name="simple", norm="layer", depths=(12,))
LITE = PyramidSpec(name="simple", norm="layer", depths=(4,), channels=64, strides=(4, 8, 16, 32), top_level=False)
GOLDEN = {
    "fpn": """
        rescale.levels.0.0.{weight,bias} rescale.levels.0.1.{weight,bias} rescale.levels.0.3.{weight,bias}
        rescale.levels.1.{weight,bias} lateral_convs.{0,1,2,3}.{weight,bias} fpn_convs.{0,1,2,3}.{weight,bias}
    """,
    "simple": """
        levels.0.0.0.{weight,bias} levels.0.0.1.{weight,bias} levels.0.0.3.{weight,bias} levels.1.0.{weight,bias}
        levels.{0,1,2,3}.{1,3}.weight levels.{0,1,2,3}.{2,4}.{weight,bias}
    """,
}


def expand(pattern: str) -> set[str]:
    """The names of a pattern: `a.{0,1}` stands for `a.0` and `a.1`."""
    before, brace, rest = pattern.partition("{")
    if not brace:
        return {pattern}
    choices, _, after = rest.partition("}")
    return {name for choice in choices.split(",") for name in expand(before + choice + after)}


@pytest.mark.parametrize(
    ("spec", "dim", "patch", "parameters"),
    [(PAPER, 768, 16, 10_229_504), (VITDET, 768, 16, 5_560_000), (LITE, 128, 8, 209_984)],
)
def test_names_and_parameter_counts_are_the_golden_ones(
    spec: PyramidSpec, dim: int, patch: int, parameters: int
) -> None:
    with torch.device("meta"):
        pyramid = create_pyramid(spec, dim, patch)
    assert count_parameters(pyramid) == parameters
    if spec is not LITE:
        golden = {name for pattern in GOLDEN[spec.name].split() for name in expand(pattern)}
        assert {name for name, _ in pyramid.named_parameters()} == golden


@pytest.mark.parametrize(("spec", "patch"), [(PAPER, 16), (VITDET, 16), (LITE, 8)])
@pytest.mark.parametrize("grid", [(12, 12), (6, 10), (7, 9), (4, 13), (2, 2)])
def test_maps_have_the_strides_of_the_spec(spec: PyramidSpec, patch: int, grid: tuple[int, int]) -> None:
    pyramid = create_pyramid(spec, 16, patch)
    maps = pyramid([draw_normal(1, 16, *grid) for _ in spec.depths])
    assert len(maps) == len(spec.strides)
    for x, stride in zip(maps, spec.strides, strict=True):
        assert x.shape[1] == spec.channels
        for cells, patches in zip(x.shape[2:], grid, strict=True):
            exact = patches * patch / stride
            assert cells in (int(exact), -int(-exact // 1))  # incomplete cells are left out, or not
            assert cells == exact or exact % 1


def test_a_fpn_equals_mmdet() -> None:
    """Laterals, nearest interpolation to the finer map, addition, convolutions, every second cell: for even sizes."""
    pyramid: Any = randomise_parameters(create_pyramid(PyramidSpec(channels=4), 8, 16), std=0.3)
    maps = [draw_normal(2, 8, 4, 6, seed=seed) for seed in range(4)]
    with torch.no_grad():
        laterals = [conv(x) for conv, x in zip(pyramid.lateral_convs, pyramid.rescale(maps), strict=True)]
        for index in (2, 1, 0):
            size = laterals[index].shape[2:]
            laterals[index] = laterals[index] + F.interpolate(laterals[index + 1], size=size, mode="nearest")
        expected = [conv(x) for conv, x in zip(pyramid.fpn_convs, laterals, strict=True)]
        expected.append(F.max_pool2d(expected[-1], 1, stride=2))
        outputs = pyramid(maps)
    for ours, theirs in zip(outputs, expected, strict=True):
        assert torch.equal(ours, theirs)


def test_cells_of_a_top_down_path_stay_in_place_for_odd_sizes() -> None:
    """A cell is added to the four that it covers; mmdet's interpolation shifts them where an odd side was halved."""
    pyramid: Any = create_pyramid(PyramidSpec(channels=1, strides=(16, 32), top_level=False, depths=(1, 2)), 8, 16)
    with torch.no_grad():
        for conv in (*pyramid.lateral_convs, *pyramid.fpn_convs):
            nn.init.zeros_(conv.weight)
            nn.init.zeros_(conv.bias)
        pyramid.lateral_convs[1].weight[:, 0] = 1
        pyramid.fpn_convs[0].weight[:, :, 1, 1] = 1
        coarse = torch.zeros(1, 8, 5, 7)
        coarse[0, 0] = torch.arange(35.0).view(5, 7)
        fine, _ = pyramid([torch.zeros(1, 8, 5, 7), coarse])
    pooled = F.max_pool2d(coarse[:, :1], 2)
    rows, columns = torch.arange(5) // 2, torch.arange(7) // 2
    assert torch.equal(fine, pooled[:, :, rows.clamp(max=1)][:, :, :, columns.clamp(max=2)])


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The layer norm over channels of detectron2."""
    mean = x.mean(dim=1, keepdim=True)
    deviation = ((x - mean) ** 2).mean(dim=1, keepdim=True).add(1e-6).sqrt()
    return weight[:, None, None] * (x - mean) / deviation + bias[:, None, None]


def test_a_simple_pyramid_equals_detectron2() -> None:
    """The maps of ViTDet's SimpleFeaturePyramid, from its operations."""
    spec = PyramidSpec(name="simple", norm="layer", depths=(1,), channels=4)
    pyramid = randomise_parameters(create_pyramid(spec, 8, 16), std=0.5)
    p = dict(pyramid.named_parameters())
    x = draw_normal(2, 8, 4, 6)

    def norm(y: Tensor, name: str) -> Tensor:
        return layer_norm(y, p[f"{name}.weight"], p[f"{name}.bias"])

    def double(y: Tensor, name: str) -> Tensor:
        return F.conv_transpose2d(y, p[f"{name}.weight"], p[f"{name}.bias"], stride=2)

    scaled = [
        double(F.gelu(norm(double(x, "levels.0.0.0"), "levels.0.0.1")), "levels.0.0.3"),
        double(x, "levels.1.0"),
        x,
        F.max_pool2d(x, 2),
    ]
    maps = pyramid([x])
    for index, y in enumerate(scaled):
        projected = norm(F.conv2d(y, p[f"levels.{index}.1.weight"]), f"levels.{index}.2")
        expected = norm(F.conv2d(projected, p[f"levels.{index}.3.weight"], padding=1), f"levels.{index}.4")
        torch.testing.assert_close(maps[index], expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(maps[4], maps[3][:, :, ::2, ::2])


@pytest.mark.parametrize("spec", [PAPER, VITDET])
def test_initial_weights_depend_on_the_generator_only(spec: PyramidSpec) -> None:
    small = spec.model_copy(update={"channels": 4})
    pyramids = [create_pyramid(small, 8, 16) for _ in range(2)]
    for pyramid in pyramids:
        initialise_pyramid(pyramid, torch.Generator().manual_seed(0))
    for (name, one), other in zip(pyramids[0].named_parameters(), pyramids[1].parameters(), strict=True):
        assert torch.equal(one, other)
        if name.startswith(("lateral_convs", "fpn_convs")):
            fan = one[0].numel() + one[:, 0].numel() if one.ndim > 1 else 1
            assert one.abs().max() <= (6 / fan) ** 0.5 if one.ndim > 1 else not one.any()


def test_strides_must_fit_the_patches() -> None:
    with pytest.raises(UserError, match="with patches of 14 pixels a stride is one of 7, 14, 28, 56, got 4"):
        create_pyramid(PAPER, 16, 14)
