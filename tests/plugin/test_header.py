"""What the header of a session says of files that add something, and of points and options that come to nothing."""

from __future__ import annotations

import pytest
from resolving import no_gpus

from blockshock.kernels import KERNELS
from blockshock.matrices import MODELS
from blockshock.methods import AXES, METHODS, Axis
from blockshock.plugin.header import lines
from blockshock.plugin.settings import resolve as resolve_settings
from blockshock.registry import Registry

pytest_plugins = ["pytester"]
__all__ = ["no_gpus"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--workloads=recorded --N=64", "--N changes no N and no K: recorded has its own"),
        ("--workloads=recorded,gaussian --N=64", None),
        ("--workloads=recorded --B=4", None),
        ("--B=4,1024", "recorded has 512 tokens: it is not measured at B 1024"),
        ("--workloads=gaussian --B=1024", None),
        (
            "--d=64 --B=4",
            "--d and --B change no block that is checked, of 32x256 with 60 tokens: they size what is timed",
        ),
        ("--points=mine.csv", "--points lists N 64, K 128, B 4 2 times: measured once, with the counts added up (5)"),
    ],
)
def test_the_header_names_points_that_come_to_nothing(
    arguments: str, said: str | None, pytester: pytest.Pytester
) -> None:
    (pytester.path / "mine.csv").write_text("N,K,B,count\n64,128,4,3\n64,64,4,1\n64,128,4,2\n64,128,8,1\n")
    config = pytester.parseconfig("-p", "blockshock.plugin", *arguments.split())
    told = lines(config, resolve_settings(config))[1:]
    assert told == ([] if said is None else [said])


EXTENSION = """
from blockshock import KERNELS, METHODS, MODELS, Linear, Model
METHODS.register("own")(METHODS.get("dense_single"))
KERNELS.register("own_kernel")(KERNELS.get("reference"))
MODELS.register("own_model")(Model("nowhere", (Linear("up", 64, 64, 2),)))
"""


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("", "adds method own, kernel own_kernel (not picked: --kernels), model own_model (not picked: --layers)"),
        ("--methods=own", "adds method own, kernel own_kernel (not picked: --kernels), model own_model ("),
        ("--kernels=own_kernel --layers=own_model", "adds method own, kernel own_kernel, model own_model"),
        ("--methods=dense_single", "adds method own (not picked: --methods), kernel "),
    ],
)
def test_the_header_says_what_a_file_adds_and_what_of_it_nothing_picks(
    arguments: str, told: str, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    for registry in (METHODS, KERNELS, MODELS):
        monkeypatch.setattr(registry, "_entries", {name: registry.get(name) for name in registry.names()})
    for name, kept in (("_extensions", []), ("_brought", {})):
        monkeypatch.setattr(f"blockshock.registry.{name}", kept)
    (pytester.path / "own.py").write_text(EXTENSION)
    config = pytester.parseconfig("-p", "blockshock.plugin", "--extend=own.py", *arguments.split())
    (line,) = (line for line in lines(config, resolve_settings(config)) if line.startswith("own.py "))
    assert line.startswith(f"own.py {told}")


def test_an_axis_that_no_method_has_is_named(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(AXES._entries, "tint", type("Tint", (Axis,), {"registry": Registry("tint")}))
    Registry.register(AXES.get("tint").registry, "red")(object())
    config = pytester.parseconfig("-p", "blockshock.plugin", "--tints=red")
    assert "--tints changes nothing: no method has that axis" in lines(config, resolve_settings(config))
