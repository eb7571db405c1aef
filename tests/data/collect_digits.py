"""Write the handwritten digits of the task ``digits`` as text: ``blockshock/models/data/digits.txt``.

How to run, in a checkout, with the wheel that ``python -m pip download --no-deps scikit-learn==1.5.2`` gets:

    python tests/data/collect_digits.py scikit_learn-1.5.2-….whl

A line is an image: the digit, a blank, and its 8 × 8 pixels from 0 to 16 as letters, 0 to 9 and a to g. Where they are
from, and under which licence, is in ``LICENSE-digits.txt`` beside them.
"""

from __future__ import annotations

import gzip
import sys
import zipfile
from pathlib import Path

DATA = Path(__file__).parents[2] / "blockshock" / "models" / "data"
INSIDE = "sklearn/datasets/data/digits.csv.gz"
LETTERS = "0123456789abcdefg"


def line(row: str) -> str:
    """Of 64 pixels and the digit, parted by commas."""
    *pixels, digit = (int(float(value)) for value in row.split(","))
    return f"{digit} {''.join(LETTERS[pixel] for pixel in pixels)}"


def main(wheel: str) -> None:
    with zipfile.ZipFile(wheel) as archive:
        rows = gzip.decompress(archive.read(INSIDE)).decode("ascii").split()
    (DATA / "digits.txt").write_text("\n".join([*map(line, rows), ""]), encoding="ascii")


if __name__ == "__main__":
    main(sys.argv[1])
