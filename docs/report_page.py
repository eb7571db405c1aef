"""Writes docs/report from the saved runs that answer for each use: `python docs/report_page.py`.

It is what `python -m blockshock report RUN RUN --to FOLDER` writes, less its tables, and of its plots those that the
README shows. A test holds it to its runs.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import tempfile
from pathlib import Path

from rich.console import Console

from blockshock.report.folder import PAGE, write_folder
from blockshock.saved import read_run

ROOT = Path(__file__).parent.parent
REPORT = ROOT / "docs" / "report"
OFFICIAL = Path("benchmark_results") / "official"
RUNS = ("0013_1xH200-streamed", "0011_1xH100-pruned", "0021_2xH200-fused", "0009_2xH100")
"""What pays first: pruned layers on one GPU, of few tokens and of many; then the halves on two, likewise. A page has
runs in the order of the command."""
PICTURES = {
    "pruned-map": "0011-1xh100-pruned-heat",
    "streamed-map": "0013-1xh200-streamed-heat",
}


def written(to: Path) -> None:
    """Write the page and the pictures into a folder, in place of all that it holds."""
    shutil.rmtree(to, ignore_errors=True)
    to.mkdir(parents=True)
    # The page names its runs as one would from there.
    with contextlib.chdir(ROOT), tempfile.TemporaryDirectory() as whole:
        page = write_folder(Path(whole), [read_run(OFFICIAL / name) for name in RUNS], Console(file=io.StringIO()))
        shutil.copyfile(page, to / PAGE)
        for name, plot in PICTURES.items():
            shutil.copyfile(Path(whole) / "plots" / f"{plot}.svg", to / f"{name}.svg")


if __name__ == "__main__":
    written(REPORT)
