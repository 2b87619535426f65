"""Labellers are built from the text of an option, and errors name everything that is wrong."""

import sys
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pytest
import torch
from pydantic import Field

import c2fmae.labelling.builtin  # noqa: F401 - registers the labellers
from c2fmae.core.config import Config
from c2fmae.core.errors import UserError
from c2fmae.core.labels import ClassInfo
from c2fmae.data.generated import GeneratedScenes
from c2fmae.labelling.context import LabellerContext
from c2fmae.labelling.protocol import LabelInput, LabelledObject, LabelResult
from c2fmae.labelling.registry import LABELLERS, build_labellers, parse_labeller

CONTEXT = LabellerContext(batch_size=3)
INPUT = LabelInput("a", torch.zeros(3, 4, 6, dtype=torch.uint8))


class PairConfig(Config):
    path_options: ClassVar[tuple[str, ...]] = ("detector", "segmenter")

    detector: str
    segmenter: str
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.5


class Pair:
    """Two maps of one id: a labeller for these tests."""

    granularities = frozenset({"semantic", "instance"})
    classes = (ClassInfo(name="all"),)
    maps_know_labels = False

    def __init__(self, config: PairConfig | None = None, context: LabellerContext | None = None) -> None:
        self.config, self.context = config, context

    def batch_key(self, height: int, width: int) -> Hashable:
        return None

    def label(self, inputs: Sequence[LabelInput], stride: int) -> list[LabelResult]:
        ids = torch.zeros(2, 3, dtype=torch.uint8)
        found = LabelledObject(1, 1.0, None, None, (0, 0, 6, 4), 24)
        return [LabelResult({"semantic": ids, "instance": ids + 1}, (found,), {"confidence": 1.0}) for _ in inputs]

    def describe(self) -> Mapping[str, Any]:
        return {"labeller": "pair"}


@pytest.fixture
def pair() -> Iterator[None]:
    LABELLERS.register("pair", options=PairConfig)(Pair)
    yield
    for table in (LABELLERS._entries, LABELLERS._summaries, LABELLERS._option_classes):
        del table["pair"]


PLUG_IN = """
from c2fmae.core.config import Config

class Settings(Config):
    scale: float = 1.0

class Outside:
    granularities = frozenset({"instance"})
    classes = ()
    maps_know_labels = None
    batch_key = label = describe = lambda self: None

    def __init__(self, colour="red", settings: Settings = Settings()):
        self.colour, self.settings = colour, settings

class Incomplete:
    granularities = frozenset({"instance"})
    label = None

class Depth(Outside):
    granularities = frozenset({"depth"})

number = 3
"""


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package that is not installed as a plug-in."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "__init__.py").touch()
    (tmp_path / "outside" / "maps.py").write_text(PLUG_IN)
    (tmp_path / "outside" / "broken.py").write_text("import no_such_module\n")
    yield
    for name in ("outside", "outside.maps", "outside.broken"):
        sys.modules.pop(name, None)


def test_a_registered_name_takes_options_and_the_context() -> None:
    (labeller,) = build_labellers(None, "regions", CONTEXT, instances_options={"scale": 100})
    assert labeller.granularities == {"instance"}
    assert labeller.describe()["scale"] == 100


@pytest.mark.usefixtures("pair")
def test_paths_fill_the_options_that_the_entry_names() -> None:
    assert parse_labeller("pair:a/b, hf:c", option="instances").options == PairConfig(detector="a/b", segmenter="hf:c")
    spec = parse_labeller("pair:a", {"segmenter": "b", "threshold": 0.25}, option="instances")
    assert spec.options == PairConfig(detector="a", segmenter="b", threshold=0.25)
    labeller = spec.build(CONTEXT)
    assert isinstance(labeller, Pair)
    assert (labeller.config, labeller.context) == (spec.options, CONTEXT)


@pytest.mark.usefixtures("pair")
def test_equal_choices_are_one_labeller_with_both_maps() -> None:
    (labeller,) = build_labellers("pair:a,b", "pair:a,b", CONTEXT)
    assert labeller.granularities == {"semantic", "instance"}
    assert isinstance(labeller, Pair)
    semantic, instance = build_labellers("pair:a,b", "pair:a,b", CONTEXT, instances_options={"threshold": 0.1})
    assert [set(each.granularities) for each in (semantic, instance)] == [{"semantic"}, {"instance"}]


@pytest.mark.usefixtures("pair")
def test_a_labeller_that_can_make_more_makes_the_map_it_was_chosen_for() -> None:
    semantic, instance = build_labellers("pair:a,b", "regions", CONTEXT)
    assert instance.granularities == {"instance"}
    (result,) = semantic.label([INPUT], 2)
    assert (set(result.maps), result.objects, result.metadata) == ({"semantic"}, (), {"confidence": 1.0})
    assert semantic.classes == Pair.classes
    (restricted,) = build_labellers(None, "pair:a,b", CONTEXT)
    (result,) = restricted.label([INPUT], 2)
    assert (set(result.maps), len(result.objects), restricted.classes) == ({"instance"}, 1, ())
    assert restricted.describe() == {"labeller": "pair"}


@pytest.mark.usefixtures("outside")
def test_a_class_of_another_package_is_built_from_its_options() -> None:
    options = {"colour": "blue", "settings": {"scale": 2}}
    spec = parse_labeller("outside.maps:Outside", options, option="semantics")
    labeller: Any = spec.build(CONTEXT)
    assert (labeller.colour, labeller.settings.scale) == ("blue", 2.0)


INVALID: list[tuple[str, dict[str, Any], str]] = [
    ("regoins", {}, "no labeller named 'regoins'. Did you mean 'regions'? Known: "),
    ("sam4:/weights", {}, "no labeller named 'sam4'."),
    ("regions:a", {}, "expected no paths, got 1. Write --instances regions"),
    ("regions", {"scal": 3}, "scal: no such setting. Did you mean 'scale'?"),
    ("regions", {"scale": 0, "sigma": -1}, "2 problems\n  scale: "),
    ("pair:a", {}, "needs segmenter. Write --instances pair:DETECTOR,SEGMENTER"),
    ("pair", {}, "needs detector and segmenter. Write --instances pair:DETECTOR,SEGMENTER"),
    ("pair:a,b,c", {}, "expected 2 paths, got 3. Write --instances pair:DETECTOR,SEGMENTER"),
    (
        "outside.maps:Incomplete",
        {},
        "is not a labeller, since it lacks batch_key, classes, describe, maps_know_labels, label as a method. Add what"
        " c2fmae.labelling.protocol.Labeller describes",
    ),
    (
        "outside.maps:Depth",
        {},
        "granularities is frozenset({'depth'}) (expected a frozenset of",
    ),
    ("outside.maps:Outsid", {}, "the module 'outside.maps' has no class 'Outsid'. Did you mean 'Outside'?"),
    ("outside.maps:number", {}, "the module 'outside.maps' has no class 'number'."),
    (
        "outside.maps:Outside",
        {"color": 1, "size": 2},
        "color: no such option. Did you mean 'colour'?; size: no such option. Options: colour, settings",
    ),
    ("outside.maps:Outside", {"settings": {"scal": 1}}, "scal: no such setting. Did you mean 'scale'"),
    ("outside.broken:X", {}, "the module 'outside.broken' cannot be imported: No module named 'no_such_module'."),
]


@pytest.mark.usefixtures("pair", "outside")
@pytest.mark.parametrize(("text", "options", "message"), INVALID)
def test_invalid_choices_are_explained(text: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        build_labellers(None, text, CONTEXT, instances_options=options)
    assert message in str(caught.value)
    assert str(caught.value).lstrip("-").startswith("instances")


def test_a_labeller_without_the_map_is_rejected() -> None:
    with pytest.raises(UserError, match="--semantics regions: makes instance maps only .expected semantic maps."):
        build_labellers("regions", "regions", CONTEXT)
    for semantics, instances, message in (
        (None, "clusters:no-backbone,no-file", "--instances clusters: makes semantic maps only .expected instance"),
        ("cuts:no-backbone", None, "--semantics cuts: makes instance maps only .expected semantic"),
    ):  # before anything is loaded
        with pytest.raises(UserError, match=message):
            build_labellers(semantics, instances, CONTEXT)
    with pytest.raises(UserError, match="no labeller is chosen. Add --instances"):
        build_labellers(None, None, CONTEXT)


def test_true_maps_are_found_by_key_and_subsampled() -> None:
    options = {"source": {"name": "generated", "options": {"size": 40, "length": 3}}}
    (labeller,) = build_labellers("truth", "truth", CONTEXT, semantics_options=options, instances_options=options)
    scene = GeneratedScenes(size=40, length=3)[2]
    (result,) = labeller.label([LabelInput(scene.key, scene.maps["rgb"])], 1)
    assert result.maps["semantic"].equal(scene.maps["semantic"])
    assert labeller.maps_know_labels is True
    assert labeller.classes == GeneratedScenes().info.classes
    with pytest.raises(UserError, match="generated: has no maps of the image '00000003'. Add them, or list"):
        labeller.label([LabelInput("00000003", scene.maps["rgb"])], 1)
    with pytest.raises(UserError, match="map of '00000002' has 40×40 cells .expected 39×40 at label_stride 1"):
        labeller.label([LabelInput(scene.key, scene.maps["rgb"][:, :, 1:])], 1)
