"""Two runs or more beside each other: how each benchmark changed."""

from __future__ import annotations

from matplotlib.figure import Figure

from blockshock.report.across import in_all, medians
from blockshock.report.plots.scales import names, spread
from blockshock.report.plots.style import Styles, finish, panels
from blockshock.saved import Run


def runs_figure(runs: list[Run]) -> Figure | None:
    """A panel per run but the first, a row per label, a dot per benchmark; None if they have none in common."""
    common = in_all(runs)
    if not common:
        return None
    first, *others = map(medians, runs)
    info_of = {record["name"]: record["extra_info"] for record in runs[0].records}
    label_of = {name: info_of[name]["label"] for name in common}
    styles = Styles.of(((label_of[name], info_of[name]["role"]) for name in common), {})
    labels = styles.labels[::-1]
    left = min(0.25 + 0.058 * max(map(len, labels)), 3.2)
    titles = [run.name for run in runs[1:]]
    figure, axes = panels(titles, height=0.3 + 0.16 * len(labels), left=left)
    for ax, other in zip(axes, others, strict=True):
        ax.axvline(1.0, color="#7b8494", linestyle="--", linewidth=1.0, zorder=1)
        for height, label in enumerate(labels):
            changes = [other[name] / first[name] for name in common if label_of[name] == label]
            ax.plot(changes, [height] * len(changes), **styles.line(label) | {"linestyle": "", "alpha": 0.7})
        spread(ax, [1.0, *(other[name] / first[name] for name in common)])
    names(axes, labels)
    return finish(figure, {}, f"p50 over that of {runs[0].name}", "")
