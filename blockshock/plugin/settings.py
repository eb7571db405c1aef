"""The settings that the options resolve to. A wrong value is a usage error that names the choices."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from blockshock.errors import BlockShockError, UnknownName
from blockshock.kernels import KERNELS, build_kernel
from blockshock.matrices import MASKS, MOST_FEATURES, WORKLOADS, build_workload, check_shape
from blockshock.methods import METHODS, method_of
from blockshock.phases import DTYPES
from blockshock.plugin import options, sweep
from blockshock.plugin.options import (
    DEFAULT_B,
    DEFAULT_N,
    DEFAULT_RANKS,
    DEFAULT_ROUNDS,
    DEFAULT_TIMING,
    DEFAULT_WARMUP,
    TRAINING_B,
    TRAINING_N,
)
from blockshock.ranks import Place
from blockshock.training import OPTIMIZERS, STORAGES, build_recipe, storage_of

MOST_RANKS = 64
"""One process each: more is a slip of the hand, and brings a machine down."""
MOST_ROUNDS = 1_000_000
MOST_SEED = 2**63 - 1
WEEK = 7 * 24 * 3600


@dataclass(frozen=True)
class Points:
    """Where a grid is: sizes (N, K), and B; every one with every other."""

    sizes: tuple[tuple[int, int], ...]
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Settings:
    """What the options resolved to.

    Attributes:
        training_points: of phase 3, which takes fewer and larger B unless some were asked for.
        training_masks: of phases 2 and 3; None where none were asked for: each kernel then has its own.
    """

    device: str
    ranks: int
    points: Points
    training_points: Points
    dtypes: tuple[str, ...]
    methods: tuple[str, ...]
    kernels: tuple[str, ...]
    masks: tuple[str, ...]
    training_masks: tuple[str, ...] | None
    optimizers: tuple[str, ...]
    storages: tuple[str, ...]
    workloads: tuple[str, ...]
    timing: str
    rounds: int
    warmup: int
    flush: bool
    seed: int
    cover: str
    keep_full_weight: bool
    profile: bool
    rank_timeout: int

    @property
    def protocol(self) -> tuple[str, int, int, bool]:
        """How phases time: mode, rounds, warm-up rounds, and whether L2 is flushed."""
        return self.timing, self.rounds, self.warmup, self.flush

    @property
    def marker(self) -> str | None:
        """The marker of what is measured: ``gpu`` on one GPU, ``gpu2`` on several, None on a CPU."""
        if self.device != "cuda":
            return None
        return "gpu" if self.ranks == 1 else "gpu2"


def resolve(config: pytest.Config) -> Settings:
    """Settings from the command line.

    Raises:
        pytest.UsageError: a value is wrong; the message names it and the choices.
    """

    def get(option: str) -> Any:
        value = options.get(config, option)
        if value == []:  # which Python 3.11 makes of it
            raise pytest.UsageError(f"{option} takes a value, and -- is none")
        return value

    def given(option: str, default: str) -> str:
        # An empty string, from an unset variable of a script say, was given: it must not turn into the default.
        text = get(option)
        return default if text is None else text

    ranks, device = _ranks_and_device(get("--ranks"), get("--device"), Place.here())
    mode = get("--timing") or DEFAULT_TIMING[device]
    if device == "cpu" and mode.startswith("cuda"):
        raise pytest.UsageError(f"--timing {mode} needs --device cuda; on a CPU choose sync or none")
    given_axes = {"N": get("--N"), "B": get("--B")}
    points, training_points = (
        _points(sweep.defaults(get("--sweep"), device, given_axes, {"N": N[device], "B": B[device]}))
        for N, B in ((DEFAULT_N, DEFAULT_B), (TRAINING_N, TRAINING_B))
    )
    workloads = _choices("--workloads", given("--workloads", "gaussian,recorded"), build_workload, WORKLOADS.names())
    _check_tokens(workloads, points.tokens)
    rounds, warmup = get("--rounds"), get("--warmup-rounds")
    masks = _choices("--masks", given("--masks", "1100"), lambda spec: MASKS.resolve(spec, skip=1), MASKS.names())
    return Settings(
        device=device,
        ranks=ranks,
        points=points,
        training_points=training_points,
        dtypes=_choices("--dtype", given("--dtype", "bf16"), _dtype, tuple(DTYPES)),
        methods=_methods(get("--methods"), ranks),
        kernels=_kernels(get("--kernels"), device, search=not get("--no-search")),
        masks=masks,
        training_masks=None if get("--masks") is None else masks,
        optimizers=_choices("--optimizers", given("--optimizers", "sgd,adamw"), build_recipe, OPTIMIZERS.names()),
        storages=_storages(given("--storages", "all"), given("--recompress-every", "1")),
        workloads=workloads,
        timing=mode,
        rounds=DEFAULT_ROUNDS[device] if rounds is None else _positive("--rounds", rounds, most=MOST_ROUNDS),
        warmup=DEFAULT_WARMUP[device] if warmup is None else _positive("--warmup-rounds", warmup, 0, MOST_ROUNDS),
        flush=not get("--warm-l2"),
        seed=_positive("--seed", get("--seed"), 0, MOST_SEED),
        cover=get("--cover"),
        keep_full_weight=get("--keep-full-weight"),
        profile=get("--profile"),
        rank_timeout=_positive("--rank-timeout", get("--rank-timeout"), most=WEEK),
    )


def _ranks_and_device(asked: int | None, device: str, place: Place | None) -> tuple[int, str]:
    """How many ranks, and on what: on GPUs where there is one for each, on one GPU where there is no other."""
    gpus = torch.cuda.device_count()
    if place is not None:
        if asked not in (None, place.size):
            raise pytest.UsageError(f"--ranks {asked}: torchrun has started {place.size}, so leave out --ranks")
        ranks, here = place.size, place.local_size
    else:
        default = 1 if gpus == 1 and device != "cpu" else DEFAULT_RANKS
        ranks = here = default if asked is None else _positive("--ranks", asked, most=MOST_RANKS)
    if device == "cuda" and here > gpus:
        raise pytest.UsageError(
            f"--ranks {here} needs {here} CUDA GPUs, this machine has {gpus}: "
            + (f"choose --ranks {gpus} or fewer, or --device cpu" if gpus else "choose --device cpu")
        )
    if device == "auto":
        device = "cuda" if here <= gpus else "cpu"
    return ranks, device


def _methods(text: str | None, ranks: int) -> tuple[str, ...]:
    """Those asked for; else all that are different from one another on so many ranks."""
    if text is None:
        return tuple(name for name in METHODS.names() if ranks > 1 or not METHODS.get(name).sharded)
    return _choices("--methods", text, method_of, METHODS.names())


def _split(option: str, text: str, choices: str = "whole numbers above 0") -> list[str]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise pytest.UsageError(f"{option} is empty. Choices: {choices}")
    return parts


def _positive(option: str, value: str | int, least: int = 1, most: int = MOST_FEATURES) -> int:
    try:
        number = int(value)
    except ValueError:
        raise pytest.UsageError(f"{option} takes whole numbers, got {value!r}") from None
    if not least <= number <= most:
        bound = f"at least {least}" if number < least else f"at most {most}"
        raise pytest.UsageError(f"{option} must be {bound}, got {value}")
    return number


def _points(axes: dict[str, str]) -> Points:
    sizes = tuple(dict.fromkeys(_size(text) for text in _split("--N", axes["N"])))
    return Points(sizes, tuple(dict.fromkeys(_positive("--B", text) for text in _split("--B", axes["B"]))))


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(-?\d+)(?:[x×](-?\d+))?", text)
    if not match:
        raise pytest.UsageError(f"--N takes N or N×K, as in 4096 or 8192x14336; got {text!r}")
    try:
        N, K = int(match[1]), int(match[2] or match[1])
        check_shape(N, K)
    except ValueError as error:  # of int too, for a number of thousands of digits
        raise pytest.UsageError(f"--N {text}: {error}") from None
    return N, K


def _check_tokens(workloads: tuple[str, ...], tokens: tuple[int, ...]) -> None:
    """Raises pytest.UsageError if every workload has fewer tokens than the smallest B: nothing would run."""
    most = {spec: build_workload(spec).most_tokens for spec in workloads}
    if all(limit is not None and limit < min(tokens) for limit in most.values()):
        limits = ", ".join(f"{spec} has {limit}" for spec, limit in most.items())
        raise pytest.UsageError(f"--B {min(tokens)} is more tokens than any of --workloads has: {limits}")


def _dtype(name: str) -> None:
    if name not in DTYPES:
        near = difflib.get_close_matches(name, DTYPES, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UnknownName(f"no dtype is named {name!r}.{hint} Choices: {', '.join(DTYPES)}")


def _choices(option: str, text: str, check: Callable[[str], object], everything: Sequence[str]) -> tuple[str, ...]:
    """The specs of a list, each checked; ``all`` stands for everything."""
    choices = f"all, {', '.join(everything)}"
    specs = list(everything) if text.strip() == "all" else _split(option, text, choices)
    for spec in specs:
        try:
            check(spec)
        except BlockShockError as error:
            raise pytest.UsageError(f"{option}: {error}") from None
    return tuple(dict.fromkeys(specs))


def _storages(text: str, recompress_every: str) -> tuple[str, ...]:
    """Storage specs; ``masked`` once for each cadence of compression."""
    cadences = [_cadence(part) for part in _split("--recompress-every", recompress_every, "whole numbers, never")]
    specs = _choices("--storages", text, storage_of, STORAGES.names())
    every = [f"masked:every={steps}" if steps != 1 else "masked" for steps in cadences]
    return tuple(dict.fromkeys(found for spec in specs for found in (every if spec == "masked" else [spec])))


def _cadence(text: str) -> int:
    return 0 if text == "never" else _positive("--recompress-every", text)


def _kernels(text: str | None, device: str, search: bool) -> tuple[str, ...]:
    fit = [name for name in KERNELS.names() if device in KERNELS.get(name).device_types]
    default = ["auto", *(name for name in fit if KERNELS.get(name).contender and name != "auto")]
    specs = _choices("--kernels", ",".join(default) if text is None else text, build_kernel, tuple(fit))
    return specs if search else tuple(f"{spec}:search=no" if spec in ("auto", "cusparselt") else spec for spec in specs)
