"""Policy, reference, reward model and critic as adapters on one frozen base that is in memory once.

    policy      the adapter that is trained
    reference   the base with its adapter off, or a frozen copy of the adapter that training starts from
    reward      a frozen adapter and the score head it was trained with, if the reward is a model on this base
    critic      a value head on the policy's own hidden states, or an adapter of its own with a value head

Sequences are packed with the padding on the right, where a causal model's real tokens cannot see it: so no attention
mask is needed, and positions count from 0. Only hidden states in front of response tokens go through a head.
What is left out: sampling (`ppo_rollout.py`) and what the numbers are for (`ppo_trainer.py`).
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pipeline.adapters import adapt
from pipeline.algorithms.fused_lora import Switch, fuse, held
from pipeline.algorithms.ppo_math import selective_logprobs
from pipeline.algorithms.scoring import RewardHead, add_frozen
from pipeline.algorithms.short_attention import use_short_attention
from pipeline.architectures import silence_dropout
from pipeline.errors import ModelError


@dataclass(frozen=True)
class Packed:
    """A micro-batch, on the device: sequences padded on the right, and where the response tokens are in it."""

    ids_BT: Tensor
    row_N: Tensor
    """The sequence of each response token."""
    before_N: Tensor
    """The column of the state from which it is chosen: that of the token before it."""
    target_N: Tensor
    """The token itself."""
    last_B: Tensor
    """The column of each sequence's last token."""


def pack(prefixes: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], device: torch.device) -> Packed:
    """Conversations and their answers, none of either empty, as one micro-batch."""
    whole = [[*prefix, *answer] for prefix, answer in zip(prefixes, answers, strict=True)]
    width = max(map(len, whole))
    both = list(zip(prefixes, answers, strict=True))
    return Packed(
        ids_BT=torch.tensor([ids + [0] * (width - len(ids)) for ids in whole], device=device),
        row_N=torch.tensor([row for row, (_, answer) in enumerate(both) for _ in answer], device=device),
        before_N=torch.tensor([len(p) - 1 + t for p, answer in both for t in range(len(answer))], device=device),
        target_N=torch.tensor([token for answer in answers for token in answer], device=device),
        last_B=torch.tensor([len(ids) - 1 for ids in whole], device=device),
    )


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

    def hidden(self, ids_BT: Tensor) -> Tensor:
        """The last hidden states, (B, T, H), of whoever acts."""
        states: Tensor = self.base.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state
        return states

    def states(self, packed: Packed) -> Tensor:
        """The state from which each response token is chosen, (N, H). Nothing is chosen from a row's last token."""
        return self.hidden(packed.ids_BT[:, :-1])[packed.row_N, packed.before_N]

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

    def scores(self, packed: Packed) -> Tensor:
        """The reward model's score of each sequence, read at its last token."""
        with torch.no_grad(), self.acting("reward"):
            states_BTH = self.hidden(packed.ids_BT)
            last_BH = states_BTH[torch.arange(len(packed.last_B), device=states_BTH.device), packed.last_B]
        return (last_BH.float() @ self._score_head().T)[:, 0]

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
            logits_NV = self.base(packed.ids_BT[:, :-1], use_cache=False).logits[0].float()
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
