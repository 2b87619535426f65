"""Semantic maps of clusters: their fit, its file, and the maps."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.scene import Scene
from c2fmae.labelling import patch_features
from c2fmae.labelling.clusters import ClusterConfig
from c2fmae.labelling.context import LabellerContext
from c2fmae.labelling.fit_clusters import draw_patches, fit_clusters, fit_semantics
from c2fmae.labelling.patch_features import PatchFeatures
from c2fmae.labelling.protocol import LabelInput
from c2fmae.labelling.registry import build_labellers
from c2fmae.models.backbones import Backbone, load_backbone
from tests.eval.classification.tiny_finetuning import write_pretrained_checkpoint
from tests.eval.segmentation.tiny_segmenters import draw_image
from tests.eval.tiny_backbones import InMemoryScenes, draw_coloured_scenes

CONTEXT = LabellerContext()
SCENES = InMemoryScenes(draw_coloured_scenes(10))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pretrained_checkpoint(tmp_path_factory.mktemp("checkpoint"))


def make_config(checkpoint: Path, path: Path, **fit: Any) -> ClusterConfig:
    options = {"backbone": str(checkpoint), "centroids": str(path), "grid_size": 5, "fit": {"num_clusters": 4, **fit}}
    return ClusterConfig.from_dict(options)


def test_a_fit_of_ten_images_gives_the_same_file_for_the_same_seed(checkpoint: Path, tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.safetensors" for name in ("one", "same", "other")]
    for path, seed in zip(paths, (0, 0, 1), strict=True):
        fit_clusters(SCENES, make_config(checkpoint, path, seed=seed), CONTEXT, is_quiet=True)
    assert paths[0].read_bytes() == paths[1].read_bytes() != paths[2].read_bytes()
    tensors = load_file(paths[0])
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {"centroids": (4, 64)}
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted(path.name for path in paths)


def test_the_drawn_patches_depend_on_keys_and_seed_only(checkpoint: Path, tmp_path: Path) -> None:
    config = make_config(checkpoint, tmp_path / "a.safetensors", num_images=4, num_features=12)
    features = PatchFeatures(config, CONTEXT)
    drawn = draw_patches(SCENES, features, config.fit, is_quiet=True).features
    assert drawn.shape == (12, 64)
    reversed_scenes = InMemoryScenes([SCENES[index] for index in reversed(range(10))])
    again = draw_patches(reversed_scenes, features, config.fit, is_quiet=True).features
    assert sorted(drawn.tolist()) == sorted(again.tolist())
    other = draw_patches(SCENES, features, config.fit.model_copy(update={"seed": 1}), is_quiet=True).features
    assert sorted(drawn.tolist()) != sorted(other.tolist())


def test_cells_have_the_nearest_centroid_of_interpolated_features(checkpoint: Path, tmp_path: Path) -> None:
    config = make_config(checkpoint, tmp_path / "a.safetensors")
    fit_clusters(SCENES, config, CONTEXT, is_quiet=True)
    text = f"clusters:{checkpoint},{config.centroids}"
    (labeller,) = build_labellers(text, None, CONTEXT, semantics_options={"grid_size": 5})
    assert [entry.name for entry in labeller.classes] == ["cluster 0", "cluster 1", "cluster 2", "cluster 3"]
    image = draw_image(20, 30)
    (result,) = labeller.label([LabelInput("a", image)], 1)
    features = PatchFeatures(config, CONTEXT).compute(image)
    full_size = F.interpolate(features[None], (20, 30), mode="bilinear")[0].flatten(1).T
    expected = torch.cdist(full_size, load_file(config.centroids)["centroids"]).argmin(dim=1).view(20, 30)
    assert float((result.maps["semantic"] != expected).float().mean()) < 0.005  # where two centroids are as near
    assert len(expected.unique()) > 1


def test_an_existing_file_is_used_if_it_has_the_same_clusters(checkpoint: Path, tmp_path: Path) -> None:
    config = make_config(checkpoint, tmp_path / "a.safetensors")
    fit_clusters(SCENES, config, CONTEXT, is_quiet=True)
    scenes = InMemoryScenes([SCENES[index] for index in range(10)])
    fit_clusters(scenes, config, CONTEXT, is_quiet=True)
    assert scenes.num_reads == 0
    with pytest.raises(UserError, match=r"a.safetensors: exists and has other clusters: fit.num_clusters 4, now 5"):
        fit_clusters(scenes, make_config(checkpoint, tmp_path / "a.safetensors", num_clusters=5), CONTEXT)
    with pytest.raises(UserError, match="has other clusters: fit.keys"):
        fit_clusters(InMemoryScenes(draw_coloured_scenes(9)), config, CONTEXT)
    with pytest.raises(UserError, match="has clusters of other features: layer 3, now 2. Use the same backbone"):
        build_labellers(
            f"clusters:{checkpoint},{config.centroids}",
            None,
            CONTEXT,
            semantics_options={"grid_size": 5, "layer": 2},
        )


def test_every_image_may_be_drawn_where_images_outnumber_patches(checkpoint: Path, tmp_path: Path) -> None:
    config = make_config(checkpoint, tmp_path / "a.safetensors", num_features=4)
    features, drawn = PatchFeatures(config, CONTEXT), set[int]()
    patches_by_image = [features.compute(scene.maps["rgb"]).flatten(1).T for scene in draw_coloured_scenes(10)]
    for seed in range(20):
        fit = config.fit.model_copy(update={"seed": seed})
        patches = draw_patches(SCENES, features, fit, is_quiet=True)
        assert (len(patches.features), patches.num_images) == (4, 4)
        drawn.update(
            index for row in patches.features for index, own in enumerate(patches_by_image) if (own == row).all(1).any()
        )
    assert drawn == set(range(10))


class BrokenScenes(InMemoryScenes):
    """Scenes some of which cannot be read."""

    def __init__(self, broken: Collection[int]) -> None:
        super().__init__([SCENES[index] for index in range(10)])
        self.broken = broken

    def __getitem__(self, index: int) -> Scene:
        if index in self.broken:
            raise UserError("is broken")
        return super().__getitem__(index)


def test_images_that_cannot_be_read_are_left_out_and_named(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(checkpoint, tmp_path / "a.safetensors")
    fit_clusters(BrokenScenes({3}), config, CONTEXT)
    assert "1 image could not be read: '0-0003'\nwrote " in capsys.readouterr().out
    fit_clusters(BrokenScenes({0, 1, 3, 4}), make_config(checkpoint, tmp_path / "b.safetensors"), CONTEXT)
    assert "4 images could not be read: '0-0000', '0-0001', '0-0003' and others\n" in capsys.readouterr().out
    scenes = BrokenScenes(set(range(10)) - {3})
    with pytest.raises(UserError, match="25 patches of 1 image cannot form 26 clusters .expected at least one patch"):
        fit_clusters(scenes, make_config(checkpoint, tmp_path / "c.safetensors", num_clusters=26), CONTEXT)


def test_clusters_found_without_an_image_are_refused_once_it_can_be_read(checkpoint: Path, tmp_path: Path) -> None:
    config = make_config(checkpoint, tmp_path / "a.safetensors")
    fit_clusters(BrokenScenes({3}), config, CONTEXT, is_quiet=True)
    scenes = BrokenScenes({3})
    fit_clusters(scenes, config, CONTEXT)  # as after an interruption
    assert scenes.num_reads == 0
    message = r"other clusters, found without 1 image that can be read now: '0-0003'. Use them without --fit"
    with pytest.raises(UserError, match=message):
        fit_clusters(BrokenScenes(()), config, CONTEXT)


def test_other_files_and_labellers_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    save_file({"centroids": torch.zeros(2, 64)}, tmp_path / "b.safetensors")
    (tmp_path / "c.safetensors").write_text("nothing")
    for name, message in (
        ("a", "does not exist. Add --fit to find clusters of these images, or give"),
        ("b", "is not a file of clusters. Give a file that the option --fit wrote"),
        ("c", "is not a file of clusters"),
    ):
        with pytest.raises(UserError, match=message):
            build_labellers(f"clusters:{checkpoint},{tmp_path / name}.safetensors", None, CONTEXT)
    for text in (None, "maps:generated"):
        with pytest.raises(UserError, match="--fit: finds the clusters of `clusters` only. Write --semantics"):
            fit_semantics(text, {}, SCENES, CONTEXT)
    with pytest.raises(UserError, match="clusters.pt: is not a name for a file of clusters"):
        fit_semantics(f"clusters:{checkpoint},clusters.pt", {}, SCENES, CONTEXT)


def test_cuts_and_clusters_share_a_backbone_and_its_passes(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, passes = list[str](), list[int]()

    def load(source: str, **options: Any) -> Backbone:
        loaded.append(source)
        backbone = load_backbone(source, **options)
        compute = backbone.feature_maps

        def count_passes(images: Tensor, layers: Sequence[int]) -> list[Tensor]:
            passes.append(len(images))
            return compute(images, layers)

        monkeypatch.setattr(backbone, "feature_maps", count_passes)
        return backbone

    monkeypatch.setattr(patch_features, "load_backbone", load)
    config, context = make_config(checkpoint, tmp_path / "a.safetensors"), LabellerContext(batch_size=3)
    fit_clusters(SCENES, config, context, is_quiet=True)
    passes.clear()
    semantics, instances = f"clusters:{checkpoint},{config.centroids}", f"cuts:{checkpoint}"
    options = {"semantics_options": {"grid_size": 5}, "instances_options": {"grid_size": 5}}
    labellers = build_labellers(semantics, instances, context, **options)
    inputs = [LabelInput(str(number), draw_image(20, 30)) for number in range(3)]
    results = [labeller.label(inputs, 1) for labeller in labellers]
    assert (len(loaded), passes) == (1, [1, 1, 1])
    alone = build_labellers(None, instances, LabellerContext(), instances_options={"grid_size": 5})[0]
    for shared, own in zip(results[1], alone.label(inputs, 1), strict=True):
        assert shared.maps["instance"].equal(own.maps["instance"])
    build_labellers(None, instances, context, instances_options={"grid_size": 5, "layer": 2})
    assert len(loaded) == 3  # of other settings
