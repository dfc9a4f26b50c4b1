"""The embedded model: its architecture, training, weights, profile and clips."""
