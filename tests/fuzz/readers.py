"""All readers of files that may come from anywhere, each with intact files and a way to damage them."""

import hashlib
import json
import shutil
import tarfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save
from torch import Tensor

from c2fmae.config.pretrain import PretrainConfig
from c2fmae.core import checkpoint as checkpoint_format
from c2fmae.core.checkpoint import load_checkpoint, save_checkpoint
from c2fmae.core.crop_box import CropBox
from c2fmae.core.distributed import World
from c2fmae.core.errors import UserError
from c2fmae.core.loop import TrainingState
from c2fmae.core.masks import Masks
from c2fmae.core.metric_rows import truncate_rows
from c2fmae.core.objects import resize_objects
from c2fmae.core.resume import load_resume_checkpoint
from c2fmae.core.run_dir import RunDir
from c2fmae.core.run_info import read_run_info
from c2fmae.core.weight_file import read_weight_file
from c2fmae.data.corruption.creation_record import read_creation_record
from c2fmae.data.decode import decode_ids, decode_image
from c2fmae.data.geometry import scene_size
from c2fmae.data.importers import Ade20k, CocoInstances, CocoPanoptic, Voc
from c2fmae.data.importers.coco_rle import outline_to_rle
from c2fmae.data.key_list import read_keys
from c2fmae.data.object_json import decode_objects, encode_objects
from c2fmae.data.objects import inspect_objects, open_objects
from c2fmae.data.pack import PackConfig, pack_scenes
from c2fmae.data.problems import raise_first_problem
from c2fmae.data.sources import inspect_scenes
from c2fmae.data.suites.tar_tree import open_tar_tree
from c2fmae.data.tar_index import load_or_build_index, scan_shard
from c2fmae.doctor.comparison import compare_runs
from c2fmae.doctor.run import diagnose_run
from c2fmae.eval.classification.config import FinetuneConfig
from c2fmae.eval.classification.result import write_finetune_report
from c2fmae.eval.probes.feature_store import FeatureStore
from c2fmae.eval.results import load_result, make_table_sections
from c2fmae.eval.robustness.prediction_store import read_predictions
from c2fmae.exports.provenance import read_provenance
from c2fmae.loading import load_run
from c2fmae.models.backbones import load_backbone
from c2fmae.models.classifiers import load_model
from c2fmae.pretrain_report import write_pretraining_report
from c2fmae.report import Page, render_page
from tests.data.dataset_files import encode_image, encode_npy, encode_tiff, make_samples, write_tar
from tests.data.importers.test_coco import box, instances, panoptic, segment, thing
from tests.data.importers.test_voc import voc
from tests.data.objects.layouts import annotation, voc_object, write_coco, write_voc, write_yolo
from tests.fuzz.mutations import draw_value, encode_json, mutate_bytes, mutate_document

DTYPES = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
FORMATS = Path(__file__).parents[1] / "formats" / "v1"

Read = Callable[[Random], object]
"""Damages a file, and reads it."""

READERS: dict[str, tuple[int, int, Callable[[Path], Read]]] = {}
"""By name, the number of inputs in the default suite and in the long test, and a function that prepares files."""


def reader(num_inputs: int, num_inputs_of_long_test: int) -> Callable[[Callable[[Path], Read]], Callable[[Path], Read]]:
    def register(prepare: Callable[[Path], Read]) -> Callable[[Path], Read]:
        READERS[prepare.__name__] = (num_inputs, num_inputs_of_long_test, prepare)
        return prepare

    return register


def damage_bytes(path: Path, read: Callable[[Path], object]) -> Read:
    """Damage the bytes of a file."""
    intact = path.read_bytes()

    def run(rng: Random) -> object:
        path.write_bytes(mutate_bytes(intact, rng))
        return read(path)

    return run


def damage_json(
    path: Path, read: Callable[[Path], object], sign: Callable[[Any], Any] = lambda document: document
) -> Read:
    """Damage the document of a JSON file; `sign` corrects its checksum."""
    intact = json.loads(path.read_bytes())

    def run(rng: Random) -> object:
        path.write_bytes(encode_json(sign(mutate_document(intact, rng)), rng))
        return read(path)

    return run


def damage_any(*reads: Read) -> Read:
    """Damage one of several files. Unless each is `restoring`, later inputs see earlier damage too."""
    return lambda rng: rng.choice(reads)(rng)


def restoring(path: Path, read: Read) -> Read:
    """Restore a file after each input."""
    intact = path.read_bytes()

    def run(rng: Random) -> object:
        try:
            return read(rng)
        finally:
            path.write_bytes(intact)

    return run


def read_all_scenes(source: Path) -> None:
    scenes, _ = inspect_scenes(source)
    for index in range(len(scenes or ())):
        read_scene(scenes, index)


def read_scene(scenes: Any, index: int) -> None:
    with suppress(UserError):
        scenes[index]


def damage_safetensors(path: Path, read: Callable[[Path], object]) -> Read:
    """Damage the header of a safetensors file, whose data stays."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header, rest = json.loads(data[8 : 8 + size]), data[8 + size :]

    def run(rng: Random) -> object:
        text = encode_json(mutate_document(header, rng), rng)
        path.write_bytes(len(text).to_bytes(8, "little") + text + rest)
        return read(path)

    return run


def damage_tensors(path: Path, tensors: dict[str, Tensor], read: Callable[[Path], object], save_as: str) -> Read:
    """Change names, shapes and dtypes of tensors in a valid file."""

    def run(rng: Random) -> object:
        changed: dict[Any, Any] = dict(tensors)
        for _ in range(rng.choice((1, 1, 2, 4))):
            name = rng.choice(list(changed) or ["none"])
            tensor = changed.pop(name, None)
            if not isinstance(tensor, Tensor):
                continue
            match rng.randrange(9):
                case 0:
                    changed[rng.choice((f"{name}.x", "", "blocks.9999999999.norm1.weight", "é"))] = tensor
                case 1:
                    changed[name] = tensor[:0] if tensor.ndim else tensor.reshape(1)
                case 2:
                    changed[name] = tensor.unsqueeze(0)
                case 3:
                    changed[name] = tensor.flatten()
                case 4:
                    changed[name] = tensor.to(rng.choice(DTYPES))
                case 5:
                    dim = rng.randrange(max(tensor.ndim, 1))
                    changed[name] = torch.cat([tensor, tensor], dim) if tensor.ndim else tensor
                case 6:
                    changed[name] = tensor * float("nan") if tensor.is_floating_point() else tensor
                case 7 if save_as == "pickle":
                    changed[rng.choice((1, None, (1, 2), b"a"))] = tensor
                case 8 if save_as == "pickle":
                    changed[name] = draw_value(rng, tensor)
        if save_as == "pickle":
            nested = {"model": changed, "args": draw_value(rng)}
            torch.save(rng.choice((changed, changed, nested, [changed], {"model": None})), path)
        else:
            path.write_bytes(save({name: tensor.contiguous() for name, tensor in changed.items()}))
        return read(path)

    return run


def damage_safetensors_file(path: Path, read: Callable[[Path], object]) -> list[Read]:
    """Damage the bytes, the header or the tensors of a safetensors file."""
    in_tensors = damage_tensors(path, load_file(path), read, "safetensors")
    return [damage_bytes(path, read), damage_safetensors(path, read), in_tensors]


# Configs


@reader(40, 2500)
def yaml_files(folder: Path) -> Read:
    path = folder / "config.yaml"
    reads = []
    configs: tuple[tuple[str, Any], ...] = (("c2fmae", PretrainConfig), ("finetuned", FinetuneConfig))
    for run, config in configs:
        document = yaml.safe_load((FORMATS / "runs" / run / "config.yaml").read_text())
        known = {key: value for key, value in document.items() if key in config.model_fields}
        read = config.from_yaml
        path.write_text(config.from_dict(known).to_yaml())
        intact = yaml.safe_load(path.read_text())
        reads.append(damage_bytes(path, read))

        def damage_values(rng: Random, intact: Any = intact, read: Any = read) -> object:
            path.write_bytes(encode_json(mutate_document(intact, rng), rng))  # which is YAML, mostly
            return read(path)

        reads.append(damage_values)
    return damage_any(*reads)


@reader(40, 2500)
def overrides(folder: Path) -> Read:
    config = PretrainConfig.from_dict(
        {
            key: value
            for key, value in yaml.safe_load((FORMATS / "runs/c2fmae/config.yaml").read_text()).items()
            if key in PretrainConfig.model_fields
        }
    )
    keys = list_keys(config.model_dump(mode="json"))

    def run(rng: Random) -> object:
        key, value = rng.choice(keys), draw_value(rng, 1)
        text = value if isinstance(value, str) else json.dumps(value)
        if rng.random() < 0.3:
            text = mutate_bytes(text.encode(errors="surrogatepass"), rng).decode(errors="surrogateescape")
        return config.override([f"{key}={text}"])

    return run


def list_keys(values: Any) -> list[str]:
    keys = []
    for key, value in values.items():
        keys += [key, *(f"{key}.{inner}" for inner in list_keys(value))] if isinstance(value, dict) else [key]
    return keys


# Data


@reader(40, 6000)
def dataset_infos(folder: Path) -> Read:
    reads = []
    for name in ("pack", "photos", "corrupted"):
        shutil.copytree(FORMATS / "data" / name, folder / name)
        path = folder / name / "dataset.json"
        read = (
            (lambda path: read_creation_record(path.parent))
            if name == "corrupted"
            else (lambda path: inspect_scenes(path.parent))
        )
        reads += [damage_json(path, read), damage_bytes(path, read)]
    return damage_any(*reads)


IMAGE_FORMATS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("JPEG", {}),
    ("JPEG", {"progressive": True}),
    ("PNG", {}),
    ("BMP", {}),
    ("GIF", {}),
    ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
    ("WEBP", {}),
)


@reader(60, 25_000)
def images(folder: Path) -> Read:
    pixels = np.random.default_rng(0).integers(256, size=(9, 13, 4), dtype=np.uint8)
    rgba = Image.fromarray(pixels)
    rgb, grey = rgba.convert("RGB"), rgba.convert("L")
    encoded = [
        encode_image(image, form, **options)
        for image in (rgb, grey)
        for form, options in (
            ("JPEG", {}),
            ("JPEG", {"progressive": True}),
            ("PNG", {}),
            ("BMP", {}),
            ("GIF", {}),
            ("TIFF", {}),
            ("TIFF", {"compression": "tiff_lzw"}),
            ("WEBP", {}),
        )
    ] + [encode_image(rgba), encode_image(rgb.convert("CMYK"), "JPEG"), encode_image(rgb, "JPEG", exif=make_exif())]

    def run(rng: Random) -> object:
        return decode_image(mutate_bytes(rng.choice(encoded), rng), "FILE", rng.choice((1, 3, 4)))

    return run


@reader(40, 5000)
def image_arrays(folder: Path) -> Read:
    values = np.random.default_rng(0).integers(4096, size=(5, 9, 13)).astype(np.uint16)
    encoded = [
        encode_npy(values),
        encode_npy(np.asfortranarray(values.astype(np.float32))),
        encode_tiff(values),
        encode_tiff(values, compression="zlib"),
        encode_tiff(values, planarconfig="separate", bigtiff=True),
        encode_tiff(values.transpose(1, 2, 0), planarconfig="contig"),
    ]

    def run(rng: Random) -> object:
        return decode_image(mutate_bytes(rng.choice(encoded), rng), "FILE", rng.choice((1, 5)), ((0, 4095),))

    return run


def make_exif() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif.tobytes()


@reader(60, 20_000)
def id_maps(folder: Path) -> Read:
    ids = np.random.default_rng(0).integers(256, size=(9, 13), dtype=np.uint8)
    palette = Image.fromarray(ids).convert("P")
    encoded = [
        encode_image(Image.fromarray(ids)),
        encode_image(Image.fromarray(ids.astype(np.uint16) * 200)),
        encode_image(palette),
        encode_image(Image.fromarray(ids % 2).quantize(2)),
        *(path.read_bytes() for path in sorted((FORMATS / "data/pack").glob("*.png"))),
        *read_tar_members(FORMATS / "data/pack/train-000000.tar", ".png"),
    ]
    return lambda rng: decode_ids(mutate_bytes(rng.choice(encoded), rng), "FILE")


def read_tar_members(path: Path, suffix: str) -> list[bytes]:
    with tarfile.open(path) as tar:
        return [tar.extractfile(member).read() for member in tar if member.name.endswith(suffix)]  # type: ignore[union-attr]


@reader(30, 2500)
def shards(folder: Path) -> Read:
    path = write_tar(folder / "s.tar", make_samples("abc") | {"a.cls": b"1", "dir/d.jpg": b"no image", "b.cls": b"0"})

    def read(path: Path) -> None:
        path.with_name("s.tar.index").unlink(missing_ok=True)
        read_all_scenes(path)

    return damage_bytes(path, read)


@reader(40, 2000)
def shard_indexes(folder: Path) -> Read:
    shard = write_tar(folder / "s.tar", make_samples("abc") | {"a.cls": b"1"})
    load_or_build_index(shard, scan_shard)
    path = folder / "s.tar.index"
    line, _, rest = path.read_bytes().partition(b"\n")
    head = json.loads(line)

    def run(rng: Random) -> None:
        arrays = mutate_bytes(rest, rng) if rng.random() < 0.7 else rest
        document: Any = head | {"crc": zlib.crc32(arrays)}
        document = mutate_document(document, rng) if rng.random() < 0.5 else document
        path.write_bytes(json.dumps(document).encode(errors="surrogatepass") + b"\n" + arrays)
        read_all_scenes(shard)

    return run


@reader(20, 2000)
def tar_trees(folder: Path) -> Read:
    samples = make_samples("ab")
    path = write_tar(folder / "s.tar", {f"n0{i}/{name}": data for i in range(2) for name, data in samples.items()})

    def read(path: Path) -> None:
        path.with_name("s.tar.tree.index").unlink(missing_ok=True)
        scenes = open_tar_tree(path).open_images()
        for index in range(len(scenes)):
            read_scene(scenes, index)

    return damage_bytes(path, read)


@reader(20, 7000)
def key_lists(folder: Path) -> Read:
    (folder / "keys.txt").write_text("a\nb/c\nä\n")
    return damage_bytes(folder / "keys.txt", read_keys)


@reader(30, 3000)
def coco_panoptic(folder: Path) -> Read:
    stored = np.array([[0, 70_000, 5, 5, 5, 5]] * 3 + [[9] * 6])
    panoptic(folder, (stored, [segment(70_000, 90), segment(9, 159), segment(5, 1)]))
    path = folder / "annotations/panoptic_val.json"
    document = json.loads(path.read_text())
    png = folder / "annotations/panoptic_val/1.png"
    return damage_any(
        restoring(path, damage_json_without(path, document, "categories", lambda path: CocoPanoptic(folder, "val")[0])),
        restoring(png, damage_bytes(png, lambda path: CocoPanoptic(folder, "val")[0])),
    )


@reader(30, 5000)
def coco_instances(folder: Path) -> Read:
    rle = {"size": [4, 6], "counts": [3, 2, 19]}
    compressed = {"size": [4, 6], "counts": outline_to_rle(box(2, 1, 3, 2), (4, 6), "").decode()}
    instances(folder, thing(1, box(0, 0, 2, 2)), thing(2, rle, crowd=1), thing(3, compressed))
    path = folder / "annotations/instances_val.json"
    return damage_json_without(
        path, json.loads(path.read_text()), "categories", lambda path: CocoInstances(folder, "val")[0]
    )


def damage_json_without(path: Path, document: Any, rarely: str, read: Callable[[Path], object]) -> Read:
    """Damage a document, in nine of ten cases outside of a long part of it."""

    def run(rng: Random) -> object:
        if rng.random() < 0.1:
            changed = mutate_document(document, rng)
        else:
            changed = mutate_document({key: value for key, value in document.items() if key != rarely}, rng)
            changed = {rarely: document[rarely], **changed} if isinstance(changed, dict) else changed
        path.write_bytes(encode_json(changed, rng))
        return read(path)

    return run


@reader(20, 2500)
def voc_files(folder: Path) -> Read:
    voc(folder, "a", "b")
    names = (
        "ImageSets/Segmentation/val.txt",
        "SegmentationClass/a.png",
        "SegmentationObject/a.png",
        "JPEGImages/a.jpg",
    )
    return damage_any(
        *(restoring(folder / name, damage_bytes(folder / name, lambda path: Voc(folder, "val")[0])) for name in names)
    )


@reader(20, 2500)
def ade20k_files(folder: Path) -> Read:
    for name, pixels in {
        "images": np.zeros((4, 5, 3), np.uint8),
        "annotations": np.ones((4, 5), np.uint8),
        "annotations_instance": np.zeros((4, 5, 3), np.uint8),
    }.items():
        path = folder / name / "training" / ("a.jpg" if name == "images" else "a.png")
        path.parent.mkdir(parents=True)
        Image.fromarray(pixels).save(path, "PNG")
    paths = [folder / "annotations/training/a.png", folder / "annotations_instance/training/a.png"]
    return damage_any(
        *(restoring(path, damage_bytes(path, lambda path: Ade20k(folder, "training")[0])) for path in paths)
    )


# Objects


def read_objects(source: Path) -> None:
    """Open all images without problems, crop the objects of the first, and encode them."""
    scenes, problems = inspect_objects(source)
    if scenes is None:
        raise_first_problem(problems)
        return
    scene = scenes[0]
    assert scene.objects is not None
    resize_objects(scene.objects, scene_size(scene), CropBox(1, 2, 12, 17), (9, 24), is_flipped=True)
    decode_objects(encode_objects(scene.objects), len(scenes.info.object_classes), "")


@reader(40, 5000)
def coco_objects(folder: Path) -> Read:
    rle = {"size": [20, 30], "counts": [3, 200, 397]}
    compressed = {"size": [20, 30], "counts": outline_to_rle(box(2, 1, 3, 2), (20, 30), "").decode()}
    entries = [annotation(1, 10, 3, (1, 2, 8, 9)), annotation(2, 10, 90, (0, 0, 5, 5), segmentation=rle, iscrowd=1)]
    entries += [annotation(3, 20, 7, (2, 1, 3, 2), segmentation=compressed)]
    return damage_json(write_coco(folder, entries), read_objects)


@reader(40, 5000)
def yolo_objects(folder: Path) -> Read:
    images = write_yolo(folder, {"a": "0 0.5 0.5 0.2 0.4\n1 0.1 0.2 0.3 0.4\n", "b": "1 .1 .1 .5 .2 .4 .7"})
    (folder / "labels/val/b.txt").write_text("1 .1 .1 .5 .2 .4 .7\n0 0.2 0.2 0.9 0.3 0.5 0.9 0.1 0.4")
    (folder / "labels/val/a.txt").write_text("0 0.2 0.2 0.9 0.3 0.5 0.9 0.1 0.4")
    paths = [folder / "labels/val/a.txt", folder / "data.yaml"]
    return damage_any(*(restoring(path, damage_bytes(path, lambda _: read_objects(images))) for path in paths))


@reader(40, 5000)
def voc_objects(folder: Path) -> Read:
    listing = write_voc(folder, {"a": voc_object("dog", (1, 1, 10, 20)) + voc_object("cat", (5, 6, 5, 6), 1), "b": ""})
    paths = [folder / "Annotations/a.xml", listing]
    return damage_any(*(restoring(path, damage_bytes(path, lambda _: read_objects(listing))) for path in paths))


@reader(40, 5000)
def packed_objects(folder: Path) -> Read:
    source = open_objects(write_coco(folder / "coco", [annotation(1, 10, 3, (1, 2, 8, 9))], num_images=1))
    pack_scenes(source, folder / "pack", PackConfig())
    with tarfile.open(folder / "pack/scenes-000000.tar") as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    document = json.loads(members["1.objects.json"])

    def run(rng: Random) -> None:
        changed = {"1.objects.json": encode_json(mutate_document(document, rng), rng)}
        read_objects(write_tar(folder / "pack/scenes-000000.tar", members | changed))

    return run


# Weights


def make_vit_tensors() -> dict[str, Tensor]:
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=16, depth=1, num_heads=2, num_classes=3)
    return dict(vit.state_dict())


def load_any_model(path: Path) -> None:
    load_model(path)
    load_backbone(path, image_size=(64, 64))


@reader(16, 2000)
def weight_files(folder: Path) -> Read:
    tensors = make_vit_tensors()
    pickle, zipped, safe = folder / "old.pth", folder / "a.pth", folder / "a.safetensors"
    torch.save(tensors, zipped)
    torch.save({"model": tensors, "epoch": 3}, pickle, _use_new_zipfile_serialization=False)
    safe.write_bytes(save(tensors))
    return damage_any(
        *(damage_bytes(path, load_any_model) for path in (pickle, zipped, safe)),
        damage_safetensors(safe, load_any_model),
        damage_tensors(folder / "b.pth", tensors, load_any_model, "pickle"),
        damage_tensors(folder / "b.safetensors", tensors, load_any_model, "safetensors"),
    )


@reader(40, 7000)
def weight_file_bytes(folder: Path) -> Read:
    tensors = {"a.weight": torch.ones(3, 2), "b": torch.zeros(2, dtype=torch.int64)}
    paths = [folder / "a.pth", folder / "old.pth", folder / "a.safetensors"]
    torch.save(tensors, paths[0])
    torch.save({"model": tensors}, paths[1], _use_new_zipfile_serialization=False)
    paths[2].write_bytes(save(tensors))
    return damage_any(
        *(damage_bytes(path, read_weight_file) for path in paths), damage_safetensors(paths[2], read_weight_file)
    )


HF_CONFIG = {
    "model_type": "vit",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 16,
    "layer_norm_eps": 1e-6,
    "id2label": {"0": "a", "1": "b", "2": "c"},
}
TIMM_CONFIG = {
    "architecture": "vit_tiny_patch16_224",
    "global_pool": "token",
    "label_names": ["a", "b", "c"],
    "label_descriptions": {"a": "an A"},
    "model_args": {"img_size": 32, "embed_dim": 16, "depth": 1, "num_heads": 2},
    "pretrained_cfg": {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 0.9},
}


@reader(12, 1200)
def model_folders(folder: Path) -> Read:
    tensors = make_vit_tensors()
    hf_tensors = {key: value.contiguous() for key, value in to_hugging_face_names(tensors).items()}
    for name, config, stored in (("hf", HF_CONFIG, hf_tensors), ("timm", TIMM_CONFIG, tensors)):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(config))
        (folder / name / "model.safetensors").write_bytes(save(stored))
    shutil.copytree(FORMATS / "export", folder / "export")
    index = {"weight_map": dict.fromkeys(tensors, "a.safetensors")}
    (folder / "indexed").mkdir()
    (folder / "indexed/a.safetensors").write_bytes(save(tensors))
    (folder / "indexed/model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "hf/preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    read = lambda path: load_any_model(path.parent)  # noqa: E731
    paths = [folder / name / "config.json" for name in ("hf", "timm", "export")]
    paths += [folder / "hf/preprocessor_config.json"]
    return damage_any(
        *(restoring(path, damage_json(path, read)) for path in paths),
        damage_json(folder / "indexed/model.safetensors.index.json", lambda path: read_weight_file(path.parent)),
    )


def to_hugging_face_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    names = {"cls_token": "embeddings.cls_token", "pos_embed": "embeddings.position_embeddings"}
    for name, tensor in tensors.items():
        new = names.get(name, name)
        for old, ours in (
            ("patch_embed.proj.", "embeddings.patch_embeddings.projection."),
            ("head.", "classifier."),
            ("norm.", "layernorm.") if name.startswith("norm.") else ("~", "~"),
            ("blocks.", "encoder.layer."),
            (".norm1.", ".layernorm_before."),
            (".norm2.", ".layernorm_after."),
            (".attn.proj.", ".attention.output.dense."),
            (".mlp.fc1.", ".intermediate.dense."),
            (".mlp.fc2.", ".output.dense."),
        ):
            new = new.replace(old, ours)
        if ".attn.qkv." in new:
            for part, value in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                renamed[new.replace(".attn.qkv.", f".attention.attention.{part}.")] = value
        else:
            renamed[new] = tensor
    return {name if name.startswith("classifier.") else f"vit.{name}": value for name, value in renamed.items()}


@reader(40, 6000)
def mask_files(folder: Path) -> Read:
    path = Path(shutil.copy(FORMATS / "masks.safetensors", folder))
    tensors = load_file(path)
    return damage_any(
        damage_bytes(path, Masks.load),
        damage_safetensors(path, Masks.load),
        damage_tensors(path, tensors, Masks.load, "safetensors"),
    )


# Runs


def write_signed(path: Path, document: Any) -> None:
    """Write the JSON of a checkpoint with a valid checksum."""
    if isinstance(document, dict):
        document["sha256"] = checkpoint_format._checksum(document)
    path.write_text(json.dumps(document, indent=2) + "\n")


def copy_run(name: str, folder: Path) -> Path:
    """Copy a run of version 0.1, with a second checkpoint of the current format."""
    run = Path(shutil.copytree(FORMATS / "runs" / name, folder / name))
    for checkpoint_dir in [path.parent for path in run.rglob("checkpoint.json")]:
        save_checkpoint(checkpoint_dir.parent, load_checkpoint(checkpoint_dir))
    return run


def damage_checkpoint(run: Path, read: Callable[[Path], object]) -> Read:
    """Damage the JSON of the newest checkpoint, with a valid checksum, and read the run."""
    path = max(run.glob("checkpoints/*/checkpoint.json"))
    intact = json.loads(path.read_bytes())

    def run_one(rng: Random) -> object:
        document = json.loads(json.dumps(mutate_document(intact, rng)))
        write_signed(path, document)
        return read(run)

    return restoring(path, run_one)


def damage_checkpoint_tensors(run: Path, read: Callable[[Path], object]) -> Read:
    """Damage the tensors of the newest checkpoint, with a valid checksum, and read the run."""
    path = max(run.glob("checkpoints/*/tensors.safetensors"))
    metadata = path.with_name("checkpoint.json")
    document = json.loads(metadata.read_bytes())

    def read_signed(path: Path) -> object:
        data = path.read_bytes()
        tensors = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        write_signed(metadata, {**document, "tensors": tensors})
        return read(run)

    damage = damage_any(
        damage_bytes(path, read_signed),
        damage_safetensors(path, read_signed),
        damage_tensors(path, load_file(path), read_signed, "safetensors"),
    )
    return restoring(path, restoring(metadata, damage))


def describe_run(run: Path) -> None:
    info = read_run_info(run)
    _ = info.kind, info.config, info.backbone, info.classifier, f"{info.num_samples or 0:,}"
    diagnose_run(run)
    read_provenance(str(run))


@reader(20, 1200)
def checkpoint_metadata(folder: Path) -> Read:
    runs = [copy_run(name, folder) for name in ("c2fmae", "mae", "finetuned")]
    return damage_any(*(damage_checkpoint(run, describe_run) for run in runs))


@reader(8, 800)
def checkpoints_of_models(folder: Path) -> Read:
    reads: list[Read] = []
    for name, read in (("c2fmae", load_run), ("mae", load_run), ("finetuned", load_any_model)):
        run = copy_run(name, folder)
        reads += [
            damage_checkpoint(run, read),
            damage_checkpoint_tensors(run, read),
            damage_checkpoint_tensors(run, load_any_model),
        ]
    return damage_any(*reads)


@reader(16, 2000)
def checkpoints_to_resume(folder: Path) -> Read:
    run = copy_run("mae", folder)
    loaded = load_run(run)
    training = TrainingState.create(loaded.method.model, loaded.config.training)

    def resume(run: Path) -> None:
        checkpoint = load_resume_checkpoint(RunDir(run), World())
        assert checkpoint is not None
        training.restore(checkpoint.tensors, step=checkpoint.step, bad_steps=checkpoint.metadata.get("bad_steps", 0))

    return damage_any(damage_checkpoint(run, resume), damage_checkpoint_tensors(run, resume))


@reader(16, 1200)
def files_of_runs(folder: Path) -> Read:
    reads: list[Read] = []
    for name, write_report in (("mae", write_pretraining_report), ("finetuned", write_finetune_report)):
        run = copy_run(name, folder)
        other = Path(shutil.copytree(run, folder / f"other-{name}"))

        def read(path: Path, run: Path = run, other: Path = other, write_report: Any = write_report) -> None:
            diagnose_run(run)
            compare_runs(run, other)
            truncate_rows(run / path.name, after_step=2) if path.suffix == ".jsonl" else None
            write_report(RunDir(run))

        for path in (run / "state.json", run / "environment.json"):
            reads += [restoring(path, damage_json(path, read)), restoring(path, damage_bytes(path, read))]
        for path in (run / "metrics.jsonl", run / "timing.jsonl"):
            reads += [restoring(path, damage_rows(path, read)), restoring(path, damage_bytes(path, read))]
        path = run / "config.yaml"
        reads += [restoring(path, damage_yaml(path, read))]
    return damage_any(*reads)


def damage_rows(path: Path, read: Callable[[Path], object]) -> Read:
    intact = [json.loads(line) for line in path.read_text().splitlines()]

    def run(rng: Random) -> object:
        rows = mutate_document(intact, rng)
        rows = rows if isinstance(rows, list) else [rows]
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), errors="surrogatepass")
        return read(path)

    return run


def damage_yaml(path: Path, read: Callable[[Path], object]) -> Read:
    intact = yaml.safe_load(path.read_text())

    def run(rng: Random) -> object:
        path.write_bytes(encode_json(mutate_document(intact, rng), rng))  # which is YAML, mostly
        return read(path)

    return run


@reader(30, 4000)
def results(folder: Path) -> Read:
    runs = [Path(shutil.copytree(FORMATS / "runs" / name, folder / name)) for name in ("mae", "finetuned")]
    reads = []
    for path in [path for run in runs for path in sorted(run.rglob("results.json"))]:

        def read(path: Path) -> None:
            result = load_result(path.parent)
            render_page(Page("", "", make_table_sections([result])))

        reads += [restoring(path, damage_json(path, read)), restoring(path, damage_bytes(path, read))]
    return damage_any(*reads)


@reader(30, 6000)
def caches(folder: Path) -> Read:
    features = FORMATS / "runs/mae/evaluations/features"
    chunk = Path(shutil.copy(next(features.rglob("chunk-00000.safetensors")), folder))
    predictions = Path(shutil.copy(next(FORMATS.rglob("clean-*.safetensors")), folder))

    def read_features(path: Path) -> None:
        store = FeatureStore((path,), 8)
        _ = store.labels, store.image_digests, store.make_row_reader("labels")(torch.tensor([0]))

    reads = []
    for path, read in ((chunk, read_features), (predictions, read_predictions)):
        reads += [
            damage_bytes(path, read),
            damage_safetensors(path, read),
            damage_tensors(path, load_file(path), read, "safetensors"),
        ]
    return damage_any(*reads)
