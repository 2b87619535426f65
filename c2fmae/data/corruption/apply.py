"""The corruptions of ImageNet-C, as functions of an image and a seed.

They are those of `imagecorruptions`, in the version of the package imagecorruptions-imaug. It draws from NumPy's global
generator, prints, and uses OpenCV's threads; none of these effects is visible to the caller.
"""

import contextlib
import importlib
import importlib.metadata
import io
import warnings
from collections.abc import Iterator
from types import ModuleType

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from c2fmae.core.errors import UserError
from c2fmae.core.seeding import derive_seed
from c2fmae.data.augment import seeded_global_rngs
from c2fmae.data.corruption.names import CENTRE_CROP_RATIO

_TOOL_PACKAGE = "imagecorruptions-imaug"
_MIN_SIDE = 32  # pixels; the package fails on smaller images
_SEEDED_BY_ARGUMENT = ("glass_blur", "impulse_noise")  # these do not draw from NumPy's global generator


def corruption_tool_version() -> str:
    """Return name and version of the corruption package. If it is missing, raise an error with the install command."""
    try:
        # Looked up by package: a faulty package has a module of the same name.
        version = importlib.metadata.version(_TOOL_PACKAGE)
        _import_tool()
    except ImportError as error:
        raise UserError(f"data corrupt needs {_TOOL_PACKAGE}. Install it: pip install 'c2fmae[corrupt]'") from error
    return f"{_TOOL_PACKAGE} {version}"


def corruption_seed(seed: int, key: str, corruption: str, severity: int) -> int:
    """Return the 32-bit seed of one corrupted image. It does not depend on other images of a set."""
    return derive_seed(seed, f"{corruption}/{key}", severity) & 0xFFFFFFFF


def to_rgb(image: UInt8[Tensor, "channels height width"]) -> UInt8[Tensor, "3 height width"]:
    """Convert an image to RGB: repeat the channel of a grey image, and drop an alpha channel."""
    return image.expand(3, -1, -1) if len(image) == 1 else image[:3]


def centre_crop(image: UInt8[Tensor, "3 height width"], size: int) -> UInt8[Tensor, "3 size size"]:
    """Crop the centre like ImageNet-C: the shorter side is resized to size / 0.875, bilinearly by Pillow."""
    pil_image = tv.resize(tv.to_pil_image(image), [round(size / CENTRE_CROP_RATIO)], tv.InterpolationMode.BILINEAR)
    centre: Tensor = tv.pil_to_tensor(tv.center_crop(pil_image, [size, size]))
    return centre


def corrupt_image(
    image: UInt8[Tensor, "3 height width"], corruption: str, severity: int, seed: int
) -> UInt8[Tensor, "3 height width"]:
    """Return a corrupted image, as a function of its pixels and a 32-bit seed."""
    height, width = image.shape[-2:]
    if min(height, width) < _MIN_SIDE:
        raise UserError(
            f"the image has {width}×{height} pixels (expected at least {_MIN_SIDE} on each side). Resize all images"
            f" with --image-size {_MIN_SIDE}, or remove the image"
        )
    pixels = image.permute(1, 2, 0).contiguous().numpy()
    options = {"seed": seed} if corruption in _SEEDED_BY_ARGUMENT else {}
    with _isolated_globals(seed):
        try:
            corrupted = _import_tool().corrupt(pixels, severity=severity, corruption_name=corruption, **options)
        except FloatingPointError:
            if corruption != "spatter":
                raise
            corrupted = pixels  # no drop fell on this small image; the package divides by zero and returns black
    return torch.from_numpy(np.array(corrupted)).permute(2, 0, 1)  # a copy, since some results are read-only


def encode_jpeg(image: UInt8[Tensor, "3 height width"], quality: int) -> bytes:
    """Encode an image as JPEG like ImageNet-C."""
    stream = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(stream, "JPEG", quality=quality, optimize=True)
    return stream.getvalue()


def _import_tool() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the modules that it imports
        return importlib.import_module("imagecorruptions")


@contextlib.contextmanager
def _isolated_globals(seed: int) -> Iterator[None]:
    """Seed global generators and use one OpenCV thread in the block; restore both after it."""
    cv2 = importlib.import_module("cv2")
    threads = cv2.getNumThreads()
    try:
        cv2.setNumThreads(1)  # there may be as many processes as cores
        with seeded_global_rngs(seed), contextlib.redirect_stdout(io.StringIO()), np.errstate(invalid="raise"):
            yield
    finally:
        cv2.setNumThreads(threads)
