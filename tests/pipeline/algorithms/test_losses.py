"""The losses that a recipe gets are those of the papers: value and gradient, against NumPy in float64.

Each goes the whole way that a recipe takes: the algorithm's own rows, collator and trainer, and reference passes. The
references below are written from the papers, one line each. The model is fp32; what it says of an answer is taken
from a float64 copy of it, answer by answer and without padding. Bradley-Terry is in `test_reward_model.py`.
"""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import preferences_of, prompt_of, response_of

from pipeline.algorithms import dpo, kto
from pipeline.algorithms.base import AlgorithmConfig, Setting
from pipeline.models import ModelConfig, chat_ids, load_model
from pipeline.records import Message, Preference, Thumb

BETA = 0.3
CLOSE = 1e-5


def confident(count: int) -> list[Preference]:
    """Preferences on short answers of different lengths; no confidence comes twice."""
    found = preferences_of(count)
    return [each.model_copy(update={"confidence": 0.55 + 0.1 * n}) for n, each in enumerate(found)]


def stirred(config: AlgorithmConfig, rows: Any, tiny: ModelConfig, tokenizer: Any, folder: Path) -> Any:
    """The algorithm's trainer, its adapter already moved away from where it starts: a policy that is no reference."""
    model = load_model(tiny, training=True)
    trainer = config.trainer(rows, Setting(model=model, tokenizer=tokenizer, output_dir=folder, seed=1))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05, generator=generator)
    return trainer


def measured(trainer: Any, batch: Any) -> tuple[float, dict[str, np.ndarray]]:
    """The trainer's loss on a batch, and its gradient by every trained parameter."""
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, dict(batch))
    loss.backward()
    gradients = {n: p.grad.double().numpy() for n, p in trainer.model.named_parameters() if p.requires_grad}
    return loss.item(), gradients


class Exact:
    """A float64 copy of a trainer's policy and reference, read answer by answer."""

    def __init__(self, trainer: Any, tokenizer: Any) -> None:
        self.model = copy.deepcopy(trainer.model).double()
        # TRL's fused head has replaced the forward of the instance.
        del self.model.get_base_model().forward
        self.tokenizer = tokenizer

    def logprobs(self, rows: Sequence[tuple[Sequence[Message], str]], *, reference: bool = False) -> torch.Tensor:
        """(N,): log pi(answer and its end of turn | prompt) of each row, with its graph unless of the reference."""
        if reference:
            with torch.no_grad(), self.model.disable_adapter():
                return self.logprobs(rows)
        return torch.stack([self._logprob(*row) for row in rows])

    def tokens(self, answer: str) -> list[int]:
        """The answer's tokens, and the end of the turn."""
        found: list[int] = self.tokenizer(f"{answer}<|im_end|>", add_special_tokens=False)["input_ids"]
        return found

    def _logprob(self, prompt: Sequence[Message], answer: str) -> torch.Tensor:
        before, after = chat_ids(self.tokenizer, prompt), self.tokens(answer)
        logits = self.model(input_ids=torch.tensor([[*before, *after]])).logits[0, len(before) - 1 : -1]
        return logits.log_softmax(-1)[torch.arange(len(after)), after].sum()

    def gradients(self, logprobs_N: torch.Tensor, slope_N: np.ndarray) -> dict[str, np.ndarray]:
        """The chain rule: sum of dL/dlog pi times dlog pi/dparameter."""
        named = {name: each for name, each in self.model.named_parameters() if each.requires_grad}
        found = torch.autograd.grad(logprobs_N, list(named.values()), torch.from_numpy(slope_N))
        return {name: each.numpy() for name, each in zip(named, found, strict=True)}


def slope_of(function: Callable[[np.ndarray], float], at_N: np.ndarray) -> np.ndarray:
    """Central differences in float64."""
    step = 1e-5
    return np.array([(function(at_N + d) - function(at_N - d)) / (2 * step) for d in step * np.eye(len(at_N))])


def agree(found: tuple[float, dict[str, np.ndarray]], loss: float, gradients: dict[str, np.ndarray]) -> None:
    """Within 1e-5, of the largest gradient where that is above 1."""
    assert found[0] == pytest.approx(loss, rel=CLOSE, abs=CLOSE)
    assert found[1].keys() == gradients.keys()
    scale = max(1.0, *(np.abs(each).max() for each in gradients.values()))
    assert max(np.abs(found[1][name] - gradients[name]).max() for name in gradients) < CLOSE * scale
    assert max(np.abs(each).max() for each in gradients.values()) > 1e-3


# ---- DPO


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def exo(z: np.ndarray, e: float) -> np.ndarray:
    p, q = np.stack([sigmoid(z), sigmoid(-z)]), np.array([[1 - e], [e]])
    return (p * np.log(p / q)).sum(axis=0)


def optimal_transport(policy: np.ndarray, reference: np.ndarray, e: float) -> np.ndarray:
    z = BETA * (np.sort(policy) - np.sort(reference))
    return -(1 - e) * np.log(sigmoid(z)) - e * np.log(sigmoid(-z))


# Of the winning and the rejected answers: w and r, log-ratios; nw and nl, tokens; pw and pl, the policy's logs alone.
PAPERS: dict[str, Callable[..., Any]] = {
    "sigmoid": lambda w, r, **_: -np.log(sigmoid(BETA * (w - r))),
    "sigmoid_norm": lambda w, r, nw, nl, **_: -np.log(sigmoid(BETA * w / nw - BETA * r / nl)),
    "hinge": lambda w, r, **_: np.maximum(0, 1 - BETA * (w - r)),
    # The paper's equation on log-ratios a token.
    "ipo": lambda w, r, nw, nl, **_: (w / nw - r / nl - 1 / (2 * BETA)) ** 2,
    "exo_pair": lambda w, r, e, **_: exo(BETA * (w - r), e),
    "nca_pair": lambda w, r, **_: (
        -np.log(sigmoid(BETA * w)) - 0.5 * np.log(sigmoid(-BETA * w)) - 0.5 * np.log(sigmoid(-BETA * r))
    ),
    "robust": lambda w, r, e, **_: (
        (-(1 - e) * np.log(sigmoid(BETA * (w - r))) + e * np.log(sigmoid(-BETA * (w - r)))) / (1 - 2 * e)
    ),
    # The paper's equation with a shift of 0.
    "bco_pair": lambda w, r, **_: -np.log(sigmoid(BETA * w)) - np.log(sigmoid(-BETA * r)),
    "sppo_hard": lambda w, r, **_: (w - (1 - 0.5) / BETA) ** 2 + (r - (0 - 0.5) / BETA) ** 2,
    "aot": lambda w, r, pw, pl, e, **_: optimal_transport(pw - pl, (pw - w) - (pl - r), e),
    "aot_unpaired": lambda w, r, e, **_: optimal_transport(w, r, e),
    # The paper's equations, plus 1.
    "apo_zero": lambda w, r, **_: -sigmoid(BETA * w) + sigmoid(BETA * r) + 1,
    "apo_down": lambda w, r, **_: sigmoid(BETA * w) - sigmoid(BETA * (w - r)) + 1,
    "discopop": lambda w, r, **_: (
        -(1 - sigmoid(BETA * (w - r) / 0.05)) * np.log(sigmoid(BETA * (w - r)))
        + sigmoid(BETA * (w - r) / 0.05) * np.exp(-BETA * (w - r))
    ),
    # The mean over the tokens of the batch.
    "sft": lambda pw, nw, **_: -pw.sum() / nw.sum(),
}  # fmt: skip


def rows_of(preferences: Sequence[Preference]) -> tuple[list[Any], list[Any]]:
    return tuple([(p.prompt.messages, getattr(p, side).text) for p in preferences] for side in ("chosen", "rejected"))  # type: ignore[return-value]


def dpo_agrees(
    config: dpo.Config,
    paper: Callable[..., Any],
    tiny: ModelConfig,
    tokenizer: Any,
    folder: Path,
) -> None:
    # In the order of the rows, which is that of the batch as long as nothing shuffles it.
    preferences = sorted(confident(4), key=lambda each: each.pair_id)
    trainer = stirred(config, config.rows(preferences), tiny, tokenizer, folder)
    batch = trainer.data_collator(list(trainer.train_dataset))
    exact = Exact(trainer, tokenizer)
    found = measured(trainer, batch)

    chosen, rejected = rows_of(preferences)
    policy_2B = exact.logprobs([*chosen, *rejected])
    reference_2B = exact.logprobs([*chosen, *rejected], reference=True).numpy()
    tokens_2B = np.array([len(exact.tokens(answer)) for _, answer in [*chosen, *rejected]])
    confidence_B = np.array([each.confidence for each in preferences])

    def loss(policy_2B: np.ndarray) -> float:
        w, r = np.split(policy_2B - reference_2B, 2)
        (pw, pl), (nw, nl) = np.split(policy_2B, 2), np.split(tokens_2B, 2)
        e = config.label_smoothing
        return float(np.mean(paper(w=w, r=r, pw=pw, pl=pl, nw=nw, nl=nl, e=e, c=confidence_B)))

    at = policy_2B.detach().numpy()
    agree(found, loss(at), exact.gradients(policy_2B, slope_of(loss, at)))


@pytest.mark.parametrize("name", PAPERS)
def test_dpos_loss_and_gradient_are_those_of_the_paper(
    name: Any, tiny: ModelConfig, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    smoothing = 0.2 if name in dpo.TRLS else 0.0
    config = dpo.Config(loss_type=(name,), beta=BETA, label_smoothing=smoothing)
    dpo_agrees(config, PAPERS[name], tiny, tiny_tokenizer, tmp_path)


def test_every_loss_that_is_offered_has_its_paper() -> None:
    assert set(dpo.Loss.__args__) == PAPERS.keys()  # type: ignore[attr-defined]


def cross_entropy(z: np.ndarray, c: np.ndarray | float) -> np.ndarray:
    """Of the judge's probability c against the policy's, sigmoid(z)."""
    return -c * np.log(sigmoid(z)) - (1 - c) * np.log(sigmoid(-z))


@pytest.mark.parametrize(
    ("options", "paper"),
    [
        ({"label_smoothing": 0.2}, lambda w, r, **_: cross_entropy(BETA * (w - r), 0.8)),
        ({"label_smoothing": "confidence"}, lambda w, r, c, **_: cross_entropy(BETA * (w - r), c)),
        (
            {"label_smoothing": "confidence", "loss_type": ("sft", "sigmoid_norm"), "loss_weights": (0.5, 2.0)},
            lambda w, r, nw, nl, pw, c, **_: (
                -0.5 * pw.sum() / nw.sum() + 2 * cross_entropy(BETA * (w / nw - r / nl), c)
            ),
        ),
    ],
)
def test_soft_labels_are_the_cross_entropy_of_the_judge_and_the_policy(
    options: Any, paper: Any, tiny: ModelConfig, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    dpo_agrees(dpo.Config(beta=BETA, **options), paper, tiny, tiny_tokenizer, tmp_path)


def test_sure_labels_are_plain_dpo_bit_for_bit(tiny: ModelConfig, tiny_tokenizer: Any, tmp_path: Path) -> None:
    sure = [each.model_copy(update={"confidence": 1.0}) for each in preferences_of(4)]
    found = []
    for smoothing in (0.0, "confidence"):
        config = dpo.Config(label_smoothing=smoothing)  # type: ignore[arg-type]
        trainer = stirred(config, config.rows(sure), tiny, tiny_tokenizer, tmp_path)
        found.append(measured(trainer, trainer.data_collator(list(trainer.train_dataset))))
    assert found[0][0] == found[1][0]
    assert all(np.array_equal(found[0][1][name], found[1][1][name]) for name in found[0][1])


def test_a_pair_that_may_be_either_way_does_not_move_a_policy_that_is_its_reference(
    tiny: ModelConfig, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    config = dpo.Config(label_smoothing="confidence")
    rows = [{**row, "confidence": 0.5} for row in config.rows(preferences_of(4))]
    setting = Setting(model=load_model(tiny, training=True), tokenizer=tiny_tokenizer, output_dir=tmp_path, seed=1)
    trainer: Any = config.trainer(rows, setting)
    loss, gradients = measured(trainer, trainer.data_collator(list(trainer.train_dataset)))
    assert loss == pytest.approx(np.log(2), abs=1e-6)
    assert max(np.abs(each).max() for each in gradients.values()) < 1e-7


# ---- KTO


def thumbs_of(count: int) -> list[Thumb]:
    return [
        Thumb(prompt=prompt_of(f"Thumb {n}?"), response=response_of("Fine." + "!" * n), good=True) for n in range(count)
    ]


@pytest.mark.parametrize("options", [{}, {"desirable_weight": 1.5, "undesirable_weight": 0.5}])
@pytest.mark.parametrize("clamped", [False, True])
def test_ktos_loss_and_gradient_are_those_of_the_paper(
    options: Any, clamped: bool, tiny: ModelConfig, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    config = kto.Config(beta=BETA, **options)
    rows = config.rows(preferences_of(2), thumbs_of(2))
    trainer = stirred(config, rows, tiny, tiny_tokenizer, tmp_path)
    if not clamped:
        with torch.no_grad():  # the other way round: the mismatched answers become likelier, and the mean is above 0
            for name, parameter in trainer.model.named_parameters():
                if "lora_B" in name:
                    parameter.neg_()
    batch = trainer.data_collator(list(trainer.train_dataset))
    exact = Exact(trainer, tiny_tokenizer)
    found = measured(trainer, batch)

    prompts = [[Message.model_validate(turn) for turn in row["prompt"]] for row in rows]
    answers = [row["completion"][0]["content"] for row in rows]
    own = list(zip(prompts, answers, strict=True))
    mismatched = list(zip(prompts, [answers[-1], *answers[:-1]], strict=True))
    policy_B, reference_B = exact.logprobs(own), exact.logprobs(own, reference=True).numpy()
    with torch.no_grad():
        ratio_B = exact.logprobs(mismatched).numpy() - exact.logprobs(mismatched, reference=True).numpy()
    assert (ratio_B.mean() < 0) == clamped
    reference_point = max(0.0, ratio_B.mean())
    good_B = np.array([row["label"] for row in rows])
    # Four good and two bad: bad ones count twice, unless told otherwise.
    desirable, undesirable = (1.5, 0.5) if options else (1.0, 2.0)

    def loss(policy_B: np.ndarray) -> float:
        """Eq. 8: lambda_y - v(x, y), the reference point a constant."""
        r_B = policy_B - reference_B
        good = desirable * (1 - sigmoid(BETA * (r_B - reference_point)))
        bad = undesirable * (1 - sigmoid(BETA * (reference_point - r_B)))
        return float(np.where(good_B, good, bad).mean())

    at = policy_B.detach().numpy()
    agree(found, loss(at), exact.gradients(policy_B, slope_of(loss, at)))
