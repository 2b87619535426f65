from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from c2fmae.core.errors import UserError
from c2fmae.core.granularity import IGNORE
from c2fmae.core.scene import Scene
from c2fmae.eval.evaluation import EVALUATIONS
from c2fmae.eval.probes import dense, extraction
from c2fmae.eval.probes.config import DenseProbeEvaluation
from c2fmae.eval.probes.dense import choose_patch_classifier, count_cell_classes, predict_cells, read_training_patches
from c2fmae.eval.probes.linear_heads import ChosenHead, LinearHeadSetting, LinearProbe, choose_linear_head
from c2fmae.eval.probes.train_test import extract_sets
from tests.eval.tiny_backbones import (
    compute_metrics,
    draw_coloured_scenes,
    make_tiny_model_under_test,
    tiny_backbone,
    write_dataset_json,
    write_scenes,
)

pytestmark = pytest.mark.numeric

SETTINGS = {"workers": 0, "epochs": 20}
NAMES = ("sky", "ground", "mud")


def draw_two_coloured_scenes(count: int, *, seed: int, noise: int = 60) -> list[Scene]:
    """Return images with a colour in each half and a semantic map of the colours; one row is unlabelled."""
    lefts, rights = (draw_coloured_scenes(count, seed=part_seed, noise=noise) for part_seed in (seed, seed + 50))
    scenes = []
    for index, left in enumerate(lefts):
        right = rights[(index + 1) % count]
        maps = {name: torch.cat([left.maps[name][..., :8], right.maps[name][..., 8:]], dim=-1) for name in left.maps}
        maps["semantic"][0] = IGNORE
        scenes.append(Scene(left.key, maps))
    return scenes


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("sets")
    splits = {"train": draw_two_coloured_scenes(24, seed=0), "test": draw_two_coloured_scenes(12, seed=1)}
    return {part: write_dataset_json(write_scenes(root / part, scenes), NAMES) for part, scenes in splits.items()}


def test_the_dense_probe_is_registered() -> None:
    assert EVALUATIONS.get("dense") is DenseProbeEvaluation


def test_colours_are_segmented(sets: dict[str, str], tmp_path: Path) -> None:
    metrics = compute_metrics(
        DenseProbeEvaluation(**sets, **SETTINGS), make_tiny_model_under_test(tiny_backbone(), tmp_path)
    )
    assert metrics["mIoU"].value > 80
    assert metrics["mIoU"].count == 12
    assert metrics["mIoU"].interval is not None
    assert metrics["mIoU"].interval[0] < metrics["mIoU"].value < metrics["mIoU"].interval[1]
    classes = [metrics[f"IoU, {name}"].value for name in NAMES]
    assert metrics["mIoU"].value == pytest.approx(sum(classes) / 3)
    assert metrics["mIoU"].notes[0].startswith("layer 3, learning rate ")


def test_accuracy_on_random_maps_is_at_chance_level(sets: dict[str, str], tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    test = [
        Scene(s.key, {"rgb": s.maps["rgb"], "semantic": torch.randint(3, (16, 16), generator=generator).byte()})
        for s in draw_two_coloured_scenes(40, seed=3)
    ]
    config = DenseProbeEvaluation(
        train=sets["train"], test=write_dataset_json(write_scenes(tmp_path / "t", test), NAMES), **SETTINGS
    )
    metrics = compute_metrics(config, make_tiny_model_under_test(tiny_backbone(), tmp_path))
    assert abs(metrics["accuracy over cells"].value - 100 / 3) < 6


def test_the_chosen_layer_is_tested(sets: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_tiny_model_under_test(tiny_backbone(), tmp_path)
    alone = compute_metrics(DenseProbeEvaluation(**sets, **SETTINGS, layers=(2,)), model)

    def choose(features: object, targets: object, settings: list[LinearHeadSetting], **options: object) -> ChosenHead:
        only = [setting for setting in settings if setting.column == "layer 2"]
        assert len(only) < len(settings)
        return choose_linear_head(features, targets, only, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(dense, "choose_linear_head", choose)
    assert compute_metrics(DenseProbeEvaluation(**sets, **SETTINGS, layers=(1, 2)), model) == alone
    assert alone["mIoU"].notes[0].startswith("layer 2,")


def test_patches_are_limited_and_split_by_image(
    sets: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extraction, "MAX_SCENES_PER_CHUNK", 8)
    calls: list[dict[str, torch.Tensor]] = []

    def choose(features: object, targets: object, settings: object, **options: torch.Tensor) -> ChosenHead:
        calls.append(options)
        return choose_linear_head(features, targets, settings, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(dense, "choose_linear_head", choose)
    config, model = (
        DenseProbeEvaluation(**sets, **SETTINGS, max_patches=40),
        make_tiny_model_under_test(tiny_backbone(), tmp_path),
    )
    pair = extract_sets(config, model)
    features, counts, images = read_training_patches(config, pair.train, model.backbone, 3)
    assert len(images) == len(counts) == len(features["layer 3"]) == 40
    assert images.max() >= 16  # in the last chunk
    all_patches = pair.train.read_tensor("patches 3")
    for row in range(40):
        assert (all_patches[images[row]] == features["layer 3"][row]).all(dim=1).any()
    choose_patch_classifier(config, pair, model.backbone, 3)
    assert not set(images[calls[0]["rows"]].tolist()) & set(images[calls[0]["validation_rows"]].tolist())


def test_sets_with_different_classes_are_rejected(sets: dict[str, str], tmp_path: Path) -> None:
    other = write_dataset_json(write_scenes(tmp_path / "t", draw_two_coloured_scenes(6, seed=4)), ("sky", "sea", "mud"))
    config = DenseProbeEvaluation(train=sets["train"], test=other, **SETTINGS)
    with pytest.raises(UserError, match=r"has other classes than .*/train: 3 and 3, and they differ in 'sea'"):
        compute_metrics(config, make_tiny_model_under_test(tiny_backbone(), tmp_path))


def test_scenes_without_maps_are_rejected(tmp_path: Path) -> None:
    train, test = (
        write_scenes(
            tmp_path / name, [Scene(s.key, {"rgb": s.maps["rgb"]}) for s in draw_two_coloured_scenes(4, seed=n)]
        )
        for n, name in enumerate("ab")
    )
    with pytest.raises(UserError, match=r"^train: .*semantic"):
        compute_metrics(
            DenseProbeEvaluation(train=train, test=test, **SETTINGS),
            make_tiny_model_under_test(tiny_backbone(), tmp_path),
        )


def test_cells_of_patches_are_counted_by_class() -> None:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, (2, 6, 9), generator=generator)
    ids[torch.rand(ids.shape, generator=generator) < 0.2] = IGNORE
    counts = count_cell_classes(ids, 3, 5)
    for image, row, column in ((0, 0, 0), (1, 1, 2), (0, 1, 1)):
        cells = ids[image, 3 * row : 3 * row + 3, 3 * column : 3 * column + 3].flatten()
        assert counts[image, row * 3 + column].tolist() == [(cells == label).sum().item() for label in range(5)]


def test_logits_are_interpolated_before_the_argmax() -> None:
    generator = torch.Generator().manual_seed(2)
    probe = LinearProbe(torch.zeros(4), torch.ones(4), torch.randn(3, 4, generator=generator), torch.zeros(3), 0.0)
    patches = torch.randn(2, 6, 4, generator=generator)  # 2 rows, 3 columns
    scores = torch.einsum("bpd,cd->bcp", patches, probe.weight).view(2, 3, 2, 3)
    expected = F.interpolate(scores, size=(8, 12), mode="bilinear").argmax(dim=1)
    assert torch.equal(predict_cells(probe, patches, (8, 12)), expected)


def test_classes_without_names_are_rejected(tmp_path: Path) -> None:
    train, test = (write_scenes(tmp_path / name, draw_coloured_scenes(6, seed=seed)) for seed, name in enumerate("ab"))
    with pytest.raises(UserError, match=r"^train: .*/a does not name its classes. Add a dataset.json that does$"):
        compute_metrics(
            DenseProbeEvaluation(train=train, test=test, **SETTINGS),
            make_tiny_model_under_test(tiny_backbone(), tmp_path),
        )
