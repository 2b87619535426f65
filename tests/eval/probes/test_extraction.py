from pathlib import Path

import pytest
import torch

from c2fmae.core.distributed import World
from c2fmae.core.errors import UserError
from c2fmae.core.scene import Scene
from c2fmae.data import CentralView
from c2fmae.data.digest import scenes_digest
from c2fmae.eval.evaluation import Subject
from c2fmae.eval.probes import extraction
from c2fmae.eval.probes import feature_store as extracted_file
from c2fmae.eval.probes.extraction import Column, Hands, Wanted, extract
from c2fmae.eval.probes.feature_store import Extracted
from tests.eval.tiny_backbones import SPEC, Drawn, coloured, subject, tiny_backbone

VIEW = CentralView(size=(16, 16), label_stride=4)
HANDS = Hands(batch_size=4, workers=0)
COLUMNS = (Column(3, "mean"), Column(3, "cls"), Column(1, "mean"))


@pytest.fixture(autouse=True)
def _chunks_of_ten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extraction, "CHUNK", 10)


def extracted(who: Subject, scenes: Drawn, wanted: Wanted = Wanted(columns=COLUMNS), hands: Hands = HANDS) -> Extracted:  # noqa: B008
    identity = scenes_digest(scenes, "drawn")
    scenes.asked = 0
    return extract(who, scenes, VIEW, wanted, identity=identity, hands=hands)


def test_features_are_the_backbones_own_in_the_order_of_the_scenes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, scenes = tiny_backbone(), coloured(23)
    found = extracted(subject(backbone, tmp_path), Drawn(scenes), Wanted(columns=COLUMNS, patches=(2,), has_maps=True))
    photos = backbone.standardise(torch.stack([scene.maps["rgb"] for scene in scenes]))
    with torch.no_grad():
        first, second, last = backbone.layers(photos, [1, 2, 3])
        pooled = backbone.pooled(photos, "cls")
    assert torch.allclose(found.whole(COLUMNS[0]), last[:, 1:].mean(dim=1), atol=1e-5)
    assert torch.allclose(found.whole(COLUMNS[1]), pooled, atol=1e-5)
    assert torch.allclose(found.whole(COLUMNS[2]), first[:, 1:].mean(dim=1), atol=1e-5)
    assert torch.allclose(found.whole("patches 2"), second[:, 1:], atol=1e-5)
    some = torch.tensor([22, 3, 14, 3])
    expected = found.whole("patches 2")[some]
    assert torch.equal(found.reader("patches 2")(some), expected)
    monkeypatch.setattr(extracted_file, "_IN_MEMORY", 0)
    assert torch.equal(found.reader("patches 2")(some), expected)
    assert found.labels.tolist() == [scene.label for scene in scenes]
    assert [found.block("semantic", n).shape for n in range(3)] == [(10, 4, 4), (10, 4, 4), (3, 4, 4)]


@pytest.mark.parametrize("hands", [Hands(batch_size=64, workers=0), Hands(batch_size=3, workers=2)])
def test_batches_and_workers_change_nothing(tmp_path: Path, hands: Hands) -> None:
    backbone, scenes = tiny_backbone(), Drawn(coloured(23))
    one, other = (
        extracted(subject(backbone, tmp_path / name), scenes, hands=each)
        for name, each in (("one", HANDS), ("other", hands))
    )
    assert torch.allclose(one.whole(COLUMNS[0]), other.whole(COLUMNS[0]), atol=1e-6)
    assert (one.photos == other.photos).all()


def test_what_is_on_the_disk_is_not_computed_again(tmp_path: Path) -> None:
    who, scenes = subject(tiny_backbone(), tmp_path), Drawn(coloured(23))
    first = extracted(who, scenes)
    scenes.asked = 0
    again = extracted(who, scenes)
    assert scenes.asked == 0
    first.chunks[1].unlink()  # as if killed before it was whole
    third = extracted(who, scenes)
    assert scenes.asked == 10
    assert torch.equal(again.whole(COLUMNS[0]), third.whole(COLUMNS[0]))


def test_other_weights_scenes_views_and_layers_have_features_of_their_own(tmp_path: Path) -> None:
    backbone, scenes = tiny_backbone(), coloured(5)
    folders = {extracted(subject(each, tmp_path), Drawn(scenes)).chunks for each in (backbone, tiny_backbone(seed=1))}
    folders.add(extracted(subject(backbone, tmp_path), Drawn(coloured(5, seed=7))).chunks)
    folders.add(extracted(subject(backbone, tmp_path), Drawn(scenes), Wanted(columns=COLUMNS[:1])).chunks)
    changed = [*scenes[:-1], Scene(scenes[-1].key, {"rgb": 255 - scenes[-1].maps["rgb"]}, 0)]
    folders.add(extracted(subject(backbone, tmp_path), Drawn(changed)).chunks)
    assert len(folders) == 5


def test_processes_make_whole_chunks_each_and_share_them(tmp_path: Path) -> None:
    backbone, scenes = tiny_backbone(), Drawn(coloured(35))
    alone = extracted(subject(backbone, tmp_path / "alone"), scenes)

    class Rank(World):
        def wait(self) -> None: ...

    (tmp_path / "both" / alone.chunks[0].parent.name).mkdir(parents=True)
    both = alone
    for rank in (1, 0):  # one after the other: neither waits for the other here
        who = Subject("tiny", backbone, tmp_path / "both", Rank(rank, 2))
        scenes.asked = 0
        both = extracted(who, scenes)
        assert scenes.asked == (20 if rank == 0 else 15)
    for column in COLUMNS:
        assert torch.equal(both.whole(column), alone.whole(column))
    assert torch.equal(both.labels, alone.labels)


def test_a_broken_scene_is_an_error_that_names_it(tmp_path: Path) -> None:
    class Broken(Drawn):
        def __getitem__(self, index: int) -> Scene:
            raise UserError(f"key {index}: is damaged")

    for workers in (0, 1):
        with pytest.raises(UserError, match=r"^key 0: is damaged$"):
            extracted(subject(tiny_backbone(), tmp_path), Broken(coloured(5)), hands=Hands(workers=workers))


def test_features_in_half_precision_are_close_and_kept_apart(tmp_path: Path) -> None:
    who, scenes = subject(tiny_backbone(), tmp_path), Drawn(coloured(12))
    full = extracted(who, scenes).whole(COLUMNS[0])
    half = extracted(who, scenes, Wanted(columns=COLUMNS, precision="bf16")).whole(COLUMNS[0])
    assert half.dtype == torch.float32
    assert not torch.equal(full, half)
    assert torch.allclose(full, half, atol=0.2)


def test_a_chunk_that_is_damaged_is_named(tmp_path: Path) -> None:
    found = extracted(subject(tiny_backbone(), tmp_path), Drawn(coloured(12)))
    found.chunks[0].write_bytes(found.chunks[0].read_bytes()[:100])
    with pytest.raises(UserError) as caught:
        found.whole(COLUMNS[0])
    assert str(caught.value) == f"{found.chunks[0]}: is damaged. Remove it: it is made again by the next evaluation"


def test_whatever_changes_features_changes_where_they_lie(tmp_path: Path) -> None:
    who, scenes = subject(tiny_backbone(), tmp_path), Drawn(coloured(2))
    grey = subject(tiny_backbone(SPEC.model_copy(update={"mean": (0.0, 0.0, 0.0)})), tmp_path)  # the same weights
    views = [
        VIEW,
        CentralView(size=(16, 16), crop=0.5, label_stride=4),
        CentralView(size=(32, 16), label_stride=4),
        CentralView(size=(16, 16), label_stride=2),
    ]
    one = COLUMNS[:1]
    kinds = [Wanted(columns=one), Wanted(columns=one, patches=(1,)), Wanted(columns=one, has_maps=True)]
    asked = [(who, view, kinds[0]) for view in views] + [(who, VIEW, kind) for kind in kinds[1:]]
    asked.append((grey, VIEW, kinds[0]))
    places = {
        extract(each, scenes, view, kind, identity="", hands=HANDS).chunks[0].parent for each, view, kind in asked
    }
    assert len(places) == len(asked)


def test_large_features_lie_in_small_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extraction, "_CHUNK_BYTES", 4000)
    found = extracted(subject(tiny_backbone(), tmp_path), Drawn(coloured(12)), Wanted(patches=(1, 2)))
    assert 1 < len(found.chunks) <= 12
    assert found.whole("patches 1").shape == (12, 4, 64)


def test_features_are_those_of_evaluation_whatever_mode_the_backbone_is_in(tmp_path: Path) -> None:
    encoder = SPEC.encoder.model_copy(update={"drop_path": 0.9})
    backbone = tiny_backbone(SPEC.model_copy(update={"encoder": encoder}))
    one, other = (
        extracted(subject(each, tmp_path / name), Drawn(coloured(9))).whole(COLUMNS[0])
        for name, each in (("eval", backbone), ("train", backbone.train()))
    )
    assert torch.equal(one, other)
