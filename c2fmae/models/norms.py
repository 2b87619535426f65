"""Norms of pyramids and heads."""

from collections.abc import Mapping

from timm.layers.norm import LayerNorm2d
from torch import nn

from c2fmae.core.errors import UserError
from c2fmae.core.specs import NormKind

_MAX_GROUPS = 32
_MIN_CHANNELS_PER_GROUP = 8


def create_norm(kind: NormKind, channels: int) -> nn.Module:
    """Return a norm of maps [batch, channels, rows, columns].

    `batch` is not synchronised: see `synchronise_batch_norms`. `group` has at most 32 groups, of at least 8 channels.
    """
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    return nn.GroupNorm(_count_groups(channels), channels) if kind == "group" else LayerNorm2d(channels)


def synchronise_batch_norms(model: nn.Module) -> nn.Module:
    """Return the model with batch norms that share their statistics with all processes, which need CUDA."""
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-any-return]


def check_norm(
    norm: NormKind, *, micro_batch_size: int, micro_batches: int, processes: int, is_cuda: bool, is_local: bool
) -> None:
    """Raise a `UserError` if the norm of a segmenter would not suit the division of a step, as `check_norms` does.

    `micro_batch_size` is that of a process. A batch norm of a map with one cell needs two images.
    """
    check_norms({"norm": norm}, micro_batches=micro_batches, processes=processes, is_cuda=is_cuda, is_local=is_local)
    if norm == "batch" and micro_batch_size * (1 if is_local else processes) < 2:
        raise UserError(
            "norm: batch norms need at least 2 images, because the head pools a map to one cell of each image (got 1). "
            "Set norm=group, or a larger training.batch_size"
        )


def check_norms(
    norms: Mapping[str, NormKind | None], *, micro_batches: int, processes: int, is_cuda: bool, is_local: bool
) -> None:
    """Raise a `UserError` if the statistics of a norm would depend on how a step's images are divided.

    `norms` are by their setting. `is_local` allows statistics of each micro-batch of a process on its own.
    """
    settings = [name for name, norm in norms.items() if norm == "batch"]
    if not settings:
        return
    is_divided = micro_batches > 1 or (processes > 1 and not is_cuda)
    if is_divided and not is_local:
        parts = f"{micro_batches} micro-batches" if micro_batches > 1 else f"{processes} processes without CUDA"
        raise UserError(
            f"{', '.join(settings)}: batch norms would use the statistics of a part of the step's images, divided over "
            f"{parts}, so that the result depends on the division. Set {' and '.join(f'{s}=group' for s in settings)}, "
            "or accept this with norm_is_local=true"
        )


def _count_groups(channels: int) -> int:
    """Return the number of groups: a power of two that divides the channels.

    >>> [_count_groups(channels) for channels in (8, 48, 64, 256, 768)]
    [1, 4, 8, 32, 32]
    """
    groups = _MAX_GROUPS
    while groups > 1 and (channels % groups or channels // groups < _MIN_CHANNELS_PER_GROUP):
        groups //= 2
    return groups
