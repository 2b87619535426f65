"""Files under MultiMAE's official names: the same features as an independent forward, and what is refused."""

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
from tests.models.backbones.official_mae import multimae_tokens, multimae_weights

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
    """Of the last block, before the norm that every backbone has, the global token last, as in MultiMAE."""
    ours = {OURS[task]: each.to(torch.uint8) if task == "semseg" else each for task, each in given.items()}
    seen: list[Tensor] = []
    hook = backbone.encoder.norm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        backbone.tokens(ours)
    hook.remove()
    return torch.cat([seen[0][:, 1:], seen[0][:, :1]], dim=1)


@pytest.mark.parametrize("tasks", [("rgb", "depth", "semseg"), ("rgb",), ("rgb", "semseg"), ("depth",)])
def test_a_pretrained_file_gives_the_features_of_multimaes_encoder(tasks: tuple[str, ...], tmp_path: Path) -> None:
    weights = multimae_weights(tasks=tasks)
    backbone = loaded(weights, tmp_path)
    given = {task: each for task, each in maps().items() if task in tasks}
    assert backbone.granularities == tuple(OURS[task] for task in given)
    torch.testing.assert_close(tokens(backbone, given), multimae_tokens(weights, given, 2), atol=1e-5, rtol=1e-5)
    for task in tasks:
        one = {task: given[task]}
        torch.testing.assert_close(tokens(backbone, one), multimae_tokens(weights, one, 2), atol=1e-5, rtol=1e-5)


def test_decoders_and_heads_are_left_aside_and_a_new_norm_is_told(tmp_path: Path) -> None:
    report = loaded(multimae_weights(), tmp_path).load_report
    assert set(report.unused) == {f"output_adapters.{name}" for name in ("rgb", "depth", "semseg", "norm_rgb")}
    assert report.unused["output_adapters.rgb"] == 49
    assert report.notes == [
        "its semantic maps had no row for places that nobody labelled: they have one of zeros",
        "it does not say how many attention heads it has: 2, one for 64 of its width, 128 (num_heads)",
        "its training had no norm behind the last block: it carries a new one, of scale 1 and shift 0",
    ]
    tuned = loaded(multimae_weights(is_finetuned=True, tasks=("rgb",)), tmp_path).load_report
    assert tuned.unused == {"output_adapters.cls": 4}


@pytest.mark.parametrize("has_unlabelled", [False, True])
def test_a_place_that_nobody_labelled_is_a_row_of_zeros(has_unlabelled: bool, tmp_path: Path) -> None:
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


def test_its_table_is_kept_and_resized_for_other_photos(tmp_path: Path) -> None:
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


REFUSED: dict[str, tuple[Callable[[], dict[str, Tensor]], str]] = {
    "thermal": (
        lambda: multimae_weights() | {"input_adapters.thermal.proj.weight": torch.ones(1)},
        "learned from thermal, which is none of semseg, depth, rgb",
    ),
    "two tokens": (
        lambda: multimae_weights() | {"global_tokens": torch.ones(1, 2, 128)},
        "has 2 global tokens. Only one can be read",
    ),
    "positions": (
        lambda: multimae_weights() | {"input_adapters.rgb.pos_emb": torch.ones(1, 128, 4, 4)},
        "semseg has other positions than rgb. Only shared ones can be read",
    ),
    "mean of classes": (
        lambda: multimae_weights() | {"input_adapters.semseg.proj.1.weight": torch.ones(1)},
        "averages a patch's classes before it projects them. Only cell by cell can be read",
    ),
    "no token": (lambda: without("global_tokens"), "lacks global_tokens, which a file of MultiMAE has"),
    "extra": (
        lambda: multimae_weights() | {"encoder.0.ls1.gamma": torch.ones(128)},
        "has, without a place for it, 1 tensors: encoder.blocks.0.ls1.gamma. Take a file that fits, or allow them by "
        "name or pattern (--allow-missing NAME, allow_missing=[…])",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_multimaes_are_refused_with_the_reason(case: str, tmp_path: Path) -> None:
    make, message = REFUSED[case]
    assert refused(make(), tmp_path) == message


def test_a_file_of_others_is_sent_to_where_it_belongs() -> None:
    file = WeightFile(tensors={"cls_token": torch.zeros(1, 1, 8)}, args={})
    with pytest.raises(UserError) as caught:
        read_multimae("file.pth", file)
    assert str(caught.value) == ("file.pth: has no input adapters of MultiMAE. If it is MAE's, take: c2fmae import mae")
