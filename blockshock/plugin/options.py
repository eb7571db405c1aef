"""The command-line options, with their defaults.

Each has a short name, which gives way where another plugin has it (pytest-playwright has a ``--device`` too), and one
of its own that always works: ``--blockshock-device``.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection
from typing import Any

import pytest

from blockshock.errors import BlockShockError, ExtensionFailed, InputError
from blockshock.matrices import MODELS, WORKLOADS
from blockshock.measure import timing
from blockshock.methods import METHODS, Axis, all_axes
from blockshock.models import NETWORKS, TASKS, WHERE
from blockshock.phases import BLOCK_SHARE, BLOCKS, BUILDS, DTYPES
from blockshock.phases.ceilings import CACHE
from blockshock.plugin import rootdir, sweep
from blockshock.plugin.blame import refused
from blockshock.plugin.usual_sizes import ABOUT_B, ABOUT_D, ABOUT_N
from blockshock.registry import extend, split
from blockshock.registry.installed import GROUP
from blockshock.saved import MEASURES, MOST_LOSS
from blockshock.training import OPTIMIZERS

DEFAULT_NETWORKS = {"cpu": "minilm", "cuda": "minilm,lm,vit_b,vit_l,llama3-8b,llama3-8b-decode"}
DEFAULT_LEARNING = {
    "cpu": ("dense", "fst", "s_ste", "supermask"),
    "cuda": (
        *("dense", "ste", "sr_ste", "fst", "s_ste", "step", "pruned", "supermask"),
        *("activation:where=post:masks=rows", "dropout24"),
    ),
}
"""Recipes of phase 5."""
DEFAULT_SEEDS = {"cpu": 1, "cuda": 3}
DEFAULT_RANKS = 2
DEFAULT_ROUNDS = {"cpu": 5, "cuda": 100}
DEFAULT_WARMUP = {"cpu": 1, "cuda": 10}
DEFAULT_TIMING = {"cpu": "sync", "cuda": "cuda_graph"}
COVERS = ("grid", "pairs", "product")


GAVE_WAY = pytest.StashKey[list[str]]()
"""Of a session: the short names that other plugins have."""


def add_after_others_of_a_conftest(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """Add all options, if a ``conftest.py`` loads this plugin: all others are there, with those that it names later."""
    plugins = pluginmanager.list_name_plugin()
    conftests = [plugin for name, plugin in plugins if plugin is not None and name.endswith("conftest.py")]
    for named in (getattr(conftest, "pytest_plugins", ()) for conftest in conftests):
        for name in [named] if isinstance(named, str) else named:
            pluginmanager.import_plugin(name)
    if conftests:
        add(parser, pluginmanager)


def add(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """Add all options, once."""
    config: Any = pluginmanager.get_plugin("pytestconfig")
    if GAVE_WAY not in config.stash:
        others = taken(parser)
        try:
            _extend(config, {"--extend", "--blockshock-extend"} - others)
            with refused():
                config.stash[GAVE_WAY] = add_options(parser, others)
            rootdir.check(config, _taking_values(parser) - others)
        except BlockShockError as error:
            raise pytest.UsageError(str(error)) from None


def _extend(config: Any, names: Collection[str]) -> None:
    """Load the files of ``--extend``, before the options are added: they may bring axes, with options of their own."""
    text = getattr(config.option, _dest("--extend"), None)  # a worker has what its session was given
    if text is None:
        arguments = [*config.getini("addopts"), *rootdir.typed(config)]
        for word, after in zip(arguments, [*arguments[1:], None], strict=True):
            name, equals, value = word.partition("=")
            text = (value if equals else after) if name in names else text
    for path in [] if text is None else split("--extend", text, "Python files that register something"):
        try:
            extend(path)
        except ExtensionFailed as error:
            raise InputError(f"--extend: {error}") from None


def get(config: pytest.Config, name: str) -> Any:
    """The value of one of our options, by its short name, whoever has that."""
    return config.getoption(_dest(name))


def _taking_values(parser: pytest.Parser) -> set[str]:
    """Names of our options that take a value."""
    options = parser.getgroup("blockshock").options
    return {name for option in options for name in option.names() if "action" not in option.attrs()}


def taken(parser: pytest.Parser) -> set[str]:
    """Names of the options that there are. pytest offers no way to ask, and tells of a conflict by a traceback."""
    groups = [parser._anonymous, *parser._groups]
    return {name for group in groups for option in group.options for name in option.names()}


def _dest(name: str) -> str:
    return f"blockshock_{name.removeprefix('--').replace('-', '_')}"


def _help(axis: Axis) -> str:
    """What an axis is picked for, of what, and what is usual."""
    users = ", ".join(name for name in METHODS.names() if axis.name in METHODS.get(name).axes)
    where = f"{users}, in training" if axis.trained_only else users
    return f"for {where}: of {', '.join(axis.registry.names())}. {axis.about}"


def add_options(parser: pytest.Parser, taken: Collection[str] = ()) -> list[str]:
    """Add all options; return the short names that gave way to those that are taken."""
    title = "Block-Shock: what to run, and how to time it; each option is also there as --blockshock-NAME"
    group = parser.getgroup("blockshock", title)
    gave_way = []

    def option(name: str, text: str, metavar: str | None = None, **kwargs: object) -> None:
        extra = {} if "action" in kwargs else {"metavar": metavar}
        own, about = f"--blockshock-{name.removeprefix('--')}", text
        if name in taken:
            gave_way.append(name)
        else:
            group.addoption(name, dest=_dest(name), help=text, **extra, **kwargs)  # type: ignore[arg-type]
            about = argparse.SUPPRESS
        group.addoption(own, dest=_dest(name), help=about, **extra, **kwargs)  # type: ignore[arg-type]

    cpu, cuda = "cpu", "cuda"
    option("--N", ABOUT_N, "N,NxK")
    option("--B", ABOUT_B, "B,B")
    option("--d", ABOUT_D, "D,DxH")
    option(
        "--layers",
        "the linear layers of these models in place of --N, summed up by their counts: of "
        f"{', '.join(MODELS.names())}. Default none",
        "M,M",
    )
    option(
        "--points",
        "a CSV file with the columns N,K,B,count in place of --N and --B: a line a point. Before a path write = and no "
        "blank. Default none",
        "FILE",
    )
    option("--sweep", f"a range of sizes, of {', '.join(sweep.AXES)}; what does not fit is skipped", "N,B")
    option("--dtype", f"of {', '.join(DTYPES)}. Default bf16", "D,D")
    option("--methods", f"of {', '.join(METHODS.names())}. Default all that differ on so many ranks", "M,M")
    for axis in all_axes():
        option(axis.option, _help(axis), f"{axis.name[0].upper()},{axis.name[0].upper()}")
        for beside in axis.beside:
            kind = {"action": "store_true"} if beside.metavar is None else {}
            option(beside.name, beside.text, beside.metavar, **kind)
    option("--workloads", f"of {', '.join(WORKLOADS.names())}; gaussian:std=0.5. Default gaussian,recorded", "W,W")
    option("--optimizers", f"of {', '.join(OPTIMIZERS.names())}; adamw:lr=1e-4. Default sgd,adamw", "O,O")
    option(
        "--networks",
        f"whole networks to try rows in: of {', '.join(NETWORKS.names())}; vit_b:blocks=2. Default on a CPU "
        f"{DEFAULT_NETWORKS[cpu]}, on GPUs {DEFAULT_NETWORKS[cuda]}",
        "M,M",
    )
    option("--where", f"which linear layers of a network rows replace: of {', '.join(WHERE)}. Default blocks", "L,L")
    option("--batches", "sequences or images of a network's pass. Default those that each network names", "B,B")
    option("--tasks", f"what recipes learn: of {', '.join(TASKS.names())}. Default all", "T,T")
    option("--steps", "of what recipes learn. Default those that each task names", "S", type=int)
    option(
        "--corpus",
        "the text to learn, as tests/data/collect_text.py makes it; its hash is checked. Before a path write = and no "
        "blank. Default the text that is committed",
        "FILE",
    )
    option(
        "--ranks",
        f"processes, one a GPU. Default {DEFAULT_RANKS}, or 1 with a single GPU, or as many as torchrun started",
        "G",
        type=int,
    )
    option(
        "--device",
        "where ranks run; auto is cuda where there is a GPU for each rank, else cpu",
        choices=["auto", cpu, cuda],
        default="auto",
    )
    option("--timing", "how phase 1 is timed. Default cuda_graph on GPUs, sync on a CPU", choices=timing.MODES)
    option(
        "--rounds",
        f"timed rounds, over {BUILDS[cpu]} builds on a CPU and {BUILDS[cuda]} on GPUs; stages, eager calls and what is "
        "timed alone have the share of one; of a verdict's pair one in "
        f"{BLOCK_SHARE} in each of {BLOCKS[cpu]} and {BLOCKS[cuda]} blocks. Default {DEFAULT_ROUNDS[cpu]} and "
        f"{DEFAULT_ROUNDS[cuda]}",
        "R",
        type=int,
    )
    option(
        "--warmup-rounds",
        f"before them, shared as they are. Default {DEFAULT_WARMUP[cpu]} and {DEFAULT_WARMUP[cuda]}",
        "R",
        type=int,
    )
    option(
        "--extend",
        "Python files that register methods, kernels, masks or whatever else there are registries of; every rank and "
        "worker loads them too. Before a path write = and no blank. Installed packages are found by their entry points "
        f"in the group {GROUP}. Default none",
        "FILE,FILE",
    )
    option(
        "--most-loss",
        f"of each batch size the answer at the end names the fastest row that loses at most that: {MEASURES}. Default "
        f"{MOST_LOSS:g}",
        "LOSS",
    )
    option("--seed", "of weights, inputs and masks. Default 0", "S", type=int, default=0)
    option(
        "--cover",
        "phase 0 also runs every pair of method, kernel, mask, dtype, workload and shape on small "
        "layers, of all that there are (pairs, the default), their full product, or nothing but the grid",
        choices=COVERS,
        default="pairs",
    )
    option("--warm-l2", "do not flush the L2 cache before each round", action="store_true")
    option(
        "--no-ceilings",
        "do not measure what the machine reaches at most: no row has a limit then. Usually what was measured is kept "
        f"for a day, for the same machine, versions and options, in blockshock/{CACHE}.json of your cache folder",
        action="store_true",
    )
    option("--profile", "also save a trace of each benchmark (Chrome, Perfetto), one a rank", action="store_true")
    option(
        "--resume", "go on with the last session that was broken off and ran with these options", action="store_true"
    )
    option("--keep-full-weight", "every rank also holds all of W", action="store_true")
    option(
        "--rank-timeout",
        "seconds without an answer after which the ranks' stacks are shown and the ranks restarted. Default 300",
        "S",
        type=int,
        default=300,
    )
    return gave_way
