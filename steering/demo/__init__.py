"""The small embedded model: its synthetic world, its training and its weights."""
