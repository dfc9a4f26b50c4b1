"""Checkpoints become an AudioModel."""
