"""SFT and DPO of encoder-decoders (T5, BART), which TRL refuses: an encoder reads the prompt, a decoder learns answers.

Both are transformers' own Trainer with another loss. The reference's log-probabilities are computed once, before the
first update, by the policy as it starts: so there is no second model, and the divergence begins at zero. What is left
out: DPO's further losses, KTO, and packing.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipeline.algorithms.policy import computing, dtype_in
from pipeline.architectures import silence_dropout
from pipeline.decoding import padded
from pipeline.errors import TrainingError
from pipeline.models import padded_logprobs, seq2seq_logits, token_logprobs

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Trainer

    from pipeline.algorithms.base import Setting
    from pipeline.algorithms.policy import PolicyConfig

LOSSES = frozenset({"sigmoid", "sft"})
"""Of `dpo.Loss`, those that are computed here."""


# ---- the mathematics


def answer_logprobs_BT(model: Any, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> "Tensor":
    """(B, T), 0 after each answer: log-probabilities of the answers' tokens, in fp32, with their gradient."""
    ids_BT, mask_BT = padded(answers, model.device)
    return token_logprobs(seq2seq_logits(model, prompts, answers).float(), ids_BT) * mask_BT


def sigmoid_loss(margin_B: "Tensor", epsilon_B: "Tensor", beta: float) -> "Tensor":
    """(B,): conservative DPO (Mitchell 2023), of Rafailov et al. 2023, eq. 7, where each label is wrong with
    probability epsilon.

    Args:
        margin_B: log-ratio of policy to reference of the chosen answer, less that of the rejected one, in nats.
    """
    import torch.nn.functional as F

    z_B = beta * margin_B
    return -(1 - epsilon_B) * F.logsigmoid(z_B) - epsilon_B * F.logsigmoid(-z_B)


# ---- trainers


def sft_trainer(
    config: "PolicyConfig",
    rows: Sequence[dict[str, Any]],
    tests: Sequence[dict[str, Any]],
    setting: "Setting",
    evaluation: dict[str, Any],
) -> "Trainer":
    """A trainer on rows of `prompt_ids` and `answer_ids`: the mean negative log-probability of the answers' tokens.

    Args:
        evaluation: when the loss on `tests` is measured, as keyword arguments of TrainingArguments.
    """

    def loss(model: Any, rows: list[dict[str, Any]]) -> "tuple[Tensor, dict[str, float]]":
        logp_BT = answer_logprobs_BT(model, [row["prompt_ids"] for row in rows], [row["answer_ids"] for row in rows])
        return -logp_BT.sum() / sum(len(row["answer_ids"]) for row in rows), {}

    return _trainer(config, rows, tests, setting, loss, evaluation)


def dpo_trainer(
    config: "PolicyConfig",
    rows: Sequence[dict[str, Any]],
    setting: "Setting",
    *,
    beta: float,
    weights: dict[str, float],
    label_smoothing: float | None,
) -> "Trainer":
    """A trainer on the rows of `tokens.paired_rows`.

    Args:
        weights: of each loss, by its name in `LOSSES`.
        label_smoothing: probability that a label is wrong. None: one less the row's confidence.
    """
    import torch

    def loss(model: Any, rows: list[dict[str, Any]]) -> "tuple[Tensor, dict[str, float]]":
        prompts = [row["prompt_ids"] for row in rows] * 2
        answers = [row["chosen_ids"] for row in rows] + [row["rejected_ids"] for row in rows]
        logp_2B = answer_logprobs_BT(model, prompts, answers).sum(-1)
        reference_2B = logp_2B.new_tensor([row["ref_chosen"] for row in rows] + [row["ref_rejected"] for row in rows])
        ratio_2B = logp_2B - reference_2B
        chosen_B, rejected_B = ratio_2B.chunk(2)
        wrong = [1 - row["confidence"] if label_smoothing is None else label_smoothing for row in rows]
        tokens = sum(len(row["chosen_ids"]) for row in rows)
        found = logp_2B.new_zeros(())
        if "sigmoid" in weights:
            each_B = sigmoid_loss(chosen_B - rejected_B, logp_2B.new_tensor(wrong), beta)
            found = found + weights["sigmoid"] * each_B.mean()
        if "sft" in weights:
            found = found - weights["sft"] * logp_2B[: len(rows)].sum() / tokens
        with torch.no_grad():
            told = {
                "rewards/chosen": beta * chosen_B.mean().item(),
                "rewards/rejected": beta * rejected_B.mean().item(),
                "rewards/margins": beta * (chosen_B - rejected_B).mean().item(),
                "rewards/accuracies": (chosen_B > rejected_B).float().mean().item(),
                "logratios/chosen_per_token": chosen_B.sum().item() / tokens,
            }
        return found, told

    trainer: Any = _trainer(config, rows, [], setting, loss, {})
    silence_dropout(trainer.model)
    trainer.train_dataset = _with_reference(trainer, list(rows))
    return trainer


def _with_reference(trainer: Any, rows: list[dict[str, Any]]) -> Any:
    """The rows with the log-probabilities of both answers under the policy as it starts."""
    from datasets import Dataset

    found = {
        f"ref_{side}": _sums(trainer, [row["prompt_ids"] for row in rows], [row[f"{side}_ids"] for row in rows])
        for side in ("chosen", "rejected")
    }
    return Dataset.from_list(
        [{**row, **{name: values[place] for name, values in found.items()}} for place, row in enumerate(rows)]
    )


def _sums(trainer: Any, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> list[float]:
    model, training = trainer.model, trainer.model.training
    model.eval()
    with computing(trainer):
        found = [float(each.double().sum()) for each in padded_logprobs(model, prompts, answers)]
    model.train(training)
    return found


def start_gap(trainer: Any, count: int) -> float:
    """How far the policy is from its reference before training, in nats an answer: what rounding leaves.

    Raises:
        TrainingError: it is more than that.
    """
    import torch

    rows = [trainer.train_dataset[place] for place in range(min(count, len(trainer.train_dataset)))]
    model, training = trainer.model, trainer.model.training
    model.eval()
    with torch.no_grad(), computing(trainer):
        now_B = answer_logprobs_BT(model, [row["prompt_ids"] for row in rows], [row["chosen_ids"] for row in rows])
    model.train(training)
    longest = max(len(row["chosen_ids"]) for row in rows)
    sums_B = now_B.double().sum(-1).tolist()
    gap: float = max(abs(now - row["ref_chosen"]) for now, row in zip(sums_B, rows, strict=True))
    # Batches of another shape are summed in another order, and every token's logit is rounded.
    if not gap <= 64 * longest * float(torch.finfo(dtype_in(trainer)).eps):
        raise TrainingError(
            f"the policy is {gap:.3g} nats an answer from its reference before the first update: it would be held to "
            "another policy than it starts from"
        )
    return gap


def _trainer(
    config: "PolicyConfig",
    rows: Sequence[dict[str, Any]],
    tests: Sequence[dict[str, Any]],
    setting: "Setting",
    loss: Any,
    evaluation: dict[str, Any],
) -> "Trainer":
    from datasets import Dataset
    from peft import get_peft_model
    from transformers import Trainer, TrainingArguments, set_seed

    class Seq2SeqTrainer(Trainer):  # type: ignore[misc]
        """Learns rows as they are, by `loss`, and logs what that tells."""

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            found, told = loss(model, inputs["rows"])
            if model.training:
                for name, value in told.items():
                    self.told.setdefault(name, []).append(value)
            return (found, {}) if return_outputs else found

        def prediction_step(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Any:
            import torch

            with torch.no_grad(), self.compute_loss_context_manager():
                return self.compute_loss(model, inputs).detach(), None, None

        def log(self, logs: dict[str, float], *arguments: Any, **options: Any) -> None:
            if "loss" in logs:
                logs |= {name: sum(values) / len(values) for name, values in self.told.items()}
                self.told.clear()
            super().log(logs, *arguments, **options)

        told: dict[str, list[float]]

    arguments = {**config.policy_arguments(setting), **evaluation}
    del arguments["max_length"]
    set_seed(setting.seed)  # the adapter's first weights are drawn here
    given = config.policy(setting, reference=False)
    model = get_peft_model(given["model"], given["peft_config"]) if "peft_config" in given else given["model"]
    trainer = Seq2SeqTrainer(
        model=model,
        args=TrainingArguments(**arguments),
        train_dataset=Dataset.from_list(list(rows)),
        eval_dataset=Dataset.from_list(list(tests)) if tests else None,
        data_collator=lambda examples: {"rows": examples},
        processing_class=setting.tokenizer,
    )
    trainer.told = {}
    # The loss is a mean already: of a batch, and so of as many as are accumulated.
    trainer.model_accepts_loss_kwargs = False
    return config.ready(trainer, setting)
