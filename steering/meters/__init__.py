"""Meters of the waveform: what can be known of a clip without a model, as a control."""
