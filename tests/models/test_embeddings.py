from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.masks import Masks
from c2fmae.models import Embeddings, IdEmbedding, ImageEmbedding, label_stride
from tests.methods.tiny_methods import to_float64
from tests.models.tiny_models import (
    ALL_GRANULARITIES,
    NUM_CLASSES,
    draw_input_maps,
    draw_masks_at_random,
    make_embeddings,
    seeds,
)

pytestmark = pytest.mark.numeric

NAMES = [("rgb",), ("semantic",), ("semantic", "rgb"), ("rgb", "instance"), ALL_GRANULARITIES]


@pytest.fixture(params=["as many as there are", "a fixed length"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How visible patches are listed: eagerly on a CPU, or with fixed length as on a GPU and in compiled graphs."""
    way: str = request.param
    if way == "a fixed length":
        monkeypatch.setattr("c2fmae.models.embeddings.torch.compiler.is_compiling", lambda: True)
    return way


class Case(NamedTuple):
    embeddings: Embeddings
    maps: dict[str, Tensor]
    masks: Masks


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The inputs of a case, built inside the test: the run with shape checks needs plain strategies."""

    names: tuple[str, ...]
    patch: int
    grid: tuple[int, int]
    batch: int
    channels: int
    visible_fraction: float
    """The fraction of visible patches."""
    has_norm: bool
    seed: int

    def make(self) -> Case:
        num_patches = self.grid[0] * self.grid[1]
        num_visible = max(1, round(self.visible_fraction * len(self.names) * num_patches))
        cells = self.patch // label_stride(self.patch)
        return Case(
            make_embeddings(self.names, patch=self.patch, channels=self.channels, has_norm=self.has_norm),
            draw_input_maps(
                self.names,
                batch=self.batch,
                grid=self.grid,
                patch=self.patch,
                cells=cells,
                channels=self.channels,
                seed=self.seed,
            ),
            draw_masks_at_random(
                self.names, batch=self.batch, num_patches=num_patches, num_visible=num_visible, seed=self.seed
            ),
        )


settings_of_cases = st.builds(
    Setting,
    names=st.sampled_from(NAMES),
    patch=st.sampled_from([16, 14, 8, 7]),
    grid=st.tuples(st.integers(1, 3), st.integers(1, 4)),
    batch=st.integers(1, 3),
    channels=st.integers(1, 5),
    visible_fraction=st.sampled_from([0.0, 1.0]) | st.floats(0, 1),
    has_norm=st.booleans(),
    seed=seeds,
)


def project_everything(embedding: torch.nn.Module, maps: Tensor) -> Tensor:
    """The tokens of all patches [B, N, D], by a strided convolution over the map."""
    if isinstance(embedding, ImageEmbedding):
        weight, bias = embedding.proj.weight, embedding.proj.bias
        every: Tensor = embedding.norm(F.conv2d(maps, weight, bias, stride=embedding.patch).flatten(2).mT)
        return every
    assert isinstance(embedding, IdEmbedding)
    rows = F.one_hot(torch.where(maps == 255, NUM_CLASSES, maps.long()), NUM_CLASSES + 1).float()
    classes = (rows @ embedding.classes.weight).permute(0, 3, 1, 2)
    kernel = embedding.proj.weight.unflatten(1, (embedding.patch, embedding.patch, -1)).permute(0, 3, 1, 2)
    return F.conv2d(classes, kernel, embedding.proj.bias, stride=embedding.patch).flatten(2).mT


def dense(embeddings: Embeddings, maps: Mapping[str, Tensor], masks: Masks) -> Tensor:
    """Project all patches, then select the visible ones."""
    every = torch.cat([project_everything(embeddings[name], maps[name]) for name in masks.granularities], dim=1)
    return every.gather(1, masks.visible_idx.unsqueeze(2).expand(-1, -1, every.shape[2]))


def assert_equals_dense(case: Case) -> None:
    found = case.embeddings(case.maps, case.masks)
    expected = dense(*case)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    weight = torch.linspace(-1, 1, expected.numel()).view_as(expected)
    parameters = dict(case.embeddings.named_parameters())
    gradients = [
        torch.autograd.grad((tokens * weight).sum(), list(parameters.values())) for tokens in (found, expected)
    ]
    for name, ours, theirs in zip(parameters, *gradients, strict=True):
        scale = max(1.0, float(theirs.abs().max()))
        assert float((ours - theirs).abs().max()) <= 1e-5 * scale, name


@settings(max_examples=25)
@given(settings_of_cases)
def test_tokens_equal_projecting_all_patches_and_selecting_visible_ones(setting: Setting) -> None:
    assert_equals_dense(setting.make())


@settings(max_examples=25)
@given(settings_of_cases)
def test_index_lists_of_fixed_length_give_the_same_tokens(setting: Setting) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("c2fmae.models.embeddings.torch.compiler.is_compiling", lambda: True)
        assert_equals_dense(setting.make())


def test_tokens_have_the_order_of_visible_idx(way: str) -> None:
    embeddings, maps = make_embeddings().double(), to_float64(draw_input_maps())
    masks = draw_masks_at_random(num_visible=9)
    order = torch.stack([torch.randperm(9, generator=torch.Generator().manual_seed(image)) for image in range(2)])
    shuffled = replace(masks, visible_idx=masks.visible_idx.gather(1, order))
    expected = embeddings(maps, masks).gather(1, order.unsqueeze(2).expand(-1, -1, 8))
    torch.testing.assert_close(embeddings(maps, shuffled), expected, rtol=0, atol=1e-12)


def test_masks_select_the_granularities() -> None:
    """So that a model of three granularities can encode only images."""
    embeddings, maps = make_embeddings(), draw_input_maps()
    masks = Masks.from_visible_granularities(["rgb"], ["rgb"], batch=2, num_patches=6)
    every = Masks.from_visible_granularities(["rgb"], ALL_GRANULARITIES, batch=2, num_patches=6)
    assert torch.equal(embeddings({"rgb": maps["rgb"]}, masks), embeddings(maps, every))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_all_integer_types_of_ids_are_equal(dtype: torch.dtype) -> None:
    embeddings, maps, masks = (
        make_embeddings(("semantic",)),
        draw_input_maps(("semantic",)),
        draw_masks_at_random(("semantic",)),
    )
    typed = {"semantic": maps["semantic"].to(dtype)}
    assert torch.equal(embeddings(typed, masks), embeddings(maps, masks))


def test_unlabelled_cells_have_their_own_embedding(way: str) -> None:
    embeddings = make_embeddings(("semantic",))
    embedding = embeddings["semantic"]
    assert isinstance(embedding, IdEmbedding)
    maps = {"semantic": torch.full((1, 4, 4), 255, dtype=torch.uint8)}
    masks = draw_masks_at_random(("semantic",), batch=1, num_patches=1, num_visible=1)
    token = embeddings(maps, masks)
    expected = embedding.proj(embedding.classes.weight[NUM_CLASSES].repeat(16))
    torch.testing.assert_close(token[0, 0], expected, rtol=0, atol=1e-6)
    token.sum().backward()
    assert embedding.classes.weight.grad is not None
    assert embedding.classes.weight.grad.abs().sum(dim=1).nonzero().flatten().tolist() == [NUM_CLASSES]


def poisoned(maps: Mapping[str, Tensor], masks: Masks, *, patch: int = 16) -> dict[str, Tensor]:
    """The maps with hidden patches replaced by invalid values: NaN, and ids outside the table."""
    changed = {}
    for index, name in enumerate(masks.granularities):
        true = maps[name]
        side = patch if true.ndim == 4 else patch // label_stride(patch)
        rows, columns = true.shape[-2] // side, true.shape[-1] // side
        hidden = masks.is_masked[:, index].view(-1, rows, columns)
        hidden = hidden.repeat_interleave(side, dim=1).repeat_interleave(side, dim=2)
        poison = torch.full_like(true, torch.nan if true.ndim == 4 else 254)
        changed[name] = torch.where(hidden if true.ndim == 3 else hidden.unsqueeze(1), poison, true)
        assert not torch.equal(changed[name], true)
    return changed


def learnt_from(
    embeddings: Embeddings, maps: Mapping[str, Tensor], masks: Masks, call: Callable[..., Tensor] | None = None
) -> tuple[Tensor, ...]:
    """The tokens, and the gradients of all parameters."""
    tokens = (call or embeddings)(maps, masks)
    weight = torch.linspace(-1, 1, tokens.numel()).view_as(tokens)
    return (tokens.detach(), *torch.autograd.grad((tokens * weight).sum(), list(embeddings.parameters())))


def assert_hidden_patches_are_not_read(masks: Masks) -> None:
    embeddings, maps = make_embeddings(), draw_input_maps()
    expected = learnt_from(embeddings, maps, masks)
    found = learnt_from(embeddings, poisoned(maps, masks), masks)
    assert all(tensor.isfinite().all() for tensor in found)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


@settings(max_examples=25)
@given(st.integers(1, 17), seeds)
def test_hidden_patches_are_never_read(num_visible: int, seed: int) -> None:
    masks = draw_masks_at_random(num_visible=num_visible, seed=seed)
    if masks.num_masked.sum(dim=0).all():
        assert_hidden_patches_are_not_read(masks)


@pytest.mark.parametrize("first", ["hidden", "visible"])
def test_hidden_patches_are_never_read_with_index_lists_of_fixed_length(
    first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("c2fmae.models.embeddings.torch.compiler.is_compiling", lambda: True)
    is_masked = torch.ones(2, 3, 6, dtype=torch.bool)
    is_masked[:, :, slice(3) if first == "visible" else slice(3, 6)] = False
    assert_hidden_patches_are_not_read(Masks.from_mask(is_masked, ALL_GRANULARITIES, num_visible=9))


@settings(max_examples=25)
@given(st.integers(1, 18), st.integers(1, 4), seeds)
def test_no_more_patches_are_projected_than_are_visible(num_visible: int, batch: int, seed: int) -> None:
    projected = []
    linear = F.linear

    def counting(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        projected.append(len(rows))
        return linear(rows, weight, bias)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(F, "linear", counting)
        make_embeddings()(
            draw_input_maps(batch=batch), draw_masks_at_random(batch=batch, num_visible=num_visible, seed=seed)
        )
    assert len(projected) == 3
    assert sum(projected) == batch * num_visible


@pytest.mark.parametrize("shown", [["rgb"], ["semantic", "instance"], ALL_GRANULARITIES])
def test_every_parameter_has_a_gradient_whatever_is_visible(shown: list[str], way: str) -> None:
    """Otherwise DDP would wait for the missing gradients."""
    embeddings = make_embeddings()
    embeddings(
        draw_input_maps(), Masks.from_visible_granularities(shown, ALL_GRANULARITIES, batch=2, num_patches=6)
    ).sum().backward()
    for name, parameter in embeddings.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.any()) == (name.split(".")[0] in shown), name


def test_no_visible_patches_give_no_tokens(way: str) -> None:
    embeddings = make_embeddings()
    tokens = embeddings(draw_input_maps(), draw_masks_at_random(num_visible=0))
    assert tokens.shape == (2, 0, 8)
    tokens.sum().backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in embeddings.parameters())


@pytest.mark.parametrize("has_norm", [False, True])
def test_tokens_are_computed_under_autocast(has_norm: bool, way: str) -> None:
    """The norm of image patches returns float32, the projections of other granularities do not."""
    embeddings, maps, masks = make_embeddings(has_norm=has_norm), draw_input_maps(), draw_masks_at_random(num_visible=9)
    with torch.autocast("cpu", torch.bfloat16):
        tokens = embeddings(maps, masks)
    torch.testing.assert_close(tokens.float(), embeddings(maps, masks), rtol=0.05, atol=0.1)


def test_maps_must_have_the_same_grid() -> None:
    embeddings = make_embeddings()
    assert embeddings.common_grid(draw_input_maps(grid=(2, 3))) == (2, 3)
    maps = {**draw_input_maps(grid=(2, 3)), "instance": torch.zeros(2, 8, 16, dtype=torch.uint8)}
    with pytest.raises(UserError, match=r"^instance: has 2×4 patches, but semantic has 2×3\. Resize"):
        embeddings.common_grid(maps)
    maps = {**draw_input_maps(grid=(2, 3)), "rgb": torch.zeros(2, 3, 32, 40)}
    with pytest.raises(UserError, match=r"^rgb: 32×40 is not divisible into patches of 16×16\. Resize it to"):
        embeddings.common_grid(maps)


@pytest.mark.compile
def test_embeddings_compile_to_one_graph_with_equal_tokens_and_gradients() -> None:
    embeddings, maps = make_embeddings(), draw_input_maps()
    torch._dynamo.reset()
    compiled = torch.compile(embeddings, fullgraph=True, backend="aot_eager")
    for seed in range(3):  # other numbers of visible patches per granularity do not recompile
        masks = draw_masks_at_random(num_visible=7, seed=seed)
        found, expected = learnt_from(embeddings, maps, masks, compiled), learnt_from(embeddings, maps, masks)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
