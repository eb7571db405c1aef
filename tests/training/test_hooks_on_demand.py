"""Importing the package changes nothing in torch: what it hooks into is hooked when the first layer or storage asks."""

from __future__ import annotations

import subprocess
import sys

import pytest
from inner_pytest import ROOT, environment

SEEN = """
import importlib, io, pickle, pkgutil, torch
from torch import nn
from torch.nn.modules import module
from torch.optim import optimizer
import blockshock

def seen():
    return (
        len(optimizer._global_optimizer_pre_hooks),
        len(optimizer._global_optimizer_post_hooks),
        len(module._global_module_registration_hooks),
        int(hasattr(torch.amp.GradScaler._unscale_grads_, "__wrapped__")),
    )

before = seen()
for found in pkgutil.walk_packages(blockshock.__path__, "blockshock."):
    if not found.name.endswith("__main__"):
        importlib.import_module(found.name)
print("imported", *(now - then for now, then in zip(seen(), before)))
"""
BUILT = """
layer = blockshock.BlockShockLinear(nn.Linear(16, 8), kernel="reference")
print("built", *(now - then for now, then in zip(seen(), before)))
layer = blockshock.BlockShockLinear(nn.Linear(16, 8), kernel="reference")
print("again", *(now - then for now, then in zip(seen(), before)))
"""
READ = f"""
torch.load({str(ROOT / "tests" / "data" / "layers_of_flat_package.pt")!r}, weights_only=False)
print("read", *(now - then for now, then in zip(seen(), before)))
"""
STORED = """
from blockshock.machine.collectives import Alone
from blockshock.matrices.weights import GeneratedWeights
from blockshock.methods import METHODS, Layer
from blockshock.training.parameters import Training
source = GeneratedWeights(16, 8, torch.float32, torch.device("cpu"))
dense = METHODS.get("dense_single")(Layer(source, training=Training()), Alone())
print("stored", *(now - then for now, then in zip(seen(), before)))
"""


FORKED = """
import os, sys, traceback

for code in sys.argv[1:]:
    sys.stdout.flush()
    if not (child := os.fork()):  # of a process with one thread, that has imported what takes its time
        try:
            exec(code)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(0)
    os.waitpid(child, 0)
"""
"""Does each by itself, as if nothing but the imports had been."""
ASKED = {
    "built": (BUILT, "built 1 1 1 1\nagain 1 1 1 1\n"),
    "read": (READ, "read 1 1 1 1\n"),
    "stored": (STORED, "stored 1 1 0 0\n"),
}


@pytest.fixture(scope="module")
def told() -> subprocess.CompletedProcess[str]:
    codes = [code for code, _ in ASKED.values()]
    return subprocess.run(
        [sys.executable, "-c", SEEN + FORKED, *codes], env=environment(), capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("name", ASKED)
def test_torch_is_hooked_into_when_something_asks(name: str, told: subprocess.CompletedProcess[str]) -> None:
    assert told.stdout.startswith("imported 0 0 0 0\n"), told.stderr
    assert f"\n{ASKED[name][1]}" in told.stdout, told.stderr
