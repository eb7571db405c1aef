"""Registries: names, specs and their parameters, what is said of wrong ones, and entries from outside the package."""

from __future__ import annotations

import importlib
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from blockshock import registry
from blockshock.errors import InputError, UnknownName
from blockshock.kernels.base import KERNELS
from blockshock.matrices.named_masks import MASKS, build_mask
from blockshock.matrices.weights import GeneratedWeights
from blockshock.matrices.workloads import WORKLOADS, build_workload
from blockshock.methods.base import METHODS
from blockshock.phases.backward import LOSSES
from blockshock.pruning import PRUNERS
from blockshock.registry import Registry, extensions, parse_spec

pytestmark = pytest.mark.masks

OWN_REGISTRY = "from blockshock.registry import Registry\nTHINGS = Registry('thing')\n"
REAL = (MASKS, WORKLOADS, LOSSES, METHODS, KERNELS, PRUNERS)


@pytest.fixture(autouse=True)
def left_as_found(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lets a test register what it likes: every registry is swapped for a copy, for that long."""
    before = [real.names() for real in REAL], extensions()
    with monkeypatch.context() as patch:
        patch.setattr(registry, "_extensions", list(registry._extensions))
        for real in REAL:
            patch.setattr(real, "_entries", dict(real._entries))
        yield
    for module in [name for name in sys.modules if name.startswith("outside_")]:
        del sys.modules[module]
    assert ([real.names() for real in REAL], extensions()) == before


@pytest.fixture
def things() -> Registry[Callable[..., object]]:
    found: Registry[Callable[..., object]] = Registry("thing")

    @found.register("plain")
    def plain() -> str:
        return "plain"

    @found.register("cubed")
    def cubed(source: object, edge: int = 1, unit: str = "m") -> tuple[object, int, str]:
        return source, edge**3, unit

    return found


def test_entries_come_by_name_and_in_order(things: Registry[Callable[..., object]]) -> None:
    assert things.names() == ("plain", "cubed")
    assert things.get("plain")() == "plain"


def test_an_entry_is_named_as_it_is_registered(things: Registry[Callable[..., object]]) -> None:
    class Unregistered: ...

    assert [things.name_of(things.get(name)) for name in things.names()] == ["plain", "cubed"]
    assert things.name_of(Unregistered) == "unregistered"


def test_a_decorated_entry_stays_itself(things: Registry[Callable[..., object]]) -> None:
    def entry() -> None: ...

    assert things.register("entry")(entry) is entry
    assert things.get("entry") is entry


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        ("gaussian", ("gaussian", {})),
        (" gaussian ", ("gaussian", {})),
        ("gaussian:std=0.5:mean=1", ("gaussian", {"std": 0.5, "mean": 1})),
        ("uniform:low=-1e-3", ("uniform", {"low": -1e-3})),
        ("transformer_mlp:act=silu:norm=no", ("transformer_mlp", {"act": "silu", "norm": False})),
        ("transformer_mlp:norm=yes", ("transformer_mlp", {"norm": True})),
        ("x:path=a=b", ("x", {"path": "a=b"})),
    ],
)
def test_specs_are_a_name_and_parameters(spec: str, wanted: tuple[str, dict[str, object]]) -> None:
    name, parameters = parse_spec(spec)
    assert (name, parameters) == wanted
    assert [type(value) for value in parameters.values()] == [type(value) for value in wanted[1].values()]


@pytest.mark.parametrize("pair", ["", "std", "std=", "=1", "="])
def test_malformed_parameters_are_refused(pair: str) -> None:
    with pytest.raises(InputError, match=f"'{pair}' is not of the form name=value, as in gaussian:std=0.5"):
        parse_spec(f"gaussian:{pair}")


def test_specs_resolve_to_an_entry_and_its_parameters(things: Registry[Callable[..., object]]) -> None:
    entry, parameters = things.resolve("cubed:edge=2", skip=1)
    assert entry("w", **parameters) == ("w", 8, "m")


def test_unknown_parameters_are_refused_with_the_known_ones(things: Registry[Callable[..., object]]) -> None:
    with pytest.raises(InputError, match="the thing 'cubed' takes edge, unit, not 'edges'"):
        things.resolve("cubed:edges=2", skip=1)
    with pytest.raises(InputError, match="takes edge, unit, not 'source'"):
        things.resolve("cubed:source=2", skip=1)
    with pytest.raises(InputError, match="the thing 'plain' takes no parameter, not 'edge'"):
        things.resolve("plain:edge=2")
    with pytest.raises(InputError, match="the workload 'gaussian' takes mean, std, not 'sdt'"):
        build_workload("gaussian:sdt=2")


@pytest.mark.parametrize(
    ("typo", "meant"), [("tile_magnitud", "tile_magnitude"), ("Random", "random"), ("magntiude", "magnitude")]
)
def test_typos_bring_the_nearest_name_and_the_choices(typo: str, meant: str) -> None:
    with pytest.raises(UnknownName, match=f"no mask is named '{typo}'. Did you mean '{meant}'.* Choices: 1100, 1010, "):
        build_mask(typo, GeneratedWeights(4, 4, torch.float32, "cpu"))


def test_names_like_no_other_bring_the_choices_alone(things: Registry[Callable[..., object]]) -> None:
    with pytest.raises(UnknownName, match=r"^no thing is named 'zzz'\. Choices: plain, cubed$"):
        things.get("zzz")


def test_taken_names_are_refused(things: Registry[Callable[..., object]]) -> None:
    with pytest.raises(InputError, match="cannot register the thing 'plain': the name is taken"):
        things.register("plain")


@pytest.mark.parametrize("name", ["", "a,b", "a:b", "a[b", "a]b", "a=b", "a/b", "a b"])
def test_malformed_names_are_refused(name: str, things: Registry[Callable[..., object]]) -> None:
    with pytest.raises(InputError, match="the name is empty or holds one of"):
        things.register(name)
    assert things.names() == ("plain", "cubed")


def test_the_package_itself_is_no_extension() -> None:
    assert all(len(real.names()) > 1 for real in REAL)
    package = Path(registry.__file__).parent
    assert not [file for _, file in extensions() if package in Path(file).parents]


def test_entries_from_outside_are_remembered_with_their_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "outside_entries.py"
    file.write_text(
        textwrap.dedent("""
            import torch
            from blockshock.matrices.named_masks import MASKS, pattern_mask
            from blockshock.matrices.workloads import WORKLOADS, Workload

            @MASKS.register("outer")
            def outer(source, flip=False):
                return pattern_mask("0110" if flip else "1001", source.N, source.K)

            @WORKLOADS.register("doubled")
            class Doubled(Workload):
                def draw(self, B, K, stream): return torch.randn(B, K, generator=stream, device=stream.device) * 2
        """)
    )
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("outside_entries")
    assert [path for _, path in extensions()].count(str(file)) == 1
    mask = build_mask("outer:flip=yes", GeneratedWeights(1, 4, torch.float32, "cpu"))
    assert mask.dense().tolist() == [[False, True, True, False]]
    inputs = [
        build_workload(name).inputs(2, 4, torch.float32, torch.device("cpu"), 0, 4) for name in ("doubled", "gaussian")
    ]
    assert torch.equal(inputs[0], inputs[1] * 2)


def test_every_module_of_a_package_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "outside_package"
    package.mkdir()
    (tmp_path / "own_things.py").write_text(OWN_REGISTRY)
    for name in ("__init__", "b", "a"):
        code = "" if name == "__init__" else f"THINGS.register('outside_{name}')(lambda: 1)"
        (package / f"{name}.py").write_text(f"from own_things import THINGS\n{code}\n")
    monkeypatch.syspath_prepend(tmp_path)
    things = importlib.import_module("own_things").THINGS
    things.load_package("outside_package")
    assert things.names() == ("outside_a", "outside_b")
    assert [Path(file).name for _, file in extensions()][-2:] == ["a.py", "b.py"]


def test_files_of_one_name_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        code = f"{OWN_REGISTRY}THINGS.register('of_{folder}')(lambda: 1)\n"
        (tmp_path / folder / "same_name.py").write_text(code)
        monkeypatch.syspath_prepend(tmp_path / folder)
        monkeypatch.delitem(sys.modules, "same_name", raising=False)
        importlib.import_module("same_name")
    names, files = zip(*extensions()[-2:], strict=True)
    assert [Path(file).parent.name for file in files] == ["first", "second"]
    assert names[0] != names[1]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("gaussian:std=abc", "std takes a number, not 'abc'"),
        ("attention_like:window=1.5", "window takes a whole number, not '1.5'"),
        ("transformer_mlp:norm=maybe", "norm takes yes or no, not 'maybe'"),
    ],
)
def test_a_parameter_of_another_type_is_refused(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_workload(spec)
