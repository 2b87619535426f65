"""The laws of `c2fmae.labelling.protocol`, for every registered labeller at strides 1 and 4.

A new labeller needs one line in `CASES`, and fixtures that make its tiny models.
"""

import json
import random
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from c2fmae.core.scene import Scene
from c2fmae.data.generated import GeneratedScenes
from c2fmae.data.geometry import subsample_ids
from c2fmae.labelling.builtin import LABELLERS
from c2fmae.labelling.clusters import ClusterConfig
from c2fmae.labelling.context import LabellerContext
from c2fmae.labelling.fit_clusters import fit_clusters
from c2fmae.labelling.protocol import LabelInput, Labeller, LabelResult
from c2fmae.labelling.registry import parse_labeller
from tests.eval.classification.tiny_finetuning import write_pretrained_checkpoint
from tests.eval.segmentation.tiny_segmenters import tiny_segmenter
from tests.models.detectors.built_detectors import build_detector, write_detection_run
from tests.models.segmenters.noise_segmenters import write_segmentation_run

STRIDES = (1, 4)
SCENES = GeneratedScenes(size=64, length=4, difficulty="easy")


@dataclass(frozen=True)
class LawCase:
    """A labeller to check."""

    name: str
    """The registered name."""
    paths: tuple[str, ...] = ()
    """Session fixtures that return its paths."""
    options: Mapping[str, Any] = field(default_factory=dict)
    max_changed: float = 0.0
    """Fraction of the cells that may change with batch and stride, since two classes are almost equal there."""
    variant: str = ""
    names: str = "things"
    """What detectors search for."""

    @property
    def id(self) -> str:
        """The name in the list of tests."""
        return f"{self.name}-{self.variant}" if self.variant else self.name


# Areas at hand, which differ with the stride, decide about nothing but numbers.
ANY_AREA = {"min_area": 0, "max_pieces": 1000, "mask_overlap": 1, "order": "score", "min_visible": 0}

CASES = [
    LawCase("regions", options={"short_side": 48}),
    LawCase("regions", options={"algorithm": "slic"}, variant="slic"),
    LawCase("regions", options={"algorithm": "watershed"}, variant="watershed"),
    LawCase("maps", paths=("map_dir",)),
    LawCase("truth", paths=("map_dir",)),
    LawCase("grounded", paths=("tiny_owlv2", "tiny_sam_hq"), options={"thresholds": [0.5, 0.0]}, max_changed=0.01),
    LawCase(
        "rf-detr",
        paths=("tiny_rf_detr",),
        options={"space": "coco", "thresholds": [0.0], **ANY_AREA},
        max_changed=0.02,
    ),
    LawCase("sam3", paths=("tiny_sam3",), options={"thresholds": [0.0], **ANY_AREA}, max_changed=0.02, names="labels"),
    *(
        LawCase(
            "universal",
            paths=(f"tiny_{name}",),
            # Areas at hand decide about nothing but numbers.
            options={"min_score": 0.0, "min_visible": 0, "min_area": 0, "max_pieces": 10_000},
            max_changed=0.02,
            variant=name,
        )
        for name in ("mask2former", "oneformer", "eomt")
    ),
    LawCase("trained", paths=("segmentation_run",), variant="segmenter"),
    LawCase(
        "trained",
        paths=("detection_run",),
        options={
            "min_score": 0.0,
            "testing": {"short_side": 48, "max_side": 64, "max_detections": 20},
            "rules": ANY_AREA,
        },
        variant="detector",
    ),
    LawCase("cuts", paths=("checkpoint",), options={"grid_size": 8, "rules": ANY_AREA}),
    LawCase(
        "cuts",
        paths=("checkpoint",),
        options={"grid_size": 8, "snap": True, "regions": {"short_side": 48}, "rules": ANY_AREA},
        variant="snapped",
    ),
    LawCase("clusters", paths=("checkpoint", "cluster_file"), options={"grid_size": 8}),
]


def _crop(scene: Scene, key: str, height: int, width: int) -> Scene:
    """Return the upper left corner of a scene, repeated if it is too small."""
    maps = {
        name: torch.cat([ids] * (-(-width // ids.shape[-1])), dim=-1)[..., :height, :width].contiguous()
        for name, ids in scene.maps.items()
    }
    return replace(scene, key=key, maps=maps)


@pytest.fixture(scope="session")
def law_scenes() -> list[Scene]:
    """Images of several sizes: two of one size, others with odd sides, a grey one, a long one, and a single pixel."""
    grey = _crop(SCENES[2], "grey", 33, 50)
    grey.maps["rgb"].copy_(grey.maps["rgb"][:1].clone())
    sizes = [("one", 64, 64), ("two", 64, 64), ("odd", 41, 63), ("long", 8, 1000), ("pixel", 1, 1)]
    return [*(_crop(SCENES[row % 4], key, h, w) for row, (key, h, w) in enumerate(sizes)), grey]


@pytest.fixture(scope="session")
def map_dir(law_scenes: list[Scene], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree of the true maps, without images."""
    root = tmp_path_factory.mktemp("maps")
    for scene in law_scenes:
        for name in ("semantic", "instance"):
            (root / name).mkdir(exist_ok=True)
            Image.fromarray(scene.maps[name].numpy()).save(root / name / f"{scene.key}.png")
    info = {"classes": [entry.model_dump() for entry in SCENES.info.classes], "granularities": ["semantic", "instance"]}
    (root / "dataset.json").write_text(json.dumps(info))
    return root


@pytest.fixture(scope="session")
def segmentation_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_segmentation_run(tmp_path_factory.mktemp("segmenter") / "run", tiny_segmenter())


@pytest.fixture(scope="session")
def detection_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_detection_run(tmp_path_factory.mktemp("detector") / "run", build_detector(num_classes=3))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pretrained_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session")
def cluster_file(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clusters") / "clusters.safetensors"
    options = {"backbone": str(checkpoint), "centroids": str(path), "grid_size": 8, "fit": {"num_clusters": 5}}
    fit_clusters(SCENES, ClusterConfig.from_dict(options), LabellerContext(), is_quiet=True)
    return path


@dataclass(frozen=True)
class Labelled:
    """The results of a labeller, alone and in batches, by stride and key."""

    case: LawCase
    labeller: Labeller
    inputs: dict[str, LabelInput]
    alone: dict[int, dict[str, LabelResult]]
    batched: dict[int, dict[str, LabelResult]]


_RESULTS: dict[str, Labelled] = {}


@pytest.fixture(params=CASES, ids=lambda case: case.id)
def labelled(request: pytest.FixtureRequest, law_scenes: list[Scene]) -> Labelled:
    case: LawCase = request.param
    if case.id not in _RESULTS:
        paths = ",".join(str(request.getfixturevalue(name)) for name in case.paths)
        spec = parse_labeller(f"{case.name}:{paths}" if paths else case.name, case.options, option="instances")
        labeller = spec.build(LabellerContext(info=SCENES.info, names=case.names, batch_size=4))
        inputs = {scene.key: LabelInput(scene.key, scene.maps["rgb"], scene.label) for scene in law_scenes}
        alone = {s: {key: labeller.label([each], s)[0] for key, each in inputs.items()} for s in STRIDES}
        batched = {s: label_in_batches(labeller, list(inputs.values()), s) for s in STRIDES}
        _RESULTS[case.id] = Labelled(case, labeller, inputs, alone, batched)
    return _RESULTS[case.id]


def label_in_batches(labeller: Labeller, inputs: Sequence[LabelInput], stride: int) -> dict[str, LabelResult]:
    """Label images in one batch for each batch key."""
    groups: dict[Hashable, list[LabelInput]] = defaultdict(list)
    for each in inputs:
        groups[labeller.batch_key(*each.image.shape[1:])].append(each)
    assert len(groups) < len(inputs)
    return {
        each.key: result
        for group in groups.values()
        for each, result in zip(group, labeller.label(group, stride), strict=True)
    }


def _assert_same_maps(one: LabelResult, other: LabelResult, max_changed: float) -> None:
    for name, ids in one.maps.items():
        assert int((ids != other.maps[name]).sum()) <= max_changed * ids.numel()


def test_every_registered_labeller_is_checked() -> None:
    built_in = {name for name in LABELLERS if LABELLERS.get(name).__module__.startswith("c2fmae.")}
    assert built_in == {case.name for case in CASES}


@pytest.mark.unchecked  # shape checks draw from Python's generator
def test_labelling_is_pure(labelled: Labelled) -> None:
    inputs = [labelled.inputs["one"], labelled.inputs["grey"]]
    copies = [each.image.clone() for each in inputs]
    states = (random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state())  # type: ignore[index]
    for each, copy in zip(inputs, copies, strict=True):
        (again,) = labelled.labeller.label([each], 1)
        first = labelled.alone[1][each.key]
        assert all(again.maps[name].equal(ids) for name, ids in first.maps.items())
        assert (again.objects, again.metadata) == (first.objects, first.metadata)
        assert each.image.equal(copy)
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]  # type: ignore[index]
    assert torch.random.get_rng_state().equal(states[2])


def test_an_image_is_independent_of_its_batch(labelled: Labelled) -> None:
    for stride in STRIDES:
        for key, result in labelled.alone[stride].items():
            _assert_same_maps(result, labelled.batched[stride][key], labelled.case.max_changed)


def test_maps_at_a_stride_are_subsampled(labelled: Labelled) -> None:
    for key, result in labelled.alone[4].items():
        full = labelled.alone[1][key].maps
        limit = labelled.case.max_changed * max(ids.numel() for ids in result.maps.values())
        if "semantic" in result.maps:
            assert int((result.maps["semantic"] != subsample_ids(full["semantic"], 4)).sum()) <= limit
        if "instance" in result.maps:
            assert _count_mismatched(result.maps["instance"], subsample_ids(full["instance"], 4)) <= limit


def _count_mismatched(one: Tensor, other: Tensor) -> int:
    """Return the cells at which two maps, numbered differently, do not show the same of two corresponding objects."""
    pairs = torch.stack([one.reshape(-1).long(), other.reshape(-1).long()], dim=1)
    unique, counts = pairs.unique(dim=0, return_counts=True)
    best: dict[tuple[int, int], int] = {}
    for (a, b), count in zip(unique.tolist(), counts.tolist(), strict=True):
        if 0 in (a, b) and a != b:
            continue  # an object close to a limit of areas may exist at one stride only
        for side in ((0, a), (1, b)):
            best[side] = max(best.get(side, 0), count)
    return sum(
        count
        for (a, b), count in zip(unique.tolist(), counts.tolist(), strict=True)
        if (a == 0) == (b == 0) and (count < best[0, a] or count < best[1, b])
    )


def test_maps_have_the_right_shapes_and_ids(labelled: Labelled) -> None:
    labeller = labelled.labeller
    assert labeller.granularities
    assert bool(labeller.classes) == ("semantic" in labeller.granularities)
    for stride in STRIDES:
        for key, result in labelled.alone[stride].items():
            height, width = labelled.inputs[key].image.shape[1:]
            assert set(result.maps) == labeller.granularities
            assert all(tuple(ids.shape) == (-(-height // stride), -(-width // stride)) for ids in result.maps.values())
            if "semantic" in result.maps:
                assert result.maps["semantic"].dtype == torch.uint8
                ids = set(result.maps["semantic"].unique().tolist())
                assert ids <= {*range(len(labeller.classes)), 255}


def test_objects_describe_what_is_visible(labelled: Labelled) -> None:
    for stride in STRIDES:
        for key, result in labelled.alone[stride].items():
            if "instance" not in result.maps:
                assert result.objects == ()
                continue
            height, width = labelled.inputs[key].image.shape[1:]
            ids, objects = result.maps["instance"].numpy(), result.objects
            assert [each.id for each in objects] == list(range(1, len(objects) + 1))
            assert set(np.unique(ids)) - {0, 255} == {each.id for each in objects}
            firsts = [int(np.flatnonzero(ids == each.id)[0]) for each in objects]
            ranks = [(-each.area, first) for each, first in zip(objects, firsts, strict=True)]
            assert ranks == sorted(ranks)
            for each in objects:
                y, x = np.nonzero(ids == each.id)
                assert each.area == len(y) * stride**2
                x1, y1 = min((x.max() + 1) * stride, width), min((y.max() + 1) * stride, height)
                assert each.box == (x.min() * stride, y.min() * stride, x1, y1)
                assert 0 <= each.score <= 1


def test_only_labellers_that_state_it_make_maps_that_know_labels(labelled: Labelled) -> None:
    each = labelled.inputs["one"]
    (result,) = labelled.labeller.label([replace(each, label=((each.label or 0) + 1) % 3)], 4)
    if labelled.labeller.maps_know_labels is False:
        _assert_same_maps(result, labelled.alone[4]["one"], 0.0)


def test_descriptions_are_json_and_name_the_labeller(labelled: Labelled) -> None:
    description = labelled.labeller.describe()
    assert json.loads(json.dumps(description)) == description
    assert "labeller" in description
