"""Named things a user can pick on the command line, and the way to add one's own.

Every registry maps a name to an entry; ``gaussian:std=0.5:mean=1`` picks the entry ``gaussian`` with parameters.
An entry added outside this package (in a ``conftest.py``, say) is remembered with the file that added it, so that
rank processes can load the same file before they look the name up.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.machinery
import importlib.util
import inspect
import os
import pkgutil
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from blockshock.errors import ExtensionFailed, InputError, UnknownName
from blockshock.registry.installed import load_installed, packages
from blockshock.registry.written import check_range, not_negative, parse_spec, split, whole

Entry = TypeVar("Entry")

_extensions: list[str] = []
_added: list[tuple[str, str]] = []
"""Kind and name of every entry of this process's registries, in the order in which they came."""
_brought: dict[str, tuple[tuple[str, str], ...]] = {}
"""Those that came while a file was loaded."""


def extensions() -> list[tuple[str, str]]:
    """(module name to load it under, file) of every file outside this package that registered something.

    The names are ours: a project may well have several files that Python knows as ``conftest``. Installed packages are
    not among them, for every process finds those by itself.
    """
    return [(_name(index), file) for index, file in enumerate(_extensions)]


def _name(index: int) -> str:
    return f"blockshock_extension_{index}"


def brought(path: str | os.PathLike[str]) -> tuple[tuple[str, str], ...]:
    """Kind and name of what a file registered that `extend` loaded."""
    return _brought.get(os.path.abspath(path), ())


def extend(path: str | os.PathLike[str]) -> None:
    """Load a Python file that registers something; once, however often it is asked for.

    Raises:
        ExtensionFailed: there is no such file, or it registers nothing, or it raises; the message says what, and in
            which line. Or an installed extension cannot be imported.
    """
    load_installed()  # or what they register would count as the file's, were it the first to ask for a name
    file = os.path.abspath(path)
    if file in _extensions:
        return
    if not os.path.isfile(file):
        raise ExtensionFailed(f"there is no file {os.fspath(path)}: name a Python file that registers something")
    name = _name(len(_extensions))
    spec = importlib.util.spec_from_loader(name, importlib.machinery.SourceFileLoader(name, file))
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    _extensions.append(file)
    before = len(_added)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever it is, it is the user's to mend
        del sys.modules[name], _extensions[_extensions.index(file)]
        line = error.lineno if isinstance(error, SyntaxError) else _line(error, file)
        where = f"{os.fspath(path)}, line {line}"
        raise ExtensionFailed(f"{where}: {type(error).__name__}: {error}. Mend it, or leave it out") from error
    if len(_added) == before:
        del sys.modules[name], _extensions[_extensions.index(file)]
        raise ExtensionFailed(
            f"{os.fspath(path)} registers nothing: decorate what it adds, a method by @METHODS.register('its_name') "
            "say, or leave the file out"
        )
    _brought[file] = tuple(_added[before:])


def _line(error: Exception, file: str) -> int | None:
    """The last line of a file that an error came through."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return lines[-1] if lines else None


def _unlike(value: Any, default: Any) -> str | None:
    """What a parameter with this default takes, where the value is something else; None where it fits."""
    if isinstance(default, bool):
        return None if isinstance(value, bool) else "yes or no"
    if isinstance(default, int):
        return None if type(value) is int else "a whole number"
    if isinstance(default, float):
        fits = type(value) is float or (type(value) is int and abs(value) <= sys.float_info.max)
        return None if fits else "a number"
    return None


class Registry(Generic[Entry]):
    """Entries of one kind (``"mask"``, ``"method"``, …), by name and in the order in which they were added.

    Args:
        common: parameters, with their defaults, that a spec of any entry takes beside the entry's own.
    """

    def __init__(self, kind: str, common: Mapping[str, Any] | None = None) -> None:
        self.kind, self._common = kind, common or {}
        self._entries: dict[str, Entry] = {}

    def register(self, name: str) -> Callable[[Entry], Entry]:
        """A decorator that adds an entry. It goes into test ids and names of files, and is taken once."""
        if name in self._entries or name == "all":
            raise InputError(f"cannot register the {self.kind} {name!r}: the name is taken, choose another")
        if not name or not name.isprintable() or set(name) & set(",:[]=/\\ "):
            state = "is empty or holds one of , : [ ] = / \\, a blank, or what cannot be printed"
            raise InputError(f"cannot register the {self.kind} {name!r}: the name {state}")

        def add(entry: Entry) -> Entry:
            self._entries[name] = entry
            _added.append((self.kind, name))
            self._remember_origin(entry)
            return entry

        return add

    def _remember_origin(self, entry: Entry) -> None:
        module = sys.modules.get(getattr(entry, "__module__", ""))
        file = getattr(module, "__file__", None)
        ours = module is not None and module.__name__.split(".")[0] in {"blockshock", *packages()}
        if file is not None and not ours and file not in _extensions:
            _extensions.append(file)

    def names(self) -> tuple[str, ...]:
        load_installed()
        return tuple(self._entries)

    def get(self, name: str) -> Entry:
        """The entry of that name.

        Raises:
            UnknownName: there is none; the message suggests the nearest and lists the choices.
            ExtensionFailed: an installed extension, which may have it, cannot be imported.
        """
        if name not in self._entries:
            load_installed()
        if name not in self._entries:
            near = difflib.get_close_matches(name, self._entries, n=1, cutoff=0.5)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            elsewhere = next((kind for kind, known in _added if known == name), None)
            other = f", but {'an' if elsewhere[0] in 'aeiou' else 'a'} {elsewhere} is" if elsewhere else ""
            raise UnknownName(f"no {self.kind} is named {name!r}{other}.{hint} Choices: {', '.join(self._entries)}")
        return self._entries[name]

    def name_of(self, entry: Entry) -> str:
        """The name of an entry; of a class that nobody registered its own."""
        unknown: str = getattr(entry, "__name__", "").lower()
        return next((name for name, found in self._entries.items() if found is entry), unknown)

    def resolve(self, spec: str, skip: int = 0) -> tuple[Entry, dict[str, Any]]:
        """The entry and the parameters that a spec such as ``gaussian:std=0.5`` picks.

        Args:
            skip: how many leading positional parameters of the entry are not the user's to set.

        Raises:
            UnknownName: no such entry.
            InputError: it is no text, or the entry takes no parameter of that name, or not of that type.
        """
        if not isinstance(spec, str):
            raise InputError(f"a {self.kind} is picked by its name, got {spec!r}. Choices: {', '.join(self.names())}")
        name, parameters = parse_spec(spec)
        entry = self.get(name)
        if not parameters:
            return entry, parameters
        own = list(inspect.signature(entry).parameters.items())[skip:]  # type: ignore[arg-type]
        known = {key: parameter.default for key, parameter in own} | dict(self._common)
        for key, value in parameters.items():
            if key not in known:
                raise InputError(
                    f"{spec!r}: the {self.kind} {name!r} takes {', '.join(known) or 'no parameter'}, not {key!r}"
                )
            if wanted := _unlike(value, known[key]):
                raise InputError(f"{spec!r}: {key} takes {wanted}, not {str(value)!r}")
            if isinstance(known[key], float):
                parameters[key] = float(value)
        return entry, parameters

    def load_package(self, package: str) -> None:
        """Import every module of a package, so that each can register what it holds: a new entry is a new file."""
        path = importlib.import_module(package).__path__
        for module in sorted(pkgutil.iter_modules(path), key=lambda m: m.name):
            importlib.import_module(f"{package}.{module.name}")
