"""The residual stream in the dtype of autocast: where it is narrow, and that nothing else changes."""

import pytest
import torch
from torch import Tensor

from c2fmae.core.distributed import World
from c2fmae.core.layers import list_blocks
from c2fmae.core.loop import autocast
from c2fmae.methods import MaskedAutoencoding
from c2fmae.models import DECODERS
from c2fmae.models.residual_stream import ResidualStream, narrow_streams
from c2fmae.pretrain import build_pretraining
from c2fmae.recipes.config import load_recipe
from tests.methods.tiny_methods import build_tiny_method, draw_noise_scenes, perturb_parameters

SMALL = ("encoder.dim=32", "encoder.depth=2", "encoder.num_heads=2", "encoder.patch_size=8")


def build_method(decoder: str, *, is_narrow: bool) -> MaskedAutoencoding:
    method = build_tiny_method("c2fmae", *SMALL, f"decoder={decoder}", size=(16, 16))
    perturb_parameters(method.model)
    if is_narrow:
        narrow_streams(method.model)
    return method


def compute_loss(method: MaskedAutoencoding, *, is_autocast: bool) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=is_autocast):
        generator = torch.Generator().manual_seed(0)
        return method.compute_step_loss(draw_noise_scenes(2, (16, 16)), progress=0.5, generator=generator).total


def record_block_inputs(method: MaskedAutoencoding) -> list[torch.dtype]:
    """Return a list to which each call of a block appends the dtype of its stream."""
    dtypes: list[torch.dtype] = []
    for block in list_blocks(method.model):
        block.register_forward_pre_hook(lambda _, inputs: dtypes.append(inputs[0].dtype))
        block.register_forward_hook(lambda _, inputs, output: dtypes.append(output.dtype))
    return dtypes


@pytest.mark.parametrize("decoder", [*DECODERS])
def test_a_narrow_stream_has_the_dtype_of_autocast_in_all_blocks(decoder: str) -> None:
    method = build_method(decoder, is_narrow=True)
    dtypes = record_block_inputs(method)
    loss = compute_loss(method, is_autocast=True)
    loss.backward()
    assert set(dtypes) == {torch.bfloat16}
    assert loss.dtype == torch.float32
    for parameter in method.model.parameters():
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all()
    wide = build_method(decoder, is_narrow=False)
    dtypes = record_block_inputs(wide)
    expected = compute_loss(wide, is_autocast=True)
    assert torch.float32 in dtypes
    torch.testing.assert_close(loss, expected, rtol=2e-2, atol=0)
    assert not torch.equal(loss, expected)


def test_without_autocast_a_narrow_stream_is_the_usual_one() -> None:
    losses = [
        compute_loss(build_method("cascaded", is_narrow=is_narrow), is_autocast=False) for is_narrow in (False, True)
    ]
    assert torch.equal(*losses)


def test_a_narrow_stream_has_the_same_tensors() -> None:
    narrow, wide = (build_method("cascaded", is_narrow=is_narrow).model.state_dict() for is_narrow in (True, False))
    assert [*narrow] == [*wide]
    assert all(torch.equal(narrow[name], tensor) for name, tensor in wide.items())


@pytest.mark.unchecked
def test_streams_are_narrow_in_runs_whose_precision_is_bf16_stream() -> None:
    for precision in ("bf16", "bf16-stream"):
        config = load_recipe("c2fmae-debug", [f"training.precision={precision}", "data.workers=0"])
        model = build_pretraining(config, World()).model
        streams = [module for module in model.modules() if isinstance(module, ResidualStream)]
        assert [module.is_narrow for module in streams] == [precision == "bf16-stream"] * 2  # encoder and decoder
        with autocast(config.training, torch.device("cpu")):
            assert torch.is_autocast_enabled("cpu")
