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

EXPECTED = "Give a folder, a .tar shard, a pattern of shards, or a name: generated"


def assert_holds(scene_maps: Mapping[str, torch.Tensor], maps: Mapping[str, np.ndarray]) -> None:
    assert list(scene_maps) == ["semantic", "instance", "rgb"]
    assert all(tensor.dtype == torch.uint8 for tensor in scene_maps.values())
    assert np.array_equal(scene_maps["rgb"].numpy(), maps["rgb"].transpose(2, 0, 1))
    assert np.array_equal(scene_maps["semantic"].numpy(), maps["semantic"])
    assert np.array_equal(scene_maps["instance"].numpy(), maps["instance"])


# What is written is what is read


def test_a_shard_gives_back_what_was_written_in_its_own_order(tmp_path: Path) -> None:
    (b_files, b_maps), (a_files, a_maps) = make_sample("b", 1), make_sample("x/a", 2)
    shard = open_scenes(write_tar(tmp_path / "s.tar", b_files | {"b.json": b"{}"} | a_files))
    assert list(shard.keys) == ["b", "x/a"]
    assert [shard[index].key for index in range(2)] == ["b", "x/a"]
    assert_holds(shard[0].maps, b_maps)
    assert_holds(shard[1].maps, a_maps)
    assert shard[0].label is None
    assert (shard.info.classes, shard.info.labels) == ((), ())


def test_a_folder_gives_back_what_was_written_by_name(tmp_path: Path) -> None:
    (b_files, b_maps), (_, a_maps) = make_sample("b", 1), make_sample("a.v2", 2)
    a_files = {f"{part}/a.v2.png": encode_png(array) for part, array in a_maps.items()}
    folder = open_scenes(write_tree(tmp_path, to_tree_files(b_files) | a_files))
    assert list(folder.keys) == ["a.v2", "b"]
    assert_holds(folder[0].maps, a_maps)
    assert_holds(folder[1].maps, b_maps)
    assert folder[0].label is None


def test_class_folders_are_labels(tmp_path: Path) -> None:
    trees = [to_tree_files(make_sample(key)[0]) for key in ("dog/1", "cat/2", "dog/0")]
    folder = open_scenes(write_tree(tmp_path, trees[0] | trees[1] | trees[2]))
    assert folder.info.label_names == ("cat", "dog")
    assert list(folder.keys) == ["cat/2", "dog/0", "dog/1"]
    assert [folder[index].label for index in range(3)] == [0, 1, 1]


def test_cls_members_are_labels_and_dataset_json_names_them(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps(DATASET))
    shard = open_scenes(write_tar(tmp_path / "s.tar", make_sample("a")[0] | {"a.cls": b"0\n"}))
    assert shard[0].label == 0
    assert shard.info.class_names == ("sky", "cat")
    assert shard.info.label_names == ("a", "")


def test_a_label_beyond_those_that_are_named_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps(DATASET))
    shard = open_scenes(write_tar(tmp_path / "s.tar", make_sample("a")[0] | {"a.cls": b"2"}))
    where = f"{tmp_path}/s.tar: a.semantic.png"
    assert_user_error(
        lambda: shard[0], f"{where}: its label is 2, but dataset.json names 2 labels. Add the missing names"
    )
    shard = open_scenes(write_tar(tmp_path / "s.tar", make_sample("a")[0] | {"a.cls": b"1"}))
    assert_user_error(lambda: shard[0], f"{where}: its label is 1, which dataset.json leaves out (null). Name it there")


def test_photos_without_maps_are_read_where_only_photos_are_needed(tmp_path: Path) -> None:
    photos = {name: data for name, data in make_samples("ab").items() if name.endswith(".jpg")}
    shard = open_scenes(write_tar(tmp_path / "s.tar", photos))
    assert shard.info.granularities == ("rgb",)
    assert list(shard[1].maps) == ["rgb"]
    write_tree(tmp_path / "flat", photos)
    assert list(open_scenes(tmp_path / "flat").keys) == ["a", "b"]
    write_tree(tmp_path / "classes", {f"{name[0]}/{name}": data for name, data in photos.items()})
    classes = open_scenes(tmp_path / "classes", granularities=("rgb",))
    assert classes.info.label_names == ("a", "b")
    assert [classes[index].label for index in range(2)] == [0, 1]


def test_only_the_granularities_that_are_asked_for_are_read(tmp_path: Path) -> None:
    files = make_samples("ab") | {"a.semantic.png": b"broken"}
    assert list(open_scenes(write_tar(tmp_path / "s.tar", files), granularities=("rgb", "instance"))[0].maps) == [
        "instance",
        "rgb",
    ]


def test_the_folders_of_a_tree_may_have_names_of_their_own(tmp_path: Path) -> None:
    files, maps = make_sample("cls/a")
    renamed = {name.replace("semantic", "semseg_coco"): data for name, data in to_tree_files(files).items()}
    root = write_tree(tmp_path, renamed)
    assert_holds(open_scenes(root, folders={"semantic": "semseg_coco"})[0].maps, maps)
    message = f"{root}/semseg: this folder, named for semantic, does not exist. Check the name"
    assert_user_error(lambda: open_scenes(root, folders={"semantic": "semseg"}), message)


def test_maps_at_a_stride_have_one_cell_for_so_many_pixels(tmp_path: Path) -> None:
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


def test_sixteen_bit_maps_are_read_and_their_ignore_is_255_in_memory(tmp_path: Path) -> None:
    files = make_sample("a")[0] | {
        "a.instance.png": encode_png(make_id_map([0, 1, 254, 65535, 7, 7, 7], dtype=np.uint16).repeat(5, 0))
    }
    instance = open_scenes(write_tar(tmp_path / "s.tar", files))[0].maps["instance"]
    assert instance.dtype == torch.uint8
    assert instance[4].tolist() == [0, 1, 254, 255, 7, 7, 7]


def test_more_objects_than_a_byte_can_number_stay_apart(tmp_path: Path) -> None:
    wide = encode_png(make_id_map([0, 1, 254, 255, 256, 65534, 65535], dtype=np.uint16).repeat(5, 0))
    shard = open_scenes(write_tar(tmp_path / "s.tar", make_sample("a")[0] | {"a.instance.png": wide}))
    # 255 means "not labelled" in memory, so the object of that number takes the one that is free.
    assert shard[0].maps["instance"][0].tolist() == [0, 1, 254, 65535, 256, 65534, 255]


def test_what_is_not_of_the_format_is_passed_over(tmp_path: Path) -> None:
    others = {"README.md": b"hello", ".DS_Store": b"", "._a.jpg": b"junk", "a.caption.txt": b"a cat"}
    assert len(open_scenes(write_tar(tmp_path / "s.tar", make_sample("a")[0] | others))) == 1
    others = {"rgb/Thumbs.db": b"", "rgb/._a.png": b"", "rgb/.hidden/a.png": b""}
    assert len(open_scenes(write_tree(tmp_path / "tree", to_tree_files(make_sample("a")[0]) | others))) == 1


def test_names_from_the_current_folder_and_long_ones_do_no_harm(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        folder = tarfile.TarInfo("./empty")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    assert list(open_scenes(write_tar(tmp_path / "s.tar", make_sample("./a")[0])).keys) == ["a"]
    key = "long/" * 30 + "ключ"
    assert open_scenes(write_tar(tmp_path / "t.tar", make_sample(key)[0]))[0].key == key


def test_stored_scenes_can_be_sent_to_a_worker_process(tmp_path: Path) -> None:
    files, maps = make_sample("a")
    for source in (write_tar(tmp_path / "s.tar", files), write_tree(tmp_path / "tree", to_tree_files(files))):
        scenes = open_scenes(source)
        assert_holds(scenes[0].maps, maps)  # its shard is open now
        assert_holds(pickle.loads(pickle.dumps(scenes))[0].maps, maps)


# Opening by name


def test_a_folder_of_shards_is_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    for number, keys in {1: "c", 0: "ba", 2: "de"}.items():
        write_tar(tmp_path / f"s-{number}.tar", make_samples(keys))
    scenes = open_scenes(tmp_path)
    assert [scenes[index].key for index in range(5)] == list("bacde")
    assert list(open_scenes(tmp_path / "s-[12].tar").keys) == list("cde")
    with pytest.raises(IndexError, match="^scene 5 of 5$"):
        scenes[5]


def test_shards_of_two_sets_in_one_folder_are_not_mixed_by_accident(tmp_path: Path) -> None:
    for name in ("train-000000", "train-000001", "val-000000"):
        write_tar(tmp_path / f"{name}.tar", make_sample(name)[0])
    message = f"{tmp_path}: shards of several sets: train (2), val (1). Name one, as in {tmp_path}/train*.tar"
    assert_user_error(lambda: open_scenes(tmp_path), message)
    assert len(open_scenes(tmp_path / "train*.tar")) == 2


def test_the_chosen_keys_alone_are_read_and_the_problems_of_others_do_not_matter(tmp_path: Path) -> None:
    files = make_samples("abc")
    del files["b.jpg"]
    shard = write_tar(tmp_path / "s.tar", files)
    assert list(open_scenes(shard, keys=["c", "a"]).keys) == ["a", "c"]
    message = f"{shard}: 1 of the 2 chosen keys are not there whole, the first is 'b'."
    assert_user_error(lambda: open_scenes(shard, keys=["a", "b"]), message)


def test_a_pattern_passes_over_the_indices_that_we_make(tmp_path: Path) -> None:
    write_tar(tmp_path / "train-0.tar", make_samples("ab"))
    for _ in range(2):
        assert len(open_scenes(tmp_path / "train-*")) == 2


def test_settings_that_nobody_takes_are_refused(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "s.tar", make_samples("ab"))
    takes = "as a registered data set may"
    assert_user_error(
        lambda: open_scenes(shard, granularites=("rgb",)), f"{shard}: takes no setting 'granularites', {takes}"
    )
    assert_user_error(lambda: open_scenes([shard], size=64), f"{shard}: takes no setting 'size', {takes}")
    assert_user_error(lambda: open_scenes("generated", sze=64), "generated: no setting 'sze'. Did you mean 'size'?")


def test_chosen_keys_of_what_cannot_be_opened_at_all_say_why(tmp_path: Path) -> None:
    packed = tmp_path / "s.tar.gz"
    packed.write_bytes(gzip.compress(b"x"))
    with pytest.raises(UserError, match="compressed with gzip"):
        open_scenes(packed, keys=["a"])


def test_a_key_that_is_chosen_twice_is_one_sample(tmp_path: Path) -> None:
    assert len(open_scenes(write_tar(tmp_path / "s.tar", make_samples("ab")), keys=["a", "a"])) == 1


def test_names_that_are_no_text_are_told(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "tree", to_tree_files(make_samples("ab")))
    odd = os.fsdecode(b"caf\xe9")
    (root / "rgb" / f"{odd}.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"/rgb: 'caf\\udce9.jpg' is no plain UTF-8 name\. Rename it$"):
        open_scenes(root)
    shard = write_tar(tmp_path / "s.tar", make_samples("ab"))
    data = shard.read_bytes()
    header = bytearray(data[:512])
    header[:5] = b"\xe9.jpg"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    shard.write_bytes(bytes(header) + data[512:])
    with pytest.raises(UserError, match=r"has no plain UTF-8 name\. Rename it"):
        open_scenes(shard)


def test_a_dataset_json_need_not_say_what_is_there(tmp_path: Path) -> None:
    files = {name: data for name, data in to_tree_files(make_samples("ab")).items() if not name.startswith("instance")}
    root = write_tree(tmp_path, files)
    (root / "dataset.json").write_text('{"classes": [{"name": "sky"}, {"name": "cat"}]}')
    assert open_scenes(root).info.granularities == ("semantic", "rgb")


def test_threads_read_their_own_samples_however_few_shards_may_be_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("c2fmae.data.shards._MAX_OPEN", 2)
    for number in range(12):
        write_tar(tmp_path / f"s-{number:03d}.tar", {f"{number:03d}.jpg": encode_png(make_id_map([number]))})
    scenes = open_scenes(tmp_path)
    order = np.random.default_rng(0).integers(12, size=2000).tolist()
    with ThreadPoolExecutor(6) as pool:
        found = pool.map(lambda index: int(scenes[index].maps["rgb"][0, 0, 0]), order)
    assert list(found) == order


def test_more_shards_than_a_process_may_hold_open_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


@pytest.mark.parametrize("index", [1, -1])
def test_an_index_beyond_the_last_scene_is_an_index_error(tmp_path: Path, index: int) -> None:
    shard = open_scenes(write_tar(tmp_path / "s.tar", make_sample("a")[0]))
    with pytest.raises(IndexError, match=f"^scene {index} of 1$"):
        shard[index]


# What is refused, and how


def test_sources_that_are_nothing_we_read_are_refused(tmp_path: Path) -> None:
    assert_user_error(lambda: open_scenes("generatd"), "generatd: does not exist. Did you mean 'generated'?")
    (tmp_path / "s.zip").touch()
    assert_user_error(lambda: open_scenes(tmp_path / "s.zip"), f"{tmp_path}/s.zip: is not a tar shard. {EXPECTED}")
    assert_user_error(lambda: open_scenes(tmp_path / "none.tar"), f"{tmp_path}/none.tar: does not exist. {EXPECTED}")
    assert_user_error(lambda: open_scenes(tmp_path / "no*.tar"), f"{tmp_path}/no*.tar: does not exist. {EXPECTED}")
    message = f"{tmp_path}/*: matches s.zip, which is not a tar shard. {EXPECTED}"
    assert_user_error(lambda: open_scenes(tmp_path / "*"), message)


def test_a_shard_or_file_that_goes_away_is_named(tmp_path: Path) -> None:
    files, _ = make_sample("a")
    shard, tree = write_tar(tmp_path / "a.tar", files), write_tree(tmp_path / "tree", to_tree_files(files))
    scenes, others = open_scenes(shard), open_scenes(tree)
    shard.unlink()
    (tree / "semantic" / "a.png").unlink()
    assert_user_error(lambda: scenes[0], f"{shard}: cannot be opened: No such file or directory. Restore it")
    gone = "cannot be read: No such file or directory. Restore it, or remove the sample"
    assert_user_error(lambda: others[0], f"{tree}/semantic/a.png: {gone}")


def test_a_shard_that_changes_after_it_was_opened_is_named(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "s.tar", make_samples("ab"))
    untouched, half_read = open_scenes(shard), open_scenes(shard)
    assert half_read[0].key == "a"
    with shard.open("r+b") as stream:
        stream.truncate(1024)
    assert_user_error(lambda: untouched[0], f"{shard}: changed since it was opened. Open the data again")
    assert_user_error(lambda: half_read[1], f"{shard}: b: the shard was cut short while it was open. Restore it")


def test_empty_sources_are_refused(tmp_path: Path) -> None:
    message = f"{tmp_path}: no scenes. Expected shards (*.tar), or pictures in rgb"
    assert_user_error(lambda: open_scenes(tmp_path), message)
    shard = write_tar(tmp_path / "s.tar", {"README": b"nothing"})
    assert_user_error(
        lambda: open_scenes(shard), f"{shard}: no scenes. Expected KEY.jpg, KEY.semantic.png and KEY.instance.png"
    )


@pytest.mark.parametrize("member", ["a.jpg", "a.semantic.png", "a.instance.png"])
def test_a_sample_of_a_shard_that_lacks_a_part_is_refused(tmp_path: Path, member: str) -> None:
    files = {name: data for name, data in make_sample("a")[0].items() if name != member}
    shard = write_tar(tmp_path / "s.tar", make_sample("b")[0] | files)
    assert_user_error(lambda: open_scenes(shard), f"{shard}: sample 'a' lacks {member}. Add it, or remove the sample")
    scenes, problems = inspect_scenes(shard)
    assert scenes is not None
    assert list(scenes.keys) == ["b"]
    assert [problem.key for problem in problems] == ["a"]


@pytest.mark.parametrize("name", ["rgb", "semantic", "instance"])
def test_a_sample_of_a_tree_that_lacks_a_part_is_refused(tmp_path: Path, name: str) -> None:
    files = {k: v for k, v in to_tree_files(make_sample("a")[0]).items() if not k.startswith(name)}
    root = write_tree(tmp_path, to_tree_files(make_sample("b")[0]) | files)
    assert_user_error(lambda: open_scenes(root), f"{root}: sample 'a' lacks {name}/a. Add it, or remove the sample")


def test_a_granularity_that_no_sample_has_is_told_once(tmp_path: Path) -> None:
    photos = {name: data for name, data in make_samples("ab").items() if name.endswith(".jpg")}
    shard = write_tar(tmp_path / "s.tar", photos)
    needed = ("semantic", "rgb")
    message = f"{shard}: no sample has a part 'semantic'. What is asked for: semantic, rgb"
    assert_user_error(lambda: open_scenes(shard, granularities=needed), message)
    tree = write_tree(tmp_path / "tree", {f"rgb/{name}": data for name, data in photos.items()})
    message = f"{tree}: no sample has a part 'semantic'. What is asked for: semantic, rgb"
    assert_user_error(lambda: open_scenes(tree, granularities=needed), message)
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


def test_two_pictures_for_one_part_are_refused(tmp_path: Path) -> None:
    root = write_tree(tmp_path, to_tree_files(make_samples("ab")) | {"rgb/a.jpg": b""})
    assert_user_error(lambda: open_scenes(root), f"{root}/rgb/a.png: sample 'a' has another picture, a.jpg. Remove one")
    scenes, _ = inspect_scenes(root)
    assert scenes is not None
    assert list(scenes.keys) == ["b"]


def test_of_two_photos_in_a_shard_the_jpeg_is_taken(tmp_path: Path) -> None:
    files, maps = make_sample("a")
    shard = write_tar(tmp_path / "s.tar", {"a.png": b"junk"} | files)
    assert_holds(open_scenes(shard)[0].maps, maps)


def test_a_folder_that_is_called_like_a_data_set_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tree(tmp_path / "generated", to_tree_files(make_samples("ab")))
    monkeypatch.chdir(tmp_path)
    assert list(open_scenes("generated").keys) == ["a", "b"]


def test_class_folders_are_the_labels_that_dataset_json_names(tmp_path: Path) -> None:
    root = write_tree(tmp_path, to_tree_files(make_sample("n02/1")[0]) | to_tree_files(make_sample("cat/2")[0]))
    labels = [{"name": "dog", "wnid": "n02"}, None, {"name": "cat"}]
    (root / "dataset.json").write_text(json.dumps({"labels": labels}))
    scenes = open_scenes(root)
    assert [(scenes[index].key, scenes[index].label) for index in range(2)] == [("cat/2", 2), ("n02/1", 0)]
    (root / "dataset.json").write_text(json.dumps({"labels": labels[:1]}))
    message = f"{root}: class folder 'cat' is none of the labels that dataset.json names. Add it there"
    assert_user_error(lambda: open_scenes(root), message)


def test_a_folder_that_may_not_be_listed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_tree(tmp_path, to_tree_files(make_sample("dog/a")[0]) | to_tree_files(make_sample("cat/b")[0]))
    scan = os.scandir

    def refusing(path: str) -> object:
        if str(path).endswith("rgb/cat"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(UserError, match=rf"^{root}/rgb/cat: cannot be listed: Permission denied. Check its rights"):
        open_scenes(root)


def test_linked_folders_are_followed(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", to_tree_files(make_samples("ab")))
    for name in ("rgb", "semantic", "instance"):
        (tmp_path / "linked" / name).mkdir(parents=True)
        (tmp_path / "linked" / name / "dog").symlink_to(tree / name)
    assert list(open_scenes(tmp_path / "linked").keys) == ["dog/a", "dog/b"]


def test_a_folder_where_a_picture_should_be_is_told(tmp_path: Path) -> None:
    root = write_tree(tmp_path, to_tree_files(make_samples("ab")) | {"rgb/c.jpg/readme": b""})
    message = f"{root}/rgb/c.jpg: a folder where a picture should be. Rename or remove it"
    assert_user_error(lambda: open_scenes(root), message)


def test_a_key_in_two_shards_is_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "s-0.tar", make_samples("ab"))
    second = write_tar(tmp_path / "s-1.tar", make_samples("bc"))
    assert_user_error(
        lambda: open_scenes(tmp_path), f"{second}: sample 'b' is in another shard too. Pack every sample once"
    )


def test_maps_of_another_size_than_their_photo_are_refused(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "s.tar", make_sample("a")[0] | {"a.instance.png": encode_png(make_id_map([0, 1]))})
    message = f"{shard}: a.instance.png: 2×1 cells, but a photo of 7×5 pixels takes 7×5. Store both in one size"
    assert_user_error(lambda: open_scenes(shard)[0], message)
    (tmp_path / "dataset.json").write_text('{"label_stride": 4}')
    takes = "7×5 cells, but a photo of 7×5 pixels takes 2×2 at label_stride 4"
    message = f"{shard}: a.semantic.png: {takes}. Store both in one size"
    assert_user_error(lambda: open_scenes(shard)[0], message)


def test_semantic_ids_outside_the_label_space_are_refused(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps(DATASET))
    files = make_sample("a")[0] | {"a.semantic.png": encode_png(make_id_map([0, 2, 255, 0, 0, 0, 0]).repeat(5, 0))}
    shard = write_tar(tmp_path / "s.tar", files)
    advice = "Add the class to dataset.json, or map the id to its `ignore`"
    message = f"{shard}: a.semantic.png: id 2 on 5 pixels is outside the 2 classes of the label space. {advice}"
    assert_user_error(lambda: open_scenes(shard)[0], message)


@pytest.mark.parametrize("text", [b"cat", b"-1", b"", b"1.5", b"9" * 20, b"1" + b" " * 20 + b"2"])
def test_labels_that_are_no_index_are_refused(tmp_path: Path, text: bytes) -> None:
    shard = write_tar(tmp_path / "s.tar", make_samples("ab") | {"a.cls": text})
    assert_user_error(
        lambda: open_scenes(shard), f"{shard}: a.cls is not a whole number from 0 on. Write the class's index"
    )


def test_a_gzipped_shard_is_refused_with_the_command_that_unpacks_it(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "s.tar", make_sample("a")[0])
    packed = tmp_path / "t.tar.gz"
    packed.write_bytes(gzip.compress(shard.read_bytes()))
    why = "compressed with gzip, so no sample can be read by itself. Unpack it:"
    assert_user_error(lambda: open_scenes(packed), f"{packed}: {why} gunzip {packed}")
    packed.rename(shard)
    assert_user_error(lambda: open_scenes(shard), f"{shard}: {why} mv {shard} {shard}.gz && gunzip {shard}.gz")


def test_a_shard_cut_anywhere_before_its_end_is_refused_and_what_is_whole_of_it_is_kept(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "whole.tar", make_samples("ab")).read_bytes()
    content = len(whole.rstrip(b"\0"))
    end = -(-content // 512) * 512
    second = whole.index(b"b.jpg")
    shard = tmp_path / "s.tar"
    for length in [*range(0, end + 512, 128), content, end + 511]:
        shard.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"s\.tar: (not a whole tar|cut short inside '\S+')"):
            open_scenes(shard)
        scenes, problems = inspect_scenes(shard)
        kept = [] if scenes is None else list(scenes.keys)
        assert problems
        assert kept in ([], ["a"]) if length < end else kept == ["a", "b"]
        assert kept or length < second
    shard.write_bytes(whole[: end + 512])
    assert len(open_scenes(shard)) == 2


def test_a_broken_header_in_the_middle_is_not_taken_for_the_end(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "s.tar", make_samples("ab"))
    data = bytearray(shard.read_bytes())
    data[data.index(b"b.jpg")] ^= 1
    shard.write_bytes(data)
    assert_user_error(
        lambda: open_scenes(shard), f"{shard}: not a whole tar (its end mark is missing). Copy or pack it again"
    )


@pytest.mark.parametrize("name", ["../a.jpg", "x/../../a.jpg", "/etc/a.jpg"])
def test_members_that_point_out_of_the_shard_are_refused(tmp_path: Path, name: str) -> None:
    shard = write_tar(tmp_path / "s.tar", make_sample("b")[0] | {name: b""})
    message = f"{shard}: member '{name}' points out of the shard. Pack it with relative names"
    assert_user_error(lambda: open_scenes(shard), message)


@pytest.mark.parametrize("again", ["a.jpg", "./a.jpg"])
def test_members_that_are_there_twice_are_refused(tmp_path: Path, again: str) -> None:
    shard = write_tar(tmp_path / "s.tar", make_samples("ab"))
    with tarfile.open(shard, "a") as tar:
        tar.addfile(tarfile.TarInfo(again))
    assert_user_error(lambda: open_scenes(shard), f"{shard}: member 'a.jpg' is there twice. Pack every sample once")
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
        lambda: open_scenes(shard), f"{shard}: member 'b.jpg' is a link or a special file. Pack plain files"
    )


@pytest.mark.parametrize("data", [b"", b"junk"], ids=["empty", "junk"])
def test_broken_pictures_are_named_with_their_shard(tmp_path: Path, data: bytes) -> None:
    shard = open_scenes(write_tar(tmp_path / "s.tar", make_sample("a")[0] | {"a.jpg": data}))
    with pytest.raises(UserError, match=rf"^{re.escape(str(tmp_path))}/s\.tar: a\.jpg: not readable as a picture"):
        shard[0]


def test_photos_in_a_tree_may_be_jpeg_or_png(tmp_path: Path) -> None:
    files: Files = {
        "rgb/a.jpg": encode_image(Image.new("RGB", (7, 5), (9, 9, 9)), "JPEG"),
        "rgb/b.PNG": encode_png(make_id_map([1, 2])),
    }
    scenes = open_scenes(write_tree(tmp_path, files), granularities=("rgb",))
    assert [tuple(scenes[index].maps["rgb"].shape) for index in range(2)] == [(3, 5, 7), (3, 1, 2)]
