import itertools
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from c2fmae.core.errors import UserError
from c2fmae.core.masks import Masks
from c2fmae.models import DECODERS, sincos_positions
from c2fmae.models.decoders import CascadedDecoder, JointDecoder
from c2fmae.models.decoders.state import DecoderEntry, DecoderState
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
    randomise_parameters,
    seeds,
)

pytestmark = pytest.mark.numeric

GRID, N = (2, 3), 6
EACH = pytest.mark.parametrize("name", VISIBLE_DECODERS)
CASCADES = ("cascaded", "reversed")
STAGED = ("cascaded", "reversed", "parallel", "self_attention")


def decode(decoder: nn.Module, masks: Masks, *, num_prefix: int = 1, seed: int = 0) -> dict[str, Tensor]:
    features: dict[str, Tensor] = decoder(draw_latent(masks, num_prefix=num_prefix, seed=seed), masks, GRID)
    return features


def in_order(order: Sequence[str], **changes: Any) -> Any:
    """A cascade whose stages have this order, with random weights; the order of tokens is unchanged."""
    return make_decoder("cascaded", stages={name: name for name in order}, **changes)


@contextmanager
def hooked(handle: Any) -> Iterator[None]:
    """Remove a hook at the end of the block."""
    try:
        yield
    finally:
        handle.remove()


def contexts_of(decoder: Any, masks: Masks) -> dict[str, Tensor]:
    """The context of each stage's first block."""
    read: dict[str, Tensor] = {}
    handles = [
        stage.first.register_forward_pre_hook(lambda _, inputs, name=name: read.update({name: inputs[1]}))
        for name, stage in decoder.stages.items()
    ]
    decode(decoder, masks)
    for handle in handles:
        handle.remove()
    return read


# Every decoder, by name


@EACH
@pytest.mark.parametrize("granularities", [("rgb",), ("semantic", "rgb"), ("rgb", "instance"), ALL_GRANULARITIES])
@pytest.mark.parametrize("num_prefix", [0, 5])
def test_every_stage_has_features_of_every_patch(name: str, granularities: tuple[str, ...], num_prefix: int) -> None:
    features = decode(make_decoder(name, granularities), draw_masks_at_random(granularities), num_prefix=num_prefix)
    assert set(features) == set(granularities)
    assert all(each.shape == (2, N, 16) and each.isfinite().all() for each in features.values())


@EACH
@pytest.mark.parametrize(("context", "entry"), [("all", "shared"), ("visible", "own")])
@pytest.mark.parametrize("shown", [(), ("rgb",), ALL_GRANULARITIES])
def test_every_parameter_has_a_gradient_whatever_is_visible(
    name: str, context: str, entry: str, shown: tuple[str, ...]
) -> None:
    """Otherwise DDP would wait for the missing gradients."""
    decoder = make_decoder(name, context=context, entry=entry)
    features = decode(decoder, Masks.from_visible_granularities(shown, ALL_GRANULARITIES, batch=2, num_patches=N))
    torch.stack([each.square().sum() for each in features.values()]).sum().backward()
    without = [name for name, parameter in decoder.named_parameters() if parameter.grad is None]
    assert not without
    assert all(parameter.grad.isfinite().all() for parameter in decoder.parameters() if parameter.grad is not None)


@EACH
@settings(max_examples=10)
@given(seeds, st.integers(1, 17))
def test_features_do_not_depend_on_other_images_of_the_batch(name: str, seed: int, num_visible: int) -> None:
    decoder = make_decoder(name, num_heads=1, dim=8)
    masks, other = (draw_masks_at_random(num_visible=num_visible, seed=s) for s in (seed, seed ^ 1))
    latent, others = draw_latent(masks), draw_latent(masks, seed=1)
    before = decoder(latent, masks, GRID)
    mixed = Masks.from_mask(
        torch.stack([masks.is_masked[0], other.is_masked[1]]), ALL_GRANULARITIES, num_visible=num_visible
    )
    after = decoder(torch.stack([latent[0], others[1]]), mixed, GRID)
    for stage in before:
        torch.testing.assert_close(after[stage][0], before[stage][0], rtol=1e-5, atol=1e-5)
    assert changed_predictions(before, after)  # the other image did change


@EACH
def test_predictions_do_not_depend_on_hidden_patches(name: str) -> None:
    model, masks = make_autoencoder(name).eval(), draw_masks_at_random()
    maps, others = draw_input_maps(), draw_input_maps(seed=1)
    hidden = {
        granularity: masks.is_masked[:, index].view(2, *GRID) for index, granularity in enumerate(ALL_GRANULARITIES)
    }
    for granularity in ALL_GRANULARITIES:
        side = 16 if granularity == "rgb" else 4
        where = hidden[granularity].repeat_interleave(side, dim=1).repeat_interleave(side, dim=2)
        where = where.unsqueeze(1) if granularity == "rgb" else where
        others[granularity] = torch.where(where, others[granularity], maps[granularity])
        assert not torch.equal(others[granularity], maps[granularity])
    assert not changed_predictions(model(maps, masks), model(others, masks))


@EACH
def test_several_stages_may_predict_the_same_granularity(name: str) -> None:
    stages = {"rgb": "rgb", "semantic": "semantic", "rgb_normalized_pixels": "rgb"}
    decoder = make_decoder(name, ("semantic", "rgb"), stages=stages)
    features = decode(decoder, draw_masks_at_random(("semantic", "rgb")))
    assert set(features) == set(stages)
    assert torch.equal(features["rgb"], features["rgb_normalized_pixels"]) == (name == "joint")


@EACH
def test_depth_is_the_number_of_blocks(name: str) -> None:
    decoder: Any = make_decoder(name, depth=3)
    if isinstance(decoder, JointDecoder):
        assert len(decoder.blocks) == 3
    else:
        assert [len(stage.rest) for stage in decoder.stages.values()] == [3, 3, 3]
    assert decode(make_decoder(name, depth=0), draw_masks_at_random()).keys() == {*ALL_GRANULARITIES}


def test_an_unknown_decoder_suggests_the_nearest() -> None:
    with pytest.raises(UserError, match=r"^no decoder named 'cascade'\. Did you mean 'cascaded'\? Known: cascaded, "):
        DECODERS.get("cascade")


# Dependencies between stages


def moved_by(decoder: nn.Module, part: nn.Module) -> set[str]:
    """The stages whose features depend on the weights of a submodule."""
    masks = draw_masks_at_random()
    with torch.no_grad():
        before = decode(decoder, masks)
        randomise_parameters(part, seed=7)
        return changed_predictions(before, decode(decoder, masks))


@pytest.mark.parametrize("order", list(itertools.permutations(ALL_GRANULARITIES)), ids=", ".join)
@pytest.mark.parametrize(("carry", "context"), [("last", "all"), ("all", "all"), ("last", "visible")])
def test_a_stage_of_a_cascade_affects_itself_and_later_stages(order: tuple[str, ...], carry: str, context: str) -> None:
    decoder = in_order(order, carry=carry, context=context)
    for place, stage in enumerate(order):
        assert moved_by(decoder, decoder.stages[stage]) == set(order[place:])


@pytest.mark.parametrize(
    ("name", "stage", "expected"),
    [
        ("cascaded", "semantic", {*ALL_GRANULARITIES}),
        ("cascaded", "instance", {"instance", "rgb"}),
        ("cascaded", "rgb", {"rgb"}),
        ("reversed", "rgb", {*ALL_GRANULARITIES}),
        ("reversed", "instance", {"instance", "semantic"}),
        ("reversed", "semantic", {"semantic"}),
        *((name, stage, {stage}) for name in ("parallel", "self_attention") for stage in ALL_GRANULARITIES),
    ],
)
def test_which_stages_depend_on_which(name: str, stage: str, expected: set[str]) -> None:
    decoder: Any = make_decoder(name)
    assert moved_by(decoder, decoder.stages[stage]) == expected
    own: Any = make_decoder(name, entry="own")
    assert moved_by(own, own.entries[list(own.stages).index(stage)]) == expected


@pytest.mark.parametrize("name", STAGED)
def test_a_shared_entry_affects_all_stages(name: str) -> None:
    decoder: Any = make_decoder(name, entry="shared")
    assert len(decoder.entries) == 1
    assert moved_by(decoder, decoder.entries[0]) == {*ALL_GRANULARITIES}


@EACH
def test_a_head_affects_its_own_prediction_only(name: str) -> None:
    model, maps, masks = make_autoencoder(name), draw_input_maps(), draw_masks_at_random()
    for stage in ALL_GRANULARITIES:
        before = model(maps, masks)
        randomise_parameters(model.heads[stage], seed=7)
        assert changed_predictions(before, model(maps, masks)) == {stage}


def test_equal_separate_entries_equal_a_shared_entry() -> None:
    shared, own = make_decoder("cascaded", entry="shared"), make_decoder("cascaded", entry="own")
    weights = dict(shared.state_dict())
    for name in list(weights):
        if name.startswith("entries.0."):
            weights |= {name.replace(".0.", f".{place}.", 1): weights[name] for place in (1, 2)}
    own.load_state_dict(weights)
    assert not changed_predictions(decode(shared, draw_masks_at_random()), decode(own, draw_masks_at_random()))


@pytest.mark.parametrize("name", ["joint", "self_attention"])
def test_cross_attention_options_have_no_effect_without_cross_attention(name: str) -> None:
    plain, set_ = make_decoder(name), make_decoder(name, context="visible", carry="all", query_residual=False)
    assert not changed_predictions(decode(plain, draw_masks_at_random()), decode(set_, draw_masks_at_random()))


def test_a_self_attention_stage_depends_on_its_own_granularity_only() -> None:
    decoder, masks = make_decoder("self_attention"), draw_masks_at_random(num_visible=9)
    latent = draw_latent(masks)
    granularity = torch.cat([torch.full((2, 1), -1), masks.visible_idx // N], dim=1)
    before = decoder(latent, masks, GRID)
    for index, stage in enumerate(ALL_GRANULARITIES):
        assert (granularity == index).any()
        changed = torch.where((granularity == index).unsqueeze(2), latent + 1, latent)
        assert changed_predictions(before, decoder(changed, masks, GRID)) == {stage}


# Carried features


def test_reversed_is_the_cascade_from_the_last_stage_to_the_first() -> None:
    backwards: Any = make_decoder("reversed")
    assert tuple(backwards.stages) == ALL_GRANULARITIES[::-1]
    forwards = in_order(ALL_GRANULARITIES[::-1])
    forwards.load_state_dict(backwards.state_dict())
    assert not changed_predictions(decode(backwards, draw_masks_at_random()), decode(forwards, draw_masks_at_random()))


def test_parallel_is_a_cascade_that_carries_nothing() -> None:
    cascade, parallel = make_decoder("cascaded"), make_decoder("parallel")
    parallel.load_state_dict(cascade.state_dict())
    assert changed_predictions(decode(parallel, draw_masks_at_random()), decode(cascade, draw_masks_at_random())) == {
        "instance",
        "rgb",
    }
    assert isinstance(cascade, CascadedDecoder)
    with hooked(cascade.carry.register_forward_hook(lambda module, inputs, carried: torch.zeros_like(carried))):
        stopped = decode(cascade, draw_masks_at_random())
    assert not changed_predictions(decode(parallel, draw_masks_at_random()), stopped)


def test_carrying_all_differs_from_carrying_the_last_at_the_third_stage() -> None:
    last, every = make_decoder("cascaded", carry="last"), make_decoder("cascaded", carry="all")
    every.load_state_dict(last.state_dict())
    assert changed_predictions(decode(last, draw_masks_at_random()), decode(every, draw_masks_at_random())) == {"rgb"}


@pytest.mark.parametrize("order", list(itertools.permutations(ALL_GRANULARITIES)), ids=", ".join)
@pytest.mark.parametrize("carry", ["last", "all"])
def test_carried_features_are_added_to_their_own_patches_only(order: tuple[str, ...], carry: str) -> None:
    decoder, masks = in_order(order, carry=carry), draw_masks_at_random()
    with hooked(decoder.carry.register_forward_hook(lambda module, inputs, carried: torch.zeros_like(carried))):
        without = contexts_of(decoder, masks)
    with hooked(decoder.carry.register_forward_hook(lambda module, inputs, carried: torch.full_like(carried, 1000.0))):
        marked = contexts_of(decoder, masks)
    for place, stage in enumerate(order):
        landed = torch.zeros(3 * N)
        for earlier in order[:place] if carry == "all" else order[max(place - 1, 0) : place]:
            landed[ALL_GRANULARITIES.index(earlier) * N :][:N] = 1000.0
        expected = landed.view(1, -1, 1).expand_as(marked[stage])
        torch.testing.assert_close(marked[stage] - without[stage], expected, rtol=0, atol=1e-3)


def test_carried_features_are_those_of_the_previous_stage() -> None:
    decoder, carried = make_decoder("cascaded", carry="all"), []
    assert isinstance(decoder, CascadedDecoder)
    with hooked(decoder.carry.register_forward_hook(lambda module, inputs, result: carried.append(result))):
        features = decode(decoder, draw_masks_at_random())
    expected = [features[name] for name in ("semantic", "semantic", "instance")]
    assert len(carried) == len(expected)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(carried, expected, strict=True))


def test_add_features_changes_its_granularity_only() -> None:
    tokens = draw_normal(2, 3 * N, 4)
    state = DecoderState(draw_normal(2, 1, 4), tokens, draw_masks_at_random().visible_idx, N)
    for granularity in range(3):
        mine = slice(granularity * N, (granularity + 1) * N)
        landed = state.add_features(torch.full((2, N, 4), 5.0), granularity)
        expected = tokens.clone()
        expected[:, mine] += 5
        assert torch.equal(landed, expected)
        assert torch.equal(state.tokens_of(granularity), tokens[:, mine])
    assert torch.equal(state.tokens, draw_normal(2, 3 * N, 4))


# Contexts


@pytest.mark.parametrize("name", [*CASCADES, "parallel"])
@pytest.mark.parametrize("carry", ["last", "all"])
@pytest.mark.parametrize("num_visible", [0, 7, 18])
def test_a_visible_context_holds_prefix_visible_and_carried_tokens(name: str, carry: str, num_visible: int) -> None:
    decoder: Any = make_decoder(name, context="visible", carry=carry)
    masks = draw_masks_at_random(num_visible=num_visible)
    [entry] = decoder.entries
    state, features = entry(draw_latent(masks), masks, GRID), decode(decoder, masks)
    order = list(decoder.stages)
    for place, (stage, context) in enumerate(contexts_of(decoder, masks).items()):
        first = 0 if carry == "all" else max(place - 1, 0)
        carried = [] if name == "parallel" else order[first:place]
        assert context.shape[1] == 1 + num_visible + len(carried) * N, stage
        assert torch.equal(context[:, :1], state.prefix)
        for image, places in enumerate(masks.visible_idx):
            assert torch.equal(context[image, 1 : 1 + num_visible], state.tokens[image, places])
        parts = [state.tokens[:, ALL_GRANULARITIES.index(each) * N :][:, :N] + features[each] for each in carried]
        assert not parts or torch.equal(context[:, 1 + num_visible :], torch.cat(parts, dim=1))


@pytest.mark.parametrize("name", [*CASCADES, "parallel"])
def test_the_full_context_is_all_tokens_without_the_prefix(name: str) -> None:
    decoder: Any = make_decoder(name, context="all")
    masks = draw_masks_at_random()
    [entry] = decoder.entries
    contexts = list(contexts_of(decoder, masks).values())
    assert torch.equal(contexts[0], entry(draw_latent(masks), masks, GRID).tokens)
    assert all(context.shape == (2, 3 * N, 16) for context in contexts)


def test_mask_tokens_are_part_of_the_full_context_only() -> None:
    masks = draw_masks_at_random()
    for context in ("all", "visible"):
        decoder: Any = make_decoder("parallel", context=context)
        before = contexts_of(decoder, masks)
        with torch.no_grad():
            decoder.entries[0].mask_token += 1
        after = contexts_of(decoder, masks)
        for stage in ALL_GRANULARITIES:
            if context == "visible":
                assert torch.equal(after[stage], before[stage])
            else:
                assert torch.equal((after[stage] != before[stage]).all(dim=2), masks.is_masked.flatten(1))


@EACH
def test_mask_tokens_affect_predictions_with_a_visible_context(name: str) -> None:
    decoder, masks = make_decoder(name, context="visible"), draw_masks_at_random()
    before = decode(decoder, masks)
    with torch.no_grad():
        for parameter_name, parameter in decoder.named_parameters():
            if parameter_name.endswith("mask_token"):
                parameter.add_(draw_normal(16))
    assert changed_predictions(before, decode(decoder, masks)) == {*ALL_GRANULARITIES}


@pytest.mark.parametrize("name", [*CASCADES, "parallel"])
def test_without_residual_constant_attention_gives_constant_features(name: str) -> None:
    for query_residual in (True, False):
        decoder: Any = make_decoder(name, query_residual=query_residual, depth=0)
        with torch.no_grad():
            for stage in decoder.stages.values():
                stage.first.attn.proj.weight.zero_()
        for features in decode(decoder, draw_masks_at_random()).values():
            difference = features - features[:, :1]
            assert (float(difference.detach().abs().max()) < 1e-5) == (not query_residual)


# Entries


@settings(max_examples=20)
@given(
    st.lists(st.sampled_from(ALL_GRANULARITIES), min_size=1, max_size=3, unique=True),
    st.integers(0, 6),
    st.integers(0, 3),
    seeds,
)
def test_latents_are_scattered_to_visible_patches_and_mask_tokens_to_hidden_ones(
    granularities: list[str], num_visible: int, num_prefix: int, seed: int
) -> None:
    masks = draw_masks_at_random(granularities, num_visible=num_visible, seed=seed)
    entry = randomise_parameters(DecoderEntry(64, 8, len(granularities)))
    latent = draw_latent(masks, num_prefix=num_prefix)
    state = entry(latent, masks, GRID)
    where = sincos_positions(GRID, 8)
    assert (entry.granularity is None) == (len(granularities) == 1)
    for image in range(2):
        seen = masks.visible_idx[image].tolist()
        for index, place in itertools.product(range(len(granularities)), range(N)):
            token = index * N + place
            slot = num_prefix + seen.index(token) if token in seen else None
            expected = where[place] + (entry.mask_token if slot is None else entry.project(latent[image, slot]))
            if entry.granularity is not None:
                expected = expected + entry.granularity[index, 0]
            torch.testing.assert_close(state.tokens[image, token], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state.prefix, entry.project(latent[:, :num_prefix]), rtol=1e-5, atol=1e-5)
    assert torch.equal(
        state.visible_tokens(), torch.stack([t[i] for t, i in zip(state.tokens, masks.visible_idx, strict=True)])
    )


def test_decoder_positions_follow_the_grid() -> None:
    entry, masks = randomise_parameters(DecoderEntry(64, 8, 3)), draw_masks_at_random()
    lying, standing = (entry(draw_latent(masks), masks, grid).tokens.unflatten(1, (3, N)) for grid in ((2, 3), (3, 2)))
    moved_by_grid = sincos_positions((3, 2), 8) - sincos_positions((2, 3), 8)
    torch.testing.assert_close(standing - lying, moved_by_grid.expand(2, 3, -1, -1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("has_norm", [False, True])
@pytest.mark.parametrize("num_prefix", [0, 1, 3])
def test_joint_applies_its_blocks_to_prefix_and_all_tokens(has_norm: bool, num_prefix: int) -> None:
    decoder, masks = make_decoder("joint", has_norm=has_norm, depth=2), draw_masks_at_random()
    assert isinstance(decoder, JointDecoder)
    latent = draw_latent(masks, num_prefix=num_prefix)
    state = decoder.entry(latent, masks, GRID)
    for image in range(2):
        x = torch.cat([state.prefix[image], state.tokens[image]]).unsqueeze(0)
        for block in decoder.blocks:
            x = block(x)
        x = decoder.norm(x) if has_norm else x
        for index, stage in enumerate(ALL_GRANULARITIES):
            found = decoder(latent, masks, GRID)[stage][image]
            expected = x[0, num_prefix + index * N :][:N]
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_joint_has_one_entry_and_an_optional_norm() -> None:
    asked, plain = (make_decoder("joint", has_norm=has_norm, entry="own") for has_norm in (True, False))
    assert {name.split(".")[0] for name, _ in plain.named_parameters()} == {"entry", "blocks"}
    assert {name.split(".")[0] for name, _ in asked.named_parameters()} == {"entry", "blocks", "norm"}


def test_blocks_have_the_width_of_the_options() -> None:
    decoder = make_decoder("cascaded", mlp_ratio=3.0)
    assert isinstance(decoder, CascadedDecoder)
    blocks: list[Any] = [stage.first for stage in decoder.stages.values()]
    blocks += [stage.rest[0] for stage in decoder.stages.values()]  # type: ignore[index]
    assert {block.mlp.fc1.weight.shape for block in blocks} == {(48, 16)}


def test_stages_share_an_entry_or_have_their_own() -> None:
    decoders = [make_decoder("cascaded", entry=entry) for entry in ("shared", "own")]
    assert [len(decoder.entries) for decoder in decoders] == [1, 3]  # type: ignore[arg-type]


@pytest.mark.compile
def test_a_model_compiles_to_one_graph_with_equal_predictions_and_gradients() -> None:
    model, maps = make_autoencoder("cascaded", context="visible", carry="all"), draw_input_maps()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for seed in range(2):  # other numbers of visible patches per granularity do not recompile
        results = []
        for each in (model, compiled):
            predictions = each(maps, draw_masks_at_random(seed=seed))
            loss = torch.stack([values.square().mean() for values in predictions.values()]).sum()
            results.append([*predictions.values(), *torch.autograd.grad(loss, list(model.parameters()))])
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


# Alone, in the training loop of a user


@EACH
def test_a_decoder_alone_trains_with_latents_of_any_encoder(name: str) -> None:
    masks = draw_masks_at_random(ALL_GRANULARITIES)
    decoder = make_decoder(name)
    latent = draw_latent(masks).requires_grad_()
    features = decoder(latent, masks, GRID)
    sum(each.square().mean() for each in features.values()).backward()
    assert latent.grad is not None
    assert (latent.grad.flatten(1).norm(dim=1) > 0).all()
    assert all(parameter.grad is not None for parameter in decoder.parameters())


@EACH
def test_shapes_that_do_not_fit_are_one_clear_error(name: str) -> None:
    decoder, masks = make_decoder(name), draw_masks_at_random(ALL_GRANULARITIES)
    latent, visible = draw_latent(masks, num_prefix=1), masks.visible_idx.shape[1]
    batch, _, width = latent.shape
    expected = (
        f"latent: expected [{batch}, {visible} or more, {width}] (batch, class and visible tokens, width of the"
        " encoder), got "
    )
    for wrong in (latent[:1], latent[:, 2:], latent[..., :-1]):
        with pytest.raises(ValueError, match=f"^{re.escape(expected + str(list(wrong.shape)))}$"):
            decoder(wrong, masks, GRID)
    with pytest.raises(
        ValueError, match=r"^grid: expected rows × columns = 6, the patches of the masks, got \(3, 3\)$"
    ):
        decoder(latent, masks, (3, 3))
    of_two = draw_masks_at_random(ALL_GRANULARITIES[:2])
    with pytest.raises(ValueError, match=r"^masks: expected 3 granularities, those of the decoder, got 2$"):
        decoder(draw_latent(of_two), of_two, GRID)
