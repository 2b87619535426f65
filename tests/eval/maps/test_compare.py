"""Two sets of maps: scores of their common images, with classes by name and maps of any size, on a page."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.labels import ClassInfo
from c2fmae.core.scene import Scene
from c2fmae.data.combine import SubsetScenes
from c2fmae.data.generated import GeneratedScenes
from c2fmae.data.geometry import subsample_ids
from c2fmae.data.scenes import Scenes, WrappedScenes
from c2fmae.eval.maps.boundaries import find_boundary
from c2fmae.eval.maps.compare import FULL_IMAGE, MAPS, MIDDLE_BOX, REGIONS, MapComparison, compare_maps
from c2fmae.eval.maps.page import check_page_path, describe_comparison, write_comparison
from c2fmae.eval.maps.pairs import match_classes, pair_scenes, sample_ids
from c2fmae.eval.metrics import Metric

TRUTH = GeneratedScenes(size=50, length=5, difficulty="easy")
NUM_CLASSES = len(TRUTH.info.classes)
OBJECTS = {"region_kind": "objects"}


class _Stored(WrappedScenes):
    """Scenes whose id maps are stored at a stride."""

    def __init__(self, source: Scenes, stride: int) -> None:
        super().__init__(source)
        self.info = source.info.model_copy(update={"label_stride": stride})

    def __getitem__(self, index: int) -> Scene:
        scene, stride = self.source[index], self.info.label_stride
        maps = {name: ids if name == "rgb" else subsample_ids(ids, stride) for name, ids in scene.maps.items()}
        return replace(scene, maps=maps, label_stride=stride)


class _Renumbered(WrappedScenes):
    """Scenes whose classes have other ids, in another order, and other names."""

    def __init__(self, source: Scenes, prefix: str = "", *, num_renamed: int = NUM_CLASSES) -> None:
        super().__init__(source)
        entries = [
            entry.model_copy(update={"name": f"{prefix}{entry.name}" if number < num_renamed else entry.name.upper()})
            for number, entry in enumerate(source.info.classes)
        ]
        self.info = source.info.model_copy(update={"classes": tuple(entries[::-1])})

    def __getitem__(self, index: int) -> Scene:
        scene = self.source[index]
        semantic = (NUM_CLASSES - 1 - scene.maps["semantic"].long()).to(torch.uint8)
        return replace(scene, maps={**scene.maps, "semantic": semantic})


def _compare(maps: Scenes, truth: Scenes = TRUTH) -> dict[str, dict[str, float]]:
    return _values(compare_maps(pair_scenes(maps, truth)).compute_metrics())


def _values(metrics: Mapping[str, tuple[Metric, ...]]) -> dict[str, dict[str, float]]:
    return {
        row: {":".join(map(str, [*metric.tags.values(), metric.key])): metric.value for metric in values}
        for row, values in metrics.items()
    }


def _is_perfect(values: Mapping[str, float]) -> bool:
    return all(value == 100 for key, value in values.items() if not key.endswith("per_image"))


def test_the_truth_is_perfect_and_baselines_are_not() -> None:
    rows = _compare(TRUTH)
    assert _is_perfect(rows[MAPS])
    assert {"mean_iou", "classes:panoptic_quality", "things:boundary_f", "objects:covering"} <= rows[MAPS].keys()
    assert [*rows] == [MAPS, FULL_IMAGE, MIDDLE_BOX, REGIONS]
    for row in (FULL_IMAGE, MIDDLE_BOX):
        assert rows[row]["objects:average_best_overlap"] < 60
        assert rows[row]["objects:predicted_objects_per_image"] == 1
    overlaps = [rows[row]["objects:average_best_overlap"] for row in (FULL_IMAGE, REGIONS, MAPS)]
    assert overlaps == sorted(overlaps)


def test_classes_are_matched_by_name() -> None:
    assert _is_perfect(_compare(_Renumbered(TRUTH))[MAPS])


class _Changed(WrappedScenes):
    """Scenes with changed instance maps."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__(TRUTH)
        self.change = change

    def __getitem__(self, index: int) -> Scene:
        scene = self.source[index]
        return replace(scene, maps={**scene.maps, "instance": self.change(scene.maps["instance"])})


def _permute_ids(ids: Tensor) -> Tensor:
    return ids.where(ids == 0, 200 - ids)


def _shift(ids: Tensor) -> Tensor:
    return ids.roll(1, dims=1)


def _erode(ids: Tensor) -> Tensor:
    eroded = ids.flatten().clone()
    eroded[torch.from_numpy(find_boundary(ids))] = 0
    return eroded.view_as(ids)


def _merge(ids: Tensor) -> Tensor:
    return ids.clamp(max=1)


def _split(ids: Tensor) -> Tensor:
    left = torch.arange(ids.shape[1]) % 10 < 5
    return ids.where(left | (ids == 0), ids + 100)


def test_numbers_of_objects_have_no_meaning() -> None:
    assert _compare(_Changed(_permute_ids)) == _compare(TRUTH)


def test_scores_fall_with_each_kind_of_error() -> None:
    perfect = _compare(TRUTH)[MAPS]
    changed = {change.__name__: _compare(_Changed(change))[MAPS] for change in (_shift, _erode, _merge, _split)}
    for values in changed.values():
        for key in ("average_best_overlap", "covering", "panoptic_quality"):
            assert values[f"objects:{key}"] < 100
    assert changed["_shift"]["objects:boundary_f"] > 97  # objects at the borders leave the image
    assert changed["_merge"]["objects:boundary_recall"] < 100 == changed["_merge"]["objects:boundary_precision"]
    assert changed["_split"]["objects:boundary_precision"] < 100 == changed["_split"]["objects:boundary_recall"]
    name = "objects:predicted_objects_per_image"
    assert changed["_merge"][name] < perfect[name] < changed["_split"][name]


def test_a_class_without_a_true_one_is_an_error_at_all_of_its_pixels() -> None:
    comparison = compare_maps(pair_scenes(_Renumbered(TRUTH, "other ", num_renamed=2), TRUTH))
    names = TRUTH.info.class_names
    assert comparison.unmatched == (f"other {names[1]}", f"other {names[0]}")
    semantic = torch.stack([TRUTH[index].maps["semantic"] for index in range(len(TRUTH))])
    accuracy = _values(comparison.compute_metrics())[MAPS]["pixel_accuracy"]
    assert accuracy == pytest.approx(100 * (semantic >= 2).double().mean().item())


def test_clusters_without_names_are_assigned_to_classes() -> None:
    rows = _compare(_Renumbered(TRUTH, "cluster "))
    for way in ("one to one", "by majority"):
        assert rows[MAPS][f"{way}:mean_iou"] == rows[MAPS][f"{way}:pixel_accuracy"] == 100
    assert "mean_iou" not in rows[MAPS]
    assert "classes:panoptic_quality" not in rows[MAPS]
    assert _is_perfect({key: value for key, value in rows[MAPS].items() if "objects:" in key})


def test_maps_of_different_strides_have_the_cells_of_the_truth() -> None:
    assert _is_perfect(_compare(_Stored(TRUTH, 4), _Stored(TRUTH, 4))[MAPS])
    assert _is_perfect(_compare(TRUTH, _Stored(TRUTH, 4))[MAPS])
    coarse = _compare(_Stored(TRUTH, 4))
    assert 50 < coarse[MAPS]["mean_iou"] < 100
    maps, truth = (
        SubsetScenes(scenes, granularities=("semantic", "instance")) for scenes in (_Stored(TRUTH, 4), TRUTH)
    )
    assert _compare(maps) == _compare(_Stored(TRUTH, 4), truth) == coarse  # the image of either set is enough


@pytest.mark.parametrize(("stride", "target_stride"), [(1, 1), (1, 3), (4, 1), (3, 2), (2, 4)])
def test_a_cell_gets_the_id_at_its_pixel(stride: int, target_stride: int) -> None:
    height, width = 11, 14
    ids = torch.arange(-(-height // stride) * -(-width // stride)).view(-(-height // stride), -1)
    full = ids.repeat_interleave(stride, dim=0).repeat_interleave(stride, dim=1)[:height, :width]
    sampled = sample_ids(ids, (height, width), stride, (height, width), target_stride)
    assert torch.equal(sampled, subsample_ids(full, target_stride))


def test_maps_of_a_smaller_image_cover_the_same_image() -> None:
    ids = torch.tensor([[1, 2], [3, 4]])
    assert sample_ids(ids, (2, 2), 1, (4, 6), 1).tolist() == [[1, 1, 1, 2, 2, 2]] * 2 + [[3, 3, 3, 4, 4, 4]] * 2


def test_images_of_one_set_are_counted_and_left_out() -> None:
    maps, truth = (SubsetScenes(TRUTH, np.array(rows)) for rows in ([0, 1, 4], [1, 2, 3, 4]))
    pairs = pair_scenes(maps, truth)
    assert list(pairs.keys) == [TRUTH.keys[1], TRUTH.keys[4]]
    assert (pairs.num_only_maps, pairs.num_only_truth) == (1, 2)
    assert describe_comparison(pairs, MapComparison(2)) == [
        "2 images of the truth without maps left out",
        "1 image of the maps without truth left out",
    ]
    assert len(pair_scenes(TRUTH, TRUTH, limit=3)) == 3


class _Turned(WrappedScenes):
    def __getitem__(self, index: int) -> Scene:
        scene = self.source[index]
        return replace(scene, maps={name: ids[..., :25] for name, ids in scene.maps.items()})


def test_sets_that_cannot_be_compared_are_refused() -> None:
    first, second = (SubsetScenes(TRUTH, np.array([row])) for row in (0, 1))
    with pytest.raises(UserError, match=r"no image in common: a key of the maps is '00000000', one of the truth is"):
        pair_scenes(first, second)
    semantic, instance = (SubsetScenes(TRUTH, granularities=("rgb", name)) for name in ("semantic", "instance"))
    with pytest.raises(UserError, match=r"no map in common \(got semantic and instance\)"):
        pair_scenes(semantic, instance)
    with pytest.raises(UserError, match=r"00000000: the maps are of 25×50 pixels, the truth of 50×50"):
        pair_scenes(_Turned(TRUTH), TRUTH)[0]


@pytest.mark.parametrize("name", ["semantic", "instance"])
def test_sets_may_have_one_map_and_no_images(name: str) -> None:
    rows = _compare(SubsetScenes(TRUTH, granularities=(name,)), SubsetScenes(TRUTH, granularities=(name,)))
    assert _is_perfect(rows[MAPS])
    assert [*rows] == ([MAPS] if name == "semantic" else [MAPS, FULL_IMAGE, MIDDLE_BOX])


@pytest.mark.unchecked
def test_scores_do_not_depend_on_the_number_of_processes() -> None:
    truth = GeneratedScenes(size=32, length=40, difficulty="easy")
    pairs = pair_scenes(_Stored(truth, 4), truth)
    one, two = (compare_maps(pairs, workers=workers) for workers in (1, 2))
    for row, totals in one.object_totals.items():
        assert torch.equal(totals, two.object_totals[row])
    assert one.compute_metrics() == two.compute_metrics()


def test_equal_names_differ_in_case_and_separators_only() -> None:
    predicted, truth = (
        [ClassInfo(name=name) for name in names] for names in (["Traffic_Light", "a"], ["traffic-light"])
    )
    classes, unmatched = match_classes(predicted, truth)
    assert (classes.tolist(), unmatched) == ([0, -1], ["a"])


def test_the_page_and_its_json_have_all_scores(tmp_path: Path) -> None:
    pairs = pair_scenes(_Stored(TRUTH, 4), TRUTH)
    comparison = compare_maps(pairs)
    metrics = comparison.compute_metrics()
    json_path = write_comparison(tmp_path / "out.html", pairs, comparison, metrics, maps="<maps>", truth="truth")
    stored = json.loads(json_path.read_text())
    assert json_path == tmp_path / "out.json"
    assert stored["num_images"] == 5
    assert {row: tuple(map(Metric.from_json, values)) for row, values in stored["metrics"].items()} == metrics
    page = (tmp_path / "out.html").read_text()
    assert "Scores of &lt;maps&gt; relative to truth" in page
    assert page.count("<img ") == 2  # two contact sheets
    for text in ("full image", "objects: average best overlap", "classes: PQ", "IoU of classes, %"):
        assert text in page


def test_images_are_ordered_by_their_objects_or_classes() -> None:
    totals = torch.zeros(2, 16, dtype=torch.float64)
    totals[:, 1], totals[:, 3] = torch.tensor([2, 4]), torch.tensor([1, 3])  # true objects, sum of best IoUs
    assert MapComparison(2, object_totals={MAPS: totals}).image_scores().tolist() == [0.5, 0.75]
    classes: Tensor = torch.tensor([[[1, 0], [2, 0], [1, 0]], [[0, 0], [0, 0], [0, 0]]])
    assert MapComparison(2, class_totals={"by name": classes}).image_scores().nan_to_num(-1).tolist() == [0.5, -1]


def test_a_page_needs_the_name_of_a_page(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'a.png': not the name of a page. Use a name that ends in .html"):
        check_page_path(Path("a.png"))
    (tmp_path / "b.html").mkdir()
    with pytest.raises(UserError, match="exists and is not a file"):
        check_page_path(tmp_path / "b.html")
