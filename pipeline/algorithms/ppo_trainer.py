"""PPO's loop: sample, score, compare with the reference, learn, and again. See `ppo_options.py` for the options.

The file reads from the top down: `train`, then `update` in seven numbered steps, then each step. Every process holds
the whole batch of episodes, which is small, and computes its share of each micro-batch; so whitening, normalisers and
the divergence are global by construction, and the only tensors that travel are scores, log-probabilities and the flat
gradient. What is left out: the mathematics (`ppo_math.py`), the models (`ppo_roles.py`), answers (`ppo_rollout.py`),
metrics (`ppo_metrics.py`), checkpoints (`ppo_state.py`), limits (`ppo_guards.py`), a server (`ppo_server.py`).
"""

import contextlib
import itertools
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from judges.base import Scorer
from pipeline.algorithms import ppo_guards, ppo_math, ppo_metrics, ppo_state
from pipeline.algorithms.checkpoints import Checkpoints, save_adapter
from pipeline.algorithms.ppo_completion import Sampling
from pipeline.algorithms.ppo_math import masked_sum
from pipeline.algorithms.ppo_metrics import Learned, Line, mean
from pipeline.algorithms.ppo_options import Options
from pipeline.algorithms.ppo_packing import Packed, pack, pack_ends
from pipeline.algorithms.ppo_roles import Roles
from pipeline.algorithms.ppo_rollout import (
    Batch,
    Episode,
    Task,
    mask_of,
    minibatches,
    roll_out,
    roll_out_served,
    take,
)
from pipeline.algorithms.ppo_server import Server
from pipeline.algorithms.ppo_state import Progress, Trained
from pipeline.algorithms.ranks import Ranks
from pipeline.errors import TrainingError
from pipeline.progress import Bar
from pipeline.records import seed_of

SAME = 1e-3
"""How far the first minibatch's log-probabilities may be from those of the same weights a moment before. On one
machine they are the same bits, or of the same sums in fp32 taken in another order; beyond this something differs
between the two, and every ratio is wrong."""


FP16_SCALE = 2.0**10
"""Losses are multiplied by this before the backward pass of a model that computes in fp16, and gradients divided."""


class PPOTrainer:
    """One training run."""

    def __init__(
        self,
        config: Options,
        roles: Roles,
        tokenizer: Any,
        tasks: Sequence[Task],
        *,
        heldout: Sequence[Task] = (),
        reward: Scorer | None,
        judge: Scorer | None = None,
        server: Server | None = None,
        eos: frozenset[int],
        seed: int,
        checkpoints: Checkpoints,
        step: str,
    ) -> None:
        """Args:
        tasks: the training prompts.
        heldout: prompts that are only evaluated on, by the reward and by the judge.
        reward: None if it is a model among the roles.
        server: samples the answers. None: the policy does, here.
        eos: what ends an answer.
        checkpoints: what a killed run left, and where this one leaves its own.
        step: the step's name, for messages.
        """
        self.config, self.roles, self.tokenizer, self.step = config, roles, tokenizer, step
        self.tasks, self.heldout = list(tasks), list(heldout)
        self.reward, self.judge, self.eos, self.seed, self.checkpoints = reward, judge, eos, seed, checkpoints
        self.server = server
        self.ranks = Ranks()
        self.device = roles.base.device
        # In fp16 the gradient of one token among thousands would be rounded to zero on its way back.
        self.scale = FP16_SCALE if roles.base.dtype == torch.float16 else 1.0
        named = roles.trained()
        self.trained = {
            "policy": Trained(named["policy"], learning_rate=config.learning_rate, betas=config.betas),
            "critic": Trained(named["critic"], learning_rate=config.critic_rate, betas=config.betas),
        }
        self.episodes = config.episodes
        self.total = config.updates(len(self.tasks), self.episodes)
        self.schedule = config.schedule(self.total)
        self.progress = Progress(kl_coef=config.kl_coef)
        self.seconds: dict[str, float] = {}
        """What the latest update spent, by phase."""
        self.log: Callable[[Line, int], None] = lambda line, update: None
        """Called with each line of metrics and the number of its update."""

    def train(self) -> list[Line]:
        """All updates, from the newest checkpoint on. Returns a line of metrics an update.

        Raises:
            TrainingError: a guard stopped it, or the server that samples did.
        """
        with self.server if self.server is not None and self.ranks.rank == 0 else contextlib.nullcontext():
            return self._train()

    def _train(self) -> list[Line]:
        kept = ppo_state.restore(self.checkpoints, self.trained)
        if kept is not None:
            self.progress = kept
        else:
            self._begin()
        with Bar(self.step, total=self.total) as bar:
            bar.at(self.progress.update)
            while self.progress.update < self.total and not self.spent():
                line = self.update()
                bar.at(self.progress.update, ppo_metrics.note(line, self.seconds))
                if self.ranks.rank == 0:
                    self.log({**line, **{f"seconds/{n}": s for n, s in self.seconds.items()}}, self.progress.update)
                self._evaluate()
                if self.progress.update % self.config.save_steps == 0 and self.progress.update < self.total:
                    self._save()
        return self.progress.metrics

    def spent(self) -> bool:
        """Whether the budget of divergence is; one update is too noisy to say."""
        latest = self.progress.metrics[-3:]
        budget = self.config.kl_budget
        return budget is not None and len(latest) == 3 and sum(line["kl"] for line in latest) / 3 >= budget

    def update(self) -> Line:
        """One update of the policy and the critic; a line of metrics.

        Raises:
            TrainingError: a guard stopped it.
        """
        number = self.progress.update
        self.seconds = {}
        self._seed("update", number)
        # 1. Prompts.
        tasks = take(self.tasks, self.episodes, number, self.seed)
        with self.roles.fixed():
            # 2. Answers.
            with self._timed("rollout"):
                episodes = self._answers(tasks, seed_of(self.seed, "rollout", number))
            # 3. Scores.
            with self._timed("score"):
                raw_B = self.scores(episodes)
            # 4. Log-probabilities and values, by the passes of the first epoch.
            with self._timed("compare"):
                batch = self.compare(episodes, raw_B, number)
        # 5. Rewards and advantages.
        self.judge_tokens(batch)
        # 6. Epochs of minibatches.
        with self._timed("learn"):
            learned = self.learn(batch, number)
        # 7. Metrics, guards, the coefficient of the next update.
        line = self._line(batch, learned)
        self.progress.update += 1
        self.progress.metrics.append(line)
        self._guard(line)
        self._adapt(line["kl"])
        return line

    # ---- before the first update

    def _begin(self) -> None:
        """Take the measure of the policy as it is: how it scores, how long its answers are."""
        self._seed("begin")
        count = self.config.normalize_samples if self.config.normalize_scores else self.episodes
        tasks = take(self.tasks, count, 0, seed_of(self.seed, "begin"))
        with self.roles.fixed():
            episodes = self._answers(tasks, seed_of(self.seed, "begin", "rollout"))
            raw_B = self.scores(episodes)
            self.progress.told = self._tells(episodes)
        known_B = raw_B[raw_B.isfinite()].double()
        if len(known_B) < 2 or float(known_B.std(correction=0)) == 0:
            raise TrainingError(
                f"{self.step}: {len(known_B)} of {count} answers of the untrained policy have a score, and all have "
                "the same; there is nothing to learn from this reward"
            )
        mean, deviation = float(known_B.mean()), float(known_B.std(correction=0))
        if self.config.normalize_scores:
            self.progress.score_mean, self.progress.score_deviation = mean, deviation
        lengths = [len(episode.answer) for episode in episodes]
        self.progress.start = {
            "score": mean,
            "score_deviation": deviation,
            "length": sum(lengths) / count,
            "ended": sum(not episode.truncated for episode in episodes) / count,
        }
        self.roles.start_critic(self.progress.score_mean, self.progress.score_deviation)
        self._evaluate()

    @torch.no_grad()
    def _tells(self, episodes: list[Episode]) -> bool:
        """Whether the policy says in a pass over some answers what it told while it sampled; it needs no other then."""
        if not all(episode.told for episode in episodes):
            return False
        own = list(range(len(episodes)))[self.ranks.rank :: self.ranks.world]
        own = own[: self.config.per_device_train_batch_size]
        gap = torch.zeros(1)
        if own:
            with self.roles.acting("policy"):
                logp_N, _, _ = self.roles.logprobs(self._pack(episodes, own), self.config.temperature)
            gap[0] = (logp_N - self._sampled([episodes[index] for index in own])).abs().max()
        return bool(self.ranks.max_(gap) <= SAME / 10)

    # ---- 2. answers

    def _answers(self, tasks: Sequence[Task], seed: int) -> list[Episode]:
        if self.server is not None:
            return self._served(self.server, tasks, seed)
        return roll_out(
            self.roles,
            tasks,
            eos=self.eos,
            max_new_tokens=self.config.max_new_tokens,
            temperature=self.config.temperature,
            batch_size=self.config.rollout_batch_size,
            seed=seed,
            ranks=self.ranks,
        )

    def _served(self, server: Server, tasks: Sequence[Task], seed: int) -> list[Episode]:
        """The answers of the policy's weights as they are now, on the server."""
        policy, config = self.roles.model.peft_config["policy"], self.config
        if self.ranks.rank == 0:
            name = server.name_of(self.progress.update, self.trained["policy"].digest())
            base = str(policy.base_model_name_or_path)
            server.push(name, lambda folder: save_adapter(self.roles.model, folder, base, "policy"))
        server.adapter = self.ranks.first(server.adapter)  # nobody asks before it is there
        vocabulary = self.roles.base.get_output_embeddings().weight.shape[0]
        sampling = Sampling(config.temperature, config.max_new_tokens, self.eos, vocabulary)
        return roll_out_served(server, tasks, sampling=sampling, seed=seed, ranks=self.ranks)

    # ---- 3. scores

    def scores(self, episodes: Sequence[Episode]) -> Tensor:
        """(B,), as the reward gives them; NaN where it could not tell. Each process asks about its share."""
        if self.reward is not None:
            return self._asked(self.reward, episodes)
        raw_B = torch.zeros(len(episodes))
        order = sorted(range(len(episodes)), key=lambda i: (len(episodes[i].task.ids) + len(episodes[i].answer), i))
        size = self.config.per_device_train_batch_size * self.ranks.world
        for start in range(0, len(order), size):
            own = order[start : start + size][self.ranks.rank :: self.ranks.world]
            if own:
                raw_B[own] = self.roles.scores(self._pack(episodes, own, pack_ends)).cpu()
        return self.ranks.sum_(raw_B)

    def _normalised(self, raw_B: Tensor, episodes: Sequence[Episode]) -> Tensor:
        """Score, less the untrained policy's mean, over its deviation; clipped; less the penalty for no end."""
        score_B = (raw_B - self.progress.score_mean) / self.progress.score_deviation
        if self.config.score_clip is not None:
            score_B = score_B.clamp(-self.config.score_clip, self.config.score_clip)
        truncated_B = torch.tensor([episode.truncated for episode in episodes])
        return score_B - self.config.missing_eos_penalty * truncated_B.float()

    # ---- 4. log-probabilities and values

    @torch.no_grad()
    def compare(self, episodes: list[Episode], raw_B: Tensor, number: int) -> Batch:
        """The batch with what policy, reference and critic say about each token before anything is learned.

        The passes are those of the first epoch, micro-batch by micro-batch, so that its first ratios are exactly 1;
        they are 1 to rounding where the policy told as it sampled, and needs no pass.
        """
        mask_BT = mask_of(episodes)
        found = torch.zeros(4, *mask_BT.shape)
        for group in itertools.chain(*self._minibatches(episodes, number, epoch=0)):
            own = group[self.ranks.rank :: self.ranks.world]
            if not own:
                continue
            packed = self._pack(episodes, own)
            with self.roles.acting(self.roles.reference):
                logp_ref_N, _, _ = self.roles.logprobs(packed, self.config.temperature)
            place = _places(episodes, own)
            said = self._said([episodes[index] for index in own], packed)
            found[:, place[0], place[1]] = torch.stack([logp_ref_N, *said]).cpu()
        logp_ref_BT, logp_BT, entropy_BT, value_BT = self.ranks.sum_(found)
        sampled_BT = torch.zeros(mask_BT.shape)
        for row, episode in enumerate(episodes):
            sampled_BT[row, : len(episode.answer)] = torch.tensor(episode.sampled)
        score_B = self._normalised(raw_B, episodes)
        # What has no finite score, or no finite log-probability, is left out of everything.
        sound_B = score_B.isfinite() & found.sum(0).isfinite().all(-1)
        return Batch(
            episodes, mask_BT & sound_B[:, None], logp_BT, logp_ref_BT, entropy_BT, value_BT, sampled_BT, raw_B, score_B
        )

    def _said(self, episodes: Sequence[Episode], packed: Packed) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probability and entropy of each token under the policy, and the critic's value of the state before it."""
        shared = self.roles.critic == "policy"
        if self.progress.told:
            told_NK = torch.tensor([token for episode in episodes for token in episode.told], device=self.device)
            logp_N, (entropy_N, *values) = self._sampled(episodes), told_NK.T
            value_N = values[0] if shared else None
        else:
            with self.roles.acting("policy"):
                logp_N, entropy_N, states_NH = self.roles.logprobs(packed, self.config.temperature)
            value_N = self.roles.values(states_NH) if shared else None
        if value_N is None:
            with self.roles.acting("critic"):
                value_N = self.roles.values(self.roles.states(packed))
        return logp_N, entropy_N, value_N

    def _sampled(self, episodes: Sequence[Episode]) -> Tensor:
        """The sampler's log-probability of each token."""
        return torch.tensor([logp for episode in episodes for logp in episode.sampled], device=self.device)

    # ---- 5. rewards and advantages

    def judge_tokens(self, batch: Batch) -> None:
        """Spread each score over the tokens that earned it."""
        config = self.config
        coef = self.progress.kl_coef if config.kl_in == "reward" else 0.0
        reward_BT = ppo_math.token_rewards(batch.score_B, batch.logp_BT, batch.logp_ref_BT, batch.mask_BT, coef)
        if config.whiten_rewards:
            reward_BT = ppo_math.whiten(reward_BT, batch.mask_BT, keep_mean=True)
        advantage_BT, batch.return_BT = ppo_math.advantages(
            reward_BT, batch.value_BT, batch.mask_BT, gamma=config.gamma, lam=config.lam
        )
        batch.advantage_BT = ppo_math.whiten(advantage_BT, batch.mask_BT)
        if config.cap is not None:
            batch.weight_BT = ppo_math.rollout_weights(batch.logp_BT, batch.sampled_BT, config.cap)

    # ---- 6. epochs of minibatches

    def learn(self, batch: Batch, number: int) -> Line:
        """All epochs, or as many as the target divergence allows. Returns means over all that was learned from."""
        done: list[Learned] = []
        norms: list[tuple[float, float]] = []
        target = self.config.target_kl if self.config.target_kl is not None else math.inf
        for epoch in range(self.config.num_ppo_epochs):
            for minibatch in self._minibatches(batch.episodes, number, epoch):
                learned = self._minibatch(batch, minibatch)
                if not done:
                    self._same_as_before(learned)
                done.append(learned)
                # Beyond the target this minibatch's step is not taken either. All processes have the same numbers.
                if learned.approx_kl > target * learned.tokens:
                    self._forget()
                    return ppo_metrics.summary(done, norms, epoch)
                norms.append(self._step(number))
        return ppo_metrics.summary(done, norms, self.config.num_ppo_epochs)

    def _minibatch(self, batch: Batch, minibatch: list[list[int]]) -> Learned:
        """Adds the gradient of a minibatch, which every process then has whole."""
        members = [index for group in minibatch for index in group]
        # Over all processes and micro-batches, so that the mean is one over tokens and not one of means.
        tokens = max(int(batch.mask_BT[members].sum()), 1)
        sums, extremes = torch.zeros(5, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
        for group in minibatch:
            own = group[self.ranks.rank :: self.ranks.world]
            if own and bool(batch.mask_BT[own].any()):
                found = self._micro_batch(batch, own, tokens)
                sums += found[:5]
                extremes = torch.maximum(extremes, found[5:])
        self.ranks.sum_(sums)
        self.ranks.max_(extremes)
        for part in self.trained.values():
            self.ranks.sum_(part.gradient.div_(self.scale))
        return Learned(tokens, *sums.tolist(), *extremes.tolist())

    def _micro_batch(self, batch: Batch, own: list[int], tokens: int) -> Tensor:
        """Forward and backward of one micro-batch: the fields of `Learned` after `tokens`."""
        place = _places(batch.episodes, own)

        def row(x_BT: Tensor) -> Tensor:
            """These episodes' tokens, as (1, N)."""
            return x_BT[place][None].to(self.device)

        packed, mask = self._pack(batch.episodes, own), row(batch.mask_BT)
        with self.roles.acting("policy"):
            logp_N, entropy_N, states_NH = self.roles.logprobs(
                packed, self.config.temperature, entropy_gradient=self.config.ent_coef > 0
            )
            policy = ppo_math.policy_loss(
                logp_N[None],
                row(batch.logp_BT),
                row(batch.advantage_BT),
                mask,
                cliprange=self.config.cliprange,
                dual_clip=self.config.dual_clip,
                weight_BT=None if batch.weight_BT is None else row(batch.weight_BT),
            )
            loss = policy.loss
            if self.config.ent_coef:
                loss = loss - self.config.ent_coef * masked_sum(entropy_N[None], mask)
            if self.config.kl_in == "loss":
                k2 = ppo_math.k2(logp_N[None], row(batch.logp_ref_BT))
                loss = loss + self.progress.kl_coef * masked_sum(k2, mask)
            if self.roles.critic == "policy":
                # The policy and a critic on its states share one pass, forward and backward.
                value, value_clipped = self._value_loss(batch, states_NH, row, mask)
                loss = loss + self.config.vf_coef * value
            torch.autograd.backward(loss * (self.scale / tokens))
        if self.roles.critic != "policy":
            # The policy's backward pass is over: only now may the base act as somebody else.
            with self.roles.acting("critic"):
                states_NH = self.roles.states(packed)
                value, value_clipped = self._value_loss(batch, states_NH, row, mask)
                torch.autograd.backward(value * (self.config.vf_coef * self.scale / tokens))
        log_ratio = torch.where(mask, policy.ratio_BT, 1.0).log()
        found = [policy.loss, policy.clipped, policy.approx_kl, value, value_clipped, -log_ratio.min(), log_ratio.max()]
        return torch.stack([each.detach() for each in found]).double().cpu()

    def _value_loss(
        self, batch: Batch, states_NH: Tensor, row: Callable[[Tensor], Tensor], mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        value_1N, cliprange = self.roles.values(states_NH)[None], self.config.cliprange_value
        return ppo_math.value_loss(value_1N, row(batch.value_BT), row(batch.return_BT), mask, cliprange=cliprange)

    def _same_as_before(self, first: Learned) -> None:
        gap = max(first.log_ratio_down, first.log_ratio_up)
        if not gap <= SAME:
            raise TrainingError(
                f"{self.step}: at the first minibatch of update {self.progress.update + 1} the policy's "
                f"log-probabilities differ by {gap:.2g} nats from those before it, with the same weights; "
                "is a layer random (dropout, routing noise)?"
            )

    def _step(self, number: int) -> tuple[float, float]:
        """One step of the optimizers. Returns the norms of the policy's and the critic's gradient."""
        factor = self.schedule[number]
        if number < self.config.critic_warmup_updates:
            self.trained["policy"].gradient.zero_()
        rates = {"policy": self.config.learning_rate, "critic": self.config.critic_rate}
        norms = {
            role: part.step(rates[role] * factor, self.config.max_grad_norm) for role, part in self.trained.items()
        }
        return norms["policy"], norms["critic"]

    def _forget(self) -> None:
        for part in self.trained.values():
            part.gradient.zero_()

    # ---- 7. metrics, guards, what the next update depends on

    def _line(self, batch: Batch, learned: Line) -> Line:
        """The update in numbers; none of them depends on the clock."""
        done = self.progress.update + 1
        line = {
            "step": done,
            "episodes": done * self.episodes,
            "kl_coef": self.progress.kl_coef,
            "learning_rate": self.config.learning_rate * self.schedule[done - 1],
            **ppo_metrics.of_batch(batch, self.progress.kl_coef),
            **learned,
        }
        return {**line, "alarms": ppo_guards.alarms([*self.progress.metrics, line])}

    def _guard(self, line: Line) -> None:
        if line["step"] == 1 and not line["k3_token"] <= SAME:
            raise TrainingError(
                f"{self.step}: before anything is learned the policy is {line['kl']:.2g} nats an answer from its "
                "reference, and it should be 0: they do not start from the same weights"
            )
        self.progress.start.setdefault("entropy", line["entropy"])
        wrong = ppo_guards.broken(self.config.guards, line, self.progress.start)
        if wrong is None and not all(math.isfinite(each) for each in line.values() if isinstance(each, float)):
            wrong = "a number of this update is not finite; lower learning_rate"
        if wrong is not None:
            raise TrainingError(f"{self.step}: stopped at update {line['step']} by the guard {wrong}")

    def _adapt(self, kl: float) -> None:
        if self.config.target_kl_per_sequence is not None:
            self.progress.kl_coef = ppo_math.next_kl_coef(
                self.progress.kl_coef,
                kl,
                target=self.config.target_kl_per_sequence,
                horizon=self.config.kl_horizon,
                episodes=self.episodes,
                start=self.config.kl_coef,
            )

    # ---- held-out prompts

    def _evaluate(self) -> None:
        """Every so many updates: reward and judge on held-out prompts, answered with the same random numbers."""
        steps = self.config.eval_steps
        if not steps or not self.heldout or self.progress.update % steps:
            return
        with self.roles.fixed():
            episodes = self._answers(self.heldout, seed_of(self.seed, "evaluate"))
            raw_B = self.scores(episodes)
        line = {
            "step": float(self.progress.update),
            **ppo_metrics.scored(raw_B),
            "length": mean(torch.tensor([float(len(episode.answer)) for episode in episodes])),
            "ended": sum(not episode.truncated for episode in episodes) / len(episodes),
        }
        if self.judge is not None:
            judged = self._asked(self.judge, episodes).tolist()
            if self.progress.update == 0:
                self.progress.judged = [None if math.isnan(each) else each for each in judged]
            line |= ppo_metrics.judgement(judged, self.progress.judged)
        self.progress.evaluations.append(line)
        if self.judge is not None and (
            wrong := ppo_guards.hacked(self.progress.evaluations, self.config.guards.patience)
        ):
            raise TrainingError(f"{self.step}: stopped at update {self.progress.update} by the guard {wrong}")

    # ---- helpers

    def _asked(self, scorer: Scorer, episodes: Sequence[Episode]) -> Tensor:
        """(B,), what the scorer says; NaN where it could not tell. Each process asks about its share."""
        score_B = torch.zeros(len(episodes), dtype=torch.float64)
        own = list(range(len(episodes)))[self.ranks.rank :: self.ranks.world]
        if own:
            responses = [episodes[index].response(self.tokenizer) for index in own]
            found = scorer.score([episodes[index].task.prompt for index in own], responses)
            score_B[own] = torch.tensor([math.nan if each is None else each for each in found], dtype=torch.float64)
        return self.ranks.sum_(score_B).float()

    def _minibatches(self, episodes: Sequence[Episode], number: int, epoch: int) -> list[list[list[int]]]:
        size = self.config.per_device_train_batch_size * self.ranks.world
        return minibatches(
            episodes, self.config.num_mini_batches, size, seed_of(self.seed, "minibatches", number, epoch)
        )

    def _pack(self, episodes: Sequence[Episode], own: Sequence[int], how: Callable[..., Packed] = pack) -> Packed:
        chosen = [episodes[index] for index in own]
        prefixes, answers = [each.task.ids for each in chosen], [each.answer for each in chosen]
        return how(prefixes, answers, self.device, tree=self.roles.tree)

    def _save(self) -> None:
        if self.ranks.rank == 0:
            ppo_state.write(self.checkpoints, self.progress, self.trained)
        # By every process: none goes on before it counts.
        self.checkpoints.seal(self.progress.update, self.total)

    def _seed(self, *parts: object) -> None:
        # Nothing here draws from them; a reward function that somebody wrote may.
        seed = seed_of(self.seed, *parts)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)

    @contextlib.contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - began


def _places(episodes: Sequence[Episode], own: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Row and column in (B, T) of each response token of these episodes, in the order of `pack`."""
    rows = [index for index in own for _ in episodes[index].answer]
    columns = [column for index in own for column in range(len(episodes[index].answer))]
    return torch.tensor(rows), torch.tensor(columns)
