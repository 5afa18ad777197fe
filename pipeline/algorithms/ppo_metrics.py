"""An update of PPO in numbers, for metrics.jsonl, the guards and the line on the terminal.

What is left out: which numbers are too large (`ppo_guards.py`).
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.algorithms import ppo_math
from pipeline.algorithms.ppo_math import masked_mean
from pipeline.algorithms.ppo_rollout import Batch, Episode

Line = dict[str, Any]


def of_batch(batch: Batch, kl_coef: float) -> Line:
    """What the answers of an update were like, before anything was learned from them.

    Lengths are in tokens, divergences in nats; `kl` is of a whole answer, `reward` the normalised score less its price.
    """
    episodes, mask_BT, count = batch.episodes, batch.mask_BT, len(batch.episodes)
    kl_BT = ppo_math.k1(batch.logp_BT, batch.logp_ref_BT)
    sound_B = mask_BT.any(-1)
    kl_B = torch.where(mask_BT, kl_BT, 0.0).sum(-1)[sound_B]
    score_B, raw_B = batch.score_B[sound_B], batch.raw_B[sound_B]
    length_B = torch.tensor([float(len(episode.answer)) for episode in episodes])
    return {
        "score": mean(raw_B),
        "score_sd": float(raw_B.std(correction=0)) if len(raw_B) else 0.0,
        "score_normalized": mean(score_B),
        "reward": mean(score_B - kl_coef * kl_B),
        "kl": mean(kl_B),
        "kl_token": float(masked_mean(kl_BT, mask_BT)),
        "k3_token": float(masked_mean(ppo_math.k3(batch.logp_BT, batch.logp_ref_BT), mask_BT)),
        "entropy": float(masked_mean(batch.entropy_BT, mask_BT)),
        "length": mean(length_B),
        "length_sd": float(length_B.std(correction=0)),
        "ended": sum(not episode.truncated for episode in episodes) / count,
        "empty": sum(len(each.answer) == 1 and not each.truncated for each in episodes) / count,
        "distinct_2": _distinct_pairs(episodes),
        "score_length_correlation": _correlation(raw_B, length_B[sound_B]),
        "explained_variance": ppo_math.explained_variance(batch.value_BT, batch.return_BT, mask_BT),
        **_mismatch(batch),
        "skipped": float((~sound_B).float().mean()),
    }


def _mismatch(batch: Batch) -> dict[str, float]:
    """How far trainer and sampler are apart, a token, over the sampler's own tokens.

    `mismatch` is the mean of |log p - log q|, `mismatch_kl` estimates KL(q || p) as k3 does, with q the sampler's and p
    the trainer's probability; then the largest p / q, and the share of tokens whose weight is truncated.
    """
    logp_BT, logq_BT, mask_BT = batch.logp_BT, batch.sampled_BT, batch.mask_BT
    ratio_BT = torch.where(mask_BT, ppo_math.rollout_ratios(logp_BT, logq_BT), 0.0)
    truncated_BT = torch.zeros_like(ratio_BT) if batch.weight_BT is None else (ratio_BT > batch.weight_BT).float()
    return {
        "mismatch": float(masked_mean((logp_BT - logq_BT).abs(), mask_BT)),
        "mismatch_kl": float(masked_mean(ppo_math.k3(logq_BT, logp_BT), mask_BT)),
        "mismatch_ratio_max": float(ratio_BT.max()),
        "mismatch_truncated": float(masked_mean(truncated_BT, mask_BT)),
    }


@dataclass(frozen=True)
class Learned:
    """Sums over the tokens of a minibatch, and how far its ratios went down and up."""

    tokens: int
    policy_loss: float
    clipped: float
    approx_kl: float
    value_loss: float
    value_clipped: float
    log_ratio_down: float
    log_ratio_up: float


def summary(done: Sequence[Learned], norms: Sequence[tuple[float, float]], epochs: int) -> Line:
    """Means over all tokens that were learned from, counted as often as they were.

    Args:
        norms: of the policy's and the critic's gradient, an optimizer step.
        epochs: how many were finished.
    """
    tokens = sum(each.tokens for each in done)

    def share(name: str) -> float:
        return float(sum(getattr(each, name) for each in done) / tokens)

    known = [pair for pair in norms if all(map(math.isfinite, pair))]
    return {
        "policy_loss": share("policy_loss"),
        "value_loss": share("value_loss"),
        "approx_kl": share("approx_kl"),
        "clipped": share("clipped"),
        "value_clipped": share("value_clipped"),
        "ratio_min": math.exp(-max(each.log_ratio_down for each in done)),
        "ratio_max": math.exp(max(each.log_ratio_up for each in done)),
        "grad_norm": sum(pair[0] for pair in known) / max(len(known), 1),
        "critic_grad_norm": sum(pair[1] for pair in known) / max(len(known), 1),
        "epochs": epochs,
        "steps": len(known),
        "steps_skipped": len(norms) - len(known),
    }


def mean(x: Tensor) -> float:
    """0 of nothing."""
    return float(x.double().mean()) if len(x) else 0.0


def _correlation(x_B: Tensor, y_B: Tensor) -> float:
    """Pearson's; 0 where one of them does not vary."""
    if len(x_B) < 2:
        return 0.0
    x_B, y_B = x_B.double() - x_B.double().mean(), y_B.double() - y_B.double().mean()
    scale = float(x_B.norm() * y_B.norm())
    return float(x_B @ y_B) / scale if scale > 0 else 0.0


def _distinct_pairs(episodes: Sequence[Episode]) -> float:
    """Different pairs of neighbouring tokens, as a share of all; low where answers repeat themselves or each other."""
    pairs = [pair for episode in episodes for pair in itertools.pairwise(episode.answer)]
    return len(set(pairs)) / len(pairs) if pairs else 0.0


def scored(raw_B: Tensor) -> dict[str, float]:
    """The mean score of held-out answers over those that have one, and the share of those that have none."""
    known_B = raw_B[raw_B.isfinite()]
    found = {"skipped": (len(raw_B) - len(known_B)) / len(raw_B)}
    return {"score": mean(known_B), **found} if len(known_B) else found


def judgement(judged: Sequence[float], at_start: Sequence[float | None]) -> dict[str, float]:
    """The judge's mean, and the standard error of its change since the start, over what it could judge both times.

    Nothing, where that is fewer than two.
    """
    both = [(now, then) for now, then in zip(judged, at_start, strict=True) if then is not None and not math.isnan(now)]
    if len(both) < 2:
        return {}
    changes = torch.tensor([now - then for now, then in both], dtype=torch.float64)
    error = float(changes.std(correction=1)) / math.sqrt(len(both))
    return {"judge": sum(now for now, _ in both) / len(both), "judge_error": error}


def note(line: Line, seconds: dict[str, float]) -> str:
    """What the terminal shows beside the bar."""
    spent = " ".join(f"{name} {time:.1f}" for name, time in seconds.items())
    return (
        f"score {line['score']:.3f}  KL {line['kl']:.2f}  entropy {line['entropy']:.2f}  {line['length']:.0f} tokens, "
        f"{line['ended']:.0%} end  ({spent} s)"
    )
