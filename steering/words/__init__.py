"""Words of an answer: which of them the sound decided."""
