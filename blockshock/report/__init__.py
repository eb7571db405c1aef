"""Reads saved runs and shows them. Nothing here imports torch."""

from blockshock.report.show import print_comparison

__all__ = ["or_inf", "print_comparison"]
