"""How many processes do the work of a train step together, on which machines, and the command that starts each.

    launch: {gpus: 2, zero: 2}                         two processes here, optimizer and gradients divided by DeepSpeed
    launch: {gpus: 8, hosts: [node1, node2], zero: 3}  sixteen, on this machine (node1) and another

The run starts them itself (`pipeline.processes`), each as a worker like any other, and tells them by torchrun's
variables who they are. torchrun would put them into sessions that a killed run leaves behind, and turn every exit code
into 1. What is left out: the group that they form (`pipeline.algorithms.ranks`), and DeepSpeed
(`pipeline.algorithms.zero`).
"""

import os
import shlex
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from pipeline.errors import RecipeError
from pipeline.models import gpus
from pipeline.plugins import Config

TOLD = ("PYTHONPATH", "LD_LIBRARY_PATH", "PREFLOOP_HOME", "HF_HOME", "HF_HUB_OFFLINE")
TOLD_PREFIXES = ("NCCL_", "GLOO_", "UCX_", "FI_")
"""Variables that processes on other machines are given too. No secret is: a command line can be read by all."""


KEEPING_MEMORY = {f"MALLOC_{name}_": str(2**33) for name in ("MMAP_THRESHOLD", "TRIM_THRESHOLD")}
"""glibc gives every large tensor back to the kernel and asks for it anew: a quarter of the time of training here."""


class LaunchConfig(Config):
    """Where train steps run. What comes out depends on it by rounding alone: the batch of an update stays what the
    recipe says, and is divided over the processes by its gradient accumulation. Three things depend on the number of
    processes: KTO's reference point and an update that repeats examples for want of others, which the report tells, and
    SFT's loss on test rows that do not fill the last batch of every process."""

    RUNTIME: ClassVar[frozenset[str]] = frozenset({"gpus", "hosts", "shell", "port", "zero", "offload", "timeout_s"})

    gpus: int = Field(default=1, ge=1)
    """Processes on each machine, one for each GPU. On a machine without one they compute on its processor (gloo)."""
    hosts: tuple[str, ...] = ()
    """Names or addresses of the machines, this one first; each sees this directory and this Python under the same
    paths. Empty: this one alone."""
    shell: str = "ssh {host}"
    """What runs a command on another machine, such as `srun --overlap --nodes=1 --ntasks=1 --nodelist={host}`. It
    passes standard input on, by which the other end learns that the run is over."""
    port: int | None = Field(default=None, ge=1, le=65535)
    """Where the first machine waits for the others. None: a free one."""
    zero: Literal[0, 1, 2, 3] = 0
    """DeepSpeed's stage (Rajbhandari et al. 2020, arXiv:1910.02054): 1 divides the optimizer's state over the
    processes, 2 gradients too, 3 also the frozen base. 0: no DeepSpeed; every process has all (DDP)."""
    offload: bool = False
    """Keep in the machine's memory what `zero` divides: the optimizer's state, and with zero 3 the weights."""
    timeout_s: float = Field(default=600, gt=0)
    """Seconds without a word from another process after which the step ends."""

    @model_validator(mode="before")
    @classmethod
    def _here(cls, value: Any) -> Any:
        return {} if value == "here" else value

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if len(set(self.hosts)) < len(self.hosts):
            raise ValueError("hosts: one is there twice")
        if self.offload and not self.zero:
            raise ValueError("offload is DeepSpeed's; set zero to 1, 2 or 3")
        return self

    @property
    def world(self) -> int:
        """All processes."""
        return self.gpus * max(1, len(self.hosts))


HERE = LaunchConfig()
"""One process on this machine."""


@dataclass(frozen=True)
class Process:
    """One process to start."""

    command: list[str]
    environment: dict[str, str]


def shared(job: Path, phase: str, count: int) -> list[Process]:
    """`count` processes on this machine that share their work through the journal, or one alone."""
    return [Process(_command(job, phase), environment(phase, rank, count)) for rank in range(count)]


def together(job: Path, phase: str, config: LaunchConfig) -> list[Process]:
    """The processes that train together, in the order of their ranks.

    Raises:
        RecipeError: a path or variable that another machine must be told cannot be put on its command line.
    """
    if config.world == 1 and not config.zero:
        return [Process(_command(job, phase), {**environment(phase, 0, 1), **_one_device()})]
    hosts = config.hosts or ("127.0.0.1",)
    port = config.port or _free_port()
    found = []
    for rank in range(config.world):
        number, local = divmod(rank, config.gpus)
        told = _told(phase, rank, config.world) | {
            "RANK": str(rank),
            "WORLD_SIZE": str(config.world),
            "LOCAL_RANK": str(local),
            "LOCAL_WORLD_SIZE": str(config.gpus),
            "MASTER_ADDR": hosts[0],
            "MASTER_PORT": str(port),
        }
        threads = max(1, (os.cpu_count() or 1) // config.gpus)
        told["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", str(threads))
        command = _command(job, phase)
        if number:
            command = _elsewhere(config.shell, hosts[number], told, command)
        found.append(Process(command, {**environment(phase, rank, config.world), **told}))
    return found


def _command(job: Path, phase: str) -> list[str]:
    return [sys.executable, "-m", "pipeline.worker", str(job.absolute()), phase]


def environment(phase: str, rank: int, ranks: int) -> dict[str, str]:
    """The variables of a worker on this machine: ours, and what it is told."""
    return {**KEEPING_MEMORY, **os.environ, **_told(phase, rank, ranks)}


def _one_device() -> dict[str, str]:
    # transformers spreads the batches of a process that has no rank over all GPUs that it sees (nn.DataParallel), which
    # TRL's trainers refuse, and which makes the batch as many times as large.
    return {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0].strip()}


def _told(phase: str, rank: int, ranks: int) -> dict[str, str]:
    # Not RANK and WORLD_SIZE: to torch and accelerate those mean a process group, which shared work has none of.
    told = {"PREFLOOP_RANK": str(rank), "PREFLOOP_WORLD": str(ranks), "TOKENIZERS_PARALLELISM": "false"}
    # TRL tells the hub of every trainer that is made, unless it is told not to. Nothing leaves here unasked.
    told["HF_HUB_DISABLE_TELEMETRY"] = os.environ.get("HF_HUB_DISABLE_TELEMETRY", "1")
    if phase == "work":
        # Shared work is divided over processes, and the number of threads would change the rounding of sums.
        told["OMP_NUM_THREADS"] = "1"
    if not gpus():
        # accelerate imports DeepSpeed wherever it is installed, and that says at each start that there is no GPU.
        told["DS_ACCELERATOR"] = os.environ.get("DS_ACCELERATOR", "cpu")
    # Nobody can act on these: bars of milliseconds, and what TRL, PEFT and DeepSpeed use that will be renamed some day.
    told["TQDM_DISABLE"] = "1"
    renamed = ("transformers.modeling_utils", "transformers.training_args", "torch.distributed.c10d_logger")
    told["PYTHONWARNINGS"] = ",".join(f"ignore::FutureWarning:{module}" for module in renamed)
    return told


def _elsewhere(shell: str, host: str, told: dict[str, str], command: list[str]) -> list[str]:
    """The command as another machine is given it, its directory and variables included."""
    ours = {name: value for name, value in os.environ.items() if name in TOLD or name.startswith(TOLD_PREFIXES)}
    variables = [f"{name}={value}" for name, value in {**ours, **told}.items()]
    inner = ["env", "-C", str(Path.cwd()), *variables, *command]
    # ssh gives its words to a shell, srun and others do not: only what both read alike can be sent.
    for word in inner:
        if shlex.quote(word) != word:
            raise RecipeError(
                f"launch.hosts: {word!r} cannot be told to {host}, because it has characters that a shell reads; "
                "use paths of letters, digits and ./_- alone"
            )
    return [*shlex.split(shell.replace("{host}", host)), *inner]


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        return int(free.getsockname()[1])
