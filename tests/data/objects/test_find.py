from pathlib import Path

import pytest

from c2fmae.data.objects import find_object_sets, inspect_maps_and_objects, open_objects
from c2fmae.data.objects.find import find_annotated_sets
from tests.data.dataset_files import assert_user_error
from tests.data.objects.layouts import annotation, voc_object, write_coco, write_image, write_voc, write_yolo


def test_both_sets_of_coco_are_found(tmp_path: Path) -> None:
    for split in ("train2017", "val2017"):
        write_coco(tmp_path, [annotation(1, 10, 3, (0, 0, 4, 4))], split=split)
    for name in ("captions_train2017", "person_keypoints_val2017", "interval"):
        (tmp_path / f"annotations/{name}.json").write_text("{}")
    sets = find_object_sets(str(tmp_path))
    assert sets == {
        "train": f"{tmp_path}/annotations/instances_train2017.json",
        "test": f"{tmp_path}/annotations/instances_val2017.json",
    }
    assert all(len(open_objects(path)) == 2 for path in sets.values())
    message = f"contains several sets: train, test. Choose one, as in {sets['train']}"
    assert_user_error(lambda: open_objects(str(tmp_path)), f"{tmp_path}: {message}")


def test_both_sets_of_coco_with_a_json_beside_the_images_are_found(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        path = write_coco(tmp_path, [annotation(1, 10, 3, (0, 0, 4, 4))], split=split)
        path.rename(tmp_path / split / "_annotations.coco.json")
    (tmp_path / "annotations").rmdir()
    sets = find_object_sets(str(tmp_path))
    assert sets == {
        name: f"{tmp_path}/{split}/_annotations.coco.json" for name, split in (("train", "train"), ("test", "valid"))
    }
    assert len(open_objects(sets["test"])) == 2
    for split in ("train", "valid"):
        assert list(open_objects(tmp_path / split).keys) == ["1", "2"]


@pytest.mark.parametrize("source", ["", "data.yaml"])
def test_both_sets_of_yolo_are_found(tmp_path: Path, source: str) -> None:
    for split in ("train", "val"):
        write_yolo(tmp_path, {"a": "0 .5 .5 .5 .5"}, split=split)
    sets = find_object_sets(str(tmp_path / source))
    assert sets == {"train": f"{tmp_path}/images/train", "test": f"{tmp_path}/images/val"}
    assert all(len(open_objects(path)) == 1 for path in sets.values())
    with pytest.raises(ValueError, match="contains several sets: train, test"):
        open_objects(tmp_path / source)


def test_directories_of_yolo_may_be_relative_to_a_path_or_to_the_directory_above(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        write_image(tmp_path / f"set/{split}/images/a.jpg")
        (tmp_path / f"set/{split}/labels").mkdir()
        (tmp_path / f"set/{split}/labels/a.txt").write_text("0 .5 .5 .5 .5")
    yaml = tmp_path / "set/data.yaml"
    for text in (
        "train: ../train/images\nval: ../valid/images",
        "path: ../set\ntrain: train/images\nval: valid/images",
    ):
        yaml.write_text(f"{text}\nnames: [cat]")
        sets = find_object_sets(str(yaml))
        assert {name: Path(path).resolve() for name, path in sets.items()} == {
            "train": tmp_path / "set/train/images",
            "test": tmp_path / "set/valid/images",
        }
        assert all(len(open_objects(path)) == 1 for path in sets.values())
    yaml.write_text("train: nowhere\nval: valid/images\nnames: [cat]")
    assert_user_error(
        lambda: find_object_sets(str(yaml)),
        f"{yaml}: train is 'nowhere', but {tmp_path}/set/nowhere is not a directory of images. Correct it",
    )
    yaml.write_text("train: [a, b]\nval: valid/images\nnames: [cat]")
    assert_user_error(
        lambda: find_object_sets(str(yaml)), f"{yaml}: train is ['a', 'b'] (expected a directory of images). Give one"
    )


@pytest.mark.parametrize(
    ("splits", "expected"), [(("train", "val", "test"), ("train", "val")), (("trainval", "test"),) * 2]
)
def test_both_sets_of_voc_are_found(tmp_path: Path, splits: tuple[str, ...], expected: tuple[str, str]) -> None:
    for split in splits:
        write_voc(tmp_path / "VOCdevkit/VOC2012", {f"a-{split}": voc_object("dog", (1, 1, 5, 5))}, split=split)
    folder = tmp_path / "VOCdevkit/VOC2012/ImageSets/Main"
    sets = find_object_sets(str(tmp_path))
    assert sets == {name: f"{folder}/{split}.txt" for name, split in zip(("train", "test"), expected, strict=True)}
    assert list(open_objects(sets["test"]).keys) == [f"a-{expected[1]}"]


def test_one_set_alone_is_an_error(tmp_path: Path) -> None:
    write_coco(tmp_path, [], split="train2017")
    message = "no test set found (expected val or valid or validation or test)"
    assert_user_error(lambda: find_object_sets(str(tmp_path)), f"{tmp_path}: {message}. Give --data TRAIN --test TEST")


def test_a_directory_with_one_set_is_that_set(tmp_path: Path) -> None:
    write_coco(tmp_path, [annotation(1, 10, 3, (0, 0, 1, 1))])
    assert list(open_objects(tmp_path).keys) == ["1", "2"]


def test_annotations_beside_maps_or_a_description_are_not_read(tmp_path: Path) -> None:
    for root, name in ((tmp_path / "maps", "rgb"), (tmp_path / "described", "images")):
        write_coco(root, [], split="train")
        write_image(root / name / "a.png")
    (tmp_path / "described/dataset.json").write_text("{}")
    assert find_annotated_sets(tmp_path / "maps") == find_annotated_sets(tmp_path / "described") == {}


def test_only_the_chosen_sets_of_a_yaml_need_to_exist(tmp_path: Path) -> None:
    write_yolo(tmp_path, {"a": "0 .5 .5 .2 .2"}, split="train")
    write_yolo(tmp_path, {"b": "0 .5 .5 .2 .2"})
    text = (tmp_path / "data.yaml").read_text()
    (tmp_path / "data.yaml").write_text(f"{text}test: ../test/images\n")
    assert find_object_sets(str(tmp_path))["test"] == str(tmp_path / "images/val")


def test_text_files_are_found_from_inside_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_yolo(tmp_path, {"a": "\ufeff0 .5 .5 .2 .2"})  # with the mark of some editors
    for start, source in ((folder, "."), (folder.parent, "val")):
        monkeypatch.chdir(start)
        objects = open_objects(source)[0].objects
        assert objects is not None
        assert len(objects) == 1


def test_sets_of_maps_are_found_as_for_other_tasks(tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
    assert find_object_sets(str(tmp_path)) == {"train": str(tmp_path / "train"), "test": str(tmp_path / "val")}
    assert find_object_sets("generated") == {"train": "generated", "test": "generated"}


def write_label_folders(root: Path, *folders: str) -> None:
    """Write an image and its text file of YOLO's format to directories, or to `images` and `labels` in them."""
    for folder in folders:
        images, labels = root / folder, root / folder.replace("images", "labels")
        write_image(images / "a.jpg")
        labels.mkdir(parents=True, exist_ok=True)
        (labels / "a.txt").write_text("0 .5 .5 .5 .5")


@pytest.mark.parametrize("pattern", ["images/{}", "{}/images", "{}"])
def test_directories_of_yolo_are_found_by_their_names_without_a_yaml_that_lists_them(
    tmp_path: Path, pattern: str
) -> None:
    write_label_folders(tmp_path, *map(pattern.format, ("train", "valid")))
    sets = {"train": str(tmp_path / pattern.format("train")), "test": str(tmp_path / pattern.format("valid"))}
    assert find_object_sets(str(tmp_path)) == sets
    message = "has no data.yaml with `names` of classes, here or above it. Add it, such as `names: [car, bus]`"
    assert_user_error(lambda: open_objects(sets["train"]), f"{sets['train']}: {message}")
    (tmp_path / "data.yaml").write_text("names: [cat]")
    assert find_object_sets(str(tmp_path)) == sets
    assert all(len(open_objects(path)) == 1 for path in sets.values())


def test_one_directory_of_images_with_labels_is_never_read_as_plain_images(tmp_path: Path) -> None:
    write_label_folders(tmp_path, "images")
    with pytest.raises(ValueError, match="images: has no data.yaml with `names` of classes"):
        inspect_maps_and_objects(tmp_path)
    (tmp_path / "data.yaml").write_text("names: [cat]")
    assert len(open_objects(tmp_path)[0].objects or ()) == 1


def test_a_single_json_is_the_set_of_its_directory_whatever_its_name(tmp_path: Path) -> None:
    path = write_coco(tmp_path, [annotation(1, 10, 3, (0, 0, 1, 1))], split="default")
    assert len(open_objects(tmp_path)) == 2
    path = path.rename(tmp_path / "result.json")
    (tmp_path / "default").rename(tmp_path / "images")
    (tmp_path / "notes.json").write_text("{}")
    assert len(open_objects(tmp_path)) == 2
    (tmp_path / "more.json").write_bytes(path.read_bytes())
    message = f"none of {tmp_path}/more.json, {path} is named train or val. Choose one, or rename them"
    assert_user_error(lambda: inspect_maps_and_objects(tmp_path), f"{tmp_path}: {message}")


def test_a_single_list_of_voc_is_the_set_of_its_directory(tmp_path: Path) -> None:
    listing = write_voc(tmp_path, {"a": voc_object("dog", (1, 1, 5, 5))}, split="default")
    assert len(open_objects(tmp_path)) == 1
    listing.unlink()
    with pytest.raises(ValueError, match="ImageSets/Main/train.txt: does not exist. Write it: a line for each image"):
        inspect_maps_and_objects(tmp_path)


@pytest.mark.parametrize(
    ("suffix", "text", "name"),
    [
        ("xml", f"<annotation>{voc_object('dog', (1, 1, 5, 5))}</annotation>", "VOC's"),
        ("json", '{"shapes": []}', "labelme's"),
    ],
)
def test_annotations_beside_images_that_are_not_read_are_an_error(
    tmp_path: Path, suffix: str, text: str, name: str
) -> None:
    write_image(tmp_path / "a.jpg")
    path = tmp_path / f"a.{suffix}"
    path.write_text("{}")  # of another program
    assert inspect_maps_and_objects(tmp_path)[0] is not None
    path.write_text(text)
    message = (
        f"is an annotation in {name} format beside its image, which is not read. Export the data as a json of COCO"
    )
    with pytest.raises(
        ValueError, match=f"{path}: {message} or as YOLO, or read images alone with --granularities rgb"
    ):
        inspect_maps_and_objects(tmp_path)
    scenes, _ = inspect_maps_and_objects(tmp_path, ["rgb"])
    assert scenes is not None
    assert list(scenes.keys) == ["a"]


def test_images_alone_can_be_read_beside_text_files(tmp_path: Path) -> None:
    write_label_folders(tmp_path, "a")
    scenes, _ = inspect_maps_and_objects(tmp_path / "a", ["rgb"])
    assert scenes is not None
    assert scenes[0].objects is None
    (tmp_path / "a/a.txt").write_text("an image of a cat")
    assert inspect_maps_and_objects(tmp_path / "a")[0] is not None
