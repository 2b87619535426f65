"""The masks of a batch: hidden patches of all granularities."""

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from c2fmae.core.errors import UserError, unknown_name_error
from c2fmae.core.files import check_regular_file, write_atomic

_FORMAT = "c2fmae-masks-1"


class GranularityMembers(NamedTuple):
    """The visible patches of one granularity in all images of a batch."""

    slots: Int[Tensor, " member"]
    """Indices into the visible patches of the batch: `visible_idx`, flattened."""
    patches: Int[Tensor, " member"]
    """Indices into the patches of the granularity's maps, through the whole batch."""


@dataclass(frozen=True)
class Masks:
    """The hidden patches of each granularity of each image, and the indices of the visible ones.

    Every image has the same number of visible patches in total, so `visible_idx` is rectangular although the number
    per granularity differs between images.
    """

    granularities: tuple[str, ...]
    is_masked: Bool[Tensor, "batch granularity patch"]
    """True where the patch is hidden from the encoder."""
    visible_idx: Int[Tensor, "batch visible"]
    """Indices of the visible patches in the flattened granularity × patch tokens of the image, ascending."""
    members: tuple[GranularityMembers, ...] | None = None
    """The visible patches of each granularity, if `with_members` has listed them."""
    decoded_idx: Int[Tensor, "batch granularity decoded"] | None = None
    """Indices of the patches of each granularity that the decoder predicts, ascending; None means all patches."""

    @classmethod
    def from_mask(
        cls, is_masked: Bool[Tensor, "batch granularity patch"], granularities: Sequence[str], *, num_visible: int
    ) -> "Masks":
        """Make masks from a tensor in which every image has exactly `num_visible` visible patches."""
        is_visible = ~is_masked.flatten(1)
        batch, tokens = is_visible.shape
        if is_masked.device.type == "cpu":
            if (counts := is_visible.sum(dim=1)).ne(num_visible).any():
                numbers = sorted(set(counts.tolist()))
                raise ValueError(f"is_masked: expected {num_visible} visible patches in every image, got {numbers}")
            token_idx = torch.from_numpy(np.flatnonzero(is_visible.numpy()))  # 5 times as fast as torch
        else:  # the size is known, so that no value is read on the host
            token_idx = is_visible.flatten().nonzero_static(size=batch * num_visible)
        first_token = torch.arange(0, batch * tokens, tokens, device=is_masked.device)
        return cls(tuple(granularities), is_masked, token_idx.view(batch, num_visible) - first_token.unsqueeze(1))

    @classmethod
    def from_visible_granularities(
        cls,
        visible: Collection[str],
        granularities: Sequence[str],
        *,
        batch: int,
        num_patches: int,
        device: torch.device | None = None,
    ) -> "Masks":
        """Make all patches of the given granularities visible in every image, and hide all others.

        >>> Masks.from_visible_granularities({"rgb"}, ("semantic", "rgb"), batch=1, num_patches=2).visible_idx.tolist()
        [[2, 3]]
        """
        if unknown := sorted(set(visible) - set(granularities)):
            raise unknown_name_error("granularity", unknown[0], granularities)
        is_shown = [name in visible for name in granularities]
        is_masked = ~torch.tensor(is_shown, device=device).view(1, -1, 1).expand(batch, -1, num_patches)
        token_idx = torch.arange(len(is_shown) * num_patches, device=device).view(-1, num_patches)
        visible_idx = token_idx[[index for index, is_visible in enumerate(is_shown) if is_visible]].flatten()
        return cls(tuple(granularities), is_masked, visible_idx.expand(batch, -1))

    @property
    def num_masked(self) -> Int[Tensor, "batch granularity"]:
        """The number of hidden patches of each granularity."""
        return self.is_masked.sum(dim=2)

    @property
    def is_predicted(self) -> Bool[Tensor, "batch granularity patch"]:
        """True where the patch is hidden and decoded: these patches have a loss."""
        if self.decoded_idx is None:
            return self.is_masked
        return torch.zeros_like(self.is_masked).scatter(2, self.decoded_idx, True) & self.is_masked

    def decoded_idx_of(self, granularity: str) -> Int[Tensor, "batch decoded"] | None:
        """Return the indices of the decoded patches of one granularity, or None if all are decoded."""
        return None if self.decoded_idx is None else self.decoded_idx[:, self.granularities.index(granularity)]

    def slice_images(self, start: int, stop: int) -> "Masks":
        """Return the masks of images `start` to `stop` - 1, without `members`, which count through the batch."""
        decoded_idx = None if self.decoded_idx is None else self.decoded_idx[start:stop]
        return Masks(
            self.granularities, self.is_masked[start:stop], self.visible_idx[start:stop], decoded_idx=decoded_idx
        )

    def list_members(self, *, is_exact: bool) -> tuple[GranularityMembers, ...]:
        """List the visible patches of each granularity.

        Without `is_exact`, lists have the fixed length of all visible patches, which avoids synchronisation with a
        GPU, and shapes that depend on data in compiled graphs. Surplus entries are one past the last slot and patch.
        """
        batch, num_visible = self.visible_idx.shape
        num_patches = self.is_masked.shape[2]
        granularity = (self.visible_idx // num_patches).flatten()
        image = torch.arange(batch, device=granularity.device).repeat_interleave(num_visible)
        patch_idx = image * num_patches + (self.visible_idx % num_patches).flatten()
        if not is_exact:
            patch_idx = torch.nn.functional.pad(patch_idx, (0, 1), value=batch * num_patches)
        lists = []
        for index in range(len(self.granularities)):
            is_member = granularity == index
            if is_exact:
                slots = is_member.nonzero()[:, 0]
            else:
                slots = is_member.nonzero_static(size=len(is_member), fill_value=len(is_member))[:, 0]
            lists.append(GranularityMembers(slots, patch_idx[slots]))
        return tuple(lists)

    def with_members(self) -> "Masks":
        """Return the masks with exact lists of the visible patches of each granularity."""
        return replace(self, members=self.list_members(is_exact=True))

    def to(self, device: str | torch.device, *, non_blocking: bool = False) -> "Masks":
        """Return the masks on the device."""
        return self._map_tensors(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Masks":
        """Return the masks in page-locked memory."""
        return self._map_tensors(torch.Tensor.pin_memory)

    def _map_tensors(self, function: Callable[[Tensor], Tensor]) -> "Masks":
        members = self.members and tuple(GranularityMembers(*map(function, each)) for each in self.members)
        decoded_idx = None if self.decoded_idx is None else function(self.decoded_idx)
        return Masks(self.granularities, function(self.is_masked), function(self.visible_idx), members, decoded_idx)

    def save(self, path: str | Path) -> None:
        """Write the masks to a safetensors file, which `load` reads."""
        from safetensors.torch import save

        tensors = {"is_masked": self.is_masked, "visible_idx": self.visible_idx}
        if self.decoded_idx is not None:
            tensors["decoded_idx"] = self.decoded_idx
        tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        write_atomic(Path(path), save(tensors, {"format": _FORMAT, "granularities": json.dumps(self.granularities)}))

    @classmethod
    def load(cls, path: str | Path) -> "Masks":
        """Read masks from a file that `save` wrote. Raise a `UserError` if its content is inconsistent."""
        from safetensors import SafetensorError, safe_open

        check_regular_file(path)
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != _FORMAT:
                    raise UserError(
                        f"{path}: is not a mask file (expected format {_FORMAT!r}, got {metadata.get('format')!r}). "
                        "Use a file written by Masks.save"
                    )
                granularities = json.loads(metadata["granularities"])
                if not isinstance(granularities, list) or not all(isinstance(name, str) for name in granularities):
                    raise ValueError("granularities: expected a list of names")
                is_masked, visible_idx = file.get_tensor("is_masked"), file.get_tensor("visible_idx")
                masks = cls.from_mask(is_masked, granularities, num_visible=visible_idx.shape[1])
                if len(granularities) != is_masked.shape[1] or not torch.equal(masks.visible_idx, visible_idx):
                    raise ValueError("is_masked and visible_idx are inconsistent")
                if "decoded_idx" not in file.keys():  # noqa: SIM118 - not a mapping
                    return masks
                return replace(masks, decoded_idx=_check_decoded_idx(file.get_tensor("decoded_idx"), is_masked))
        except UserError:
            raise
        except (OSError, SafetensorError, KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{path}: cannot read masks: {error}") from error


def _check_decoded_idx(decoded_idx: Tensor, is_masked: Tensor) -> Tensor:
    """Return indices of decoded patches if they are ascending ones of the masks' patches, or raise a ValueError."""
    is_ascending = decoded_idx.diff(dim=-1).gt(0).all()
    is_inside = decoded_idx.ge(0).all() and decoded_idx.lt(is_masked.shape[2]).all()
    if decoded_idx.shape[:-1] != is_masked.shape[:-1] or not (is_ascending and is_inside):
        raise ValueError("is_masked and decoded_idx are inconsistent")
    return decoded_idx
