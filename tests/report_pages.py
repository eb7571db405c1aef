"""Reports to look at in tests, and the browser that does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from inner_pytest import ROOT

from blockshock.__main__ import main

FORWARD, TRAINING, VERDICTS = sorted((ROOT / "benchmark_results" / "official").glob("*.json"))[:3]
MARKUP = "<b>bold</b><script>document.title='run'</script> & \"quoted\""
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def written_to(folder: Path) -> Path:
    """A report on parts of official runs, one of which has a label and a group with markup, and one with limits."""
    parts = folder / "parts <i>"
    parts.mkdir()
    for path in (TRAINING, VERDICTS, FORWARD):
        saved = json.loads(path.read_text())
        saved["benchmarks"] = [
            bench
            for bench in saved["benchmarks"]
            if bench["extra_info"].get("optimizer") != "adamw" and bench["extra_info"]["B"] in (64, 1024)
        ]
        (parts / path.name).write_text(json.dumps(saved))
    saved = json.loads((parts / FORWARD.name).read_text())
    for bench in saved["benchmarks"]:
        info = bench["extra_info"]
        info["label"] = info["label"].replace("dtensor_row", MARKUP)
        bench["group"] = bench["group"].replace("recorded", f"recorded {MARKUP}")
        if "p50_ms" in info:
            work = {
                "flops": 2 * info["N"] * info["K"] * info["B"],
                "unit": "dense",
                "memory_bytes": info["weight_bytes"],
            }
            info |= {"of_limit": 0.5, "limit_ms": info["p50_ms"] / 2, "bound_by": "memory", "work": work}
    ceilings = {"memory_bytes_per_s": 4.2e12, "dense_flops_per_s": {"bf16": 8e14}, "sparse_flops_per_s": {"bf16": 6e14}}
    saved["machine_info"]["blockshock"] |= {"ceilings": ceilings}
    (parts / FORWARD.name).write_text(json.dumps(saved))
    assert main(["report", str(parts), "--to", str(folder / "to")]) == 0
    return folder / "to"
