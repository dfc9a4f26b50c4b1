"""Synthetic sounds, music and speech, and items about them, with known answers."""
