"""Direct Preference Optimization (Rafailov et al. 2023, arXiv:2305.18290), by TRL's DPOTrainer.

Raises the log-probability of the chosen answer over the rejected one, measured against the frozen policy it started
from. No reward model and no sampling. With z = beta ((log pi_w - log ref_w) - (log pi_l - log ref_l)) and a
probability e that the label is wrong, the loss of a pair is

    -(1 - e) log sigmoid(z) - e log sigmoid(-z)

which is the paper's eq. 7 at e = 0, and conservative DPO (Mitchell 2023, "A note on DPO with noisy preferences and
relationship to IPO") above it. e may be another for each pair, which TRL's trainer does not know.

What is left out: references other than the policy that training starts from, and other divergences than the paper's.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from pipeline import views
from pipeline.algorithms import tokens
from pipeline.algorithms.base import Setting
from pipeline.algorithms.policy import CHECKED, PolicyConfig
from pipeline.architectures import is_encoder_decoder
from pipeline.errors import TrainingError
from pipeline.records import Preference

if TYPE_CHECKING:
    import torch
    from transformers import Trainer


Loss = Literal[
    "sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot",
    "aot_unpaired", "apo_zero", "apo_down", "discopop", "sft",
]  # fmt: skip
"""The names that TRL 1.16 knows. Where its loss is not that of the paper:

- `ipo` (Azar et al. 2023, arXiv:2310.12036, eq. 17): of log-ratios a token, where the paper has those of the answer;
  TRL says that the authors agree.
- `hinge` is `hinge-norm` of Liu et al. 2023 (arXiv:2309.06657): SLiC's hinge (Zhao et al. 2023) has no reference.
- `bco_pair` (Jung et al. 2024, arXiv:2404.04656) is without the paper's shift of the rewards by their running mean.
- `sppo_hard` (Wu et al. 2024, arXiv:2405.00675, eq. 4.7) has 1 and 0 for the probabilities of winning.
- `aot`, `aot_unpaired` (Melnyk et al. 2024, arXiv:2406.05882) sort within a batch, so small ones say little.
- `apo_zero`, `apo_down` (D'Oosterlinck et al. 2024, arXiv:2408.06266, eq. 7 and 8) are larger by 1, which no gradient
  sees.
- `sft` is the mean over all chosen tokens of a batch, where Pang et al. 2024 (arXiv:2404.19733) have that of each
  answer: long answers weigh more.

As in their papers: `sigmoid`; `sigmoid_norm` (Lambert et al. 2024, arXiv:2411.15124: log-ratios a token, so that
length pays nothing; they use beta 5); `exo_pair` (Ji et al. 2024, arXiv:2402.00856, eq. 16); `nca_pair` (Chen et al.
2024, arXiv:2402.05369); `robust` (Chowdhury et al. 2024, arXiv:2403.00409); `discopop` (Lu et al. 2024,
arXiv:2406.08414, eq. 5).
"""

OURS = frozenset({"sigmoid", "sigmoid_norm"})
"""The losses whose labels are softened here, for each pair by itself."""

TRLS = frozenset({"robust", "exo_pair", "aot", "aot_unpaired"})
"""The losses in which TRL has one label smoothing for all pairs."""

COLLAPSE = math.log(2)
"""Nats a token by which the chosen answers may become less likely than under the reference before the report warns.

That both answers sink is common in DPO (Pal et al. 2024, arXiv:2402.13228; Razin et al. 2024, arXiv:2410.05628), and
the loss does not show it. At half the probability a token, an answer of 20 tokens is a million times less likely than
before: what took its place is something that no judge has seen."""


class Config(PolicyConfig):
    """DPO's options, by TRL's names."""

    VERSION: ClassVar[int] = 3

    ENCODER_DECODERS: ClassVar[bool] = True

    name: Literal["dpo"] = "dpo"
    beta: float = Field(default=0.1, gt=0)
    """How firmly the policy is held to the reference; the paper uses 0.1 to 0.5."""
    loss_type: tuple[Loss, ...] = Field(default=("sigmoid",), min_length=1)
    """TRL's losses, which are added up. `sigmoid` is the paper's; with `sft` the chosen answers are also imitated
    (Pang et al. 2024, arXiv:2404.19733), which keeps their log-probability from sinking, that of their end too."""
    loss_weights: tuple[float, ...] | None = None
    """The weight of each loss, in the order of `loss_type`. None: 1 for each."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] | Literal["confidence"] = 0.0
    """Probability that a label is wrong. `confidence`: of each pair, one less the judge's confidence, so that the loss
    is least where the policy's preference is the judge's own, and a pair that is nearly a tie pulls nearly nothing.
    0, the paper's, is the default: soft labels are right only as far as the judge is calibrated, and Furuta et al.
    2024 (arXiv:2409.06691) found that the policy that fits them best need not be the one that answers best."""

    @model_validator(mode="after")
    def _a_weight_for_each_loss(self) -> Self:
        if self.loss_weights is not None and len(self.loss_weights) != len(self.loss_type):
            raise ValueError(f"{len(self.loss_weights)} loss_weights for {len(self.loss_type)} losses; one for each")
        return self

    @model_validator(mode="after")
    def _smoothing_is_read(self) -> Self:
        losses: set[str] = set(self.loss_type)
        if self.label_smoothing == "confidence" and (losses & TRLS or not losses & OURS):
            raise ValueError(
                f"label_smoothing: confidence is for the losses {_list(OURS)}, and loss_type is "
                f"{_list(losses)}; give a number, or choose one of those losses and none of {_list(TRLS)}"
            )
        if self.label_smoothing and not losses & (OURS | TRLS):
            raise ValueError(
                f"label_smoothing is read by {_list(OURS | TRLS)}, and loss_type is {_list(losses)}; leave it out"
            )
        if "exo_pair" in losses and not self.label_smoothing:
            raise ValueError("exo_pair needs a label_smoothing above 0; its paper uses 0.001")
        return self

    @property
    def by_example(self) -> bool:
        """Some losses sort the pairs of a batch, or take a mean over its tokens."""
        return not {"aot", "aot_unpaired", "sft"} & {*self.loss_type}

    def rows(self, preferences: Sequence[Preference]) -> list[dict[str, Any]]:
        """Chosen against rejected, one row a preference; `cut` names the answers that did not end by themselves."""
        rows = views.paired(preferences)
        if not rows:
            raise TrainingError("DPO has no preferences to learn from; see label/summary.json for why")
        return rows

    def alarms(self, metrics: Sequence[dict[str, Any]]) -> list[str]:
        """Whether the chosen answers became unlikely: by the mean over the last tenth of the updates."""
        told = super().alarms(metrics)
        name = "logratios/chosen_per_token"
        updates = [line[name] for line in metrics if name in line]
        last = updates[-max(1, len(updates) // 10) :]
        fall = -sum(last) / len(last) if last else 0.0
        if fall <= COLLAPSE:
            return told
        return [
            *told,
            f"the chosen answers lost {fall:.2f} nats a token against the reference (alarm above {COLLAPSE:.2f}): both "
            "answers sank, and others took their place. Add sft to loss_type, raise beta or lower learning_rate.",
        ]

    def trainer(self, rows: Sequence[dict[str, Any]], setting: Setting) -> "Trainer":
        """TRL's DPOTrainer on the rows, with soft labels; that of `seq2seq.py` for an encoder-decoder."""
        if is_encoder_decoder(setting.model):
            return self._seq2seq_trainer(rows, setting)
        from datasets import Dataset
        from trl import DPOConfig
        from trl.trainer.dpo_trainer import DataCollatorForPreference

        weights = None if self.loss_weights is None else list(self.loss_weights)
        arguments = DPOConfig(
            **self.policy_arguments(setting),
            beta=self.beta,
            loss_type=list(self.loss_type),
            loss_weights=weights,
            label_smoothing=0.0 if self.label_smoothing == "confidence" else self.label_smoothing,
        )
        collator = DataCollatorForPreference(pad_token_id=setting.tokenizer.pad_token_id, max_length=self.max_length)
        trainer: Trainer = _softened_trainer()(
            **self.policy(setting, reference=True),
            args=arguments,
            train_dataset=Dataset.from_list(tokens.paired_rows(rows, setting.tokenizer, self.max_length)),
            processing_class=setting.tokenizer,
            data_collator=Softened(collator, self.label_smoothing),
        )
        return self.ready(trainer, setting)

    def _seq2seq_trainer(self, rows: Sequence[dict[str, Any]], setting: Setting) -> "Trainer":
        from pipeline.algorithms import seq2seq

        unknown = frozenset[str](self.loss_type) - seq2seq.LOSSES
        if unknown:
            known = _list(seq2seq.LOSSES)
            raise TrainingError(f"loss_type: an encoder-decoder is trained with {known}; leave out {_list(unknown)}")
        encoded = tokens.paired_rows(rows, setting.tokenizer, self.max_length)
        weights = self.loss_weights or (1.0,) * len(self.loss_type)
        return seq2seq.dpo_trainer(
            self,
            encoded,
            setting,
            beta=self.beta,
            weights=dict(zip(self.loss_type, weights, strict=True)),
            label_smoothing=None if self.label_smoothing == "confidence" else self.label_smoothing,
        )

    def started(self, trainer: Any) -> dict[str, Any]:
        """See `PolicyConfig.started`."""
        if is_encoder_decoder(trainer.model):
            from pipeline.algorithms import seq2seq

            return {"start_gap": seq2seq.start_gap(trainer, CHECKED)}
        return super().started(trainer)


class Softened:
    """A data collator that adds `label_smoothing` (B,) to what another makes: how likely each label is wrong."""

    def __init__(self, collator: Any, label_smoothing: float | Literal["confidence"]) -> None:
        self.collator = collator
        self.label_smoothing = label_smoothing

    def __call__(self, examples: list[dict[str, Any]]) -> Any:
        import torch

        given = self.label_smoothing
        of_each = [1 - each["confidence"] if given == "confidence" else given for each in examples]
        return {**self.collator(examples), "label_smoothing": torch.tensor(of_each)}


def _softened_trainer() -> Any:
    from trl import DPOTrainer

    class SoftenedTrainer(tokens.given_ids(DPOTrainer)):  # type: ignore[misc]
        """TRL's trainer with a label smoothing for each pair, and one more metric."""

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            smoothing_B = inputs.pop("label_smoothing")
            with _logprobs_of(self.model, self.ref_model) as passes:
                loss = super().compute_loss(model, inputs)
            policy_2BT, reference_2BT = passes
            ratio_2B = (policy_2BT - reference_2BT).sum(-1)
            tokens_2B = inputs["completion_mask"].sum(-1).clamp(min=1)
            chosen_B, chosen_tokens_B = ratio_2B.chunk(2)[0], tokens_2B.chunk(2)[0]
            self._metrics["train"]["logratios/chosen_per_token"].append((chosen_B.sum() / chosen_tokens_B.sum()).item())
            for name, weight in zip(self.loss_types, self.loss_weights, strict=True):
                if name in OURS:
                    z_B = self.beta * margin(ratio_2B / tokens_2B if name == "sigmoid_norm" else ratio_2B)
                    # TRL's loss is that of e = 0; log sigmoid(z) - log sigmoid(-z) is z.
                    loss = loss + weight * (smoothing_B * z_B).mean()
            return (loss, None) if return_outputs else loss

    return SoftenedTrainer


def margin(values_2B: "torch.Tensor") -> "torch.Tensor":
    """(B,): the chosen answers' values, which are the first half, less those of the rejected ones."""
    chosen_B, rejected_B = values_2B.chunk(2)
    return chosen_B - rejected_B


@contextlib.contextmanager
def _logprobs_of(policy: Any, reference: Any) -> Iterator[list[Any]]:
    """The log-probabilities of TRL's passes, (2B, T - 1) and 0 outside the answers: policy's first, then reference's.

    The reference is another model, or the same one with its adapter off.
    """
    found: list[Any] = []
    models = [model for model in (policy, reference) if model is not None]
    hooks = [model.register_forward_hook(lambda _, __, output: found.append(output.log_probs)) for model in models]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _list(names: set[str] | frozenset[str]) -> str:
    return ", ".join(sorted(names))
