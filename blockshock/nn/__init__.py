"""Layers for a user's own model: `blockshock` itself hands on what is public, each when it is asked for."""
