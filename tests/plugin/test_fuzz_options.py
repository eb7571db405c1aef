"""Every option, every spec and the command line, with whatever a user may type: settings, or an error that says why."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from fuzzing import attempt, examples
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import counts, lists, names, numbers, specs

from blockshock.__main__ import main
from blockshock.errors import UnknownName
from blockshock.kernels import KERNELS, build_kernel
from blockshock.matrices.named_masks import MASKS
from blockshock.matrices.workloads import WORKLOADS, build_workload
from blockshock.measure.timing import MODES
from blockshock.methods import METHODS, method_of
from blockshock.phases.case import DTYPES, Case, estimate_bytes
from blockshock.phases.hypotheses import HYPOTHESES
from blockshock.plugin import cases, sweep
from blockshock.plugin.options import add_options
from blockshock.plugin.records import cover_group, describe_case, group_name
from blockshock.plugin.settings import Settings, resolve
from blockshock.registry import Registry, extensions, parse_spec
from blockshock.report import command
from blockshock.saved import journal, recovering
from blockshock.training.optimizers import OPTIMIZERS, optimizer_of
from blockshock.training.recipes import BLOCK_RECIPES, RECIPES, block_recipe_of, recipe_of
from blockshock.training.sparse_storages import STORAGES, storage_of

pytestmark = pytest.mark.reliability

REGISTRIES = {"methods": METHODS, "kernels": KERNELS, "masks": MASKS, "workloads": WORKLOADS, "optimizers": OPTIMIZERS}
sizes = st.one_of(
    counts.map(str), st.tuples(counts, st.sampled_from("x×*"), counts).map(lambda s: f"{s[0]}{s[1]}{s[2]}"), names
)
whole = counts.map(str) | names
VALUES: dict[str, st.SearchStrategy[str]] = {
    "--N": lists(sizes | st.sampled_from(("256", "256x512", "4×8", "9" * 5000, "٨"))),
    "--B": lists(whole | st.sampled_from(("4", "9" * 5000))),
    "--sweep": lists(st.sampled_from(("N", "B")) | names),
    "--dtype": lists(st.sampled_from(tuple(DTYPES)) | names),
    "--storages": lists(specs(STORAGES.names())),
    "--recompress-every": lists(whole | st.sampled_from(("1", "never", "Never"))),
    "--ranks": whole | st.sampled_from(("1", "3", "2.0", "9" * 5000)),
    "--device": st.sampled_from(("auto", "cpu", "cuda", "mps")) | names,
    "--timing": st.sampled_from(MODES) | names,
    "--rounds": whole,
    "--warmup-rounds": whole,
    "--seed": whole,
    "--cover": st.sampled_from(("grid", "pairs", "product")) | names,
    "--rank-timeout": whole,
} | {f"--{name}": lists(specs(registry.names())) for name, registry in REGISTRIES.items()}
FLAGS = ("--warm-l2", "--no-search", "--profile", "--resume", "--keep-full-weight")


class Options(argparse.ArgumentParser):
    """pytest's parser as far as the plugin asks for it; what it refuses is a usage error there too."""

    def getgroup(self, *about: str) -> Options:
        return self

    addoption = argparse.ArgumentParser.add_argument

    def error(self, message: str) -> Any:
        raise pytest.UsageError(message)


OPTIONS = Options(add_help=False)
add_options(cast(Any, OPTIONS))


def parsed(arguments: list[str]) -> pytest.Config | None:
    """What pytest makes of a command line; None if it refuses."""
    try:
        known = OPTIONS.parse_args(arguments)
    except pytest.UsageError:
        return None
    getoption = lambda name: getattr(known, name.removeprefix("--").replace("-", "_"))  # noqa: E731
    return cast(Any, SimpleNamespace(getoption=getoption))


def resolved(config: pytest.Config) -> Settings | None:
    """The settings; None where pytest ends with a usage error, the only error that it shows without a traceback."""
    try:
        return resolve(config)
    except pytest.UsageError:
        return None


@st.composite
def command_lines(draw: Any) -> list[str]:
    chosen = draw(st.lists(st.sampled_from(sorted(VALUES)), max_size=4, unique=True))
    return [f"{option}={draw(VALUES[option])}" for option in chosen] + draw(
        st.lists(st.sampled_from(FLAGS), max_size=2)
    )


def check(settings: Settings) -> None:
    """What every settings promise, and that their grids can be made of them."""
    assert settings.ranks >= 1
    assert settings.rounds >= 1
    assert settings.warmup >= 0
    assert all(N > 0 and K > 0 and K % 4 == 0 for N, K in settings.points.sizes)
    for values in (settings.dtypes, settings.methods, *filter(None, settings.axes.values())):
        assert values
        assert len(set(values)) == len(values)
    picked = [len(specs) for specs in settings.axes.values() if specs]
    if len(settings.points.sizes) * len(settings.methods) * math.prod(picked) >= 100:
        return
    for grid in (cases.forward_grid, cases.backward_grid, cases.training_grid, cases.trajectories, cases.drifts):
        made = grid(settings)
        assert len({case.id for case in made}) == len(made)
        for case in made[:2]:
            described = describe_case(1, case, settings.device, settings.ranks)
            assert described["label"] == case.label
            assert case.workload in group_name("phase", case)
            attempt(estimate_bytes, case, settings.ranks)
    for claim in cases.hypotheses(settings)[:3]:
        assert claim.hypothesis is HYPOTHESES.get(claim.name)
        assert claim.rivals
        assert claim.case.method not in {rival.method for rival in claim.rivals}


@examples(400)
@given(command_lines())
def test_options_resolve_or_say_what_is_wrong(arguments: list[str]) -> None:
    config = parsed(arguments)
    settings = None if config is None else resolved(config)
    if settings is not None:
        check(settings)


@pytest.mark.parametrize("option", sorted(VALUES))
@examples(70)
@given(data=st.data())
def test_one_option_resolves_or_says_what_is_wrong(option: str, data: st.DataObject) -> None:
    config = parsed([f"{option}={data.draw(VALUES[option])}"])
    settings = None if config is None else resolved(config)
    if settings is not None:
        check(settings)


@pytest.mark.parametrize("option", ["--N", "--B", "--ranks", "--rounds", "--seed", "--rank-timeout"])
@pytest.mark.parametrize("text", ["9" * 5000, "9" * 400, "-1", "--", "", "1e3", "²"])
def test_what_is_no_number_that_can_be_meant_is_a_usage_error(option: str, text: str) -> None:
    config = parsed([f"{option}={text}"])
    assert config is None or resolved(config) is None


@examples(190)
@given(axes=st.none() | lists(st.sampled_from(("N", "B")) | names), N=st.none() | whole, B=st.none() | whole)
def test_a_sweep_takes_what_is_given_first(axes: str | None, N: str | None, B: str | None) -> None:
    usual = {"N": "1", "B": "2"}
    found = attempt(sweep.defaults, axes, "cpu", {"N": N, "B": B}, usual)
    if found is not None:
        assert found.keys() == usual.keys()
        for axis, given_text in (("N", N), ("B", B)):
            assert given_text is None or found[axis] == given_text
            assert axes is not None or given_text is not None or found[axis] == usual[axis]


@pytest.mark.parametrize(
    ("build", "registry"),
    [
        (method_of, METHODS),
        (build_kernel, KERNELS),
        (build_workload, WORKLOADS),
        (optimizer_of, OPTIMIZERS),
        (storage_of, STORAGES),
        (recipe_of, RECIPES),
        (block_recipe_of, BLOCK_RECIPES),
        (lambda spec: MASKS.resolve(spec, skip=1), MASKS),
    ],
    ids=["method", "kernel", "workload", "optimizer", "storage", "recipe", "block recipe", "mask"],
)
@examples(190)
@given(data=st.data())
def test_a_spec_is_built_or_refused(build: Any, registry: Registry[Any], data: st.DataObject) -> None:
    spec = data.draw(specs(registry.names()))
    built = attempt(build, spec)
    if built is None:
        return
    name, parameters = parse_spec(spec)
    assert name in registry.names()
    held = vars(built) if hasattr(built, "__dict__") else {}
    for key, value in parameters.items():
        assert isinstance(value, bool | int | float | str)
        assert value == held.get(key, value)


@examples(500)
@example("gaussian:std=nan")
@example("gaussian:std=yes")
@example("a:b=1:b=2")
@given(st.one_of(names, st.lists(names | numbers.map(str), max_size=5).map(":".join), specs(("gaussian",))))
def test_a_spec_is_read_back_as_it_was_written(spec: str) -> None:
    read = attempt(parse_spec, spec)
    if read is None:
        return
    name, parameters = read
    assert name == spec.strip().partition(":")[0]
    assert len(parameters) == spec.strip().count(":")


@examples(370)
@given(kind=names, taken=names, asked=names)
def test_a_registry_takes_names_that_files_and_ids_can_hold(kind: str, taken: str, asked: str) -> None:
    registry: Registry[type] = Registry(kind)
    before = extensions()
    add = attempt(registry.register, taken)
    if add is not None:
        add(int)
        assert taken.isprintable()
        assert not set(taken) & set("/\\ :,[]=")
        assert registry.names() == (taken,)
        assert registry.get(taken) is int
        assert attempt(registry.register, taken) is None
    if asked != taken or add is None:
        with pytest.raises(UnknownName):
            registry.get(asked)
    assert extensions() == before


words = (
    st.sampled_from(("doctor", "report", "recover", "--format", "--to", "md", "terminal", "-h", "--help", "--")) | names
)


@examples(250)
@given(st.lists(words, max_size=4))
def test_the_command_line_runs_or_says_what_is_wrong(tmp_path_factory: Any, arguments: list[str]) -> None:
    asked: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("blockshock.doctor.main", lambda: 0)
        patch.setattr(command, "report", lambda *given: asked.append(given) or 0)
        patch.setattr(recovering, "recover", lambda folder: asked.append(folder) or folder)
        patch.setattr(recovering, "is_running", lambda folder: False)
        patch.setattr(journal, "read_session", lambda folder: {})
        patch.setattr(journal, "unfinished_below", lambda: ([Path("last"), Path("other")], []))
        try:
            status = main(arguments)
        except SystemExit as error:
            status = int(error.code or 0)
    assert status in (0, 2)
    assert status == 2 or asked or not arguments or {"doctor", "-h", "--help"} & set(arguments)


@examples(120)
@given(name=names, kernel=st.none() | names, N=counts, B=counts)
def test_a_case_names_itself_by_all_that_was_picked(name: str, kernel: str | None, N: int, B: int) -> None:
    case = Case(name, {"kernel": kernel} if kernel else {}, "gaussian", N, 4, B, "bf16", optimizer="sgd")
    for part in filter(None, (name, kernel, "gaussian", f"N{N}", f"B{B}", "sgd")):
        assert part in case.id
    assert case.frozen.training is None
    assert case.torch_dtype in DTYPES.values()
    assert name in cover_group(name)
