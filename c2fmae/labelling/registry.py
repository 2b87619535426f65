"""The registry of labellers, and their construction from the text of an option such as `--instances`.

A labeller is written `NAME`, `NAME:PATH,PATH` or `package.module:Class`. An entry of the registry is a class that is
registered with the config class of its options, and built as `Entry(options, context)`. The class variable
`path_options` of that config lists the options that the paths fill, in order. A class outside of the registry is built
with its options as keyword arguments.
"""

import importlib
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from c2fmae.core.choice import get_option_class
from c2fmae.core.config import Config
from c2fmae.core.errors import UserError, did_you_mean, unknown_name_error
from c2fmae.core.registry import Registry

if TYPE_CHECKING:
    import c2fmae.labelling.context
    import c2fmae.labelling.protocol

LABELLERS: Registry[Callable[..., Any]] = Registry("labeller")

GRANULARITY_BY_OPTION: Mapping[str, str] = {"semantics": "semantic", "instances": "instance"}

_CLASS_PATH = re.compile(r"(?:[^\W\d]\w*\.)*[^\W\d]\w*:[^\W\d]\w*")


@dataclass(frozen=True)
class LabellerSpec:
    """A labeller with checked options."""

    option: str
    """The option that chose it, "semantics" or "instances", for messages."""
    name: str
    """A registered name, or `package.module:Class`."""
    options: Config | Mapping[str, Any]
    """The options of a registered labeller, or the keyword arguments of a class."""

    def is_same_labeller(self, other: "LabellerSpec") -> bool:
        """Return whether another spec builds an equal labeller."""
        return (self.name, self.options) == (other.name, other.options)

    def build(self, context: "c2fmae.labelling.context.LabellerContext") -> "c2fmae.labelling.protocol.Labeller":
        """Return the labeller. Raise a `UserError` that lists the members which it lacks."""
        if isinstance(self.options, Config):
            labeller = LABELLERS.get(self.name)(self.options, context)
        else:
            labeller = _import_class(self.name, self.option)(**self.options)
        _check_members(labeller, f"--{self.option} {self.name}")
        return labeller  # type: ignore[no-any-return]


def parse_labeller(text: str, options: Mapping[str, Any] | None = None, *, option: str) -> LabellerSpec:
    """Return the labeller of an option. Raise a `UserError` for an unknown name, or that lists all invalid options."""
    import c2fmae.labelling.builtin  # noqa: F401 - registers the labellers

    name, _, paths = text.partition(":")
    if name in list(LABELLERS):
        return LabellerSpec(option, name, _parse_options(name, paths, options or {}, option))
    if _CLASS_PATH.fullmatch(text):
        return LabellerSpec(option, text, _parse_arguments(text, options or {}, option))
    raise UserError(f"--{option}: {unknown_name_error(LABELLERS.kind, name, LABELLERS)}, or package.module:Class")


def build_labellers(
    semantics: str | None,
    instances: str | None,
    context: "c2fmae.labelling.context.LabellerContext",
    *,
    semantics_options: Mapping[str, Any] | None = None,
    instances_options: Mapping[str, Any] | None = None,
) -> "tuple[c2fmae.labelling.protocol.Labeller, ...]":
    """Return the labellers of both options; a single one that makes both maps if the options are equal.

    Each labeller makes only the maps that it was chosen for, so each map is made once.
    """
    given = [("semantics", semantics, semantics_options), ("instances", instances, instances_options)]
    specs = [parse_labeller(text, options, option=option) for option, text, options in given if text is not None]
    if not specs:
        raise UserError("no labeller is chosen. Add --instances, --semantics, or both, such as --instances regions")
    if len(specs) == 2 and specs[0].is_same_labeller(specs[1]):
        return (_build_restricted(specs[0], frozenset(GRANULARITY_BY_OPTION.values()), context),)
    return tuple(_build_restricted(spec, frozenset([GRANULARITY_BY_OPTION[spec.option]]), context) for spec in specs)


def _build_restricted(
    spec: LabellerSpec, wanted: frozenset[str], context: "c2fmae.labelling.context.LabellerContext"
) -> "c2fmae.labelling.protocol.Labeller":
    """Return a labeller that makes exactly the wanted maps."""
    from c2fmae.labelling.restricted import RestrictedLabeller

    if isinstance(spec.options, Config):
        makes = getattr(LABELLERS.get(spec.name), "granularities", None)
        if isinstance(makes, frozenset):  # that of others depends on their options
            _check_granularities(spec, wanted, makes)  # before weights are read
    labeller = spec.build(replace(context, granularities=wanted))
    _check_granularities(spec, wanted, labeller.granularities)
    return labeller if labeller.granularities == wanted else RestrictedLabeller(labeller, wanted)


def _check_granularities(spec: LabellerSpec, wanted: frozenset[str], makes: frozenset[str]) -> None:
    """Raise a `UserError` if a labeller does not make a wanted map."""
    if missing := sorted(wanted - makes):
        option = next(option for option, name in GRANULARITY_BY_OPTION.items() if name in missing)
        made = " and ".join(sorted(makes)) or "no"
        raise UserError(
            f"--{option} {spec.name}: makes {made} maps only (expected {missing[0]} maps). Choose another labeller"
        )


def _parse_options(name: str, paths: str, options: Mapping[str, Any], option: str) -> Config:
    """Return the options of a registered labeller, some of which are given as paths."""
    option_class = get_option_class(LABELLERS, name)
    path_options: tuple[str, ...] = getattr(option_class, "path_options", ())
    given = [path.strip() for path in paths.split(",")] if paths else []
    usage = f"{name}:{','.join(path.upper() for path in path_options)}" if path_options else name
    if len(given) > len(path_options):
        raise UserError(
            f"--{option} {name}: expected {len(path_options) or 'no'} paths, got {len(given)}. Write --{option} {usage}"
        )
    values = {**dict(zip(path_options, given, strict=False)), **options}
    fields = option_class.model_fields
    missing = [path for path in path_options if fields[path].is_required() and not values.get(path)]
    if missing:
        raise UserError(f"--{option} {name}: needs {' and '.join(missing)}. Write --{option} {usage}")
    return option_class.from_dict(values, source=f"{option} ({name})")


def _parse_arguments(path: str, options: Mapping[str, Any], option: str) -> dict[str, Any]:
    """Return the keyword arguments of a class; values of parameters that are configs are read as such."""
    try:
        signature = inspect.signature(_import_class(path, option), eval_str=True)
    except NameError as error:
        raise UserError(f"--{option} {path}: an annotation of its parameters cannot be resolved: {error}") from error
    parameters = signature.parameters
    is_open = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    named = [name for name, each in parameters.items() if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    problems = [
        f"{key}: no such option. {did_you_mean(key, named) or 'Options: ' + (', '.join(named) or 'none')}"
        for key in options
        if key not in named and not is_open
    ]
    problems += [
        f"{key}: is required"
        for key in named
        if parameters[key].default is inspect.Parameter.empty and key not in options
    ]
    if problems:
        raise UserError(f"--{option} {path}: {'; '.join(problems)}. Set options with --set {option}.KEY=VALUE")
    arguments = dict(options)
    for key, value in options.items():
        kind = parameters[key].annotation if key in parameters else None
        if isinstance(kind, type) and issubclass(kind, Config):
            arguments[key] = kind.from_dict(value, source=f"{option}.{key}")
    return arguments


def _import_class(path: str, option: str) -> Callable[..., Any]:
    module_name, _, class_name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the module is foreign code
        hint = did_you_mean(module_name, LABELLERS)
        raise UserError(
            f"--{option} {path}: the module {module_name!r} cannot be imported: {error}. Install its package or fix it"
            f"{', or choose a registered labeller. ' + hint if hint else ''}"
        ) from error
    if not callable(found := getattr(module, class_name, None)):
        public = [name for name in vars(module) if not name.startswith("_") and name != class_name]
        hint = did_you_mean(class_name, public) or "Check the name"
        raise UserError(f"--{option} {path}: the module {module_name!r} has no class {class_name!r}. {hint}")
    return found  # type: ignore[no-any-return]


def _check_members(labeller: object, origin: str) -> None:
    """Raise a `UserError` that lists all missing or invalid members."""
    from c2fmae.labelling.protocol import Labeller

    members = sorted(name for name in dir(Labeller) if not name.startswith("_"))
    methods = ("batch_key", "label", "describe")
    problems = [name for name in members if not hasattr(labeller, name)]
    problems += [
        f"{name} as a method" for name in methods if hasattr(labeller, name) and not callable(getattr(labeller, name))
    ]
    if problems:
        raise UserError(
            f"{origin}: is not a labeller, since it lacks {', '.join(problems)}. Add what"
            " c2fmae.labelling.protocol.Labeller describes"
        )
    granularities = labeller.granularities  # type: ignore[attr-defined]
    known = frozenset(GRANULARITY_BY_OPTION.values())
    if not isinstance(granularities, frozenset) or not granularities or not granularities <= known:
        raise UserError(
            f"{origin}: granularities is {granularities!r} (expected a frozenset of {' and '.join(sorted(known))}). Fix"
            " the labeller"
        )
