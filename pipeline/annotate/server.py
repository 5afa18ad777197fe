"""The page over HTTP, on loopback alone: who may ask, and what is answered.

Everything lies under a random token, which is the first part of each address and compared in constant time. It is in
no cookie: cookies do not know ports, so that any other server on this machine would be sent it, and a second page would
overwrite that of the first. The page tells it to nobody (Referrer-Policy), and the server logs no addresses.

Requests for another host are refused, because a name that an attacker binds to 127.0.0.1 (DNS rebinding) is still in
the Host header; so are those that change something and are not sent by the page itself (Origin). The page runs its own
script and nothing that is in an answer (Content-Security-Policy), which it writes as text nodes only.

What is left out: what the answers mean (`pipeline.annotate.desk`).
"""

import contextlib
import errno
import hmac
import json
import secrets
import socket
from collections.abc import Callable
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from jinja2 import Environment, PackageLoader, StrictUndefined
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.annotate.desk import Choice, Desk, Refused
from pipeline.annotate.words import WORDS, language
from pipeline.errors import DataError

HOST = "127.0.0.1"
NAMES = frozenset({"127.0.0.1", "localhost"})
"""What a browser may call this machine. The port is free: it is another one behind `ssh -L`."""

BODY = 64 << 10
"""Bytes of a request at most. A note has 4,000 characters."""

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Nothing from elsewhere, nothing inline, in nobody's frame. `data:` is the empty icon."""

HEADERS = {
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}

NAME = r"^[^@\x00-\x1f\x7f]*[^@\x00-\x20\x7f][^@\x00-\x1f\x7f]*$"
"""A name: not an address, not blank, no control characters."""


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    annotator: str = Field(max_length=60, pattern=NAME)
    page: str = Field(min_length=1, max_length=64)
    """A random word by which a tab is told from another."""


class _Vote(_Body):
    pair: str = Field(max_length=64)
    choice: Choice
    note: str = Field(default="", max_length=4000)


class _Undo(_Body):
    pair: str = Field(max_length=64)


class Guard:
    """Lets through requests of the page and of nobody else, and sets the headers of every answer."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self.app = app
        self.token = token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        why = self._trouble(scope)
        app = self.app if why is None else PlainTextResponse(f"{why}\n", status_code=403)
        await app(scope, receive, guarded)

    def _trouble(self, scope: Scope) -> str | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        with contextlib.suppress(ValueError):
            if urlsplit(f"//{host}").hostname not in NAMES:
                return "another host: open the address that prefloop annotate printed"
            token = scope["path"].removeprefix("/").partition("/")[0].encode()
            if not hmac.compare_digest(token, self.token):
                return "no or another token: open the address that prefloop annotate printed"
            origin = headers.get("origin")
            if scope["method"] not in ("GET", "HEAD") and origin != f"http://{host}":
                return "another origin: only the page itself may vote"
            if origin not in (None, f"http://{host}"):
                return "another origin: only the page itself may read"
            return None
        return "an address that cannot be read"


def application(desk: Desk, token: str) -> ASGIApp:
    """The page of this desk, under this token."""
    page = Environment(
        loader=PackageLoader("pipeline", "templates"), autoescape=True, undefined=StrictUndefined
    ).get_template("annotate.html.j2")

    async def show(request: Request) -> Response:
        chosen = language(request.query_params.get("lang"), request.headers.get("accept-language", ""))
        words = WORDS[chosen]
        html = page.render(lang=chosen, other="fr" if chosen == "en" else "en", words=words, json=json.dumps(words))
        return HTMLResponse(html, headers={"Content-Language": chosen, "Vary": "Accept-Language"})

    async def ask(request: Request) -> Response:
        return await _answer(request, _Body, lambda told: desk.next(told.annotator, told.page))

    async def vote(request: Request) -> Response:
        return await _answer(
            request, _Vote, lambda told: desk.vote(told.annotator, told.page, told.pair, told.choice, told.note)
        )

    async def undo(request: Request) -> Response:
        return await _answer(request, _Undo, lambda told: desk.undo(told.annotator, told.page, told.pair))

    routes = [
        Route("/{token}/", show),
        Route("/{token}/next", ask, methods=["POST"]),
        Route("/{token}/vote", vote, methods=["POST"]),
        Route("/{token}/undo", undo, methods=["POST"]),
        Route("/{token}/annotate.css", _static("annotate.css", "text/css")),
        Route("/{token}/annotate.js", _static("annotate.js", "text/javascript")),
    ]
    return Guard(Starlette(routes=routes, max_body_size=BODY), token)


async def _answer(request: Request, form: type[Any], act: Callable[[Any], dict[str, Any]]) -> Response:
    """What `act` says of the request's body. Errors are codes, for which the page has words."""
    if request.headers.get("content-type", "").split(";")[0].strip() != "application/json":
        return JSONResponse({"error": "refused"}, status_code=415)
    try:
        told = form.model_validate_json(await request.body())
        return JSONResponse(await run_in_threadpool(act, told))
    except ValidationError as error:
        bad_name = any(each["loc"] == ("annotator",) for each in error.errors(include_input=False))
        return JSONResponse({"error": "bad_name" if bad_name else "refused"}, status_code=422)
    except Refused as error:
        return JSONResponse({"error": error.code}, status_code=409)
    except DataError as error:
        print(error, flush=True)
        return JSONResponse({"error": "disk"}, status_code=507)


def _static(name: str, kind: str) -> Callable[[Request], Any]:
    content = (files("pipeline") / "templates" / name).read_text(encoding="utf-8")

    async def show(request: Request) -> Response:
        return Response(content, media_type=kind)

    return show


# ---- the process


def listen(port: int) -> socket.socket:
    """A socket on loopback; port 0 is any free one.

    Raises:
        DataError: the port is taken or not allowed.
    """
    found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # so that the port is free at once after a kill
    try:
        found.bind((HOST, port))
    except (OSError, OverflowError) as error:
        found.close()
        taken = getattr(error, "errno", None) == errno.EADDRINUSE
        why = "something else listens there" if taken else str(error)
        raise DataError(f"--port {port}: cannot be used ({why}); name another, or none for a free one") from error
    return found


def serve(desk: Desk, port: int, say: Callable[[str], None]) -> None:
    """Serve the page until the process is told to stop; says its address first.

    Raises:
        DataError: the port cannot be used.
    """
    token = secrets.token_urlsafe(24)
    with listen(port) as listening:
        listening.listen(128)  # before it is said: whoever reads the address can connect
        say(f"http://{HOST}:{listening.getsockname()[1]}/{token}/")
        config = uvicorn.Config(
            application(desk, token),
            access_log=False,
            log_level="warning",
            lifespan="off",
            ws="none",
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=2,
        )
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listening])
