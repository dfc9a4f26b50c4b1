"""Audio on its way in: fetched, decoded in processes apart, within limits."""
