"""A server that speaks as vLLM 0.32 does, samples from a model with the adapters it is given, and errs when told to.

It reads the adapter's folder when that is loaded, with PEFT, and computes each token by a forward pass of the whole
sequence: nothing of it is the code that it is compared with. The same request gets the same answer. What vLLM would
take from a model's generation_config.json it refuses to guess: a request has to say it. It samples from the whole
distribution, whatever a request says of top_p and top_k.
"""

import copy
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

BASE = "served-base"
SAID = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")


class Completions:
    """The server. Its fields can be changed while it runs."""

    def __init__(self, folder: Path) -> None:
        self.base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.adapters: dict[str, Any] = {}
        self.calls: list[tuple[str, Any]] = []
        """Path and body of each request that it understood."""
        self.keys: list[str | None] = []
        """The Authorization header of each request."""
        self.faults: dict[str, list[Any]] = {}
        """By path, what comes instead of the next answers: a status, `cut` (half a reply) or `half` (half of its JSON),
        or what an error says; None: the answer."""
        self.shift = 0.0
        """Nats that its log-probabilities are too high by."""
        self.raw = False
        """It gives the log-probabilities of temperature 1, whatever it samples at."""
        self.stale = False
        """It takes adapters, and goes on answering with the first."""
        self.edit: Callable[[dict[str, Any]], Any] = lambda told: None
        """Changes the completion before it is sent."""
        self.headers: dict[str, str] = {}
        """Sent with every reply."""
        self.max_model_len = 1024
        self.port = 0
        self._lock = threading.Lock()
        self._server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        """Listen, on the port that it had before if there was one."""
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), handler_of(self))
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """Refuse connections, and forget the adapters."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
        self.adapters = {}

    def names(self, path: str) -> list[str]:
        """The adapters that were named in requests to this path, in order."""
        return [body["lora_name"] for called, body in self.calls if called == path and body["lora_name"]]

    def respond(self, path: str, body: Any) -> tuple[int, Any]:
        """Status, and JSON or text."""
        with self._lock:
            self.calls.append((path, body))
            if path == "/models":
                base = {"id": BASE, "parent": None, "max_model_len": self.max_model_len}
                return 200, {"object": "list", "data": [base, *({"id": n, "parent": BASE} for n in self.adapters)]}
            if path == "/load_lora_adapter":
                return self._take(body["lora_name"], body["lora_path"])
            if path == "/unload_lora_adapter":
                known = self.adapters.pop(body["lora_name"], None) is not None
                return (200, "Success: removed") if known else _error(404, "The lora adapter cannot be found.")
            if path == "/completions":
                return self._score(body) if "prompt_logprobs" in body else self._complete(body)
            if path == "/chat/completions":
                return self._chat(body)
            return _error(404, "Not Found")

    def _take(self, name: str, path: str) -> tuple[int, Any]:
        if not name or not path:
            return _error(400, "Both 'lora_name' and 'lora_path' must be provided.")
        if name in self.adapters:
            return _error(400, f"The lora adapter '{name}' has already been loaded.")
        if not Path(path).is_dir():
            return _error(404, f"Loading lora {name} failed: No adapter found for {path}")
        first = next(iter(self.adapters.values()), None)
        self.adapters[name] = first if self.stale and first else self.with_adapter(path)
        return 200, f"Success: LoRA adapter '{name}' added successfully."

    def with_adapter(self, adapter: str) -> Any:
        # A copy, since transformers loads no two models at a time: in 5.23, when two threads do, its no_tie_weights can
        # put the other's empty function back, and from then on no model of this process has its output layer.
        return PeftModel.from_pretrained(copy.deepcopy(self.base), adapter).merge_and_unload().eval()

    def _complete(self, body: dict[str, Any]) -> tuple[int, Any]:
        missing = [name for name in SAID if name not in body]
        model = self.base if body["model"] == BASE else self.adapters.get(body["model"])
        if model is None:
            return _error(404, f"The model `{body['model']}` does not exist.")
        if missing or (body["top_p"], body["top_k"], body["min_p"], body["repetition_penalty"]) != (1, -1, 0, 1):
            return _error(400, f"the model's own sampling options would be taken for {missing}")
        tokens, logprobs, top = self._sample(model, body)
        told = {
            "model": body["model"],
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "stop" if tokens[-1] in body["stop_token_ids"] else "length",
                    "stop_reason": None,
                    "token_ids": tokens,
                    "prompt_token_ids": body["prompt"],
                    "logprobs": {
                        "tokens": [f"token_id:{token}" for token in tokens],
                        "token_logprobs": logprobs,
                        "top_logprobs": top,
                    },
                }
            ],
        }
        self.edit(told)
        return 200, told

    def _chat(self, body: dict[str, Any]) -> tuple[int, Any]:
        model = self.base if body["model"] == BASE else self.adapters.get(body["model"])
        if model is None:
            return _error(404, f"The model `{body['model']}` does not exist.")
        if missing := [name for name in SAID if name not in body]:
            return _error(400, f"the model's own sampling options would be taken for {missing}")
        prompt = self.tokenizer.apply_chat_template(body["messages"], add_generation_prompt=True, return_dict=True)
        ids, end = list(prompt["input_ids"]), self.tokenizer.eos_token_id
        if len(ids) + body["max_tokens"] > self.max_model_len:
            return _error(400, f"This model's maximum context length is {self.max_model_len} tokens.")
        asked = {**body, "prompt": ids, "stop_token_ids": [end], "logprobs": body["top_logprobs"]}
        tokens, logprobs, top = self._sample(model, asked)
        text = self.tokenizer.decode(tokens, skip_special_tokens=True)
        named = zip(tokens, logprobs, top, strict=True)
        content = [
            {
                "token": f"token_id:{token}",
                "logprob": logprob,
                "top_logprobs": [{"token": name, "logprob": p} for name, p in tops.items()],
            }
            for token, logprob, tops in named
        ]
        told = {
            "model": body["model"],
            "prompt_token_ids": ids,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": text},
                    "finish_reason": "stop" if tokens[-1] == end else "length",
                    "token_ids": tokens,
                    "logprobs": {"content": content},
                }
            ],
            "usage": {"prompt_tokens": len(ids), "completion_tokens": len(tokens)},
        }
        self.edit(told)
        return 200, told

    def _score(self, body: dict[str, Any]) -> tuple[int, Any]:
        ids = body["prompt"]
        with torch.no_grad():
            logits_TV = self.base(torch.tensor([ids]), use_cache=False).logits[0].double()
        told_TV = logits_TV.log_softmax(-1)
        told = [{str(token): {"logprob": float(told_TV[place, token])}} for place, token in enumerate(ids[1:])]
        return 200, {"model": body["model"], "choices": [{"index": 0, "prompt_logprobs": [None, *told]}]}

    def _sample(self, model: Any, body: dict[str, Any]) -> tuple[list[int], list[float], list[dict[str, float]]]:
        uniform_T = torch.rand(1, body["max_tokens"], generator=torch.Generator().manual_seed(body["seed"]))[0]
        ids, count = list(body["prompt"]), len(body["prompt"])
        logprobs, top = [], []
        for uniform in uniform_T.tolist():
            with torch.no_grad():
                logits_V = model(torch.tensor([ids]), use_cache=False).logits[0, -1].double()
            sampled_V = (logits_V / (body["temperature"] or 1e-6)).log_softmax(-1)
            told_V = logits_V.log_softmax(-1) if self.raw else sampled_V
            token = int((sampled_V.exp().cumsum(-1) <= uniform).sum().clamp(max=len(sampled_V) - 1))
            ids.append(token)
            logprobs.append(float(told_V[token]) + self.shift)
            likeliest = told_V.topk(body["logprobs"])
            top.append({f"token_id:{i}": p for p, i in zip(*map(torch.Tensor.tolist, likeliest), strict=True)})
            if token in body["stop_token_ids"]:
                break
        return ids[count:], logprobs, top


def _error(status: int, message: str) -> tuple[int, Any]:
    return status, {"error": {"message": message, "type": "error", "param": None, "code": status}}


def handler_of(world: Completions) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._reply(None)

        def do_POST(self) -> None:
            self._reply(json.loads(self.rfile.read(int(self.headers["content-length"]))))

        def _reply(self, body: Any) -> None:
            path = self.path.removeprefix("/v1")
            world.keys.append(self.headers["authorization"])
            queue = world.faults.get(path, [])
            fault = queue.pop(0) if queue else None
            if isinstance(fault, int):
                status, told = _error(fault, "planted")
            elif fault in (None, "cut", "half"):
                status, told = world.respond(path, body)
            else:
                status, told = _error(500, fault)
            content = told.encode() if isinstance(told, str) else json.dumps(told).encode()
            if fault == "half":
                content = content[: len(content) // 2]
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            for header in world.headers.items():
                self.send_header(*header)
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if fault == "cut" else content)
            self.close_connection = self.close_connection or fault == "cut"

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


@contextmanager
def completion_server(folder: Path) -> Iterator[Completions]:
    """A server with the model in this folder, stopped at the end."""
    world = Completions(folder)
    world.start()
    try:
        yield world
    finally:
        world.stop()
