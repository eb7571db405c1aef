"""A layer that is right once is right whenever it is called: what remembers an output is not timed as if it made it."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from blockshock.errors import InputError
from blockshock.matrices import build_workload
from blockshock.matrices.weights import GeneratedWeights
from blockshock.matrices.workloads import Gaussian
from blockshock.phases.correctness import _called_again, _forward

N, K, B = 48, 64, 8
CPU = torch.device("cpu")
Call = Callable[[torch.Tensor], Any]


def _built(make: Callable[[Call], Call], dtype: torch.dtype, std: float = 1.0) -> tuple[Any, torch.Tensor]:
    source = GeneratedWeights(N, K, dtype, CPU, seed=0)
    w_NK, bias = source.rows(0, N), source.bias

    class Method:
        roundings = 3

        def __init__(self) -> None:
            self.call = make(lambda x_BK: torch.nn.functional.linear(x_BK, w_NK, bias))

        def __call__(self, x_BK: torch.Tensor) -> Any:
            return self.call(x_BK)

    x_BK = (torch.randn(B, K, generator=torch.Generator().manual_seed(1)) * std).to(dtype)
    built = SimpleNamespace(method=Method(), x_BK=x_BK, source=source)
    return built, built.method(x_BK)


def _remembers(plain: Call) -> Call:
    held: list[torch.Tensor] = []
    return lambda x_BK: held[0] if held else held.append(plain(x_BK)) or held[0]  # type: ignore[func-returns-value]


def _stops_after_two(plain: Call) -> Call:
    held: list[torch.Tensor] = []

    def call(x_BK: torch.Tensor) -> torch.Tensor:
        if len(held) < 2:
            held.append(plain(x_BK))
        return held[-1]

    return call


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("std", [1.0, 1e-4, 1e3])
def test_what_computes_is_right_each_time(dtype: torch.dtype, std: float) -> None:
    built, y_BN = _built(lambda plain: plain, dtype, std)
    assert _called_again(built, y_BN) is None


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (_remembers, "with half of x, a layer does not give half"),
        (_stops_after_two, "with the same x, a layer gives other"),
    ],
)
def test_what_remembers_is_found(fault: Callable[[Call], Call], says: str) -> None:
    built, y_BN = _built(fault, torch.bfloat16)
    assert says in str(_called_again(built, y_BN))


@pytest.mark.parametrize(
    "wrong", [lambda y_BN: y_BN[:1], lambda y_BN: y_BN[:, :8], lambda y_BN: (y_BN,), lambda y_BN: None]
)
def test_an_output_of_another_shape_is_named(wrong: Callable[[Any], Any]) -> None:
    """One row would stand for all of them where it is compared."""
    built, _ = _built(lambda plain: lambda x_BK: wrong(plain(x_BK)), torch.bfloat16)
    with pytest.raises(ValueError, match=rf"y must be a tensor \({B}, {N}\), and the method gives "):
        _forward(built)


@pytest.mark.parametrize("wrong", [lambda x_BK: x_BK[:1], lambda x_BK: x_BK.repeat(16, 1), lambda x_BK: None])
def test_a_workload_that_draws_another_shape_is_refused(wrong: Callable[[Any], Any], monkeypatch: Any) -> None:
    """Its rows would be said to be of the B that was asked for."""
    plain = Gaussian.draw
    monkeypatch.setattr(Gaussian, "draw", lambda self, *given: wrong(plain(self, *given)))
    workload = build_workload("gaussian")
    with pytest.raises(
        InputError, match=rf"X must be drawn as a tensor \({B}, {K}\), got .*: mend the workload's draw"
    ):
        workload.inputs(B, K, torch.bfloat16, CPU, 0, N)
    with pytest.raises(InputError, match="calibration must be drawn as a tensor"):
        workload.calibration(B, K, torch.bfloat16, CPU, 0, N, B)
