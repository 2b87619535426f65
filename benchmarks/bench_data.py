"""Training samples per second on one core, compared with Pillow, three loose files and float pixels.

The data is generated: images of 500×375 pixels (noise with the spectrum of photographs, about the bytes of ImageNet's)
with two label PNGs of the same size. Also measured: shard records without decoding, opening a thousand shards, indexing
a shard beside `tarfile`, opening 1.28 million samples, and stacking in a worker.

    python -m benchmarks.bench_data [samples records indexing opening stacking]
"""

import random
import resource
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as tv

from benchmarks.tables import print_speeds
from c2fmae.core.scene import Scene
from c2fmae.core.seeding import derive_seed
from c2fmae.data.encode import TAR_END, encode_tar_member
from c2fmae.data.info import DatasetInfo
from c2fmae.data.key_list import KeyList
from c2fmae.data.pack import PackConfig, pack_scenes
from c2fmae.data.scenes import Scenes
from c2fmae.data.sources import open_scenes
from c2fmae.data.stored import StoredScenes
from c2fmae.data.tar_index import INDEX_SUFFIX, ShardIndex, file_fingerprint, save_index, scan_shard
from c2fmae.data.transforms import RandomView
from c2fmae.eval.cost.speed_and_memory import time_in_turn

NUM_IMAGES, NUM_ROUNDS, SIZE, CELLS = 48, 9, 224, 56
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def draw_smooth_noise(
    rng: np.random.Generator, height: int, width: int, power: float
) -> UInt8[np.ndarray, "height width"]:
    """Return noise whose amplitude falls with the frequency, as in photographs."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)) + 1 / 500
    spectrum = np.fft.rfft2(rng.standard_normal((height, width))) / frequency**power
    values = np.fft.irfft2(spectrum, s=(height, width))
    low, high = np.percentile(values, [1, 99])
    return np.asarray(255 * ((values - low) / (high - low)).clip(0, 1), np.uint8)


def write_tree(root: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("rgb", "semantic", "instance"):
        (root / name).mkdir(parents=True)
    sizes = []
    for number in range(NUM_IMAGES):
        light, *tints = (draw_smooth_noise(rng, 375, 500, power) for power in (1.38, 2.5, 2.5, 2.5))
        image = np.stack([light // 2 + tint // 2 for tint in tints], axis=2)
        Image.fromarray(image).save(root / f"rgb/{number:04d}.jpg", quality=90)
        sizes.append((root / f"rgb/{number:04d}.jpg").stat().st_size)
        for name, steps in (("semantic", 8), ("instance", 6)):
            ids = draw_smooth_noise(rng, 375, 500, 4.0) // np.uint8(256 / steps)
            Image.fromarray(ids).save(root / f"{name}/{number:04d}.png")
    info = DatasetInfo.from_dict({"classes": [{"name": f"class {i}"} for i in range(30)]})
    (root / "dataset.json").write_text(info.to_json(), encoding="utf-8")
    print(f"{NUM_IMAGES} images of {np.mean(sizes) / 1e3:.0f} kB on average")


def load_with_pillow(root: Path, index: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Load like MultiMAE: all maps resized to 224 by Pillow, labels further to 56, the image as normalised floats."""
    image = Image.open(root / f"rgb/{index:04d}.jpg").convert("RGB")
    top, left, height, width = RandomResizedCrop.get_params(image, [0.2, 1.0], [3 / 4, 4 / 3])
    is_flipped = random.random() < 0.5
    box = (left, top, left + width, top + height)
    pixels = image.crop(box).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    maps = []
    for name in ("semantic", "instance"):
        ids = Image.open(root / f"{name}/{index:04d}.png").crop(box).resize((SIZE, SIZE), Image.Resampling.NEAREST)
        ids = ids.resize((CELLS, CELLS), Image.Resampling.NEAREST)
        maps.append(torch.from_numpy(np.array(tv.hflip(ids) if is_flipped else ids)).long())
    values = tv.to_dtype(tv.pil_to_tensor(tv.hflip(pixels) if is_flipped else pixels), torch.float32, scale=True)
    return tv.normalize(values, MEAN, STD), maps[0], maps[1]


def view_all(scenes: Scenes, view: RandomView) -> list[Scene]:
    return [view(scenes[i], np.random.default_rng(derive_seed(0, "view", 0, i, 0))) for i in range(len(scenes))]


def bench_samples(folder: Path) -> None:
    tree = folder / "tree"
    write_tree(tree)
    loose = open_scenes(tree)
    sources: dict[str, Scenes] = {"c2fmae, the same loose files": loose}
    for name, config in {
        "shards, full-size maps": PackConfig(label_stride=1),
        "shards, maps at stride 4": PackConfig(label_stride=4),
        "… images at short side 256": PackConfig(label_stride=4, short_side=256),
    }.items():
        pack_dir = folder / f"pack{len(sources)}"
        pack_scenes(loose, pack_dir, config)
        sources[name] = open_scenes(pack_dir)
    view = RandomView(size=(SIZE, SIZE), label_stride=4)
    variants: dict[str, Callable[[], object]] = {
        "Pillow, loose files": lambda: [load_with_pillow(tree, i) for i in range(NUM_IMAGES)]
    }
    variants |= {name: partial(view_all, scenes, view) for name, scenes in sources.items()}
    seconds = time_in_turn(variants, rounds=NUM_ROUNDS)
    print_speeds("samples to 224", seconds, peer="Pillow, loose files", samples=NUM_IMAGES)


def write_shards(folder: Path, shards: int, samples: int, num_bytes: int) -> None:
    """Write shards of samples that are not decoded: an image and two maps of `num_bytes` together."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    sizes = {"jpg": num_bytes * 8 // 10, "semantic.png": num_bytes // 10, "instance.png": num_bytes // 10}
    for shard in range(shards):
        with (folder / f"s-{shard:06d}.tar").open("wb") as file:
            for sample in range(samples):
                key = f"{shard:06d}_{sample:06d}"
                file.writelines(encode_tar_member(f"{key}.{part}", rng.bytes(size)) for part, size in sizes.items())
            file.write(TAR_END)


def bench_records(folder: Path) -> None:
    """Measure random reads without decoding, from the page cache, and opening a thousand shards."""
    for shards, samples, num_bytes in ((4, 2000, 9_800), (4, 2000, 60_000), (1000, 32, 9_800)):
        shard_dir = folder / f"records-{shards}-{num_bytes}"
        write_shards(shard_dir, shards, samples, num_bytes)
        start = time.perf_counter()
        open_scenes(shard_dir)
        first, opening, reading = time.perf_counter() - start, [], []
        for round_index in range(NUM_ROUNDS):
            start = time.perf_counter()
            scenes = open_scenes(shard_dir)
            opening.append(time.perf_counter() - start)
            assert isinstance(scenes, StoredScenes)
            order = np.random.default_rng(round_index).integers(0, len(scenes), 20_000).tolist()
            start = time.perf_counter()
            for index in order:
                scenes.read_map_bytes(index)
            reading.append(len(order) / (time.perf_counter() - start))
        print(
            f"{shards:5d} shards of {samples:5,d} samples of {num_bytes / 1e3:4.1f} kB: indexed in {first:.2f} s, then"
            f" opened in {np.median(opening):.3f} s; random reads: {np.median(reading):8,.0f} records/s (median),"
            f" {max(reading):8,.0f} (maximum)"
        )


def list_with_tarfile(path: Path) -> int:
    with tarfile.open(path, "r:") as tar:
        return len(tar.getmembers())


def bench_indexing(folder: Path, samples: int = 50_000) -> None:
    """Measure the index of a shard of small members, whose headers are read from the page cache."""
    write_shards(folder / "indexing", 1, samples, 1_000)
    shard = folder / "indexing/s-000000.tar"
    variants: dict[str, Callable[[], object]] = {
        "tarfile, only listed": lambda: list_with_tarfile(shard),
        "c2fmae, indexed": lambda: scan_shard(shard),
    }
    print_speeds("members", time_in_turn(variants, rounds=3), peer="tarfile, only listed", samples=3 * samples)


def bench_opening(folder: Path, shards: int = 128, samples: int = 10_009) -> None:
    """Measure opening as many samples as ImageNet has, in sparse files with real indexes."""
    folder = folder / "opening"
    folder.mkdir()
    sizes = np.tile(np.array([3, 1500, 30_000, 2000]), (samples, 1))
    blocks = 512 + -(-sizes // 512) * 512
    offsets = np.cumsum(blocks.ravel()).reshape(blocks.shape) - blocks + 512
    for number in range(shards):
        shard = folder / f"s-{number:06d}.tar"
        with shard.open("wb") as file:
            file.truncate(int(blocks.sum()) + len(TAR_END))
        keys = KeyList.from_names(f"n{number:08d}_{sample:08d}" for sample in range(samples))
        suffixes = ("cls", "instance.png", "jpg", "semantic.png")
        index = ShardIndex(file_fingerprint(shard), keys, suffixes, offsets, sizes, np.full(samples, number))
        save_index(index, shard.with_name(f"{shard.name}{INDEX_SUFFIX}"))
    for _ in range(3):
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        count = len(open_scenes(folder))
        seconds, after = time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(f"{count:,} samples opened in {seconds:.2f} s of CPU, {(after - before) / 1024:.0f} MiB more at the peak")


def bench_stacking(_: Path, samples: int = 256) -> None:
    """Measure stacking as a worker does, with the transfer to shared memory, beside a stack that is copied there."""
    images = [torch.zeros(3, SIZE, SIZE, dtype=torch.uint8) for _ in range(samples)]

    def stack_shared() -> torch.Tensor:
        storage = images[0]._typed_storage()._new_shared(samples * images[0].numel(), device="cpu")
        return torch.stack(images, out=images[0].new(storage).resize_(samples, *images[0].shape))

    variants = {"stacked, then copied": lambda: torch.stack(images).share_memory_(), "stacked there": stack_shared}
    seconds = time_in_turn(variants, rounds=NUM_ROUNDS)
    print_speeds("stacks in shared memory", seconds, peer="stacked, then copied", samples=samples)


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for section in sys.argv[1:] or SECTIONS:
            SECTIONS[section](Path(folder))
            print()


SECTIONS: dict[str, Callable[[Path], None]] = {
    "samples": bench_samples,
    "records": bench_records,
    "indexing": bench_indexing,
    "opening": bench_opening,
    "stacking": bench_stacking,
}


if __name__ == "__main__":
    main()
