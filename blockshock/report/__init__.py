"""Reads results and shows them. Nothing here imports torch, so that looking at numbers is instant on a laptop."""
