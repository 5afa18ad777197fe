"""The mathematics of PPO for language models: pure functions on tensors, with the papers' names and equations.

    PPO      Schulman et al. 2017, arXiv:1707.06347          GAE   Schulman et al. 2015, arXiv:1506.02438
    Ziegler  Ziegler et al. 2019, arXiv:1909.08593           KL    Schulman 2020, "Approximating KL Divergence"

Shapes: B sequences, T tokens of a response, N rows, H hidden, V vocabulary. A response begins in column 0; `mask_BT` is
true for its tokens, the end of turn included. What lies outside of the mask may be anything, NaN included, and changes
nothing. Losses are *sums* over tokens: who calls divides by the number of tokens of the whole optimizer step, so that
neither micro-batches nor processes change a gradient. What is left out: models, sampling, and the loop (`ppo.py`).
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0
"""exp(20) = 5e8 is still finite in fp32, and far outside of every clip range."""


def masked_sum(x_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Sum over the mask; a NaN outside of it is not read."""
    return torch.where(mask_BT, x_BT, 0.0).sum()


def masked_mean(x_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Mean over the mask; 0 where it is empty."""
    return masked_sum(x_BT, mask_BT) / mask_BT.sum().clamp(min=1)


# ---- divergence from the reference, a token (KL)


def k1(logp_BT: Tensor, logp_ref_BT: Tensor) -> Tensor:
    """log pi - log pi_ref: unbiased, of either sign. The one that belongs into a reward."""
    return logp_BT - logp_ref_BT


def k2(logp_BT: Tensor, logp_ref_BT: Tensor) -> Tensor:
    """(log pi - log pi_ref)^2 / 2: its gradient is the divergence's. The one that belongs into a loss."""
    return 0.5 * (logp_BT - logp_ref_BT).square()


def k3(logp_BT: Tensor, logp_ref_BT: Tensor) -> Tensor:
    """r - 1 - log r with r = pi_ref / pi: unbiased and never negative. For watching."""
    log_r_BT = (logp_ref_BT - logp_BT).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return log_r_BT.exp() - 1 - log_r_BT


def next_kl_coef(coef: float, kl: float, *, target: float, horizon: int, episodes: int, start: float) -> float:
    """The coefficient after an update (Ziegler, section 2.2).

    Args:
        kl: mean over sequences of the summed divergence, in nats; not the mean over tokens.
        target: the divergence to steer to, in the same unit.
        horizon: episodes over which an error of 20 % or more is answered by about 20 %.
        episodes: of this update, over all processes.
        start: the first coefficient; the result stays within a factor of 100 of it.
    """
    error = min(max(kl / target - 1.0, -0.2), 0.2)
    return min(max(coef * (1.0 + error * episodes / horizon), start / 100), start * 100)


# ---- rewards and advantages


def token_rewards(score_B: Tensor, logp_BT: Tensor, logp_ref_BT: Tensor, mask_BT: Tensor, kl_coef: float) -> Tensor:
    """R_t = -kl_coef * k1_t, plus the sequence's score at its last token (Ziegler, equation 2)."""
    reward_BT = torch.where(mask_BT, -kl_coef * k1(logp_BT, logp_ref_BT), 0.0)
    last_B1 = (mask_BT.sum(-1, keepdim=True) - 1).clamp(min=0)
    score_B1 = torch.where(mask_BT.any(-1, keepdim=True), score_B[:, None], 0.0)
    return reward_BT.scatter_add(1, last_B1, score_B1.to(reward_BT.dtype))


def advantages(
    reward_BT: Tensor, value_BT: Tensor, mask_BT: Tensor, *, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantages and the returns that the critic learns (GAE, equations 11 and 16).

    A response is an episode, whether it ended by itself or was cut: nothing follows its last token, so a cut one is not
    bootstrapped. That it was cut is told by the penalty in its score.

    Args:
        value_BT: of the state before each token is chosen.

    Returns:
        advantages, and advantages + values; both 0 outside of the mask.
    """
    advantage_BT = torch.zeros_like(reward_BT)
    later_B = torch.zeros_like(reward_BT[:, 0])
    next_value_B = torch.zeros_like(later_B)
    for t in reversed(range(reward_BT.shape[1])):
        delta_B = reward_BT[:, t] + gamma * next_value_B - value_BT[:, t]
        later_B = torch.where(mask_BT[:, t], delta_B + gamma * lam * later_B, 0.0)
        next_value_B = torch.where(mask_BT[:, t], value_BT[:, t], 0.0)
        advantage_BT[:, t] = later_B
    return advantage_BT, torch.where(mask_BT, advantage_BT + value_BT, 0.0)


def whiten(x_BT: Tensor, mask_BT: Tensor, *, keep_mean: bool = False) -> Tensor:
    """Mean 0 and deviation 1 over the mask (population variance), 0 outside; `keep_mean` adds the mean back."""
    mean = masked_mean(x_BT, mask_BT)
    variance = masked_mean((x_BT - mean).square(), mask_BT)
    white_BT = (x_BT - mean) * torch.rsqrt(variance + 1e-8) + (mean if keep_mean else 0.0)
    return torch.where(mask_BT, white_BT, 0.0)


def explained_variance(value_BT: Tensor, return_BT: Tensor, mask_BT: Tensor) -> float:
    """1 - Var(return - value) / Var(return): 1 for a perfect critic, 0 for a constant one, less for a harmful one."""
    returns, errors = return_BT[mask_BT].double(), (return_BT - value_BT)[mask_BT].double()
    spread = returns.var(correction=0)
    return float(1 - errors.var(correction=0) / spread) if spread > 0 else 0.0


def rollout_weights(logp_old_BT: Tensor, logp_sampled_BT: Tensor, cap: float) -> Tensor:
    """min(pi_old / pi_sampled, cap) a token: corrects for a sampler that computes otherwise than the trainer.

    Truncated importance sampling (Ionides 2008; for language models Yao et al. 2025, "Your Efficient RL Framework
    Secretly Brings You Off-Policy RL Training").
    """
    return rollout_ratios(logp_old_BT, logp_sampled_BT).clamp(max=cap)


def rollout_ratios(logp_old_BT: Tensor, logp_sampled_BT: Tensor) -> Tensor:
    """pi_old / pi_sampled a token."""
    return (logp_old_BT - logp_sampled_BT).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


# ---- losses


class PolicyLoss(NamedTuple):
    """Sums over the tokens of the mask."""

    loss: Tensor
    clipped: Tensor
    """Tokens at which the clip decides."""
    approx_kl: Tensor
    """Of (log ratio)^2 / 2."""
    ratio_BT: Tensor
    """pi / pi_old; 1 outside of the mask."""


def policy_loss(
    logp_BT: Tensor,
    logp_old_BT: Tensor,
    advantage_BT: Tensor,
    mask_BT: Tensor,
    *,
    cliprange: float,
    dual_clip: float | None = None,
    weight_BT: Tensor | None = None,
) -> PolicyLoss:
    """The clipped surrogate, negated (PPO, equation 7).

    Args:
        dual_clip: for negative advantages the loss stays below this many times their size (Ye et al. 2019,
            arXiv:1912.09729, equation 5). None: no such limit.
        weight_BT: factors of each token's loss (`rollout_weights`).
    """
    log_ratio_BT = torch.where(mask_BT, logp_BT - logp_old_BT, 0.0).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    advantage_BT = torch.where(mask_BT, advantage_BT, 0.0)
    ratio_BT = log_ratio_BT.exp()
    free_BT = -advantage_BT * ratio_BT
    held_BT = -advantage_BT * ratio_BT.clamp(1 - cliprange, 1 + cliprange)
    loss_BT = torch.maximum(free_BT, held_BT)
    if dual_clip is not None:
        loss_BT = torch.where(advantage_BT < 0, torch.minimum(loss_BT, -dual_clip * advantage_BT), loss_BT)
    if weight_BT is not None:
        loss_BT = loss_BT * torch.where(mask_BT, weight_BT, 0.0)
    return PolicyLoss(
        loss=masked_sum(loss_BT, mask_BT),
        clipped=masked_sum((held_BT > free_BT).float(), mask_BT).detach(),
        approx_kl=masked_sum(0.5 * log_ratio_BT.square(), mask_BT).detach(),
        ratio_BT=ratio_BT.detach(),
    )


def value_loss(
    value_BT: Tensor, value_old_BT: Tensor, return_BT: Tensor, mask_BT: Tensor, *, cliprange: float | None
) -> tuple[Tensor, Tensor]:
    """Half the squared error, the worse of the free and the clipped value (PPO's reference code, `ppo2`).

    Returns:
        sums over the tokens of the mask: the loss, and the tokens at which the clip decides.
    """
    free_BT = (value_BT - return_BT).square()
    if cliprange is None:
        return 0.5 * masked_sum(free_BT, mask_BT), torch.zeros_like(free_BT[0, 0])
    near_BT = value_old_BT + (value_BT - value_old_BT).clamp(-cliprange, cliprange)
    held_BT = (near_BT - return_BT).square()
    clipped = masked_sum((held_BT > free_BT).float(), mask_BT).detach()
    return 0.5 * masked_sum(torch.maximum(free_BT, held_BT), mask_BT), clipped


# ---- log-probabilities and entropies


def logprobs_of(logits_NV: Tensor, ids_N: Tensor, *, temperature: float) -> tuple[Tensor, Tensor]:
    """log softmax(logits / temperature)[id], and the entropy of that softmax, in nats, both of shape (N,)."""
    logp_N, entropy_N, _, _ = _softmax(logits_NV / temperature, ids_N)
    return logp_N, entropy_N


def _softmax(z_NV: Tensor, ids_N: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of p = softmax(z): log p[id], its entropy, p itself, and log sum exp z, with z as it is left: its largest 0."""
    z_NV -= z_NV.amax(-1, keepdim=True)
    p_NV = z_NV.exp()
    # By hand: torch.logsumexp takes ten times as long on a processor.
    total_N1 = p_NV.sum(-1, keepdim=True)
    p_NV /= total_N1
    log_total_N = total_N1.log()[:, 0]
    logp_N = z_NV.gather(-1, ids_N[:, None])[:, 0] - log_total_N
    return logp_N, log_total_N - torch.linalg.vecdot(p_NV, z_NV), p_NV, log_total_N


def selective_logprobs(
    hidden_NH: Tensor,
    head_VH: Tensor,
    ids_N: Tensor,
    *,
    temperature: float,
    entropy_gradient: bool = False,
    rows: int = 128,
) -> tuple[Tensor, Tensor]:
    """log softmax(head hidden / temperature)[id], and the entropy of that softmax, in nats, both fp32 of shape (N,).

    Logits exist for `rows` rows at a time, softmax and sums are fp32. The head is frozen, so the gradient by the hidden
    states is formed on the way forward (the head's row of the token, less its mean under the softmax) and the logits
    need neither be kept nor computed again. Gradients flow to `hidden_NH` alone.

    Args:
        entropy_gradient: let the entropy have a gradient too, at the price of one more product with the head.
    """
    found: tuple[Tensor, Tensor] = _Selective.apply(  # type: ignore[no-untyped-call]
        hidden_NH, head_VH, ids_N, temperature, entropy_gradient, rows
    )
    return found


class _Selective(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        head_VH: Tensor,
        ids_N: Tensor,
        temperature: float,
        entropy_gradient: bool,
        rows: int,
    ) -> tuple[Tensor, Tensor]:
        wanted = ctx.needs_input_grad[0]
        logp, entropy, dlogp, dentropy = [], [], [], []
        for hidden_CH, ids_C in zip(torch.split(hidden_NH, rows), torch.split(ids_N, rows), strict=True):
            z_CV = (hidden_CH.contiguous() @ head_VH.T).to(_wide(head_VH)).div_(temperature)
            logp_C, entropy_C, p_CV, log_total_C = _softmax(z_CV, ids_C)
            logp.append(logp_C)
            entropy.append(entropy_C)
            if wanted:
                # d log p_i / dh = (W_i - sum_j p_j W_j) / T;  dH / dh = -sum_j p_j (log p_j + H) W_j / T
                mean_CH = p_CV.to(head_VH.dtype) @ head_VH
                dlogp.append((head_VH[ids_C].to(z_CV.dtype) - mean_CH) / temperature)
            if wanted and entropy_gradient:
                z_CV.add_((entropy_C - log_total_C)[:, None]).mul_(p_CV)
                dentropy.append((z_CV.to(head_VH.dtype) @ head_VH).to(z_CV.dtype) / -temperature)
        if wanted:
            ctx.save_for_backward(torch.cat(dlogp), torch.cat(dentropy) if dentropy else None)
        ctx.dtype = hidden_NH.dtype
        return torch.cat(logp), torch.cat(entropy)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        dlogp_NH, dentropy_NH = ctx.saved_tensors
        by_logp_N, by_entropy_N = gradients
        by_hidden_NH = by_logp_N[:, None] * dlogp_NH
        if dentropy_NH is not None:
            by_hidden_NH += by_entropy_N[:, None] * dentropy_NH
        return by_hidden_NH.to(ctx.dtype), None, None, None, None, None


def _wide(head_VH: Tensor) -> torch.dtype:
    return torch.promote_types(head_VH.dtype, torch.float32)
