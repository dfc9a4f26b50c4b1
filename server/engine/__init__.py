"""The engine: questions in, answers out, one torch thread. No HTTP."""
