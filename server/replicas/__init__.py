"""Several copies of the app behind one router."""
