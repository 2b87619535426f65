"""Whether the image processor of a folder fits its model, without which transformers fails or gives wrong maps.

Constructors of labellers check this, so that a wrong folder is an error before the first image.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from c2fmae.core.errors import UserError

_FIX = "Use the processor that belongs to the weights"


def check_resizes(folder: Path, image_processor: Any) -> None:
    """Refuse image processors that leave images at their size, which is that of no model."""
    if not getattr(image_processor, "do_resize", True):
        raise UserError(f"{folder}: its image processor does not resize images (do_resize: false). {_FIX}")


def check_fixed_size(
    folder: Path, image_processor: Any, *, expected: int | Sequence[int] | None = None, multiple: int = 1
) -> None:
    """Refuse image processors that do not resize to one size: that of the model, or one whose sides are multiples."""
    size = image_processor.size
    if not (size.height and size.width):
        raise UserError(
            f"{folder}: its image processor has no fixed size (expected `size` with height and width in"
            f" preprocessor_config.json). {_FIX}"
        )
    resized = (size.height, size.width)
    if expected is not None:
        height, width = (expected, expected) if isinstance(expected, int) else expected
        if resized != (height, width):
            raise _size_error(folder, resized, f"{height}×{width}, as in config.json")
    if any(side % multiple for side in resized):
        raise _size_error(folder, resized, f"multiples of {multiple}, the size of patches × windows in config.json")


def check_free_size(folder: Path, image_processor: Any) -> None:
    """Refuse image processors of models for images of any size that do not resize to a size, or pad to a fixed one."""
    size = image_processor.size
    if not ((size.shortest_edge and size.longest_edge) or (size.height and size.width)):
        raise UserError(
            f"{folder}: the `size` of its image processor is incomplete (expected shortest_edge and longest_edge, or"
            f" height and width). {_FIX}"
        )
    if pad_size := getattr(image_processor, "pad_size", None):
        raise UserError(
            f"{folder}: its image processor pads images to {pad_size.height}×{pad_size.width} pixels (expected no"
            " pad_size). Remove pad_size from preprocessor_config.json"
        )


def _size_error(folder: Path, resized: tuple[int, int], expected: str) -> UserError:
    height, width = resized
    return UserError(
        f"{folder}: its image processor resizes images to {height}×{width} pixels (expected {expected}). {_FIX}"
    )
