"""Finding a model's ears: from items with known answers to a listening profile."""
