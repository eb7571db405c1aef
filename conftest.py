"""Loads the suite's pytest plugin. Register your own workloads, masks and methods here: the README shows how."""

pytest_plugins = ["blockshock.plugin"]
