"""What this deployment heard: records, their database, summaries."""
