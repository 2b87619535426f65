from pathlib import Path

import pytest
import torch

from c2fmae.core.scene import Scene
from c2fmae.eval.evaluation import ModelUnderTest
from c2fmae.eval.metrics import find_metric
from c2fmae.eval.probes.config import DenseProbeEvaluation, KnnEvaluation
from c2fmae.eval.probes.reference_features import ColourHistogram, RawPixels
from tests.eval.tiny_backbones import (
    SPEC,
    draw_coloured_scenes,
    make_tiny_model_under_test,
    write_dataset_json,
    write_scenes,
)


def test_raw_pixels_are_the_pixels_of_patches() -> None:
    images = torch.arange(2 * 3 * 16 * 16).view(2, 3, 16, 16).remainder(256).byte()
    pixels = RawPixels(SPEC.model_copy(update={"mean": (0.0,) * 3, "std": (1.0,) * 3}))
    (patches,) = pixels.get_intermediate_layers(pixels.standardise(images), [1])
    assert patches.shape == (2, 4, pixels.dim)
    # Patches are in row-major order; their values are ordered by row, column and channel
    assert torch.allclose(patches[:, 1], images.float().div(255)[:, :, :8, 8:].permute(0, 2, 3, 1).flatten(1))
    assert torch.equal(pixels.pool(patches), patches.flatten(1))


def test_colour_histograms_have_64_bins() -> None:
    images = torch.zeros(1, 3, 8, 16, dtype=torch.uint8)
    images[0, :, :, 8:] = torch.tensor([255, 64, 130]).view(3, 1, 1)
    images[0, 0, 0, 0] = 63
    images[0, 0, 0, 1] = 64
    colours = ColourHistogram(SPEC)
    (fractions,) = colours.get_intermediate_layers(colours.standardise(images), [1])
    assert fractions.shape == (1, 2, colours.dim)
    assert fractions[0, 0, [0, 16]].tolist() == [63 / 64, 1 / 64]
    assert fractions[0, 1, 3 * 16 + 1 * 4 + 2] == 1
    assert fractions.sum() == 2
    assert torch.equal(colours.pool(fractions), fractions.mean(dim=1))


@pytest.mark.parametrize("features", [RawPixels, ColourHistogram])
def test_probes_run_on_reference_features(features: type[RawPixels], tmp_path: Path) -> None:
    sets = {}
    for seed, name in enumerate(("train", "test")):
        scenes: list[Scene] = draw_coloured_scenes(24, seed=seed)
        sets[name] = write_dataset_json(write_scenes(tmp_path / name, scenes), ("one", "two", "three"))
    model: ModelUnderTest = make_tiny_model_under_test(features(SPEC), tmp_path)
    top1 = find_metric(KnnEvaluation(**sets, workers=0, ks=(3,)).run(model), "top1", votes="plain", k=3)
    assert top1 is not None
    assert top1.value == 100
    mean_iou = find_metric(DenseProbeEvaluation(**sets, workers=0, epochs=5).run(model), "mean_iou")
    assert mean_iou is not None
    assert mean_iou.value > 90


def test_reference_features_have_different_digests(tmp_path: Path) -> None:
    models = [make_tiny_model_under_test(features(SPEC), tmp_path) for features in (RawPixels, ColourHistogram)]
    assert models[0].digest != models[1].digest
