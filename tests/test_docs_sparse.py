"""docs/sparse-training.md: its code runs, and names all that the toolkit has."""

from __future__ import annotations

import re

import torch
from inner_pytest import ROOT

from blockshock import sparse

PAGE = (ROOT / "docs" / "sparse-training.md").read_text(encoding="utf-8")


def test_its_code_runs_and_its_gradients_are_near() -> None:
    torch.manual_seed(0)
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    found: dict[str, torch.Tensor] = {}
    exec(compile(code, "sparse-training.md", "exec"), found)
    kept = found["w"].where(found["mask"], 0)
    torch.testing.assert_close(found["y"], found["x"] @ kept.T)
    torch.testing.assert_close(found["grad_x"], found["grad_y"] @ kept)
    decayed = found["grad_w"] - 2e-4 * found["w"].where(~found["mask"], 0)
    wanted = found["grad_y"].T @ found["x"]
    assert (decayed - wanted).norm() < 1.5 * wanted.norm()


def test_it_names_all_of_it() -> None:
    told = set(re.findall(r"`(?:\w+\.)?(\w+)\(", PAGE))
    assert set(sparse.__all__) <= told
