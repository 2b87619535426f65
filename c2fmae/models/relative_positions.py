"""Relative positions of a ViT's patches, by name."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from c2fmae.core.detector_spec import WindowSpec
from c2fmae.core.specs import RelativePositions
from c2fmae.models.decomposed_positions import DecomposedPositions
from c2fmae.models.encoder import Encoder
from c2fmae.models.relative_bias import RelativePositionBias
from c2fmae.models.windows import check_plain_blocks

RelativePositionModule = RelativePositionBias | DecomposedPositions


def create_relative_positions(
    name: RelativePositions, encoder: Encoder, grid: tuple[int, int], windows: WindowSpec | None = None
) -> RelativePositionModule | None:
    """Return relative positions for the blocks of an encoder, zero at the start; None for `none`.

    `grid` is that of the patches of training images.
    """
    if name == "none":
        return None
    first: Any = encoder.blocks[0]
    grids = list_block_grids(len(encoder.blocks), grid, windows)
    if name == "bias":
        num_prefix_tokens = 0 if windows else encoder.num_prefix_tokens
        return RelativePositionBias(grids, num_heads=first.attn.num_heads, num_prefix_tokens=num_prefix_tokens)
    check_plain_blocks(encoder.blocks)
    return DecomposedPositions(grids, head_dim=first.attn.head_dim)


def list_block_grids(depth: int, grid: tuple[int, int], windows: WindowSpec | None) -> list[tuple[int, int]]:
    """Return the rows and columns of the patches that attend to each other in each block."""
    chosen = [windows.choose_window(block, grid) if windows else None for block in range(1, depth + 1)]
    return [window or grid for window in chosen]


def add_relative_positions(
    layers: list[list[nn.Parameter]], relative: RelativePositionModule | None
) -> list[list[nn.Parameter]]:
    """Return the layers of a trunk with the relative positions of each block."""
    if relative is None:
        return layers
    embeddings, *blocks = layers
    return [embeddings, *(a + b for a, b in zip(blocks, relative.block_parameters(), strict=True))]


def list_called_blocks(
    blocks: Iterable[nn.Module], relative: RelativePositionModule | None, windows: WindowSpec | None
) -> list[nn.Module]:
    """Return the blocks whose `forward` is called, which sharding needs: none if all of them are run in parts."""
    return [] if windows or isinstance(relative, DecomposedPositions) else [*blocks]
