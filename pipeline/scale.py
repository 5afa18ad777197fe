"""What SFT, DPO and PPO of large models would take on many GPUs: `python -m pipeline.scale` prints data/scale.md.

Memory is the doctor's plan (`pipeline.memory`). Time is counted in passes over the base. The base is frozen, so each of
them, forward or backward, is one product with every weight, 2 operations a weight and token:

    computing      tokens x operations / (PEAK x REACHED)
    dequantising   passes x linear weights x bytes moved / BANDWIDTH: NF4 is written out in bf16 before each product
    communicating  bytes of the gradient, and with ZeRO-3 of the base for each pass, / `link`
    sampling       prompts' pass + tokens x max(bytes moved / BANDWIDTH, layers x LAYER)

and a second spent on one is spent on no other. Nothing of it was measured. What is left out: loading, checkpoints, the
data's way to the GPU, AdamW on the adapter, norms and activations, padding, and waiting for the slowest process.
"""

import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from pipeline.algorithms import dpo, ppo, sft
from pipeline.algorithms.base import AlgorithmConfig
from pipeline.doctor_memory import CLOSE, work_of
from pipeline.launch import LaunchConfig
from pipeline.memory import Sizes, Work, cache, counted, peak, weights
from pipeline.models import ModelConfig

MEMORY = 80e9
"""Bytes of a GPU; the doctor warns from 0.85 of them on, and what is above that is not taken here."""

PEAK = 312e12
"""Operations a second, bf16 without sparsity, of an A100 of 80 GB (NVIDIA's data sheet)."""

BANDWIDTH = 2.0e12
"""Bytes a second between the GPU's processor and its memory (the same sheet: 2,039 GB/s)."""

REACHED = 0.35
"""Share of `PEAK` that the products reach: an assumption. An adapter's products are small, and so is a pass."""

NODE = 8
"""GPUs of a machine."""

LINKS = {"machine": 200e9, "network": 100e9}
"""Bytes a second that a collective moves past each GPU: an assumption, two thirds of NVLink's 300 GB/s each way in a
machine, and half of the 200 GB/s of eight network cards of 200 Gbit/s beyond."""

LAYER = 1e-3
"""Seconds that Python needs to start the kernels of one layer, adapters included: an assumption. Where a token's
products are shorter, which is for few answers at once, the GPU waits for it."""

ROW, ANSWER, EXAMPLES = 1024, 512, 64
"""Tokens of each row, of its answer, and examples an update: rows of SFT, pairs of DPO, answers of PPO."""

WORLDS = (1, 8, 64)
"""GPUs."""

SHAPES = {
    "7B": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "13B": {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40},
    "70B": {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
}
"""Llama 2 (Touvron et al. 2023, arXiv:2307.09288), vocabulary 32,000."""

STAGES: tuple[Literal[0, 1, 2, 3], ...] = (0, 1, 2, 3)
"""DeepSpeed's; 0 is DDP."""

ROLLOUTS = (32, 16, 8)
"""Answers that PPO samples at once, a GPU: `rollout_batch_size`."""

METHODS: dict[str, type[AlgorithmConfig]] = {"SFT": sft.Config, "DPO": dpo.Config, "PPO": ppo.Config}


class Passes(NamedTuple):
    """How often the base is gone through for each row of an update."""

    forward: int
    backward: int


@dataclass(frozen=True)
class Cell:
    """How a method would run."""

    work: Work
    memory: int
    """Bytes of a GPU at the peak."""
    seconds: dict[str, float]
    """An update's, by what they go to."""

    @property
    def total(self) -> float:
        """Seconds an update."""
        return sum(self.seconds.values())


def sizes(model: str) -> Sizes:
    """The numbers of one of `SHAPES`."""
    from transformers import LlamaConfig

    return counted(LlamaConfig(vocab_size=32_000, tie_word_embeddings=False, **SHAPES[model]))


def cell(method: str, world: int, of: Sizes) -> Cell | None:
    """The fastest setting that fits, of ZeRO's stages, with gradient checkpointing or without, and of `ROLLOUTS`; of
    two that are equally fast, the first. None: no setting fits."""
    found = []
    for stage, again, rollout in itertools.product(STAGES, (False, True), ROLLOUTS if method == "PPO" else (0,)):
        algorithm = _algorithm(method, again, rollout)
        if not algorithm.refusals(LaunchConfig(gpus=world, zero=stage)):
            work = work_of(algorithm, ModelConfig(), prompt=ROW - ANSWER, answer=ANSWER, candidates=2)
            work = replace(work, zero=stage, world=world)
            memory = peak(of, work, gpu=True).total
            if memory <= CLOSE * MEMORY:
                found.append(Cell(work, memory, seconds(of, work, passes(algorithm))))
    return min(found, key=lambda each: each.total, default=None)


def _algorithm(method: str, checkpointing: bool, rollout: int) -> AlgorithmConfig:
    options: dict[str, Any] = {
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": EXAMPLES,
        "max_length": ROW,
        "gradient_checkpointing": checkpointing,
    }
    if rollout:
        options |= {"max_new_tokens": ANSWER, "rollout_batch_size": rollout}
    return METHODS[method].model_validate({"name": method.lower(), **options})


# ---- time


def passes(algorithm: AlgorithmConfig) -> Passes:
    """What a method does with a row: with checkpointing each backward pass has another forward one before it."""
    again = int(algorithm.gradient_checkpointing)
    if isinstance(algorithm, ppo.Config):  # the reward, the policy and the reference read each answer; then it learns
        return Passes(3 + algorithm.num_ppo_epochs * (1 + again), algorithm.num_ppo_epochs)
    return Passes(1 + again + (algorithm.name == "dpo"), 1)


def seconds(of: Sizes, work: Work, through: Passes) -> dict[str, float]:
    """An update's, of one process, by what they go to."""
    turns = EXAMPLES // work.world
    row = ROW * (through.forward * operations(of, work) + through.backward * operations(of, work, backward=True))
    return {
        "computing": turns * work.each * row / (PEAK * REACHED),
        "dequantising": turns * sum(through) * dequantising(of),
        "communicating": communicating(of, work, turns, through),
        "sampling": sampling(of, work) if work.kind == "ppo" else 0.0,
    }


def operations(of: Sizes, work: Work, *, backward: bool = False) -> float:
    """Of one pass, a token. Backward, frozen weights cost what they cost forward, and what is trained twice that, as
    does attention, of which a token sees half of the row."""
    more = 2 if backward else 1
    frozen = 2 * (of.linear + of.vocabulary * of.hidden)
    attention = 2 * 2 * of.attention * (ROW / 2) * of.layers
    return frozen + more * (attention + 2 * of.ends * work.rank)


def dequantising(of: Sizes) -> float:
    """Seconds of one pass: 4 bits a weight are read and 16 written."""
    return of.linear * (0.5 + 2) / BANDWIDTH


def communicating(of: Sizes, work: Work, turns: int, through: Passes) -> float:
    """Seconds of an update. A ring moves (n - 1) / n of the bytes past each process to gather or to scatter them, and
    twice that to reduce them everywhere, as Horovod's paper counts (Sergeev and Del Balso 2018, arXiv:1802.05799)."""
    gradient = 4 * of.ends * work.rank
    if work.kind == "ppo":
        bytes_ = 2 * gradient * through.backward
    elif work.zero < 2:
        bytes_ = 2 * gradient
    else:  # DeepSpeed scatters the gradient after each turn
        bytes_ = gradient * (turns + 1)
    if work.zero == 3:
        bytes_ += turns * sum(through) * weights(of, work)
    return (work.world - 1) / work.world * bytes_ / link(work.world)


def link(world: int) -> float:
    """Bytes a second past each of so many processes."""
    return LINKS["machine" if world <= NODE else "network"]


def sampling(of: Sizes, work: Work) -> float:
    """Seconds until a process has its share of the answers, `rollout` at once, each to its last token."""
    own = EXAMPLES // work.world
    rows = min(own, work.rollout)
    prompt = rows * (ROW - ANSWER) * operations(of, work) / (PEAK * REACHED)
    moved = 2 * (of.linear + of.vocabulary * of.hidden) + cache(of, rows, ROW, work.number)
    token = max(moved / BANDWIDTH + dequantising(of), of.layers * LAYER)
    return -(-own // rows) * (prompt + ANSWER * token)


# ---- the page


def page() -> str:
    """data/scale.md."""
    return "\n".join([HEAD, *_table(), FOOT])


HEAD = f"""\
# Predicted: QLoRA at 7B, 13B and 70B

**Nothing on this page was measured.** `make scale` writes it from `pipeline/scale.py`: memory by the doctor's plan,
time by counting. It is for choosing a machine and a method, and may well be off by a factor of two.

An update is {EXAMPLES} rows of {ROW:,} tokens (SFT), pairs of such rows (DPO), or prompts of {ROW - ANSWER} tokens \
with answers of {ANSWER}
(PPO, which samples them itself and learns from them {ppo.Config().num_ppo_epochs} times), however many GPUs share \
it. A pass has one example
a GPU; adapters have rank {sft.Config().lora.r} on every linear layer; the base is Llama 2 in NF4. A line has the \
fastest setting that
stays below {CLOSE:.0%} of {MEMORY / 1e9:.0f} GB: of ZeRO's stages (0 is DDP, and all that PPO runs with), of gradient \
checkpointing or
none, and of {", ".join(map(str, ROLLOUTS[:-1]))} or {ROLLOUTS[-1]} answers that PPO samples at once. Of two that are \
equally fast it has the lower stage.
"""

FOOT = f"""
## What it assumes

| | |
|---|---|
| GPU | A100 of 80 GB: {PEAK / 1e12:.0f} Tflop/s in bf16 and {BANDWIDTH / 1e12:.1f} TB/s, by its data sheet |
| share of it that products reach | {REACHED:.0%}, assumed |
| collectives in a machine of {NODE} | {LINKS["machine"] / 1e9:.0f} GB/s past each GPU, assumed |
| collectives over several | {LINKS["network"] / 1e9:.0f} GB/s past each GPU, assumed |
| to start the kernels of a layer | {LAYER * 1e3:.0f} ms, assumed: what a token of sampling takes at least, a layer |
| overlap | none: the seconds of all kinds add up |

A pass over the frozen base takes 2 operations a weight and token, backward as well as forward. SFT has one pass each
way, DPO another for the reference, PPO one each for reward, policy and reference and then one each way an epoch;
checkpointing adds a forward pass to each backward one. Before each pass NF4 is written out in bf16, and with ZeRO-3 the
base is gathered. Seconds of computing are inversely proportional to the share that products reach, and those of
communicating to the bandwidth: between machines of one 100 Gbit/s card each they are sixteen times as long.

## What nobody has measured

- Any of this on a GPU, over NCCL, or with a base of more than 135M parameters. The memory plan was held against the
  built-in model on a processor alone; there whole runs took up to 1.8 times their plan (README, "Before it runs, and
  after").
- NF4 under ZeRO-3 on GPUs. On a processor it trains, in two processes.
- How much of communicating hides behind computing, and how long processes wait for the slowest one: rows have one
  length here, and all of PPO's answers end at their last token.
- Loading: every process reads the whole base, those of a machine at once.
"""
"""What stands around the table."""


def _table() -> Iterator[str]:
    parts = ("computing", "dequantising", "communicating", "sampling")
    yield f"| base | method | GPUs | ZeRO | checkpointing | at once | GB a GPU | s an update | {' | '.join(parts)} |"
    yield f"|---|---|{'---:|' * (6 + len(parts))}"
    for model in SHAPES:
        of = sizes(model)
        for method, world in itertools.product(METHODS, WORLDS):
            yield f"| {model} | {method} | {world} | {_line(cell(method, world, of), parts)} |"


def _line(found: Cell | None, parts: tuple[str, ...]) -> str:
    if found is None:
        return " | ".join(["does not fit", *[""] * (4 + len(parts))])
    again = "yes" if found.work.checkpointing else "no"
    told = [
        str(found.work.zero),
        again,
        str(found.work.rollout or ""),
        f"{found.memory / 1e9:.1f}",
        _seconds(found.total),
    ]
    return " | ".join([*told, *[_seconds(found.seconds[part]) for part in parts]])


def _seconds(value: float) -> str:
    return f"{value:.3f}" if 0 < value < 0.1 else f"{value:.1f}"


if __name__ == "__main__":
    sys.stdout.write(page())
