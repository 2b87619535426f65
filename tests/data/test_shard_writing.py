import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from c2fmae.core.errors import UserError
from c2fmae.data.encode import encode_ids
from c2fmae.data.generated import GeneratedScenes
from c2fmae.data.geometry import subsample_ids
from c2fmae.data.pack import PackConfig, pack_scenes
from c2fmae.data.scenes import WrappedScenes
from c2fmae.data.shard_writing import ShardSet, start_or_continue, write_shard


def tar_bytes(members: list[tuple[str, bytes]]) -> bytes:
    """Return a tar as Python's own writer makes it, without its padding to whole records."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        end = stream.tell()
    return stream.getvalue()[:end] + bytes(1024)


def test_a_pack_has_the_bytes_of_a_plain_tar_writer(tmp_path: Path) -> None:
    class Stored(WrappedScenes):
        def read_image_bytes(self, index: int) -> bytes:
            array = io.BytesIO()
            np.save(array, self[index].maps["rgb"].numpy())
            return array.getvalue()

    scenes = Stored(GeneratedScenes(size=32, length=5, seed=3))
    pack_scenes(scenes, tmp_path, PackConfig(shard_size=3))
    for shard, indices in enumerate(([0, 1, 2], [3, 4])):
        expected = list[tuple[str, bytes]]()
        for scene in (scenes[index] for index in indices):
            expected.append((f"{scene.key}.npy", scenes.read_image_bytes(int(scene.key))))
            expected += [
                (f"{scene.key}.{name}.png", encode_ids(subsample_ids(scene.maps[name], 4).numpy()))
                for name in ("semantic", "instance")
            ]
            expected.append((f"{scene.key}.cls", str(scene.label).encode()))
        assert (tmp_path / f"scenes-{shard:06d}.tar").read_bytes() == tar_bytes(expected)
    plan = json.loads((tmp_path / "pack.json").read_text())
    assert list(plan) == [
        *("label_stride", "short_side", "shard_size", "name", "scenes", "keys", "first scene", "dataset")
    ]
    keys = "\n".join(f"{index:08d}" for index in range(5)).encode()
    assert (plan["keys"], plan["scenes"]) == (hashlib.blake2b(keys, digest_size=8).hexdigest(), 5)


def test_shards_divide_the_samples_in_the_order_of_their_keys(tmp_path: Path) -> None:
    shards = ShardSet.from_keys(tmp_path, ["b", "c/a.1", "a", "d", "c/0"], name="few", shard_size=2)
    assert len(shards) == 3
    keys = [[shards.member_keys[index] for index in shards.indices(shard)] for shard in range(3)]
    assert keys == [["a", "b"], ["c/0", "c/a_1"], ["d"]]
    assert shards.path(2) == tmp_path / "few-000002.tar"
    shards.path(1).touch()
    assert (shards.missing(), shards.missing([1, 2])) == ([0, 2], [2])
    reordered = ShardSet.from_keys(tmp_path, ["a", "b", "c/0", "d", "c/a.1"], name="few", shard_size=2)
    assert shards.digest_keys() == reordered.digest_keys()


def test_a_shard_whose_samples_fail_is_not_written(tmp_path: Path) -> None:
    def samples() -> Iterator[list[tuple[str, bytes]]]:
        yield [("a.jpg", b"1")]
        raise UserError("b.jpg: broken")

    done = write_shard(tmp_path / "x-000000.tar", samples())
    assert next(done) == 1
    with pytest.raises(UserError):
        next(done)
    assert not list(tmp_path.iterdir())


def test_plans_with_nested_settings_are_compared_by_dotted_keys(tmp_path: Path) -> None:
    plan = {"stride": 4, "instance": {"scale": 300, "model": {"name": "a", "layers": [1, 2]}}, "device": {"kind": "x"}}
    assert start_or_continue(tmp_path, plan, verb="label", noun="images") == plan
    other = {"stride": 4, "instance": {"scale": 200, "model": {"name": "a", "layers": [1, 3]}, "new": True}}
    with pytest.raises(UserError) as caught:
        start_or_continue(tmp_path, other, verb="label", noun="images", may_differ=("device",))
    assert str(caught.value) == (
        f"{tmp_path}/pack.json: this pack was started with instance.scale 300, now 200; instance.model.layers [1, 2],"
        " now [1, 3]; instance.new None, now True. Label the same images with the same settings, or choose another"
        " directory"
    )
    assert start_or_continue(tmp_path, plan, verb="label", noun="images") == plan
