"""What a training algorithm is: its options, what it reads and makes, and how it is run.

Options carry TRL's and transformers' own names, so that their documentation is ours. One that has a trainer of TRL
gives its rows and that trainer; one that has none overrides `train`. What is left out: checkpoints and what a step
leaves (`checkpoints.py`), which are the same for every algorithm.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from judges.base import Session
from pipeline import architectures, store, views, weights
from pipeline.algorithms import checkpoints, output_layer, zero
from pipeline.algorithms.checkpoints import Checkpoints
from pipeline.algorithms.origin import origin
from pipeline.errors import TrainingError
from pipeline.launch import HERE, LaunchConfig
from pipeline.models import ModelConfig, dtype_of, has_encoder, load_model, load_tokenizer
from pipeline.plugins import Config
from pipeline.records import Pair, Preference, Prompt, Thumb, Verdict

if TYPE_CHECKING:
    from transformers import Trainer


NO_ENCODER = (
    "is an encoder-decoder, which answers, is compared, and is trained by sft and dpo alone; name a causal model "
    "(a ...ForCausalLM)"
)
"""Why an algorithm refuses a base."""


class LoraConfig(Config):
    """The adapter that is trained (Hu et al. 2021, arXiv:2106.09685); the base below it stays frozen."""

    r: int = Field(default=16, ge=1)
    """Rank of the update."""
    lora_alpha: int = Field(default=32, ge=1)
    """The update is scaled by lora_alpha / r."""
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the adapter's inputs set to zero in training. Only SFT has it: the others compare two passes."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """Which layers get one: PEFT's `all-linear`, less what cannot be adapted, or names such as [q_proj, v_proj]."""
    use_dora: bool = False
    """Train each weight's magnitude by itself, beside the direction (Liu et al. 2024, arXiv:2402.09353)."""


Product = Literal["policy", "reward"]
"""What a train step makes: a policy, which is compared, or something that scores answers, which is not."""


class Need(NamedTuple):
    """An earlier train step whose output a step reads."""

    option: str
    """The option that names it, as a key path inside the block."""
    step: str
    makes: Product
    """What the step has to make."""
    adapter: bool = False
    """It has to be a LoRA on the base as it came."""


class Examples(NamedTuple):
    """What an algorithm learns from in one run."""

    rows: list[dict[str, Any]]
    """One training example each."""
    counts: dict[str, int]
    """What they were made of, for the summary."""
    alarms: tuple[str, ...] = ()
    """What a reader of the report should know about them, a sentence each."""


class AlgorithmConfig(Config):
    """Base of every algorithm's Config. The subclass adds `name: Literal["its file"]` and its own options."""

    VERSION: ClassVar[int] = 1
    """Raised by hand when a change of the code changes the adapter, so that old ones are not taken for new."""
    MAKES: ClassVar[Product] = "policy"
    READS: ClassVar[tuple[str, ...]] = ("label",)
    """The stages whose output it reads: `label` for preferences, `generate` for prompts."""
    DROPOUT: ClassVar[bool] = False
    """Its passes may leave out a part of the adapter's inputs."""
    ENCODER_DECODERS: ClassVar[bool] = False
    """It trains models with an encoder (T5, BART) too."""
    RUNTIME: ClassVar[frozenset[str]] = frozenset({"report_to", "launch"})

    name: str
    """The algorithm: a file of `pipeline/algorithms/`, or the dotted name of a module that defines such a Config."""
    lora: LoraConfig = LoraConfig()
    """The adapter that is trained."""
    learning_rate: float = Field(default=5e-5, gt=0)
    """Peak learning rate of AdamW."""
    lr_scheduler_type: str = "linear"
    """transformers' name of the schedule after the warm-up."""
    warmup_steps: float = Field(default=0.1, ge=0)
    """Steps of linear warm-up; below 1 it is the share of all steps."""
    num_train_epochs: float = Field(default=1.0, gt=0)
    """Passes over the preferences."""
    max_steps: int = Field(default=-1, ge=-1)
    """Stop after so many updates, whatever the epochs; -1: no such limit."""
    per_device_train_batch_size: int = Field(default=4, ge=1)
    """Examples a forward pass."""
    gradient_accumulation_steps: int = Field(default=4, ge=1)
    """Forward passes an update. Several processes share them out, and see together what one would see."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Longer gradients are scaled down to this norm."""
    max_length: int = Field(default=1024, ge=2)
    """Tokens of prompt and answer together; longer ones are cut at the end."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, about a third more time."""
    logging_steps: int = Field(default=1, ge=1)
    """Updates between two lines of metrics."""
    save_steps: int = Field(default=25, ge=1)
    """Updates between two checkpoints to resume from."""
    report_to: tuple[str, ...] = ()
    """Trackers of transformers that also get the metrics: trackio, wandb, tensorboard, mlflow."""
    launch: LaunchConfig | None = None
    """The processes in which this step runs. None: those of the recipe."""

    @model_validator(mode="after")
    def _drops_nothing_unless_it_may(self) -> Self:
        if self.lora.lora_dropout and not self.DROPOUT:
            # TRL sets it to 0 and says nothing.
            raise ValueError(f"lora.lora_dropout: {self.name} compares two passes of the same weights; set it to 0")
        return self

    def identity(self) -> dict[str, Any]:
        """The options, and the version of the code."""
        # In capitals, which no option is: a plugin may have one that is called `version`.
        return {**super().identity(), "VERSION": self.VERSION}

    def needs(self) -> tuple[Need, ...]:
        """The earlier train steps whose output it reads."""
        return ()

    def lacks(self) -> Iterable[str]:
        """What is missing for it to train, such as a key, as `option: what; what to do`: told before anything runs."""
        return ()

    def trains_base(self) -> bool:
        """Whether it trains weights of the base itself, and no adapter on it."""
        return False

    def reads(self) -> tuple[str, ...]:
        """The stages whose output it reads with these options."""
        return self.READS

    def files(self) -> dict[str, tuple[Path, ...]]:
        """Data files that it reads itself, by the options that name them, as key paths inside the block."""
        return {}

    @property
    def by_example(self) -> bool:
        """Whether the loss of a forward pass is the mean of its examples', so that it can be spread over processes."""
        return False

    def share(self, world: int) -> tuple[int, int] | None:
        """What each of so many processes has as batch of a forward pass and accumulation, so that an update sees the
        examples that it sees with one process, in the same batches where the loss needs it. None: that cannot be."""
        passes = math.gcd(self.gradient_accumulation_steps, world)
        rest = world // passes
        batch, left = divmod(self.per_device_train_batch_size, rest)
        if rest > 1 and (left or not self.by_example):
            return None
        return batch, self.gradient_accumulation_steps // passes

    def refusals(self, launch: LaunchConfig) -> list[str]:
        """Why this algorithm cannot run so; told before anything loads."""
        if self.share(launch.world):
            return []
        batch, accumulation = self.per_device_train_batch_size, self.gradient_accumulation_steps
        also = " or per_device_train_batch_size" if self.by_example else ""
        return [
            f"an update has gradient_accumulation_steps={accumulation} passes of per_device_train_batch_size={batch}, "
            f"which {launch.world} processes cannot share without changing it; make gradient_accumulation_steps{also} "
            f"a multiple of {launch.world}, or give this step launch: here"
        ]

    def train(self, run: "TrainRun") -> None:
        """Train, and leave the result in `run.out`; by default with the trainer of TRL that `trainer` gives.

        A killed run is called again with what it left in `run.work_dir`, and ends with the same bytes.

        Raises:
            TrainingError: there is nothing to learn from, or training was stopped by a guard.
        """
        examples = self.examples(run)
        setting = self.setting(run)
        output_layer.count_labels_alone()
        trainer = self.trainer(examples.rows, setting)
        kept = len(trainer.train_dataset)
        left_out = _left_out(len(examples.rows), kept, self.max_length)
        started = self.started(trainer)
        metrics = checkpoints.fit(trainer, run.checkpoints)
        alarms = [*examples.alarms, *left_out, *repeated(trainer, run.launch.world), *self.alarms(metrics)]
        summary = {**examples.counts, "examples": kept, "updates": trainer.state.global_step, **started}
        if alarms:
            summary["alarms"] = alarms
        run.publish(self, trainer.model, metrics, summary, start=setting.start)

    def setting(self, run: "TrainRun") -> "Setting":
        """What the trainer needs, with the base loaded."""
        return run.setting(encoder_decoders=self.ENCODER_DECODERS)

    def started(self, trainer: "Trainer") -> dict[str, Any]:
        """What was measured of the trainer before its first update, for the summary.

        Raises:
            TrainingError: it would not learn what it is meant to.
        """
        return {}

    def examples(self, run: "TrainRun") -> Examples:
        """What it learns from in this run: by default the preferences alone.

        Raises:
            TrainingError: there is nothing to learn from.
        """
        preferences = run.preferences()
        return Examples(self.rows(preferences), {"preferences": len(preferences)})

    def alarms(self, metrics: Sequence[dict[str, Any]]) -> list[str]:
        """What a reader of the report should know about how training went, a sentence each."""
        return []

    def rows(self, preferences: Sequence[Preference]) -> list[dict[str, Any]]:
        """The preferences as this algorithm learns from them, one training example a row.

        Raises:
            TrainingError: there is nothing to learn from.
        """
        raise NotImplementedError

    def trainer(self, rows: Sequence[dict[str, Any]], setting: "Setting") -> "Trainer":
        """TRL's trainer, ready to train.

        Raises:
            TrainingError: these options cannot work with these rows.
        """
        raise NotImplementedError


def _left_out(rows: int, kept: int, max_length: int) -> list[str]:
    """Examples whose prompt leaves no room are dropped in silence, by TRL or by `tokens.py`."""
    if not kept:
        raise TrainingError(f"every prompt alone has max_length ({max_length}) tokens or more; raise max_length")
    if kept == rows:
        return []
    return [f"{rows - kept} of {rows} examples were left out: their prompt alone fills max_length ({max_length})."]


def repeated(trainer: Any, world: int) -> list[str]:
    """accelerate gives every process as many whole batches as the others, filled from the beginning again."""
    missing = -len(trainer.train_dataset) % (trainer.args.per_device_train_batch_size * world)
    if world == 1 or not missing:
        return []
    return [
        f"the last update of each pass repeats its first {missing} examples, so that all {world} processes have as "
        "many: another number of processes learns slightly other weights."
    ]


class TrainRun(Config):
    """One train step at work: what it was given, and where it leaves what."""

    step: str
    """The step's name, for messages: `train.dpo`."""
    seed: int
    model: ModelConfig
    """The policy before training."""
    launch: LaunchConfig = HERE
    """The processes that train together; this is one of them."""
    inputs: dict[str, Path]
    """The published folder of each step that it reads: stages by their names, train steps as `train.<name>`."""
    work_dir: Path
    """What is left here is found again after a kill, and deleted when the step is done."""
    out: Path
    """What is left here is published."""
    session: Session = Session()
    """For whom a judge works that gives rewards."""
    fingerprinted: dict[str, Any] = Field(default_factory=dict)
    """What the step's fingerprint holds besides its inputs: seed, model, algorithm, hashes of data files."""
    allow_inexact_resume: bool = False
    """Go on from a checkpoint that was made with other versions, on another device, or otherwise."""

    @cached_property
    def checkpoints(self) -> Checkpoints:
        """What a killed run left, and where this one leaves what the next would go on from."""
        return Checkpoints(
            self.work_dir / "checkpoints",
            self.step,
            made_by=origin(self.fingerprinted, self.model, self.inputs, self.launch.zero),
            allow_inexact=self.allow_inexact_resume,
        )

    def preferences(self) -> list[Preference]:
        """What the label step decided. The algorithm has `label` in `READS`."""
        return list(store.read_jsonl(self.inputs["label"] / "preferences.jsonl", Preference))

    def thumbs(self) -> list[Thumb]:
        """Answers that people found good or bad by themselves, if the label step has some."""
        path = self.inputs["label"] / "thumbs.jsonl"
        return list(store.read_jsonl(path, Thumb)) if path.exists() else []

    def decided(self) -> list[Preference]:
        """Every pair that has a winner, however sure the judge is. Both stages are in the algorithm's `READS`."""
        pairs = list(store.read_jsonl(self.inputs["generate"] / "pairs.jsonl", Pair))
        return views.decided(pairs, list(store.read_jsonl(self.inputs["label"] / "verdicts.jsonl", Verdict)))

    def prompts(self) -> list[Prompt]:
        """The training prompts. The algorithm has `generate` in `READS`."""
        return list(store.read_jsonl(self.inputs["generate"] / "prompts.jsonl", Prompt))

    def folder(self, step: str) -> Path:
        """What the train step of this name made. The algorithm has it in `needs()`."""
        return self.inputs[f"train.{step}"]

    def setting(self, start_from: str | None = None, *, encoder_decoders: bool = False) -> "Setting":
        """What a trainer needs, with the base loaded to be trained, or for an adapter to be trained on it.

        Args:
            start_from: a train step whose policy is gone on with: the base has its weights, if it trained some.
            encoder_decoders: the algorithm trains such models.

        Raises:
            TrainingError: the algorithm does not train a model of this kind. It is not loaded.
        """
        if not encoder_decoders and has_encoder(self.model):
            # TRL's trainers would give the encoder prompt and answer as one text.
            raise TrainingError(f"{self.step}: model.base: {self.model.base} {NO_ENCODER}")
        start = self.folder(start_from) if start_from else None
        model = load_model(self.model, training=True, divided=self.launch.zero == 3)
        if start is not None:
            weights.load(model, start)
        return Setting(
            model=model,
            tokenizer=load_tokenizer(self.model),
            output_dir=self.checkpoints.folder,
            seed=self.seed,
            start=start,
            launch=self.launch,
        )

    def publish(
        self,
        algorithm: AlgorithmConfig,
        model: Any,
        metrics: Sequence[dict[str, Any]],
        summary: dict[str, Any],
        *,
        base: ModelConfig | None = None,
        adapter: str = "default",
        start: Path | None = None,
        files: Mapping[str, Any] | None = None,
    ) -> None:
        """Leave a PEFT folder, or the weights that were trained, with a model card, metrics.jsonl and summary.json.

        Every process calls it, and the first one writes.

        Args:
            model: a PeftModel, or the base if it was trained itself.
            metrics: a line an update, without what depends on the clock.
            summary: what was done, in numbers; `examples` and `updates` among them.
            base: what the adapter is on top of. None: the policy before training.
            adapter: the one that was trained.
            start: the folder that training started from.
            files: what else is written, as JSON, by name.
        """
        from pipeline.algorithms.ranks import Ranks

        trained = [each for each in model.parameters() if each.requires_grad]
        with zero.whole(trained):
            if Ranks().rank == 0:
                self._write(algorithm, model, trained, metrics, summary, base or self.model, adapter, start)
                for name, content in (files or {}).items():
                    store.write_json(self.out / name, content)

    def _write(
        self,
        algorithm: AlgorithmConfig,
        model: Any,
        trained: Sequence[Any],
        metrics: Sequence[dict[str, Any]],
        summary: dict[str, Any],
        below: ModelConfig,
        adapter: str,
        start: Path | None,
    ) -> None:
        whole = {
            "algorithm": algorithm.name,
            **summary,
            **({"inexact_resume": self.checkpoints.inexact} if self.checkpoints.inexact else {}),
            "trainable_parameters": sum(each.numel() for each in trained),
            "dtype": str(dtype_of(below)),
        }
        if hasattr(model, "peft_config"):
            checkpoints.save_adapter(model, self.out, below.base, adapter)
            if start is not None and (start / weights.FILE).exists():
                # The adapter was trained on the base with these weights.
                store.write_bytes(self.out / weights.FILE, [(start / weights.FILE).read_bytes()])
        else:
            weights.save(model, self.out, dtype_of(below))
        checkpoints.write_card(
            self.out,
            # Without what is no part of it, such as the address of a server.
            {name: value for name, value in algorithm.identity().items() if name != "VERSION"},
            below,
            self.seed,
            metrics,
            whole,
            kind=_kind(algorithm, model),
            pad_id=model.config.get_text_config().pad_token_id,
        )
        checkpoints.write_metrics(self.out, metrics)
        store.write_json(self.out / "summary.json", whole)


def _kind(algorithm: AlgorithmConfig, model: Any) -> checkpoints.Kind:
    if algorithm.MAKES == "reward":
        return "SequenceClassification"
    return "Seq2SeqLM" if architectures.is_encoder_decoder(model) else "CausalLM"


class Setting(Config):
    """What a trainer needs besides options and data; the same for every algorithm."""

    model: Any
    """The base, frozen."""
    tokenizer: Any
    output_dir: Path
    """Where checkpoints are written."""
    seed: int
    start: Path | None = None
    """The published folder of the step that training starts from."""
    launch: LaunchConfig = HERE

    def arguments(self, config: AlgorithmConfig) -> dict[str, Any]:
        """The options that every trainer of transformers knows, as keyword arguments of its TrainingArguments."""
        import torch

        shared = AlgorithmConfig.model_fields.keys() - {"name", "lora", "report_to", "launch"}
        dtype = self.model.dtype
        own = config.share(self.launch.world)
        assert own is not None, "or the recipe would have been refused"
        return {
            **{name: getattr(config, name) for name in shared},
            "per_device_train_batch_size": own[0],
            "gradient_accumulation_steps": own[1],
            **zero.arguments(self.launch, self.model.device),
            "report_to": list(config.report_to) or "none",
            "output_dir": str(self.output_dir),
            "seed": self.seed,
            "use_cpu": self.model.device.type == "cpu",
            "bf16": dtype == torch.bfloat16,
            "fp16": dtype == torch.float16,
            "save_strategy": "steps",
            "disable_tqdm": True,
            # A loss that is no number would be logged as the mean of those before it, and stop nothing.
            "logging_nan_inf_filter": False,
            # Keeps the columns that a collator of ours reads.
            "remove_unused_columns": False,
            "dataloader_pin_memory": self.model.device.type != "cpu",
        }

    def peft_config(self, config: AlgorithmConfig) -> Any:
        """PEFT's LoraConfig for the adapter."""
        import peft

        lora = config.lora
        if lora.use_dora:
            architectures.check_dora(self.model, lora.target_modules)
        targets = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
        return peft.LoraConfig(
            r=lora.r,
            lora_alpha=lora.lora_alpha,
            lora_dropout=lora.lora_dropout,
            target_modules=targets,
            exclude_modules=architectures.left_out(self.model, lora.target_modules),
            bias="none",
            use_dora=lora.use_dora,
            task_type="SEQ_2_SEQ_LM" if architectures.is_encoder_decoder(self.model) else "CAUSAL_LM",
        )
