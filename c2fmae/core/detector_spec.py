"""Spec of a detector: everything about it except its weights, without torch. The defaults are those of the paper."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from c2fmae.core.config import Config, PositiveFloat, PositiveInt, UnitInterval
from c2fmae.core.errors import UserError
from c2fmae.core.labels import ClassInfo
from c2fmae.core.specs import BackboneSpec, NormKind, RelativePositions

PyramidName = Literal["fpn", "simple"]
PadKeys = Literal["attended", "masked"]
BoxLossName = Literal["l1", "smooth_l1", "giou"]


class WindowSpec(Config):
    """Attention in windows: all blocks attend within squares of patches, except for some that attend globally."""

    size: PositiveInt = 14
    """Side of a window in patches."""
    global_blocks: tuple[PositiveInt, ...] = (3, 6, 9, 12)
    """Blocks that attend to all patches, counted from 1."""
    pad_keys: PadKeys = "attended"
    """Patches that fill incomplete windows are zeros after the norm. Attend to them, as detectron2 does, or not."""

    def choose_window(self, block: int, grid: tuple[int, int]) -> tuple[int, int] | None:
        """Return the rows and columns of a block's windows, at most those of the grid; None for a global block.

        >>> windows = WindowSpec(size=14, global_blocks=(2,))
        >>> windows.choose_window(1, (12, 20)), windows.choose_window(2, (12, 20))
        ((12, 14), None)
        """
        return None if block in self.global_blocks else (min(self.size, grid[0]), min(self.size, grid[1]))


class PyramidSpec(Config):
    """The maps that heads take, from fine to coarse."""

    name: PyramidName = "fpn"
    """`fpn`: a map from each of several blocks, with a top-down path; `simple`: all maps from the last block."""
    channels: PositiveInt = 256
    norm: NormKind = "batch"
    """`fpn` has one norm, before the finest map; `simple` has one after each convolution."""
    depths: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (4, 6, 8, 12)
    """Blocks whose outputs the pyramid takes, counted from 1. The encoder ends with the last of them."""
    strides: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (4, 8, 16, 32, 64)
    """Pixels of the image between neighbouring cells of each map."""
    top_level: bool = True
    """The last map is every second cell of the one before. Only the RPN takes it."""

    @property
    def roi_strides(self) -> tuple[int, ...]:
        """Strides of the maps that RoIs are pooled from: all but that of the top level."""
        return self.strides[:-1] if self.top_level else self.strides

    @model_validator(mode="after")
    def _check(self) -> "PyramidSpec":
        expected = tuple(self.strides[0] << level for level in range(len(self.strides)))
        if self.strides != expected:
            raise UserError(
                f"strides: expected each to be twice the one before, as in {list(expected)}, got {list(self.strides)}"
            )
        if not self.roi_strides:
            raise UserError("top_level: needs a map below it. Add a stride, or set top_level=false")
        num_maps = 1 if self.name == "simple" else len(self.roi_strides)
        if len(self.depths) != num_maps:
            reason = "the simple pyramid takes one map" if self.name == "simple" else "fpn takes a map for each stride"
            raise UserError(f"depths: {reason} (expected {num_maps} blocks, got {len(self.depths)}). Change depths")
        return self


class AnchorSpec(Config):
    """Boxes that the RPN starts from, around the centre of every cell of every map."""

    sizes: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (32, 64, 128, 256, 512)
    """Side of a square anchor in pixels, for each map of the pyramid."""
    ratios: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (0.5, 1.0, 2.0)
    """Heights divided by widths. Areas do not depend on them."""


class BoxLossSpec(Config):
    """Loss of predicted boxes. Its sum over the positive samples of an image is divided by all its samples."""

    name: BoxLossName = "l1"
    """`l1` and `smooth_l1` compare deltas, `giou` compares boxes."""
    weight: PositiveFloat = 1.0
    beta: PositiveFloat = 1 / 9
    """Largest difference that `smooth_l1` squares."""


class RpnSpec(Config):
    """The region proposal network."""

    num_convs: PositiveInt = 1
    samples_per_image: PositiveInt = 256
    positive_fraction: UnitInterval = 0.5
    """Largest fraction of positive anchors among the samples."""
    fg_iou: UnitInterval = 0.7
    """Anchors are positive from this IoU with an object; the best anchors of each object always are."""
    bg_iou: UnitInterval = 0.3
    """Anchors are negative below this IoU with all objects."""
    box_loss: BoxLossSpec = BoxLossSpec()
    pre_nms_top_n: PositiveInt = 2000
    """Anchors of each map with the highest scores, in training."""
    post_nms_top_n: PositiveInt = 2000
    """Proposals of an image, in training."""
    test_pre_nms_top_n: PositiveInt = 1000
    test_post_nms_top_n: PositiveInt = 1000
    nms_threshold: UnitInterval = 0.7


class RoiSpec(Config):
    """Pooling of regions (RoIAlign)."""

    canonical_size: PositiveFloat = 224.0
    """Side in pixels of a square region that is pooled from the map of stride 16."""
    sampling_ratio: Annotated[int, Field(ge=0)] = 0
    """Samples of a cell along each side; 0 for one for each cell of the map that it covers."""
    aligned: bool = True
    """Shift boxes by half a pixel, which is exact. False is torchvision's Mask R-CNN."""


class BoxHeadSpec(Config):
    """The head that classifies regions and refines their boxes."""

    roi_size: PositiveInt = 7
    num_convs: Annotated[int, Field(ge=0)] = 4
    conv_channels: PositiveInt = 256
    norm: NormKind | None = "batch"
    """Norm after each convolution; null for none."""
    num_fcs: PositiveInt = 1
    fc_dim: PositiveInt = 1024
    samples_per_image: PositiveInt = 512
    positive_fraction: UnitInterval = 0.25
    """Largest fraction of positive regions among the samples."""
    fg_iou: UnitInterval = 0.5
    """Regions are positive from this IoU with an object."""
    box_loss: BoxLossSpec = BoxLossSpec(name="giou", weight=10.0)
    delta_weights: tuple[PositiveFloat, PositiveFloat, PositiveFloat, PositiveFloat] = (10.0, 10.0, 5.0, 5.0)
    """Factors of the deltas of a box: of its centre (x, y) and of the logarithm of its size (width, height)."""


class MaskHeadSpec(Config):
    """The head that predicts the mask of an object within its box."""

    roi_size: PositiveInt = 14
    """Side of the pooled map. Masks are twice as large."""
    num_convs: PositiveInt = 4
    channels: PositiveInt = 256
    norm: NormKind | None = None
    """Norm after each convolution; null for none."""
    binary_targets: bool = True
    """Round targets to 0 and 1. False is torchvision's Mask R-CNN."""


class DetectorSpec(Config):
    """Everything about a detector except its weights."""

    backbone: BackboneSpec
    """Its image size is that of the training images; it has no norm after the last block."""
    classes: Annotated[tuple[ClassInfo, ...], Field(min_length=1)]
    """Classes by label, from 0. The background is not among them."""
    pyramid: PyramidSpec = PyramidSpec()
    windows: WindowSpec | None = None
    """Attention in windows; null for global attention in all blocks. With windows there is no class token."""
    relative: RelativePositions = "none"
    anchors: AnchorSpec = AnchorSpec()
    rpn: RpnSpec = RpnSpec()
    rois: RoiSpec = RoiSpec()
    box_head: BoxHeadSpec = BoxHeadSpec()
    mask_head: MaskHeadSpec | None = MaskHeadSpec()
    """The mask head; null for a detector of boxes only."""

    @model_validator(mode="after")
    def _check(self) -> "DetectorSpec":
        if len(self.anchors.sizes) != len(self.pyramid.strides):
            raise UserError(
                f"anchors.sizes: expected one for each of the pyramid's {len(self.pyramid.strides)} strides, got "
                f"{len(self.anchors.sizes)}. Change anchors.sizes, or pyramid.strides"
            )
        return self
