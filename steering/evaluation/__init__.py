"""Proving the gain: every arm answers every item, and a report says what came of it."""
