"""How near the embeddings of a compressed encoder are to those of the dense one."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def likeness(found_BD: torch.Tensor, dense_BD: torch.Tensor) -> dict[str, float]:
    """Embeddings of the same sentences beside each other; NaN where one holds no number.

    Returns:
        ``cosine``, the mean over the sentences; ``least_cosine``, that of the one that changed most; ``spearman``, the
        rank correlation of the similarities of all pairs of sentences.
    """
    found_BD, dense_BD = found_BD.double(), dense_BD.double()
    cosines_B = F.cosine_similarity(found_BD, dense_BD)
    ranks = spearman(_similarities(found_BD), _similarities(dense_BD))
    return {"cosine": cosines_B.mean().item(), "least_cosine": cosines_B.min().item(), "spearman": ranks}


def _similarities(embeddings_BD: torch.Tensor) -> torch.Tensor:
    """Cosines of all pairs, each pair once."""
    unit_BD = F.normalize(embeddings_BD, dim=1)
    first, second = torch.triu_indices(len(unit_BD), len(unit_BD), 1, device=unit_BD.device)
    return (unit_BD @ unit_BD.T)[first, second]


def spearman(a_P: torch.Tensor, b_P: torch.Tensor) -> float:
    """Spearman's rank correlation of two series; equal values share the mean of their ranks. NaN of fewer than two."""
    if len(a_P) < 2 or not (a_P.isfinite().all() and b_P.isfinite().all()):
        return float("nan")
    return float(torch.corrcoef(torch.stack([_ranks(a_P), _ranks(b_P)]))[0, 1])


def _ranks(values_P: torch.Tensor) -> torch.Tensor:
    _, of_P, counts_U = values_P.unique(return_inverse=True, return_counts=True)
    return (counts_U.cumsum(0) - (counts_U - 1) / 2).double()[of_P]
