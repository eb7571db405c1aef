"""Rotary positions: each pair of channels turned by its angle, so that what two tokens say to each other depends on how
far apart they are (Su et al., arXiv 2104.09864)."""

from __future__ import annotations

import torch


def turns(at_T: torch.Tensor, d: int, theta: float) -> torch.Tensor:
    """Cosines and sines (2, T, d) of the angles of tokens at these places, in heads of d channels."""
    speeds_d = theta ** -(torch.arange(0, d, 2, device=at_T.device) / d).repeat(2)
    angles_Td = at_T[:, None] * speeds_d
    return torch.stack([angles_Td.cos(), angles_Td.sin()])


def turned(x_BHTd: torch.Tensor, turns_2Td: torch.Tensor) -> torch.Tensor:
    """Queries or keys, each turned by the angles of its place."""
    cos_Td, sin_Td = turns_2Td
    first, second = x_BHTd.chunk(2, -1)
    return x_BHTd * cos_Td + torch.cat([-second, first], -1) * sin_Td
