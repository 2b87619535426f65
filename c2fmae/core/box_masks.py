"""Binary masks of the objects of a batch, stored as bits inside their windows.

A mask of a 1024×1024 image has a million pixels; its bits inside the object's box are a hundredth of that on average.
So masks are cheap to send between processes and to a device, where they are unpacked when they are needed.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int, Int32, Int64, Shaped, UInt8
from torch import Tensor


@dataclass(frozen=True)
class BoxMasks:
    """One mask for each object: its pixels in a window of the sample; it is 0 outside of its window."""

    windows: Int32[Tensor, "mask 4"]
    """x0, y0, x1 and y1 of each window in pixels of the sample; x1 and y1 are exclusive."""
    bits: UInt8[Tensor, " bytes"]
    """The pixels of each window, row by row, eight to a byte with the first in the highest bit, concatenated."""
    offsets: Int64[Tensor, " mask+1"]
    """Where the bytes of each mask begin, and the end of the last."""

    @classmethod
    def from_masks(
        cls,
        masks: Sequence[Shaped[Tensor, "_rows _columns"] | Shaped[np.ndarray, "_rows _columns"]],
        windows: Int[Tensor, "mask 4"],
    ) -> "BoxMasks":
        """Pack masks, each of the size of its window; any value but 0 is inside the object."""
        for mask, (x0, y0, x1, y1) in zip(masks, windows.tolist(), strict=True):
            if tuple(mask.shape) != (y1 - y0, x1 - x0):
                raise ValueError(f"expected a mask of {y1 - y0}×{x1 - x0} pixels, got {tuple(mask.shape)}")
        packed = [np.packbits(np.asarray(mask).reshape(-1)) for mask in masks]
        offsets = np.cumsum([0, *map(len, packed)])
        bits = np.concatenate(packed) if packed else np.zeros(0, np.uint8)
        return cls(windows.int(), torch.from_numpy(bits), torch.from_numpy(offsets))

    @classmethod
    def cat(cls, samples: Iterable["BoxMasks"]) -> "BoxMasks":
        """Concatenate the masks of several samples; without any, return no masks."""
        samples = list(samples)
        if not samples:
            return cls.from_masks([], torch.zeros((0, 4), dtype=torch.int32))
        starts = np.cumsum([0, *(len(masks.bits) for masks in samples)]).tolist()
        offsets = [masks.offsets[:-1] + start for masks, start in zip(samples, starts, strict=False)]
        return cls(
            torch.cat([masks.windows for masks in samples]),
            torch.cat([masks.bits for masks in samples]),
            torch.cat([*offsets, samples[0].offsets.new_tensor(starts[-1:])]),
        )

    def select(self, rows: slice | Int64[Tensor, " selected"]) -> "BoxMasks":
        """Return some of the masks: a range, which is a view, or rows in any order, also repeated."""
        if isinstance(rows, slice):
            first, last, _ = rows.indices(len(self))
            offsets = self.offsets[first : max(first, last) + 1]
            bits = self.bits[int(offsets[0]) : int(offsets[-1])]
            return BoxMasks(self.windows[first:last], bits, offsets - offsets[0])
        starts, lengths = self.offsets[rows], self.offsets.diff()[rows]
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(dim=0)])
        shifts = (starts - offsets[:-1]).repeat_interleave(lengths)
        bits = self.bits[torch.arange(len(shifts), device=shifts.device) + shifts]
        return BoxMasks(self.windows[rows], bits, offsets)

    def unpack(self, rows: Int64[Tensor, " selected"], border: int = 0) -> UInt8[Tensor, "selected height width"]:
        """Return the windows of some masks with 0 and 1, padded at the right and the bottom to the largest of them.

        On each side, `border` pixels are added first: pixel (0, 0) of the result is pixel (x0 - border, y0 - border) of
        the sample.
        """
        windows = self.windows[rows]
        sides = (windows[:, 2:] - windows[:, :2]).amax(dim=0).tolist() if len(rows) else [0, 0]
        columns, rows_down = (
            windows[:, axis, None] - border + torch.arange(sides[axis] + 2 * border, device=windows.device)
            for axis in (0, 1)
        )
        return self.read_pixels(rows, columns[:, None, :], rows_down[:, :, None])

    def read_pixels(
        self, rows: Int64[Tensor, " selected"], x: Int[Tensor, "selected #h #w"], y: Int[Tensor, "selected #h #w"]
    ) -> UInt8[Tensor, "selected height width"]:
        """Return the values 0 and 1 of some masks at pixels of the sample."""
        x0, y0, x1, y1 = self.windows[rows].T[..., None, None].unbind()
        is_inside = (x >= x0) & (x < x1) & (y >= y0) & (y < y1)
        pixel = ((y - y0) * (x1 - x0) + x - x0) * is_inside
        if not len(self.bits):
            return is_inside.to(torch.uint8)  # all windows are empty
        # An empty window after the last byte has no pixel to read.
        byte = (self.offsets[rows][:, None, None] + (pixel >> 3)).clamp(max=len(self.bits) - 1)
        values = self.bits[byte]
        return (values >> (7 - (pixel & 7)).to(torch.uint8)) & is_inside.to(torch.uint8)

    def to(self, device: str | torch.device) -> "BoxMasks":
        """Return the masks on a device."""
        return BoxMasks(*(tensor.to(device, non_blocking=True) for tensor in (self.windows, self.bits, self.offsets)))

    def pin_memory(self) -> "BoxMasks":
        """Return the masks in page-locked memory."""
        return BoxMasks(*(tensor.pin_memory() for tensor in (self.windows, self.bits, self.offsets)))

    def __len__(self) -> int:
        return len(self.windows)
