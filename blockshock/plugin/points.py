"""Where the grids are: sizes and B as they are listed or swept, the layers of models by their names, or a file's."""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blockshock.errors import BlockShockError, InputError
from blockshock.matrices import MODELS, MOST_FEATURES, Workload, check_shape
from blockshock.plugin import sweep
from blockshock.plugin.usual_sizes import DEFAULT_B, DEFAULT_N, TRAINING_B, TRAINING_N
from blockshock.registry import split, whole

COLUMNS = ("N", "K", "B", "count")
"""Of a file of points."""


@dataclass(frozen=True)
class Points:
    """Where a grid is: sizes (N, K), and B; every one with every other, but for points that a file lists."""

    sizes: tuple[tuple[int, int], ...]
    tokens: tuple[int, ...]

    def of(self, workload: Workload) -> list[tuple[int, int, int]]:
        """N, K and B: of a workload with shapes of its own those, and no more tokens than it has."""
        shapes, tokens = workload.shapes or self.sizes, self._tokens_of(workload)
        return [(N, K, B) for (N, K), B in itertools.product(shapes, tokens)]

    def learned(self, workload: Workload, training: Points) -> set[tuple[int, int, int]]:
        """Those of them that what is trained is met at too, so that all else that is compared with it is there.

        A workload that has no B of training has the largest that it has.
        """
        tokens = self._tokens_of(workload)
        trained = {B for B in tokens if B in training.tokens} or set(sorted(tokens)[-1:])
        sizes = workload.shapes or training.sizes
        return {(N, K, B) for N, K, B in self.of(workload) if (N, K) in sizes and B in trained}

    def _tokens_of(self, workload: Workload) -> list[int]:
        return [B for B in self.tokens if (workload.most_tokens or B) >= B]


@dataclass(frozen=True)
class Use:
    """What a size stands for: a layer of a model, or of a file of points.

    Attributes:
        model: its name; of a file its own, without folder and ending.
        count: how many of them the model has.
        B: where it is met; None for wherever the grid is.
    """

    model: str
    name: str
    count: int
    N: int
    K: int
    B: int | None = None


def resolve(get: Callable[[str], Any], device: str) -> tuple[Points, Points, tuple[Use, ...]]:
    """The points, those of training, and what they stand for.

    Args:
        get: the value of an option by its name.

    Raises:
        InputError, pytest.UsageError: a value is wrong, or two options say two things.
    """
    given, layers, file = {"N": get("--N"), "B": get("--B")}, get("--layers"), get("--points")
    others = {"--N": given["N"], "--B": given["B"], "--layers": layers, "--sweep": get("--sweep")}
    uses: tuple[Use, ...] = ()
    if file is not None:
        _alone("--points", file, others)
        uses = read_points(Path(file))
        tokens = dict.fromkeys(use.B for use in uses if use.B is not None)
        found = Points(tuple(dict.fromkeys((use.N, use.K) for use in uses)), tuple(tokens))
        return found, found, uses
    if layers is not None:
        swept = None if get("--sweep") is None or "N" not in get("--sweep") else get("--sweep")
        _alone("--layers", layers, {"--N": given["N"], "--sweep": swept})
        uses = tuple(_layers(layers))
        given["N"] = ",".join(f"{use.N}x{use.K}" for use in uses)
    points, training_points = (
        _listed(sweep.defaults(get("--sweep"), device, given, {"N": N[device], "B": B[device]}))
        for N, B in ((DEFAULT_N, DEFAULT_B), (TRAINING_N, TRAINING_B))
    )
    return points, training_points, uses


def read_points(path: Path) -> tuple[Use, ...]:
    """The points of a CSV file with the columns N, K, B and count.

    Raises:
        InputError: there is no such file, or what it holds is none; the message names line, column and value.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True, strict=True)
            columns = [name.strip() for name in reader.fieldnames or ()]
            if sorted(columns) != sorted(COLUMNS):
                has = f"{','.join(columns)!r}" if columns else "nothing"
                raise InputError(f"--points {path}, line 1: the columns are {','.join(COLUMNS)}, and it has {has}")
            reader.fieldnames = columns
            found = [_point(path, reader.line_num, row) for row in reader]
    except OSError as error:
        raise InputError(f"--points {path}: {error.strerror or error}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"--points {path} is no CSV file: {error}") from None
    if not found:
        raise InputError(
            f"--points {path} lists no point: below its first line each line is one, as in 4096,4096,16,32"
        )
    return tuple(found)


def _point(path: Path, line: int, row: dict[Any, Any]) -> Use:
    where = f"--points {path}, line {line}"
    if None in row:  # csv's name for what is beyond the last column
        raise InputError(f"{where}: {','.join(row[None])!r} is beyond the columns {','.join(COLUMNS)}")
    numbers = {}
    for column in COLUMNS:
        if row[column] is None:
            raise InputError(f"{where}: {column} is missing")
        numbers[column] = whole(f"{where}: {column}", row[column].strip(), most=MOST_FEATURES)
    N, K = numbers["N"], numbers["K"]
    try:
        check_shape(N, K)
    except BlockShockError as error:
        raise InputError(f"{where}: N {N}, K {K}: {error}") from None
    return Use(path.stem, f"{N}x{K}", numbers["count"], N, K, numbers["B"])


def _layers(text: str) -> list[Use]:
    """The layers of models that an option lists."""
    names = (
        list(MODELS.names()) if text.strip() == "all" else split("--layers", text, f"all, {', '.join(MODELS.names())}")
    )
    try:
        models = {name: MODELS.get(name) for name in names}
    except BlockShockError as error:
        raise InputError(f"--layers: {error}") from None
    return [
        Use(name, layer.name, layer.count, layer.N, layer.K) for name, model in models.items() for layer in model.layers
    ]


def _alone(option: str, value: str, others: dict[str, str | None]) -> None:
    """Raises InputError if an option that says where the grid is was given beside others that do."""
    for other, given in others.items():
        if given is not None:
            raise InputError(f"{option} {value} and {other} {given} say two things: give one of them")


def _listed(axes: dict[str, str]) -> Points:
    sizes = tuple(dict.fromkeys(_size(text) for text in split("--N", axes["N"])))
    tokens = (whole("--B", text, most=MOST_FEATURES) for text in split("--B", axes["B"]))
    return Points(sizes, tuple(dict.fromkeys(tokens)))


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(-?\d+)(?:[x×](-?\d+))?", text)
    if not match:
        raise InputError(f"--N takes N or N×K, as in 4096 or 8192x14336; got {text!r}")
    try:
        N, K = int(match[1]), int(match[2] or match[1])
        check_shape(N, K)
    except ValueError as error:  # of int too, for a number of thousands of digits
        raise InputError(f"--N {text}: {error}") from None
    return N, K
