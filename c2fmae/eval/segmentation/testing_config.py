"""Settings of the test of a segmenter. It needs no torch."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from c2fmae.core.config import RESUME_SAFE, Config, PositiveInt
from c2fmae.core.errors import UserError
from c2fmae.core.text import format_count
from c2fmae.eval.evaluation import Precision

Size = tuple[int, int]

_MAX_ASPECT = 4  # the longer side is at most this multiple of `short_side`: 2048 for 512


class TestingConfig(Config):
    """How the class of every pixel of an image is predicted. Logits are resized to the image, never its labels."""

    __test__: ClassVar[bool] = False  # not a test of pytest

    mode: Literal["slide", "whole"] = "slide"
    """Predict windows of the training crop, or the whole image at once."""
    window: PositiveInt | None = None
    """Side of a window. By default, that of the training crop."""
    stride: PositiveInt | None = None
    """Distance of two windows. By default, two thirds of the window: 341 for 512."""
    short_side: PositiveInt | None = None
    """Resize images so that their shorter side has this length, and the longer one at most 4 times this length. By
    default, images keep their size."""
    scales: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = (1.0,)
    """Scales at which each image is predicted. Probabilities are averaged over scales and flips."""
    flip: bool = False
    """Also predict the image mirrored left to right."""
    precision: Precision = "fp32"
    batch_size: Annotated[PositiveInt, RESUME_SAFE] = 8
    """Largest number of windows of an image in a forward pass."""

    @model_validator(mode="after")
    def _check(self) -> "TestingConfig":
        if self.mode == "whole":
            for name in ("window", "stride"):
                if getattr(self, name) is not None:
                    raise UserError(f"{name}: is not used with mode=whole. Leave it out, or use mode=slide")
        elif self.window is not None and self.stride is not None and self.stride > self.window:
            raise UserError(
                f"stride: expected at most {self.window}, the window, got {self.stride}. Pixels between windows would "
                "have no prediction"
            )
        if len(set(self.scales)) < len(self.scales):
            raise UserError(f"scales: expected different numbers, got {list(self.scales)}. Leave out the repeated ones")
        return self

    def resolve_window(self, crop_size: Size) -> tuple[Size, Size]:
        """Return height and width of a window, and the distance of two windows, for this training crop.

        >>> TestingConfig().resolve_window((512, 512))
        ((512, 512), (341, 341))
        """
        window = crop_size if self.window is None else (self.window, self.window)
        strides = (max(window[0] * 2 // 3, 1), max(window[1] * 2 // 3, 1))
        if self.stride is not None:
            strides = (min(self.stride, window[0]), min(self.stride, window[1]))
        return window, strides

    def resized_size(self, size: Size, scale: float = 1.0) -> Size:
        """Return the size at which an image of this size is predicted at a scale.

        >>> TestingConfig(short_side=512).resized_size((1536, 2048)), TestingConfig().resized_size((300, 400), 0.5)
        ((512, 683), (150, 200))
        """
        factor = scale
        if self.short_side is not None:
            factor *= min(self.short_side / min(size), _MAX_ASPECT * self.short_side / max(size))
        return max(int(size[0] * factor + 0.5), 1), max(int(size[1] * factor + 0.5), 1)

    def list_views(self, size: Size) -> list[tuple[Size, bool]]:
        """Return the size of each view of an image, and whether it is mirrored."""
        flips = (False, True) if self.flip else (False,)
        return [(self.resized_size(size, scale), is_flipped) for scale in self.scales for is_flipped in flips]

    def describe(self, crop_size: Size) -> str:
        """Return the settings in words, for a protocol."""
        if self.mode == "whole":
            clauses = ["whole images"]
        else:
            window, stride = self.resolve_window(crop_size)
            clauses = [
                f"windows of {window[0]}×{window[1]} every {stride[0]}×{stride[1]} pixels, their logits averaged where "
                "they overlap"
            ]
        if self.short_side is not None:
            longest = f"{_MAX_ASPECT * self.short_side:,}"
            clauses.append(f"shorter sides of images resized to {self.short_side:,}, longer ones at most {longest}")
        else:
            clauses.append("images at their own size")
        if (self.scales, self.flip) == ((1.0,), False):
            clauses.append("one scale, not flipped")
        else:
            scales = ", ".join(f"{scale:g}" for scale in self.scales)
            flips = "with and without a flip" if self.flip else "not flipped"
            clauses.append(f"{format_count(len(self.scales), 'scale')} ({scales}) {flips}, probabilities averaged")
        return f"{'; '.join(clauses)}; {self.precision}"
