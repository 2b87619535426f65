"""What trainings on a backbone share: frozen blocks, batches, evaluation on a test set, and the best checkpoint."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from torch import Tensor, nn

from c2fmae.core.distributed import World
from c2fmae.core.errors import UserError
from c2fmae.core.experiment import (
    Experiment,
    RunOutcome,
    is_new_run,
    locked_run_dir,
    resolve_precision,
    run_experiment,
)
from c2fmae.core.loop import TrainingState
from c2fmae.core.metric_rows import read_rows_of_step
from c2fmae.core.run_dir import RunDir
from c2fmae.core.run_info import RunInfo, read_run_info
from c2fmae.core.sharding import gather, unsharded
from c2fmae.core.specs import spec_identity
from c2fmae.core.watching import RunLogger, is_due
from c2fmae.data import BatchStream, Scenes
from c2fmae.data.loader import explain_worker_death
from c2fmae.data.sampler import PredictSizes
from c2fmae.eval.best_checkpoint import BestCheckpoint
from c2fmae.eval.cache import compute_tensors_digest
from c2fmae.models.backbones import Backbone

S = TypeVar("S")


class ScoredExperiment(Experiment, Generic[S]):
    """A training on a backbone that is evaluated on a test set, and keeps the weights with the highest score."""

    config: Any
    scenes: Scenes
    """The training set."""
    row_key: ClassVar[str]
    """The key of a value that every row of scores has."""

    @abstractmethod
    def build_view(self) -> Callable[..., Any]:
        """Return the transform from scenes to training samples."""

    @property
    def collate(self) -> Callable[[list[Any]], Any] | None:
        """The function that makes batches of samples; None for scenes."""
        return None

    def build_size_predictor(self) -> PredictSizes | None:
        """Return the function that predicts the sizes of samples, so that a batch has similar ones; None for none."""
        return None

    @abstractmethod
    def compute_scores(self, run_dir: RunDir, average: Mapping[str, Tensor] | None, *, digest: str | None) -> S:
        """Return the scores on the test set of the model, or of its averaged weights. All processes call this.

        `digest` is that of the model's last weights, whose predictions and those of their averages may be stored; None
        before the last step.
        """

    @abstractmethod
    def get_score(self, scores: S) -> float:
        """Return the value by which the best weights are chosen."""

    @abstractmethod
    def scores_to_row(self, prefix: str, scores: S) -> dict[str, float]:
        """Return the values to log, with keys that begin with `prefix/`."""

    @abstractmethod
    def describe_scores(self, scores: S, average_scores: S | None) -> str:
        """Return the scores in words."""

    @abstractmethod
    def write_final_result(
        self, run_dir: RunDir, digest: str, scores: S, average_scores: S | None, best_checkpoint: BestCheckpoint
    ) -> None:
        """Write the result of the last weights, which have this digest. All processes call this."""

    def compute_digest(self) -> str:
        """Return the digest of the model, the same on all processes, which must all call this."""
        return compute_model_digest(self.model, self.world)

    @contextmanager
    def open_batches(self, step: int) -> Iterator[BatchStream[Any]]:
        """Return the training batches from a step on."""
        stream = self.config.data.stream_training_batches(
            self.scenes,
            self.build_view(),
            self.plan,
            step,
            seed=self.config.training.seed,
            rank=self.world.rank,
            pin_memory=self.world.device.type == "cuda",
            collate=self.collate,
            predict_sizes=self.build_size_predictor(),
        )
        with closing(stream), explain_worker_death():
            yield stream

    def check_broken(self, num_broken: int) -> None:
        """Raise an error if too many samples are broken."""
        self.config.data.check_broken(num_broken, len(self.scenes))

    def is_evaluation_due(self, step: int) -> bool:
        """Return whether the model is tested after a step: after each epoch by default, and after the last step."""
        return is_due(step, self.config.watching.held_out_every or self.plan.steps_per_epoch, self.plan.steps)

    def evaluate(self, training: TrainingState, run_dir: RunDir, logger: RunLogger, *, is_start: bool = False) -> None:
        """Evaluate the model if this is due, save it if it is the best, and write the result of the last step."""
        step, total = training.step, self.plan.steps
        best_checkpoint = BestCheckpoint(run_dir.path / "best", self.world)
        if is_start:
            best_checkpoint.discard_after(step)
        if not self.is_evaluation_due(step):
            return
        # The digest comes first: reading the weights of a sharded model shards them again.
        digest = self.compute_digest() if step == total else None
        with unsharded(self.model):
            scores = self.compute_scores(run_dir, None, digest=digest)
            average_scores = (
                self.compute_scores(run_dir, training.ema, digest=digest) if training.ema is not None else None
            )
        rows = read_rows_of_step(run_dir.metrics, step) if is_start and self.world.is_main else []
        if not self.world.broadcast_object(any(self.row_key in row for row in rows)):
            average_row = self.scores_to_row("average", average_scores) if average_scores is not None else {}
            logger.log_metrics(step, self.scores_to_row("test", scores) | average_row)
            logger.print_line(f"step {step:,}: {self.describe_scores(scores, average_scores)}")
        values = {"model": self.get_score(scores)}
        if average_scores is not None:
            values["ema"] = self.get_score(average_scores)
        best_checkpoint.update(training, values, self.metadata())
        if digest is not None:
            self.write_final_result(run_dir, digest, scores, average_scores, best_checkpoint)


def train_in_run_dir(
    build: Callable[[Any, World, RunDir | None], Experiment],
    config: Any,
    output_dir: Path,
    world: World,
    *,
    resume: bool = False,
    accept_changes: bool = False,
) -> RunOutcome:
    """Train in a run directory, or resume its run. `build` gets the directory of a run that has checkpoints."""
    with locked_run_dir(output_dir, world) as run_dir:
        config = resolve_precision(config, run_dir, world)
        experiment = build(config, world, run_dir if not is_new_run(run_dir, world) else None)
        return run_experiment(experiment, run_dir, resume=resume, accept_changes=accept_changes)


def read_saved_run(run_dir: RunDir, world: World) -> RunInfo:
    """Return the description of a run, with its newest intact checkpoint."""
    info = world.broadcast_object(read_run_info(run_dir.path) if world.is_main else None)
    if info.step is None:
        raise UserError(f"{run_dir.checkpoints}: no checkpoint is intact. Restore one, or start again in another --out")
    return info  # type: ignore[no-any-return]


def compute_model_digest(model: nn.Module, world: World, average: Mapping[str, Tensor] | None = None) -> str:
    """Return the digest of a model with a spec, the same on all processes, which must all call this.

    `average` are averaged weights, which replace its own.
    """
    tensors = gather({**model.state_dict(), **(average or {})})  # the main process gets the tensors
    digest = compute_tensors_digest(tensors, spec_identity(model.spec)) if world.is_main else ""  # type: ignore[arg-type]
    return str(world.broadcast_object(digest))


def check_unchanged(settings: Mapping[str, tuple[Any, Any]]) -> None:
    """Raise a `UserError` for the first setting whose saved and new values differ."""
    for name, values in settings.items():
        if values[0] != values[1]:
            saved, new = (", ".join(sorted(value)) if isinstance(value, set) else value for value in values)
            raise UserError(f"{name}: expected {saved}, as at the start of this run, got {new}. Choose another --out")


def freeze_blocks(
    model: nn.Module, backbone: Backbone, train_blocks: int | None, trained: Sequence[nn.Module | None]
) -> None:
    """Train only the last `train_blocks` blocks and the modules `trained`; everything if it is None.

    `model` declares its layers: the embeddings, then each block.
    """
    if train_blocks is None:
        return
    if train_blocks > backbone.depth:
        raise UserError(f"train_blocks: expected at most {backbone.depth}, the backbone's blocks, got {train_blocks}")
    model.requires_grad_(False)
    blocks = model.trunk_layers()[1:]  # type: ignore[operator]
    for block in blocks[len(blocks) - train_blocks :]:
        for parameter in block:
            parameter.requires_grad_(True)
    for module in trained:
        if module is not None:
            module.requires_grad_(True)
