"""The benchmark: the cost of steering and batching beside transformers, which is all it needs."""
