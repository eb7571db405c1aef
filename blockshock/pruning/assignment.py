"""The assignment of places to rows that is worth most, exactly."""

from __future__ import annotations

import numpy as np


def assign(value_SS: np.ndarray) -> np.ndarray:
    """The permutation ``to`` (S,) that maximises Σ value[s, to[s]] of finite values.

    By shortest augmenting paths (Jonker and Volgenant, Computing 38, 1987; as Crouse, IEEE TAES 52, 2016, has them):
    rows take places one after the other, each along the path that costs least in reduced costs, of which none is below
    zero. At most S³ steps, S² of them from Python.
    """
    cost_SS = value_SS.max() - value_SS.astype(np.float64)
    of_places = cost_SS.min(axis=0)
    of_rows = (cost_SS - of_places).min(axis=1)
    place_of, row_of = (np.full(len(cost_SS), -1) for _ in range(2))
    for row, place in enumerate((cost_SS - of_places).argmin(axis=1)):
        if row_of[place] < 0:
            row_of[place], place_of[row] = row, place
    for left in np.flatnonzero(place_of < 0):
        _take_a_place(int(left), cost_SS, of_rows, of_places, row_of, place_of)
    return place_of


def _take_a_place(
    first: int,
    cost_SS: np.ndarray,
    of_rows: np.ndarray,
    of_places: np.ndarray,
    row_of: np.ndarray,
    place_of: np.ndarray,
) -> None:
    """Give a row a place, others theirs anew along the shortest path to a free one; all but the costs is written to."""
    distance, before = np.full(len(cost_SS), np.inf), np.full(len(cost_SS), -1)
    reached, rows, row, least = np.zeros(len(cost_SS), dtype=bool), [first], first, 0.0
    while True:
        through = least + cost_SS[row] - of_rows[row] - of_places
        nearer = ~reached & (through < distance)
        distance[nearer], before[nearer] = through[nearer], row
        place = int(np.where(reached, np.inf, distance).argmin())
        reached[place], least = True, distance[place]
        if row_of[place] < 0:
            break
        row = int(row_of[place])
        rows.append(row)
    of_rows[first] += least
    of_rows[rows[1:]] += least - distance[place_of[rows[1:]]]
    of_places[reached] -= least - distance[reached]
    row = -1
    while row != first:
        row = int(before[place])
        row_of[place], place_of[row], place = row, place, place_of[row]
