"""Plug-ins by name: an object is registered where it is defined and found by everyone else.

Another package joins in through the entry-point group `c2fmae.plugins`, each entry naming a module
that registers on import:

    [project.entry-points."c2fmae.plugins"]
    mine = "my_package.my_masks"
"""

from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from c2fmae.core.errors import UserError, unknown_name_error

T = TypeVar("T")
U = TypeVar("U")

_REGISTRIES: list["Registry[object]"] = []
_PENDING_PLUGINS: list[EntryPoint] | None = None  # plug-ins not imported yet; None before the first look


def list_registries() -> list["Registry[object]"]:
    """Return every registry of the modules imported so far, by kind."""
    return sorted(_REGISTRIES, key=lambda registry: registry.kind)


def load_plugins() -> None:
    """Import what other packages offer under `c2fmae.plugins`, once a process."""
    global _PENDING_PLUGINS
    if _PENDING_PLUGINS is None:
        _PENDING_PLUGINS = list(entry_points(group="c2fmae.plugins"))
    while _PENDING_PLUGINS:
        entry = _PENDING_PLUGINS.pop(0)  # taken off first: a plug-in may look up a name while it is imported
        try:
            entry.load()
        except Exception as error:
            package = entry.dist.name if entry.dist else "an unknown package"
            raise UserError(
                f"plug-in {entry.name!r} of {package} ({entry.value}) failed to load: {error}. Repair or uninstall it"
            ) from error


class Registry(Generic[T]):
    """Names of one kind of plug-in.

    >>> shapes: Registry[type] = Registry("shape")
    >>> @shapes.register("disc")
    ... class Disc:
    ...     '''Round all over.'''
    >>> shapes.get("disk")
    Traceback (most recent call last):
    c2fmae.core.errors.UserError: no shape named 'disk'. Did you mean 'disc'? Known: disc
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}
        self._summaries: dict[str, str] = {}
        _REGISTRIES.append(self)  # type: ignore[arg-type]  # listed, never written to through the list

    def register(self, name: str, summary: str = "") -> Callable[[U], U]:
        """Register the decorated object; `summary`, or else its docstring's first line, describes it in lists."""

        def decorate(entry: U) -> U:
            if name in self._entries:
                raise UserError(f"{self.kind} {name!r} is registered already, by {_module_name(self._entries[name])}")
            line = (summary or getattr(entry, "__doc__", None) or "").strip().partition("\n")[0]
            if not line:
                raise UserError(f"{self.kind} {name!r} needs a docstring: its first line is shown in lists")
            self._entries[name] = entry  # type: ignore[assignment]  # T may be a Protocol that classes meet
            self._summaries[name] = line
            return entry

        return decorate

    def get(self, name: str) -> T:
        """Return the entry of that name; an unknown name is an error that suggests the nearest."""
        if name not in self._entries:
            load_plugins()
        if name not in self._entries:
            raise unknown_name_error(self.kind, name, self._entries)
        return self._entries[name]

    def describe(self, name: str) -> str:
        """Return the entry's one-line description."""
        self.get(name)
        return self._summaries[name]

    def __iter__(self) -> Iterator[str]:
        load_plugins()
        return iter(sorted(self._entries))


def _module_name(entry: object) -> str:
    return getattr(entry, "__module__", type(entry).__module__)
