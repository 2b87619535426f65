from pathlib import Path

import pytest

from c2fmae.core.errors import UserError
from c2fmae.data.objects import count_objects, inspect_objects, open_objects
from c2fmae.data.objects.voc import parse_xml
from tests.data.objects.layouts import voc_object, write_voc


def test_boxes_are_converted_to_half_open_ones_and_difficult_objects_to_crowds(tmp_path: Path) -> None:
    text = voc_object("dog", (1, 1, 10, 20)) + voc_object("cat", (5, 6, 5, 6), difficult=1)
    scenes = open_objects(write_voc(tmp_path, {"a": text, "b": voc_object("dog", (2.5, 3, 9, 9))}))
    assert len(scenes.info.object_classes) == 20
    objects = scenes[0].objects
    assert objects is not None
    assert objects.boxes.tolist() == [[0, 0, 10, 20], [4, 5, 5, 6]]
    assert objects.areas.tolist() == [200, 1]
    assert [scenes.info.object_classes[label].name for label in objects.labels] == ["dog", "cat"]
    assert objects.is_crowd.tolist() == [False, True]
    assert objects.masks is None
    counts = count_objects(scenes)
    assert counts is not None
    assert counts.tolist() == [1, 1]
    other = scenes[1].objects
    assert other is not None
    assert other.boxes.tolist() == [[1.5, 2, 9, 9]]
    assert not {*objects.ids.tolist()} & {*other.ids.tolist()}


def test_names_of_other_classes_are_those_of_all_files_sorted(tmp_path: Path) -> None:
    write_voc(tmp_path, {"t": voc_object("zebu", (1, 1, 5, 5))}, split="train")
    scenes = open_objects(write_voc(tmp_path, {"a": voc_object("ant", (1, 1, 5, 5)), "b": ""}))
    assert [entry.name for entry in scenes.info.object_classes] == ["ant", "zebu"]
    assert len(scenes[1].objects or ()) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (voc_object("dog", (1, 1, float("nan"), 4)), "object 1 has xmax 'nan' (expected a number)"),
        ("<object><name>dog</name></object>", "object 1 has xmin None (expected a number)"),
        (voc_object("", (1, 1, 2, 2)), "object 1 has no name"),
        (voc_object("dog", (9, 1, 2, 2)), "object 1 has xmax or ymax below xmin or ymin"),
        ("<object>", "is not an xml annotation (mismatched tag"),
        ("&a;", "is not an xml annotation (undefined entity"),
    ],
)
def test_an_invalid_file_is_a_problem_of_its_image(tmp_path: Path, text: str, message: str) -> None:
    listing = write_voc(tmp_path, {"a": text, "b": voc_object("dog", (1, 1, 2, 2))})
    scenes, (problem,) = inspect_objects(listing)
    assert problem.key == "a"
    assert problem.text.startswith(f"{tmp_path}/Annotations/a.xml: {message}")
    assert problem.text.endswith(". Fix it, or remove the image from the list")
    assert scenes is not None
    assert list(scenes.keys) == ["b"]


def test_missing_images_and_annotations_are_problems(tmp_path: Path) -> None:
    listing = write_voc(tmp_path, {key: voc_object("dog", (1, 1, 2, 2)) for key in "abc"})
    (tmp_path / "JPEGImages/a.jpg").unlink()
    (tmp_path / "Annotations/b.xml").unlink()
    scenes, problems = inspect_objects(listing)
    assert [problem.key for problem in problems] == ["a", "b"]
    assert problems[0].text == f"{tmp_path}/JPEGImages/a.jpg: does not exist, but is listed in {listing}. Add it"
    assert scenes is not None
    assert list(scenes.keys) == ["c"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_entities_are_refused_before_they_expand(encoding: str) -> None:
    lines = [
        '<!ENTITY a "lol">',
        *(f'<!ENTITY {new} "{f"&{old};" * 10}">' for old, new in zip("abcdefgh", "bcdefghi", strict=True)),
    ]
    document = f'<?xml version="1.0" encoding="{encoding}"?><!DOCTYPE x [{"".join(lines)}]><x>&i;</x>'
    with pytest.raises(ValueError, match="it declares a document type"):
        parse_xml(document.encode(encoding))


def test_an_image_of_another_size_than_its_xml_states_is_an_error(tmp_path: Path) -> None:
    def state_size(width: int, height: int) -> str:
        return f"<size><width>{width}</width><height>{height}</height></size>" + voc_object("dog", (1, 1, 2, 2))

    texts = {"a": state_size(30, 20), "b": state_size(0, 0), "c": state_size(60, 40)}
    scenes = open_objects(write_voc(tmp_path, texts))
    assert [len(scenes[row].objects or ()) for row in (0, 1)] == [1, 1]
    with pytest.raises(UserError, match=r"c.jpg: has 30×20 pixels, but 60×40 in Annotations/c.xml. Replace the one"):
        scenes[2]


def test_classes_of_files_in_subdirectories_are_known(tmp_path: Path) -> None:
    for name in ("Annotations/s", "JPEGImages/s"):
        (tmp_path / name).mkdir(parents=True)
    scenes = open_objects(write_voc(tmp_path, {"s/a": voc_object("zebra", (1, 1, 2, 2))}))
    assert [entry.name for entry in scenes.info.object_classes] == ["zebra"]


def test_keys_may_have_spaces(tmp_path: Path) -> None:
    listing = write_voc(tmp_path, {name: voc_object("dog", (1, 1, 2, 2)) for name in ("day 1", "day 2 b", "c")})
    assert list(open_objects(listing).keys) == ["day 1", "day 2 b", "c"]  # each with a number after it in the list
    listing.write_text("day 1\nday 2 b -1\nc\n")
    assert list(open_objects(listing).keys) == ["day 1", "day 2 b", "c"]
