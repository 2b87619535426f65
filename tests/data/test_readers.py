import gzip
import io
import json
import pickle
import re
import struct
import tarfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from c2fmae.core.errors import UserError
from c2fmae.data import ChainedScenes, FolderScenes, GeneratedScenes, Scenes, ShardScenes, open_scenes

DATASET = {
    "format": 1,
    "classes": [{"name": "sky", "is_thing": False}, {"name": "cat"}],
    "labels": [{"name": "a"}, None],
}

Files = dict[str, bytes]


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def png(pixels: np.ndarray) -> bytes:
    return encoded(Image.fromarray(pixels))


def ids(*rows: list[int], dtype: type = np.uint8) -> np.ndarray:
    return np.array(rows, dtype)


def sample(key: str, seed: int = 0) -> tuple[Files, dict[str, np.ndarray]]:
    """A sample of a shard by member, and its arrays; its photo is PNG data, which is read by content."""
    rng = np.random.default_rng(seed)
    maps = {
        "rgb": rng.integers(256, size=(5, 7, 3), dtype=np.uint8),
        "semantic": rng.choice(np.array([0, 1, 255], np.uint8), size=(5, 7)),
        "instance": rng.choice(np.array([0, 1, 2, 254, 255], np.uint8), size=(5, 7)),
    }
    suffixes = {"rgb": "jpg", "semantic": "semantic.png", "instance": "instance.png"}
    return {f"{key}.{suffixes[name]}": png(array) for name, array in maps.items()}, maps


def write_tar(path: Path, files: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def write_tree(root: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def tree_of(files: Files) -> Files:
    """The same sample as files of a folder tree."""
    found: Files = {}
    for member, data in files.items():
        key, _, suffix = member.partition(".")
        folder = "rgb" if suffix == "jpg" else suffix.partition(".")[0]
        found[f"{folder}/{key}.png"] = data
    return found


def assert_holds(scene_maps: Mapping[str, torch.Tensor], maps: Mapping[str, np.ndarray]) -> None:
    assert list(scene_maps) == ["semantic", "instance", "rgb"]
    assert all(tensor.dtype == torch.uint8 and tensor.is_contiguous() for tensor in scene_maps.values())
    assert np.array_equal(scene_maps["rgb"].numpy(), maps["rgb"].transpose(2, 0, 1))
    assert np.array_equal(scene_maps["semantic"].numpy(), maps["semantic"])
    assert np.array_equal(scene_maps["instance"].numpy(), maps["instance"])


def keys_of(scenes: Scenes) -> list[str]:
    return [scenes[index].key for index in range(len(scenes))]


def refuses(action: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        action()


# What is written is what is read


def test_a_shard_gives_back_what_was_written_in_its_own_order(tmp_path: Path) -> None:
    (b_files, b_maps), (a_files, a_maps) = sample("b", 1), sample("x/a", 2)
    shard = ShardScenes(write_tar(tmp_path / "s.tar", b_files | {"b.json": b"{}"} | a_files))
    assert len(shard) == 2
    assert keys_of(shard) == ["b", "x/a"]
    assert_holds(shard[0].maps, b_maps)
    assert_holds(shard[1].maps, a_maps)
    assert shard[0].label is None
    assert (shard.classes, shard.labels) == ((), ())


def test_a_folder_gives_back_what_was_written_by_name(tmp_path: Path) -> None:
    (b_files, b_maps), (a_files, a_maps) = sample("b", 1), sample("a.v2", 2)
    a_files = {f"{part}/a.v2.png": png(array) for part, array in a_maps.items()}
    folder = FolderScenes(write_tree(tmp_path, tree_of(b_files) | a_files))
    assert keys_of(folder) == ["a.v2", "b"]
    assert_holds(folder[0].maps, a_maps)
    assert_holds(folder[1].maps, b_maps)
    assert folder[0].label is None


def test_class_folders_are_labels(tmp_path: Path) -> None:
    trees = [tree_of(sample(key)[0]) for key in ("dog/1", "cat/2", "dog/0")]
    folder = FolderScenes(write_tree(tmp_path, trees[0] | trees[1] | trees[2]))
    assert folder.labels == ("cat", "dog")
    assert keys_of(folder) == ["cat/2", "dog/0", "dog/1"]
    assert [folder[index].label for index in range(3)] == [0, 1, 1]


def test_cls_members_are_labels_and_dataset_json_names_them(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps(DATASET))
    shard = ShardScenes(write_tar(tmp_path / "s.tar", sample("a")[0] | {"a.cls": b"1\n"}))
    assert shard[0].label == 1
    assert shard.classes == ("sky", "cat")
    assert shard.labels == ("a", "")


def test_dataset_json_in_the_root_of_a_tree_names_the_classes(tmp_path: Path) -> None:
    folder = write_tree(tmp_path, tree_of(sample("a")[0]) | {"dataset.json": json.dumps(DATASET).encode()})
    assert FolderScenes(folder).classes == ("sky", "cat")


def test_the_ignore_of_dataset_json_is_255_in_memory(tmp_path: Path) -> None:
    files = sample("a")[0] | {"a.semantic.png": png(ids([3, 1, 0, 9, 9, 9, 9]).repeat(5, 0))}
    (tmp_path / "dataset.json").write_text('{"ignore": 9}')
    assert ShardScenes(write_tar(tmp_path / "s.tar", files))[0].maps["semantic"][0].tolist() == [3, 1, 0, *[255] * 4]


def test_sixteen_bit_maps_are_read_and_their_ignore_is_255_in_memory(tmp_path: Path) -> None:
    files = sample("a")[0] | {"a.instance.png": png(ids([0, 1, 254, 65535, 7, 7, 7], dtype=np.uint16).repeat(5, 0))}
    shard = ShardScenes(write_tar(tmp_path / "s.tar", files))
    assert shard[0].maps["instance"][4].tolist() == [0, 1, 254, 255, 7, 7, 7]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palette_maps_are_read_as_indices_not_colours(tmp_path: Path, bits: int) -> None:
    indexed = Image.frombytes("P", (7, 5), bytes([0, 1, 0, 0, 1, 1, 0]) * 5)
    indexed.putpalette([200, 10, 10, 3, 120, 9])
    files = sample("a")[0] | {"a.semantic.png": encoded(indexed, bits=bits)}
    assert ShardScenes(write_tar(tmp_path / "s.tar", files))[0].maps["semantic"][2].tolist() == [0, 1, 0, 0, 1, 1, 0]


def test_a_photo_is_turned_upright_before_anything_else(tmp_path: Path) -> None:
    upright = np.zeros((5, 7, 3), np.uint8)
    upright[0, :, 0] = 200
    exif = Image.Exif()
    exif[0x0112] = 6  # stored a quarter turn to the left of upright
    stored = encoded(Image.fromarray(np.ascontiguousarray(np.rot90(upright))), exif=exif)
    shard = ShardScenes(write_tar(tmp_path / "s.tar", sample("a")[0] | {"a.jpg": stored}))
    assert np.array_equal(shard[0].maps["rgb"].numpy(), upright.transpose(2, 0, 1))


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK"])
def test_photos_of_other_colour_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    grey = Image.new("RGB", (7, 5), (90, 90, 90)).convert(mode)
    files = sample("a")[0] | {"a.jpg": encoded(grey, "TIFF")}
    rgb = ShardScenes(write_tar(tmp_path / "s.tar", files))[0].maps["rgb"]
    assert rgb.shape == (3, 5, 7)
    assert (rgb == 90).all()


def test_what_is_not_of_the_format_is_passed_over(tmp_path: Path) -> None:
    others = {"README.md": b"hello", ".DS_Store": b"", "._a.jpg": b"junk", "a.caption.txt": b"a cat"}
    assert len(ShardScenes(write_tar(tmp_path / "s.tar", sample("a")[0] | others))) == 1
    tree = write_tree(tmp_path / "tree", tree_of(sample("a")[0]) | {"rgb/Thumbs.db": b"", "rgb/._a.png": b""})
    assert len(FolderScenes(tree)) == 1


def test_folders_within_a_tar_and_names_from_the_current_folder_do_no_harm(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for name, data in sample("./a")[0].items():
            member = tarfile.TarInfo("./" + name[2:])
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        folder = tarfile.TarInfo("./empty")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    assert keys_of(ShardScenes(tmp_path / "s.tar")) == ["a"]


def test_long_names_survive_the_tar(tmp_path: Path) -> None:
    key = "long/" * 30 + "ключ"
    assert ShardScenes(write_tar(tmp_path / "s.tar", sample(key)[0]))[0].key == key


def test_a_reader_can_be_sent_to_a_worker_process(tmp_path: Path) -> None:
    files, maps = sample("a")
    shard = pickle.loads(pickle.dumps(ShardScenes(write_tar(tmp_path / "s.tar", files))))
    assert_holds(shard[0].maps, maps)


# Opening by name


def test_the_word_generated_opens_generated_scenes() -> None:
    assert open_scenes("generated", size=48, seed=3) == GeneratedScenes(size=48, seed=3)


def test_a_folder_of_shards_is_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    for number, keys in {1: "c", 0: "ba", 2: "de"}.items():
        files: Files = {}
        for key in keys:
            files |= sample(key)[0]
        write_tar(tmp_path / f"s-{number}.tar", files)
    scenes = open_scenes(tmp_path, size=48)
    assert isinstance(scenes, ChainedScenes)
    assert keys_of(scenes) == list("bacde")
    with pytest.raises(IndexError, match="^scene 5 of 5$"):
        scenes[5]


def test_a_shard_and_a_tree_are_opened_by_what_they_are(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "s.tar", sample("a")[0])
    tree = write_tree(tmp_path / "tree", tree_of(sample("b")[0]))
    assert open_scenes(str(shard), size=48)[0].key == "a"
    assert open_scenes(tree, size=48)[0].key == "b"


@pytest.mark.parametrize("index", [1, -1])
def test_an_index_beyond_the_last_scene_is_an_index_error(tmp_path: Path, index: int) -> None:
    shard = ShardScenes(write_tar(tmp_path / "s.tar", sample("a")[0]))
    with pytest.raises(IndexError, match=f"^scene {index} of 1$"):
        shard[index]


# What is refused, and how


def test_sources_that_are_nothing_we_read_are_refused(tmp_path: Path) -> None:
    advice = "Give a folder, a .tar shard or the word 'generated'"
    refuses(lambda: open_scenes("generatd", size=48), f"generatd: does not exist. {advice}")
    (tmp_path / "s.zip").touch()
    refuses(lambda: open_scenes(tmp_path / "s.zip", size=48), f"{tmp_path}/s.zip: is not a tar shard. {advice}")
    missing = tmp_path / "none.tar"
    refuses(
        lambda: open_scenes(missing, size=48),
        f"{missing}: this shard cannot be opened: No such file or directory. Check the path",
    )
    refuses(lambda: FolderScenes(tmp_path / "no"), f"{tmp_path}/no: this folder does not exist. Check the path")


def test_a_folder_that_is_called_like_a_shard_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tar").mkdir()
    refuses(
        lambda: ShardScenes(tmp_path / "a.tar"),
        f"{tmp_path}/a.tar: this shard cannot be opened: Is a directory. Check the path",
    )


def test_a_shard_or_file_that_goes_away_is_named(tmp_path: Path) -> None:
    files, _ = sample("a")
    shard, tree = write_tar(tmp_path / "a.tar", files), write_tree(tmp_path / "tree", tree_of(files))
    scenes, others = ShardScenes(shard), FolderScenes(tree)
    shard.unlink()
    (tree / "semantic" / "a.png").unlink()
    gone = "cannot be read: No such file or directory. Restore it, or remove the sample"
    refuses(lambda: scenes[0], f"{shard}: a.semantic.png: {gone}")
    refuses(lambda: others[0], f"{tree}/semantic/a.png: {gone}")


def test_an_empty_folder_and_an_empty_shard_are_refused(tmp_path: Path) -> None:
    expected = "Expected shards (*.tar), or pictures in rgb, semantic and instance"
    refuses(lambda: open_scenes(tmp_path, size=48), f"{tmp_path}: no scenes. {expected}")
    shard = write_tar(tmp_path / "s.tar", {"README": b"nothing"})
    refuses(lambda: ShardScenes(shard), f"{shard}: no scenes. Expected KEY.jpg, KEY.semantic.png and KEY.instance.png")


@pytest.mark.parametrize("member", ["a.jpg", "a.semantic.png", "a.instance.png"])
def test_a_sample_of_a_shard_that_lacks_a_part_is_refused(tmp_path: Path, member: str) -> None:
    files = {name: data for name, data in sample("a")[0].items() if name != member}
    shard = write_tar(tmp_path / "s.tar", sample("b")[0] | files)
    refuses(lambda: ShardScenes(shard), f"{shard}: sample 'a' lacks {member}. Add it, or remove the sample")


def test_photos_without_any_maps_are_refused_as_such(tmp_path: Path) -> None:
    photos = {name: data for key in "ab" for name, data in sample(key)[0].items() if name.endswith(".jpg")}
    shard = write_tar(tmp_path / "s.tar", photos)
    message = f"{shard}: no sample has a part 'semantic'. A scene needs rgb, semantic and instance"
    refuses(lambda: ShardScenes(shard), message)


@pytest.mark.parametrize("name", ["rgb/a.jpg", "semantic/a.png", "instance/a.png"])
def test_a_sample_of_a_tree_that_lacks_a_part_is_refused(tmp_path: Path, name: str) -> None:
    files = {k: v for k, v in tree_of(sample("a")[0]).items() if not k.startswith(name.partition("/")[0])}
    root = write_tree(tmp_path, tree_of(sample("b")[0]) | files)
    refuses(lambda: FolderScenes(root), f"{root}: sample 'a' lacks {name}. Add it, or remove the sample")


def test_two_pictures_for_one_part_are_refused(tmp_path: Path) -> None:
    root = write_tree(tmp_path, tree_of(sample("a")[0]) | {"rgb/a.jpg": b""})
    message = f"{root}/rgb/a.png: sample 'a' has another picture, {root}/rgb/a.jpg. Remove one"
    refuses(lambda: FolderScenes(root), message)


def test_maps_of_another_size_than_their_photo_are_refused(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "s.tar", sample("a")[0] | {"a.instance.png": png(ids([0, 1]))})
    message = f"{shard}: a.instance.png: 2×1 pixels, but the photo has 7×5. Store both in one size"
    refuses(lambda: ShardScenes(shard)[0], message)


def test_pictures_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    files = tree_of(sample("a")[0])
    root = write_tree(tmp_path, files | {"rgb/a.png": files["rgb/a.png"][:90]})
    message = f"^{re.escape(str(root))}/rgb/a.png: not readable as a picture .*Replace it, or remove the sample$"
    with pytest.raises(UserError, match=message):
        FolderScenes(root)[0]
    (root / "rgb/a.png").write_bytes(b"")
    with pytest.raises(UserError, match=message):
        FolderScenes(root)[0]


def grey_of_four_bits(width: int, height: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 4, 0, 0, 0, 0))
    rows = b"".join(b"\0" + b"\x12" * ((width + 1) // 2) for _ in range(height))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "data",
    [
        encoded(Image.new("L", (7, 5)), "JPEG"),
        encoded(Image.new("RGB", (7, 5))),
        encoded(Image.new("LA", (7, 5))),
        encoded(Image.new("1", (7, 5))),
        grey_of_four_bits(7, 5),
        b"",
    ],
    ids=["jpeg", "colour", "transparency", "1 bit", "4 bits", "nothing"],
)
def test_maps_whose_ids_would_not_come_out_as_stored_are_refused(tmp_path: Path, data: bytes) -> None:
    shard = write_tar(tmp_path / "s.tar", sample("a")[0] | {"a.semantic.png": data})
    message = f"{shard}: a.semantic.png: not a map of ids. Store it as a PNG of one channel at 8 or 16 bits"
    refuses(lambda: ShardScenes(shard)[0], message)


@pytest.mark.parametrize("highest", [255, 256, 65534])
def test_ids_too_high_to_hold_are_refused(tmp_path: Path, highest: int) -> None:
    wide = png(ids([0, highest, 65535, 0, 0, 0, 0], dtype=np.uint16).repeat(5, 0))
    shard = write_tar(tmp_path / "s.tar", sample("a")[0] | {"a.instance.png": wide})
    message = f"{shard}: a.instance.png: id {highest}, but ids above 254 cannot be read yet. Renumber the map"
    refuses(lambda: ShardScenes(shard)[0], message)


def test_semantic_ids_without_a_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps(DATASET))
    files = sample("a")[0] | {"a.semantic.png": png(ids([0, 2, 255, 0, 0, 0, 0]).repeat(5, 0))}
    shard = write_tar(tmp_path / "s.tar", files)
    message = f"{shard}: a.semantic.png: id 2, but dataset.json names 2 classes. Add the missing names"
    refuses(lambda: ShardScenes(shard)[0], message)


@pytest.mark.parametrize("text", [b"cat", b"-1", b"", b"1.5"])
def test_labels_that_are_no_index_are_refused(tmp_path: Path, text: bytes) -> None:
    shard = write_tar(tmp_path / "s.tar", sample("a")[0] | {"a.cls": text})
    message = f"{shard}: a.cls: a label is a whole number from 0 on, got {text!r}. Write the class's index"
    refuses(lambda: ShardScenes(shard), message)


def test_a_gzipped_shard_is_refused(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "s.tar", sample("a")[0])
    shard.write_bytes(gzip.compress(shard.read_bytes()))
    message = f"{shard}: compressed with gzip, so no sample can be read by itself. Unpack it with gunzip"
    refuses(lambda: ShardScenes(shard), message)


def test_a_shard_cut_anywhere_before_its_end_is_refused(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "whole.tar", sample("a")[0] | sample("b")[0]).read_bytes()
    content = len(whole.rstrip(b"\0"))
    end = -(-content // 512) * 512
    shard = tmp_path / "s.tar"
    for length in [*range(0, end + 512, 128), content, end + 511]:
        shard.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"s\.tar: not a whole tar \(.*\)\. Copy or pack it again$"):
            ShardScenes(shard)
    shard.write_bytes(whole[: end + 512])
    assert len(ShardScenes(shard)) == 2


def test_a_shard_cut_between_two_members_is_told_by_its_end(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "s.tar", sample("a")[0])
    content = len(shard.read_bytes().rstrip(b"\0"))
    shard.write_bytes(shard.read_bytes()[: -(-content // 512) * 512])
    refuses(lambda: ShardScenes(shard), f"{shard}: not a whole tar (its end mark is missing). Copy or pack it again")


def test_a_broken_header_in_the_middle_is_not_taken_for_the_end(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "s.tar", sample("a")[0] | sample("b")[0])
    data = bytearray(shard.read_bytes())
    data[data.index(b"b.jpg")] ^= 1
    shard.write_bytes(data)
    refuses(lambda: ShardScenes(shard), f"{shard}: not a whole tar (its end mark is missing). Copy or pack it again")


@pytest.mark.parametrize("name", ["../a.jpg", "x/../../a.jpg", "/etc/a.jpg"])
def test_members_that_point_out_of_the_shard_are_refused(tmp_path: Path, name: str) -> None:
    shard = write_tar(tmp_path / "s.tar", sample("a")[0] | {name: b""})
    refuses(
        lambda: ShardScenes(shard), f"{shard}: member '{name}' points out of the shard. Pack it with relative names"
    )


@pytest.mark.parametrize("again", ["a.jpg", "./a.jpg"])
def test_members_that_are_there_twice_are_refused(tmp_path: Path, again: str) -> None:
    shard = write_tar(tmp_path / "s.tar", sample("a")[0])
    with tarfile.open(shard, "a") as tar:
        tar.addfile(tarfile.TarInfo(again))
    refuses(lambda: ShardScenes(shard), f"{shard}: member 'a.jpg' is there twice. Pack every sample once")


def test_links_in_a_shard_are_refused(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "s.tar", sample("a")[0])
    with tarfile.open(shard, "a") as tar:
        link = tarfile.TarInfo("b.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "a.jpg"
        tar.addfile(link)
    refuses(lambda: ShardScenes(shard), f"{shard}: member 'b.jpg' is a link or a special file. Pack plain files")


@pytest.mark.parametrize("text", ["{", "[]", '{"classes": ["cat"]}', '{"classes": 3}', '{"ignore": "none"}'])
def test_a_dataset_json_that_cannot_be_understood_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "dataset.json").write_text(text)
    shard = write_tar(tmp_path / "s.tar", sample("a")[0])
    expected = 'Expected an object whose `classes` is a list of {"name": …} and whose `ignore` is an id'
    message = rf"^{re.escape(str(tmp_path))}/dataset\.json: cannot be understood\. {re.escape(expected)}$"
    with pytest.raises(UserError, match=message):
        ShardScenes(shard)


def test_maps_stored_at_a_stride_are_refused(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text('{"label_stride": 4}')
    shard = write_tar(tmp_path / "s.tar", sample("a")[0])
    message = f"{tmp_path}/dataset.json: maps at label_stride 4 cannot be read yet. Store them at full size"
    refuses(lambda: ShardScenes(shard), message)
