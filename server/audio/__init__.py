"""Audio on its way in: fetched from URLs, decoded in processes of its own, within limits."""
