"""Imported pre-trainings of MAE and MultiMAE: the same losses as the originals, and runs that continue them."""

import argparse
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.masks import Masks
from c2fmae.core.run_dir import find_checkpoint
from c2fmae.core.scene import SceneBatch
from c2fmae.importing import import_mae, import_multimae
from c2fmae.loading import load_run
from c2fmae.methods import MaskedAutoencoding
from c2fmae.models.backbones import load_backbone
from c2fmae.pretrain import pretrain
from c2fmae.recipes.config import RecipeConfig, load_recipe
from tests.methods.tiny_methods import perturb_parameters
from tests.models.backbones.official_mae import (
    hidden_mean,
    mae_predictions,
    mae_weights,
    multimae_predictions,
    multimae_weights,
    normalise_patches,
    sincos_table,
)

pytestmark = pytest.mark.numeric

BATCH, SIDE, NUM_PATCHES = 3, 64, 16
TASKS = ("semseg", "depth", "rgb")


def imported(
    tmp_path: Path, weights: dict[str, Tensor], *overrides: str, method: str = "mae", extra: Any = None, **options: Any
) -> tuple[MaskedAutoencoding, list[str]]:
    """The method of an imported run directory, and the notes of the import."""
    torch.save({"model": weights, **(extra or {})}, tmp_path / "file.pth")
    import_one = import_mae if method == "mae" else import_multimae
    notes = import_one(tmp_path / "file.pth", tmp_path / "out", load_recipe(f"{method}-b"), overrides, **options)
    return load_run(tmp_path / "out").method, notes


def scenes(channels: int = 3, classes: int = 6) -> SceneBatch:
    generator = torch.Generator().manual_seed(4)
    maps = {
        "semantic": torch.randint(classes, (BATCH, SIDE // 4, SIDE // 4), generator=generator).to(torch.uint8),
        "depth": torch.rand(BATCH, SIDE, SIDE, generator=generator),
        "rgb": torch.randint(256, (BATCH, channels, SIDE, SIDE), generator=generator).to(torch.uint8),
    }
    return SceneBatch(tuple("abc"), maps, (None,) * BATCH)


def masks_of(granularities: tuple[str, ...], num_visible: int) -> Masks:
    generator = torch.Generator().manual_seed(5)
    total = len(granularities) * NUM_PATCHES
    order = torch.rand(BATCH, total, generator=generator).argsort(dim=1)
    is_masked = (order >= num_visible).view(BATCH, -1, NUM_PATCHES)
    return Masks.from_mask(is_masked, granularities, num_visible=num_visible)


@torch.no_grad()
def losses_of(
    method: MaskedAutoencoding, masks: Masks, channels: int = 3
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    maps = method.prepare_inputs(scenes(channels))
    method.model.train(False)
    predictions = method.model(maps, masks)
    return method.compute_loss(predictions, maps, masks).terms, predictions


def test_an_imported_mae_makes_the_predictions_of_the_original(tmp_path: Path) -> None:
    weights = mae_weights()
    method, notes = imported(tmp_path, weights)
    masks = masks_of(("rgb",), 4)
    expected = mae_predictions(weights, method.prepare_inputs(scenes())["rgb"], masks.is_masked[:, 0], 2, 2)
    _, predictions = losses_of(method, masks)
    torch.testing.assert_close(predictions["rgb"], expected, atol=1e-5, rtol=1e-5)
    assert notes == [
        "whether pixel targets are normalised (norm_pix_loss) is not stored: they are assumed to be "
        "(method.targets.rgb=[pixels] otherwise)",
        "its decoder's number of attention heads is not stored: 2 are assumed, as in MAE at width 64",
        "60 of 60 tensors were imported; newly initialised: none",
    ]
    assert [target.name for target in method.config.targets["rgb"]] == ["normalized_pixels"]
    assert method.config.resolve_num_visible(NUM_PATCHES) == 4


def test_targets_and_mask_ratio_are_read_from_training_options(tmp_path: Path) -> None:
    args = argparse.Namespace(norm_pix_loss=False, mask_ratio=0.5)
    method, notes = imported(tmp_path, mae_weights(), extra={"args": args})
    assert [target.name for target in method.config.targets["rgb"]] == ["pixels"]
    assert method.config.resolve_num_visible(NUM_PATCHES) == 8
    assert len(notes) == 2


@pytest.mark.parametrize("is_normalized", [True, False])
def test_an_imported_vit_mae_has_the_loss_of_transformers(is_normalized: bool, tmp_path: Path) -> None:
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = ViTMAEForPreTraining(
            ViTMAEConfig(
                hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, image_size=SIDE,
                decoder_hidden_size=32, decoder_num_hidden_layers=2, decoder_num_attention_heads=4,
                decoder_intermediate_size=96, norm_pix_loss=is_normalized,
            )
        )  # fmt: skip
    theirs.train(False)
    perturb_parameters(theirs)
    for table in (theirs.vit.embeddings.position_embeddings, theirs.decoder.decoder_pos_embed):
        # In a new model of the library they are zeros; converted files have sines and cosines.
        table.data = F.pad(sincos_table((4, 4), table.shape[2], "column"), (0, 0, 1, 0)).unsqueeze(0)
    theirs.save_pretrained(tmp_path / "folder")
    import_mae(tmp_path / "folder", tmp_path / "out", load_recipe("mae-b"))
    method = load_run(tmp_path / "out").method
    masks = masks_of(("rgb",), 4)
    with torch.no_grad():
        images = method.prepare_inputs(scenes())["rgb"]
        expected = theirs(images, noise=masks.is_masked[:, 0] + torch.linspace(0, 0.5, NUM_PATCHES))
    assert torch.equal(expected.mask.bool(), masks.is_masked[:, 0])
    parts, predictions = losses_of(method, masks)
    torch.testing.assert_close(predictions["rgb"], expected.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(parts["rgb"], expected.loss, atol=1e-5, rtol=1e-5)
    assert method.config.decoder.options.num_heads == 4


def test_an_imported_multimae_has_the_losses_of_the_original(tmp_path: Path) -> None:
    weights = multimae_weights()
    method, notes = imported(tmp_path, weights, method="multimae")
    assert method.config.granularities == ("semantic", "depth", "rgb")
    masks = masks_of(method.config.granularities, 8)
    maps = method.prepare_inputs(scenes())
    theirs = dict(zip(TASKS, (maps[name] for name in method.config.granularities), strict=True))
    predicted = multimae_predictions(weights, theirs, masks.is_masked, 2, 2)
    errors = {
        "semantic": F.cross_entropy(predicted["semseg"], theirs["semseg"].long(), reduction="none"),
        "depth": (predicted["depth"] - theirs["depth"]).abs().mean(dim=1),
        "rgb": (predicted["rgb"] - theirs["rgb"]).square().mean(dim=1),
        "rgb_normalized_pixels": (predicted["norm_rgb"] - normalise_patches(theirs["rgb"])).square().mean(dim=1),
    }
    parts, _ = losses_of(method, masks)
    assert parts.keys() == errors.keys()
    for name, error in errors.items():
        place = method.config.granularities.index(name.partition("_")[0])
        expected = hidden_mean(error, masks.is_masked[:, place])
        torch.testing.assert_close(parts[name], expected, atol=1e-5, rtol=1e-5, msg=name)
    assert notes[-1].endswith("; newly initialised: none")


@pytest.mark.parametrize("adapter", ["rgb", "norm_rgb", "semseg"])
def test_a_missing_decoder_of_multimae_is_initialised_and_the_others_are_imported(adapter: str, tmp_path: Path) -> None:
    weights = multimae_weights()
    part = {name: each for name, each in weights.items() if not name.startswith(f"output_adapters.{adapter}.")}
    whole, _ = imported(tmp_path, weights, method="multimae")
    (tmp_path / "out").rename(tmp_path / "whole")
    method, notes = imported(tmp_path, part, method="multimae")
    masks = masks_of(method.config.granularities, 8)
    (before, _), (after, _) = losses_of(whole, masks), losses_of(method, masks)
    if adapter == "semseg":
        assert "newly initialised: decoder.entries, decoder.stages, heads.semantic" in notes[-1]
        del before["semantic"], after["semantic"]
    else:
        target = {"rgb": "normalized_pixels", "norm_rgb": "pixels"}[adapter]
        assert [each.name for each in method.config.targets["rgb"]] == [target]
        before["rgb"] = before[{"rgb": "rgb_normalized_pixels", "norm_rgb": "rgb"}[adapter]]
        del before["rgb_normalized_pixels"]
    assert before.keys() == after.keys()
    for name in before:
        torch.testing.assert_close(before[name], after[name])


def test_a_file_without_decoder_gets_a_new_one(tmp_path: Path) -> None:
    method, notes = imported(tmp_path, mae_weights(decoder=None))
    assert notes[-2:] == [
        "the source has no decoder",
        "29 of 132 tensors were imported; newly initialised: decoder.blocks, decoder.entry, decoder.norm, heads.rgb",
    ]
    assert (method.config.decoder.options.dim, method.config.decoder.options.depth) == (512, 8)


def test_the_norm_of_a_finetuned_file_is_not_used(tmp_path: Path) -> None:
    small = ("method.decoder.options.dim=32", "method.decoder.options.depth=1", "method.decoder.options.num_heads=2")
    _, notes = imported(tmp_path, mae_weights(is_finetuned=True), *small)
    assert "encoder.norm" in notes[-2]
    assert notes[-1] == "not used: fc_norm.bias, fc_norm.weight"


@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("method", ["mae", "multimae"])
def test_changed_channels_are_embedded_and_predicted_as_the_mean_of_the_old_ones(
    method: str, channels: int, tmp_path: Path
) -> None:
    weights = mae_weights() if method == "mae" else multimae_weights(tasks=("rgb",))
    before, _ = imported(tmp_path, weights, method=method)
    (tmp_path / "out").rename(tmp_path / "before")
    after, notes = imported(tmp_path, weights, method=method, channels=channels)
    assert notes[-2] == (
        f"images have {channels} channel{'s' * (channels > 1)} instead of 3: "
        "each new channel is embedded and predicted as the mean of the "
        "old ones; mean and std are those of the data"
    )
    grey, masks = torch.randn(BATCH, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0)), masks_of(("rgb",), 4)
    with torch.no_grad():
        ours = after.model({"rgb": grey.expand(-1, channels, -1, -1)}, masks)
        theirs = before.model({"rgb": grey.expand(-1, 3, -1, -1)}, masks)
    for name, values in theirs.items():
        mean = values.unflatten(2, (-1, 3)).mean(dim=3, keepdim=True)
        torch.testing.assert_close(ours[name], mean.expand(-1, -1, -1, channels).flatten(2), atol=1e-5, rtol=1e-5)
    assert after.config.mean is None


GENERATED = (
    "data.train=generated", "data.train.options={size: 64, length: 8}", "data.workers=0", "training.epochs=null",
    "training.warmup_epochs=null", "training.warmup_steps=0", "training.batch_size=4", "training.base_lr=null",
    "training.lr=1e-3", "training.steps=2", "watching.figures=0",
)  # fmt: skip


@pytest.mark.parametrize("method", ["mae", "multimae"])
def test_training_continues_from_an_imported_run(method: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    weights = mae_weights() if method == "mae" else multimae_weights(tasks=("rgb", "semseg"), classes=9)
    imported(tmp_path, weights, method=method)
    recipe = load_recipe(str(tmp_path / "out" / "config.yaml"), [*GENERATED, "method.channels.semantic=9"])
    classes = len(recipe.data.open_training(("semantic",)).info.classes)
    recipe = recipe.override([f"method.channels.semantic={classes}"])
    with caplog.at_level("INFO", "c2fmae"):
        outcome = pretrain(recipe, tmp_path / "run")
    assert (outcome.status, outcome.step) == ("finished", 2)
    initial = re.escape(str(tmp_path / "out" / "checkpoints" / "step-00000000"))
    assert re.search(rf"{initial}: \d+ of \d+ tensors loaded; newly initialised: ", caplog.text)
    before, after = (find_checkpoint(tmp_path / name).tensors_of("model") for name in ("out", "run"))
    for name in ("encoder.blocks.0.mlp.fc1.weight", "embeddings.rgb.proj.weight"):
        moved = (after[name] - before[name]).abs().max()
        assert 0 < moved < 0.01


def test_an_imported_run_is_read_as_a_run_at_step_0(tmp_path: Path) -> None:
    weights = mae_weights()
    imported(tmp_path, weights, "training.batch_size=64")
    recipe = RecipeConfig.from_yaml(tmp_path / "out" / "config.yaml")
    assert recipe.init == str(tmp_path / "out" / "checkpoints" / "step-00000000")
    assert recipe.training.batch_size == 64
    checkpoint = find_checkpoint(tmp_path / "out")
    assert (checkpoint.step, checkpoint.metadata["backbone"]["mean"]) == (0, [0.485, 0.456, 0.406])
    assert RecipeConfig.from_dict(checkpoint.metadata["config"]) == recipe
    torch.save(weights, tmp_path / "again.pth")
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        ours, theirs = (load_backbone(tmp_path / name).tokens(images) for name in ("out", "again.pth"))
    assert torch.equal(ours, theirs)


def test_decoder_positions_that_are_not_sines_and_cosines_are_rejected(tmp_path: Path) -> None:
    weights = mae_weights()
    weights["decoder_pos_embed"] = torch.randn(1, 17, 64)
    message = (
        f"{tmp_path / 'file.pth'}: the positions of its decoder are not sines and cosines, which is not supported. "
        f"Start from its encoder only: c2fmae pretrain … --init {tmp_path / 'file.pth'}"
    )
    with pytest.raises(UserError) as caught:
        imported(tmp_path, weights)
    assert str(caught.value) == message
    others = multimae_weights()
    others["output_adapters.rgb.pos_emb"] = torch.randn(1, 64, 4, 4)
    with pytest.raises(UserError) as caught:
        imported(tmp_path, others, method="multimae")
    assert str(caught.value) == message
    assert not (tmp_path / "out").exists()


def test_an_existing_directory_is_not_overwritten(tmp_path: Path) -> None:
    imported(tmp_path, mae_weights())
    before = (tmp_path / "out" / "config.yaml").read_bytes()
    with pytest.raises(UserError, match=r"out: already exists\. Choose another directory$"):
        imported(tmp_path, mae_weights(seed=1))
    assert (tmp_path / "out" / "config.yaml").read_bytes() == before


def test_importing_a_plain_vit_suggests_init(tmp_path: Path) -> None:
    (tmp_path / "vit").mkdir()
    (tmp_path / "vit" / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(UserError) as caught:
        import_mae(tmp_path / "vit", tmp_path / "out", load_recipe("mae-b"))
    source = tmp_path / "vit"
    assert (
        str(caught.value) == f"{source}: is a ViT, not a ViTMAE. Start from it with: c2fmae pretrain … --init {source}"
    )
