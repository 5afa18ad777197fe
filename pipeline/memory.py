"""How much memory a step will take at its peak, from sizes alone: no weights are loaded.

    loading   program + the weights' file, which the kernel maps + the weights as they are held
    working   program + weights + adapters with their optimizer + activations + logits + cache of keys and values

and the peak is the larger one. Activations of a token in one layer that LoRA is trained in, at `b` bytes a number, are
what autograd keeps for the way back:

    inputs of the adapters, in the compute dtype   q k v o gate up: 6 H b (3 H b where those of q k v and of gate up are
                                                   kept once, as PPO does), down: I b
    the two norms, in fp32                         8 H
    attention: query, key, value, output           4 A b
    gated MLP: gate, its activation, up            3 I b
    with DoRA: each layer's own output, LoRA's     2 b x outputs

with H the hidden size, A heads x head size and I the MLP's width. Where the base itself is trained, a weight takes 16
bytes in the place of its own: itself, its gradient and two moments, in fp32; norms keep what they give too; and where
the output layer alone is trained, nothing below it is kept. `HEAP`, `LOGIT` and `TILED_LOGIT` stand for what a formula
does not know: temporaries of the way back, and how the heap falls apart. They are measured, and so is `PROGRAM`; `make
bench-memory` measures them again and writes predicted beside measured. On a GPU nothing was measured: there all of it
is a prediction, and says so.

The measured settings have rows of one length and end after a few updates. Over a whole run on a processor, with rows of
many lengths, the heap falls apart further, which no formula here knows: the steps of recipes/rlaif.yaml took 1.2 to 1.8
times their plan; long rows that are mostly shorter take less. Six updates of DPO on rows of up to 159 tokens,
planned at 2,482 MB, took 2,756 as workers run (`pipeline.launch.environment`), 2,801 with one heap for all threads, and
2,526 where each tensor from 4 MiB on was mapped by itself in huge pages, for a tenth more processor time.

Where processes train together, DeepSpeed divides over them what a trained weight takes: from ZeRO-1 on the two moments,
from ZeRO-2 on the gradient, with ZeRO-3 the weight itself and the frozen base (Rajbhandari et al. 2020,
arXiv:1910.02054, section 5). Its own fp32 copy of the weights is divided from the first stage on. None of that was
measured.

What is left out: activations kept in another place than memory, buffers of the communication, and the machine's memory
where a GPU offloads to it.
"""

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pipeline.models import ModelConfig, dtype_of, told_of, weight_bytes
from pipeline.weights import named

PROGRAM = {"train": 550_000_000, "infer": 456_000_000, "gpu": 600_000_000}
"""Bytes of a process before it has a model. train: Python 3.11, torch 2.13 without CUDA, transformers 5.23, peft 0.21,
bitsandbytes 0.50, trl 1.16 imported, as measured; infer: the same without trl; gpu: CUDA's context and the libraries'
workspaces, an estimate."""

HEAP = 1.6
"""Peak of the activations over what autograd keeps; 1.55 to 1.68 over four settings of a 135M Llama in bf16."""

LOGIT = 28
"""Bytes a logit that PPO trains on: in the compute dtype, their log-softmax, and the gradients of both; 27 to 29."""

TILED_LOGIT = 42
"""The same of TRL's trainers, which have these for a tile at a time: of `TILE` tokens and words; 41 to 44."""

TILE = (4096, 32768)
"""Tokens and words of the vocabulary whose logits TRL 1.16 has in memory at once."""

READ_LOGIT = 10
"""Bytes a logit that is only read: in the compute dtype and in fp32, and one temporary."""

CACHE_COPIES = 2
"""A cache is copied when it grows by a token, and when a prompt's is repeated for its answers."""

LIVE = 1_000_000_000
"""Numbers of the base that ZeRO-3 has whole at once: DeepSpeed's stage3_max_live_parameters, at its default."""

HEAD = "lm_head.weight"
"""What the output layer's weight is called, which the body that is counted does not have."""

Kind = Literal["train", "ppo", "read", "sample"]


class Tuned(NamedTuple):
    """Which weights a policy trained, by the names of `pipeline.algorithms.policy`."""

    tune: Literal["lora", "full", "layers", "lm_head"] = "lora"
    layers: tuple[str, ...] = ()


ADAPTER = Tuned()


@dataclass(frozen=True)
class Sizes:
    """A model in numbers."""

    parameters: int
    linear: int
    """Weights of linear layers, without the output layer: what a quantisation makes smaller."""
    ends: int
    """Sum over those layers of inputs and outputs: an adapter of rank r has r times as many weights."""
    layers: int
    hidden: int
    attention: int
    """Heads x their size."""
    keys: int
    """The same of keys, and of values."""
    intermediate: int
    """Width of the MLP: with experts, of all that a token goes through."""
    vocabulary: int
    file: int
    """Bytes of the weights on the disk."""
    outputs: int
    """Sum over the linear layers of outputs."""
    tied: bool
    """The output layer is the input embeddings, and not among the parameters."""
    names: tuple[tuple[str, int], ...]
    """Parameters, the output layer's last, and their sizes."""


@dataclass(frozen=True)
class Work:
    """What one process does with a model."""

    kind: Kind
    batch: int
    """Examples a forward pass."""
    each: int
    """Sequences an example."""
    length: int
    """Tokens of the longest sequence."""
    answer: int
    """Tokens of it whose logits are computed."""
    quantization: Literal["nf4", "int8", "none"] = "nf4"
    double: bool = True
    number: int = 2
    """Bytes of a number in the compute dtype."""
    rank: int = 0
    """Of the adapter. 0: there is none."""
    dora: bool = False
    """It has magnitudes too."""
    frozen: int = 0
    """Further adapters of that rank that are not trained."""
    tuned: Tuned = ADAPTER
    """What is trained."""
    reference: bool = False
    """A frozen copy of what is trained of the base is held beside it."""
    policies: tuple[Tuned, ...] = ()
    """Of policies that answer in turn on one base."""
    checkpointing: bool = False
    rollout: int = 0
    """Sequences sampled at once."""
    least: int = 1
    """The smallest batch that the method allows."""
    zero: Literal[0, 1, 2, 3] = 0
    """DeepSpeed's stage. 0: each process has all."""
    world: int = 1
    """Processes that train together."""
    offload: bool = False
    """What is divided is in the machine's memory and not on the GPU."""


class Peak(NamedTuple):
    """Bytes, by what they are for."""

    loading: int
    parts: dict[str, int]

    @property
    def total(self) -> int:
        """The peak."""
        return max(self.loading, sum(self.parts.values()))


class Change(NamedTuple):
    """One option set to another value."""

    option: str
    value: int | bool | str


def peak(sizes: Sizes, work: Work, *, gpu: bool) -> Peak:
    """The most memory that this work holds: of the GPU, or else of the process."""
    trains = work.kind in ("train", "ppo")
    program = PROGRAM["gpu" if gpu else "train" if trains else "infer"]
    held = weights(sizes, work)
    dense = sizes.parameters * work.number
    # On a processor a model that is only read is dequantised once, from a copy that is still there.
    opened = held if gpu or trains or work.quantization == "none" else held + dense
    kept = held if gpu or trains else dense
    parts = {
        "program": program,
        "weights": base(kept, work, gpu=gpu) + others(sizes, work),
        "trained": trained_bytes(sizes, work, gpu=gpu),
        "adapters": adapters(sizes, work, gpu=gpu),
        "activations": activations(sizes, work),
        "logits": logits(sizes, work),
        "cache": 0,
    }
    if work.rollout:
        parts = max(parts, _sampling(sizes, work, parts, _ready(sizes, work) if trains and not gpu else 0), key=_sum)
    loading = program + sizes.file + opened
    if gpu:  # what ZeRO-3 divides is whole in every process before
        loading = program + held if work.zero == 3 else 0
    return Peak(loading, parts)


def weights(sizes: Sizes, work: Work) -> int:
    """Bytes of the base as it is held for training.

    NF4 has 4 bits a weight and a constant for each 64 of them: 32 bits, or with double quantisation 8 and another
    32 for each 256 constants (Dettmers et al. 2023, arXiv:2305.14314, section 3). int8 has a constant a row.
    """
    constant = (1 / 64 + 4 / (64 * 256)) if work.double else 4 / 64
    byte = {"nf4": 0.5 + constant, "int8": 1.0, "none": float(work.number)}[work.quantization]
    return round(sizes.linear * byte + (sizes.parameters - sizes.linear) * work.number)


def base(held: int, work: Work, *, gpu: bool) -> int:
    """Bytes of the frozen base in one process: of `held`, its part with ZeRO-3, and what is whole for a moment."""
    if work.zero < 3:
        return held
    part = 0 if gpu and work.offload else held // work.world
    return min(held, part + min(held, LIVE * work.number))


def state(work: Work, *, gpu: bool) -> float:
    """Bytes that a trained weight takes in one process, with its gradient and two moments, all in fp32."""
    if not work.zero:
        return 16
    # With its own copy of the weights, which the optimizer changes.
    divided = {1: 4 + 8, 2: 4 + 8 + 4, 3: 4 + 8 + 4 + 4}[work.zero]
    kept = {1: 4 + 4, 2: 4, 3: 0}[work.zero]
    return kept + (0 if gpu and work.offload else divided / work.world)


def trained(sizes: Sizes, tuned: Tuned) -> int:
    """Weights of the base that are trained."""
    if tuned.tune == "full":
        return sizes.parameters
    found = {"lora": (), "layers": tuned.layers, "lm_head": (sizes.names[-1][0],)}[tuned.tune]
    return sum(size for own, size in sizes.names if any(named(own, name) for name in found))


def trained_bytes(sizes: Sizes, work: Work, *, gpu: bool = False) -> int:
    """Bytes of those weights above what they take untrained: fp32, its gradient and two moments, for autocast a copy
    in the compute dtype, and the reference's."""
    count = trained(sizes, work.tuned)
    head = sizes.names[-1][1] if sizes.tied and work.tuned.tune != "full" and _trains_head(sizes, work.tuned) else 0
    mixed = work.number if work.number < 4 else 0
    return round(count * (state(work, gpu=gpu) + mixed + 4 * work.reference)) - (count - head) * work.number


def _trains_head(sizes: Sizes, tuned: Tuned) -> bool:
    return tuned.tune == "lm_head" or any(named(sizes.names[-1][0], name) for name in tuned.layers)


def others(sizes: Sizes, work: Work) -> int:
    """Bytes of the weights of policies that answer in turn."""
    return sum(trained(sizes, each) for each in work.policies) * work.number


def adapters(sizes: Sizes, work: Work, *, gpu: bool = False) -> int:
    """Bytes of adapters: fp32, and for the trained one its gradient and two moments."""
    each = sizes.ends * work.rank + sizes.outputs * work.dora
    own = state(work, gpu=gpu) if work.kind in ("train", "ppo") else 0
    return round(each * (own + 4 * work.frozen))


def activations(sizes: Sizes, work: Work) -> int:
    """Bytes that the layers keep for the way back; of one layer where there is none, or where it is computed again."""
    tokens, b = work.batch * work.each * work.length, work.number
    inputs = (3 if work.kind == "ppo" else 6) * sizes.hidden * b + sizes.intermediate * b
    norms = (8 if work.tuned.tune == "lora" else 16) * sizes.hidden
    layer = inputs + norms + 4 * sizes.attention * b + 3 * sizes.intermediate * b
    layer += 2 * b * sizes.outputs // sizes.layers * work.dora
    if work.kind in ("read", "sample") or work.tuned.tune == "lm_head":
        return round(HEAP * tokens * layer)
    if work.checkpointing:
        return round(HEAP * tokens * (layer + sizes.layers * sizes.hidden * b))
    return round(HEAP * tokens * layer * sizes.layers)


def logits(sizes: Sizes, work: Work) -> int:
    """Bytes of the logits that are in memory at once."""
    if work.kind in ("read", "sample"):
        return work.batch * sizes.vocabulary * READ_LOGIT * (work.kind == "sample")
    tokens = work.batch * work.each * work.answer
    if work.kind == "ppo":
        return tokens * sizes.vocabulary * LOGIT
    return min(tokens, TILE[0]) * min(sizes.vocabulary, TILE[1]) * TILED_LOGIT


def cache(sizes: Sizes, rows: int, length: int, number: int) -> int:
    """Bytes of keys and values."""
    return CACHE_COPIES * rows * length * sizes.layers * 2 * sizes.keys * number


def nearest(sizes: Sizes, work: Work, memory: int, *, gpu: bool) -> tuple[Change, ...] | None:
    """The mildest change that fits into so many bytes: a smaller batch, then shorter examples, then gradient
    checkpointing, then NF4. Nothing: it fits as it is. None: no such change is enough."""
    for changed, changes in _alternatives(work):
        if peak(sizes, changed, gpu=gpu).total <= memory:
            return changes
    return None


def _alternatives(work: Work) -> Iterator[tuple[Work, tuple[Change, ...]]]:
    """The work with its options changed, the mildest first: the last one named below changes last."""
    fixed = work.quantization == "nf4" or work.tuned.tune != "lora"
    quantizations = [work.quantization] if fixed else [work.quantization, "nf4"]
    trains = work.kind in ("train", "ppo")
    checkpointing = [work.checkpointing] if work.checkpointing or not trains else [False, True]
    lengths = list(_halves(work.length, 64)) if work.kind == "train" else [work.length]
    batches = list(_halves(work.batch, work.least))
    for held, again, length, batch in itertools.product(quantizations, checkpointing, lengths, batches):
        changed = replace(
            work,
            batch=batch,
            length=length,
            answer=min(work.answer, length),
            checkpointing=again,
            quantization=held,
            rollout=min(work.rollout, batch) if work.kind == "sample" else work.rollout,
        )
        candidates = (
            (batch != work.batch, Change("batch", batch)),
            (length != work.length, Change("max_length", length)),
            (again != work.checkpointing, Change("gradient_checkpointing", again)),
            (held != work.quantization, Change("quantization", held)),
        )
        yield changed, tuple(change for differs, change in candidates if differs)


def _halves(count: int, least: int) -> Iterator[int]:
    yield count
    while count // 2 >= least:
        count //= 2
        yield count


def _ready(sizes: Sizes, work: Work) -> int:
    """Bytes of the matrices that are held ready for a rollout on a processor: dequantised, and laid out anew
    (`pipeline.packed`), the output layer's as well."""
    return (sizes.linear + sizes.names[-1][1]) * work.number


def _sampling(sizes: Sizes, work: Work, parts: dict[str, int], ready: int) -> dict[str, int]:
    """The parts while answers are drawn; `ready`: what the weights take more than in training."""
    prefill = replace(work, kind="sample", batch=work.rollout, each=1, length=max(1, work.length - work.answer))
    return {
        **parts,
        "weights": parts["weights"] + ready,
        "activations": activations(sizes, prefill),
        "logits": work.rollout * sizes.vocabulary * READ_LOGIT,
        "cache": cache(sizes, work.rollout, work.length, work.number),
    }


def _sum(parts: dict[str, int]) -> int:
    return sum(parts.values())


# ---- of what is here


def sizes_of(config: ModelConfig) -> Sizes:
    """The numbers of a model: its config.json is read and nothing else.

    Raises:
        ModelError: there is no such model.
    """
    return counted(told_of(config), weight_bytes(config))


def counted(told: Any, file: int | None = None) -> Sizes:
    """The numbers of the model that a config of transformers tells of, counted on torch's meta device.

    Args:
        file: bytes of its weights on the disk. None: not known; two for each of them.
    """
    import torch
    from transformers import AutoModel

    with torch.device("meta"):
        body = AutoModel.from_config(told)
    text = told.get_text_config()
    tied = bool(getattr(text, "tie_word_embeddings", True))
    head = text.vocab_size * text.hidden_size
    linear = [each for each in body.modules() if isinstance(each, torch.nn.Linear)]
    parameters = sum(each.numel() for each in body.parameters()) + head * (not tied)
    heads = _first(text, "num_attention_heads") or 1
    size = _first(text, "head_dim") or text.hidden_size // heads
    return Sizes(
        parameters=parameters,
        linear=sum(each.weight.numel() for each in linear),
        ends=sum(each.in_features + each.out_features for each in linear),
        layers=_first(text, "num_hidden_layers") or 1,
        hidden=text.hidden_size,
        attention=heads * size,
        keys=(_first(text, "num_key_value_heads") or heads) * size,
        intermediate=_width(text),
        vocabulary=text.vocab_size,
        file=file or parameters * 2,
        outputs=sum(each.out_features for each in linear),
        tied=tied,
        names=(
            *((f"{body.base_model_prefix}.{name}", each.numel()) for name, each in body.named_parameters()),
            (HEAD, head),
        ),
    )


def _width(text: Any) -> int:
    width = _first(text, "moe_intermediate_size", "intermediate_size", "n_inner", "d_ff", "ffn_dim") or (
        4 * text.hidden_size
    )
    return width * (_first(text, "num_experts_per_tok") or 1)


def _first(text: Any, *names: str) -> int | None:
    return next((int(value) for name in names if (value := getattr(text, name, None))), None)


def number_of(config: ModelConfig, *, gpu: bool) -> int:
    """Bytes of a number in the dtype that this model computes in, on a GPU or here."""
    return 2 if gpu and config.dtype == "auto" else int(dtype_of(config).itemsize)


def machine_bytes() -> tuple[int, bool]:
    """Memory that models have here, and whether that is a GPU's."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory), True
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    # A container's limit is what the kernel keeps it to.
    told = _text(Path("/sys/fs/cgroup/memory.max"))
    return min(whole, int(told) if told.isdigit() else whole), False


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""
