"""From the images of shards to their files."""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass

from c2fmae.core.files import write_atomic
from c2fmae.data.encode import image_member
from c2fmae.data.scenes import Scenes
from c2fmae.data.shard_writing import ShardSet, write_shard
from c2fmae.labelling.config import LabelConfig
from c2fmae.labelling.manifest import to_json_line
from c2fmae.labelling.pipeline import BatchReport, LabelledSample, LabelPipeline
from c2fmae.labelling.plan import rows_path
from c2fmae.labelling.protocol import Labeller


@dataclass(frozen=True)
class ShardLabelling:
    """All that a shard is made from. A shard is a function of it and of its number."""

    scenes: Scenes
    labellers: Sequence[Labeller]
    shards: ShardSet
    config: LabelConfig
    plan_digest: str
    num_workers: int = 1
    """Number of threads that decode and encode; with 0, the calling thread does it."""

    def run(self, numbers: Sequence[int]) -> Generator[BatchReport, None, None]:
        """Write shards with their manifest rows, and yield a report after each batch."""
        pipeline = LabelPipeline(
            self.scenes,
            self.shards.member_keys,
            self.labellers,
            stride=self.config.label_stride,
            batch_size=self.config.batch_size,
            decode_bytes=self.config.decode_memory * 10**6,
            plan_digest=self.plan_digest,
            num_workers=self.num_workers,
        )
        return pipeline.run(numbers, self.shards.indices, self._write)

    def _write(self, number: int, samples: Mapping[int, LabelledSample]) -> None:
        labelled = {index: samples[index] for index in self.shards.indices(number)}
        rows = b"".join(to_json_line(sample.row) for sample in labelled.values())
        write_atomic(rows_path(self.shards, number), rows, is_shared=True)  # before the shard, which then has rows
        members = (self._list_members(index, sample) for index, sample in labelled.items() if not sample.is_failed)
        for _ in write_shard(self.shards.path(number), members):
            pass

    def _list_members(self, index: int, sample: LabelledSample) -> list[tuple[str, bytes]]:
        if self.config.images == "leave-out":
            return list(sample.members)
        if sample.image is not None:
            return [sample.image, *sample.members]
        data = self.scenes.read_image_bytes(index)
        assert data is not None  # it was read for the size of the image
        return [image_member(self.shards.member_keys[index], data), *sample.members]
