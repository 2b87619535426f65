"""One photo, spoilt by one of the corruptions of ImageNet-C: the same for the same seed, whatever was done before.

The work is that of `imagecorruptions`, as the package imagecorruptions-imaug has it. It draws from NumPy's global
generator, prints now and then, and uses OpenCV's threads; none of that is left to be seen from here.
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
_MIN_SIDE = 32  # pixels a side that the package takes
_SEEDED_BY_ARGUMENT = ("glass_blur", "impulse_noise")  # NumPy's global generator is not what these draw from


def corruption_tool_version() -> str:
    """Return what corrupts, with its version, or say how to get it."""
    try:
        version = importlib.metadata.version(
            _TOOL_PACKAGE
        )  # another package has a module of the same name, with faults
        _import_tool()
    except ImportError as error:
        raise UserError(f"data corrupt needs {_TOOL_PACKAGE}. Install it: pip install 'c2fmae[corrupt]'") from error
    return f"{_TOOL_PACKAGE} {version}"


def corruption_seed(seed: int, key: str, corruption: str, severity: int) -> int:
    """Return the 32-bit seed of one corrupted photo, which nothing else in a set has a part in."""
    return derive_seed(seed, f"{corruption}/{key}", severity) & 0xFFFFFFFF


def to_rgb(image: UInt8[Tensor, "channels height width"]) -> UInt8[Tensor, "3 height width"]:
    """Return a grey photo in three channels, and one with transparency without it."""
    return image.expand(3, -1, -1) if len(image) == 1 else image[:3]


def centre_crop(image: UInt8[Tensor, "3 height width"], size: int) -> UInt8[Tensor, "3 size size"]:
    """Return the centre as ImageNet-C was cut: the shorter side brought to size / 0.875, bilinearly by Pillow."""
    pil_image = tv.resize(tv.to_pil_image(image), [round(size / CENTRE_CROP_RATIO)], tv.InterpolationMode.BILINEAR)
    centre: Tensor = tv.pil_to_tensor(tv.center_crop(pil_image, [size, size]))
    return centre


def corrupt_image(
    image: UInt8[Tensor, "3 height width"], corruption: str, severity: int, seed: int
) -> UInt8[Tensor, "3 height width"]:
    """Return a photo spoilt so badly, as a function of its pixels and a 32-bit seed."""
    height, width = image.shape[-2:]
    if min(height, width) < _MIN_SIDE:
        raise UserError(
            f"a photo of {width}×{height} pixels, but corruptions take at least {_MIN_SIDE} a side. Bring all photos to"
            f" one size, as with --image-size {_MIN_SIDE}, or leave it out"
        )
    pixels = image.permute(1, 2, 0).contiguous().numpy()
    options = {"seed": seed} if corruption in _SEEDED_BY_ARGUMENT else {}
    with _isolated_globals(seed):
        try:
            corrupted = _import_tool().corrupt(pixels, severity=severity, corruption_name=corruption, **options)
        except FloatingPointError:
            if corruption != "spatter":
                raise
            corrupted = pixels  # no drop fell on this small photo; the package divides by it, and shows all black
    return torch.from_numpy(np.array(corrupted)).permute(2, 0, 1)  # a copy: some come read-only


def encode_jpeg(image: UInt8[Tensor, "3 height width"], quality: int) -> bytes:
    """Encode a photo as JPEG in the way of ImageNet-C."""
    stream = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(stream, "JPEG", quality=quality, optimize=True)
    return stream.getvalue()


def _import_tool() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what it imports
        return importlib.import_module("imagecorruptions")


@contextlib.contextmanager
def _isolated_globals(seed: int) -> Iterator[None]:
    """Seed global generators, and leave them and OpenCV's threads as they were."""
    cv2 = importlib.import_module("cv2")
    threads = cv2.getNumThreads()
    try:
        cv2.setNumThreads(1)  # there may be as many processes as cores
        with seeded_global_rngs(seed), contextlib.redirect_stdout(io.StringIO()), np.errstate(invalid="raise"):
            yield
    finally:
        cv2.setNumThreads(threads)
