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
from c2fmae.eval.probes import extraction
from c2fmae.eval.probes import feature_store as extracted_file
from c2fmae.eval.probes.extraction import extract_features
from c2fmae.eval.probes.feature_spec import FeatureColumn, FeatureSpec
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
HANDS = BatchingConfig(batch_size=4, num_workers=0)
COLUMNS = (FeatureColumn(3, "mean"), FeatureColumn(3, "cls"), FeatureColumn(1, "mean"))


@pytest.fixture(autouse=True)
def _chunks_of_ten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extraction, "MAX_SCENES_PER_CHUNK", 10)


def extracted(
    who: ModelUnderTest,
    scenes: InMemoryScenes,
    wanted: FeatureSpec = FeatureSpec(columns=COLUMNS),  # noqa: B008 - is immutable
    hands: BatchingConfig = HANDS,
) -> FeatureStore:
    identity = compute_scenes_digest(scenes, "drawn")
    scenes.num_reads = 0
    return extract_features(who, scenes, VIEW, wanted, identity=identity, batching=hands)


def test_features_are_the_backbones_own_in_the_order_of_the_scenes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, scenes = tiny_backbone(), draw_coloured_scenes(23)
    found = extracted(
        make_tiny_model_under_test(backbone, tmp_path),
        InMemoryScenes(scenes),
        FeatureSpec(columns=COLUMNS, patch_depths=(2,), has_maps=True),
    )
    photos = backbone.standardise(torch.stack([scene.maps["rgb"] for scene in scenes]))
    with torch.no_grad():
        first, second, last = backbone.get_intermediate_layers(photos, [1, 2, 3])
        pooled = backbone.pooled(photos, "cls")
    assert torch.allclose(found.read_tensor(COLUMNS[0]), last[:, 1:].mean(dim=1), atol=1e-5)
    assert torch.allclose(found.read_tensor(COLUMNS[1]), pooled, atol=1e-5)
    assert torch.allclose(found.read_tensor(COLUMNS[2]), first[:, 1:].mean(dim=1), atol=1e-5)
    assert torch.allclose(found.read_tensor("patches 2"), second[:, 1:], atol=1e-5)
    some = torch.tensor([22, 3, 14, 3])
    expected = found.read_tensor("patches 2")[some]
    assert torch.equal(found.make_row_reader("patches 2")(some), expected)
    monkeypatch.setattr(extracted_file, "_MAX_BYTES_IN_MEMORY", 0)
    assert torch.equal(found.make_row_reader("patches 2")(some), expected)
    assert found.labels.tolist() == [scene.label for scene in scenes]
    assert [found.read_chunk("semantic", n).shape for n in range(3)] == [(10, 4, 4), (10, 4, 4), (3, 4, 4)]


@pytest.mark.parametrize(
    "hands", [BatchingConfig(batch_size=64, num_workers=0), BatchingConfig(batch_size=3, num_workers=2)]
)
def test_batches_and_workers_change_nothing(tmp_path: Path, hands: BatchingConfig) -> None:
    backbone, scenes = tiny_backbone(), InMemoryScenes(draw_coloured_scenes(23))
    one, other = (
        extracted(make_tiny_model_under_test(backbone, tmp_path / name), scenes, hands=each)
        for name, each in (("one", HANDS), ("other", hands))
    )
    assert torch.allclose(one.read_tensor(COLUMNS[0]), other.read_tensor(COLUMNS[0]), atol=1e-5)
    assert (one.image_digests == other.image_digests).all()


def test_what_is_on_the_disk_is_not_computed_again(tmp_path: Path) -> None:
    who, scenes = make_tiny_model_under_test(tiny_backbone(), tmp_path), InMemoryScenes(draw_coloured_scenes(23))
    first = extracted(who, scenes)
    scenes.num_reads = 0
    again = extracted(who, scenes)
    assert scenes.num_reads == 0
    first.chunk_paths[1].unlink()  # as if killed before it was whole
    third = extracted(who, scenes)
    assert scenes.num_reads == 10
    assert torch.equal(again.read_tensor(COLUMNS[0]), third.read_tensor(COLUMNS[0]))


def test_other_weights_scenes_views_and_layers_have_features_of_their_own(tmp_path: Path) -> None:
    backbone, scenes = tiny_backbone(), draw_coloured_scenes(5)
    folders = {
        extracted(make_tiny_model_under_test(each, tmp_path), InMemoryScenes(scenes)).chunk_paths
        for each in (backbone, tiny_backbone(seed=1))
    }
    folders.add(
        extracted(
            make_tiny_model_under_test(backbone, tmp_path), InMemoryScenes(draw_coloured_scenes(5, seed=7))
        ).chunk_paths
    )
    folders.add(
        extracted(
            make_tiny_model_under_test(backbone, tmp_path), InMemoryScenes(scenes), FeatureSpec(columns=COLUMNS[:1])
        ).chunk_paths
    )
    changed = [*scenes[:-1], Scene(scenes[-1].key, {"rgb": 255 - scenes[-1].maps["rgb"]}, 0)]
    folders.add(extracted(make_tiny_model_under_test(backbone, tmp_path), InMemoryScenes(changed)).chunk_paths)
    assert len(folders) == 5


def test_processes_make_whole_chunks_each_and_share_them(tmp_path: Path) -> None:
    backbone, scenes = tiny_backbone(), InMemoryScenes(draw_coloured_scenes(35))
    alone = extracted(make_tiny_model_under_test(backbone, tmp_path / "alone"), scenes)

    class Rank(World):
        def barrier(self) -> None: ...

    (tmp_path / "both" / alone.chunk_paths[0].parent.name).mkdir(parents=True)
    both = alone
    for rank in (1, 0):  # one after the other: neither waits for the other here
        who = ModelUnderTest.in_memory("tiny", tmp_path / "both", world=Rank(rank, 2), backbone=backbone)
        scenes.num_reads = 0
        both = extracted(who, scenes)
        assert scenes.num_reads == (20 if rank == 0 else 15)
    for column in COLUMNS:
        assert torch.equal(both.read_tensor(column), alone.read_tensor(column))
    assert torch.equal(both.labels, alone.labels)


def test_a_broken_scene_is_an_error_that_names_it(tmp_path: Path) -> None:
    class Broken(InMemoryScenes):
        def __getitem__(self, index: int) -> Scene:
            raise UserError(f"key {index}: is damaged")

    for workers in (0, 1):
        with pytest.raises(UserError, match=r"^key 0: is damaged$"):
            extracted(
                make_tiny_model_under_test(tiny_backbone(), tmp_path),
                Broken(draw_coloured_scenes(5)),
                hands=BatchingConfig(num_workers=workers),
            )


def test_features_in_half_precision_are_close_and_kept_apart(tmp_path: Path) -> None:
    who, scenes = make_tiny_model_under_test(tiny_backbone(), tmp_path), InMemoryScenes(draw_coloured_scenes(12))
    full = extracted(who, scenes).read_tensor(COLUMNS[0])
    half = extracted(who, scenes, FeatureSpec(columns=COLUMNS, precision="bf16")).read_tensor(COLUMNS[0])
    assert half.dtype == torch.float32
    assert not torch.equal(full, half)
    assert torch.allclose(full, half, atol=0.2)


def test_a_chunk_that_is_damaged_is_named(tmp_path: Path) -> None:
    found = extracted(make_tiny_model_under_test(tiny_backbone(), tmp_path), InMemoryScenes(draw_coloured_scenes(12)))
    found.chunk_paths[0].write_bytes(found.chunk_paths[0].read_bytes()[:100])
    with pytest.raises(UserError) as caught:
        found.read_tensor(COLUMNS[0])
    assert (
        str(caught.value) == f"{found.chunk_paths[0]}: is corrupted. Delete it; the next evaluation computes it again"
    )


def test_whatever_changes_features_changes_where_they_lie(tmp_path: Path) -> None:
    who, scenes = make_tiny_model_under_test(tiny_backbone(), tmp_path), InMemoryScenes(draw_coloured_scenes(2))
    grey = make_tiny_model_under_test(
        tiny_backbone(SPEC.model_copy(update={"mean": (0.0, 0.0, 0.0)})), tmp_path
    )  # the same weights
    views = [
        VIEW,
        CentralView(size=(16, 16), crop=0.5, label_stride=4),
        CentralView(size=(32, 16), label_stride=4),
        CentralView(size=(16, 16), label_stride=2),
    ]
    one = COLUMNS[:1]
    kinds = [
        FeatureSpec(columns=one),
        FeatureSpec(columns=one, patch_depths=(1,)),
        FeatureSpec(columns=one, has_maps=True),
    ]
    asked = [(who, view, kinds[0]) for view in views] + [(who, VIEW, kind) for kind in kinds[1:]]
    asked.append((grey, VIEW, kinds[0]))
    places = {
        extract_features(each, scenes, view, kind, identity="", batching=HANDS).chunk_paths[0].parent
        for each, view, kind in asked
    }
    assert len(places) == len(asked)


def test_large_features_lie_in_small_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extraction, "_MAX_BYTES_PER_CHUNK", 4000)
    found = extracted(
        make_tiny_model_under_test(tiny_backbone(), tmp_path),
        InMemoryScenes(draw_coloured_scenes(12)),
        FeatureSpec(patch_depths=(1, 2)),
    )
    assert 1 < len(found.chunk_paths) <= 12
    assert found.read_tensor("patches 1").shape == (12, 4, 64)


def test_features_are_those_of_evaluation_whatever_mode_the_backbone_is_in(tmp_path: Path) -> None:
    encoder = SPEC.encoder.model_copy(update={"drop_path": 0.9})
    backbone = tiny_backbone(SPEC.model_copy(update={"encoder": encoder}))
    one, other = (
        extracted(
            make_tiny_model_under_test(each, tmp_path / name), InMemoryScenes(draw_coloured_scenes(9))
        ).read_tensor(COLUMNS[0])
        for name, each in (("eval", backbone), ("train", backbone.train()))
    )
    assert torch.equal(one, other)
