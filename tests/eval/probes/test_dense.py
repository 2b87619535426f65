from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from c2fmae.core.errors import UserError
from c2fmae.core.granularity import IGNORE
from c2fmae.core.scene import Scene
from c2fmae.eval.evaluation import EVALUATIONS, ModelUnderTest
from c2fmae.eval.metrics import Metric
from c2fmae.eval.probes import dense, extraction
from c2fmae.eval.probes.config import DenseProbeEvaluation
from c2fmae.eval.probes.dense import choose_patch_classifier, count_cell_classes, predict_cells, read_training_patches
from c2fmae.eval.probes.linear_heads import ChosenHead, LinearHeadSetting, LinearProbe, choose_linear_head
from c2fmae.eval.probes.train_test import extract_sets
from tests.eval.tiny_backbones import (
    draw_coloured_scenes,
    make_tiny_model_under_test,
    tiny_backbone,
    write_dataset_json,
    write_scenes,
)

pytestmark = pytest.mark.numeric

SETTINGS = {"workers": 0, "epochs": 20}
NAMES = ("sky", "ground", "mud")


def halves(count: int, *, seed: int, noise: int = 60) -> list[Scene]:
    """Photos of two colours side by side, with a map that says which; a strip is not labelled."""
    ones, others = (
        draw_coloured_scenes(count, seed=seed, noise=noise),
        draw_coloured_scenes(count, seed=seed + 50, noise=noise),
    )
    scenes = []
    for index, one in enumerate(ones):
        other = others[(index + 1) % count]
        maps = {name: torch.cat([one.maps[name][..., :8], other.maps[name][..., 8:]], dim=-1) for name in one.maps}
        maps["semantic"][0] = IGNORE
        scenes.append(Scene(one.key, maps))
    return scenes


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("sets")
    places = {"train": halves(24, seed=0), "test": halves(12, seed=1)}
    return {part: write_dataset_json(write_scenes(root / part, scenes), NAMES) for part, scenes in places.items()}


def found(config: DenseProbeEvaluation, who: ModelUnderTest) -> dict[str, Metric]:
    return {metric.label: metric for metric in config.run(who)}


def test_it_is_registered() -> None:
    assert EVALUATIONS.get("dense") is DenseProbeEvaluation


def test_what_can_be_seen_is_found(sets: dict[str, str], tmp_path: Path) -> None:
    metrics = found(DenseProbeEvaluation(**sets, **SETTINGS), make_tiny_model_under_test(tiny_backbone(), tmp_path))
    assert metrics["mIoU"].value > 80
    assert metrics["mIoU"].count == 12
    assert metrics["mIoU"].interval is not None
    assert metrics["mIoU"].interval[0] < metrics["mIoU"].value < metrics["mIoU"].interval[1]
    classes = [metrics[f"IoU, {name}"].value for name in NAMES]
    assert metrics["mIoU"].value == pytest.approx(sum(classes) / 3)
    assert metrics["mIoU"].notes[0].startswith("layer 3, learning rate ")


def test_maps_that_mean_nothing_are_found_by_chance(sets: dict[str, str], tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    test = [
        Scene(s.key, {"rgb": s.maps["rgb"], "semantic": torch.randint(3, (16, 16), generator=generator).byte()})
        for s in halves(40, seed=3)
    ]
    config = DenseProbeEvaluation(
        train=sets["train"], test=write_dataset_json(write_scenes(tmp_path / "t", test), NAMES), **SETTINGS
    )
    metrics = found(config, make_tiny_model_under_test(tiny_backbone(), tmp_path))
    assert abs(metrics["accuracy over cells"].value - 100 / 3) < 6


def test_layers_compete_and_the_one_that_is_chosen_is_tried(
    sets: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    who = make_tiny_model_under_test(tiny_backbone(), tmp_path)
    alone = found(DenseProbeEvaluation(**sets, **SETTINGS, layers=(2,)), who)

    def choose(features: object, targets: object, settings: list[LinearHeadSetting], **given: object) -> ChosenHead:
        only = [setting for setting in settings if setting.column == "layer 2"]
        assert len(only) < len(settings)
        return choose_linear_head(features, targets, only, **given)  # type: ignore[arg-type]

    monkeypatch.setattr(dense, "choose_linear_head", choose)
    assert found(DenseProbeEvaluation(**sets, **SETTINGS, layers=(1, 2)), who) == alone
    assert alone["mIoU"].notes[0].startswith("layer 2,")


def test_patches_are_no_more_than_asked_and_no_photo_is_on_both_sides(
    sets: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extraction, "MAX_SCENES_PER_CHUNK", 8)
    asked: list[dict[str, torch.Tensor]] = []

    def choose(features: object, targets: object, settings: object, **given: torch.Tensor) -> ChosenHead:
        asked.append(given)
        return choose_linear_head(features, targets, settings, **given)  # type: ignore[arg-type]

    monkeypatch.setattr(dense, "choose_linear_head", choose)
    config, who = (
        DenseProbeEvaluation(**sets, **SETTINGS, max_patches=40),
        make_tiny_model_under_test(tiny_backbone(), tmp_path),
    )
    pair = extract_sets(config, who)
    features, counts, photos = read_training_patches(config, pair.train, who.backbone, 3)
    assert len(photos) == len(counts) == len(features["layer 3"]) == 40
    assert photos.max() >= 16  # of the last chunk
    whole = pair.train.read_tensor("patches 3")
    for row in range(40):  # each is a patch of the photo that it is said to be of
        assert (whole[photos[row]] == features["layer 3"][row]).all(dim=1).any()
    choose_patch_classifier(config, pair, who.backbone, 3)
    assert not set(photos[asked[0]["rows"]].tolist()) & set(photos[asked[0]["validation_rows"]].tolist())


def test_sets_of_other_classes_are_refused(sets: dict[str, str], tmp_path: Path) -> None:
    other = write_dataset_json(write_scenes(tmp_path / "t", halves(6, seed=4)), ("sky", "sea", "mud"))
    config = DenseProbeEvaluation(train=sets["train"], test=other, **SETTINGS)
    with pytest.raises(UserError, match=r"has other classes than .*/train: 3 and 3, and they differ in 'sea'"):
        found(config, make_tiny_model_under_test(tiny_backbone(), tmp_path))


def test_scenes_without_maps_are_refused(tmp_path: Path) -> None:
    train, test = (
        write_scenes(tmp_path / name, [Scene(s.key, {"rgb": s.maps["rgb"]}) for s in halves(4, seed=n)])
        for n, name in enumerate("ab")
    )
    with pytest.raises(UserError, match=r"^train: .*semantic"):
        found(
            DenseProbeEvaluation(train=train, test=test, **SETTINGS),
            make_tiny_model_under_test(tiny_backbone(), tmp_path),
        )


def test_cells_of_a_patch_are_counted_by_class() -> None:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, (2, 6, 9), generator=generator)
    ids[torch.rand(ids.shape, generator=generator) < 0.2] = IGNORE
    found = count_cell_classes(ids, 3, 5)
    for photo, row, column in ((0, 0, 0), (1, 1, 2), (0, 1, 1)):
        cells = ids[photo, 3 * row : 3 * row + 3, 3 * column : 3 * column + 3].flatten()
        assert found[photo, row * 3 + column].tolist() == [(cells == each).sum().item() for each in range(5)]


def test_scores_are_brought_to_cells_before_the_best_is_taken() -> None:
    generator = torch.Generator().manual_seed(2)
    probe = LinearProbe(torch.zeros(4), torch.ones(4), torch.randn(3, 4, generator=generator), torch.zeros(3), 0.0)
    patches = torch.randn(2, 6, 4, generator=generator)  # 2 rows, 3 columns
    scores = torch.einsum("bpd,cd->bcp", patches, probe.weight).view(2, 3, 2, 3)
    expected = F.interpolate(scores, size=(8, 12), mode="bilinear").argmax(dim=1)
    assert torch.equal(predict_cells(probe, patches, (8, 12)), expected)


def test_classes_without_names_are_refused(tmp_path: Path) -> None:
    train, test = (write_scenes(tmp_path / name, draw_coloured_scenes(6, seed=seed)) for seed, name in enumerate("ab"))
    with pytest.raises(UserError, match=r"^train: .*/a does not name its classes. Add a dataset.json that does$"):
        found(
            DenseProbeEvaluation(train=train, test=test, **SETTINGS),
            make_tiny_model_under_test(tiny_backbone(), tmp_path),
        )
