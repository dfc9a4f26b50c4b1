"""Listening and steering inside a model of transformers that the user loaded."""
