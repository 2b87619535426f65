import numpy as np
import pytest

from c2fmae.data.label_spaces import ADE20K, CITYSCAPES, COCO_PANOPTIC, COCO_STUFF, VOC, LabelSpace
from c2fmae.data.remap import remap_ids

# Numbers from 1 of the classes of ADE20K's instance challenge among the 150 of its parsing challenge, as published in
# facebookresearch/Mask2Former:datasets/ade20k_instance_catid_mapping.txt.
ADE20K_THINGS = [
    *(8, 9, 11, 13, 15, 16, 19, 20, 21, 23, 24, 25, 28, 31, 32, 33, 34, 36, 37, 38, 39, 40, 42, 43, 44, 45, 46, 48, 50),
    *(51, 54, 56, 57, 58, 59, 63, 65, 66, 67, 68, 70, 71, 72, 73, 74, 75, 76, 77, 79, 81, 82, 83, 84, 86, 87, 88, 89),
    *(90, 91, 93, 94, 96, 98, 99, 103, 104, 105, 108, 109, 111, 112, 113, 116, 117, 119, 120, 121, 122, 124, 125, 126),
    *(127, 128, 130, 131, 133, 134, 135, 136, 137, 138, 139, 140, 143, 144, 145, 147, 148, 149, 150),
]
COCO_GAPS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}  # up to 90


def names(space: LabelSpace) -> list[str]:
    return [entry.name for entry in space.classes]


@pytest.mark.parametrize(
    ("space", "num_classes", "num_things", "ends"),
    [
        (COCO_PANOPTIC, 133, 80, ("person", "rug-merged")),
        (COCO_STUFF, 171, 80, ("person", "wood")),
        (CITYSCAPES, 19, 8, ("road", "bicycle")),
        (VOC, 21, 20, ("background", "tvmonitor")),
        (ADE20K, 150, 100, ("wall", "flag")),
    ],
)
def test_classes_of_a_label_space_are_unique(
    space: LabelSpace, num_classes: int, num_things: int, ends: tuple[str, str]
) -> None:
    assert len(space.classes) == len(set(names(space))) == num_classes
    assert sum(entry.is_thing is True for entry in space.classes) == num_things
    assert sum(entry.is_thing is False for entry in space.classes) == num_classes - num_things
    assert (names(space)[0], names(space)[-1]) == ends
    assert all(name == " ".join(name.split()) and "*" not in name for name in names(space))


def test_category_ids_of_coco_ascend_with_the_known_gaps() -> None:
    coco_ids = [entry.coco_id for entry in COCO_PANOPTIC.classes]
    assert coco_ids[:80] == [coco_id for coco_id in range(1, 91) if coco_id not in COCO_GAPS]
    assert coco_ids == sorted(coco_ids, key=lambda coco_id: coco_id or 0)
    assert all(entry.is_thing for entry in COCO_PANOPTIC.classes[:80])
    by_id = {entry.coco_id: entry.name for entry in COCO_PANOPTIC.classes}
    known = {1: "person", 10: "traffic light", 44: "bottle", 90: "toothbrush", 92: "banner", 144: "platform"}
    known |= {181: "window-other", 184: "tree-merged", 187: "sky-other-merged", 200: "rug-merged"}
    assert {coco_id: by_id[coco_id] for coco_id in known} == known


def test_the_table_of_coco_maps_category_ids_to_consecutive_ids() -> None:
    table = COCO_PANOPTIC.coco_id_table()
    assert table.shape == (201,)
    assert (table == -1).sum() == 200 - 133
    coco_ids = np.array([[entry.coco_id or 0 for entry in COCO_PANOPTIC.classes] + [0]])
    assert remap_ids(coco_ids, table, "x.png").tolist() == [[*range(133), 255]]


def test_a_category_id_that_coco_does_not_use_is_refused() -> None:
    message = "^x.png: id 12 on 2 pixels is outside the 133 classes of the label space."
    with pytest.raises(ValueError, match=message):
        remap_ids(np.array([[12, 12, 1]]), COCO_PANOPTIC.coco_id_table(), "x.png")


def test_classes_of_ade20k_are_in_the_official_order() -> None:
    known = {0: "wall", 1: "building", 2: "sky", 3: "floor", 4: "tree", 12: "person", 19: "chair", 43: "signboard"}
    known |= {44: "chest of drawers", 56: "pool table", 89: "television receiver", 105: "conveyer belt"}
    known |= {109: "swimming pool", 130: "screen", 141: "crt screen", 144: "bulletin board", 149: "flag"}
    assert {class_id: names(ADE20K)[class_id] for class_id in known} == known


def test_things_of_ade20k_are_the_classes_of_its_instance_challenge() -> None:
    assert [class_id + 1 for class_id, entry in enumerate(ADE20K.classes) if entry.is_thing] == ADE20K_THINGS


def test_numbers_of_coco_stuff_ascend_to_182_with_the_gaps_of_coco() -> None:
    by_number = {entry.coco_id: entry.name for entry in COCO_STUFF.classes}
    assert list(by_number) == [number for number in range(1, 183) if number not in COCO_GAPS | {91}]
    known = {1: "person", 90: "toothbrush", 94: "branch", 106: "clouds", 124: "grass", 149: "road", 157: "sky-other"}
    known |= {169: "tree", 173: "wall-other", 182: "wood"}
    assert {number: by_number[number] for number in known} == known


def test_classes_of_cityscapes_are_in_the_order_of_their_train_ids() -> None:
    known = {0: "road", 2: "building", 5: "pole", 8: "vegetation", 10: "sky", 11: "person", 13: "car", 16: "train"}
    assert {class_id: names(CITYSCAPES)[class_id] for class_id in known} == known


def test_classes_of_voc_are_in_the_official_order() -> None:
    known = {0: "background", 1: "aeroplane", 8: "cat", 15: "person", 16: "pottedplant", 20: "tvmonitor"}
    assert {class_id: names(VOC)[class_id] for class_id in known} == known
    assert not VOC.classes[0].is_thing
