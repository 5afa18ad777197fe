"""What PPO carries from one update to the next, and how it is kept on the disk so that a killed run loses nothing.

Trained weights lie in one flat fp32 tensor for the policy and one for the critic, of which the layers' parameters are
views: one AdamW step, one norm, one all-reduce and one file, however many layers. Everything random is a function of
the seed and of the update's number, so there is no state of a random generator to keep.
A checkpoint is safetensors and JSON, sealed with the hash of each file; nothing in it is a pickle.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline import store
from pipeline.algorithms.checkpoints import Checkpoints


class Progress(BaseModel):
    """Numbers that later updates depend on."""

    model_config = ConfigDict(extra="forbid")

    update: int = 0
    """Updates done."""
    kl_coef: float
    score_mean: float = 0.0
    """Scores are normalised by this mean and deviation: those of the policy's own answers before the first update."""
    score_deviation: float = 1.0
    told: bool = False
    """Whether log-probabilities and values are those of sampling, and no pass of the policy: decided before the first
    update, so that a run that was killed goes on as it began."""
    start: dict[str, float] = {}
    """What the policy was like before the first update: `length`, `ended`, `entropy`. The guards compare with it."""
    metrics: list[dict[str, Any]] = []
    """A line an update."""
    evaluations: list[dict[str, float]] = []
    """A line an evaluation on held-out prompts."""
    judged: list[float | None] = []
    """The held-out judge's scores of the first evaluation, a prompt."""


class Trained:
    """Parameters as views of one flat fp32 tensor, with its gradient and its AdamW."""

    def __init__(
        self, named: Sequence[tuple[str, nn.Parameter]], *, learning_rate: float, betas: tuple[float, float]
    ) -> None:
        self.parameters = [parameter for _, parameter in named]
        self.names = [name for name, _ in named]
        self.flat = nn.Parameter(torch.cat([each.detach().float().flatten() for each in self.parameters]))
        self.flat.grad = torch.zeros_like(self.flat)
        sizes = [each.numel() for each in self.parameters]
        views = zip(torch.split(self.flat.data, sizes), torch.split(self.flat.grad, sizes), strict=True)
        for parameter, (weight, gradient) in zip(self.parameters, views, strict=True):
            parameter.data = weight.view_as(parameter)
            parameter.grad = gradient.view_as(parameter)
        # eps as in the reference code of PPO: 1e-8 makes the first steps too large where gradients are tiny.
        self.optimizer = torch.optim.AdamW([self.flat], lr=learning_rate, betas=betas, eps=1e-5, weight_decay=0.0)

    @property
    def gradient(self) -> Tensor:
        """The flat gradient. It is set to zero in place, or the parameters would lose it."""
        assert self.flat.grad is not None
        return self.flat.grad

    def step(self, learning_rate: float, max_norm: float) -> float:
        """One step of AdamW on the gradient, scaled down to `max_norm`; it is zero afterwards.

        Returns:
            the norm before; if that is not finite, nothing was changed.
        """
        norm = float(torch.linalg.vector_norm(self.gradient))
        if norm < float("inf"):
            self.gradient.mul_(min(1.0, max_norm / (norm + 1e-6)))
            self.optimizer.param_groups[0]["lr"] = learning_rate
            self.optimizer.step()
        self.gradient.zero_()
        return norm

    def tensors(self) -> dict[str, Tensor]:
        """Weights and moments, as they are kept."""
        state = self.optimizer.state.get(self.flat, {})
        return {"weights": self.flat.data, **{name: torch.as_tensor(value) for name, value in state.items()}}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take up what `tensors` gave."""
        tensors = dict(tensors)
        self.flat.data.copy_(tensors.pop("weights"))
        if tensors:
            # AdamW's own state: `step` (on the processor), `exp_avg`, `exp_avg_sq`.
            kept = {
                name: each.clone() if name == "step" else each.to(self.flat.device) for name, each in tensors.items()
            }
            self.optimizer.state[self.flat] = kept

    def digest(self) -> str:
        """A hash of the weights."""
        return hashlib.sha256(self.flat.detach().cpu().numpy().tobytes()).hexdigest()

    def release(self) -> None:
        """Give every parameter memory of its own again, so that libraries can save it."""
        for parameter in self.parameters:
            parameter.data = parameter.data.clone()
            parameter.grad = None


def write(kept: Checkpoints, progress: Progress, trained: dict[str, Trained]) -> None:
    """Write `checkpoint-<update>`, which counts once it is sealed."""
    target = kept.folder / f"checkpoint-{progress.update}"
    store.remove(target)
    store.make_dirs(target)
    tensors = {f"{role}.{name}": each for role, part in trained.items() for name, each in part.tensors().items()}
    save_file({name: each.cpu().contiguous() for name, each in tensors.items()}, target / "trained.safetensors")
    store.write_json(target / "progress.json", progress.model_dump())


def restore(kept: Checkpoints, trained: dict[str, Trained]) -> Progress | None:
    """Go on from the newest sound checkpoint; None if there is none.

    Raises:
        TrainingError: it was made otherwise (`Checkpoints.newest`).
    """
    newest = kept.newest
    if newest is None:
        return None
    tensors = load_file(newest / "trained.safetensors")
    for role, part in trained.items():
        part.restore({name.removeprefix(f"{role}."): t for name, t in tensors.items() if name.startswith(f"{role}.")})
    return Progress.model_validate(json.loads((newest / "progress.json").read_bytes()))
