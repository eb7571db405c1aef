"""Which kernels a ceiling is measured of."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from blockshock.kernels import KERNELS
from blockshock.phases import ceilings


@pytest.mark.parametrize(
    ("here", "measured"),
    [(("streamed", "cusparselt"), ["cusparselt"]), (("streamed",), ["streamed"]), ((), [])],
)
def test_what_is_for_few_tokens_is_no_ceiling_beside_what_is_for_many(
    here: tuple[str, ...], measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[str] = []

    def rate(fastest: Any, name: str, dtype: torch.dtype) -> float:
        found.append(name)
        return 2.0

    for name in KERNELS.names():
        monkeypatch.setattr(KERNELS.get(name), "unavailable", lambda *_, name=name: None if name in here else "gone")
    monkeypatch.setattr(ceilings, "_sparse_rate", rate)
    monkeypatch.setattr(ceilings._Stopwatch, "of", lambda *_: SimpleNamespace(device=torch.device("cuda")))
    assert ceilings.sparse_flops_per_s("cuda_graph", True, "bf16") == (2.0 if here else None)
    assert found == measured
