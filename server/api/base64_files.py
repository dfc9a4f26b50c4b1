"""Files in base64, as clients write it: either alphabet, padded or not, as a data: URI.

White space is never dropped from between characters, but for line breaks: a space stands where a
`+` was decoded as in a form, and without it every byte behind it would be another.
"""

from __future__ import annotations

import base64
import string
from urllib.parse import unquote

from steering.errors import AudioError

_SHOWN_CHARACTERS = 40
_LINE_BREAKS = b"\r\n"
_ALPHABET = (string.ascii_letters + string.digits + "+/").encode()
_URL_SAFE = bytes.maketrans(b"-_", b"+/")


def is_data_uri(text: str) -> bool:
    """Whether a text is a data: URI."""
    return text[:5].lower() == "data:"


def read_base64(text: str) -> bytes:
    """The bytes of a file. Raises AudioError that says what is wrong with its base64."""
    data = _data_of_uri(text) if is_data_uri(text) else text
    if data[:8].lower().startswith(("http://", "https://")):
        raise AudioError("this is a URL, not base64; send it as the url of an audio_url part")
    try:
        encoded = data.encode("ascii").translate(_URL_SAFE, _LINE_BREAKS)
    except UnicodeEncodeError:
        raise _not_base64(data) from None
    whole = encoded.rstrip(b" \t")
    if b" " in whole or (encoded != whole and len(whole) % 4):
        raise AudioError(
            f"spaces stand inside the base64, the first behind {encoded.index(b' '):,} characters:"
            " probably each was a + that was decoded as in a form; percent-encode it as %2B, or"
            " send JSON"
        )
    return _decoded(whole, data)


def _decoded(encoded: bytes, data: str) -> bytes:
    """The bytes of base64 in the usual alphabet, its padding added where it was left out."""
    characters = encoded.rstrip(b"=")
    missing = -len(characters) % 4
    if characters.translate(None, _ALPHABET):
        raise _not_base64(data)
    if missing == 3:
        raise AudioError(
            f"{len(characters):,} characters of base64 end inside a byte; send the whole file"
        )
    if len(encoded) - len(characters) > missing:
        raise _not_base64(data)
    return base64.b64decode(characters + b"=" * missing)


def _data_of_uri(uri: str) -> str:
    """The base64 of a data: URI."""
    kind, comma, data = uri.partition(",")
    if not comma or not kind.lower().endswith(";base64"):
        raise AudioError(
            f"the data: URI starts with {uri[:_SHOWN_CHARACTERS]!r}; send data:audio/wav;base64,"
            " and the file in base64"
        )
    return unquote(data) if "%" in data else data


def _not_base64(data: str) -> AudioError:
    return AudioError(f"{len(data):,} characters are not base64; encode the file")
