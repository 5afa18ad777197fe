"""Reward model: a score for each answer, learned from which of two was preferred, by TRL's RewardTrainer.

It is the policy's own base with a LoRA adapter and a linear head, or an encoder of its own. The loss is that of
Bradley and Terry (1952; Ouyang et al. 2022, arXiv:2203.02155, eq. 1) with the judge's confidence c as the label:

    d = r(x, chosen) - r(x, rejected)
    loss = -c log sigmoid(d - m) - (1 - c) log sigmoid(m - d) + k (r(x, chosen) + r(x, rejected))^2

averaged over the pairs of a prompt and then over prompts. All answers to a prompt are read together, each once however
many pairs it is in: that is cheaper, and shuffled pairs overfit (the same paper, section 3.5). On a processor also the
prompt is read once, for all of them, where the model can compute such a tree (`ppo_packing.py`).

Some prompts are held out; how it does on their pairs is in `reward_model.json`, and a reward model that does not beat
chance there is refused by what would be trained against it. What is left out: scoring (`scoring.py`).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from pipeline import views
from pipeline.algorithms import checkpoints, scoring
from pipeline.algorithms.base import AlgorithmConfig, Product, Setting, TrainRun, repeated
from pipeline.errors import TrainingError
from pipeline.models import ModelConfig, load_scorer, load_tokenizer
from pipeline.records import Message, Preference, Response

if TYPE_CHECKING:
    import torch
    from transformers import Trainer


class Config(AlgorithmConfig):
    """The reward model's options, by TRL's names where it has them."""

    VERSION: ClassVar[int] = 3
    MAKES: ClassVar[Product] = "reward"
    READS: ClassVar[tuple[str, ...]] = ("generate", "label")

    name: Literal["reward_model"] = "reward_model"
    base: ModelConfig | None = None
    """What it is built on: an encoder (BERT, CamemBERT) or another language model. None: the policy's own base, so
    that PPO keeps one base in memory for both."""
    pairs: Literal["all", "preferences"] = "all"
    """all: every pair that the judge decided, as in Ouyang et al. 2022, section 3.5. preferences: those that the
    other algorithms learn from."""
    soft_labels: bool = True
    """The judge's confidence is the label. false: the preferred answer is better for certain."""
    margin: float = Field(default=0.0, ge=0)
    """m of the loss: the preferred answer has to score so much more (Touvron et al. 2023, arXiv:2307.09288, eq. 2)."""
    center_rewards_coefficient: float | None = Field(default=None, ge=0)
    """k of the loss: pulls scores towards a mean of zero (Eisenstein et al. 2023, arXiv:2312.09244); they use 0.01."""
    held_out: float = Field(default=0.2, gt=0, lt=1)
    """Share of the prompts whose pairs are not trained on and tell how good it is."""
    learning_rate: float = Field(default=1e-4, gt=0)
    """Peak learning rate of AdamW."""
    per_device_train_batch_size: int = Field(default=4, ge=1)
    """Prompts a forward pass, each with all its answers."""

    @property
    def by_example(self) -> bool:
        """Every prompt weighs the same."""
        return True

    def train(self, run: TrainRun) -> None:
        """See `AlgorithmConfig.train`. Leaves reward_model.json as well."""
        from pipeline.algorithms.held_out import split

        preferences = self._preferences(run)
        split(preferences, self.held_out, run.seed)  # too few prompts are told before anything loads
        setting = self._setting(run)
        told_apart, alarms = self._told_apart(preferences, setting)
        trained, held_out = split(told_apart, self.held_out, run.seed)
        rows = self.rows(trained)
        trainer = self.trainer(rows, setting)
        metrics = checkpoints.fit(trainer, run.checkpoints)
        found = self._examined(trainer.model, setting, held_out)
        base = self.base or run.model
        facts = {
            "model": base.model_dump(mode="json"),
            "shared": base == run.model,
            "pool": _pool(trainer.model),
            "pad_id": trainer.model.config.get_text_config().pad_token_id,
            # An answer that ended has its end of turn as the last token that is scored, and nothing after it.
            "trailing_ids": [],
            "max_length": self._length(setting),
            "dtype": str(setting.model.dtype),
            "held_out": found,
        }
        summary: dict[str, Any] = {
            "preferences": len(trained) + len(held_out),
            "examples": len(trained),
            "updates": trainer.state.global_step,
            "held_out": found,
        }
        alarms += repeated(trainer, run.launch.world)
        if alarms:
            summary["alarms"] = alarms
        run.publish(self, trainer.model, metrics, summary, base=base, files={scoring.FACTS: facts})

    def rows(self, preferences: Sequence[Preference]) -> list[dict[str, Any]]:
        """Each prompt with its answers, the pairs of them, and how sure the judge is of each; one row a prompt."""
        if not preferences:
            raise TrainingError("the reward model has no pairs to learn from; see label/summary.json for why")
        return views.together(preferences)

    def trainer(self, rows: Sequence[dict[str, Any]], setting: Setting) -> "Trainer":
        """TRL's RewardTrainer on the rows, with a loss over all pairs of a prompt."""
        from datasets import Dataset
        from trl import RewardConfig

        pad_id = scoring.padding_id(setting.tokenizer)
        setting.tokenizer.pad_token = setting.tokenizer.convert_ids_to_tokens(pad_id)
        length = self._length(setting)
        arguments = RewardConfig(**setting.arguments(self), center_rewards_coefficient=self.center_rewards_coefficient)
        peft_config = setting.peft_config(self)
        # With this task PEFT trains and saves the head; with any other it would be lost.
        peft_config.task_type = "SEQ_CLS"
        # Whatever else is new, such as the pooler of a BERT that was saved without one, is trained and saved whole too.
        new = sorted(name for name in setting.model.drawn if not name.startswith(("score", "classifier")))
        if new:
            peft_config.modules_to_save = [*(peft_config.modules_to_save or []), *new]
            peft_config.exclude_modules = [*(peft_config.exclude_modules or []), *new]
        return _pairwise_trainer()(
            model=setting.model,
            args=arguments,
            train_dataset=Dataset.from_list([self._encoded(row, setting, length) for row in rows]),
            processing_class=setting.tokenizer,
            data_collator=Together(pad_id, soft=self.soft_labels, margin=self.margin),
            peft_config=peft_config,
        )

    def _preferences(self, run: TrainRun) -> list[Preference]:
        return run.preferences() if self.pairs == "preferences" else run.decided()

    def _setting(self, run: TrainRun) -> Setting:
        model = load_scorer(self.base or run.model, seed=run.seed, training=True, divided=run.launch.zero == 3)
        return Setting(
            model=model,
            tokenizer=load_tokenizer(self.base or run.model, chat=_pool(model) == "last"),
            output_dir=run.checkpoints.folder,
            seed=run.seed,
            launch=run.launch,
        )

    def _length(self, setting: Setting) -> int:
        """Tokens that are read: an encoder has places for 512, and breaks at the next."""
        return int(min(self.max_length, scoring.room(setting.model, setting.tokenizer)))

    def _encoded(self, row: dict[str, Any], setting: Setting, length: int) -> dict[str, Any]:
        prompt = [Message.model_validate(message) for message in row["prompt"]]
        answers = [
            Response(text=text, source="", finished=not cut)
            for text, cut in zip(row["answers"], row["cut"], strict=True)
        ]
        return {
            "answer_ids": [self._ids(prompt, answer, setting, length) for answer in answers],
            "pairs": row["pairs"],
            "confidence": row["confidence"],
            # By these two TRL knows that the rows are token ids already.
            "chosen_ids": [],
            "rejected_ids": [],
        }

    def _ids(self, prompt: Sequence[Message], answer: Response, setting: Setting, length: int) -> list[int]:
        encode = scoring.conversation_ids if _pool(setting.model) == "last" else scoring.encoder_ids
        return encode(setting.tokenizer, prompt, answer, length)

    def _told_apart(self, preferences: Sequence[Preference], setting: Setting) -> tuple[list[Preference], list[str]]:
        """The pairs whose answers are not the same tokens within `max_length`, and what a reader should know of it.

        Raises:
            TrainingError: fewer than two prompts have such a pair.
        """
        length, pool = self._length(setting), _pool(setting.model)
        read: dict[tuple[str, Response], tuple[int, ...]] = {}
        cut = 0
        for each in preferences:
            for answer in (each.chosen, each.rejected):
                if (each.prompt.id, answer) not in read:
                    messages = each.prompt.messages
                    read[each.prompt.id, answer] = tuple(self._ids(messages, answer, setting, length))
                    cut += scoring.is_cut(setting.tokenizer, messages, answer, length, pool)
        kept = [
            each for each in preferences if read[each.prompt.id, each.chosen] != read[each.prompt.id, each.rejected]
        ]
        alike = (
            f"{len(preferences) - len(kept)} of {len(preferences)} pairs have answers that are the same within "
            f"max_length ({length} tokens)"
        )
        if len({each.prompt.id for each in kept}) < 2:
            raise TrainingError(
                f"the reward model needs pairs of two prompts, and {alike}; raise max_length, or name a base that "
                "reads more as train.reward_model.base"
            )
        alarms = [f"{alike}: left out."] if len(kept) < len(preferences) else []
        if cut:
            alarms.append(f"{cut} of {len(read)} answers do not fit into max_length ({length} tokens): cut there.")
        return kept, alarms

    def _examined(self, model: Any, setting: Setting, held_out: Sequence[Preference]) -> dict[str, Any]:
        from pipeline.algorithms.held_out import examine

        answers = [
            (preference.prompt, answer)
            for preference in held_out
            for answer in (preference.chosen, preference.rejected)
        ]
        length = self._length(setting)
        rows = [self._ids(prompt.messages, answer, setting, length) for prompt, answer in answers]
        lengths = [len(setting.tokenizer(answer.text, add_special_tokens=False)["input_ids"]) for _, answer in answers]
        model.eval()
        # An answer is in several pairs, and read once.
        different = list(dict.fromkeys(map(tuple, rows)))
        found = scoring.classifier_scores(model, different, model.config.get_text_config().pad_token_id)
        score_of = dict(zip(different, found, strict=True))
        scores = [score_of[tuple(row)] for row in rows]
        exam = examine(
            held_out,
            list(zip(scores[::2], scores[1::2], strict=True)),
            list(zip(lengths[::2], lengths[1::2], strict=True)),
            setting.seed,
        )
        return exam.model_dump(mode="json")


# ---- the loss


def bradley_terry(
    chosen_N: "torch.Tensor", rejected_N: "torch.Tensor", confidence_N: "torch.Tensor", margin: float
) -> "torch.Tensor":
    """-c log sigmoid(d - m) - (1 - c) log sigmoid(m - d) of each pair, in nats, with d = chosen - rejected."""
    from torch.nn.functional import logsigmoid

    difference_N = chosen_N - rejected_N - margin
    return -confidence_N * logsigmoid(difference_N) - (1 - confidence_N) * logsigmoid(-difference_N)


class Together:
    """A data collator: the answers to several prompts as one batch, and the pairs of them by their places in it."""

    def __init__(self, pad_id: int, *, soft: bool, margin: float) -> None:
        self.pad_id = pad_id
        self.soft = soft
        self.margin = margin

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """`input_ids` and `attention_mask` (B, T); `pairs` (N, 2) int64, `confidence` and `weight` (N,) float32."""
        import torch

        ids: list[list[int]] = []
        pairs: list[tuple[int, int]] = []
        confidences: list[float] = []
        weights: list[float] = []
        for example in examples:
            pairs += [(len(ids) + chosen, len(ids) + rejected) for chosen, rejected in example["pairs"]]
            confidences += example["confidence"] if self.soft else [1.0] * len(example["pairs"])
            weights += [1 / len(example["pairs"]) / len(examples)] * len(example["pairs"])
            ids += example["answer_ids"]
        ids_BT, mask_BT = scoring.padded(ids, self.pad_id, "cpu")
        return {
            "input_ids": ids_BT,
            "attention_mask": mask_BT,
            "pairs": torch.tensor(pairs),
            "confidence": torch.tensor(confidences),
            "weight": torch.tensor(weights),
            "margin": self.margin,
        }


def _pairwise_trainer() -> Any:
    import torch
    from trl import RewardTrainer

    from pipeline.algorithms.ppo_packing import pack_rows

    class PairwiseTrainer(RewardTrainer):  # type: ignore[misc]
        """TRL's trainer with a loss over pairs that share answers, and the same metrics."""

        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.trees = _takes_trees(self.model)

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            pairs_N2, confidence_N, weight_N = (inputs.pop(name) for name in ("pairs", "confidence", "weight"))
            margin = inputs.pop("margin")
            scores_B = self.scores(model, **inputs)
            chosen_N, rejected_N = scores_B[pairs_N2].unbind(-1)
            loss_N = bradley_terry(chosen_N, rejected_N, confidence_N, margin)
            if self.args.center_rewards_coefficient is not None:
                loss_N = loss_N + self.args.center_rewards_coefficient * (chosen_N + rejected_N) ** 2
            loss = (weight_N * loss_N).sum()
            with torch.no_grad():
                noted = self._metrics["train"]
                noted["mean_reward"].append(scores_B.mean().item())
                noted["accuracy"].append((weight_N * (chosen_N > rejected_N)).sum().item())
                noted["margin"].append((weight_N * (chosen_N - rejected_N)).sum().item())
            return (loss, None) if return_outputs else loss

        def scores(self, model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            """(B,), fp32, of rows that are padded on the right."""
            if not self.trees:
                found = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
                scores_B: torch.Tensor = found.logits.squeeze(-1).float()
                return scores_B
            widths = attention_mask.sum(-1).tolist()
            rows = [ids[:width] for ids, width in zip(input_ids.tolist(), widths, strict=True)]
            packed = pack_rows(rows, input_ids.device, tree=True)
            heard: list[torch.Tensor] = []
            # The model picks one token's score of each row that it is given; all tokens' are what its head gives.
            hook = self.model.get_base_model().score.register_forward_hook(lambda *told: heard.append(told[2]))
            try:
                model(input_ids=packed.ids_BT, use_cache=False, **packed.options)
            finally:
                hook.remove()
            return heard[0].flatten()[packed.read_N].float()

    return PairwiseTrainer


def _takes_trees(model: Any) -> bool:
    """Whether this reward model, as it is trained, computes trees as it computes rows."""
    from pipeline.algorithms.ppo_packing import takes_trees
    from pipeline.algorithms.short_attention import use_short_attention

    inner = model.get_base_model()
    if _pool(model) != "last":
        return False
    use_short_attention(inner)
    training = model.training
    model.train()  # dropout in the attention is nothing for a tree
    try:
        return takes_trees(inner, getattr(inner, inner.base_model_prefix))
    finally:
        model.train(training)


def _pool(model: Any) -> scoring.Pool:
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "last" if hasattr(inner, "score") else "own"
