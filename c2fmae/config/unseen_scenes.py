"""Generated scenes to evaluate runs on: those of their training, with other seeds.

`generated` in an evaluation or a figure of a run stands for these scenes, unless options are given.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from c2fmae.config.data import DatasetConfig, DataSourceOption
from c2fmae.config.migrations import migrate_finetuning, migrate_pretraining
from c2fmae.core.errors import UserError

log = logging.getLogger(__name__)

_OWN_OPTIONS = ("size", "length", "seed")
"""Options that an evaluation chooses for itself."""

TRAIN_SEED_OFFSET, TEST_SEED_OFFSET = 1, 2
"""Added to `UnseenScenes.seed` for the training set of a probe, and for images to test or to draw."""


@dataclass(frozen=True)
class UnseenScenes:
    """Generated scenes like those of some runs, which none of them was trained on."""

    options: Mapping[str, Any] = field(default_factory=dict)
    """Options that the runs were trained with, such as the difficulty."""
    seed: int = 1000
    """A seed such that this one and the 999 after it were not trained on."""

    @classmethod
    def of_training(cls, sets: Sequence[Mapping[str, Any]]) -> "UnseenScenes":
        """Return the scenes for the options of generated training sets. They differ in size, length and seed at most.

        >>> UnseenScenes.of_training([{"difficulty": "plain", "seed": 2, "size": 32}])
        UnseenScenes(options={'difficulty': 'plain'}, seed=3000)
        """
        options = {key: value for key, value in sets[0].items() if key not in _OWN_OPTIONS}
        return cls(options, 1000 * (1 + max(int(training.get("seed", 0)) for training in sets)))

    @classmethod
    def of_source(cls, source: DataSourceOption | None) -> "UnseenScenes":
        """Return the scenes for a training on a source; the default ones if it is not generated."""
        parts = source if isinstance(source, tuple) else (source,)
        sets = [part.given_options() for part in parts if isinstance(part, DatasetConfig) and is_generated(part)]
        return cls.of_training(sets) if sets else cls()

    def fill(self, source: DataSourceOption, **defaults: Any) -> DataSourceOption:
        """Return a source in which generated scenes have these options and `defaults`, where none are given."""
        if isinstance(source, tuple):
            filled = [self.fill(part, **defaults) for part in source]
            return tuple(part for part in filled if not isinstance(part, tuple))
        if not is_generated(source):
            return source
        assert isinstance(source, DatasetConfig)
        return source.with_defaults(**defaults, **self.options)


def is_generated(source: DataSourceOption | None) -> bool:
    """Return whether a source is, or contains, generated scenes."""
    if isinstance(source, tuple):
        return any(map(is_generated, source))
    return isinstance(source, DatasetConfig) and source.name == "generated"


def find_unseen_scenes(
    models: Sequence[str], sets: Mapping[str, DataSourceOption | None], *, is_quiet: bool = False
) -> UnseenScenes | None:
    """Return the scenes that `generated` stands for in an evaluation of models, which are runs or other sources.

    `sets` are the data sets of the evaluation by their setting. Returns None if none of the models was trained on
    generated scenes, or none of the sets is generated. Raises a `UserError` if the models were trained on different
    scenes, and `sets` does not choose some.
    """
    generated = {key: source for key, source in sets.items() if is_generated(source)}
    if not generated:
        return None
    given = set.intersection(*(_given_options(source) for source in generated.values()))
    trained = [(model, options) for model in models for options in read_generated_sets(model)]
    if not trained:
        if not is_quiet and "difficulty" not in given:
            default = DatasetConfig(name="generated").options.difficulty
            log.info(
                "note: `generated` stands for scenes of difficulty %s, as %s was not trained on any. Choose others "
                "with %s",
                default,
                models[0],
                _format_choice(generated, "difficulty", "plain"),
            )
        return None
    first_model, first = trained[0]
    defaults = dict(DatasetConfig(name="generated").options)
    for model, options in trained[1:]:
        for key in defaults.keys() - given - {*_OWN_OPTIONS}:
            values = [training.get(key, defaults[key]) for training in (first, options)]
            if values[0] != values[1]:
                raise UserError(
                    f"generated: {first_model} and {model} were trained on different scenes, of {key} {values[0]} and "
                    f"{values[1]}. Choose one with {_format_choice(generated, key, values[0])}"
                )
    return UnseenScenes.of_training([options for _, options in trained])


def read_generated_sets(source: str) -> list[Mapping[str, Any]]:
    """Return the options of each generated set that a run was trained on; none for other sources."""
    from c2fmae.core.run_info import is_run_or_checkpoint, read_run_info  # imports torch

    if not is_run_or_checkpoint(Path(source)):
        return []
    info = read_run_info(Path(source))
    migrate = migrate_pretraining if info.kind == "pretraining" else migrate_finetuning
    data = migrate(info.config).get("data")
    train = data.get("train") if isinstance(data, Mapping) else None
    parts = train if isinstance(train, list | tuple) else [train]
    entries: list[Any] = [{"name": part} if isinstance(part, str) else part for part in parts]
    generated = [entry for entry in entries if isinstance(entry, Mapping) and entry.get("name") == "generated"]
    # A fine-tuning without a seed was trained on the default one of training sets.
    defaults = {} if info.kind == "pretraining" else {"seed": UnseenScenes.seed + TRAIN_SEED_OFFSET}
    return [{**defaults, **(entry.get("options") or {})} for entry in generated]


def _given_options(source: DataSourceOption | None) -> set[str]:
    """Return the options that are given for all generated scenes of a source."""
    parts = [part for part in (source if isinstance(source, tuple) else (source,)) if is_generated(part)]
    return set.intersection(*({*part.given_options()} for part in parts if isinstance(part, DatasetConfig)))


def _format_choice(sets: Mapping[str, DataSourceOption | None], option: str, value: object) -> str:
    return " ".join(f"--set {key}.options.{option}={value}" for key in sets)
