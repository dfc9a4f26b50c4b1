"""The model as allears runs it, held against plain transformers on the same loaded weights."""
