"""Speed of a labelling relative to a pack of the same images, of a comparison, and of the plan of many images.

python -m benchmarks.bench_labelling                 # images per second, the fastest of three rounds
python -m benchmarks.bench_labelling --compare       # images per second of a core of `data compare`
python -m benchmarks.bench_labelling --plan 1281167  # seconds and memory until a finished directory is recognised
"""

import argparse
import resource
import tempfile
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import torch

from c2fmae.core.distributed import World
from c2fmae.core.labels import ClassInfo
from c2fmae.core.scene import Scene
from c2fmae.data.encode import encode_ids, encode_image
from c2fmae.data.generated import GeneratedScenes
from c2fmae.data.geometry import resize_scene
from c2fmae.data.info import DATASET_FILE, DatasetInfo
from c2fmae.data.key_list import KeyList
from c2fmae.data.pack import PackConfig, pack_scenes
from c2fmae.data.shard_writing import ShardSet
from c2fmae.data.sources import open_scenes
from c2fmae.eval.maps.compare import compare_maps
from c2fmae.eval.maps.pairs import pair_scenes
from c2fmae.labelling.config import LabelConfig, Part
from c2fmae.labelling.label import label_images, make_context
from c2fmae.labelling.manifest import make_failed_row, to_json_line
from c2fmae.labelling.plan import label_plan, rows_path, start_work
from c2fmae.labelling.protocol import LabelInput, LabelResult


class StoredMaps:
    """Returns the same two maps for every image."""

    granularities = frozenset({"semantic", "instance"})
    maps_know_labels = False

    def __init__(self, scene: Scene, classes: Sequence[ClassInfo]) -> None:
        self.maps, self.classes = {name: scene.maps[name] for name in self.granularities}, tuple(classes)
        self.maps["instance"] = torch.zeros_like(self.maps["instance"])

    def batch_key(self, height: int, width: int) -> Hashable:  # noqa: ARG002
        return None

    def label(self, inputs: Sequence[LabelInput], stride: int) -> list[LabelResult]:  # noqa: ARG002
        return [LabelResult(self.maps) for _ in inputs]

    def describe(self) -> Mapping[str, Any]:
        return {"labeller": "stored"}


def write_tree(root: Path, count: int, size: tuple[int, int] = (375, 500)) -> None:
    """Write images of a height and a width with full-size maps; 20 different ones, repeated."""
    scenes = GeneratedScenes(size=size[0], length=20)
    for index in range(20):
        scene = resize_scene(scenes[index], *size)
        files = {"rgb": ("jpg", encode_image(scene.maps["rgb"]))}
        files |= {name: ("png", encode_ids(scene.maps[name].numpy())) for name in ("semantic", "instance")}
        for name, (suffix, data) in files.items():
            (root / name).mkdir(parents=True, exist_ok=True)
            for copy in range(index, count, 20):
                (root / name / f"{copy:06d}.{suffix}").write_bytes(data)


def measure_speed(count: int, workers: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_tree(root / "tree", count)
        scenes, images = open_scenes(root / "tree"), open_scenes(root / "tree", granularities=("rgb",))
        pack_scenes(open_scenes(root / "tree"), root / "pack", PackConfig(label_stride=4))
        labeller = StoredMaps(open_scenes(root / "pack")[0], GeneratedScenes().info.classes)
        config = LabelConfig(shard_size=max(count // 4, 1))
        context = make_context(config, images.info, World())
        seconds: dict[str, list[float]] = {"pack": [], "label": []}
        for number in range(3):
            started_at = perf_counter()
            pack_scenes(scenes, root / f"pack{number}", PackConfig(shard_size=config.shard_size), workers=workers)
            seconds["pack"].append(perf_counter() - started_at)
            started_at = perf_counter()
            label_images(images, [labeller], root / f"label{number}", config, context, workers=workers, is_quiet=True)
            seconds["label"].append(perf_counter() - started_at)
    speeds = {name: count / min(each) for name, each in seconds.items()}
    for name, speed in speeds.items():
        print(f"{name}: {speed:.0f} images/s with {workers} workers")
    print(f"label / pack: {speeds['label'] / speeds['pack']:.2f}")


def measure_comparison(count: int) -> None:
    """Compare both maps of 256×200 at stride 4 with full-size ones, as stored; then without the image for `regions`."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_tree(root / "tree", count, size=(200, 256))
        info = DatasetInfo(classes=GeneratedScenes().info.classes, granularities=("semantic", "instance", "rgb"))
        (root / "tree" / DATASET_FILE).write_text(info.to_json())
        pack_scenes(open_scenes(root / "tree"), root / "maps", PackConfig(label_stride=4))
        pack_scenes(open_scenes(root / "tree"), root / "truth", PackConfig(label_stride=1))
        for names, title in ((None, "with"), (("semantic", "instance"), "without")):
            maps, truth = (open_scenes(root / name, granularities=names) for name in ("maps", "truth"))
            seconds = []
            for _ in range(3):
                started_at = process_time()
                compare_maps(pair_scenes(maps, truth))
                seconds.append(process_time() - started_at)
            print(f"compare {title} the baseline of regions: {count / min(seconds):.1f} images per second of a core")


class ManyImages:
    """Keys without images, as ImageNet's files are named."""

    info = DatasetInfo(granularities=("rgb",))

    def __init__(self, count: int) -> None:
        self.keys = KeyList.from_names(f"n{number % 1000:08d}/n{number % 1000:08d}_{number}" for number in range(count))

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Scene:
        raise IndexError(index)

    def read_image_bytes(self, index: int) -> bytes:  # noqa: ARG002
        return b"image"


def measure_plan(count: int) -> None:
    scenes, config = ManyImages(count), LabelConfig()
    labeller = StoredMaps(Scene("", dict.fromkeys(("semantic", "instance"), torch.zeros(1, 1, dtype=torch.uint8))), ())
    context = make_context(config, scenes.info, World())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        shards = ShardSet.from_keys(out, scenes.keys, name=config.name, shard_size=config.shard_size)
        start_work(label_plan(scenes, [labeller], shards, config, context), shards, Part())
        row = to_json_line({**make_failed_row("n00000000/n00000000_1", ""), "status": "done", "batch_size": 8})
        for shard in range(len(shards)):
            shards.path(shard).touch()
            rows_path(shards, shard).write_bytes(row * len(shards.indices(shard)))
        (out / "manifest.jsonl").write_bytes(row * count)
        (out / "dataset.json").write_text("{}")
        del shards
        started_at = perf_counter()
        report = label_images(scenes, [labeller], out, config, context, is_quiet=True)
        seconds = perf_counter() - started_at
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{count:,} images in {report.num_shards:,} shards: {seconds:.1f} s until the directory is recognised")
    print(f"peak memory {peak / 1024:.0f} MB, of which {before / 1024:.0f} MB are the imports and the keys")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--plan", type=int)
    parser.add_argument("--compare", action="store_true")
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.plan:
        measure_plan(arguments.plan)
    elif arguments.compare:
        measure_comparison(arguments.count)
    else:
        measure_speed(arguments.count, arguments.workers)
