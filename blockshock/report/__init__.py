"""Reads saved runs and shows them. Nothing here imports torch."""

from blockshock.report.ending import DISTRIBUTED, UNSAVED, print_ending

__all__ = ["DISTRIBUTED", "UNSAVED", "print_ending"]
