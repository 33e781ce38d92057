"""The page at `/`: a chat with the served model that shows speculation at work.

Its files in `static/` are all there is of it, and the browser may load nothing else: the policy
below names no address but this server's own, and no script or style but those files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fastapi import APIRouter, Request, Response

from .errors import not_found

FOLDER = Path(__file__).with_name("static")
TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "cache-control": "no-cache",
    "content-security-policy": POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}

router = APIRouter()


@router.api_route("/", methods=["GET", "HEAD"])
async def show_page(http: Request) -> Response:
    return _answer(http, "page.html")


@router.api_route("/static/{name}", methods=["GET", "HEAD"])
async def show_part(name: str, http: Request) -> Response:
    return _answer(http, name)


@dataclass(frozen=True, slots=True)
class StaticFile:
    content: bytes
    media_type: str
    etag: str


@cache
def static_files() -> Mapping[str, StaticFile]:
    """All files of the page by name, read once."""
    return {
        file.name: StaticFile(
            content, TYPES[file.suffix], f'"{hashlib.sha256(content).hexdigest()}"'
        )
        for file in FOLDER.iterdir()
        for content in [file.read_bytes()]
    }


def _answer(http: Request, name: str) -> Response:
    """The file, or 304 where the browser has it. Raises `ApiError` 404."""
    file = static_files().get(name)
    if file is None:
        raise not_found()
    headers = HEADERS | {"etag": file.etag}
    known = http.headers.get("if-none-match", "")
    if file.etag in (tag.strip().removeprefix("W/") for tag in known.split(",")):
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers=headers, media_type=file.media_type)
