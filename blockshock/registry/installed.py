"""Extensions that are installed packages: each names a module that registers what it has, as the entry points say.

In a package's pyproject.toml: ``[project.entry-points."blockshock.extensions"]``, ``anything = "its.module"``.
"""

from __future__ import annotations

import importlib
from functools import cache
from importlib.metadata import EntryPoint, entry_points

from blockshock.errors import ExtensionFailed

GROUP = "blockshock.extensions"
_begun: list[ExtensionFailed | None] = []
"""Empty until they are loaded; then holds what came of it."""


@cache
def _all() -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=GROUP))


def packages() -> set[str]:
    """Names of the packages at the top of these modules."""
    return {point.module.partition(".")[0] for point in _all()}


def load_installed() -> None:
    """Import all of them, once in a process: where a registry is first asked for what it has.

    Raises:
        ExtensionFailed: one cannot be imported; the message names it, its package and what to do.
    """
    if not _begun:
        _begun.append(None)  # an extension asks for entries of registries too
        _begun[0] = _load()
    if _begun[0] is not None:
        raise _begun[0]


def _load() -> ExtensionFailed | None:
    for point in _all():
        try:
            importlib.import_module(point.module)
        except Exception as error:  # whatever it is, it is its author's to mend
            package = point.dist.name if point.dist else point.module
            failed = ExtensionFailed(
                f"the extension {point.name!r} of the package {package} cannot be imported: {point.module}: "
                f"{type(error).__name__}: {error}. Mend it, or do without it: python -m pip uninstall {package}"
            )
            failed.__cause__ = error
            return failed
    return None
