"""torch's private parts: each does what it did, its loss is seen, and no other file of the package names one."""

from __future__ import annotations

import pkgutil
import re
from functools import partial
from typing import Any

import pytest
import torch
from gpus import needs_a_gpu
from inner_pytest import ROOT

from blockshock import doctor
from blockshock.machine import INTERNALS

OTHERWISE = {
    "torch.Tensor._version": ("torch.Tensor._version", 0),
    "torch.UntypedStorage._cdata": ("torch.UntypedStorage._cdata", 0),
    "torch.distributed.tensor.DTensor._local_tensor": ("torch.distributed.tensor.DTensor.__slots__", ()),
    "torch.autograd.forward_ad._current_level": ("blockshock.machine.torch_internals.in_forward_mode", lambda: False),
}
"""Parts that cannot be deleted, for a base class has them or torch itself would fail, and what stands there instead."""
HERE = [name for name, internal in INTERNALS.items() if internal.device == "cpu"]
ON_GPUS = [name for name, internal in INTERNALS.items() if internal.device == "cuda"]
NAMED = re.compile(
    r"\btorch(\.\w+)*\._[a-z]\w*"  # torch._x, torch.a._x
    r"|^\s*from torch[\w.]*(\._\w+)+[\w.]* import|^\s*from torch[\w.]* import .*\b_[A-Za-z]\w*"
    r"|\b(?!self\b)\w+\.(_version|_cdata|_local_tensor|_current_level|_unscale_grads_)\b"
    r"|\"_local_tensor\"",
    re.MULTILINE,
)
OWN = {
    f"blockshock/machine/{name}.py"
    for name in ("torch_internals", "bsr_kernel", "tensor_states", "tried_internals", "tried_on_gpus")
}
"""The room; ranks know nothing of it, and name what a result may hold once torch has imported it."""
RANKS = {"blockshock/ranks/answers.py": {"torch.distributed._functional_collectives"}}


def owner_of(name: str) -> tuple[Any, str]:
    """What holds a part, and by which name."""
    path, _, last = name.rpartition(".")
    return pkgutil.resolve_name(path), last


@pytest.mark.parametrize("name", HERE)
def test_each_does_what_it_did(name: str) -> None:
    INTERNALS[name].attempt()


@pytest.mark.parametrize("name", ON_GPUS)
def test_what_only_a_gpu_can_try_is_there(name: str) -> None:
    if "_cusparselt" in name and not hasattr(torch._C, "_cusparselt"):
        pytest.skip("this torch was built without cuSPARSELt")
    if "._cuda_" in name and not torch.backends.cuda.is_built():
        pytest.skip("this torch was built without CUDA")
    owner, last = owner_of(name)
    if getattr(owner, last) is None:
        pytest.skip("torch has it where it finds triton and a GPU alone")
    assert callable(getattr(owner, last))


@pytest.mark.gpu
@needs_a_gpu
@pytest.mark.parametrize("name", ON_GPUS)
def test_each_does_what_it_did_on_a_gpu(name: str) -> None:
    if lacks := INTERNALS[name].lacks():
        pytest.skip(lacks)
    INTERNALS[name].attempt()


def look_at_all() -> list[doctor.Finding]:
    findings: list[doctor.Finding] = []
    look = partial(doctor.look_into, findings, lambda name: None)
    look("all", "", doctor.check_internals, "cpu", look)
    return findings


@pytest.mark.parametrize("name", HERE)
def test_the_doctor_names_one_that_is_gone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        if name in OTHERWISE:
            patch.setattr(*OTHERWISE[name])
        else:
            patch.delattr(name)
        first, summary = look_at_all()
    assert (first.name, first.state) == (name, "broken")
    assert first.remedy == f"take another torch: {INTERNALS[name].without}"
    assert (summary.state, summary.found) == ("broken", f"1 of {len(INTERNALS)} are not what they were")


def test_the_doctor_tries_all_that_it_can() -> None:
    (summary,) = look_at_all()
    assert (summary.state, summary.found) == (
        "ok",
        f"{len(HERE)} of {len(INTERNALS)} tried, all do what they did",
    )


def test_no_other_file_names_a_private_part() -> None:
    found = {
        path.relative_to(ROOT).as_posix(): {match[0].strip() for match in NAMED.finditer(path.read_text())}
        for path in sorted((ROOT / "blockshock").rglob("*.py"))
    }
    assert all(found[path] for path in OWN), "the pattern finds what is there"
    assert {path: names for path, names in found.items() if names and path not in OWN} == RANKS


@pytest.mark.parametrize(
    "line",
    [
        "y = torch._cslt_compress(w)",
        "from torch._compile import _disable_dynamo",
        "from torch.nn.modules.module import _WrappedHook",
        "count = tensor._version",
        'part = getattr(tensor, "_local_tensor", tensor)',
        "torch.amp.GradScaler._unscale_grads_ = f",
    ],
)
def test_the_pattern_finds(line: str) -> None:
    assert NAMED.search(line)
