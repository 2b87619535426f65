"""Files of MultiMAE's official code: the same features as an independent implementation, and rejected files."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.granularity import IGNORE
from c2fmae.core.weight_file import WeightFile
from c2fmae.models.backbones import Backbone, load_backbone
from c2fmae.models.backbones.multimae_reader import read_multimae
from tests.methods.tiny_methods import to_float64
from tests.models.backbones.official_mae import multimae_tokens, multimae_weights

pytestmark = pytest.mark.numeric

OURS = {"rgb": "rgb", "depth": "depth", "semseg": "semantic"}


def loaded(weights: dict[str, Tensor], tmp_path: Path, **options: object) -> Backbone:
    torch.save({"model": weights}, tmp_path / "multimae.pth")
    return load_backbone(tmp_path / "multimae.pth", **options)  # type: ignore[arg-type]


def refused(weights: dict[str, Tensor], tmp_path: Path) -> str:
    with pytest.raises(UserError) as caught:
        loaded(weights, tmp_path)
    return str(caught.value).removeprefix(f"{tmp_path / 'multimae.pth'}: ")


def maps(height: int = 64, width: int = 64, classes: int = 6) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "semseg": torch.randint(classes, (2, height // 4, width // 4), generator=generator),
        "depth": torch.randn(2, 1, height, width, generator=generator),
        "rgb": torch.randn(2, 3, height, width, generator=generator),
    }


def tokens(backbone: Backbone, given: Mapping[str, Tensor]) -> Tensor:
    """The tokens of the last block before the norm, with the class token last, as in MultiMAE."""
    ours = {OURS[task]: each.to(torch.uint8) if task == "semseg" else each for task, each in given.items()}
    seen: list[Tensor] = []
    hook = backbone.encoder.norm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        backbone.tokens(ours)
    hook.remove()
    return torch.cat([seen[0][:, 1:], seen[0][:, :1]], dim=1)


@pytest.mark.parametrize("tasks", [("rgb", "depth", "semseg"), ("rgb",), ("rgb", "semseg"), ("depth",)])
def test_a_pretrained_file_gives_the_features_of_the_original_multimae_encoder(
    tasks: tuple[str, ...], tmp_path: Path
) -> None:
    weights = multimae_weights(tasks=tasks)
    backbone, weights = loaded(weights, tmp_path).double(), to_float64(weights)
    given = {task: each for task, each in to_float64(maps()).items() if task in tasks}
    assert backbone.granularities == tuple(OURS[task] for task in given)
    torch.testing.assert_close(tokens(backbone, given), multimae_tokens(weights, given, 2), atol=1e-5, rtol=1e-5)
    for task in tasks:
        one = {task: given[task]}
        torch.testing.assert_close(tokens(backbone, one), multimae_tokens(weights, one, 2), atol=1e-5, rtol=1e-5)


def test_decoders_are_reported_as_unused_and_the_new_norm_is_noted(tmp_path: Path) -> None:
    report = loaded(multimae_weights(), tmp_path).load_report
    assert set(report.unused) == {f"output_adapters.{name}" for name in ("rgb", "depth", "semseg", "norm_rgb")}
    assert report.unused["output_adapters.rgb"] == 49
    assert report.notes == [
        "it has no embedding of unlabelled cells of semantic maps: one of zeros was added",
        "the number of attention heads is not stored: 2 are assumed, one per 64 channels of width 128 (set num_heads)",
        "it was trained without a norm after the last block: a new one with weight 1 and bias 0 was added",
    ]
    tuned = loaded(multimae_weights(is_finetuned=True, tasks=("rgb",)), tmp_path).load_report
    assert tuned.unused == {"output_adapters.cls": 4}


@pytest.mark.parametrize("has_unlabelled", [False, True])
def test_unlabelled_cells_are_embedded_as_zeros(has_unlabelled: bool, tmp_path: Path) -> None:
    weights = multimae_weights(has_unlabelled=has_unlabelled, is_finetuned=True)
    backbone = loaded(weights, tmp_path)
    assert backbone.spec.channels["semantic"] == 6
    given = {"semseg": maps()["semseg"]}
    given["semseg"][:, :3] = 6
    padded = {**weights, "input_adapters.semseg.class_emb.weight": torch.zeros(7, 64)}
    padded["input_adapters.semseg.class_emb.weight"][:6] = weights["input_adapters.semseg.class_emb.weight"][:6]
    expected = multimae_tokens(padded, given, 2)
    given["semseg"][:, :3] = IGNORE
    torch.testing.assert_close(tokens(backbone, given), expected, atol=1e-5, rtol=1e-5)


def test_the_position_table_is_stored_and_resized_for_other_image_sizes(tmp_path: Path) -> None:
    weights = multimae_weights()
    backbone = loaded(weights, tmp_path)
    assert backbone.spec.encoder.keep_positions
    for size, resized in (((64, 64), {}), ((96, 32), {"encoder.pos_embed": "4×4 → 6×2"})):
        at_size = loaded(weights, tmp_path, image_size=size)
        assert {name: how.partition(",")[0] for name, how in at_size.load_report.resized.items()} == resized
        given = maps(*size)
        torch.testing.assert_close(tokens(at_size, given), tokens(backbone, given), atol=1e-5, rtol=1e-5)


def without(name: str) -> dict[str, Tensor]:
    return {key: each for key, each in multimae_weights().items() if key != name}


REJECTED: dict[str, tuple[Callable[[], dict[str, Tensor]], str]] = {
    "thermal": (
        lambda: multimae_weights() | {"input_adapters.thermal.proj.weight": torch.ones(1)},
        "has unsupported tasks: thermal (supported: semseg, depth, rgb). Use another file",
    ),
    "two tokens": (
        lambda: multimae_weights() | {"global_tokens": torch.ones(1, 2, 128)},
        "has 2 global tokens, expected 1. Use another file",
    ),
    "positions": (
        lambda: multimae_weights() | {"input_adapters.rgb.pos_emb": torch.ones(1, 128, 4, 4)},
        "the positions of semseg and rgb differ, expected shared ones. Use another file",
    ),
    "mean of classes": (
        lambda: multimae_weights() | {"input_adapters.semseg.proj.1.weight": torch.ones(1)},
        "averages the classes of a patch before projecting, which is not supported. Use another file",
    ),
    "no token": (lambda: without("global_tokens"), "global_tokens is missing. Use an official file of MultiMAE"),
    "extra": (
        lambda: multimae_weights() | {"encoder.0.ls1.gamma": torch.ones(128)},
        "1 unexpected tensor (encoder.blocks.0.ls1.gamma). Use a file that matches, or allow them by name or pattern "
        "(--allow-missing NAME, allow_missing=[…])",
    ),
}


@pytest.mark.parametrize("case", REJECTED)
def test_unsupported_files_of_multimae_are_rejected_with_the_reason(case: str, tmp_path: Path) -> None:
    make, message = REJECTED[case]
    assert refused(make(), tmp_path) == message


def test_a_file_of_mae_is_rejected_with_the_right_command() -> None:
    file = WeightFile(tensors={"cls_token": torch.zeros(1, 1, 8)}, args={})
    with pytest.raises(UserError) as caught:
        read_multimae("file.pth", file)
    assert str(caught.value) == (
        "file.pth: has no input adapters of MultiMAE. If it is a file of MAE, use: c2fmae import mae"
    )
