"""Policy, reference, reward model and critic as adapters on one frozen base that is in memory once.

    policy      the adapter that is trained
    reference   the base with its adapter off, or a frozen copy of the adapter that training starts from
    reward      a frozen adapter and the score head it was trained with, if the reward is a model on this base
    critic      a value head on the policy's own hidden states, or an adapter of its own with a value head

Only hidden states in front of response tokens go through a head. What is left out: how sequences become a micro-batch
(`ppo_packing.py`), sampling (`ppo_rollout.py`) and what the numbers are for (`ppo_trainer.py`).
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pipeline.adapters import adapt
from pipeline.algorithms.fused_lora import Switch, fuse, held
from pipeline.algorithms.ppo_math import logprobs_of, selective_logprobs
from pipeline.algorithms.ppo_packing import Packed, pack, states_of, takes_trees
from pipeline.algorithms.scoring import RewardHead, add_frozen
from pipeline.algorithms.short_attention import use_short_attention
from pipeline.architectures import is_mixture, silence_dropout
from pipeline.errors import ModelError
from pipeline.models import token_logprobs


class Roles:
    """See above. Everything but the policy's adapter, the value head and the critic's adapter is frozen."""

    def __init__(
        self,
        base: Any,
        lora: Any,
        *,
        seed: int,
        start: Path | None = None,
        reward: RewardHead | None = None,
        critic: Literal["shared", "own"] = "shared",
        gradient_checkpointing: bool = False,
    ) -> None:
        """Args:
            base: the frozen model.
            lora: PEFT's config of the policy's adapter, and of the critic's if that does not start from the reward's.
            reward: a reward model of this base, whose score is that of the last token.
            start: a saved adapter that the policy starts from, and that is the reference. None: the base is.

        Raises:
            ModelError: an adapter does not fit, or the model's logits are not its output layer's.
        """
        from peft import get_peft_model

        torch.manual_seed(seed)  # the adapters' first weights are drawn here
        self.base = base
        self.model = get_peft_model(base, lora, adapter_name="policy")
        self.reference: str | None = None
        if start is not None:
            self.reference = "reference"
            adapt(self.model, start, "reference")
            self._copy("reference", "policy")
        self.reward = reward
        if reward is not None:
            add_frozen(self.model, reward.folder, "reward")
        self.critic = "policy"
        if critic == "own":
            self.critic = "critic"
            self.model.add_adapter("critic", _plain(self.model.peft_config["reward"]) if reward else lora)
            if reward is not None:
                self._copy("reward", "critic")
        self.value_head = nn.Linear(_width(base), 1).to(base.device, torch.float32)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)
        use_short_attention(base)
        silence_dropout(self.model)
        self.switch: Switch = fuse(self.model)
        self._freeze()
        if gradient_checkpointing:
            base.gradient_checkpointing_enable({"use_reentrant": False})
            self.model.train()
        self._check_head()
        with self.acting(None):
            self.tree = takes_trees(base, base.base_model)
        """Whether the base can compute micro-batches that are trees."""
        eight_bit = getattr(base, "is_loaded_in_8bit", False)
        self.exact = base.device.type == "cpu" and base.dtype == torch.float32 and not (eight_bit or is_mixture(base))
        """Whether what the policy says of a token while it samples is what a training pass says, to rounding. In bf16
        it is not: 2 to 3 % of the ratios would be clipped before anything is learned."""

    # ---- who acts

    @contextlib.contextmanager
    def acting(self, name: str | None) -> Iterator[None]:
        """Inside, the base computes with this adapter; None is the base alone. Backward belongs inside as well."""
        before, self.switch.active = self.switch.active, name
        try:
            yield
        finally:
            self.switch.active = before

    def trained(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """The parameters of the policy, and those of the critic, each with its name, in a fixed order."""
        named = list(self.model.named_parameters())
        critic = [(name, each) for name, each in named if self.critic == "critic" and ".critic." in name]
        heads = [(f"value_head.{name}", each) for name, each in self.value_head.named_parameters()]
        return {"policy": [each for each in named if ".policy." in each[0]], "critic": [*critic, *heads]}

    def start_critic(self, mean: float, deviation: float) -> None:
        """Let a critic that starts from the reward model predict its scores after they are normalised."""
        if self.critic == "critic" and self.reward is not None:
            with torch.no_grad():
                self.value_head.weight.copy_(self._score_head() / deviation)
                self.value_head.bias.fill_(-mean / deviation)

    # ---- what they compute

    def states(self, packed: Packed) -> Tensor:
        """The last hidden states of whoever acts that are read, (N, H)."""
        return states_of(self.base.base_model, packed)

    def logprobs(
        self, packed: Packed, temperature: float, *, entropy_gradient: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of each response token: log-probability and entropy at this temperature, and the state it is chosen from."""
        head_VH = self.base.get_output_embeddings().weight
        # Mamba keeps its residual stream in fp32, and its output layer rounds it.
        states_NH = self.states(packed).to(head_VH.dtype)
        logp_N, entropy_N = selective_logprobs(
            states_NH, head_VH, packed.target_N, temperature=temperature, entropy_gradient=entropy_gradient
        )
        return logp_N, entropy_N, states_NH

    def values(self, states_NH: Tensor) -> Tensor:
        """The value of each state, fp32."""
        found: Tensor = self.value_head(states_NH.float())[:, 0]
        return found

    @contextlib.contextmanager
    def telling(self, temperature: float) -> Iterator[Callable[[Tensor, Tensor], Tensor]]:
        """What a sampler inside is to keep of each token: its log-probability; where the roles are `exact`, also the
        entropy at its place, and the value of the state before it if the critic reads the policy's states. (B, 1 to 3).
        """
        states: list[Tensor] = []

        def hear(_: Any, inputs: tuple[Tensor, ...]) -> None:
            states[:] = inputs

        def tell(logits_BV: Tensor, token_B: Tensor) -> Tensor:
            if not self.exact:
                return token_logprobs((logits_BV / temperature)[:, None], token_B[:, None])
            logp_B, entropy_B = logprobs_of(logits_BV, token_B, temperature=temperature)
            # The latest state of each row that is still written.
            values = [self.values(states[0][:, -1])] if self.critic == "policy" else []
            return torch.stack([logp_B, entropy_B, *values], dim=-1)

        hook = self.base.get_output_embeddings().register_forward_pre_hook(hear)
        try:
            yield tell
        finally:
            hook.remove()

    def scores(self, packed: Packed) -> Tensor:
        """The reward model's score of each sequence, read at its last token."""
        with torch.no_grad(), self.acting("reward"):
            return (self.states(packed).float() @ self._score_head().T)[:, 0]

    @contextlib.contextmanager
    def fixed(self) -> Iterator[None]:
        """Inside, no weight changes and nothing has a gradient: on a processor matrices are made ready once."""
        ready = held(self.model) if self.base.device.type == "cpu" else contextlib.nullcontext()
        training = self.base.training
        # With gradient checkpointing a model in training mode drops its cache of keys and values without an error.
        self.model.eval()
        try:
            with torch.no_grad(), ready:
                yield
        finally:
            self.model.train(training)

    def _score_head(self) -> Tensor:
        assert self.reward is not None and self.reward.weight_1H is not None, "an encoder is no role of a causal base"
        return self.reward.weight_1H.to(self.base.device)

    # ---- how they are made

    def _copy(self, source: str, target: str) -> None:
        weights = dict(self.model.named_parameters())
        theirs = {name: each for name, each in weights.items() if f".{source}." in name}
        for name, each in theirs.items():
            own = weights.get(name.replace(f".{source}.", f".{target}."))
            if own is None or own.shape != each.shape:
                raise ModelError(
                    f"the adapter that {target} starts from has other layers or another rank than `lora` says; "
                    "give both the same `lora`"
                )
            own.data.copy_(each.data)
        if not theirs:
            raise ModelError(f"the adapter that {target} starts from changes no layer that `lora` names")

    def _freeze(self) -> None:
        # PEFT's own switches turn gradients on and off as a side effect, so this is said once, for all.
        self.model.requires_grad_(False)
        for parameters in self.trained().values():
            for _, parameter in parameters:
                parameter.data = parameter.data.float()
                parameter.requires_grad_(True)

    def _check_head(self) -> None:
        head = self.base.get_output_embeddings()
        if head is None or hasattr(head, "lora_A") or getattr(head, "bias", None) is not None:
            raise ModelError("PPO reads log-probabilities off a plain, frozen output layer; take it out of `lora`")
        packed = pack([[3]], [range(4, 11)], self.base.device)
        with torch.no_grad(), self.acting(None):
            ours_N = self.logprobs(packed, 1.0)[0]
            logits_NV = self.base(packed.ids_BT, use_cache=False).logits[0].float()
        theirs_N = logits_NV.log_softmax(-1).gather(-1, packed.target_N[:, None])[:, 0]
        rounding = max(1e-3, 4 * torch.finfo(head.weight.dtype).eps * float(logits_NV.abs().max()))
        if not torch.allclose(ours_N, theirs_N, atol=rounding, rtol=0):
            raise ModelError(
                f"{type(self.base).__name__}: its logits are not those of its output layer (scaled or capped?), "
                "which PPO does not support yet; use RLOO or GRPO"
            )


def _plain(config: Any) -> Any:
    """The same layers and rank, to be trained."""
    return dataclasses.replace(config, inference_mode=False)


def _width(base: Any) -> int:
    return int(base.get_output_embeddings().weight.shape[1])
