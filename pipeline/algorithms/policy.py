"""What SFT, DPO and KTO share: which weights of the policy are trained, by which optimizer, and where they start. RLOO
and GRPO start in the same way, from adapters alone.

    tune: lora      an adapter on the frozen base, which may be quantised (QLoRA); with `lora.use_dora` a DoRA
    tune: full      every weight of the base
    tune: layers    the weights that `layers` names
    tune: lm_head   the output layer alone, as it is or drawn anew

A policy that starts from an earlier step goes on with that step's weights, and its reference is a frozen copy of them,
never the raw base. That the two are the same before the first update is measured, and a step whose policy has already
moved is stopped. What is left out: data and losses.
"""

import contextlib
import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from pipeline import weights
from pipeline.adapters import adapt
from pipeline.algorithms import checkpoints
from pipeline.algorithms.base import AlgorithmConfig, Need, Setting, TrainRun
from pipeline.algorithms.scoring import frozen_role
from pipeline.errors import TrainingError
from pipeline.launch import LaunchConfig
from pipeline.models import ADAPTER, ADAPTER_TENSORS, padded_logprobs

if TYPE_CHECKING:
    import torch
    from transformers import Trainer

Tune = Literal["lora", "full", "layers", "lm_head"]

PLAIN = {"paged_adamw_32bit": "adamw_torch", "paged_adamw": "adamw_torch", "adamw_bnb_32bit": "adamw_torch"}
"""Optimizers that need a GPU, and the one that takes the same steps without: paging moves memory and no number."""

ANSWERS = ("chosen_ids", "completion_ids")
"""The columns of TRL's trainers that hold an answer."""

CHECKED = 8
"""Examples on which policy and reference are compared before the first update."""


class PolicyConfig(AlgorithmConfig):
    """Base of the Configs of SFT, DPO and KTO."""

    start_from: str | None = None
    """An earlier train step whose policy this one goes on with, and is held to. None: the base."""
    tune: Tune = "lora"
    """What is trained: an adapter, or weights of the base itself, which must then have `quantization: none`."""
    layers: tuple[str, ...] = ()
    """With `tune: layers`: names of modules or parameters, `*` and `?` as in file names: `model.layers.2?`, lm_head."""
    reinit_head: bool = False
    """With `tune: lm_head`: draw the output layer anew before it is trained."""
    optim: str = "adamw_torch_fused"
    """transformers' name of the optimizer. A paged AdamW is replaced by a plain one where there is no GPU."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Of AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101)."""

    @model_validator(mode="after")
    def _tuned_as_said(self) -> Self:
        if self.tune == "layers" and not self.layers:
            raise ValueError("layers: name those that tune: layers trains, such as [model.layers.29, lm_head]")
        if self.layers and self.tune != "layers":
            raise ValueError(f"layers is read with tune: layers alone, and tune is {self.tune}; leave one out")
        if self.reinit_head and self.tune != "lm_head":
            raise ValueError(f"reinit_head is read with tune: lm_head alone, and tune is {self.tune}; leave it out")
        if self.reinit_head and self.start_from:
            raise ValueError("reinit_head would throw away the output layer of start_from; leave one out")
        return self

    def needs(self) -> tuple[Need, ...]:
        """The step that it starts from."""
        return () if self.start_from is None else (Need("start_from", self.start_from, "policy"),)

    def trains_base(self) -> bool:
        """All but an adapter does."""
        return self.tune != "lora"

    def refusals(self, launch: LaunchConfig) -> list[str]:
        """See `AlgorithmConfig.refusals`."""
        found = super().refusals(launch)
        if launch.zero and self.trains_base():
            found.append(
                f"launch.zero={launch.zero} is for adapters (tune: lora), and tune is {self.tune}; set zero to 0"
            )
        return found

    def policy_arguments(self, setting: Setting) -> dict[str, Any]:
        """`Setting.arguments`, with what is asked for here."""
        return {
            **setting.arguments(self),
            "optim": optimizer(self.optim, setting.model.device.type),
            "weight_decay": self.weight_decay,
        }

    def policy(self, setting: Setting, *, reference: bool) -> dict[str, Any]:
        """What a trainer of TRL is given as policy, by its names: `model`, and `peft_config` or `ref_model`.

        Args:
            reference: the trainer compares the policy with a reference.

        Raises:
            ModelError: the weights that are named, or those to start from, are not in this base.
        """
        if self.trains_base():
            if self.reinit_head:
                weights.redraw_head(setting.model, setting.seed)
            weights.choose(setting.model, self._names(setting.model))
            # Before the copy, so that both compute with numbers of the same width.
            checkpoints.train_in_fp32(setting.model)
            found = {"ref_model": _frozen_copy(setting.model)} if reference else {}
            return {"model": setting.model, **found}
        return adapted(self, setting)

    def _names(self, model: Any) -> tuple[str, ...]:
        if self.tune != "lm_head":
            return self.layers
        head = weights.head_name(model)
        if not head:
            raise TrainingError(f"tune: lm_head: {model.config.model_type} has no output layer")
        return (head,)

    def ready(self, trainer: "Trainer", setting: Setting) -> "Trainer":
        """A trainer of TRL with the weights that it should start from, and one that is held to them."""
        if setting.start and (setting.start / ADAPTER).exists() and not self.trains_base():
            reload(trainer.model, setting.start)
            checkpoints.save_only_the_policy(trainer.model)
        checkpoints.train_in_fp32(trainer.model)
        return trainer

    def setting(self, run: TrainRun) -> Setting:
        """See `AlgorithmConfig.setting`; the base has the weights of `start_from`."""
        return run.setting(self.start_from, encoder_decoders=self.ENCODER_DECODERS)

    def started(self, trainer: Any) -> dict[str, Any]:
        """See `AlgorithmConfig.started`: how far the policy is from its reference, which is next to nothing."""
        rows = trainer.train_dataset.select(range(min(CHECKED, len(trainer.train_dataset))))
        answers = rows[next(name for name in ANSWERS if name in rows.column_names)]
        return {"start_gap": start_gap(trainer, rows["prompt_ids"], answers)}

    def alarms(self, metrics: Sequence[dict[str, Any]]) -> list[str]:
        """That another optimizer was taken than the recipe names."""
        import torch

        taken = optimizer(self.optim, "cuda" if torch.cuda.is_available() else "cpu")
        if taken == self.optim:
            return []
        return [f"{self.optim} needs a GPU; {taken}, which takes the same steps, was used in its place."]


def optimizer(name: str, device: str) -> str:
    """The optimizer that takes the steps of the named one on this kind of device.

    Raises:
        TrainingError: there is none, or none of that name.
    """
    from transformers.training_args import OptimizerNames

    known = [each.value for each in OptimizerNames]
    if name not in known:
        raise TrainingError(f"optim: {name!r} is none that transformers knows; there are {', '.join(known)}")
    if device != "cpu":
        return name
    plain = PLAIN.get(name, name)
    if "8bit" in plain or "4bit" in plain or plain.startswith("paged"):
        raise TrainingError(f"optim: {name} needs a GPU, and there is none; take adamw_torch")
    return plain


def _frozen_copy(model: Any) -> Any:
    """The base as it is, to be held to while it is trained; what is not trained is in memory once."""
    shared = {id(each): each for each in model.parameters() if not each.requires_grad}
    return copy.deepcopy(model, shared).requires_grad_(False).eval()


# ---- an adapter, which may be gone on with


def adapted(algorithm: AlgorithmConfig, setting: Setting) -> dict[str, Any]:
    """What a trainer of TRL is given as policy that is an adapter: a new one, or the one that it starts from."""
    if setting.start and (setting.start / ADAPTER).exists():
        return {"model": adapt(setting.model, setting.start, trainable=True)}
    return {"model": setting.model, "peft_config": setting.peft_config(algorithm)}


def reload(model: Any, start: Path) -> None:
    """Give the policy's adapter, and the copy of it that is TRL's reference, the numbers that were saved, in place."""
    # On a 4-bit base TRL's DPO and KTO copy the adapter as the reference and then cast both to bf16, SFT the adapter
    # alone: what was saved in fp32 would be rounded in the policy, and the two would differ before the first update.
    import torch
    from safetensors.torch import load_file

    saved = load_file(start / ADAPTER_TENSORS)
    parameters = dict(model.named_parameters())
    for adapter in ("default", "ref"):
        if adapter not in model.peft_config:
            continue
        for name, tensor in saved.items():
            stem, _, last = name.rpartition(".")
            # A matrix is saved as `lora_A.weight`, DoRA's magnitudes as `lora_magnitude_vector`.
            own = f"{stem}.{adapter}.{last}" if last == "weight" else f"{name}.{adapter}.weight"
            parameter = parameters[own]
            parameter.data = tensor.to(parameter.device, torch.float32, copy=True)
            parameter.requires_grad_(adapter == "default")


# ---- before the first update


def start_gap(trainer: Any, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> float:
    """How far the policy is from its reference before training: the largest difference of an answer token's
    log-probability, in nats.

    Args:
        prompts: token ids of some conversations.
        answers: token ids of an answer to each.

    Raises:
        TrainingError: it is more than rounding explains.
    """
    import torch

    model, training = trainer.model, trainer.model.training
    model.eval()
    with computing(trainer):
        # One at a time: the logits of several long answers would take more than training does, which computes none.
        policy = padded_logprobs(model, prompts, answers, rows=1)
        with _reference_of(trainer) as held_to:
            reference = padded_logprobs(held_to, prompts, answers, rows=1)
    model.train(training)
    gap = max(float((one - other).abs().max()) for one, other in zip(policy, reference, strict=True))
    # Logits are about as large as log-probabilities are small, and were rounded once in the dtype of the base.
    allowed = 64 * float(torch.finfo(dtype_in(trainer)).eps)
    if not gap <= allowed:
        raise TrainingError(
            f"the policy is {gap:.3g} nats a token from its reference before the first update (rounding explains "
            f"{allowed:.2g}): it would be held to another policy than it starts from"
        )
    return gap


def dtype_in(trainer: Any) -> "torch.dtype":
    """What a trainer of transformers multiplies in."""
    import torch

    return torch.bfloat16 if trainer.args.bf16 else torch.float16 if trainer.args.fp16 else torch.float32


def computing(trainer: Any) -> "contextlib.AbstractContextManager[Any]":
    """Inside, a model computes as it does in the trainer's own passes."""
    import torch

    dtype = dtype_in(trainer)
    return torch.autocast(trainer.model.device.type, dtype=dtype, enabled=dtype != torch.float32)


@contextlib.contextmanager
def _reference_of(trainer: Any) -> Iterator[Any]:
    """What TRL's trainer holds the policy to: another model, the adapter `ref`, or the base without its adapter."""
    if trainer.ref_model is not None:
        yield trainer.ref_model
    elif "ref" in trainer.model.peft_config:
        with frozen_role(trainer.model, "ref"):
            yield trainer.model
    else:
        with trainer.model.disable_adapter():
            yield trainer.model
