"""Methods by what users write: a name, and what their ``__init__`` is to take beside the layer and the group."""

from __future__ import annotations

from typing import Any

from blockshock.methods.base import METHODS, Method
from blockshock.methods.layer import Layer


def method_of(spec: str) -> tuple[type[Method], dict[str, Any]]:
    """The class that a spec such as ``name:rank=8`` picks, and what its ``__init__`` takes beside layer and group.

    Raises:
        UnknownName, InputError: no such method, or it takes no parameter of that name, or not of that type.
    """
    return METHODS.resolve(spec, skip=2)


def unsuitable(spec: str, layer: Layer) -> str | None:
    """Why a method, with the parameters that its spec has, cannot take a layer; None if it can."""
    kind, parameters = method_of(spec)
    return kind.unsuitable(layer, **parameters)
