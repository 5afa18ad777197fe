"""A server that speaks OpenAI's protocol, judges by a planted opinion and fails on purpose: `planted.py OPTIONS`.

What it says is a function of what it is asked, and how it fails a function of the question and of how often it was
asked before. So a run that was killed and one that was not live in the same world. It keeps its own bill and its own
list of calls, against which the client's books are checked: GET /stats and GET /calls.

An answer's true quality is in its text, `quality=0.7`; of a pair that it judges rightly (a share `accuracy` of them) it
prefers the better one. `bias` nats are added for the answer shown first.
"""

import argparse
import asyncio
import collections
import hashlib
import json
import math
import re
import sys
import time
from typing import Any

PRICE_IN, PRICE_OUT = 400, 1600
"""Nano-dollars a token: 0.4 and 1.6 US dollars a million."""

FAULTS = (
    "429 after", "429 after ms", "429", "500", "503", "hang", "cut before", "cut inside", "truncated json", "html",
    "no choices", "empty choices", "no content", "refusal", "filter",
)  # fmt: skip
"""Kinds of faults, each as likely as the others."""

ANSWER = re.compile(r"<(?:answer|réponse) (\w+) ([0-9a-f]{8})>\n(.*?)\n</(?:answer|réponse) \1 \2>", re.DOTALL)
ONE_ANSWER = re.compile(r"<(?:answer|réponse) ([0-9a-f]{8})>\n(.*?)\n</(?:answer|réponse) \1>", re.DOTALL)
QUALITY = re.compile(r"quality=(\d+(?:\.\d+)?)")


def uniform(*parts: Any) -> float:
    """A number in [0, 1) that is a function of its parts."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8]) / 2**64


def opinion(first: str, second: str, accuracy: float) -> float:
    """The log-odds that `first` is better, by a judge without a place that it likes; exchanged, they change sign."""
    one, other = sorted((first, second))
    if one == other:
        return 0.0
    better = 1 if quality(one) > quality(other) else -1
    right = 1 if uniform("right", one, other) < accuracy else -1
    strength = 0.3 + 2.2 * uniform("strength", one, other)
    return better * right * strength * (1 if first == one else -1)


def quality(text: str) -> float:
    found = QUALITY.search(text)
    return float(found[1]) if found else 0.0


class World:
    """What the server was told to be, and what it remembers."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.asked: collections.Counter[str] = collections.Counter()
        self.calls: list[tuple[str, str]] = []
        self.bill = 0
        self.heads: dict[str, str] = {}
        """The last head of a request, by its path."""
        self.inside = self.most_inside = 0
        self.asked_about_batches = 0
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.tokens_left = float(options.rpm) if options.rpm else math.inf
        self.refilled = time.monotonic()

    def limited(self) -> bool:
        """True if this call is one too many for a minute's allowance, which refills all the time."""
        now = time.monotonic()
        if self.options.rpm:
            self.tokens_left = min(1.0, self.tokens_left + (now - self.refilled) * self.options.rpm / 60)
        self.refilled = now
        self.tokens_left -= 1
        if self.tokens_left < 0:
            self.tokens_left += 1
            return True
        return False

    def complete(self, raw: bytes) -> tuple[str, int, bytes, dict[str, str]]:
        """(kind of what happens, status, body, headers) for the body of a chat completion."""
        key = hashlib.sha256(raw).hexdigest()[:16]
        attempt = self.asked[key]
        self.asked[key] += 1
        body = json.loads(raw)
        if self.options.broken_status and len(self.calls) >= self.options.broken_after:
            code = "insufficient_quota" if self.options.broken_status == 429 else "broken"
            return self.note(key, "broken", int(self.options.broken_status), error("no, sk-canary", code))
        told = self.refused_options(body)
        if told:
            status = int(self.options.refuses_with)
            return self.note(key, "rejected", status, error(told, "invalid_request_error"))
        if self.limited():
            return self.note(key, "429 limit", 429, error("slow down", "rate_limit_exceeded"), {"retry-after": "0.05"})
        kind = "ok"
        if attempt < self.options.first or uniform("fault", key, attempt) < self.options.faults:
            kind = self.options.only or FAULTS[int(uniform("kind", key, attempt) * len(FAULTS))]
        return self.note(key, kind, *self.happens(kind, body))

    def refused_options(self, body: dict[str, Any]) -> str:
        o = self.options
        if o.no_logprobs and body.get("logprobs"):
            return "You are not allowed to request logprobs from this model"
        if o.no_schema and "response_format" in body:
            return "response_format json_schema is not supported"
        if o.no_temperature and body.get("temperature", 1) != 1:
            return "temperature does not support 0 with this model"
        if o.max_completion_tokens and "max_tokens" in body:
            return "max_tokens is not supported with this model; use max_completion_tokens"
        allowed = max(body.get("max_tokens", 0), body.get("max_completion_tokens", 0))
        if allowed < o.least:
            return (
                "Invalid 'max_output_tokens': integer below minimum value. "
                f"Expected a value >= {o.least:.0f}, but got {allowed} instead."
            )
        if allowed < o.thoughts:  # of a model that reasons first
            return "Could not finish the message because max_tokens or model output limit was reached."
        return ""

    def note(
        self, key: str, kind: str, status: int, body: bytes, headers: dict[str, str] | None = None
    ) -> tuple[str, int, bytes, dict[str, str]]:
        self.calls.append((key, kind))
        return kind, status, body, headers or {}

    def happens(self, kind: str, body: dict[str, Any]) -> tuple[int, bytes, dict[str, str]]:
        pause = {"429 after": {"retry-after": "0.1"}, "429 after ms": {"retry-after-ms": "30"}}.get(kind, {})
        if kind == "429 until":  # seconds since 1970, where seconds from now belong
            pause = {"x-ratelimit-reset-requests": "1795564800"}
        if kind.startswith("429"):
            return 429, error("too many requests", "rate_limit_exceeded"), pause
        if kind == "flagged":  # as OpenRouter says that its moderation stopped a question
            metadata = {"reasons": ["violence"], "flagged_input": "...", "provider_name": "x", "model_slug": "m"}
            told = {"code": 403, "message": "m requires moderation, and your input was flagged", "metadata": metadata}
            return 403, json.dumps({"error": told}).encode(), {}
        if kind in ("500", "503"):
            return int(kind), error("server error", "server_error"), {}
        if kind == "html":
            return 200, b"<html><body>Welcome</body></html>", {}
        if kind == "no choices":
            return 200, b"{}", {}
        answer = self.answer(body)
        choice = answer["choices"][0]
        if kind == "empty choices":
            answer["choices"] = []
        elif kind == "no content":
            choice["message"]["content"], choice["logprobs"], choice["finish_reason"] = None, None, "length"
        elif kind == "refusal":
            choice["message"] = {"role": "assistant", "content": None, "refusal": "I cannot help with that."}
        elif kind == "filter":
            choice["finish_reason"], choice["message"]["content"] = "content_filter", ""
        elif kind == "choice error":  # as OpenRouter tells what happened to the model behind it
            choice |= {"finish_reason": "error", "error": {"code": 502, "message": "provider disconnected"}}
            choice["message"]["content"] = ""
        elif kind == "no tokens":
            choice["message"]["content"], choice["logprobs"] = "", None
            answer["usage"] = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        else:
            odd(kind, choice)
        usage = answer["usage"]
        tokens_out = usage["total_tokens"] - usage["prompt_tokens"]
        self.bill += usage["prompt_tokens"] * PRICE_IN + tokens_out * PRICE_OUT
        content = json.dumps(answer).encode()
        return 200, content[: len(content) // 2] if kind == "truncated json" else content, {}

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        messages = body["messages"]
        user = next(each["content"] for each in messages if each["role"] == "user")
        found = ANSWER.findall(user)
        alone = ONE_ANSWER.search(user)
        if len(found) == 2:
            text, tops = self.compared(body, found)
        elif alone:
            text, tops = self.rated(body, alone[2])
        else:
            text, tops = "K", [("K", -0.02), ("P", -4.0)]
        tokens_in = sum(len(each["content"]) for each in messages) // 4 + 4 * len(messages)
        if self.options.context:  # what does not fit is cut in silence, as Ollama does
            tokens_in = min(tokens_in, int(self.options.context))
        tokens_out = max(1, len(text) // 4)
        return {
            "id": "chatcmpl",
            "object": "chat.completion",
            "created": 1,
            "model": body["model"],
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "stop",
                    "message": {"role": "assistant", "content": text},
                    "logprobs": self.logprobs(body, tops),
                }
            ],
            "usage": {
                "prompt_tokens": tokens_in,
                "completion_tokens": tokens_out,
                "total_tokens": tokens_in + tokens_out + int(self.options.reasoning),  # hidden, as xAI counts it
            },
        }

    def compared(self, body: dict[str, Any], found: list[tuple[str, str, str]]) -> tuple[str, list[tuple[str, float]]]:
        (one, _, first), (other, _, second) = found
        z = opinion(first, second, self.options.accuracy) + self.options.bias
        label = one if z > 0 else other
        if uniform("unreadable", *sorted((first, second))) < self.options.unreadable:
            return "Both have merits.", [("Both", -0.05), (one, -4.0), (other, -4.0)]
        if "response_format" in body:
            return json.dumps({"reason": "It follows the request.", "verdict": label}), [("{", -0.01)]
        if max(body.get("max_tokens", 0), body.get("max_completion_tokens", 0)) > 16 and messages_are_new(body):
            return f"{other} is short, and {one} is long.\nVerdict: {label}", [("The", -0.3)]
        likely = math.log(0.98)
        return label, [(one, likely - math.log1p(math.exp(-z))), (other, likely - math.log1p(math.exp(z)))]

    def rated(self, body: dict[str, Any], text: str) -> tuple[str, list[tuple[str, float]]]:
        score = 1 + round(8 * quality(text))
        if "response_format" in body:
            return json.dumps({"reason": "So it is.", "score": score}), [("{", -0.01)]
        return str(score), [(str(score), math.log(0.8)), (str(max(1, score - 1)), math.log(0.15))]

    def logprobs(self, body: dict[str, Any], tops: list[tuple[str, float]]) -> dict[str, Any] | None:
        if not body.get("logprobs"):
            return None
        tops = sorted(tops, key=lambda each: -each[1])
        listed = tops + [(f"tok{n}", -9.0 - n) for n in range(body["top_logprobs"] - len(tops))]
        top = [{"token": token, "logprob": logprob, "bytes": None} for token, logprob in listed]
        return {"content": [{**top[0], "top_logprobs": top}]}

    # ---- the Batch API

    def refuses(self, path: str) -> int:
        """The status with which a request about files or batches is refused; 0: it is not."""
        if path == "/files":
            return int(self.options.files_status)
        if not path.startswith("/batches"):
            return 0
        self.asked_about_batches += 1
        return int(self.options.batches_status) if self.asked_about_batches > self.options.batches_after else 0

    def upload(self, raw: bytes) -> dict[str, Any]:
        """The file in a multipart body is what lies between the header lines of the part `file` and its boundary."""
        boundary = raw.split(b"\r\n", 1)[0]
        part = next(part for part in raw.split(boundary) if b'name="file"' in part)
        name = f"file-{len(self.files)}"
        self.files[name] = part.split(b"\r\n\r\n", 1)[1].removesuffix(b"\r\n")
        return {
            "id": name,
            "object": "file",
            "bytes": 1,
            "created_at": 1,
            "filename": "f",
            "purpose": "batch",
            "status": "processed",
        }

    def make_batch(self, raw: bytes) -> dict[str, Any]:
        told = json.loads(raw)
        name = f"batch-{len(self.batches)}"
        self.batches[name] = {
            "id": name, "object": "batch", "endpoint": told["endpoint"], "input_file_id": told["input_file_id"],
            "completion_window": told["completion_window"], "created_at": 1, "status": "in_progress",
            "metadata": told.get("metadata"), "ready": time.monotonic() + self.options.batch_s,
        }  # fmt: skip
        return self.look(name)

    def look(self, name: str) -> dict[str, Any]:
        batch = self.batches[name]
        if self.options.failed_batches:
            told = {"code": "token_limit_exceeded", "message": "Enqueued token limit reached for m", "line": None}
            batch |= {"status": "failed", "errors": {"object": "list", "data": [{**told, "param": None}]}}
        if batch["status"] == "in_progress" and time.monotonic() >= batch["ready"]:
            good, bad = [], []
            for line in self.files[batch["input_file_id"]].splitlines():
                request = json.loads(line)
                kind, status, body, _ = self.complete(json.dumps(request["body"]).encode())
                whole = status == 200 and kind not in ("truncated json", "html")
                response = {
                    "status_code": status,
                    "request_id": "r",
                    "body": json.loads(body) if whole or status != 200 else {},
                }
                row = {"id": "x", "custom_id": request["custom_id"], "response": response, "error": None}
                (good if status == 200 else bad).append(json.dumps(row))
            for field, rows in (("output_file_id", good), ("error_file_id", bad)):
                if rows:
                    batch[field] = f"file-{len(self.files)}"
                    self.files[batch[field]] = "\n".join(reversed(rows)).encode()
            batch["status"] = "completed"
        return {key: value for key, value in batch.items() if key != "ready"}


def odd(kind: str, choice: dict[str, Any]) -> None:
    """Make an answer one that a server may give and few clients expect."""
    listed = ((choice["logprobs"] or {}).get("content") or [{}])[0]
    if kind == "half an emoji":
        choice["message"]["content"] = "nice \ud83d"
        listed["top_logprobs"] = [{"token": "\ud83d", "logprob": -9.0}, *listed.get("top_logprobs", ())]
    elif kind == "not finite":  # Python's JSON has words for these, and takes them
        tops = [{"token": "never", "logprob": -math.inf}, {"token": "?", "logprob": math.nan}]
        listed["top_logprobs"] = [*tops, *listed.get("top_logprobs", ())]
    elif kind == "nested":
        choice["message"]["content"] = "[" * 3000
    elif kind == "one listed":
        listed["top_logprobs"] = [{"token": listed.get("token"), "logprob": -0.0001}]
    elif kind == "none listed":
        listed["top_logprobs"] = []


def messages_are_new(body: dict[str, Any]) -> bool:
    """True for a first question: a repair question has a reply of the assistant before it."""
    return all(message["role"] != "assistant" for message in body["messages"])


def error(message: str, code: str) -> bytes:
    return json.dumps({"error": {"message": message, "type": code, "code": code, "param": None}}).encode()


class Connection(asyncio.Protocol):
    """HTTP/1.1 with bodies of known length, one request after the other."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.buffer = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].lower()
            length = re.search(rb"content-length: *(\d+)", head)
            whole = end + 4 + (int(length[1]) if length else 0)
            if len(self.buffer) < whole:
                return
            first, body = self.buffer[: self.buffer.find(b"\r\n")].decode(), self.buffer[end + 4 : whole]
            self.buffer = self.buffer[whole:]
            self.world.heads[first.split(" ")[1]] = head.decode()
            self.handle(*first.split(" ")[:2], body)

    def handle(self, method: str, path: str, body: bytes) -> None:
        world = self.world
        if path.startswith("/moved"):
            return self.reply(307, b"", {"location": path.removeprefix("/moved")})
        path = path.partition("?")[0].removeprefix("/v1")
        if path == "/chat/completions":
            world.inside += 1
            world.most_inside = max(world.most_inside, world.inside)
            kind, status, content, headers = world.complete(body)
            delay = 3600.0 if kind == "hang" else world.options.latency
            asyncio.get_running_loop().call_later(delay, self.finish, kind, status, content, headers)
            if kind == "hang":
                world.inside -= 1
            return
        if status := world.refuses(path):
            return self.reply(status, error("not here", "not_found"), {})
        if path == "/stats":
            told: Any = {"bill": world.bill, "calls": len(world.calls), "most_inside": world.most_inside}
        elif path == "/calls":
            told = world.calls
        elif path == "/heads":
            told = world.heads
        elif path == "/models":
            told = {"object": "list", "data": [{"id": "planted", "object": "model"}]}
        elif path == "/files":
            told = world.upload(body)
        elif path == "/batches" and method == "POST":
            told = world.make_batch(body)
            if len(world.batches) <= world.options.lost_batches:  # made, and nobody hears of it
                return self.transport.abort()
        elif path == "/batches":
            told = {"object": "list", "data": [world.look(name) for name in reversed(world.batches)], "has_more": False}
        elif path.startswith("/batches/"):
            told = world.look(path.split("/")[2])
        elif path.startswith("/files/"):
            return self.reply(200, world.files[path.split("/")[2]], {})
        else:
            return self.reply(404, error("no such path", "not_found"), {})
        self.reply(200, json.dumps(told).encode(), {})

    def finish(self, kind: str, status: int, content: bytes, headers: dict[str, str]) -> None:
        if kind != "hang":
            self.world.inside -= 1
        if kind == "cut before":
            self.transport.abort()
        elif kind == "cut inside":
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content) + content[:40])
            self.transport.close()
        else:
            self.reply(status, content, headers)

    def reply(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        more = "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode()
        head = b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n" % (status, len(content))
        if not self.transport.is_closing():
            self.transport.write(head + more + b"\r\n" + content)


async def serve(options: argparse.Namespace) -> None:
    world = World(options)
    server = await asyncio.get_running_loop().create_server(
        lambda: Connection(world), "127.0.0.1", options.port, backlog=4096
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    for name, default in (
        ("latency", 0.0), ("faults", 0.0), ("accuracy", 1.0), ("bias", 0.0), ("unreadable", 0.0), ("rpm", 0.0),
        ("batch_s", 0.1), ("broken_after", 0.0), ("broken_status", 0.0), ("first", 0.0),
        ("refuses_with", 400.0), ("lost_batches", 0.0), ("reasoning", 0.0), ("context", 0.0),
        ("least", 0.0), ("thoughts", 0.0), ("files_status", 0.0), ("batches_status", 0.0), ("batches_after", 0.0),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=float, default=default)
    parser.add_argument("--only", default="")
    for name in ("no_logprobs", "no_schema", "no_temperature", "max_completion_tokens", "failed_batches"):
        parser.add_argument(f"--{name}", action="store_true")
    return parser


if __name__ == "__main__":
    asyncio.run(serve(parser().parse_args(sys.argv[1:])))
