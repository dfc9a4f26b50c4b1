"""Audio: from untrusted bytes to a clip."""
