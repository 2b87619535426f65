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
from c2fmae.core.seeding import seed_of
from c2fmae.data.augment import seeded_globals
from c2fmae.data.corruption.names import CROP

_PACKAGE = "imagecorruptions-imaug"
_SMALLEST = 32  # pixels a side that the package takes
_TAKES_SEED = ("glass_blur", "impulse_noise")  # NumPy's global generator is not what these draw from


def tool_name() -> str:
    """Return what corrupts, with its version, or say how to get it."""
    try:
        version = importlib.metadata.version(_PACKAGE)  # another package has a module of the same name, with faults
        _tool()
    except ImportError as error:
        raise UserError(f"data corrupt needs {_PACKAGE}. Install it: pip install 'c2fmae[corrupt]'") from error
    return f"{_PACKAGE} {version}"


def corruption_seed(seed: int, key: str, corruption: str, severity: int) -> int:
    """Return the 32-bit seed of one corrupted photo, which nothing else in a set has a part in."""
    return seed_of(seed, f"{corruption}/{key}", severity) & 0xFFFFFFFF


def as_colours(photo: UInt8[Tensor, "channels height width"]) -> UInt8[Tensor, "3 height width"]:
    """Return a grey photo in three channels, and one with transparency without it."""
    return photo.expand(3, -1, -1) if len(photo) == 1 else photo[:3]


def centre_of(photo: UInt8[Tensor, "3 height width"], size: int) -> UInt8[Tensor, "3 size size"]:
    """Return the centre as ImageNet-C was cut: the shorter side brought to size / 0.875, bilinearly by Pillow."""
    image = tv.resize(tv.to_pil_image(photo), [round(size / CROP)], tv.InterpolationMode.BILINEAR)
    centre: Tensor = tv.pil_to_tensor(tv.center_crop(image, [size, size]))
    return centre


def corrupt_photo(
    photo: UInt8[Tensor, "3 height width"], corruption: str, severity: int, seed: int
) -> UInt8[Tensor, "3 height width"]:
    """Return a photo spoilt so badly, as a function of its pixels and a 32-bit seed."""
    height, width = photo.shape[-2:]
    if min(height, width) < _SMALLEST:
        raise UserError(
            f"a photo of {width}×{height} pixels, but corruptions take at least {_SMALLEST} a side. Bring all photos to"
            f" one size, as with --image-size {_SMALLEST}, or leave it out"
        )
    pixels = photo.permute(1, 2, 0).contiguous().numpy()
    options = {"seed": seed} if corruption in _TAKES_SEED else {}
    with _undisturbed(seed):
        try:
            spoilt = _tool().corrupt(pixels, severity=severity, corruption_name=corruption, **options)
        except FloatingPointError:
            if corruption != "spatter":
                raise
            spoilt = pixels  # no drop fell on this small photo; the package divides by it, and shows all black
    return torch.from_numpy(np.array(spoilt)).permute(2, 0, 1)  # a copy: some come read-only


def encode_corrupted(photo: UInt8[Tensor, "3 height width"], quality: int) -> bytes:
    """Encode a photo as JPEG in the way of ImageNet-C."""
    stream = io.BytesIO()
    Image.fromarray(photo.permute(1, 2, 0).numpy()).save(stream, "JPEG", quality=quality, optimize=True)
    return stream.getvalue()


def _tool() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what it imports
        return importlib.import_module("imagecorruptions")


@contextlib.contextmanager
def _undisturbed(seed: int) -> Iterator[None]:
    """Seed global generators, and leave them and OpenCV's threads as they were."""
    cv2 = importlib.import_module("cv2")
    threads = cv2.getNumThreads()
    try:
        cv2.setNumThreads(1)  # there may be as many processes as cores
        with seeded_globals(seed), contextlib.redirect_stdout(io.StringIO()), np.errstate(invalid="raise"):
            yield
    finally:
        cv2.setNumThreads(threads)
