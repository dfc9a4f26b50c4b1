"""Plain ASGI middleware, one file each; app.py puts them around the app."""
