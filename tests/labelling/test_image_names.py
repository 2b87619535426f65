from importlib.resources import files
from pathlib import Path

import pytest

from c2fmae.core.errors import UserError
from c2fmae.core.labels import LabelInfo
from c2fmae.data.info import DatasetInfo
from c2fmae.labelling.image_names import EVERYDAY, clean_name, name_label, resolve_names
from c2fmae.labelling.wordnet_names import NAMES_BY_WNID


def describe_labels(*labels: LabelInfo | None) -> DatasetInfo:
    return DatasetInfo(labels=labels)


def list_imagenet_wnids() -> list[str]:
    return (files("timm.data") / "_info" / "imagenet_synsets.txt").read_text().split()


def test_every_label_of_imagenet_has_a_name_of_its_own() -> None:
    info = describe_labels(*(LabelInfo(name=wnid, wnid=wnid) for wnid in list_imagenet_wnids()))

    names = resolve_names("labels", info).common

    assert len(set(names)) == 1000
    assert {"crane bird", "construction crane", "leotard", "swimsuit", "tench"} <= set(names)


def test_the_table_of_names_lists_labels_of_imagenet() -> None:
    assert set(NAMES_BY_WNID) <= set(list_imagenet_wnids())
    assert all(NAMES_BY_WNID.values())


@pytest.mark.parametrize(
    ("label", "name"),
    [
        (LabelInfo.model_validate({"name": "a", "wnid": "n02012849", "prompt": "grey crane"}), "grey crane"),
        (LabelInfo(name="a", wnid="n02012849"), "crane bird"),
        (LabelInfo(name="a", wnid="n01440764"), "tench"),
        (LabelInfo(name="traffic_light", wnid="n99999999"), "traffic light"),
        (LabelInfo(name="traffic_light"), "traffic light"),
    ],
)
def test_a_label_is_named_by_its_prompt_then_by_wordnet_then_by_its_name(label: LabelInfo, name: str) -> None:
    assert name_label(label) == name


@pytest.mark.parametrize(
    ("name", "cleaned"),
    [
        ("Fire  Hydrant ", "fire hydrant"),
        ("St. Bernard", "st bernard"),
        ("what?\nthat", "what that"),
        ("jack-o'-lantern", "jack-o'-lantern"),
        ("Crème brûlée", "crème brûlée"),
        ("ｃａｔ？ dog…", "cat dog"),  # wide letters, and an ellipsis that is three full stops
    ],
)
def test_a_cleaned_name_is_one_phrase(name: str, cleaned: str) -> None:
    assert clean_name(name) == cleaned


def test_names_that_are_the_same_for_all_images_do_not_know_labels() -> None:
    info = describe_labels(LabelInfo(name="zebra"), None, LabelInfo(name="tench"))

    for names in ("things", "everyday", "labels"):
        resolved = resolve_names(names, info)
        assert not resolved.know_labels
        assert resolved.list_names(0) == resolved.list_names(2) == resolved.list_names(None) == resolved.common
    assert resolve_names("labels", info).common == ("zebra", "tench")
    assert len(resolve_names("things", info).common) == 80
    assert len(EVERYDAY) == len({clean_name(name) for name in EVERYDAY}) <= 80


def test_own_names_follow_the_label_of_the_image() -> None:
    info = describe_labels(LabelInfo(name="zebra"), None, LabelInfo(name="tench"))
    own, with_things = resolve_names("own", info), resolve_names("own+things", info)

    assert own.know_labels
    assert with_things.know_labels
    assert [own.list_names(label) for label in (0, 1, 2, None, 7)] == [("zebra",), (), ("tench",), (), ()]
    assert with_things.list_names(0)[0] == "zebra"
    assert len(with_things.list_names(0)) == 80  # zebra is a thing of COCO, and is searched for once
    assert len(with_things.list_names(2)) == 81


def test_names_of_a_file_are_its_lines(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("Cat\n\nfire hydrant\n")

    assert resolve_names(str(path), DatasetInfo()).common == ("cat", "fire hydrant")


@pytest.mark.parametrize(
    ("text", "reason"),
    [("Cat\ndog\ncat.", r"lines 1 and 3 are the same name 'cat'"), ("?", r"line 1: nothing is left"), ("", "no names")],
)
def test_a_defective_file_of_names_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "names.txt"
    path.write_text(text)

    with pytest.raises(UserError, match=reason):
        resolve_names(str(path), DatasetInfo())


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ((), r"--names own: needs labels with names, but the data has none\. Use --names things"),
        (
            (LabelInfo(name="crane"), LabelInfo(name="Crane.", wnid="n99999999")),
            r"the labels 'crane' and 'Crane\.' \(n99999999\) have the same name 'crane'\. Add a `prompt`",
        ),
        ((LabelInfo(name="?"),), r"nothing is left of the name of the label '\?'"),
        ((LabelInfo.model_validate({"name": "a", "prompt": 1}),), r"the prompt of 'a' is no text"),
    ],
)
def test_labels_without_a_usable_name_are_refused(labels: tuple[LabelInfo, ...], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        resolve_names("own", describe_labels(*labels))


def test_a_misspelt_set_of_names_is_refused_with_a_suggestion() -> None:
    with pytest.raises(UserError, match=r"--names thing: is neither things, .*Did you mean 'things'\?"):
        resolve_names("thing", DatasetInfo())
