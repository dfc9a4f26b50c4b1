"""Talking to an allears server: HTTP only, no torch."""
