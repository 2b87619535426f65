import itertools
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
from c2fmae.models.decoders import Cascaded, Joint
from c2fmae.models.decoders.state import Entry, State
from tests.models.tiny_models import (
    THREE,
    autoencoder_of,
    decoder_of,
    fill,
    latent_of,
    maps_of,
    masks_of,
    moved,
    noise_of,
    plan_of,
    seeds,
)

GRID, N = (2, 3), 6
EACH = pytest.mark.parametrize("name", list(DECODERS))
CASCADES = ("cascaded", "reversed")
STAGED = ("cascaded", "reversed", "parallel", "self_attention")


def decode(decoder: nn.Module, masks: Masks, *, num_prefix: int = 1, seed: int = 0) -> dict[str, Tensor]:
    features: dict[str, Tensor] = decoder(latent_of(masks, num_prefix=num_prefix, seed=seed), masks, GRID)
    return features


def in_order(order: Sequence[str], **changes: Any) -> Any:
    """A filled cascade whose stages come in this order, over tokens that lie as always."""
    return decoder_of("cascaded", stages={name: name for name in order}, **changes)


@contextmanager
def hooked(handle: Any) -> Iterator[None]:
    """As long as this lasts, a hook is there."""
    try:
        yield
    finally:
        handle.remove()


def contexts_of(decoder: Any, masks: Masks) -> dict[str, Tensor]:
    """What each stage's first block reads, by stage."""
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
@pytest.mark.parametrize("granularities", [("rgb",), ("semantic", "rgb"), ("rgb", "instance"), THREE])
@pytest.mark.parametrize("num_prefix", [0, 5])
def test_every_stage_has_features_of_every_patch(name: str, granularities: tuple[str, ...], num_prefix: int) -> None:
    features = decode(decoder_of(name, granularities), masks_of(granularities), num_prefix=num_prefix)
    assert set(features) == set(granularities)
    assert all(each.shape == (2, N, 16) and each.isfinite().all() for each in features.values())


@EACH
@pytest.mark.parametrize(("context", "entry"), [("all", "shared"), ("visible", "own")])
@pytest.mark.parametrize("shown", [(), ("rgb",), THREE])
def test_every_parameter_has_a_gradient_whatever_is_visible(
    name: str, context: str, entry: str, shown: tuple[str, ...]
) -> None:
    """Or processes would wait for each other's forever."""
    decoder = decoder_of(name, context=context, entry=entry)
    features = decode(decoder, Masks.showing(shown, THREE, batch=2, num_patches=N))
    torch.stack([each.square().sum() for each in features.values()]).sum().backward()
    without = [name for name, parameter in decoder.named_parameters() if parameter.grad is None]
    assert not without
    assert all(parameter.grad.isfinite().all() for parameter in decoder.parameters() if parameter.grad is not None)


@EACH
@settings(max_examples=10)
@given(seeds, st.integers(1, 17))
def test_what_the_other_images_are_does_not_matter(name: str, seed: int, num_visible: int) -> None:
    decoder = decoder_of(name, num_heads=1, dim=8)
    masks, other = (masks_of(num_visible=num_visible, seed=s) for s in (seed, seed ^ 1))
    latent, others = latent_of(masks), latent_of(masks, seed=1)
    before = decoder(latent, masks, GRID)
    mixed = Masks.of(torch.stack([masks.is_masked[0], other.is_masked[1]]), THREE, num_visible=num_visible)
    after = decoder(torch.stack([latent[0], others[1]]), mixed, GRID)
    for stage in before:
        torch.testing.assert_close(after[stage][0], before[stage][0], rtol=1e-5, atol=1e-5)
    assert moved(before, after)  # the other image did change


@EACH
def test_hidden_patches_do_not_change_what_is_predicted(name: str) -> None:
    model, masks = autoencoder_of(name).eval(), masks_of()
    maps, others = maps_of(), maps_of(seed=1)
    hidden = {granularity: masks.is_masked[:, index].view(2, *GRID) for index, granularity in enumerate(THREE)}
    for granularity in THREE:
        side = 16 if granularity == "rgb" else 4
        where = hidden[granularity].repeat_interleave(side, dim=1).repeat_interleave(side, dim=2)
        where = where.unsqueeze(1) if granularity == "rgb" else where
        others[granularity] = torch.where(where, others[granularity], maps[granularity])
        assert not torch.equal(others[granularity], maps[granularity])
    assert not moved(model(maps, masks), model(others, masks))


@EACH
def test_several_stages_may_predict_the_same_granularity(name: str) -> None:
    stages = {"rgb": "rgb", "semantic": "semantic", "rgb_normalized_pixels": "rgb"}
    decoder = decoder_of(name, ("semantic", "rgb"), stages=stages)
    features = decode(decoder, masks_of(("semantic", "rgb")))
    assert set(features) == set(stages)
    assert torch.equal(features["rgb"], features["rgb_normalized_pixels"]) == (name == "joint")


@EACH
def test_a_decoder_has_as_many_blocks_as_its_depth_says(name: str) -> None:
    decoder: Any = decoder_of(name, depth=3)
    if isinstance(decoder, Joint):
        assert len(decoder.blocks) == 3
    else:
        assert [len(stage.rest) for stage in decoder.stages.values()] == [3, 3, 3]
    assert decode(decoder_of(name, depth=0), masks_of()).keys() == {*THREE}


def test_a_decoder_that_is_not_there_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"^no decoder named 'cascade'\. Did you mean 'cascaded'\? Known: cascaded, "):
        DECODERS.get("cascade")


# Who reads whom


def moved_by(decoder: nn.Module, part: nn.Module) -> set[str]:
    """The stages whose features change with the weights of a part."""
    masks = masks_of()
    with torch.no_grad():
        before = decode(decoder, masks)
        fill(part, seed=7)
        return moved(before, decode(decoder, masks))


@pytest.mark.parametrize("order", list(itertools.permutations(THREE)), ids=", ".join)
@pytest.mark.parametrize(("carry", "context"), [("last", "all"), ("all", "all"), ("last", "visible")])
def test_in_a_cascade_of_any_order_a_stage_moves_itself_and_those_after_it(
    order: tuple[str, ...], carry: str, context: str
) -> None:
    decoder = in_order(order, carry=carry, context=context)
    for place, stage in enumerate(order):
        assert moved_by(decoder, decoder.stages[stage]) == set(order[place:])


@pytest.mark.parametrize(
    ("name", "stage", "expected"),
    [
        ("cascaded", "semantic", {*THREE}),
        ("cascaded", "instance", {"instance", "rgb"}),
        ("cascaded", "rgb", {"rgb"}),
        ("reversed", "rgb", {*THREE}),
        ("reversed", "instance", {"instance", "semantic"}),
        ("reversed", "semantic", {"semantic"}),
        *((name, stage, {stage}) for name in ("parallel", "self_attention") for stage in THREE),
    ],
)
def test_who_reads_whom(name: str, stage: str, expected: set[str]) -> None:
    decoder: Any = decoder_of(name)
    assert moved_by(decoder, decoder.stages[stage]) == expected
    own: Any = decoder_of(name, entry="own")
    assert moved_by(own, own.entries[list(own.stages).index(stage)]) == expected


@pytest.mark.parametrize("name", STAGED)
def test_a_shared_entry_moves_all(name: str) -> None:
    decoder: Any = decoder_of(name, entry="shared")
    assert len(decoder.entries) == 1
    assert moved_by(decoder, decoder.entries[0]) == {*THREE}


@EACH
def test_a_head_moves_its_own_prediction_alone(name: str) -> None:
    model, maps, masks = autoencoder_of(name), maps_of(), masks_of()
    for stage in THREE:
        before = model(maps, masks)
        fill(model.heads[stage], seed=7)
        assert moved(before, model(maps, masks)) == {stage}


def test_entries_of_their_own_that_are_alike_are_as_good_as_one() -> None:
    shared, own = decoder_of("cascaded", entry="shared"), decoder_of("cascaded", entry="own")
    weights = dict(shared.state_dict())
    for name in list(weights):
        if name.startswith("entries.0."):
            weights |= {name.replace(".0.", f".{place}.", 1): weights[name] for place in (1, 2)}
    own.load_state_dict(weights)
    assert not moved(decode(shared, masks_of()), decode(own, masks_of()))


@pytest.mark.parametrize("name", ["joint", "self_attention"])
def test_settings_of_cross_attention_do_not_matter_where_there_is_none(name: str) -> None:
    plain, set_ = decoder_of(name), decoder_of(name, context="visible", carry="all", query_residual=False)
    assert not moved(decode(plain, masks_of()), decode(set_, masks_of()))


def test_self_attention_reads_nothing_but_its_own_granularity() -> None:
    decoder, masks = decoder_of("self_attention"), masks_of(num_visible=9)
    latent = latent_of(masks)
    granularity = torch.cat([torch.full((2, 1), -1), masks.visible_idx // N], dim=1)
    before = decoder(latent, masks, GRID)
    for index, stage in enumerate(THREE):
        assert (granularity == index).any()
        changed = torch.where((granularity == index).unsqueeze(2), latent + 1, latent)
        assert moved(before, decoder(changed, masks, GRID)) == {stage}


# How a cascade carries


def test_reversed_is_the_cascade_from_the_last_stage_to_the_first() -> None:
    backwards: Any = decoder_of("reversed")
    assert tuple(backwards.stages) == THREE[::-1]
    forwards = in_order(THREE[::-1])
    forwards.load_state_dict(backwards.state_dict())
    assert not moved(decode(backwards, masks_of()), decode(forwards, masks_of()))


def test_parallel_is_a_cascade_that_carries_nothing() -> None:
    cascade, parallel = decoder_of("cascaded"), decoder_of("parallel")
    parallel.load_state_dict(cascade.state_dict())
    assert moved(decode(parallel, masks_of()), decode(cascade, masks_of())) == {"instance", "rgb"}
    assert isinstance(cascade, Cascaded)
    with hooked(cascade.carry.register_forward_hook(lambda module, inputs, carried: torch.zeros_like(carried))):
        stopped = decode(cascade, masks_of())
    assert not moved(decode(parallel, masks_of()), stopped)


def test_carrying_all_differs_from_carrying_the_last_at_the_third_stage() -> None:
    last, every = decoder_of("cascaded", carry="last"), decoder_of("cascaded", carry="all")
    every.load_state_dict(last.state_dict())
    assert moved(decode(last, masks_of()), decode(every, masks_of())) == {"rgb"}


@pytest.mark.parametrize("order", list(itertools.permutations(THREE)), ids=", ".join)
@pytest.mark.parametrize("carry", ["last", "all"])
def test_what_is_carried_lands_on_its_own_patches_alone(order: tuple[str, ...], carry: str) -> None:
    decoder, masks = in_order(order, carry=carry), masks_of()
    with hooked(decoder.carry.register_forward_hook(lambda module, inputs, carried: torch.zeros_like(carried))):
        without = contexts_of(decoder, masks)
    with hooked(decoder.carry.register_forward_hook(lambda module, inputs, carried: torch.full_like(carried, 1000.0))):
        marked = contexts_of(decoder, masks)
    for place, stage in enumerate(order):
        landed = torch.zeros(3 * N)
        for earlier in order[:place] if carry == "all" else order[max(place - 1, 0) : place]:
            landed[THREE.index(earlier) * N :][:N] = 1000.0
        expected = landed.view(1, -1, 1).expand_as(marked[stage])
        torch.testing.assert_close(marked[stage] - without[stage], expected, rtol=0, atol=1e-3)


def test_what_is_carried_are_the_features_of_the_stage_before() -> None:
    decoder, carried = decoder_of("cascaded", carry="all"), []
    assert isinstance(decoder, Cascaded)
    with hooked(decoder.carry.register_forward_hook(lambda module, inputs, result: carried.append(result))):
        features = decode(decoder, masks_of())
    expected = [features[name] for name in ("semantic", "semantic", "instance")]
    assert len(carried) == len(expected)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(carried, expected, strict=True))


def test_features_land_at_their_granularity_and_nowhere_else() -> None:
    tokens = noise_of(2, 3 * N, 4)
    state = State(noise_of(2, 1, 4), tokens, masks_of().visible_idx, N)
    for granularity in range(3):
        mine = slice(granularity * N, (granularity + 1) * N)
        landed = state.land(torch.full((2, N, 4), 5.0), granularity)
        expected = tokens.clone()
        expected[:, mine] += 5
        assert torch.equal(landed, expected)
        assert torch.equal(state.of(granularity), tokens[:, mine])
    assert torch.equal(state.tokens, noise_of(2, 3 * N, 4))


# What a context holds


@pytest.mark.parametrize("name", [*CASCADES, "parallel"])
@pytest.mark.parametrize("carry", ["last", "all"])
@pytest.mark.parametrize("num_visible", [0, 7, 18])
def test_a_visible_context_is_what_the_encoder_gave_and_the_carried_stages(
    name: str, carry: str, num_visible: int
) -> None:
    decoder: Any = decoder_of(name, context="visible", carry=carry)
    masks = masks_of(num_visible=num_visible)
    [entry] = decoder.entries
    state, features = entry(latent_of(masks), masks, GRID), decode(decoder, masks)
    order = list(decoder.stages)
    for place, (stage, context) in enumerate(contexts_of(decoder, masks).items()):
        first = 0 if carry == "all" else max(place - 1, 0)
        carried = [] if name == "parallel" else order[first:place]
        assert context.shape[1] == 1 + num_visible + len(carried) * N, stage
        assert torch.equal(context[:, :1], state.prefix)
        for image, places in enumerate(masks.visible_idx):
            assert torch.equal(context[image, 1 : 1 + num_visible], state.tokens[image, places])
        parts = [state.tokens[:, THREE.index(each) * N :][:, :N] + features[each] for each in carried]
        assert not parts or torch.equal(context[:, 1 + num_visible :], torch.cat(parts, dim=1))


@pytest.mark.parametrize("name", [*CASCADES, "parallel"])
def test_a_whole_context_is_all_tokens_without_the_global_one(name: str) -> None:
    decoder: Any = decoder_of(name, context="all")
    masks = masks_of()
    [entry] = decoder.entries
    contexts = list(contexts_of(decoder, masks).values())
    assert torch.equal(contexts[0], entry(latent_of(masks), masks, GRID).tokens)
    assert all(context.shape == (2, 3 * N, 16) for context in contexts)


def test_mask_tokens_are_read_in_a_whole_context_and_not_in_a_visible_one() -> None:
    masks = masks_of()
    for context in ("all", "visible"):
        decoder: Any = decoder_of("parallel", context=context)
        before = contexts_of(decoder, masks)
        with torch.no_grad():
            decoder.entries[0].mask_token += 1
        after = contexts_of(decoder, masks)
        for stage in THREE:
            if context == "visible":
                assert torch.equal(after[stage], before[stage])
            else:
                assert torch.equal((after[stage] != before[stage]).all(dim=2), masks.is_masked.flatten(1))


@EACH
def test_mask_tokens_ask_for_what_is_hidden(name: str) -> None:
    decoder, masks = decoder_of(name, context="visible"), masks_of()
    before = decode(decoder, masks)
    with torch.no_grad():
        for parameter_name, parameter in decoder.named_parameters():
            if parameter_name.endswith("mask_token"):
                parameter.add_(noise_of(16))
    assert moved(before, decode(decoder, masks)) == {*THREE}


@pytest.mark.parametrize("name", [*CASCADES, "parallel"])
def test_a_query_without_residual_leaves_nothing_of_itself_where_there_is_nothing_to_see(name: str) -> None:
    for query_residual in (True, False):
        decoder: Any = decoder_of(name, query_residual=query_residual, depth=0)
        with torch.no_grad():
            for stage in decoder.stages.values():
                stage.first.attn.proj.weight.zero_()
        for features in decode(decoder, masks_of()).values():
            difference = features - features[:, :1]
            assert (float(difference.detach().abs().max()) < 1e-5) == (not query_residual)


# What a decoder starts from


@settings(max_examples=20)
@given(
    st.lists(st.sampled_from(THREE), min_size=1, max_size=3, unique=True), st.integers(0, 6), st.integers(0, 3), seeds
)
def test_latents_go_where_they_belong_and_mask_tokens_elsewhere(
    granularities: list[str], num_visible: int, num_prefix: int, seed: int
) -> None:
    masks = masks_of(granularities, num_visible=num_visible, seed=seed)
    entry = fill(Entry(64, 8, len(granularities)))
    latent = latent_of(masks, num_prefix=num_prefix)
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
        state.visible(), torch.stack([t[i] for t, i in zip(state.tokens, masks.visible_idx, strict=True)])
    )


def test_positions_of_a_decoder_follow_the_grid() -> None:
    entry, masks = fill(Entry(64, 8, 3)), masks_of()
    lying, standing = (entry(latent_of(masks), masks, grid).tokens.unflatten(1, (3, N)) for grid in ((2, 3), (3, 2)))
    moved_by_grid = sincos_positions((3, 2), 8) - sincos_positions((2, 3), 8)
    torch.testing.assert_close(standing - lying, moved_by_grid.expand(2, 3, -1, -1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("has_norm", [False, True])
@pytest.mark.parametrize("num_prefix", [0, 1, 3])
def test_joint_runs_its_blocks_over_all_tokens_and_what_precedes_them(has_norm: bool, num_prefix: int) -> None:
    decoder, masks = decoder_of("joint", has_norm=has_norm, depth=2), masks_of()
    assert isinstance(decoder, Joint)
    latent = latent_of(masks, num_prefix=num_prefix)
    state = decoder.entry(latent, masks, GRID)
    for image in range(2):
        x = torch.cat([state.prefix[image], state.tokens[image]]).unsqueeze(0)
        for block in decoder.blocks:
            x = block(x)
        x = decoder.norm(x) if has_norm else x
        for index, stage in enumerate(THREE):
            found = decoder(latent, masks, GRID)[stage][image]
            expected = x[0, num_prefix + index * N :][:N]
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_joint_has_one_entry_and_a_norm_only_if_asked() -> None:
    asked, plain = (decoder_of("joint", has_norm=has_norm, entry="own") for has_norm in (True, False))
    assert {name.split(".")[0] for name, _ in plain.named_parameters()} == {"entry", "blocks"}
    assert {name.split(".")[0] for name, _ in asked.named_parameters()} == {"entry", "blocks", "norm"}


def test_a_plan_makes_blocks_of_its_width() -> None:
    plan = plan_of(mlp_ratio=3.0)
    blocks: list[Any] = [plan.cross_block(), plan.self_block()]
    assert [block.mlp.fc1.weight.shape for block in blocks] == [(48, 16), (48, 16)]
    assert len(plan.entries()) == 1
    assert len(plan_of(entry="own").entries()) == 3


@pytest.mark.compile
def test_a_whole_model_is_one_graph_with_the_same_predictions_and_gradients() -> None:
    model, maps = autoencoder_of("cascaded", context="visible", carry="all"), maps_of()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for seed in range(2):  # shares of the granularities that change make no new graphs
        results = []
        for each in (model, compiled):
            predictions = each(maps, masks_of(seed=seed))
            loss = torch.stack([values.square().mean() for values in predictions.values()]).sum()
            results.append([*predictions.values(), *torch.autograd.grad(loss, list(model.parameters()))])
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
