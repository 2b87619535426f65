"""Loading of models with transformers: from folders only, from safetensors only, without code of the folder.

transformers fills parameters that a file lacks with random numbers, and takes a file of pickles if it finds no other.
Here, every missing or differing parameter is an error.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from c2fmae.core.errors import UserError
from c2fmae.core.failures import describe_failure
from c2fmae.labelling.families import ModelFamily
from c2fmae.labelling.image_processors import check_resizes
from c2fmae.labelling.model_folder import (
    check_model_folder,
    compute_model_digest,
    read_licence,
    resolve_model_folder,
)

log = logging.getLogger(__name__)

_MAX_LISTED = 5  # parameters in an error


@dataclass(frozen=True)
class PretrainedModel:
    """A model in evaluation mode, with what it was loaded from."""

    folder: Path
    model_type: str
    model: Any
    processor: Any
    digest: str
    """SHA-256 of its files."""
    licence: str
    unexpected: tuple[str, ...] = ()
    """Parameters of the file that the model does not have."""

    def describe(self) -> dict[str, Any]:
        """Return what the maps depend on, with the licence; the path is left out, so that folders can be moved."""
        return {
            "name": self.folder.resolve().name,
            "model": self.model_type,
            "sha256": self.digest,
            "licence": self.licence,
        }


def import_transformers() -> Any:
    """Return the package, or raise a `UserError` that names the extra to install."""
    try:
        import transformers
    except ImportError as error:
        raise UserError(
            'this labeller needs the package transformers. Install it: pip install "c2fmae[label]"'
        ) from error
    return transformers


def load_pretrained(
    path: str, families: Mapping[str, ModelFamily], *, option: str, device: str | torch.device = "cpu"
) -> PretrainedModel:
    """Return the model of a folder whose model type is a key of `families`, in float32.

    `option` is the setting that names the folder, for messages.
    """
    folder = resolve_model_folder(path, option=option)
    model_type = check_model_folder(folder, families)
    family = families[model_type]
    transformers = import_transformers()
    with quiet(transformers):
        model, unexpected = _load_model(folder, _get_class(transformers, family.model_class))
        processor = _load_processor(folder, _get_class(transformers, family.processor_class), family.processor_options)
    check_resizes(folder, getattr(processor, "image_processor", processor))
    if family.has_tokenizer:
        _check_vocabulary(folder, model, processor)
    if unexpected:  # transformers lists no parameters of larger models, such as trackers
        log.warning(
            "%s: %d of its parameters are not in %s and are not used: %s",
            folder,
            len(unexpected),
            family.model_class,
            _list_names(unexpected[:1]) + (", …" if len(unexpected) > 1 else ""),
        )
    return PretrainedModel(
        folder=folder,
        model_type=model_type,
        model=model.eval().requires_grad_(False).to(device),
        processor=processor,
        digest=compute_model_digest(folder),
        licence=read_licence(folder),
        unexpected=unexpected,
    )


@contextmanager
def quiet(transformers: Any) -> Iterator[None]:
    """Turn off transformers' messages and progress bars; errors are raised, not logged."""
    settings = transformers.utils.logging
    verbosity, shows_bars = settings.get_verbosity(), settings.is_progress_bar_enabled()
    settings.set_verbosity_error()
    settings.disable_progress_bar()
    try:
        yield
    finally:
        settings.set_verbosity(verbosity)
        if shows_bars:
            settings.enable_progress_bar()


def _get_class(transformers: Any, name: str) -> Any:
    found = getattr(transformers, name, None)
    if found is None:
        raise UserError(
            f"transformers {transformers.__version__} has no {name}. Install a later version:"
            ' pip install -U "c2fmae[label]"'
        )
    return found


def _load_model(folder: Path, model_class: Any) -> tuple[Any, tuple[str, ...]]:
    with _explained(folder, model_class.__name__):
        model, loading = model_class.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # they are listed below with the missing ones, all at once
            output_loading_info=True,
        )
    mismatched = [
        f"{name} (shape {_format_shape(stored)}, expected {_format_shape(expected)})"
        for name, stored, expected in sorted(loading["mismatched_keys"])
    ]
    problems = [
        f"{len(names)} {kind}: {_list_names(names)}"
        for kind, names in (("missing", sorted(loading["missing_keys"])), ("of another shape", mismatched))
        if names
    ]
    problems += list(loading["error_msgs"])
    if problems:
        raise UserError(
            f"{folder}: its weights do not fit {model_class.__name__}: {'; '.join(problems)}. Download the folder"
            " again, or use the config.json that belongs to these weights"
        )
    return model, tuple(sorted(loading["unexpected_keys"]))


def _load_processor(folder: Path, processor_class: Any, options: Mapping[str, Any]) -> Any:
    with _explained(folder, processor_class.__name__):
        return processor_class.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **options)


@contextmanager
def _explained(folder: Path, class_name: str) -> Iterator[None]:
    """Raise exceptions of transformers, which have many types, as a `UserError` with their first sentences."""
    try:
        yield
    except Exception as error:
        if describe_failure(error):  # no memory, and other failures of the machine
            raise
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(
            f"{folder}: transformers cannot load it as {class_name}: {reason.rstrip('.')}. Download the folder again"
        ) from error


def _check_vocabulary(folder: Path, model: Any, processor: Any) -> None:
    """Refuse a tokenizer of another model: from missing files, transformers builds one with a handful of tokens."""
    num_tokens = len(processor.tokenizer)
    if (expected := getattr(model.config, "text_encoder_vocab_size", None)) is None:  # which OneFormer has
        expected = model.config.get_text_config().vocab_size
    if num_tokens != expected:
        raise UserError(
            f"{folder}: its tokenizer has {num_tokens:,} tokens, but its model {expected:,}. Download the folder again"
            " with the tokenizer that belongs to the model"
        )


def _list_names(names: Sequence[str]) -> str:
    more = f", … ({len(names) - _MAX_LISTED} more)" if len(names) > _MAX_LISTED else ""
    return ", ".join(names[:_MAX_LISTED]) + more


def _format_shape(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))
