"""Reads saved runs and shows them. Nothing here imports torch."""

from blockshock.report.ending import print_ending

__all__ = ["print_ending"]
