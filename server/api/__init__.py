"""The HTTP interface: the only folder that imports fastapi and starlette."""
