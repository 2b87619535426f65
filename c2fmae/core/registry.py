"""Registries of plug-ins: objects that are registered where they are defined and looked up by name.

Another package adds to them through the entry-point group `c2fmae.plugins`. Each entry names a module that registers
its objects when it is imported:

    [project.entry-points."c2fmae.plugins"]
    mine = "my_package.my_masks"
"""

from collections.abc import Callable, Iterator
from copy import deepcopy
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from c2fmae.core.errors import UserError, unknown_name_error

T = TypeVar("T")
U = TypeVar("U")

_REGISTRIES: list["Registry[object]"] = []
_PENDING_PLUGINS: list[EntryPoint] | None = None  # plug-ins not imported yet; None before the first lookup
_PLUGIN_ENTRIES: dict[str, dict[str, list[str]]] = {}  # names by kind, by package
_LOADING_PACKAGE: str | None = None  # the package whose plug-in is being imported


def list_registries() -> list["Registry[object]"]:
    """Return every registry of the modules imported so far, sorted by kind."""
    return sorted(_REGISTRIES, key=lambda registry: registry.kind)


def load_plugins() -> None:
    """Import the modules that other packages list under `c2fmae.plugins`, once per process."""
    global _PENDING_PLUGINS, _LOADING_PACKAGE
    if _PENDING_PLUGINS is None:
        _PENDING_PLUGINS = list(entry_points(group="c2fmae.plugins"))
    while _PENDING_PLUGINS:
        entry = _PENDING_PLUGINS.pop(0)  # removed first: a plug-in may look up a name while it is imported
        package = entry.dist.name if entry.dist else "an unknown package"
        importer, _LOADING_PACKAGE = _LOADING_PACKAGE, package
        try:
            entry.load()
        except Exception as error:
            raise UserError(
                f"plug-in {entry.name!r} of {package} ({entry.value}) failed to load: {error}. Repair or uninstall it"
            ) from error
        finally:
            _LOADING_PACKAGE = importer


def list_plugin_entries() -> dict[str, dict[str, list[str]]]:
    """Return the names that each other package has registered so far, by kind: `{"my-masks": {"mask": ["rows"]}}`."""
    return deepcopy(_PLUGIN_ENTRIES)


class Registry(Generic[T]):
    """Plug-ins of one kind, by name.

    >>> shapes: Registry[type] = Registry("shape")
    >>> @shapes.register("disc")
    ... class Disc:
    ...     '''A filled circle.'''
    >>> shapes.get("disk")
    Traceback (most recent call last):
    c2fmae.core.errors.UserError: no shape named 'disk'. Did you mean 'disc'? Known: disc
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}
        self._summaries: dict[str, str] = {}
        self._option_classes: dict[str, type[Any]] = {}
        _REGISTRIES.append(self)  # type: ignore[arg-type]  # listed, never written to through the list

    def register(self, name: str, summary: str = "", *, options: type[Any] | None = None) -> Callable[[U], U]:
        """Return a decorator that registers an object.

        Lists describe it by `summary`, or else by the first line of its docstring. `options` is the config class of its
        options (see `c2fmae.core.choice`); without one, they are its keyword-only parameters.
        """

        def decorate(entry: U) -> U:
            if name in self._entries:
                raise UserError(f"{self.kind} {name!r} is registered already, by {_module_name(self._entries[name])}")
            line = (summary or getattr(entry, "__doc__", None) or "").strip().partition("\n")[0]
            if not line:
                raise UserError(f"{self.kind} {name!r} needs a docstring: its first line is shown in lists")
            self._entries[name] = entry  # type: ignore[assignment]  # T may be a Protocol, which the class implements
            self._summaries[name] = line
            if _LOADING_PACKAGE and not _module_name(entry).startswith("c2fmae."):  # it may import this package
                _PLUGIN_ENTRIES.setdefault(_LOADING_PACKAGE, {}).setdefault(self.kind, []).append(name)
            if options is not None:
                self._option_classes[name] = options
            return entry

        return decorate

    def get(self, name: str) -> T:
        """Return the entry of a name, or raise a `UserError` that suggests the most similar name."""
        if name not in self._entries:
            load_plugins()
        if name not in self._entries:
            raise unknown_name_error(self.kind, name, self._entries)
        return self._entries[name]

    def describe(self, name: str) -> str:
        """Return the one-line description of an entry."""
        self.get(name)
        return self._summaries[name]

    def option_class(self, name: str) -> type[Any] | None:
        """Return the class that an entry was registered with for its options, if any."""
        self.get(name)
        return self._option_classes.get(name)

    def find_name(self, entry: object) -> str:
        """Return the name under which an object is registered."""
        return next(name for name, registered in self._entries.items() if registered is entry)

    def __iter__(self) -> Iterator[str]:
        load_plugins()
        return iter(sorted(self._entries))


def _module_name(entry: object) -> str:
    return getattr(entry, "__module__", type(entry).__module__)
