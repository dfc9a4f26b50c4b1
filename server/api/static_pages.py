"""The pages of the playground and of /docs: files that ship with the server, each by its name.

All of them are static and hold no secret, so they are served without a key; what they ask the
server for needs one. No page may load or send anything elsewhere: its policy forbids it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).parents[1] / "playground"
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


@dataclass(frozen=True, slots=True)
class StaticFile:
    """A file, and the headers it goes out with."""

    path: Path
    kind: str
    headers: Mapping[str, str]


def static_files() -> Mapping[str, StaticFile]:
    """All files by the name they are asked for with; those of Swagger UI come from a package."""
    files = {path.name: path for path in HERE.iterdir() if path.suffix in _KINDS}
    files |= {path.name: path for path in _swagger() if path.suffix in (".js", ".css")}
    files["clips.json"] = CLIPS / "clips.json"
    files |= {f"clips/{path.name}": path for path in CLIPS.glob("*.wav")}
    return {name: _page(name, path) for name, path in files.items()}


def _page(name: str, path: Path) -> StaticFile:
    headers = {"cache-control": "no-cache"}
    if name in _POLICIES:
        headers |= {
            "content-security-policy": _POLICIES[name],
            "permissions-policy": "microphone=(self), camera=(), geolocation=()",
        }
    return StaticFile(path, _KINDS[path.suffix], headers)


def _swagger() -> list[Path]:
    """Swagger UI's files, as fastapi-offline carries them."""
    found = find_spec("fastapi_offline")
    assert found is not None and found.origin is not None, "fastapi-offline is a dependency"
    return sorted((Path(found.origin).parent / "static").glob("swagger-ui*"))
