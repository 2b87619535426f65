"""Segmenters equal transformers' UPerNet on a BEiT backbone, and are exported to it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.run_info import read_run_info
from c2fmae.core.specs import HeadSpec
from c2fmae.exports import export
from c2fmae.exports.as_hf_segmenter import create_upernet
from c2fmae.models.backbones import load_backbone
from c2fmae.models.segmenters import Segmenter
from c2fmae.models.segmenters.upsampling import upsample_logits
from tests.exports.noise_sources import make_noise_backbone
from tests.models.segmenters.noise_segmenters import draw_images, make_noise_segmenter, write_segmentation_run

pytestmark = pytest.mark.numeric


def draw_ids(*size: int) -> Tensor:
    ids = torch.randint(5, (2, *size), generator=torch.Generator().manual_seed(4))
    ids[:, :5] = 255
    return ids


def compute_losses(segmenter: Segmenter, images: Tensor, ids: Tensor) -> Tensor:
    """The loss of BEiT: that of the head, and 0.4 of that of the auxiliary head."""
    maps = segmenter.feature_maps(images)
    assert segmenter.auxiliary is not None
    main, auxiliary = (
        F.cross_entropy(upsample_logits(head(maps), images.shape[2:]), ids, ignore_index=255)  # type: ignore[arg-type]
        for head in (segmenter.head, segmenter.auxiliary)
    )
    return main + 0.4 * auxiliary


@pytest.mark.parametrize("relative", ["none", "bias"])
def test_logits_and_loss_equal_transformers(relative: str) -> None:
    segmenter = make_noise_segmenter(relative=relative)
    assert segmenter.get_parameter("backbone.encoder.blocks.0.attn.qkv.bias").abs().max() > 0.1  # of keys too
    model, images, ids = create_upernet(transformers, segmenter).eval(), draw_images(32, 32), draw_ids(32, 32)
    with torch.no_grad():
        output = model(images, labels=ids)
        logits, loss = segmenter.logits(images), compute_losses(segmenter, images, ids)
    torch.testing.assert_close(output.logits, upsample_logits(logits, (32, 32)), rtol=0, atol=1e-5)
    torch.testing.assert_close(output.loss, loss, rtol=0, atol=1e-6)


def test_logits_of_images_that_are_not_square_equal_transformers() -> None:
    # transformers interpolates the positions of such images, so both models get interpolated ones.
    backbone = make_noise_backbone(patch_size=8, depth=4, keep_positions=True)
    square, wide = make_noise_segmenter(backbone=backbone), make_noise_segmenter(backbone=backbone, image_size=(32, 48))
    table = square.get_buffer("backbone.encoder.pos_embed").unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    resized = F.interpolate(table, (4, 6), mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)
    wide.get_buffer("backbone.encoder.pos_embed").copy_(resized)
    model, images, ids = create_upernet(transformers, square).eval(), draw_images(32, 48), draw_ids(32, 48)
    with torch.no_grad():
        output = model(images, labels=ids)
        logits, loss = wide.logits(images), compute_losses(wide, images, ids)
    torch.testing.assert_close(output.logits, upsample_logits(logits, (32, 48)), rtol=0, atol=1e-5)
    torch.testing.assert_close(output.loss, loss, rtol=0, atol=1e-6)


@pytest.mark.parametrize("relative", ["none", "bias"])
def test_an_exported_segmenter_is_loaded_by_transformers(relative: str, tmp_path: Path) -> None:
    segmenter = make_noise_segmenter(relative=relative)
    run = write_segmentation_run(tmp_path / "run", segmenter)
    done = export("hf", run, tmp_path / "out")
    assert done.max_difference < 1e-5
    model = transformers.AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "out").eval()
    processors: Any = transformers.AutoImageProcessor
    processor = processors.from_pretrained(tmp_path / "out")
    image = torch.randint(256, (3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        logits = model(**processor(image, return_tensors="pt", input_data_format="channels_first")).logits
        expected = segmenter.logits(segmenter.backbone.standardise(image.unsqueeze(0)))
    torch.testing.assert_close(logits, upsample_logits(expected, (32, 32)), rtol=0, atol=1e-5)
    assert model.config.id2label == {0: "sky", 1: "tree", 2: "road", 3: "car", 4: "cat"}
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    for part in ("pipeline_tag: image-segmentation", "Classes: 5 (“sky”", "`upernet` follows", "AutoModelForSemantic"):
        assert part in card
    assert "Pooled features" not in card
    assert json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())["do_reduce_labels"] is False


@pytest.mark.parametrize(
    ("head", "options", "reason"),
    [
        ("linear", {}, "its head is linear, not upernet"),
        ("upernet", {"norm": "group"}, "its norms are group norms, not batch norms"),
        ("upernet", {"normed": True}, "the map of its last block is normed"),
        ("upernet", {"relative": "decomposed"}, "its relative positions are decomposed"),
        ("upernet", {"depths": (2, 2, 3, 4)}, "four different blocks"),
        ("upernet", {"image_size": (32, 48)}, "crops of 32×48, which are not square"),
        (HeadSpec(options={"channels": 16, "rescales": (2, 1, 0.5, 0.25)}), {}, "its pyramid has rescales"),
    ],
)
def test_segmenters_that_transformers_cannot_express_are_refused(
    head: str | HeadSpec, options: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    run = write_segmentation_run(tmp_path / "run", make_noise_segmenter(head, **options))
    with pytest.raises(UserError, match=f"cannot express this segmenter: .*{reason}.*c2fmae predict"):
        export("hf", run, tmp_path / "out")


def test_other_exports_of_a_segmenter_are_those_of_its_backbone_with_a_caution(tmp_path: Path) -> None:
    run = write_segmentation_run(tmp_path / "run", make_noise_segmenter())
    assert read_run_info(run).kind == "segmentation"
    done = export("timm", run, tmp_path / "out")
    assert [*done.target.cautions] == [
        "This is only the backbone of a segmenter, without its head and classes. For those: c2fmae export hf"
    ]
    images = draw_images(32, 32)
    exported, expected = (load_backbone(source) for source in (tmp_path / "out", run))
    torch.testing.assert_close(exported.tokens(images), expected.tokens(images))
    with pytest.raises(UserError, match="takes images of any size. Omit image_size"):
        export("hf", run, tmp_path / "other", image_size=(64, 64))
    with pytest.raises(UserError, match="is a segmenter without a decoder"):
        export("safetensors", run, tmp_path / "other", part="autoencoder")
