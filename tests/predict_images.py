"""A folder of unusual images, and calls of `predict` for it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from c2fmae.core.distributed import World
from c2fmae.eval.engine import BatchingConfig
from c2fmae.predict import PredictOptions, PredictResult, predict

SIZES = {  # of upright images
    "deep": (24, 32),
    "photo": (40, 56),
    "strip": (20, 300),
    "trips/cmyk": (32, 40),
    "trips/day 1/turned": (48, 36),
}


def write_images(root: Path) -> Path:
    """A folder with sub-folders, and images of unusual forms; one is broken."""
    (root / "trips" / "day 1").mkdir(parents=True)
    draw_image(40, 56).save(root / "photo.jpg")
    draw_image(20, 300).save(root / "strip.PNG")
    draw_image(32, 40).convert("CMYK").save(root / "trips" / "cmyk.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    draw_image(36, 48).save(root / "trips" / "day 1" / "turned.jpeg", exif=exif)
    levels = np.arange(24 * 32, dtype=np.uint16).reshape(24, 32) * 80
    Image.fromarray(levels).save(root / "deep.png")
    (root / "trips" / "broken.jpg").write_bytes((root / "photo.jpg").read_bytes()[:400])
    (root / "notes.txt").write_text("not an image")
    return root


def draw_image(height: int, width: int) -> Image.Image:
    noise = np.random.default_rng(height).integers(256, size=(height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def run_predict(run: Path, images: Path | str, out: Path, **options: Any) -> PredictResult:
    batching = BatchingConfig(batch_size=2, num_workers=0)
    return predict(str(run), str(images), out, World(), PredictOptions(**options), batching=batching)


def list_files(out: Path) -> dict[str, tuple[int, bytes]]:
    """Modification time and content of each file."""
    files = [path for path in sorted(out.rglob("*")) if path.is_file()]
    return {str(path.relative_to(out)): (path.lstat().st_mtime_ns, path.read_bytes()) for path in files}


def interrupt_after(monkeypatch: pytest.MonkeyPatch, target: Any, name: str, calls: int) -> None:
    """Interrupt the process at the call after some of a function."""
    function, done = getattr(target, name), list[None]()

    def count(*args: Any, **options: Any) -> Any:
        if len(done) == calls:
            raise KeyboardInterrupt
        done.append(None)
        return function(*args, **options)

    monkeypatch.setattr(target, name, count)
