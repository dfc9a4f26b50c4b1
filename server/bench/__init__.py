"""The benchmark: what steering and batching cost beside transformers, and needing no more."""
