"""Settings shared by all probes: fractions of the labels, checks of the two sets, identities of results."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from c2fmae.config.data import DatasetConfig
from c2fmae.core.errors import UserError
from c2fmae.core.objects import Objects
from c2fmae.core.scene import Scene
from c2fmae.data.digest import compute_scenes_digest
from c2fmae.eval.datasets import draw_stratified_rows
from c2fmae.eval.intervals import wilson_interval
from c2fmae.eval.probes import linear
from c2fmae.eval.probes.config import AttentiveProbeEvaluation, KnnEvaluation, LinearProbeEvaluation, SweepConfig
from c2fmae.eval.probes.linear_heads import ChosenHead, LinearHeadSetting, choose_linear_head
from c2fmae.eval.probes.train_test import draw_label_subsets, extract_labelled_sets, make_accuracy_metrics, open_sets
from tests.eval.tiny_backbones import (
    InMemoryScenes,
    draw_coloured_scenes,
    make_tiny_model_under_test,
    tiny_backbone,
    write_scenes,
)

pytestmark = pytest.mark.numeric


def write_sets(root: Path) -> dict[str, str]:
    sizes = {"train": 30, "test": 6}
    return {split: write_scenes(root / split, draw_coloured_scenes(n, seed=n)) for split, n in sizes.items()}


def test_each_seed_draws_other_labels_and_all_labels_are_drawn_once() -> None:
    labels = torch.arange(40) % 2
    drawn = dict(draw_label_subsets(KnnEvaluation(fractions=(0.5, 1.0), seeds=3), labels))
    assert len({tuple(rows.tolist()) for rows in drawn[0.5]}) == 3
    assert [rows.tolist() for rows in drawn[1.0]] == [list(range(40))]


def test_fractions_of_the_labels_are_rounded_up_exactly() -> None:
    for fraction, count, expected in ((0.15, 100, 15), (0.07, 100, 7), (0.01, 1300, 13), (0.01, 101, 2), (0.5, 3, 2)):
        assert len(draw_stratified_rows(torch.zeros(count, dtype=torch.int64), fraction, seed=0)) == expected


def test_several_draws_have_a_mean_and_a_standard_deviation() -> None:
    mean, deviation = make_accuracy_metrics("top1", [0.01, 0.02, 0.06], 10, {"k": 3})
    assert mean.value == pytest.approx(3)
    assert (mean.count, mean.interval) == (10, None)
    assert deviation.value == pytest.approx(7**0.5)
    assert deviation.count == 3
    assert [metric.identity for metric in (mean, deviation)] == [("top1", (("k", 3),)), ("top1_std", (("k", 3),))]
    (single,) = make_accuracy_metrics("top1", [0.5], 100, {}, ("so",))
    assert (single.value, single.notes) == (50, ("so",))
    assert single.interval == wilson_interval(0.5, 100, scale=100)


def test_training_and_test_sets_have_separate_options(tmp_path: Path) -> None:
    train, test = (DatasetConfig(name="generated", options={"size": 32, "length": length}) for length in (3, 2))
    config = KnnEvaluation(train=train, test=test)
    sets = open_sets(config, make_tiny_model_under_test(tiny_backbone(), tmp_path))
    assert [len(opened.scenes) for opened in sets] == [3, 2]


def test_sweeps_have_at_least_3000_steps_and_10_epochs() -> None:
    assert SweepConfig().resolve_epochs(256) == 3000
    assert SweepConfig().resolve_epochs(1_000_000) == 10
    assert SweepConfig(epochs=3).resolve_epochs(256) == 3


def test_sets_with_different_label_names_are_rejected_before_features_are_computed(tmp_path: Path) -> None:
    train, test = (
        draw_coloured_scenes(12, labels=3),
        [scene for scene in draw_coloured_scenes(12, labels=3, seed=1) if scene.label != 0],
    )
    config = KnnEvaluation(
        train=write_scenes(tmp_path / "train", train), test=write_scenes(tmp_path / "test", test), workers=0
    )
    with pytest.raises(UserError) as caught:
        list(config.run(make_tiny_model_under_test(tiny_backbone(), tmp_path)))
    assert str(caught.value) == (
        f"test: {tmp_path}/test has other labels than {tmp_path}/train: 2 and 3, and they differ in 'class-0'. "
        "Give both the same names in their dataset.json"
    )
    assert not (tmp_path / "features").exists()


def test_a_scene_without_a_label_is_rejected(tmp_path: Path) -> None:
    sets = write_sets(tmp_path)
    Path(tmp_path, "train", "rgb", "alone.png").write_bytes(next(Path(sets["train"]).rglob("*.png")).read_bytes())
    with pytest.raises(UserError, match=r"^train: "):
        list(KnnEvaluation(**sets, workers=0).run(make_tiny_model_under_test(tiny_backbone(), tmp_path)))


def test_input_digests_depend_on_both_sets(tmp_path: Path) -> None:
    sets, model = write_sets(tmp_path), make_tiny_model_under_test(tiny_backbone(), tmp_path)
    other = write_scenes(tmp_path / "other", draw_coloured_scenes(6, seed=9))
    one, two = (KnnEvaluation(train=sets["train"], test=test).identify_inputs(model) for test in (sets["test"], other))
    assert one["train"] == two["train"]
    assert one["test"] != two["test"]
    assert all(one.values())


def test_input_digests_state_positions_of_other_image_sizes(tmp_path: Path) -> None:
    sets, model = write_sets(tmp_path), make_tiny_model_under_test(tiny_backbone(), tmp_path)
    own, larger = (KnnEvaluation(**sets, image_size=size).identify_inputs(model) for size in ((16, 16), (32, 16)))
    assert own == KnnEvaluation(**sets).identify_inputs(model)  # as in earlier versions, so that results stay valid
    assert larger == own | {"positions": "stretched"}


def test_digests_of_sets_depend_on_name_keys_images_labels_maps_and_objects() -> None:
    scenes = draw_coloured_scenes(3)
    renamed = InMemoryScenes(scenes)
    renamed.keys = ["a", "b", "c"]
    relabelled = [Scene(s.key, s.maps, 2) for s in scenes]
    mapped = [Scene(s.key, {**s.maps, "semantic": s.maps["semantic"] + 1}, s.label) for s in scenes]
    brighter = [Scene(s.key, {**s.maps, "rgb": s.maps["rgb"] | 1}, s.label) for s in scenes]
    boxes = Objects(
        *(torch.ones(1, 4), torch.tensor([0]), torch.tensor([False]), torch.ones(1), torch.tensor([5])), (b"04",)
    )
    annotated, masked = (
        [replace(s, objects=replace(boxes, masks=masks)) for s in scenes] for masks in (boxes.masks, (b"13",))
    )
    variants = (renamed, *map(InMemoryScenes, (relabelled, mapped, brighter, annotated, masked)))
    digests = {compute_scenes_digest(InMemoryScenes(scenes), name) for name in ("here", "there")}
    digests |= {compute_scenes_digest(variant, "here") for variant in variants}
    assert len(digests) == 8


def test_the_image_size_of_the_config_overrides_the_backbones() -> None:
    view = KnnEvaluation(image_size=(32, 24), crop=0.5).make_view(tiny_backbone())
    assert (view.size, view.crop) == ((32, 24), 0.5)


def test_settings_without_effect_are_rejected() -> None:
    for settings in ({"lrs": (0.1,)}, {"epochs": 3}, {"layers": (1, 2)}, {"pools": ("cls", "mean")}):
        with pytest.raises(UserError, match="MAE's protocol"):
            LinearProbeEvaluation.from_dict({"variant": "mae", **settings})
    for pooled in ({"pools": ("cls",)}, {"layers": (1, 2)}):
        with pytest.raises(UserError, match="attentive probes pool the patches of one layer themselves"):
            AttentiveProbeEvaluation.from_dict(pooled)


def test_the_protocol_describes_the_sets(tmp_path: Path) -> None:
    generated = DatasetConfig(name="generated", options={"length": 4, "size": 32})
    config = KnnEvaluation(train=generated, test=generated, fractions=(0.5,), seeds=2)
    protocol = config.describe_protocol(make_tiny_model_under_test(tiny_backbone(), tmp_path))
    assert "Fitted to generated, size 32, length 4, seed 1001 (4), tested on generated, size 32, length 4" in protocol
    assert "Fractions of the labels are of each class, rounded up, drawn with 2 seeds." in protocol


def test_settings_are_chosen_on_separate_validation_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, object]] = []

    def choose(features: object, targets: object, settings: list[LinearHeadSetting], **options: object) -> ChosenHead:
        calls.append(options)
        return choose_linear_head(features, targets, settings, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(linear, "choose_linear_head", choose)
    config = LinearProbeEvaluation(
        **write_sets(tmp_path),
        workers=0,
        lrs=(0.1,),
        weight_decays=(0.0,),
        fractions=(0.5,),
        epochs=2,
        head_batch_size=2000,
    )
    model = make_tiny_model_under_test(tiny_backbone(), tmp_path)
    list(config.run(model))
    ((_, (drawn,)),) = draw_label_subsets(config, extract_labelled_sets(config, model).train.labels)
    training, validation = (set(calls[0][name].tolist()) for name in ("rows", "validation_rows"))  # type: ignore[attr-defined]
    assert not training & validation
    assert training | validation == set(drawn.tolist())
    assert len(validation) == 3
