"""The model of two-branch methods: an encoder of images with further modules, and its teacher."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import TypeVar

from torch import nn

from c2fmae.models.embeddings import Embeddings
from c2fmae.models.encoder import Encoder
from c2fmae.models.heads import BatchStatisticsNorm
from c2fmae.models.image_encoder import ImageEncoder

T = TypeVar("T")


class BranchModel(ImageEncoder):
    """An encoder of images with projectors, predictors and decoders, by name.

    A call computes a function of the model. So all that a step computes is in one call, as DDP needs it: several views,
    heads and losses.
    """

    def __init__(
        self,
        embeddings: Embeddings,
        encoder: Encoder,
        heads: Mapping[str, nn.Module],
        *,
        has_mask_token: bool = False,
        freezes_patch_projection: bool = False,
    ) -> None:
        super().__init__(
            embeddings,
            encoder,
            has_mask_token=has_mask_token,
            freezes_patch_projection=freezes_patch_projection,
        )
        self.heads = nn.ModuleDict(heads)

    def forward(self, compute: Callable[["BranchModel"], T]) -> T:
        """Return a function of this model."""
        return compute(self)


def create_teacher(model: BranchModel, heads: Sequence[str]) -> BranchModel:
    """Return a copy of the encoder and of these heads. It sees whole images, so it has no mask token."""
    teacher = deepcopy(model)
    teacher.mask_token = None
    teacher.heads = nn.ModuleDict({name: teacher.heads[name] for name in heads})
    return teacher.requires_grad_(False).eval()


@contextmanager
def batch_norms_of_step(teacher: nn.Module) -> Iterator[None]:
    """Let the batch norms of a teacher's heads, which is in evaluation mode, use the batches of all ranks."""
    norms = [module for module in teacher.modules() if isinstance(module, BatchStatisticsNorm)]
    for norm in norms:
        norm.train()
    try:
        yield
    finally:
        for norm in norms:
            norm.eval()
