"""Audio files become clips."""
