"""The settings that the options resolve to. A wrong value is a usage error that names the choices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import pytest
import torch

from blockshock.errors import BlockShockError, InputError
from blockshock.kernels import build_format
from blockshock.matrices import WORKLOADS, build_workload
from blockshock.methods import METHODS, Axis, all_axes, method_of
from blockshock.models import NETWORKS, TASKS, WHERE, build_network, build_task
from blockshock.phases import DTYPES
from blockshock.plugin import options, points
from blockshock.plugin.options import DEFAULT_NETWORKS, DEFAULT_RANKS, DEFAULT_ROUNDS, DEFAULT_TIMING, DEFAULT_WARMUP
from blockshock.plugin.points import Points, Use
from blockshock.plugin.values import batches_of, check_dtype, check_where, choices_of, corpus_of, whole_of, widths_of
from blockshock.ranks import Place
from blockshock.registry import split
from blockshock.training import OPTIMIZERS, optimizer_of

MOST_RANKS = 64
"""One process each: more is a slip of the hand, and brings a machine down."""
MOST_ROUNDS = 1_000_000
MOST_STEPS = 10_000_000
MOST_SEED = 2**63 - 1
WEEK = 7 * 24 * 3600


@dataclass(frozen=True)
class Settings:
    """What the options resolved to.

    Attributes:
        training_points: of phase 3, which takes fewer and larger B unless some were asked for; what learns is looked at
            nowhere else.
        axes: what is picked of each axis, by its name; None for what is usual, row by row.
        asked: names of the axes whose option was given, ``B`` and ``methods``: by those goes what else has picks, B and
            methods of its own.
        networks, where, batches: of phase 4: specs of whole networks, which of their layers are replaced, and sequences
            or images of a pass, none for those that each network names.
        tasks, steps, corpus: of phase 5: specs of what recipes learn, for how many steps, None for those that each
            names, and the file of the text.
        widths: of phase 6: of feed-forward blocks, each with its hidden features; none for what is usual.
        ceilings: whether to measure what the machine reaches at most.
        extend: files of the user's that register something.
        layers: what the sizes stand for, where they were asked for by a model's name or by a file.
    """

    device: str
    ranks: int
    points: Points
    training_points: Points
    dtypes: tuple[str, ...]
    methods: tuple[str, ...]
    axes: Mapping[str, tuple[str, ...] | None]
    optimizers: tuple[str, ...]
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
    asked: tuple[str, ...] = ()
    layers: tuple[Use, ...] = ()
    extend: tuple[str, ...] = ()
    ceilings: bool = True
    networks: tuple[str, ...] = ()
    where: tuple[str, ...] = ("blocks",)
    batches: tuple[int, ...] = ()
    tasks: tuple[str, ...] = field(default_factory=TASKS.names)
    steps: int | None = None
    corpus: str | None = None
    widths: tuple[tuple[int, int], ...] = ()

    def described(self) -> dict[str, Any]:
        """All of them by name, as they are saved: each axis under the name of its option."""
        settings = asdict(self)
        return settings | {f"{axis}s": specs for axis, specs in settings.pop("axes").items()}

    @property
    def formats(self) -> tuple[str, ...]:
        """Names of those that something is stored in."""
        picked = self.axes["format"] or ()
        return tuple(dict.fromkeys(found.name for spec in picked if (found := build_format(spec)) is not None))

    def uses(self, N: int, K: int, B: int) -> list[Use]:
        """What this point stands for."""
        return [use for use in self.layers if (use.N, use.K) == (N, K) and use.B in (None, B)]

    def listed(self, N: int, K: int, B: int) -> bool:
        """Whether this one of every size with every B is to be measured: of a file's points those that it lists."""
        return all(use.B is None for use in self.layers) or bool(self.uses(N, K, B))

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
    try:
        return _resolve(config)
    except BlockShockError as error:
        raise pytest.UsageError(str(error)) from None


def _resolve(config: pytest.Config) -> Settings:
    def get(option: str) -> Any:
        value = options.get(config, option)
        if value == []:  # which Python 3.11 makes of it
            raise InputError(f"{option} takes a value, and -- is none")
        return value

    def given(option: str, default: str) -> str:
        # An empty string, from an unset variable of a script say, was given: it must not turn into the default.
        text = get(option)
        return default if text is None else text

    ranks, device = _ranks_and_device(get("--ranks"), get("--device"), Place.here())
    mode = get("--timing") or DEFAULT_TIMING[device]
    if device == "cpu" and mode.startswith("cuda"):
        raise InputError(f"--timing {mode} needs --device cuda; on a CPU choose sync or none")
    forward_points, training_points, layers = points.resolve(get, device)
    workloads = choices_of("--workloads", given("--workloads", "gaussian,recorded"), build_workload, WORKLOADS.names())
    _check_tokens(workloads, forward_points.tokens)
    rounds, warmup = get("--rounds"), get("--warmup-rounds")
    return Settings(
        device=device,
        ranks=ranks,
        points=forward_points,
        training_points=training_points,
        dtypes=choices_of("--dtype", given("--dtype", "bf16"), check_dtype, tuple(DTYPES)),
        methods=_methods(get("--methods"), ranks),
        axes={axis.name: _asked(axis, device, get) for axis in all_axes()},
        optimizers=choices_of("--optimizers", given("--optimizers", "sgd,adamw"), optimizer_of, OPTIMIZERS.names()),
        workloads=workloads,
        timing=mode,
        rounds=DEFAULT_ROUNDS[device] if rounds is None else whole_of("--rounds", rounds, most=MOST_ROUNDS),
        warmup=DEFAULT_WARMUP[device] if warmup is None else whole_of("--warmup-rounds", warmup, 0, MOST_ROUNDS),
        flush=not get("--warm-l2"),
        seed=whole_of("--seed", get("--seed"), 0, MOST_SEED),
        cover=get("--cover"),
        keep_full_weight=get("--keep-full-weight"),
        profile=get("--profile"),
        rank_timeout=whole_of("--rank-timeout", get("--rank-timeout"), most=WEEK),
        asked=tuple(name for name, option in _asking() if get(option) is not None),
        layers=layers,
        ceilings=not get("--no-ceilings"),
        networks=choices_of(
            "--networks", given("--networks", DEFAULT_NETWORKS[device]), build_network, NETWORKS.names()
        ),
        where=choices_of("--where", given("--where", "blocks"), check_where, WHERE),
        batches=batches_of(get("--batches")),
        tasks=choices_of("--tasks", given("--tasks", "all"), build_task, TASKS.names()),
        steps=None if get("--steps") is None else whole_of("--steps", get("--steps"), most=MOST_STEPS),
        corpus=corpus_of(get("--corpus")),
        widths=widths_of(get("--d")),
        extend=tuple(split("--extend", get("--extend"), "files")) if get("--extend") else (),
    )


def _asking() -> list[tuple[str, str]]:
    """What checks with picks and points of their own go by, with the options that ask for it."""
    return [("B", "--B"), ("methods", "--methods"), *((axis.name, axis.option) for axis in all_axes())]


def _ranks_and_device(asked: int | None, device: str, place: Place | None) -> tuple[int, str]:
    """How many ranks, and on what: on GPUs where there is one for each, on one GPU where there is no other."""
    gpus = torch.cuda.device_count()
    if place is not None:
        if asked not in (None, place.size):
            raise InputError(f"--ranks {asked}: torchrun has started {place.size}, so leave out --ranks")
        ranks, here = place.size, place.local_size
    else:
        default = 1 if gpus == 1 and device != "cpu" else DEFAULT_RANKS
        ranks = here = default if asked is None else whole_of("--ranks", asked, most=MOST_RANKS)
    if device == "cuda" and here > gpus:
        raise InputError(
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
    return choices_of("--methods", text, method_of, METHODS.names())


def _check_tokens(workloads: tuple[str, ...], tokens: tuple[int, ...]) -> None:
    """Raises InputError if every workload has fewer tokens than the smallest B: nothing would run."""
    most = {spec: build_workload(spec).most_tokens for spec in workloads}
    if all(limit is not None and limit < min(tokens) for limit in most.values()):
        limits = ", ".join(f"{spec} has {limit}" for spec, limit in most.items())
        raise InputError(f"--B {min(tokens)} is more tokens than any of --workloads has: {limits}")


def _asked(axis: Axis, device: str, get: Callable[[str], Any]) -> tuple[str, ...] | None:
    """What the options of an axis ask for."""
    text = get(axis.option)
    specs = None if text is None else choices_of(axis.option, text, axis.check_listed, axis.names(device))
    others = (*(beside.name for beside in axis.beside), *axis.also)
    return axis.asked(specs, device, {name: get(name) for name in others})
