"""Heads chosen by what the sound does to each token of an answer: no labels are needed."""
