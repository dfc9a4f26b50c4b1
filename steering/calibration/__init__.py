"""Calibration: from items with known answers to a listening profile."""
