"""Models: from a checkpoint to an AudioModel."""
