"""Depth as a fourth granularity, which models and methods do not name."""

from pathlib import Path

import pytest
import torch

import c2fmae
from c2fmae.config.masked_method import MaskedConfig
from c2fmae.core.errors import UserError
from c2fmae.core.masks import Masks
from c2fmae.core.scene import SceneBatch
from c2fmae.methods import METHODS, MaskedAutoencoding, build_method

pytestmark = pytest.mark.numeric

ORDER = ("semantic", "depth", "rgb")


@pytest.fixture(scope="module")
def batch() -> SceneBatch:
    generator = torch.Generator().manual_seed(0)
    rgb = torch.randint(0, 256, (2, 3, 32, 48), generator=generator, dtype=torch.uint8)
    depth = torch.randint(0, 9999, (2, 32, 48), generator=generator, dtype=torch.int32)
    semantic = torch.randint(0, 20, (2, 8, 12), generator=generator, dtype=torch.uint8)
    return SceneBatch(("a", "b"), {"rgb": rgb, "depth": depth, "semantic": semantic})


def build_depth_method(name: str) -> MaskedAutoencoding:
    settings = ["granularities=[semantic, depth, rgb]", "encoder.name=test_vit", "masking.name=random"]
    config: MaskedConfig = METHODS.get(name)()
    return build_method(config.override([*settings, "decoder.options.dim=32", "decoder.options.num_heads=4"]))


@pytest.mark.parametrize("name", ["c2fmae", "multimae"])
def test_a_step_with_depth_trains_every_parameter(name: str, batch: SceneBatch) -> None:
    method = build_depth_method(name)
    loss = method.compute_step_loss(batch, progress=0.0, generator=torch.Generator().manual_seed(0))
    loss.total.backward()
    assert loss.terms["depth"] > 0
    for parameter in method.model.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()


def test_depth_is_predicted_in_its_own_unit_and_visible_depth_is_copied(batch: SceneBatch) -> None:
    method = build_depth_method("c2fmae")
    depth_visible = Masks.from_visible_granularities({"depth"}, ORDER, batch=2, num_patches=6)
    assert torch.equal(method.predict(batch, depth_visible).maps["depth"], batch.maps["depth"].float())
    rgb_visible = Masks.from_visible_granularities({"rgb"}, ORDER, batch=2, num_patches=6)
    with torch.no_grad():
        for name in ("weight", "bias"):
            method.model.get_parameter(f"heads.depth.{name}").zero_()  # predicts 0, the trimmed mean
    predicted = method.predict(batch, rgb_visible).maps["depth"]
    assert predicted.shape == (2, 32, 48)
    torch.testing.assert_close(
        predicted.mean(dim=(1, 2)), batch.maps["depth"].float().mean(dim=(1, 2)), rtol=0.05, atol=0
    )


def test_the_loss_does_not_depend_on_the_unit_of_depth(batch: SceneBatch) -> None:
    method = build_depth_method("c2fmae")
    in_feet = SceneBatch(batch.keys, {**batch.maps, "depth": batch.maps["depth"] * 3 + 5})
    losses = [
        method.compute_step_loss(scenes, progress=0.0, generator=torch.Generator().manual_seed(0))
        for scenes in (batch, in_feet)
    ]
    torch.testing.assert_close(losses[0].total, losses[1].total)


def test_depth_is_named_only_in_the_file_of_the_specs() -> None:
    root = Path(c2fmae.__file__).parent
    # Recipes choose granularities; in files of other projects and old configs, "depth" is also the number of blocks.
    left_out = {root / "models" / "backbones", root / "exports", root / "recipes"}
    files = [path for path in root.rglob("*.py") if path.parent not in left_out and path.name != "migrations.py"]
    assert [path.name for path in files if '"depth"' in path.read_text(encoding="utf-8")] == ["granularity.py"]


def test_invalid_depth_is_rejected(batch: SceneBatch) -> None:
    method = build_depth_method("c2fmae")
    broken = batch.maps["depth"].float()
    broken[1, 3, 4] = float("nan")
    for depth, message in [
        (broken, "b: depth has values that are not finite. Replace them, or remove the scene"),
        (
            broken.unsqueeze(1),
            "depth: expected one number per pixel, [batch, height, width], got float32 (2, 1, 32, 48)",
        ),
    ]:
        with pytest.raises(UserError) as caught:
            method.prepare_inputs(SceneBatch(batch.keys, {**batch.maps, "depth": depth}))
        assert str(caught.value) == message
    with pytest.raises(UserError) as caught:
        METHODS.get("c2fmae")().override(["granularities=[depth, rgb]", "channels.depth=3"])
    assert str(caught.value) == "--set: channels.depth: expected 1 channel of a continuous map, got 3"
