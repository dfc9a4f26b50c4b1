"""The pages of the playground and of /docs: files that ship with the server, each by its name.

They hold no secret, so they need no key, unlike the requests that they send. No page may load or
send anything elsewhere: its policy forbids it. Not starlette's StaticFiles: the files stand in
three folders beside others that are not for the web, and their types must not depend on the MIME
tables of the system.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.responses import FileResponse

PAGES = Path(__file__).parents[1] / "playground"
CLIPS = Path(__file__).parents[2] / "steering" / "demo" / "clips"
DOCS = "docs.html"
PLAYGROUND = "index.html"

_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".json": "application/json",
    ".wav": "audio/wav",
}
_OWN = (
    "default-src 'none'; script-src 'self'; img-src 'self' data:; media-src 'self' blob:;"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; style-src "
)
_POLICIES = {PLAYGROUND: _OWN + "'self'", DOCS: _OWN + "'self' 'unsafe-inline'"}


def response(name: str) -> FileResponse:
    """The file of a name; HTTPException 404 if there is none."""
    path = FILES.get(name)
    if path is None:
        raise HTTPException(404)
    return FileResponse(path, media_type=_KINDS[path.suffix], headers=_headers(name))


def _headers(name: str) -> dict[str, str]:
    if name not in _POLICIES:
        return {"cache-control": "no-cache"}
    return {
        "cache-control": "no-cache",
        "content-security-policy": _POLICIES[name],
        "permissions-policy": "microphone=(self), camera=(), geolocation=()",
    }


def _files() -> Mapping[str, Path]:
    """All files by their name in the URL; those of Swagger UI come from a package."""
    files = {path.name: path for path in PAGES.iterdir() if path.suffix in _KINDS}
    files |= {path.name: path for path in _swagger() if path.suffix in (".js", ".css")}
    files["clips.json"] = CLIPS / "clips.json"
    return files | {f"clips/{path.name}": path for path in CLIPS.glob("*.wav")}


def _swagger() -> list[Path]:
    """Swagger UI's files, as fastapi-offline carries them."""
    package = find_spec("fastapi_offline")
    assert package is not None and package.origin is not None, "fastapi-offline is a dependency"
    return sorted((Path(package.origin).parent / "static").glob("swagger-ui*"))


FILES = _files()
