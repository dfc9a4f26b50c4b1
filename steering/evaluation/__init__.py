"""Evaluation: every arm answers every item, and a report shows the gain."""
