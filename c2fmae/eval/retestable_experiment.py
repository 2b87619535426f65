"""Trainings whose predictions of the final test are stored, and whose finished runs can be tested again."""

import shutil
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar, runtime_checkable

from torch import Tensor, nn

from c2fmae.core.distributed import World
from c2fmae.core.errors import UserError
from c2fmae.core.labels import ClassInfo
from c2fmae.core.run_dir import RunDir
from c2fmae.core.specs import BackboneSpec, spec_identity
from c2fmae.data import Scenes
from c2fmae.eval.best_checkpoint import BestCheckpoint, BestScore
from c2fmae.eval.cache import compute_module_digest
from c2fmae.eval.datasets import OpenedSet, check_same_names
from c2fmae.eval.results import EvaluationResult
from c2fmae.eval.training_experiment import ScoredExperiment, compute_model_digest
from c2fmae.eval.training_results import (
    PREDICTIONS_DIR,
    TestRecord,
    TrainingResults,
    is_outdated,
    mark_outdated,
)

S = TypeVar("S")
S_co = TypeVar("S_co", covariant=True)


@runtime_checkable
class Evaluator(Protocol[S_co]):
    """Evaluates models of one kind on a set of scenes."""

    @property
    def scenes(self) -> Scenes:
        """The set."""
        ...

    def evaluate(self, model: Any, weights: Mapping[str, Tensor] | None = None, *, store: Any = None) -> S_co:
        """Return the scores of a model, optionally with other `weights`, whose predictions are in a `store`."""
        ...


class RetestableExperiment(ScoredExperiment[S], Generic[S]):
    """A training of a model with a spec. The predictions of its final test are stored: a stopped test resumes."""

    evaluator: Evaluator[S]
    protocol: str
    load_report: str
    """The report on the initial weights."""
    test_identity: str
    """The digest of the test set."""

    results: ClassVar[TrainingResults]
    trained_model: ClassVar[str]
    """What is trained, which is also the key of its spec in the metadata: segmenter or detector."""
    class_names: ClassVar[Literal["class_names", "object_class_names"]]
    """The property of a set's description that holds the classes of the model."""

    @classmethod
    @abstractmethod
    def load_model(cls, run_dir: Path, *, step: int | None, use_ema: bool) -> nn.Module:
        """Return the model of a run."""

    @classmethod
    @abstractmethod
    def open_set(cls, split: Literal["train", "test"], config: Any, backbone: BackboneSpec) -> OpenedSet:
        """Open a set of images. Raise a `UserError` if it cannot be used with the config."""

    @classmethod
    @abstractmethod
    def build_evaluator(cls, scenes: Scenes, config: Any, world: World, *, show_progress: bool = False) -> Evaluator[S]:
        """Return the evaluator of a test."""

    @classmethod
    @abstractmethod
    def make_store(cls, predictions_dir: Path, identity: Mapping[str, Any]) -> Any:
        """Return the store of predictions in a directory."""

    @classmethod
    @abstractmethod
    def describe_test(cls, config: Any, model: Any, test: OpenedSet) -> str:
        """Return a description of a test."""

    @classmethod
    @abstractmethod
    def write_result(
        cls,
        record: TestRecord,
        config: Any,
        scores: S,
        classes: Sequence[ClassInfo],
        scenes: Scenes,
        store: Any,
        *,
        average_scores: S | None = None,
        best: BestScore | None = None,
    ) -> EvaluationResult:
        """Write the result of a test. `best` is the highest score during training."""

    @classmethod
    def open_sets(cls, config: Any, backbone: BackboneSpec) -> tuple[OpenedSet, OpenedSet]:
        """Return the training and the test set, which have the same classes."""
        train, test = (cls.open_set(split, config, backbone) for split in ("train", "test"))
        check_same_names((train, test), cls.class_names)
        return train, test

    @classmethod
    def check_classes(cls, split: str, opened: OpenedSet, classes: Sequence[ClassInfo]) -> None:
        """Raise a `UserError` if the classes of a set are not those of a trained model."""
        if getattr(opened.scenes.info, cls.class_names) != tuple(entry.name for entry in classes):
            raise UserError(
                f"{split}: {opened.name} has other classes than this run was trained on. Use a set of the original "
                "classes"
            )

    def metadata(self) -> dict[str, Any]:
        """Return the metadata of checkpoints."""
        spec: Any = self.model.spec
        return {
            "kind": self.config.kind,
            "backbone": spec.backbone.model_dump(mode="json"),
            self.trained_model: spec.model_dump(mode="json", exclude={"backbone"}),
            "config": self.config.model_dump(mode="json", exclude={"backbone"}),
            "samples": len(self.scenes),
            "load_report": self.load_report,
        }

    def compute_scores(self, run_dir: RunDir, average: Mapping[str, Tensor] | None, *, digest: str | None) -> S:
        """Return the scores on the test set. Predictions of the last weights and of their averages are stored.

        Those of averaged weights are where a test of them looks for them.
        """
        if digest is None:
            return self.evaluator.evaluate(self.model, average)
        identity = None
        if average is not None:
            digest = compute_model_digest(self.model, self.world, average)
            identity = self.results.identify_result(digest, self.test_identity, self.config.testing)
        predictions_dir = self.results.locate_dir(run_dir.path, identity) / PREDICTIONS_DIR
        predictions = self.results.identify_predictions(digest, self.test_identity, self.config.testing)
        return self.evaluator.evaluate(self.model, average, store=self.make_store(predictions_dir, predictions))

    def write_final_result(
        self, run_dir: RunDir, digest: str, scores: S, average_scores: S | None, best_checkpoint: BestCheckpoint
    ) -> None:
        """Write the result of the last weights."""
        if not self.world.is_main:
            return
        result_dir = self.results.locate_dir(run_dir.path)
        spec: Any = self.model.spec
        self.write_result(
            TestRecord(
                result_dir,
                self.config.title,
                self.protocol,
                self.results.identify_result(digest, self.test_identity, self.config.testing),
                self.load_report,
                self.world.size,
            ),
            self.config,
            scores,
            spec.classes,
            self.evaluator.scenes,
            self.make_store(result_dir / PREDICTIONS_DIR, {}),
            average_scores=average_scores,
            best=best_checkpoint.score,
        )

    @classmethod
    def retest(
        cls,
        config: Any,
        run_dir: Path,
        world: World,
        *,
        step: int | None = None,
        use_ema: bool = False,
        recompute: bool = False,
    ) -> EvaluationResult:
        """Test the model of a finished run with the settings `testing` of a config, or return the stored result.

        All processes must call this. A result replaces the stored one of the same identity, and predictions that other
        results of this run have stored are used; with `recompute`, they are computed again.
        """
        if (RunDir(run_dir).read_state() or {}).get("status") != "finished":
            command = f"c2fmae eval {cls.results.evaluation} {run_dir} --resume"
            raise UserError(f"{run_dir}: is not finished. Resume it first: {command}")
        model: Any = cls.load_model(run_dir, step=step, use_ema=use_ema).to(world.device)
        test = cls.open_set("test", config, model.spec.backbone)
        cls.check_classes("test", test, model.spec.classes)
        digest = compute_module_digest(model, spec_identity(model.spec))
        identity = cls.results.identify_result(digest, test.identity, config.testing)
        stored: EvaluationResult | None = world.broadcast_object(
            cls.results.find(run_dir, identity) if world.is_main else None
        )
        if stored is not None and not recompute and not world.broadcast_object(is_outdated(stored.result_dir)):
            return stored
        result_dir = stored.result_dir if stored is not None else cls.results.locate_dir(run_dir, identity)
        predictions = cls.results.identify_predictions(digest, test.identity, config.testing)
        predictions_dir = world.broadcast_object(
            cls.results.find_predictions(run_dir, predictions) or result_dir / PREDICTIONS_DIR
        )
        if recompute and world.is_main:
            mark_outdated(result_dir)
            shutil.rmtree(predictions_dir, ignore_errors=True)
        store = cls.make_store(predictions_dir, predictions)
        scores = cls.build_evaluator(test.scenes, config, world, show_progress=True).evaluate(model, store=store)
        result = None
        if world.is_main:
            title = f"{run_dir}{f', step {step:,}' if step is not None else ''}{', averaged weights' * use_ema}"
            protocol = f"The {cls.trained_model} of {title}. {cls.describe_test(config, model, test)}"
            own = stored if result_dir == cls.results.locate_dir(run_dir) else None
            if own is not None:  # its protocol describes the training, too
                title, protocol = own.source, own.protocol
            record = TestRecord(result_dir, title, protocol, identity, str(model.load_report), world.size, own)
            result = cls.write_result(record, config, scores, model.spec.classes, test.scenes, store)
        result = world.broadcast_object(result)
        assert isinstance(result, EvaluationResult)
        return result
