"""Workers that start at once: forked from a process that has imported everything and computed nothing.

    with warm.started():
        ...                       `pipeline.run` starts its workers as ever, and each is a fork

A worker's command begins with `sys.executable`. Inside, that is a small client: it hands its arguments, directory,
variables and standard streams to the server, which forks a process for them, calls the module's `main`, and hands back
how that ended. The fork is in the client's process group and network, so signals and namespaces hold for it. It ends
with its client, and the server with the process that started it. What is left out: variables that are read when Python
or a library begins (glibc's MALLOC_..., OMP_NUM_THREADS, which is 1 here), and what another module than those in
`MODULES` would be asked for: that is started cold.
"""

import array
import contextlib
import ctypes
import gc
import importlib
import json
import os
import selectors
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from pipeline import launch

TESTS = Path(__file__).parents[1]
IMPORTABLE = os.pathsep.join([str(TESTS), str(TESTS.parent)])
"""PYTHONPATH, for workers to find the tests' functions and the pipeline wherever the tests are started."""

MODULES = ("pipeline.worker", "distributed.rig")
"""Those that can be run, by their `main(arguments)`."""

IMPORTED = (
    "pipeline.train", "pipeline.generate", "pipeline.algorithms.ppo_trainer", "pipeline.sampling.local",
    "trl.trainer.dpo_trainer", "trl.trainer.kto_trainer", "trl.trainer.reward_trainer", "trl.trainer.sft_trainer",
    "transformers.models.auto.modeling_auto", "transformers.models.llama.modeling_llama",
    "peft", "bitsandbytes", "deepspeed", "datasets", "distributed.rig",
)  # fmt: skip

CLIENT = Path(__file__).with_name("warm_client.py")

CLONE_NEWNET = 0x40000000


@contextlib.contextmanager
def started() -> Iterator[None]:
    """Inside, `sys.executable` starts workers warm, which find the tests' functions."""
    with tempfile.TemporaryDirectory(prefix="warm-") as folder:
        address, cold = Path(folder) / "socket", sys.executable
        python = Path(folder) / "python"
        words = [cold, "-I", "-S", str(CLIENT), str(address), cold, ",".join(MODULES)]
        python.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
        python.chmod(0o755)
        server = subprocess.Popen(
            [cold, "-m", "distributed.warm", str(address), str(python)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # As a worker's, of the phase that computes in one thread.
            env={**launch.environment("work", 0, 1), "PYTHONPATH": IMPORTABLE, "HF_HUB_OFFLINE": "1"},
        )
        assert server.stdin is not None
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n", "the server did not start, see above"
        told = {"OMP_NUM_THREADS": "1", "PYTHONPATH": IMPORTABLE}
        try:
            with mock.patch.object(sys, "executable", str(python)), mock.patch.dict(os.environ, told):
                yield
        finally:
            server.stdin.close()
            server.wait()


# ---- the server


class Server:
    """One socket at which clients ask, and the forks that live."""

    def __init__(self, address: str, python: str) -> None:
        self.python = python
        self.listening = socket.socket(socket.AF_UNIX)
        self.listening.bind(address)
        self.listening.listen(64)
        self.ready = selectors.DefaultSelector()
        self.ready.register(self.listening, selectors.EVENT_READ, self._fork)
        # Our parent holds the other end of it.
        self.ready.register(0, selectors.EVENT_READ, self._end)

    def serve(self) -> int:
        """Until the parent ends. In a fork: what its `main` returns."""
        while True:
            for key, _ in self.ready.select():
                code: int | None = key.data(key.fileobj)
                if code is not None:
                    return code

    def _end(self, _: Any) -> int:
        return 0

    def _fork(self, listening: socket.socket) -> int | None:
        client, _ = listening.accept()
        told, descriptors = _received(client)
        child = os.fork()
        if child == 0:
            self.ready.close()
            listening.close()
            client.close()
            sys.executable = self.python
            return _run(told, descriptors)
        for each in descriptors:
            os.close(each)
        pidfd = os.pidfd_open(child)
        self.ready.register(pidfd, selectors.EVENT_READ, lambda _: self._ended(pidfd, child, client))
        # A client says no more than it has; that it can be read means that it is gone.
        self.ready.register(client, selectors.EVENT_READ, lambda _: self._abandoned(pidfd, client))
        return None

    def _ended(self, pidfd: int, child: int, client: socket.socket) -> None:
        _, status = os.waitpid(child, 0)
        self.ready.unregister(pidfd)
        os.close(pidfd)
        if client in self.ready.get_map():
            self.ready.unregister(client)
        with contextlib.suppress(OSError):
            client.send(str(os.waitstatus_to_exitcode(status)).encode())
        client.close()

    def _abandoned(self, pidfd: int, client: socket.socket) -> None:
        self.ready.unregister(client)
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)


def _received(client: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """What a client asks for, and its descriptors: three streams and its network."""
    size = array.array("i").itemsize
    data, extra, _, _ = client.recvmsg(4, socket.CMSG_SPACE(16 * size))
    descriptors = array.array("i")
    for _, _, sent in extra:
        descriptors.frombytes(sent)
    left, parts = int.from_bytes(data, "big"), []
    while left:
        parts.append(client.recv(left))
        left -= len(parts[-1])
    return json.loads(b"".join(parts)), list(descriptors)


def _run(told: dict[str, Any], descriptors: list[int]) -> int:
    """Become the process that the client stands for, and do its work."""
    os.setpgid(0, told["group"])
    *streams, network = descriptors
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number, inheritable=True)
    _enter(network)
    for descriptor in descriptors:
        os.close(descriptor)
    os.chdir(told["directory"])
    os.environ.clear()
    os.environ.update(told["environment"])
    main = importlib.import_module(told["module"]).main
    return int(main(told["arguments"]))


def _enter(network: int) -> None:
    """Be in this network namespace, which only root can change."""
    if os.path.sameopenfile(network, os.open("/proc/self/ns/net", os.O_RDONLY)):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(network, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def main(address: str, python: str) -> int:
    """Import, say `ready`, serve."""
    for name in IMPORTED:
        importlib.import_module(name)
    server = Server(address, python)
    gc.collect()
    # What is here now lives as long as the process: no fork need look at it, and copy its pages by that.
    gc.freeze()
    print("ready", flush=True)
    return server.serve()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
