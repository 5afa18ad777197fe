"""Two hosts that are two network namespaces joined by a cable: training across, and what happens when it is cut."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from distributed import rig
from pipeline import store

HOSTS = ("10.77.0.1", "10.77.0.2")
SILENCE_S = 45
"""`launch.timeout_s` of these runs."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("warm_workers"),
    pytest.mark.distributed,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
]


class Cable:
    """Two namespaces, each with an `eth0` that is one end of it."""

    def __init__(self) -> None:
        self.names = tuple(f"prefloop-{os.getpid()}-{end}" for end in "ab")

    def lay(self) -> None:
        for name in self.names:
            ip("netns", "add", name)
        first, second = self.names
        ip("link", "add", "eth0", "netns", first, "type", "veth", "peer", "name", "eth0", "netns", second)
        for name, address in zip(self.names, HOSTS, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                ip("-n", name, "link", "set", device, "up")

    def cut(self) -> None:
        ip("-n", self.names[0], "link", "set", "eth0", "down")

    def mend(self) -> None:
        ip("-n", self.names[0], "link", "set", "eth0", "up")

    def remove(self) -> None:
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def cable() -> Iterator[Cable]:
    laid = Cable()
    try:
        laid.lay()
    except (OSError, subprocess.CalledProcessError) as error:
        laid.remove()
        pytest.skip(f"no network namespaces here: {error}")
    yield laid
    laid.remove()


class Started:
    """The run's command on the first host, and what it prints."""

    def __init__(self, cable: Cable, top: Path, config: Any) -> None:
        told = top.with_suffix(".json")
        told.write_text(json.dumps(config.model_dump(mode="json")))
        self.output = top.with_suffix(".log")
        with self.output.open("a") as log:
            self.process = subprocess.Popen(
                ["ip", "netns", "exec", cable.names[0], sys.executable, "-m", "distributed.rig", str(top), str(told)],
                env={**os.environ, "GLOO_SOCKET_IFNAME": "eth0"},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def wait(self) -> int:
        try:
            return self.process.wait(400)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGTERM)
            raise


def test_a_cut_cable_ends_the_run_and_a_mended_one_lets_it_end_as_if_nothing_had_been(
    cable: Cable, tiny_folder: Path, tmp_path: Path
) -> None:
    launch = {"hosts": list(HOSTS), "shell": f"ip netns exec {cable.names[1]}", "zero": 2, "timeout_s": SILENCE_S}
    config = rig.training(tiny_folder, "dpo", launch, max_steps=60, save_steps=2)

    whole = Started(cable, tmp_path / "whole", config)
    assert whole.wait() == 0, whole.output.read_text()

    cut = Started(cable, tmp_path / "cut", config)
    deadline = time.monotonic() + 300
    while not list((tmp_path / "cut" / ".staging").glob(f"train.dpo-*/work/checkpoints/checkpoint-4/{store.MANIFEST}")):
        assert time.monotonic() < deadline and cut.process.poll() is None, cut.output.read_text()
        time.sleep(0.002)
    cable.cut()
    began = time.monotonic()
    assert cut.wait() == 4
    assert time.monotonic() - began < SILENCE_S + 60
    told = cut.output.read_text()
    assert f"did not answer for {SILENCE_S} s (launch.timeout_s)" in told
    assert "lost touch with one another" in told

    cable.mend()
    again = Started(cable, tmp_path / "cut", config)
    assert again.wait() == 0, again.output.read_text()
    (one,) = (tmp_path / "whole" / "steps" / "train.dpo").glob("*/adapter_model.safetensors")
    (other,) = (tmp_path / "cut" / "steps" / "train.dpo").glob("*/adapter_model.safetensors")
    assert rig.metrics(one.parent) == rig.metrics(other.parent)
    theirs = rig.weights(other.parent)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in rig.weights(one.parent).items())
