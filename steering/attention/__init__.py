"""Attention in the model: the kernels, and the taps that read it."""
