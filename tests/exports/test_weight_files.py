"""`.pth` exports have the names of MAE, detectron2, mmdet and mmseg, and give their features there."""

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from c2fmae.core.errors import RunError, UserError
from c2fmae.core.specs import BackboneSpec, EncoderConfig
from c2fmae.exports import as_mae, as_mmseg, export
from c2fmae.exports.as_mae import MAE_FILE, mae_target
from c2fmae.exports.as_mmseg import MMSEG_FILE, mmseg_target, to_mmseg_name
from c2fmae.exports.export import write_export
from c2fmae.exports.target import ExportTarget
from c2fmae.exports.timm_vit import to_timm_vit
from c2fmae.models.backbones import Backbone, load_backbone
from c2fmae.models.backbones.backbone import vit_from_spec, wrap_vit
from tests.exports.noise_sources import NOISE_ORIGIN, draw_noise_images, is_close, make_noise_backbone, write_noise_run
from tests.models.classifiers.noise_classifiers import make_noise_classifier, write_finetuned_run
from tests.models.segmenters.noise_segmenters import make_noise_segmenter, write_segmentation_run

pytestmark = pytest.mark.numeric

GOLDEN = Path(__file__).parent / "golden"
KINDS = {"mae": (mae_target, MAE_FILE), "mmseg": (mmseg_target, MMSEG_FILE)}
EPS = 1e-6


def write_target(target: ExportTarget, out: Path) -> dict[str, Tensor]:
    """The tensors of a written file."""
    write_export(target, NOISE_ORIGIN, out)
    content: dict[str, Any] = torch.load(out / target.weights_file, weights_only=True)
    tensors: dict[str, Tensor] = content.get("model", content)
    return tensors


def read_golden(name: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a tool's ViT-B; `{0-11}` and `{2,5}` stand for numbers of blocks."""
    shapes = {}
    for line in (GOLDEN / f"{name}.txt").read_text(encoding="utf-8").splitlines()[1:]:
        pattern, *sizes = line.split()
        found = re.search(r"{(.*)}", pattern)
        first, _, last = found[1].partition("-") if found else ("", "", "")
        blocks = map(str, range(int(first), int(last) + 1)) if last else first.split(",")
        for block in blocks:
            shapes[re.sub("{.*}", block, pattern)] = tuple(map(int, sizes))
    return shapes


@pytest.fixture(scope="module")
def vit_b_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of ViT-B that `export mae` writes."""
    spec = BackboneSpec(encoder=EncoderConfig(has_norm=True), image_size=(224, 224))
    with torch.device("meta"):
        vit = vit_from_spec(spec)
    tensors = as_mae.plain_vit_tensors(wrap_vit(vit.to_empty(device="cpu"), spec), "MAE")
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("golden", "resized", "unused"),
    [
        ("d2_vitdet", set(), {"cls_token", "norm.weight", "norm.bias"}),
        ("mmdet_vitdet", set(), {"cls_token", "norm.weight", "norm.bias"}),
        ("mmseg_mae", {"pos_embed"}, {"ln1.weight", "ln1.bias"}),
    ],
)
def test_every_tensor_of_another_tool_is_written_or_expected_to_be_missing(
    golden: str, resized: set[str], unused: set[str], vit_b_shapes: Mapping[str, tuple[int, ...]]
) -> None:
    theirs = read_golden(golden)
    is_mmseg = golden == "mmseg_mae"
    ours = {to_mmseg_name(name) if is_mmseg else name: shape for name, shape in vit_b_shapes.items()}
    missing = theirs.keys() - ours.keys()
    expected = as_mmseg.EXPECTED_MISSING if is_mmseg else as_mae.EXPECTED_MISSING
    patterns = expected["mmseg" if is_mmseg else "The ViTDet of detectron2 or mmdet"]
    assert {name for name in missing if any(fnmatchcase(name, pattern) for pattern in patterns)} == missing
    assert all(any(fnmatchcase(name, pattern) for name in missing) for pattern in patterns)
    assert {name for name in theirs.keys() & ours.keys() if theirs[name] != ours[name]} == resized
    assert ours.keys() - theirs.keys() == unused


def run_attention(x: Tensor, tensors: Mapping[str, Tensor], name: str, heads: int) -> Tensor:
    """Attention over [batch, token, dim], as written in BEiT and detectron2."""
    qkv = F.linear(x, tensors[f"{name}.qkv.weight"], tensors[f"{name}.qkv.bias"])
    q, k, v = qkv.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    attention = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(dim=-1)
    x = (attention @ v).transpose(1, 2).flatten(2)
    return F.linear(x, tensors[f"{name}.proj.weight"], tensors[f"{name}.proj.bias"])


def apply_layer(x: Tensor, tensors: Mapping[str, Tensor], name: str) -> Tensor:
    weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
    return F.linear(x, weight, bias) if weight.ndim == 2 else F.layer_norm(x, weight.shape, weight, bias, EPS)


def compute_detectron2_features(tensors: Mapping[str, Tensor], images: Tensor, heads: int) -> Tensor:
    """The last map of detectron2's ViT: no class token, bicubic positions, all blocks global."""
    kernel = tensors["patch_embed.proj.weight"]
    x = F.conv2d(images, kernel, tensors["patch_embed.proj.bias"], stride=kernel.shape[2])
    grid = (x.shape[2], x.shape[3])
    x = x.flatten(2).transpose(1, 2) + interpolate_table(tensors["pos_embed"][:, 1:], grid)
    for index in range(len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})):
        block = f"blocks.{index}"
        x = x + run_attention(apply_layer(x, tensors, f"{block}.norm1"), tensors, f"{block}.attn", heads)
        hidden = F.gelu(apply_layer(apply_layer(x, tensors, f"{block}.norm2"), tensors, f"{block}.mlp.fc1"))
        x = x + apply_layer(hidden, tensors, f"{block}.mlp.fc2")
    return x.transpose(1, 2).reshape(len(x), -1, *grid)


def interpolate_table(table: Tensor, grid: tuple[int, int]) -> Tensor:
    side = int(table.shape[1] ** 0.5)
    square = table.transpose(1, 2).unflatten(2, (side, side))
    return F.interpolate(square, grid, mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)


def compute_mmseg_features(tensors: Mapping[str, Tensor], images: Tensor, heads: int) -> list[Tensor]:
    """The map of every layer of mmseg's MAE with relative positions and scales as they start: 0 and 1."""
    kernel = tensors["patch_embed.projection.weight"]
    x = F.conv2d(images, kernel, tensors["patch_embed.projection.bias"], stride=kernel.shape[2])
    grid = (x.shape[2], x.shape[3])
    x = torch.cat([tensors["cls_token"].expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], dim=1)
    x, outputs = x + tensors["pos_embed"], []
    for index in range(len({name.split(".")[1] for name in tensors if name.startswith("layers.")})):
        layer = f"layers.{index}"
        x = x + run_attention(apply_layer(x, tensors, f"{layer}.ln1"), tensors, f"{layer}.attn", heads)
        hidden = F.gelu(apply_layer(apply_layer(x, tensors, f"{layer}.ln2"), tensors, f"{layer}.ffn.layers.0.0"))
        x = x + apply_layer(hidden, tensors, f"{layer}.ffn.layers.1")
        outputs.append(x[:, 1:].transpose(1, 2).unflatten(2, grid))
    return outputs


def count_heads(backbone: Backbone) -> int:
    block: Any = backbone.encoder.blocks[0]
    return int(block.attn.num_heads)


@pytest.mark.parametrize("keep_positions", [False, True])
def test_mmseg_computes_the_feature_maps_of_every_block(keep_positions: bool, tmp_path: Path) -> None:
    backbone = make_noise_backbone(keep_positions=keep_positions, size=(48, 48))
    tensors = write_target(mmseg_target(backbone), tmp_path / "out")
    images = backbone.standardise(draw_noise_images((48, 48)))
    with torch.inference_mode():
        theirs = compute_mmseg_features(tensors, images, count_heads(backbone))
        ours = backbone.feature_maps(images, [1, 2], normed=False)
    assert all(is_close(one, other) for one, other in zip(theirs, ours, strict=True))


@pytest.mark.parametrize("size", [(48, 48), (96, 64)])
def test_detectron2_computes_the_feature_map_of_the_last_block(size: tuple[int, int], tmp_path: Path) -> None:
    backbone = make_noise_backbone(keep_positions=True, size=(48, 48))
    tensors = write_target(mae_target(backbone), tmp_path / "out")
    images = backbone.standardise(draw_noise_images(size))
    encoder = backbone.encoder
    encoder.cls_token, encoder.num_prefix_tokens = None, 0  # detectron2 leaves it out
    table = interpolate_table(encoder.pos_embed, (size[0] // 16, size[1] // 16))  # without antialiasing, unlike timm
    encoder.pos_embed, encoder.pos_grid = table, (size[0] // 16, size[1] // 16)
    with torch.inference_mode():
        theirs = compute_detectron2_features(tensors, images, count_heads(backbone))
        assert is_close(theirs, backbone.feature_maps(images, [2], normed=False)[0])


@pytest.mark.parametrize("keep_positions", [False, True])
@pytest.mark.parametrize("has_fc_norm", [False, True])
def test_an_export_for_mae_is_reloaded_exactly(keep_positions: bool, has_fc_norm: bool, tmp_path: Path) -> None:
    backbone = make_noise_backbone(keep_positions=keep_positions, has_fc_norm=has_fc_norm, size=(48, 48))
    tensors = write_target(mae_target(backbone), tmp_path / "out")
    assert tensors["pos_embed"].shape == (1, 1 + 9, backbone.dim)
    again = load_backbone(tmp_path / "out" / MAE_FILE, num_heads=count_heads(backbone))
    images = backbone.standardise(draw_noise_images((48, 48)))
    with torch.inference_mode():
        assert torch.equal(again.tokens(images), backbone.tokens(images))
        assert torch.equal(again.pooled(images), backbone.pooled(images))
    assert again.spec.encoder.keep_positions == keep_positions


def test_positions_of_patches_alone_get_a_row_for_the_class_token(tmp_path: Path) -> None:
    backbone = make_noise_backbone("vit_tiny_patch16_224", keep_positions=True, dim=32, num_heads=4, size=(32, 32))
    vit = to_timm_vit(backbone)
    vit.no_embed_class = True
    vit.pos_embed = nn.Parameter(torch.ones(1, 4, 32))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(as_mae, "to_timm_vit", lambda model: vit)
        table = as_mae.plain_vit_tensors(backbone, "MAE")["pos_embed"]
    assert table[0].mean(dim=1).tolist() == [0, 1, 1, 1, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_verification_detects_a_wrong_weight(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target_of, _ = KINDS[kind]
    save = torch.save

    def save_wrong(content: dict[str, Any], file: Path) -> None:
        tensors = content.get("model", content)
        tensors["cls_token"] = tensors["cls_token"].roll(1, dims=-1)
        save(content, file)

    monkeypatch.setattr(torch, "save", save_wrong)
    with pytest.raises(RunError, match="computes other outputs"):
        write_export(target_of(make_noise_backbone()), NOISE_ORIGIN, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("vit_small_patch14_reg4_dinov2", {"size": (28, 28)}, "it has register tokens. Use: c2fmae export timm"),
        ("vit_small_patch14_dinov2", {"size": (28, 28)}, "it has layer scales. Use: c2fmae export timm"),
        ("test_vit2", {}, "it has no class token. Use: c2fmae export timm"),
        ("test_vit", {"size": (32, 48)}, "(this one is 2×3 patches). Add --image-size 32 32"),
    ],
)
def test_vits_that_other_tools_would_misread_are_rejected(
    kind: str, name: str, options: dict[str, Any], reason: str
) -> None:
    backbone = make_noise_backbone(name, keep_positions=True, dim=32, num_heads=4, **options)
    with pytest.raises(UserError) as caught:
        KINDS[kind][0](backbone)
    assert str(caught.value).startswith("new backbone: ")
    assert str(caught.value).endswith(reason)


def test_mmseg_takes_whole_ratios_of_mlps_only() -> None:
    with pytest.raises(UserError, match="the width of its MLPs is 2.5 times its own, not a whole number"):
        mmseg_target(make_noise_backbone(mlp_ratio=2.5))


@pytest.mark.parametrize("kind", KINDS)
def test_the_encoder_of_a_run_is_exported_and_what_is_left_out_is_named(kind: str, tmp_path: Path) -> None:
    run = write_noise_run(tmp_path / "run")
    done = export(kind, run, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    for caution in done.target.cautions:
        assert caution.split("*")[0] in card.replace("\\", "")
    assert "Not part of the file: decoder, heads, embedding of semantic, embedding of instance." in card
    assert "reports these tensors as missing, as it should: " in card
    assert f"checkpoint='out/{MAE_FILE}'" in card or f"pretrained='out/{MMSEG_FILE}'" in card
    assert "mean=[123.675, 116.28, 103.53]" in card


@pytest.mark.parametrize("kind", KINDS)
def test_a_fine_tuned_run_exports_its_backbone(kind: str, tmp_path: Path) -> None:
    classifier = make_noise_classifier()
    run = write_finetuned_run(tmp_path / "run", classifier)
    done = export(kind, run, tmp_path / "out")
    assert "Not part of the file: head." in done.target.cautions
    if kind == "mae":
        assert classifier.backbone.spec.has_fc_norm
        assert "MAE's fine-tuning reports these tensors as missing, as it should: head.*." in done.target.cautions
        again = load_backbone(tmp_path / "out" / MAE_FILE, num_heads=count_heads(classifier.backbone))
        images = classifier.backbone.standardise(draw_noise_images((32, 32)))
        assert torch.equal(again.pooled(images), classifier.backbone.pooled(images))


def test_a_segmentation_run_exports_its_backbone(tmp_path: Path) -> None:
    segmenter = make_noise_segmenter("linear", image_size=(48, 48))
    export("mae", write_segmentation_run(tmp_path / "run", segmenter), tmp_path / "out")
    again = load_backbone(tmp_path / "out" / MAE_FILE, num_heads=count_heads(segmenter.backbone))
    images = segmenter.backbone.standardise(draw_noise_images((48, 48)))
    with torch.inference_mode():
        ours = segmenter.backbone.feature_maps(images, [1, 4], normed=False)
        assert all(map(torch.equal, again.feature_maps(images, [1, 4], normed=False), ours))


def test_other_norms_are_named_where_the_file_is_read() -> None:
    target = mae_target(make_noise_backbone(norm_eps=1e-12))
    assert "Its norms have eps 1e-12, which the file does not store; MAE's have 1e-06." in target.cautions
    assert "norm_layer = partial(nn.LayerNorm, eps=1e-12)" in target.usage("out")
    assert "norm_layer" not in mae_target(make_noise_backbone()).usage("out")
