"""Which tests need GPUs, and what they say where there are none."""

import pytest
import torch

needs_a_gpu = pytest.mark.skipif(
    not torch.cuda.device_count(), reason="needs a CUDA GPU: run it on a machine that has one"
)
needs_two_gpus = pytest.mark.skipif(
    torch.cuda.device_count() < 2, reason="needs two CUDA GPUs: run it on a machine that has them"
)
CPU_AND_TWO_GPUS = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu2, needs_two_gpus])]
"""Devices, for a test that runs on each."""
