"""A trained reward model at work: from a folder of `reward_model.py` to a score for each answer.

On the policy's own base it is one more adapter and a vector: score = w . h, with h the hidden state (before `lm_head`)
of the last token of the answer. Which token that is comes from the answer's length alone. Hugging Face's
sequence classifiers look for the last token whose id is not the pad id, and where padding and end of turn are one id,
as in many chat models, they read another token than the one that was trained. What is left out: training it.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline import store
from pipeline.adapters import adapt
from pipeline.decoding import by_length
from pipeline.errors import ModelError
from pipeline.models import ADAPTER_TENSORS, ModelConfig, answer_ids, chat_ids, load_scorer, load_tokenizer
from pipeline.records import Message, Prompt, Response

if TYPE_CHECKING:
    import torch

FACTS = "reward_model.json"
"""What a reward model is and how it did on held-out pairs, beside its adapter."""

ROWS = 16
"""Answers a forward pass."""

Pool = Literal["last", "own"]
"""Where the score is read: at the last token of the answer, or wherever an encoder's own classifier does."""


@dataclass(frozen=True)
class RewardHead:
    """What there is to know about a trained reward model, and its head."""

    folder: Path
    """A PEFT folder; its LoRA tensors fit the causal model of the same base."""
    model: ModelConfig
    shared: bool
    """True: its base is that of the policy that it was made for."""
    pool: Pool
    pad_id: int
    """What sequences are padded with: never the id that an answer ends with."""
    max_length: int
    weight_1H: "torch.Tensor | None"
    """The head in float32, where the score is that of the last token. It has no bias: scores have no zero."""
    accuracy: tuple[float, float, float]
    """Share of held-out pairs that it orders as the judge did, and its interval's ends."""
    temperature: float
    """What differences of its scores are divided by to be as sure as the judge was, fitted on held-out pairs."""


def load_reward(folder: Path) -> RewardHead:
    """What a reward-model step left.

    Raises:
        ModelError: this is no such folder, or it has no head.
    """
    from safetensors import safe_open

    try:
        facts = store.read_json(folder / FACTS)
        with safe_open(folder / ADAPTER_TENSORS, framework="pt") as tensors:
            # PEFT saves the head because the task is SEQ_CLS. With any other it would be random after each loading.
            names = [name for name in tensors.keys() if _is_head(name)]  # noqa: SIM118
            heads = [tensors.get_tensor(name).float() for name in names]
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder}: not what a reward_model step leaves: {error}") from error
    if not heads:
        raise ModelError(f"{folder}: the adapter has no score head; train it with the algorithm reward_model")
    held_out = facts["held_out"]
    return RewardHead(
        folder=folder,
        model=ModelConfig.model_validate(facts["model"]),
        shared=facts["shared"],
        pool=facts["pool"],
        pad_id=facts["pad_id"],
        max_length=facts["max_length"],
        weight_1H=heads[0] if facts["pool"] == "last" else None,
        accuracy=(held_out["accuracy"], held_out["low"], held_out["high"]),
        # Those of before version 2 have none.
        temperature=held_out.get("temperature", 1.0),
    )


def conversation_ids(tokenizer: Any, messages: Sequence[Message], response: Response, max_length: int) -> list[int]:
    """Token ids of prompt and answer exactly as a rollout has them: nothing follows the end of turn, and an answer
    that was cut has none."""
    ids = chat_ids(tokenizer, messages) + answer_ids(tokenizer, response.text, finished=response.finished)
    return ids[:max_length]


def encoder_ids(tokenizer: Any, messages: Sequence[Message], response: Response, max_length: int) -> list[int]:
    """[CLS] prompt [SEP] answer [SEP], the longer of the two cut to fit."""
    prompt = "\n".join(message.content for message in messages)
    room = min(max_length, tokenizer.model_max_length)
    found: list[int] = tokenizer(prompt, response.text, truncation="longest_first", max_length=room)["input_ids"]
    return found


def is_cut(tokenizer: Any, messages: Sequence[Message], response: Response, max_length: int, pool: Pool) -> bool:
    """Whether prompt and answer have more tokens than are read of them."""
    if pool == "last":
        return len(conversation_ids(tokenizer, messages, response, max_length + 1)) > max_length
    prompt = "\n".join(message.content for message in messages)
    return len(tokenizer(prompt, response.text, verbose=False)["input_ids"]) > max_length


def room(model: Any, tokenizer: Any) -> float:
    """Tokens that the model can place."""
    limit = float(getattr(model.config.get_text_config(), "max_position_embeddings", None) or math.inf)
    # RoBERTa and CamemBERT number positions from behind that of padding, and have so many fewer.
    taken = [
        module.padding_idx + 1
        for name, module in model.named_modules()
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None
    ]
    return min(limit - max(taken, default=0), float(tokenizer.model_max_length))


def padding_id(tokenizer: Any) -> int:
    """An id to pad with that no answer ends with, so that classifiers that look for padding find the right token.

    Raises:
        ModelError: the tokenizer has no special token besides the end of turn.
    """
    others = [tokenizer.pad_token_id, tokenizer.unk_token_id, *sorted(tokenizer.all_special_ids)]
    found = next((each for each in others if each is not None and each != tokenizer.eos_token_id), None)
    if found is None:
        raise ModelError("model.base: its tokenizer has no special token to pad with that does not also end answers")
    return int(found)


def padded(rows: Sequence[Sequence[int]], pad_id: int, device: Any) -> tuple["torch.Tensor", "torch.Tensor"]:
    """Rows of ids padded on the right, (B, T), and the mask of what is no padding, (B, T), both int64."""
    import torch

    width = max(map(len, rows))
    ids = [[*row, *[pad_id] * (width - len(row))] for row in rows]
    mask = [[1] * len(row) + [0] * (width - len(row)) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def last_hidden(body: Any, ids_BT: "torch.Tensor", mask_BT: "torch.Tensor") -> "torch.Tensor":
    """The hidden state of each row's last token by the mask, (B, H), in the model's dtype.

    Args:
        body: the model without its head.
    """
    import torch

    hidden_BTH = body(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).last_hidden_state
    last_B = mask_BT.sum(-1) - 1
    found: torch.Tensor = hidden_BTH[torch.arange(len(ids_BT), device=ids_BT.device), last_B]
    return found


class SharedReward:
    """The reward model as an adapter of a causal model that is in memory anyway. See `judges.base.Scorer`."""

    def __init__(self, head: RewardHead, model: Any, tokenizer: Any, name: str = "reward") -> None:
        """Put the adapter on `model`, frozen, and leave what was active and trained as it was.

        Args:
            model: the base that the reward model was trained on, with adapters or without.
            name: of the adapter.

        Raises:
            ModelError: the adapter does not fit the model.
        """
        from pipeline.algorithms.ppo_packing import takes_trees
        from pipeline.algorithms.short_attention import short_attention

        assert head.weight_1H is not None, "an encoder is no adapter of a causal model"
        self.head = head
        self.name = name
        self.model = add_frozen(model, head.folder, name)
        """The PeftModel that it is on."""
        self.tokenizer = tokenizer
        self.weight_1H = head.weight_1H.to(model.device)
        self.base = self.model.get_base_model()
        self.body = getattr(self.base, self.base.base_model_prefix)
        with self._acting(), short_attention(self.base):
            self.trees = takes_trees(self.base, self.body)
        """Whether rows that begin alike are computed as a tree: see `ppo_packing.py`."""

    def score(self, prompts: Sequence[Prompt], responses: Sequence[Response]) -> list[float | None]:
        """One score for each response to the prompt beside it."""
        pairs = zip(prompts, responses, strict=True)
        return [
            *self.score_ids(
                [
                    conversation_ids(self.tokenizer, prompt.messages, response, self.head.max_length)
                    for prompt, response in pairs
                ]
            )
        ]

    def score_ids(self, rows: Sequence[Sequence[int]]) -> list[float]:
        """One score for each row of prompt and answer, the end of turn included where the answer has one."""
        scores = [0.0] * len(rows)
        with self._acting():
            for chosen in self._together(rows):
                hidden_BH = self._ends([rows[index] for index in chosen])
                scores_B = (hidden_BH.float() @ self.weight_1H.T)[:, 0]
                for index, score in zip(chosen, scores_B.tolist(), strict=True):
                    scores[index] = score
        return scores

    @contextlib.contextmanager
    def _acting(self) -> Iterator[None]:
        """Inside, the model is the reward model, and has no dropout, which a policy in training may have."""
        import torch

        training = self.model.training
        self.model.eval()
        try:
            with frozen_role(self.model, self.name), torch.no_grad():
                yield
        finally:
            self.model.train(training)

    def _together(self, rows: Sequence[Sequence[int]]) -> list[list[int]]:
        """The places of rows that share a forward pass: those that begin alike, or those that are alike in length."""
        if not self.trees:
            return by_length([len(row) for row in rows], self.model.device, most=ROWS)
        order = sorted(range(len(rows)), key=lambda index: (list(rows[index]), index))
        return [order[start : start + ROWS] for start in range(0, len(order), ROWS)]

    def _ends(self, rows: Sequence[Sequence[int]]) -> "torch.Tensor":
        """The hidden states of the rows' last tokens, (B, H)."""
        from pipeline.algorithms.ppo_packing import pack_rows, states_of
        from pipeline.algorithms.short_attention import short_attention

        if self.trees:
            with short_attention(self.base):
                return states_of(self.body, pack_rows(rows, self.model.device, tree=True))
        return last_hidden(self.body, *padded(rows, self.head.pad_id, self.model.device))


class SeparateReward:
    """The reward model as a model of its own, beside the policy. See `judges.base.Scorer`."""

    def __init__(self, head: RewardHead) -> None:
        """Load it.

        Raises:
            ModelError: its base or its adapter cannot be loaded.
        """
        self.head = head
        self.tokenizer = load_tokenizer(head.model, chat=head.pool == "last")
        base = load_scorer(head.model, seed=0)
        base.config.get_text_config().pad_token_id = head.pad_id
        self.model = adapt(base, head.folder).eval()

    def score(self, prompts: Sequence[Prompt], responses: Sequence[Response]) -> list[float | None]:
        """One score for each response to the prompt beside it."""
        encode = conversation_ids if self.head.pool == "last" else encoder_ids
        rows = [
            encode(self.tokenizer, prompt.messages, response, self.head.max_length)
            for prompt, response in zip(prompts, responses, strict=True)
        ]
        return [*classifier_scores(self.model, rows, self.head.pad_id)]


def classifier_scores(model: Any, rows: Sequence[Sequence[int]], pad_id: int) -> list[float]:
    """The scores that a sequence classifier gives, `ROWS` at a time."""
    import torch

    scores = [0.0] * len(rows)
    with torch.no_grad():
        for chosen in by_length([len(row) for row in rows], model.device, most=ROWS):
            ids_BT, mask_BT = padded([rows[index] for index in chosen], pad_id, model.device)
            scores_B = model(input_ids=ids_BT, attention_mask=mask_BT).logits.float()[:, 0]
            for index, score in zip(chosen, scores_B.tolist(), strict=True):
                scores[index] = score
    return scores


@contextlib.contextmanager
def frozen_role(model: Any, name: str) -> Iterator[None]:
    """Inside, the PeftModel computes as the adapter `name`; after, the same one is active and the same are trained."""
    before = model.active_adapter
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.set_adapter(name, inference_mode=True)
    try:
        yield
    finally:
        model.set_adapter(before, inference_mode=True)
        for parameter in trained:
            parameter.requires_grad_(True)


def add_frozen(model: Any, folder: Path, name: str) -> Any:
    """Put the LoRA tensors of a reward model on its base as the adapter `name`, frozen. Returns the PeftModel, which is
    `model` where that is one.

    Raises:
        ModelError: the adapter does not fit the model.
    """
    from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
    from safetensors.torch import load_file

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    config = LoraConfig.from_pretrained(str(folder))
    # A causal model has no head of that name for PEFT to put a copy of beside.
    config.task_type, config.modules_to_save, config.inference_mode = "CAUSAL_LM", None, True
    if isinstance(model, PeftModel):
        model.add_adapter(name, config)
    else:
        model = get_peft_model(model, config, adapter_name=name)
    lora = {key: tensor for key, tensor in load_file(folder / ADAPTER_TENSORS).items() if not _is_head(key)}
    found = set_peft_model_state_dict(model, lora, adapter_name=name)
    missing = [key for key in found.missing_keys if f".{name}." in key]
    if missing or found.unexpected_keys:
        wrong = [*missing, *found.unexpected_keys]
        raise ModelError(f"{folder}: {len(wrong)} tensors do not fit the policy's base, such as {wrong[0]}")
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    return model


def _is_head(name: str) -> bool:
    return ".score." in name or ".classifier." in name
