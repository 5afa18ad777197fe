"""PPO's equations give the numbers of pencil and paper, and those of NumPy in float64 written from the papers."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.algorithms import ppo_math as m

NAN = math.nan


def t(*rows: Any) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def ones(rows: int, columns: int) -> Tensor:
    return torch.ones(rows, columns, dtype=torch.bool)


def ragged(seed: int, rows: int = 5, columns: int = 9) -> tuple[Tensor, np.random.Generator]:
    """A mask of responses of random lengths, the longest as wide as the tensor, and the generator for more."""
    random = np.random.default_rng(seed)
    lengths = random.integers(1, columns + 1, size=rows)
    lengths[0] = columns
    return torch.tensor(np.arange(columns)[None] < lengths[:, None]), random


# ---- advantages, by hand


@pytest.mark.parametrize(
    ("gamma", "lam", "expected"),
    [
        (1.0, 0.95, [0.52675, 0.765, 0.7]),
        (0.9, 0.8, [0.17328, 0.574, 0.7]),
        (1.0, 1.0, [0.6, 0.8, 0.7]),
        (1.0, 0.0, [-0.2, 0.1, 0.7]),
    ],
)
def test_advantages_of_three_tokens_by_hand(gamma: float, lam: float, expected: list[float]) -> None:
    # Deltas at gamma 1: -.1 + .4 - .5 = -.2, .2 + .3 - .4 = .1, 1 - .3 = .7; then A = delta + gamma lambda A_next.
    reward, value = t([-0.1, 0.2, 1.0]), t([0.5, 0.4, 0.3])
    advantage, returns = m.advantages(reward, value, ones(1, 3), gamma=gamma, lam=lam)
    assert advantage[0].tolist() == pytest.approx(expected, abs=1e-12)
    assert returns[0].tolist() == pytest.approx([a + v for a, v in zip(expected, [0.5, 0.4, 0.3], strict=True)])


def test_advantages_of_four_tokens_by_hand() -> None:
    # Deltas 0, 0, 0, .5; each earlier advantage is .95 of the next.
    advantage, returns = m.advantages(t([0.0, 0.0, 0.0, 1.0]), t([0.5] * 4), ones(1, 4), gamma=1.0, lam=0.95)
    assert advantage[0].tolist() == pytest.approx([0.4286875, 0.45125, 0.475, 0.5], abs=1e-12)
    assert returns[0].tolist() == pytest.approx([0.9286875, 0.95125, 0.975, 1.0], abs=1e-12)


@pytest.mark.parametrize("junk", [9e9, NAN, math.inf])
def test_what_lies_right_of_a_response_changes_nothing(junk: float) -> None:
    reward = t([-0.1, 0.2, 1.0, junk, -7.0], [0.3, -0.2, 0.1, 0.0, 0.5])
    value = t([0.5, 0.4, 0.3, 123.0, junk], [0.1, 0.2, 0.3, 0.4, 0.5])
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]).bool()
    advantage, returns = m.advantages(reward, value, mask, gamma=1.0, lam=0.95)
    assert advantage[0].tolist() == pytest.approx([0.52675, 0.765, 0.7, 0, 0], abs=1e-12)
    assert advantage[1].tolist() == pytest.approx([0.5712375, 0.18025, 0.295, 0.1, 0.0], abs=1e-7)
    assert returns[0].tolist() == pytest.approx([1.02675, 1.165, 1.0, 0, 0], abs=1e-12)
    white = m.whiten(torch.where(mask, advantage, junk), mask)
    assert white[0].tolist() == pytest.approx([0.50051117, 1.38730013, 1.145364, 0, 0], abs=1e-6)
    assert white[1].tolist() == pytest.approx(
        [0.66609784, -0.78919448, -0.36208416, -1.08789254, -1.46010196], abs=1e-6
    )


def test_whitening_by_hand() -> None:
    white = m.whiten(t([0.52675, 0.765, 0.7]), ones(1, 3))
    assert white[0].tolist() == pytest.approx([-1.36408137, 1.00524344, 0.35883793], abs=1e-5)
    kept = m.whiten(t([0.52675, 0.765, 0.7]), ones(1, 3), keep_mean=True)
    assert (kept - white)[0].tolist() == pytest.approx([0.66391667] * 3, abs=1e-7)


@pytest.mark.parametrize("seed", range(5))
def test_advantages_and_whitening_are_those_of_numpy(seed: int) -> None:
    mask, random = ragged(seed)
    reward, value = random.normal(size=(2, *mask.shape))
    gamma, lam = 0.97, 0.9
    expected = np.zeros(mask.shape)
    for row in range(len(mask)):
        length = int(mask[row].sum())
        for t0 in range(length):  # the sum of the definition, not the recursion
            for later in range(t0, length):
                after = value[row, later + 1] if later + 1 < length else 0.0
                delta = reward[row, later] + gamma * after - value[row, later]
                expected[row, t0] += (gamma * lam) ** (later - t0) * delta
    found, returns = m.advantages(torch.tensor(reward), torch.tensor(value), mask, gamma=gamma, lam=lam)
    assert found.numpy() == pytest.approx(expected, abs=1e-12)
    known = mask.numpy()
    assert returns.numpy()[known] == pytest.approx((expected + value)[known], abs=1e-12)
    white = m.whiten(found, mask).numpy()[known]
    assert white == pytest.approx((expected[known] - expected[known].mean()) / expected[known].std(), abs=1e-6)


def test_an_answer_of_one_token_is_an_episode() -> None:
    advantage, returns = m.advantages(t([2.0, NAN]), t([0.5, NAN]), t([1, 0]).bool(), gamma=1.0, lam=0.95)
    assert (advantage.tolist(), returns.tolist()) == ([[1.5, 0.0]], [[2.0, 0.0]])


# ---- divergence and rewards


def test_the_three_estimators_by_hand() -> None:
    p, q = t([0.5, 0.25, 0.8]).log(), t([0.4, 0.5, 0.8]).log()
    assert m.k1(p, q)[0].tolist() == pytest.approx([0.22314355, -0.69314718, 0.0], abs=1e-8)
    assert m.k2(p, q)[0].tolist() == pytest.approx([0.02489652, 0.24022651, 0.0], abs=1e-8)
    assert m.k3(p, q)[0].tolist() == pytest.approx([0.02314355, 0.30685282, 0.0], abs=1e-8)


def test_the_score_goes_to_the_last_token_and_the_divergence_to_each() -> None:
    p, q = t([0.5, 0.25, 0.8], [0.5, 0.25, 0.8]).log(), t([0.4, 0.5, 0.8], [0.4, 0.5, 0.8]).log()
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]]).bool()
    p[1, 2] = NAN
    reward = m.token_rewards(t(2.0, 2.0), p, q, mask, 0.1)
    assert reward[0].tolist() == pytest.approx([-0.02231436, 0.06931472, 2.0], abs=1e-8)
    assert reward[1].tolist() == pytest.approx([-0.02231436, 2.06931472, 0.0], abs=1e-8)


def test_a_sequence_without_a_score_has_no_rewards() -> None:
    reward = m.token_rewards(t(NAN), t([NAN, NAN]), t([0.0, 0.0]), t([0, 0]).bool(), 0.1)
    assert reward.tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize(("kl", "expected"), [(12.0, 0.200512), (6.0 * 1.3, 0.200512), (3.0, 0.199488), (6.0, 0.2)])
def test_the_coefficient_follows_the_divergence_of_a_sequence(kl: float, expected: float) -> None:
    # .2 x (1 + clip(kl / 6 - 1, -.2, .2) x 128 / 10000)
    found = m.next_kl_coef(0.2, kl, target=6.0, horizon=10_000, episodes=128, start=0.2)
    assert found == pytest.approx(expected, abs=1e-12)


def test_the_coefficient_stays_within_a_hundred_times_its_start() -> None:
    far = {"target": 6.0, "horizon": 1, "episodes": 1000, "start": 0.2}
    assert m.next_kl_coef(19.0, 60.0, **far) == pytest.approx(20.0)  # type: ignore[arg-type]
    assert m.next_kl_coef(0.003, 0.0, **far) == pytest.approx(0.002)  # type: ignore[arg-type]


def test_the_weight_of_a_token_that_was_sampled_otherwise_is_bounded() -> None:
    weights = m.rollout_weights(t([0.5, 0.1, 0.4]).log(), t([0.25, 0.4, 0.1]).log(), cap=2.0)
    assert weights[0].tolist() == pytest.approx([2.0, 0.25, 2.0])


def test_weights_undo_the_bias_of_a_sampler_that_computes_another_distribution() -> None:
    # E over q of (p / q) f = E over p of f, as long as the bound is not reached.
    p, q, f = t([0.5, 0.3, 0.2])[0], t([0.4, 0.35, 0.25])[0], t([1.0, -2.0, 3.0])[0]
    weighted = (q * m.rollout_weights(p.log(), q.log(), cap=2.0) * f).sum()
    assert float(weighted) == pytest.approx(float((p * f).sum()), abs=1e-12)


# ---- losses


def policy(ratio: list[float], advantage: list[float], **options: Any) -> m.PolicyLoss:
    return m.policy_loss(t(ratio).log(), t([0.0] * len(ratio)), t(advantage), ones(1, len(ratio)), **options)


def test_the_clipped_policy_loss_by_hand() -> None:
    found = policy([1.5, 0.5, 1.5, 0.5, 1.0], [1.0, 1.0, -1.0, -1.0, 2.0], cliprange=0.2)
    assert float(found.loss) == pytest.approx(-1.2 - 0.5 + 1.5 + 0.8 - 2.0, abs=1e-12)
    assert float(found.clipped) == 2
    assert float(found.approx_kl) == pytest.approx(sum(0.5 * math.log(r) ** 2 for r in (1.5, 0.5, 1.5, 0.5, 1.0)))


def test_a_bad_token_costs_at_most_the_dual_clip() -> None:
    assert float(policy([9.0], [-1.0], cliprange=0.2).loss) == pytest.approx(9.0)
    assert float(policy([9.0], [-1.0], cliprange=0.2, dual_clip=3.0).loss) == pytest.approx(3.0)
    assert float(policy([9.0], [1.0], cliprange=0.2, dual_clip=3.0).loss) == pytest.approx(-1.2)


def test_weights_multiply_the_loss_of_their_token() -> None:
    found = policy([1.0, 1.0], [1.0, 3.0], cliprange=0.2, weight_BT=t([0.5, 2.0]))
    assert float(found.loss) == pytest.approx(-6.5)


def test_the_value_loss_by_hand() -> None:
    new, old, returns = t([0.9, 0.2, 0.5]), t([0.5, 0.5, 0.5]), t([1.0, 1.0, 0.0])
    loss, clipped = m.value_loss(new, old, returns, ones(1, 3), cliprange=0.2)
    assert float(loss) == pytest.approx(0.5 * (0.09 + 0.64 + 0.25), abs=1e-12)
    assert float(clipped) == 1
    free, none = m.value_loss(new, old, returns, ones(1, 3), cliprange=None)
    assert (float(free), float(none)) == (pytest.approx(0.5 * (0.01 + 0.64 + 0.25)), 0)


@pytest.mark.parametrize("seed", range(5))
def test_losses_and_their_gradients_are_those_of_numpy(seed: int) -> None:
    mask, random = ragged(seed)
    known = mask.numpy()
    logp, old, advantage, value, value_old, returns = random.normal(size=(6, *mask.shape))
    ratio = np.exp(logp - old)
    free, held = -advantage * ratio, -advantage * np.clip(ratio, 0.8, 1.2)
    loss = np.maximum(free, held)[known].sum()
    # d/dlogp = -A ratio where the free loss is the larger one, else 0 (the clipped ratio is constant).
    slope = np.where(known & (free >= held), free, 0.0)
    leaf = torch.tensor(logp, requires_grad=True)
    found = m.policy_loss(leaf, torch.tensor(old), torch.tensor(advantage), mask, cliprange=0.2)
    found.loss.backward()
    assert float(found.loss.detach()) == pytest.approx(loss, abs=1e-10)
    assert leaf.grad is not None
    assert leaf.grad.numpy() == pytest.approx(slope, abs=1e-10)

    near = value_old + np.clip(value - value_old, -0.2, 0.2)
    worse = np.maximum((value - returns) ** 2, (near - returns) ** 2)
    inside = np.abs(value - value_old) < 0.2
    slope = np.where(
        (value - returns) ** 2 >= (near - returns) ** 2, value - returns, np.where(inside, near - returns, 0)
    )
    leaf = torch.tensor(value, requires_grad=True)
    total, _ = m.value_loss(leaf, torch.tensor(value_old), torch.tensor(returns), mask, cliprange=0.2)
    total.backward()
    assert float(total.detach()) == pytest.approx(0.5 * worse[known].sum(), abs=1e-10)
    assert leaf.grad is not None
    assert leaf.grad.numpy() == pytest.approx(np.where(known, slope, 0.0), abs=1e-10)


def test_at_the_policy_that_sampled_the_loss_is_that_of_policy_gradient() -> None:
    # Ratio 1: loss -sum A, gradient -A.
    logp, advantage = t([-1.0, -2.0, -0.5]).requires_grad_(), t([0.3, -1.0, 2.0])
    found = m.policy_loss(logp, logp.detach(), advantage, ones(1, 3), cliprange=0.2)
    found.loss.backward()  # type: ignore[no-untyped-call]
    assert float(found.loss.detach()) == pytest.approx(-1.3)
    assert torch.equal(logp.grad, -advantage)  # type: ignore[arg-type]
    assert (float(found.clipped), float(found.approx_kl), found.ratio_BT.tolist()) == (0, 0, [[1, 1, 1]])


def test_nan_outside_of_the_mask_reaches_neither_the_loss_nor_the_gradient_of_a_token() -> None:
    mask = torch.tensor([[1, 1, 0]]).bool()
    logp, value = t([-1.0, -2.0, NAN]).requires_grad_(), t([0.1, 0.2, NAN]).requires_grad_()
    found = m.policy_loss(logp, t([-1.1, -1.9, NAN]), t([1.0, 1.0, NAN]), mask, cliprange=0.2)
    total, _ = m.value_loss(value, t([0.0, 0.0, NAN]), t([1.0, 1.0, NAN]), mask, cliprange=0.2)
    (found.loss + total).backward()  # type: ignore[no-untyped-call]
    assert math.isfinite(float((found.loss + total).detach()))
    for leaf in (logp, value):
        assert leaf.grad is not None
        assert leaf.grad[0, :2].isfinite().all()


def test_explained_variance_is_one_for_a_perfect_critic_and_zero_for_a_constant_one() -> None:
    returns, mask = t([1.0, 2.0, 4.0, NAN]), torch.tensor([[1, 1, 1, 0]]).bool()
    assert m.explained_variance(returns, returns, mask) == 1
    assert m.explained_variance(t([3.0] * 4), returns, mask) == pytest.approx(0)
    assert m.explained_variance(-returns, returns, mask) == pytest.approx(-3)
    assert m.explained_variance(returns, t([2.0] * 4), mask) == 0


# ---- log-probabilities without the table


def test_selective_log_probabilities_by_hand() -> None:
    # Logits 1, 2, 3 through an identity head.
    hidden, head = t([1.0, 2.0, 3.0]), torch.eye(3, dtype=torch.float64)
    for temperature, expected in ((1.0, -0.40760596), (0.7, -0.26011840)):
        logp, entropy = m.selective_logprobs(hidden, head, torch.tensor([2]), temperature=temperature)
        assert float(logp) == pytest.approx(expected, abs=1e-8)
        if temperature == 1:
            assert float(entropy) == pytest.approx(0.83239558, abs=1e-8)


@pytest.mark.parametrize("rows", [1, 3, 128])
@pytest.mark.parametrize("entropy_gradient", [False, True])
def test_selective_log_probabilities_and_gradients_are_those_of_the_whole_table(
    rows: int, entropy_gradient: bool
) -> None:
    random = torch.Generator().manual_seed(rows)
    hidden = torch.randn(7, 5, generator=random, dtype=torch.float64, requires_grad=True)
    head = torch.randn(11, 5, generator=random, dtype=torch.float64)
    ids = torch.randint(11, (7,), generator=random)
    weights = torch.randn(2, 7, generator=random, dtype=torch.float64)

    def value(logp: Tensor, entropy: Tensor) -> Tensor:
        return (weights[0] * logp).sum() + (weights[1] * (entropy if entropy_gradient else entropy.detach())).sum()

    found = m.selective_logprobs(hidden, head, ids, temperature=0.7, entropy_gradient=entropy_gradient, rows=rows)
    (slope,) = torch.autograd.grad(value(*found), hidden)
    table = (hidden @ head.T / 0.7).log_softmax(-1)
    expected = table.gather(-1, ids[:, None])[:, 0], -(table.exp() * table).sum(-1)
    (true_slope,) = torch.autograd.grad(value(*expected), hidden)
    for one, other in zip((*found, slope), (*expected, true_slope), strict=True):
        assert torch.allclose(one, other, atol=1e-12)


def test_selective_log_probabilities_of_bf16_states_are_summed_in_fp32() -> None:
    random = torch.Generator().manual_seed(1)
    hidden, head = (torch.randn(n, 32, generator=random).bfloat16() for n in (6, 4096))
    ids = torch.randint(4096, (6,), generator=random)
    logp, entropy = m.selective_logprobs(hidden, head, ids, temperature=1.0)
    exact = (hidden @ head.T).double().log_softmax(-1)
    assert logp.dtype == entropy.dtype == torch.float32
    assert torch.allclose(logp.double(), exact.gather(-1, ids[:, None])[:, 0], atol=1e-5)
    assert torch.allclose(entropy.double(), -(exact.exp() * exact).sum(-1), atol=1e-4)


# ---- a problem whose answer is known


def learned_bandit(kl_in: str, estimator: Any, seed: int) -> float:
    """Total variation between what our losses learn and pi_ref exp(r / beta), on one prompt with eight answers."""
    random = torch.Generator().manual_seed(seed)
    beta, reward_K = 0.5, torch.rand(8, generator=random, dtype=torch.float64) * 2
    ref_K = torch.randn(8, generator=random, dtype=torch.float64).log_softmax(-1)
    optimum_K = (ref_K + reward_K / beta).softmax(-1)
    logits_K = ref_K.clone().requires_grad_()
    updates, episodes = 300, 512
    optimizer = torch.optim.Adam([logits_K], lr=0.03)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: 1 - update / updates)
    for _ in range(updates):
        old_K = logits_K.detach().log_softmax(-1)
        arm_B = torch.multinomial(old_K.exp(), episodes, replacement=True, generator=random)
        logp_old, logp_ref, mask = old_K[arm_B][:, None], ref_K[arm_B][:, None], ones(episodes, 1)
        score_B = reward_K[arm_B]
        if kl_in == "reward":
            reward_B1 = score_B[:, None] - beta * estimator(logp_old, logp_ref)
            if estimator is m.k1:
                assert torch.allclose(reward_B1, m.token_rewards(score_B, logp_old, logp_ref, mask, beta))
        else:
            reward_B1 = score_B[:, None]
        advantage, _ = m.advantages(reward_B1, torch.zeros_like(reward_B1), mask, gamma=1.0, lam=0.95)
        advantage = advantage - advantage.mean()
        for minibatch in torch.randperm(episodes, generator=random).split(256):
            logp = logits_K.log_softmax(-1)[arm_B[minibatch]][:, None]
            loss = m.policy_loss(logp, logp_old[minibatch], advantage[minibatch], mask[minibatch], cliprange=0.2).loss
            if kl_in == "loss":
                loss = loss + beta * estimator(logp, logp_ref[minibatch]).sum()
            optimizer.zero_grad()
            (loss / len(minibatch)).backward()
            optimizer.step()
        schedule.step()
    return float(0.5 * (logits_K.detach().softmax(-1) - optimum_K).abs().sum())


@pytest.mark.parametrize(("kl_in", "estimator"), [("reward", m.k1), ("loss", m.k2)])
def test_a_bandit_with_a_known_optimum_is_learned_within_two_percent(kl_in: str, estimator: Any) -> None:
    assert learned_bandit(kl_in, estimator, seed=0) < 0.02


@pytest.mark.parametrize(("kl_in", "estimator"), [("reward", m.k3), ("loss", m.k1)])
def test_the_combinations_that_are_refused_end_elsewhere(kl_in: str, estimator: Any) -> None:
    assert learned_bandit(kl_in, estimator, seed=0) > 0.1
