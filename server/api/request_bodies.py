"""Reading a request's body, JSON or a form; parsed off the event loop."""

from __future__ import annotations

import asyncio

from starlette.datastructures import UploadFile
from starlette.requests import Request

from server.api.requests import parse_form, parse_json
from server.api.strict_model import Body
from server.errors import UnsupportedMediaType
from steering.errors import RequestError


async def read_body(request: Request, kind: type[Body]) -> tuple[Body, tuple[bytes, ...]]:
    """The body of a JSON or form request, and the form's files named audio."""
    if _media_type(request) == "multipart/form-data":
        fields, files = await _read_form(request)
        return await asyncio.to_thread(parse_form, kind, fields), files
    other = ", or multipart/form-data with the clips as files named audio"
    return await read_json(request, kind, other), ()


async def read_upload(request: Request, kind: type[Body]) -> tuple[Body, tuple[bytes]]:
    """The body of a form request, and its one file, named file."""
    media_type = _media_type(request)
    if media_type != "multipart/form-data":
        raise UnsupportedMediaType(
            f"the content-type is {media_type[:60] or 'missing'!r}; send multipart/form-data with"
            " the clip as a file named file"
        )
    fields, files = await _read_form(request, "file")
    body = await asyncio.to_thread(parse_form, kind, fields, "file")
    if len(files) != 1:
        raise RequestError(f"{len(files)} files were sent; send one clip, named file", "file")
    return body, (files[0],)


async def read_json(request: Request, kind: type[Body], other: str = "") -> Body:
    """The body of a JSON request; UnsupportedMediaType, which names the `other` type, if not."""
    media_type = _media_type(request)
    if media_type != "application/json":
        raise UnsupportedMediaType(
            f"the content-type is {media_type[:60] or 'missing'!r}; send application/json{other}"
        )
    return await asyncio.to_thread(parse_json, kind, await request.body())


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def _read_form(
    request: Request, file_field: str = "audio"
) -> tuple[list[tuple[str, str]], tuple[bytes, ...]]:
    """The text fields and the files of one name, in their order; `[]` behind a name is left out."""
    fields: list[tuple[str, str]] = []
    files: list[bytes] = []
    async with request.form(max_files=64, max_fields=256) as form:
        for name, value in ((k.removesuffix("[]"), v) for k, v in form.multi_items()):
            if not isinstance(value, UploadFile):
                fields.append((name, value))
            elif name == file_field:
                files.append(await value.read())
            else:
                fields.append((name, (await value.read()).decode("utf-8", "replace")))
    return fields, tuple(files)
