"""Migration of configs that earlier versions wrote, in YAML files, checkpoints and exported folders.

Format 1 (version 0.1) had no `format` key, wrote options of choices beside their names, and had other names for some
settings. Migration changes old keys only, so values in the current format pass through unchanged.
"""

from collections.abc import Callable, Mapping
from typing import Any

from c2fmae.core.choice import Choice
from c2fmae.core.errors import UserError

FORMAT = 2

_OLD_DECODER_OPTIONS = (
    "order",
    "dim",
    "num_heads",
    "depth",
    "mlp_ratio",
    "context",
    "carry",
    "query_residual",
    "entry",
    "stage_per",
    "has_norm",
)
_OLD_MASKING_OPTIONS = ("curriculum", "blend", "object_share", "max_objects", "weights")


def migrate_pretraining(values: Mapping[str, Any]) -> dict[str, Any]:
    """Migrate the config of a pre-training run or a recipe.

    Files without `mask_noise` were written before there was a choice; their runs keep their masks.
    """
    tree = _migrate_experiment(values, method=migrate_method, data=migrate_data, watching=_migrate_watching)
    if isinstance(method := tree.get("method"), Mapping) and method.get("kind", "masked") == "masked":
        tree["method"] = {**method, "mask_noise": method.get("mask_noise", "batch")}
    return tree


def migrate_finetuning(values: Mapping[str, Any]) -> dict[str, Any]:
    """Migrate the config of a fine-tuning run."""
    return _migrate_experiment(values, data=migrate_labelled_data, watching=_migrate_watching)


def migrate_method(values: Mapping[str, Any]) -> dict[str, Any]:
    """Migrate `method`."""
    from c2fmae.config.decoder import DecoderConfig
    from c2fmae.config.masking import MaskingConfig

    tree = _rename_keys(values, weights="loss_weights", average="loss_average")
    if isinstance(encoder := tree.get("encoder"), dict):
        tree["encoder"] = _rename_keys(encoder, checkpoint="grad_checkpointing")
    if isinstance(decoder := tree.get("decoder"), dict):
        tree["decoder"] = _nest_options(decoder, DecoderConfig, _OLD_DECODER_OPTIONS)
    if isinstance(masking := tree.get("masking"), dict):
        tree["masking"] = _nest_options(_rename_keys(masking, policy="name"), MaskingConfig, _OLD_MASKING_OPTIONS)
    return tree


def migrate_data(values: Mapping[str, Any]) -> dict[str, Any]:
    """Migrate `data` of pre-training."""
    tree = _rename_keys(values, keep="cache")
    for source in ("train", "held_out"):
        key = "options" if source == "train" else f"{source}_options"
        _nest_source_options(tree, source, tree.pop(key, None))
    return tree


def migrate_labelled_data(values: Mapping[str, Any]) -> dict[str, Any]:
    """Migrate the training and test sets of fine-tuning and probes. In format 1, `options` applied to both."""
    tree = _rename_keys(values, keep="cache")
    options, test_options = (tree.pop(key, None) or {} for key in ("options", "test_options"))
    for value in (options, test_options):
        if not isinstance(value, Mapping):
            raise UserError(f"options: expected a mapping of settings (key: value), got {value!r}")
    _nest_source_options(tree, "train", options)
    _nest_source_options(tree, "test", {**options, **test_options})
    return tree


def migrate_source(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Migrate the source under a key. Format 1 stored its options under a separate key, `options`."""
    tree = dict(values)
    _nest_source_options(tree, key, tree.pop("options", None))
    return tree


def _migrate_watching(values: Mapping[str, Any]) -> dict[str, Any]:
    return _rename_keys(values, pictures="figures", pictures_every="figures_every")


def _migrate_experiment(
    values: Mapping[str, Any], **migrations: Callable[[Mapping[str, Any]], dict[str, Any]]
) -> dict[str, Any]:
    version = values.get("format", 1)
    if isinstance(version, int) and version > FORMAT:
        raise UserError(f"format: expected at most {FORMAT}, got {version}. Upgrade c2fmae, which wrote the file")
    if version != 1:
        return dict(values)
    sections = {key: migrate for key, migrate in migrations.items() if isinstance(values.get(key), Mapping)}
    return {"format": FORMAT, **values, **{key: migrate(values[key]) for key, migrate in sections.items()}}


def _nest_source_options(tree: dict[str, Any], source: str, options: Any) -> None:
    """Move the options of a registered data set, which format 1 stored under a separate key, into the source."""
    if options and isinstance(name := tree.get(source), str):
        tree[source] = {"name": name, "options": options}


def _rename_keys(values: Mapping[str, Any], **new_names: str) -> dict[str, Any]:
    return {new_names.get(key, key): value for key, value in values.items()}


def _nest_options(values: dict[str, Any], choice: type[Choice], old_options: tuple[str, ...]) -> dict[str, Any]:
    """Move old options into `options`. Format 1 wrote all options; those that do not apply had no effect."""
    given = values.get("options") or {}
    if not values.keys() & set(old_options) or not isinstance(given, Mapping):
        return values
    name = values.get("name", choice.model_fields["name"].default)
    known = (
        choice.option_class(name).model_fields if isinstance(name, str) and name in choice.registry() else old_options
    )
    options = {key: value for key, value in values.items() if key in old_options and key in known}
    others = {key: value for key, value in values.items() if key not in old_options}
    return {**others, "options": {**options, **given}}
