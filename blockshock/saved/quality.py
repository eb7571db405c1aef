"""What rows with weights of their own lose against the dense weight, beside what else was found of them."""

from __future__ import annotations

from typing import Any

from blockshock.saved.judged import weights_of

Info = dict[str, Any]


def qualities(infos: list[Info]) -> list[Info]:
    """The rows that say their quality, as of ``_found``: of what was timed or judged, or all where nothing was."""
    found = _found(infos)
    used = {_layer(info) for info in infos if "p50_ms" in info or "verdict" in info}
    return [info for layer, info in found.items() if layer in used] or list(found.values())


def lost(infos: list[Info]) -> list[Info | None]:
    """Of each row the quality that its method has with these picks on that layer, if the run found it."""
    found = _found(infos)
    return [found[layer]["quality"] if (layer := _layer(info)) in found else None for info in infos]


def halves(infos: list[Info]) -> list[Info]:
    """What the first half of a dense layer loses by itself, as rows: one a mask, layer and dtype."""
    found: dict[Any, Info] = {}
    for info in sorted((info for info in infos if info.get("quality_of_half") is not None), key=lambda info: info["B"]):
        kept = info.get("mask")
        key = (kept, *(info[name] for name in ("dtype", "workload", "N", "K")))
        found[key] = info | {"quality": info["quality_of_half"], "label": f"first half alone, {kept}"}
    return list(found.values())


def is_known(infos: list[Info], info: Info) -> bool:
    """Whether one of the rows says what this one would lose, of as many rows of X or more."""
    found = _found(infos).get(_layer(info))
    return found is not None and found["B"] >= info["B"]


def _found(infos: list[Info]) -> dict[Any, Info]:
    """One row a method, picks, layer and dtype: the one with the most rows of X."""
    told = [info for info in infos if info.get("quality") is not None]
    return {_layer(info): info for info in sorted(told, key=lambda info: info["B"])}


def _layer(info: Info) -> Any:
    return (weights_of(info), *(info[name] for name in ("workload", "N", "K")))
