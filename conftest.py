"""Loads the suite's pytest plugin. Register your own workloads, masks and methods here: the README shows how."""

from blockshock.doctor.extras import need

need("the suite", "suite")
pytest_plugins = ["blockshock.plugin"]
