import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from c2fmae.core.distributed import World
from c2fmae.core.errors import UserError
from c2fmae.core.scene import Scene
from c2fmae.data import CentralView
from c2fmae.data.digest import compute_scenes_digest
from c2fmae.eval.engine import BatchingConfig
from c2fmae.eval.evaluation import ModelUnderTest
from c2fmae.eval.probes import extraction, feature_store
from c2fmae.eval.probes.config import FeatureColumn, FeatureSpec
from c2fmae.eval.probes.extraction import extract_features
from c2fmae.eval.probes.feature_store import FeatureStore
from tests.eval.tiny_backbones import (
    SPEC,
    InMemoryScenes,
    draw_coloured_scenes,
    make_tiny_model_under_test,
    tiny_backbone,
)

pytestmark = pytest.mark.numeric

VIEW = CentralView(size=(16, 16), label_stride=4)
BATCHING = BatchingConfig(batch_size=4, num_workers=0)
COLUMNS = (FeatureColumn(3, "mean"), FeatureColumn(3, "cls"), FeatureColumn(1, "mean"))


@pytest.fixture(autouse=True)
def _chunks_of_ten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extraction, "MAX_SCENES_PER_CHUNK", 10)


def extract(
    model: ModelUnderTest,
    scenes: InMemoryScenes,
    spec: FeatureSpec = FeatureSpec(columns=COLUMNS),  # noqa: B008 - immutable
    batching: BatchingConfig = BATCHING,
    view: CentralView = VIEW,
) -> FeatureStore:
    identity = compute_scenes_digest(scenes, "drawn")
    scenes.num_reads = 0
    return extract_features(model, scenes, view, spec, identity=identity, batching=batching)


def test_features_equal_the_backbones_in_the_order_of_scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, scenes = tiny_backbone(), draw_coloured_scenes(23)
    store = extract(
        make_tiny_model_under_test(backbone, tmp_path),
        InMemoryScenes(scenes),
        FeatureSpec(columns=COLUMNS, patch_depths=(2,), has_maps=True),
    )
    images = backbone.standardise(torch.stack([scene.maps["rgb"] for scene in scenes]))
    with torch.no_grad():
        first, second, last = backbone.get_intermediate_layers(images, [1, 2, 3])
        pooled = backbone.pooled(images, "cls")
    assert torch.allclose(store.read_tensor(COLUMNS[0]), last[:, 1:].mean(dim=1), atol=1e-5)
    assert torch.allclose(store.read_tensor(COLUMNS[1]), pooled, atol=1e-5)
    assert torch.allclose(store.read_tensor(COLUMNS[2]), first[:, 1:].mean(dim=1), atol=1e-5)
    assert torch.allclose(store.read_tensor("patches 2"), second[:, 1:], atol=1e-5)
    rows = torch.tensor([22, 3, 14, 3])
    expected = store.read_tensor("patches 2")[rows]
    assert torch.equal(store.make_row_reader("patches 2")(rows), expected)
    monkeypatch.setattr(feature_store, "_MAX_BYTES_IN_MEMORY", 0)
    assert torch.equal(store.make_row_reader("patches 2")(rows), expected)
    assert store.labels.tolist() == [scene.label for scene in scenes]
    assert [store.read_chunk("semantic", n).shape for n in range(3)] == [(10, 4, 4), (10, 4, 4), (3, 4, 4)]


@pytest.mark.parametrize(
    "batching", [BatchingConfig(batch_size=64, num_workers=0), BatchingConfig(batch_size=3, num_workers=2)]
)
def test_features_do_not_depend_on_batches_and_workers(tmp_path: Path, batching: BatchingConfig) -> None:
    backbone, scenes = tiny_backbone(), InMemoryScenes(draw_coloured_scenes(23))
    one, other = (
        extract(make_tiny_model_under_test(backbone, tmp_path / name), scenes, batching=config)
        for name, config in (("one", BATCHING), ("other", batching))
    )
    assert torch.allclose(one.read_tensor(COLUMNS[0]), other.read_tensor(COLUMNS[0]), atol=1e-5)
    assert (one.image_digests == other.image_digests).all()


def test_only_missing_chunks_are_computed(tmp_path: Path) -> None:
    model, scenes = make_tiny_model_under_test(tiny_backbone(), tmp_path), InMemoryScenes(draw_coloured_scenes(23))
    first = extract(model, scenes)
    scenes.num_reads = 0
    again = extract(model, scenes)
    assert scenes.num_reads == 0
    first.chunk_paths[1].unlink()  # as after an interruption
    third = extract(model, scenes)
    assert scenes.num_reads == 10
    assert torch.equal(again.read_tensor(COLUMNS[0]), third.read_tensor(COLUMNS[0]))


def test_other_weights_scenes_and_layers_have_other_files(tmp_path: Path) -> None:
    backbone, scenes = tiny_backbone(), draw_coloured_scenes(5)
    chunk_paths = {
        extract(make_tiny_model_under_test(model, tmp_path), InMemoryScenes(scenes)).chunk_paths
        for model in (backbone, tiny_backbone(seed=1))
    }
    chunk_paths.add(
        extract(
            make_tiny_model_under_test(backbone, tmp_path), InMemoryScenes(draw_coloured_scenes(5, seed=7))
        ).chunk_paths
    )
    chunk_paths.add(
        extract(
            make_tiny_model_under_test(backbone, tmp_path), InMemoryScenes(scenes), FeatureSpec(columns=COLUMNS[:1])
        ).chunk_paths
    )
    changed = [*scenes[:-1], Scene(scenes[-1].key, {"rgb": 255 - scenes[-1].maps["rgb"]}, 0)]
    chunk_paths.add(extract(make_tiny_model_under_test(backbone, tmp_path), InMemoryScenes(changed)).chunk_paths)
    assert len(chunk_paths) == 5


def test_stored_features_state_positions_of_other_image_sizes(tmp_path: Path) -> None:
    model, scenes = make_tiny_model_under_test(tiny_backbone(), tmp_path), InMemoryScenes(draw_coloured_scenes(2))
    own, larger = (
        json.loads(extract(model, scenes, view=view).chunk_paths[0].with_name("what.json").read_text())
        for view in (VIEW, replace(VIEW, size=(16, 32)))
    )
    assert "positions" not in own  # as in earlier versions, so that features stay valid
    assert larger["positions"] == "stretched"


def test_each_rank_computes_whole_chunks(tmp_path: Path) -> None:
    backbone, scenes = tiny_backbone(), InMemoryScenes(draw_coloured_scenes(35))
    alone = extract(make_tiny_model_under_test(backbone, tmp_path / "alone"), scenes)

    class Rank(World):
        def barrier(self) -> None: ...

    (tmp_path / "both" / alone.chunk_paths[0].parent.name).mkdir(parents=True)
    both = alone
    for rank in (1, 0):  # one after the other, since barriers do nothing
        model = ModelUnderTest.in_memory("tiny", tmp_path / "both", world=Rank(rank, 2), backbone=backbone)
        scenes.num_reads = 0
        both = extract(model, scenes)
        assert scenes.num_reads == (20 if rank == 0 else 15)
    for column in COLUMNS:
        assert torch.equal(both.read_tensor(column), alone.read_tensor(column))
    assert torch.equal(both.labels, alone.labels)


def test_errors_of_broken_scenes_are_raised(tmp_path: Path) -> None:
    class Broken(InMemoryScenes):
        def __getitem__(self, index: int) -> Scene:
            raise UserError(f"key {index}: is damaged")

    for workers in (0, 1):
        with pytest.raises(UserError, match=r"^key 0: is damaged$"):
            extract(
                make_tiny_model_under_test(tiny_backbone(), tmp_path),
                Broken(draw_coloured_scenes(5)),
                batching=BatchingConfig(num_workers=workers),
            )


def test_features_in_bf16_are_close_and_stored_separately(tmp_path: Path) -> None:
    model, scenes = make_tiny_model_under_test(tiny_backbone(), tmp_path), InMemoryScenes(draw_coloured_scenes(12))
    full = extract(model, scenes).read_tensor(COLUMNS[0])
    half = extract(model, scenes, FeatureSpec(columns=COLUMNS, precision="bf16")).read_tensor(COLUMNS[0])
    assert half.dtype == torch.float32
    assert not torch.equal(full, half)
    assert torch.allclose(full, half, atol=0.2)


def test_errors_of_corrupted_chunks_name_the_file(tmp_path: Path) -> None:
    store = extract(make_tiny_model_under_test(tiny_backbone(), tmp_path), InMemoryScenes(draw_coloured_scenes(12)))
    store.chunk_paths[0].write_bytes(store.chunk_paths[0].read_bytes()[:100])
    with pytest.raises(UserError) as caught:
        store.read_tensor(COLUMNS[0])
    assert (
        str(caught.value) == f"{store.chunk_paths[0]}: is corrupted. Delete it; the next evaluation computes it again"
    )


def test_everything_that_changes_features_changes_their_directory(tmp_path: Path) -> None:
    model, scenes = make_tiny_model_under_test(tiny_backbone(), tmp_path), InMemoryScenes(draw_coloured_scenes(2))
    other_mean = make_tiny_model_under_test(tiny_backbone(SPEC.model_copy(update={"mean": (0.0, 0.0, 0.0)})), tmp_path)
    views = [
        VIEW,
        CentralView(size=(16, 16), crop=0.5, label_stride=4),
        CentralView(size=(32, 16), label_stride=4),
        CentralView(size=(16, 16), label_stride=2),
    ]
    column = COLUMNS[:1]
    specs = [
        FeatureSpec(columns=column),
        FeatureSpec(columns=column, patch_depths=(1,)),
        FeatureSpec(columns=column, has_maps=True),
    ]
    variants = [(model, view, specs[0]) for view in views] + [(model, VIEW, spec) for spec in specs[1:]]
    variants.append((other_mean, VIEW, specs[0]))
    feature_dirs = {
        extract_features(model, scenes, view, spec, identity="", batching=BATCHING).chunk_paths[0].parent
        for model, view, spec in variants
    }
    assert len(feature_dirs) == len(variants)


def test_large_features_are_stored_in_small_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extraction, "_MAX_BYTES_PER_CHUNK", 4000)
    store = extract(
        make_tiny_model_under_test(tiny_backbone(), tmp_path),
        InMemoryScenes(draw_coloured_scenes(12)),
        FeatureSpec(patch_depths=(1, 2)),
    )
    assert 1 < len(store.chunk_paths) <= 12
    assert store.read_tensor("patches 1").shape == (12, 4, 64)


def test_features_are_computed_in_evaluation_mode(tmp_path: Path) -> None:
    encoder = SPEC.encoder.model_copy(update={"drop_path": 0.9})
    backbone = tiny_backbone(SPEC.model_copy(update={"encoder": encoder}))
    one, other = (
        extract(
            make_tiny_model_under_test(model, tmp_path / name), InMemoryScenes(draw_coloured_scenes(9))
        ).read_tensor(COLUMNS[0])
        for name, model in (("eval", backbone), ("train", backbone.train()))
    )
    assert torch.equal(one, other)
