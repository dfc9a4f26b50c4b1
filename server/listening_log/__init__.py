"""Records of recent answers: in memory or in a database, and their summary."""
