"""Every decoder, if the masks list patches to decode: features are of these, and nothing that they can read is lost."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from c2fmae.core.masks import Masks
from c2fmae.masking import select_decoded
from tests.models.tiny_models import (
    ALL_GRANULARITIES,
    VISIBLE_DECODERS,
    changed_predictions,
    draw_input_maps,
    draw_latent,
    draw_masks_at_random,
    draw_normal,
    make_autoencoder,
    make_decoder,
)

pytestmark = pytest.mark.numeric

GRID, N = (2, 3), 6
EACH = pytest.mark.parametrize("name", VISIBLE_DECODERS)
STAGED = ("cascaded", "reversed", "parallel", "self_attention")
CONTEXTS = pytest.mark.parametrize("context", ["all", "visible"])


def list_decoded(masks: Masks, num_decoded: int, seed: int = 0) -> Masks:
    """Return masks that list random patches to decode."""
    batch, granularities, patches = masks.is_masked.shape
    noise = draw_normal(batch * granularities, patches, seed=seed)
    decoded_idx = select_decoded(masks.is_masked.flatten(0, 1), noise, num_decoded)
    return replace(masks, decoded_idx=decoded_idx.view(batch, granularities, num_decoded))


def gather_decoded(features: dict[str, Tensor], masks: Masks) -> dict[str, Tensor]:
    """Return the features of the listed patches."""
    selected = {}
    for name, each in features.items():
        index = masks.decoded_idx_of(name)
        assert index is not None
        selected[name] = each.gather(1, index.unsqueeze(2).expand(-1, -1, each.shape[2]))
    return selected


@EACH
@CONTEXTS
@pytest.mark.parametrize("num_decoded", [1, 4])
def test_features_are_of_the_listed_patches_and_need_no_hidden_patch(name: str, context: str, num_decoded: int) -> None:
    model = make_autoencoder(name, context=context, carry="all").eval()
    masks = list_decoded(draw_masks_at_random(num_visible=9), num_decoded)
    maps, others = draw_input_maps(), draw_input_maps(seed=1)
    for index, granularity in enumerate(ALL_GRANULARITIES):
        side = 16 if granularity == "rgb" else 4
        where = masks.is_masked[:, index].view(2, *GRID)
        where = where.repeat_interleave(side, dim=1).repeat_interleave(side, dim=2)
        where = where.unsqueeze(1) if granularity == "rgb" else where
        others[granularity] = torch.where(where, others[granularity], maps[granularity])
    predictions = model(maps, masks)
    assert {each.shape for each in predictions.values()} == {(2, num_decoded, 3)}
    assert not changed_predictions(predictions, model(others, masks))


@pytest.mark.parametrize("name", STAGED)
@CONTEXTS
def test_listing_all_patches_equals_listing_none(name: str, context: str) -> None:
    decoder, masks = make_decoder(name, context=context, carry="all"), draw_masks_at_random()
    latent = draw_latent(masks)
    assert not changed_predictions(decoder(latent, masks, GRID), decoder(latent, list_decoded(masks, N), GRID))


@pytest.mark.parametrize("name", ["parallel", "self_attention"])
@CONTEXTS
def test_the_first_block_computes_the_same_features_as_for_all_patches(name: str, context: str) -> None:
    decoder, masks = make_decoder(name, context=context, depth=0).double(), draw_masks_at_random()
    latent, listed = draw_latent(masks).double(), list_decoded(masks, 3)
    expected = gather_decoded(decoder(latent, masks, GRID), listed)
    for stage, features in decoder(latent, listed, GRID).items():
        torch.testing.assert_close(features, expected[stage], rtol=1e-10, atol=1e-12)


def test_joint_computes_the_same_features_if_it_decodes_all_hidden_patches() -> None:
    decoder = make_decoder("joint", ("rgb",), depth=3, has_norm=True).double()
    masks = draw_masks_at_random(("rgb",), num_visible=2)
    latent, listed = draw_latent(masks).double(), list_decoded(masks, N - 2)
    expected = gather_decoded(decoder(latent, masks, GRID), listed)
    features = decoder(latent, listed, GRID)
    torch.testing.assert_close(features["rgb"], expected["rgb"], rtol=1e-10, atol=1e-12)


@EACH
@CONTEXTS
def test_a_single_decoded_patch_reads_every_visible_one(name: str, context: str) -> None:
    """Those of its own granularity, if the decoder reads no other."""
    decoder, masks = make_decoder(name, context=context), list_decoded(draw_masks_at_random(num_visible=9), 1)
    latent = draw_latent(masks)
    before = decoder(latent, masks, GRID)
    for slot in range(9):
        changed = latent.clone()
        changed[0, 1 + slot] += draw_normal(64, seed=slot)
        after = decoder(changed, masks, GRID)
        own = ALL_GRANULARITIES[int(masks.visible_idx[0, slot]) // N]
        assert changed_predictions(before, after) == ({own} if name == "self_attention" else {*ALL_GRANULARITIES})


@CONTEXTS
def test_carried_features_are_added_to_the_tokens_of_their_patches(context: str) -> None:
    decoder: Any = make_decoder("cascaded", context=context, carry="all")
    masks = list_decoded(draw_masks_at_random(), 2)
    [entry] = decoder.entries
    tokens = entry(draw_latent(masks), masks, GRID).tokens.unflatten(1, (3, N))
    read: dict[str, Tensor] = {}
    for name, stage in decoder.stages.items():
        stage.first.register_forward_pre_hook(lambda _, inputs, name=name: read.update({name: inputs[1]}))
    features = decoder(draw_latent(masks), masks, GRID)
    expected = tokens.clone()
    for image in range(2):
        for index, name in enumerate(ALL_GRANULARITIES[:2]):
            for place, patch in enumerate(masks.decoded_idx[image, index].tolist()):  # type: ignore[index]
                expected[image, index, patch] += features[name][image, place]
    if context == "all":
        assert torch.equal(read["rgb"], expected.flatten(1, 2))
    else:
        carried = gather_decoded({name: expected[:, index] for index, name in enumerate(ALL_GRANULARITIES[:2])}, masks)
        assert torch.equal(read["rgb"][:, -4:], torch.cat([*carried.values()], dim=1))


@EACH
@pytest.mark.parametrize(("context", "entry"), [("all", "shared"), ("visible", "own")])
@pytest.mark.parametrize("shown", [(), ("rgb",), ALL_GRANULARITIES])
def test_every_parameter_has_a_gradient(name: str, context: str, entry: str, shown: tuple[str, ...]) -> None:
    decoder = make_decoder(name, context=context, entry=entry)
    masks = Masks.from_visible_granularities(shown, ALL_GRANULARITIES, batch=2, num_patches=N)
    masks = list_decoded(masks, 2)
    features = decoder(draw_latent(masks), masks, GRID)
    torch.stack([each.square().sum() for each in features.values()]).sum().backward()
    assert not [
        name for name, each in decoder.named_parameters() if each.grad is None or not each.grad.isfinite().all()
    ]
