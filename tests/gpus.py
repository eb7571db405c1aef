"""Which tests need GPUs, and what they say where there are none."""

import pytest
import torch

from blockshock.methods import METHODS

needs_a_gpu = pytest.mark.skipif(
    not torch.cuda.device_count(), reason="needs a CUDA GPU: run it on a machine that has one"
)
needs_two_gpus = pytest.mark.skipif(
    torch.cuda.device_count() < 2, reason="needs two CUDA GPUs: run it on a machine that has them"
)
CPU_AND_TWO_GPUS = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu2, needs_two_gpus])]
"""Devices, for a test that runs on each."""
CPU_METHODS = tuple(
    name for name in METHODS.names() if not METHODS.get(name).unavailable(torch.device("cpu"), torch.bfloat16, False)
)
"""Methods that ranks on CPUs can run."""
