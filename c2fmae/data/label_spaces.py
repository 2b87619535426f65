"""Classes of public data sets by semantic id.

Sources: panoptic_coco_categories.json of COCO; labels.txt of COCO-Stuff; PASCAL VOC 2012's development kit;
objectInfo150 and instanceInfo100 of ADE20K's challenges; helpers/labels.py of Cityscapes' scripts.
"""

from dataclasses import dataclass

import numpy as np

from c2fmae.core.granularity import IGNORE
from c2fmae.core.labels import ClassInfo
from c2fmae.data.remap import IdTable


@dataclass(frozen=True)
class LabelSpace:
    """The classes of the semantic ids 0, 1, … of a data set."""

    name: str
    classes: tuple[ClassInfo, ...]

    def coco_id_table(self) -> IdTable:
        """Return the semantic id of every category id of COCO, for `remap_ids`; -1 in gaps, and 0 is "not labelled".

        >>> COCO_PANOPTIC.coco_id_table()[[0, 1, 12, 90, 92, 200]]
        array([255,   0,  -1,  79,  80, 132])
        """
        coco_ids = [entry.coco_id for entry in self.classes if entry.coco_id is not None]
        table = np.full(max(coco_ids, default=0) + 1, -1)
        table[0] = IGNORE
        table[coco_ids] = np.arange(len(coco_ids))
        return table


def _parse_coco_classes(text: str, *, is_thing: bool) -> tuple[ClassInfo, ...]:
    pairs = [entry.split(maxsplit=1) for entry in text.split(",")]
    return tuple(ClassInfo(name=name, is_thing=is_thing, coco_id=int(coco_id)) for coco_id, name in pairs)


def _parse_starred_classes(text: str) -> tuple[ClassInfo, ...]:
    """Return classes from names; those with a star are things."""
    names = [" ".join(name.split()) for name in text.split(",")]
    return tuple(ClassInfo(name=name.removesuffix("*"), is_thing=name.endswith("*")) for name in names)


COCO_PANOPTIC = LabelSpace(
    "coco-panoptic",
    _parse_coco_classes(
        """1 person, 2 bicycle, 3 car, 4 motorcycle, 5 airplane, 6 bus, 7 train, 8 truck, 9 boat, 10 traffic light,
        11 fire hydrant, 13 stop sign, 14 parking meter, 15 bench, 16 bird, 17 cat, 18 dog, 19 horse, 20 sheep,
        21 cow, 22 elephant, 23 bear, 24 zebra, 25 giraffe, 27 backpack, 28 umbrella, 31 handbag, 32 tie,
        33 suitcase, 34 frisbee, 35 skis, 36 snowboard, 37 sports ball, 38 kite, 39 baseball bat,
        40 baseball glove, 41 skateboard, 42 surfboard, 43 tennis racket, 44 bottle, 46 wine glass, 47 cup,
        48 fork, 49 knife, 50 spoon, 51 bowl, 52 banana, 53 apple, 54 sandwich, 55 orange, 56 broccoli,
        57 carrot, 58 hot dog, 59 pizza, 60 donut, 61 cake, 62 chair, 63 couch, 64 potted plant, 65 bed,
        67 dining table, 70 toilet, 72 tv, 73 laptop, 74 mouse, 75 remote, 76 keyboard, 77 cell phone,
        78 microwave, 79 oven, 80 toaster, 81 sink, 82 refrigerator, 84 book, 85 clock, 86 vase, 87 scissors,
        88 teddy bear, 89 hair drier, 90 toothbrush""",
        is_thing=True,
    )
    + _parse_coco_classes(
        """92 banner, 93 blanket, 95 bridge, 100 cardboard, 107 counter, 109 curtain, 112 door-stuff,
        118 floor-wood, 119 flower, 122 fruit, 125 gravel, 128 house, 130 light, 133 mirror-stuff, 138 net,
        141 pillow, 144 platform, 145 playingfield, 147 railroad, 148 river, 149 road, 151 roof, 154 sand,
        155 sea, 156 shelf, 159 snow, 161 stairs, 166 tent, 168 towel, 171 wall-brick, 175 wall-stone,
        176 wall-tile, 177 wall-wood, 178 water-other, 180 window-blind, 181 window-other, 184 tree-merged,
        185 fence-merged, 186 ceiling-merged, 187 sky-other-merged, 188 cabinet-merged, 189 table-merged,
        190 floor-other-merged, 191 pavement-merged, 192 mountain-merged, 193 grass-merged, 194 dirt-merged,
        195 paper-merged, 196 food-other-merged, 197 building-other-merged, 198 rock-merged,
        199 wall-other-merged, 200 rug-merged""",
        is_thing=False,
    ),
)
"""80 classes of things, then 53 of stuff, in the order of COCO's category ids."""

COCO_STUFF = LabelSpace(
    "coco-stuff",
    COCO_PANOPTIC.classes[:80]
    + _parse_coco_classes(
        """92 banner, 93 blanket, 94 branch, 95 bridge, 96 building-other, 97 bush, 98 cabinet, 99 cage, 100 cardboard,
        101 carpet, 102 ceiling-other, 103 ceiling-tile, 104 cloth, 105 clothes, 106 clouds, 107 counter, 108 cupboard,
        109 curtain, 110 desk-stuff, 111 dirt, 112 door-stuff, 113 fence, 114 floor-marble, 115 floor-other,
        116 floor-stone, 117 floor-tile, 118 floor-wood, 119 flower, 120 fog, 121 food-other, 122 fruit,
        123 furniture-other, 124 grass, 125 gravel, 126 ground-other, 127 hill, 128 house, 129 leaves, 130 light,
        131 mat, 132 metal, 133 mirror-stuff, 134 moss, 135 mountain, 136 mud, 137 napkin, 138 net, 139 paper,
        140 pavement, 141 pillow, 142 plant-other, 143 plastic, 144 platform, 145 playingfield, 146 railing,
        147 railroad, 148 river, 149 road, 150 rock, 151 roof, 152 rug, 153 salad, 154 sand, 155 sea, 156 shelf,
        157 sky-other, 158 skyscraper, 159 snow, 160 solid-other, 161 stairs, 162 stone, 163 straw,
        164 structural-other, 165 table, 166 tent, 167 textile-other, 168 towel, 169 tree, 170 vegetable,
        171 wall-brick, 172 wall-concrete, 173 wall-other, 174 wall-panel, 175 wall-stone, 176 wall-tile,
        177 wall-wood, 178 water-other, 179 waterdrops, 180 window-blind, 181 window-other, 182 wood""",
        is_thing=False,
    ),
)
"""COCO's 80 classes of things, then 91 of stuff, in the order of COCO-Stuff's label numbers."""

CITYSCAPES = LabelSpace(
    "cityscapes",
    _parse_starred_classes(
        """road, sidewalk, building, wall, fence, pole, traffic light, traffic sign, vegetation, terrain, sky, person*,
        rider*, car*, truck*, bus*, train*, motorcycle*, bicycle*"""
    ),
)
"""The 19 classes of the benchmark, in the order of their `trainId`; those with instances are things."""

VOC = LabelSpace(
    "voc",
    _parse_starred_classes(
        """background, aeroplane*, bicycle*, bird*, boat*, bottle*, bus*, car*, cat*, chair*, cow*, diningtable*,
        dog*, horse*, motorbike*, person*, pottedplant*, sheep*, sofa*, train*, tvmonitor*"""
    ),
)
"""Background, then 20 things."""

ADE20K = LabelSpace(
    "ade20k",
    _parse_starred_classes(
        """wall, building, sky, floor, tree, ceiling, road, bed*, windowpane*, grass, cabinet*, sidewalk, person*,
        earth, door*, table*, mountain, plant, curtain*, chair*, car*, water, painting*, sofa*, shelf*, house, sea,
        mirror*, rug, field, armchair*, seat*, fence*, desk*, rock, wardrobe*, lamp*, bathtub*, railing*, cushion*,
        base, box*, column*, signboard*, chest of drawers*, counter*, sand, sink*, skyscraper, fireplace*,
        refrigerator*, grandstand, path, stairs*, runway, case*, pool table*, pillow*, screen door*, stairway, river,
        bridge, bookcase*, blind, coffee table*, toilet*, flower*, book*, hill, bench*, countertop*, stove*, palm*,
        kitchen island*, computer*, swivel chair*, boat*, bar, arcade machine*, hovel, bus*, towel*, light*, truck*,
        tower, chandelier*, awning*, streetlight*, booth*, television receiver*, airplane*, dirt track, apparel*,
        pole*, land, bannister*, escalator, ottoman*, bottle*, buffet, poster, stage, van*, ship*, fountain*,
        conveyer belt, canopy, washer*, plaything*, swimming pool, stool*, barrel*, basket*, waterfall, tent, bag*,
        minibike*, cradle, oven*, ball*, food*, step*, tank, trade name*, microwave*, pot*, animal*, bicycle*, lake,
        dishwasher*, screen*, blanket, sculpture*, hood*, sconce*, vase*, traffic light*, tray*, ashcan*, fan*, pier,
        crt screen, plate*, monitor*, bulletin board*, shower, radiator*, glass*, clock*, flag*"""
    ),
)
"""150 classes; the things are the 100 of the instance challenge."""
