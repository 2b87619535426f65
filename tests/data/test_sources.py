import gzip
import json
import os
import pickle
import re
import tarfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from c2fmae.core.errors import UserError
from c2fmae.data import shards
from c2fmae.data.sources import inspect_scenes, open_scenes
from tests.data.dataset_files import (
    DATASET,
    Files,
    assert_user_error,
    encode_image,
    encode_png,
    make_id_map,
    make_sample,
    make_samples,
    to_tree_files,
    write_tar,
    write_tree,
)

EXPECTED = "Give a directory, a .tar shard, a pattern of shards, or one of: generated"


def assert_maps_equal(scene_maps: Mapping[str, torch.Tensor], maps: Mapping[str, np.ndarray]) -> None:
    assert list(scene_maps) == ["semantic", "instance", "rgb"]
    assert all(tensor.dtype == torch.uint8 for tensor in scene_maps.values())
    assert np.array_equal(scene_maps["rgb"].numpy(), maps["rgb"].transpose(2, 0, 1))
    assert np.array_equal(scene_maps["semantic"].numpy(), maps["semantic"])
    assert np.array_equal(scene_maps["instance"].numpy(), maps["instance"])


# Reading what was written


def test_a_shard_returns_its_samples_in_their_stored_order(tmp_path: Path) -> None:
    (b_files, b_maps), (a_files, a_maps) = make_sample("b", 1), make_sample("x/a", 2)
    shard = open_scenes(write_tar(tmp_path / "s.tar", b_files | {"b.json": b"{}"} | a_files))
    assert list(shard.keys) == ["b", "x/a"]
    assert [shard[index].key for index in range(2)] == ["b", "x/a"]
    assert_maps_equal(shard[0].maps, b_maps)
    assert_maps_equal(shard[1].maps, a_maps)
    assert shard[0].label is None
    assert (shard.info.classes, shard.info.labels) == ((), ())


def test_a_directory_returns_its_samples_sorted_by_key(tmp_path: Path) -> None:
    (b_files, b_maps), (_, a_maps) = make_sample("b", 1), make_sample("a.v2", 2)
    a_files = {f"{name}/a.v2.png": encode_png(array) for name, array in a_maps.items()}
    folder = open_scenes(write_tree(tmp_path, to_tree_files(b_files) | a_files))
    assert list(folder.keys) == ["a.v2", "b"]
    assert_maps_equal(folder[0].maps, a_maps)
    assert_maps_equal(folder[1].maps, b_maps)
    assert folder[0].label is None


def test_class_directories_are_labels(tmp_path: Path) -> None:
    trees = [to_tree_files(make_sample(key)[0]) for key in ("dog/1", "cat/2", "dog/0")]
    folder = open_scenes(write_tree(tmp_path, trees[0] | trees[1] | trees[2]))
    assert folder.info.label_names == ("cat", "dog")
    assert list(folder.keys) == ["cat/2", "dog/0", "dog/1"]
    assert [folder[index].label for index in range(3)] == [0, 1, 1]


def test_cls_members_are_labels_named_by_dataset_json(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps(DATASET))
    shard = open_scenes(write_tar(tmp_path / "s.tar", make_sample("a")[0] | {"a.cls": b"0\n"}))
    assert shard[0].label == 0
    assert shard.info.class_names == ("sky", "cat")
    assert shard.info.label_names == ("a", "")


def test_a_label_without_a_name_in_dataset_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps(DATASET))
    shard = open_scenes(write_tar(tmp_path / "s.tar", make_sample("a")[0] | {"a.cls": b"2"}))
    location = f"{tmp_path}/s.tar: a.semantic.png"
    assert_user_error(
        lambda: shard[0], f"{location}: has label 2, but dataset.json names 2 labels. Add the missing ones"
    )
    shard = open_scenes(write_tar(tmp_path / "s.tar", make_sample("a")[0] | {"a.cls": b"1"}))
    assert_user_error(lambda: shard[0], f"{location}: has label 1, which is null in dataset.json. Add its name")


def test_images_without_maps_are_read_with_rgb_as_the_only_granularity(tmp_path: Path) -> None:
    images = {name: data for name, data in make_samples("ab").items() if name.endswith(".jpg")}
    shard = open_scenes(write_tar(tmp_path / "s.tar", images))
    assert shard.info.granularities == ("rgb",)
    assert list(shard[1].maps) == ["rgb"]
    write_tree(tmp_path / "flat", images)
    assert list(open_scenes(tmp_path / "flat").keys) == ["a", "b"]
    write_tree(tmp_path / "classes", {f"{name[0]}/{name}": data for name, data in images.items()})
    classes = open_scenes(tmp_path / "classes", granularities=("rgb",))
    assert classes.info.label_names == ("a", "b")
    assert [classes[index].label for index in range(2)] == [0, 1]


def test_only_requested_granularities_are_read(tmp_path: Path) -> None:
    files = make_samples("ab") | {"a.semantic.png": b"broken"}
    assert list(open_scenes(write_tar(tmp_path / "s.tar", files), granularities=("rgb", "instance"))[0].maps) == [
        "instance",
        "rgb",
    ]


def test_directories_of_a_tree_may_have_other_names(tmp_path: Path) -> None:
    files, maps = make_sample("cls/a")
    renamed = {name.replace("semantic", "semseg_coco"): data for name, data in to_tree_files(files).items()}
    root = write_tree(tmp_path, renamed)
    assert_maps_equal(open_scenes(root, folders={"semantic": "semseg_coco"})[0].maps, maps)
    message = f"{root}/semseg: does not exist, but is given as the directory of semantic. Check the name"
    assert_user_error(lambda: open_scenes(root, folders={"semantic": "semseg"}), message)


def test_maps_at_a_stride_have_one_cell_per_stride_pixels(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text('{"label_stride": 4}')
    small = {
        "a.semantic.png": encode_png(make_id_map([0, 1], [1, 0])),
        "a.instance.png": encode_png(make_id_map([0, 1], [1, 2])),
    }
    shard = open_scenes(write_tar(tmp_path / "s.tar", make_sample("a")[0] | small))
    assert shard[0].label_stride == 4
    assert shard[0].maps["instance"].tolist() == [[0, 1], [1, 2]]
    assert shard[0].maps["rgb"].shape == (3, 5, 7)


def test_the_ignore_of_dataset_json_is_255_in_memory(tmp_path: Path) -> None:
    files = make_sample("a")[0] | {"a.semantic.png": encode_png(make_id_map([3, 1, 0, 9, 9, 9, 9]).repeat(5, 0))}
    (tmp_path / "dataset.json").write_text('{"ignore": 9}')
    assert open_scenes(write_tar(tmp_path / "s.tar", files))[0].maps["semantic"][0].tolist() == [3, 1, 0, *[255] * 4]
    files["a.semantic.png"] = encode_png(make_id_map([3, 1, 0, 9, 9, 65535, 9], dtype=np.uint16).repeat(5, 0))
    assert open_scenes(write_tar(tmp_path / "s.tar", files))[0].maps["semantic"][0].tolist() == [3, 1, 0, *[255] * 4]


def test_the_ignore_of_16_bit_maps_is_255_in_memory(tmp_path: Path) -> None:
    files = make_sample("a")[0] | {
        "a.instance.png": encode_png(make_id_map([0, 1, 254, 65535, 7, 7, 7], dtype=np.uint16).repeat(5, 0))
    }
    instance = open_scenes(write_tar(tmp_path / "s.tar", files))[0].maps["instance"]
    assert instance.dtype == torch.uint8
    assert instance[4].tolist() == [0, 1, 254, 255, 7, 7, 7]


def test_more_than_254_objects_keep_distinct_ids(tmp_path: Path) -> None:
    wide = encode_png(make_id_map([0, 1, 254, 255, 256, 65534, 65535], dtype=np.uint16).repeat(5, 0))
    shard = open_scenes(write_tar(tmp_path / "s.tar", make_sample("a")[0] | {"a.instance.png": wide}))
    # 255 means "not labelled" in memory, so object 255 gets the id 65535.
    assert shard[0].maps["instance"][0].tolist() == [0, 1, 254, 65535, 256, 65534, 255]


def test_files_of_other_formats_are_ignored(tmp_path: Path) -> None:
    others = {"README.md": b"hello", ".DS_Store": b"", "._a.jpg": b"junk", "a.caption.txt": b"a cat"}
    assert len(open_scenes(write_tar(tmp_path / "s.tar", make_sample("a")[0] | others))) == 1
    others = {"rgb/Thumbs.db": b"", "rgb/._a.png": b"", "rgb/.hidden/a.png": b""}
    assert len(open_scenes(write_tree(tmp_path / "tree", to_tree_files(make_sample("a")[0]) | others))) == 1


def test_member_names_with_a_leading_dot_or_of_any_length_are_read(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        folder = tarfile.TarInfo("./empty")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    assert list(open_scenes(write_tar(tmp_path / "s.tar", make_sample("./a")[0])).keys) == ["a"]
    key = "long/" * 30 + "ключ"
    assert open_scenes(write_tar(tmp_path / "t.tar", make_sample(key)[0]))[0].key == key


def test_stored_scenes_can_be_pickled(tmp_path: Path) -> None:
    files, maps = make_sample("a")
    for source in (write_tar(tmp_path / "s.tar", files), write_tree(tmp_path / "tree", to_tree_files(files))):
        scenes = open_scenes(source)
        assert_maps_equal(scenes[0].maps, maps)  # opens its shard
        assert_maps_equal(pickle.loads(pickle.dumps(scenes))[0].maps, maps)


# Opening


def test_a_directory_of_shards_is_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    for number, keys in {1: "c", 0: "ba", 2: "de"}.items():
        write_tar(tmp_path / f"s-{number}.tar", make_samples(keys))
    scenes = open_scenes(tmp_path)
    assert [scenes[index].key for index in range(5)] == list("bacde")
    assert list(open_scenes(tmp_path / "s-[12].tar").keys) == list("cde")
    with pytest.raises(IndexError, match="^scene 5 of 5$"):
        scenes[5]


def test_shards_of_two_sets_in_one_directory_are_refused(tmp_path: Path) -> None:
    for name in ("train-000000", "train-000001", "val-000000"):
        write_tar(tmp_path / f"{name}.tar", make_sample(name)[0])
    message = (
        f"{tmp_path}: contains shards of several sets: train (2), val (1). Choose one, as in '{tmp_path}/train*.tar'"
    )
    assert_user_error(lambda: open_scenes(tmp_path), message)
    assert len(open_scenes(tmp_path / "train*.tar")) == 2


def test_only_selected_keys_are_read_and_problems_of_others_are_ignored(tmp_path: Path) -> None:
    files = make_samples("abc")
    del files["b.jpg"]
    shard = write_tar(tmp_path / "s.tar", files)
    assert list(open_scenes(shard, keys=["c", "a"]).keys) == ["a", "c"]
    message = f"{shard}: 1 of the 2 selected keys have no complete sample (for example 'b'). Remove them from the list"
    assert_user_error(lambda: open_scenes(shard, keys=["a", "b"]), message)


def test_keys_of_a_source_select_samples_of_its_pack(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "s.tar", make_sample("v1_0")[0] | make_sample("v1_1", 1)[0])
    assert list(open_scenes(shard, keys=["v1.1"]).keys) == ["v1_1"]
    message = f"{shard}: 1 of the 1 selected keys have no complete sample (for example 'v1.2'). Did you mean 'v1_1'?"
    assert_user_error(lambda: open_scenes(shard, keys=["v1.2"]), message)


def test_a_pattern_ignores_index_files(tmp_path: Path) -> None:
    write_tar(tmp_path / "train-0.tar", make_samples("ab"))
    for _ in range(2):
        assert len(open_scenes(tmp_path / "train-*")) == 2


def test_unknown_options_are_refused(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "s.tar", make_samples("ab"))
    hint = "only registered data sets have options. Remove it"
    assert_user_error(
        lambda: open_scenes(shard, granularites=("rgb",)), f"{shard}: has no option 'granularites'; {hint}"
    )
    assert_user_error(lambda: open_scenes([shard], size=64), f"{shard}: has no option 'size'; {hint}")
    message = "generated: options.sze: dataset 'generated' has no such option. Did you mean 'size'?"
    assert_user_error(lambda: open_scenes("generated", sze=64), message)


def test_selected_keys_of_an_unreadable_source_report_its_problem(tmp_path: Path) -> None:
    packed = tmp_path / "s.tar.gz"
    packed.write_bytes(gzip.compress(b"x"))
    with pytest.raises(UserError, match="compressed with gzip"):
        open_scenes(packed, keys=["a"])


def test_a_key_that_is_selected_twice_is_one_sample(tmp_path: Path) -> None:
    assert len(open_scenes(write_tar(tmp_path / "s.tar", make_samples("ab")), keys=["a", "a"])) == 1


def test_names_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "tree", to_tree_files(make_samples("ab")))
    name = os.fsdecode(b"caf\xe9")
    (root / "rgb" / f"{name}.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"/rgb: 'caf\\udce9.jpg' is not a UTF-8 name without line breaks\. Rename it$"):
        open_scenes(root)
    shard = write_tar(tmp_path / "s.tar", make_samples("ab"))
    data = shard.read_bytes()
    header = bytearray(data[:512])
    header[:5] = b"\xe9.jpg"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    shard.write_bytes(bytes(header) + data[512:])
    with pytest.raises(UserError, match=r"is not a UTF-8 name without line breaks\. Rename it"):
        open_scenes(shard)


def test_granularities_are_detected_if_dataset_json_does_not_list_them(tmp_path: Path) -> None:
    files = {name: data for name, data in to_tree_files(make_samples("ab")).items() if not name.startswith("instance")}
    root = write_tree(tmp_path, files)
    (root / "dataset.json").write_text('{"classes": [{"name": "sky"}, {"name": "cat"}]}')
    assert open_scenes(root).info.granularities == ("semantic", "rgb")


def test_threads_read_the_right_samples_with_few_open_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("c2fmae.data.shards._MAX_OPEN", 2)
    for number in range(12):
        write_tar(tmp_path / f"s-{number:03d}.tar", {f"{number:03d}.jpg": encode_png(make_id_map([number]))})
    scenes = open_scenes(tmp_path)
    order = np.random.default_rng(0).integers(12, size=2000).tolist()
    with ThreadPoolExecutor(6) as pool:
        values = pool.map(lambda index: int(scenes[index].maps["rgb"][0, 0, 0]), order)
    assert list(values) == order


def test_more_shards_than_open_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("c2fmae.data.shards._MAX_OPEN", 8)
    files = Path("/proc/self/fd")
    before = len(list(files.iterdir()))
    for number in range(40):
        write_tar(tmp_path / f"s-{number:03d}.tar", {f"{number:03d}.jpg": encode_png(make_id_map([number]))})
    scenes = open_scenes(tmp_path)
    for index in [*range(40), 0, 39]:
        assert int(scenes[index].maps["rgb"][0, 0, 0]) == index
    assert len(list(files.iterdir())) <= before + 8
    del scenes
    assert len(list(files.iterdir())) == before


def test_neighbouring_members_are_read_with_one_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = make_samples("ab")
    distant = {name: files[name] for name in sorted(files, key=lambda name: name.partition(".")[2])}
    distant = {"a.jpg": distant.pop("a.jpg"), "0.txt": bytes(20_000), **distant}
    scenes = [open_scenes(write_tar(tmp_path / f"{name}.tar", each)) for name, each in (("s", files), ("t", distant))]
    requests, read = list[int](), os.pread

    def read_and_record(descriptor: int, size: int, offset: int) -> bytes:
        requests.append(size)
        return read(descriptor, size, offset)

    monkeypatch.setattr(os, "pread", read_and_record)
    maps = [{name: tensor.tolist() for name, tensor in each[0].maps.items()} for each in scenes]
    assert maps[0] == maps[1]
    assert len(requests) == 1 + 3


def test_only_equal_names_are_repeated_whatever_their_hashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "hash", lambda _: 7, raising=False)
    for name, keys in (("s-0", "ab"), ("s-1", "ca"), ("s-2", "dcb")):
        write_tar(tmp_path / f"{name}.tar", make_samples(keys))
    scenes, problems = inspect_scenes(tmp_path)
    assert scenes is not None
    assert list(scenes.keys) == ["a", "b", "c", "d"]
    assert [problem.key for problem in problems] == ["a", "c", "b"]


@pytest.mark.parametrize("index", [1, -1])
def test_an_index_out_of_range_is_an_index_error(tmp_path: Path, index: int) -> None:
    shard = open_scenes(write_tar(tmp_path / "s.tar", make_sample("a")[0]))
    with pytest.raises(IndexError, match=f"^scene {index} of 1$"):
        shard[index]


# Errors


def test_unknown_sources_are_refused(tmp_path: Path) -> None:
    assert_user_error(lambda: open_scenes("generatd"), "generatd: does not exist. Did you mean 'generated'?")
    (tmp_path / "s.zip").touch()
    assert_user_error(lambda: open_scenes(tmp_path / "s.zip"), f"{tmp_path}/s.zip: is not a tar shard. {EXPECTED}")
    assert_user_error(lambda: open_scenes(tmp_path / "none.tar"), f"{tmp_path}/none.tar: does not exist. {EXPECTED}")
    assert_user_error(
        lambda: open_scenes(tmp_path / "no*.tar"),
        f"{tmp_path}/no*.tar: no file matches. {tmp_path} has s.zip. Change the pattern",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert_user_error(lambda: open_scenes("no*"), "no*: no file matches. This folder has s.zip. Change the pattern")
    for index in range(7):
        (tmp_path / f"{index}.tar").touch()
    assert_user_error(
        lambda: open_scenes(tmp_path / "no*.tar"),
        f"{tmp_path}/no*.tar: no file matches. {tmp_path} has 0.tar, 1.tar, 2.tar, 3.tar, 4.tar and 2 others. Change "
        "the pattern",
    )
    message = f"{tmp_path}/*: matches s.zip, which is not a tar shard. {EXPECTED}"
    assert_user_error(lambda: open_scenes(tmp_path / "*"), message)


def test_a_directory_that_holds_train_and_val_is_not_one_set(tmp_path: Path) -> None:
    for name in ("train", "val"):
        (tmp_path / name / "cat").mkdir(parents=True)
    message = f"{tmp_path}: contains several sets: train, val. Choose one, as in {tmp_path}/train"
    assert_user_error(lambda: open_scenes(tmp_path), message)


def test_a_deleted_file_is_named(tmp_path: Path) -> None:
    files, _ = make_sample("a")
    shard, tree = write_tar(tmp_path / "a.tar", files), write_tree(tmp_path / "tree", to_tree_files(files))
    scenes, others = open_scenes(shard), open_scenes(tree)
    shard.unlink()
    (tree / "semantic" / "a.png").unlink()
    reason = "cannot be read: No such file or directory. Check the path, or restore the file"
    assert_user_error(lambda: scenes[0], f"{shard}: {reason}")
    assert_user_error(lambda: others[0], f"{tree}/semantic/a.png: {reason}")


def test_a_shard_that_changes_after_it_was_opened_is_refused(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "s.tar", make_samples("ab"))
    untouched, half_read = open_scenes(shard), open_scenes(shard)
    assert half_read[0].key == "a"
    with shard.open("r+b") as file:
        file.truncate(1024)
    assert_user_error(lambda: untouched[0], f"{shard}: changed since it was opened. Open the data again")
    assert_user_error(lambda: half_read[1], f"{shard}: b: the shard was truncated while it was open. Restore it")


def test_empty_sources_are_refused(tmp_path: Path) -> None:
    message = f"{tmp_path}: contains no scenes (expected shards *.tar, or images in rgb). Check the path"
    assert_user_error(lambda: open_scenes(tmp_path), message)
    shard = write_tar(tmp_path / "s.tar", {"README": b"nothing"})
    expected = "expected KEY.jpg, KEY.semantic.png and KEY.instance.png"
    assert_user_error(lambda: open_scenes(shard), f"{shard}: contains no scenes ({expected}). Check the path")


@pytest.mark.parametrize("member", ["a.jpg", "a.semantic.png", "a.instance.png"])
def test_a_sample_of_a_shard_without_a_granularity_is_refused(tmp_path: Path, member: str) -> None:
    files = {name: data for name, data in make_sample("a")[0].items() if name != member}
    shard = write_tar(tmp_path / "s.tar", make_sample("b")[0] | files)
    assert_user_error(lambda: open_scenes(shard), f"{shard}: sample 'a' has no {member}. Add it, or remove the sample")
    scenes, problems = inspect_scenes(shard)
    assert scenes is not None
    assert list(scenes.keys) == ["b"]
    assert [problem.key for problem in problems] == ["a"]


@pytest.mark.parametrize("name", ["rgb", "semantic", "instance"])
def test_a_sample_of_a_tree_without_a_granularity_is_refused(tmp_path: Path, name: str) -> None:
    files = {k: v for k, v in to_tree_files(make_sample("a")[0]).items() if not k.startswith(name)}
    root = write_tree(tmp_path, to_tree_files(make_sample("b")[0]) | files)
    assert_user_error(lambda: open_scenes(root), f"{root}: sample 'a' has no {name}/a. Add it, or remove the sample")


def test_a_granularity_that_no_sample_has_is_one_problem(tmp_path: Path) -> None:
    images = {name: data for name, data in make_samples("ab").items() if name.endswith(".jpg")}
    shard = write_tar(tmp_path / "s.tar", images)
    names = ("semantic", "rgb")
    problem = "no sample has the granularity 'semantic' (requested: semantic, rgb)"
    fix = "Add it to the data, or request others"
    message = f"{shard}: {problem}. {fix}"
    assert_user_error(lambda: open_scenes(shard, granularities=names), message)
    tree = write_tree(tmp_path / "tree", {f"rgb/{name}": data for name, data in images.items()})
    message = f"{tree}: {problem}. {fix}"
    assert_user_error(lambda: open_scenes(tree, granularities=names), message)
    assert_user_error(
        lambda: open_scenes(tree, granularities=("rbg",)),
        "no granularity named 'rbg'. Did you mean 'rgb'? Known: depth, instance, rgb, semantic",
    )


def test_several_problems_are_counted_and_listed(tmp_path: Path) -> None:
    files = make_samples("abc")
    del files["a.jpg"], files["c.semantic.png"]
    shard = write_tar(tmp_path / "s.tar", files)
    with pytest.raises(UserError, match=r"\(and 1 more: `c2fmae data check` lists them all\)$"):
        open_scenes(shard)
    assert {problem.key for problem in inspect_scenes(shard)[1]} == {"a", "c"}


def test_two_images_of_one_granularity_are_refused(tmp_path: Path) -> None:
    root = write_tree(tmp_path, to_tree_files(make_samples("ab")) | {"rgb/a.jpg": b""})
    assert_user_error(lambda: open_scenes(root), f"{root}/rgb/a.png: sample 'a' has another image, a.jpg. Remove one")
    scenes, _ = inspect_scenes(root)
    assert scenes is not None
    assert list(scenes.keys) == ["b"]


def test_the_jpeg_is_preferred_to_a_png_of_the_same_sample(tmp_path: Path) -> None:
    files, maps = make_sample("a")
    shard = write_tar(tmp_path / "s.tar", {"a.png": b"junk"} | files)
    assert_maps_equal(open_scenes(shard)[0].maps, maps)


def test_a_directory_has_precedence_over_a_registered_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tree(tmp_path / "generated", to_tree_files(make_samples("ab")))
    monkeypatch.chdir(tmp_path)
    assert list(open_scenes("generated").keys) == ["a", "b"]


def test_class_directories_are_matched_to_the_labels_of_dataset_json(tmp_path: Path) -> None:
    root = write_tree(tmp_path, to_tree_files(make_sample("n02/1")[0]) | to_tree_files(make_sample("cat/2")[0]))
    labels = [{"name": "dog", "wnid": "n02"}, None, {"name": "cat"}]
    (root / "dataset.json").write_text(json.dumps({"labels": labels}))
    scenes = open_scenes(root)
    assert [(scenes[index].key, scenes[index].label) for index in range(2)] == [("cat/2", 2), ("n02/1", 0)]
    (root / "dataset.json").write_text(json.dumps({"labels": labels[:1]}))
    message = f"{root}: class directory 'cat' is not a label in dataset.json. Add it there"
    assert_user_error(lambda: open_scenes(root), message)


def test_a_directory_that_cannot_be_listed_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_tree(tmp_path, to_tree_files(make_sample("dog/a")[0]) | to_tree_files(make_sample("cat/b")[0]))
    scan = os.scandir

    def scan_or_refuse(path: str) -> object:
        if str(path).endswith("rgb/cat"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scan_or_refuse)
    with pytest.raises(UserError, match=rf"^{root}/rgb/cat: cannot be listed: Permission denied. Fix its permissions"):
        open_scenes(root)


def test_linked_directories_are_followed(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", to_tree_files(make_samples("ab")))
    for name in ("rgb", "semantic", "instance"):
        (tmp_path / "linked" / name).mkdir(parents=True)
        (tmp_path / "linked" / name / "dog").symlink_to(tree / name)
    assert list(open_scenes(tmp_path / "linked").keys) == ["dog/a", "dog/b"]


def test_a_directory_with_the_suffix_of_an_image_is_reported(tmp_path: Path) -> None:
    root = write_tree(tmp_path, to_tree_files(make_samples("ab")) | {"rgb/c.jpg/readme": b""})
    message = f"{root}/rgb/c.jpg: is a directory with the suffix of an image. Rename or remove it"
    assert_user_error(lambda: open_scenes(root), message)


def test_a_key_in_two_shards_is_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "s-0.tar", make_samples("ab"))
    second = write_tar(tmp_path / "s-1.tar", make_samples("bc"))
    assert_user_error(
        lambda: open_scenes(tmp_path), f"{second}: sample 'b' is in another shard too. Pack every sample once"
    )


def test_maps_of_another_size_than_their_image_are_refused(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "s.tar", make_sample("a")[0] | {"a.instance.png": encode_png(make_id_map([0, 1]))})
    message = (
        f"{shard}: a.instance.png: has 2×1 cells (expected 7×5 for an image of 7×5 pixels). Store both at one size"
    )
    assert_user_error(lambda: open_scenes(shard)[0], message)
    (tmp_path / "dataset.json").write_text('{"label_stride": 4}')
    problem = "has 7×5 cells (expected 2×2 at label_stride 4 for an image of 7×5 pixels)"
    message = f"{shard}: a.semantic.png: {problem}. Store both at one size"
    assert_user_error(lambda: open_scenes(shard)[0], message)


def test_semantic_ids_outside_the_label_space_are_refused(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps(DATASET))
    files = make_sample("a")[0] | {"a.semantic.png": encode_png(make_id_map([0, 2, 255, 0, 0, 0, 0]).repeat(5, 0))}
    shard = write_tar(tmp_path / "s.tar", files)
    advice = "Add the class to dataset.json, or map the id to its `ignore`"
    message = f"{shard}: a.semantic.png: id 2 on 5 pixels is outside the 2 classes of the label space. {advice}"
    assert_user_error(lambda: open_scenes(shard)[0], message)


@pytest.mark.parametrize("text", [b"cat", b"-1", b"", b"1.5", b"9" * 20, b"1" + b" " * 20 + b"2"])
def test_labels_that_are_not_an_index_are_refused(tmp_path: Path, text: bytes) -> None:
    shard = write_tar(tmp_path / "s.tar", make_samples("ab") | {"a.cls": text})
    assert_user_error(
        lambda: open_scenes(shard), f"{shard}: a.cls is not an integer of at least 0. Write the index of the class"
    )


def test_a_gzipped_shard_is_refused_with_the_command_to_decompress_it(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "s.tar", make_sample("a")[0])
    packed = tmp_path / "t.tar.gz"
    packed.write_bytes(gzip.compress(shard.read_bytes()))
    problem = "compressed with gzip, so that samples cannot be read one by one. Decompress it:"
    assert_user_error(lambda: open_scenes(packed), f"{packed}: {problem} gunzip {packed}")
    packed.rename(shard)
    assert_user_error(lambda: open_scenes(shard), f"{shard}: {problem} mv {shard} {shard}.gz && gunzip {shard}.gz")


def test_a_truncated_shard_is_refused_and_its_complete_samples_are_listed(tmp_path: Path) -> None:
    data = write_tar(tmp_path / "complete.tar", make_samples("ab")).read_bytes()
    content = len(data.rstrip(b"\0"))
    end = -(-content // 512) * 512
    second = data.index(b"b.jpg")
    shard = tmp_path / "s.tar"
    for length in [*range(0, end + 512, 128), content, end + 511]:
        shard.write_bytes(data[:length])
        with pytest.raises(UserError, match=r"s\.tar: (not a complete tar|truncated inside '\S+')"):
            open_scenes(shard)
        scenes, problems = inspect_scenes(shard)
        keys = [] if scenes is None else list(scenes.keys)
        assert problems
        assert keys in ([], ["a"]) if length < end else keys == ["a", "b"]
        assert keys or length < second
    shard.write_bytes(data[: end + 512])
    assert len(open_scenes(shard)) == 2


def test_a_broken_header_is_not_read_as_the_end(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "s.tar", make_samples("ab"))
    data = bytearray(shard.read_bytes())
    data[data.index(b"b.jpg")] ^= 1
    shard.write_bytes(data)
    assert_user_error(
        lambda: open_scenes(shard), f"{shard}: not a complete tar (its end marker is missing). Copy or pack it again"
    )


@pytest.mark.parametrize("name", ["../a.jpg", "x/../../a.jpg", "/etc/a.jpg"])
def test_members_that_lead_out_of_the_shard_are_refused(tmp_path: Path, name: str) -> None:
    shard = write_tar(tmp_path / "s.tar", make_sample("b")[0] | {name: b""})
    message = f"{shard}: member '{name}' points outside the tar. Pack it with relative names"
    assert_user_error(lambda: open_scenes(shard), message)


@pytest.mark.parametrize("name", ["a.jpg", "./a.jpg"])
def test_duplicate_members_are_refused(tmp_path: Path, name: str) -> None:
    shard = write_tar(tmp_path / "s.tar", make_samples("ab"))
    with tarfile.open(shard, "a") as tar:
        tar.addfile(tarfile.TarInfo(name))
    assert_user_error(lambda: open_scenes(shard), f"{shard}: has member 'a.jpg' twice. Pack every sample once")
    scenes, _ = inspect_scenes(shard)
    assert scenes is not None
    assert list(scenes.keys) == ["b"]


def test_links_in_a_shard_are_refused(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "s.tar", make_sample("a")[0])
    with tarfile.open(shard, "a") as tar:
        link = tarfile.TarInfo("b.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "a.jpg"
        tar.addfile(link)
    assert_user_error(
        lambda: open_scenes(shard), f"{shard}: member 'b.jpg' is a link or a special file. Pack regular files"
    )


@pytest.mark.parametrize("data", [b"", b"junk"], ids=["empty", "junk"])
def test_broken_images_are_named_with_their_shard(tmp_path: Path, data: bytes) -> None:
    shard = open_scenes(write_tar(tmp_path / "s.tar", make_sample("a")[0] | {"a.jpg": data}))
    with pytest.raises(UserError, match=rf"^{re.escape(str(tmp_path))}/s\.tar: a\.jpg: cannot be decoded"):
        shard[0]


def test_images_in_a_tree_may_be_jpeg_or_png(tmp_path: Path) -> None:
    files: Files = {
        "rgb/a.jpg": encode_image(Image.new("RGB", (7, 5), (9, 9, 9)), "JPEG"),
        "rgb/b.PNG": encode_png(make_id_map([1, 2])),
    }
    scenes = open_scenes(write_tree(tmp_path, files), granularities=("rgb",))
    assert [tuple(scenes[index].maps["rgb"].shape) for index in range(2)] == [(3, 5, 7), (3, 1, 2)]
