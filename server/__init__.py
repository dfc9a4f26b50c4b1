"""allears over HTTP: routes, engine, listening log, metrics."""
