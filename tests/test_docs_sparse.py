"""docs/sparse-training.md: its code runs, and names all that the toolkit has."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any

import pytest
import torch
from inner_pytest import ROOT

from blockshock import sparse
from blockshock.training import BLOCK_RECIPES, RECIPES, block_recipe_of, recipe_of

PAGE = (ROOT / "docs" / "sparse-training.md").read_text(encoding="utf-8")
CODE = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_its_code_runs_and_its_gradients_are_near() -> None:
    torch.manual_seed(0)
    code = CODE[0]
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


def test_its_recipes_are_all_there_is_with_their_sources_and_parameters() -> None:
    table = PAGE[PAGE.index("# Recipes") :]
    rows = {row.split("`")[1]: row for row in table.splitlines() if row.startswith("| `")}
    every: dict[str, Any] = dict.fromkeys(RECIPES.names(), recipe_of)
    every |= dict.fromkeys(BLOCK_RECIPES.names(), block_recipe_of)
    assert rows.keys() == every.keys()
    for name, of in every.items():
        recipe = of(name)
        sources = [set(re.findall(r"arXiv [\d.]+\d", text)) for text in (rows[name], recipe.source)]
        assert sources[0] <= sources[1], name
        told = dict(re.findall(r"`(\w+)=([^`]+)`", rows[name]))
        held = {one.name: getattr(recipe, one.name) for one in fields(recipe)}
        assert told.keys() == held.keys(), name
        assert all(of(f"{name}:{key}={value}") == recipe for key, value in told.items()), name


def test_its_recipes_train(capsys: pytest.CaptureFixture[str]) -> None:
    found: dict[str, torch.Tensor] = {}
    exec(compile(CODE[1], "sparse-training.md", "exec"), found)
    assert capsys.readouterr().out.startswith(
        "recipe-fst:every=20:dense_from=80 in the place of 2 of 4 linear layers: 0, 2"
    )
    assert found["loss"] < 0.7
