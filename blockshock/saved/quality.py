"""What rows with weights of their own lose against the dense weight, beside what else was found of them."""

from __future__ import annotations

from typing import Any

from blockshock.saved.judged import weights_of

Info = dict[str, Any]


def qualities(infos: list[Info]) -> dict[Any, Info]:
    """The rows that say their quality, one a method, picks, layer and dtype: the one with the most rows of X."""
    found = [info for info in infos if info.get("quality") is not None]
    return {_layer(info): info for info in sorted(found, key=lambda info: info["B"])}


def lost(infos: list[Info]) -> list[Info | None]:
    """Of each row the quality that its method has with these picks on that layer, if the run found it."""
    found = qualities(infos)
    return [found[key]["quality"] if (key := _layer(info)) in found else None for info in infos]


def _layer(info: Info) -> Any:
    return (weights_of(info), *(info[name] for name in ("workload", "N", "K")))
