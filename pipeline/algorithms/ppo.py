"""Proximal Policy Optimization (Schulman et al. 2017, arXiv:1707.06347) on one base in memory.

The policy answers prompts, a reward scores the answers, and the policy is moved towards what scored above what its
critic expected, held to where it started from by a penalty on the divergence. Policy, reference, reward model and
critic are adapters on one frozen, quantised base. This file puts the parts together:

    ppo_options.py   what a recipe can say             ppo_trainer.py   the loop, in numbered steps
    ppo_roles.py     one base, its adapters by role    fused_lora.py    LoRA in fewer passes
    ppo_math.py      the equations                     ppo_rollout.py   prompts and sampled answers
    ppo_state.py     exact resuming                    ppo_guards.py    what stops it
    ppo_metrics.py   an update in numbers              short_attention.py   attention over short rows
    ppo_packing.py   micro-batches                     ranks.py         several processes
    ppo_server.py    answers from a vLLM server        ppo_completion.py   how they are read

What is left out: DeepSpeed.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from judges.api import lacking_key
from pipeline.algorithms import rewards
from pipeline.algorithms.base import TrainRun
from pipeline.algorithms.ppo_options import Options
from pipeline.algorithms.ppo_server import Server
from pipeline.errors import TrainingError
from pipeline.models import chat_ids
from pipeline.records import digest

if TYPE_CHECKING:
    from pipeline.algorithms.ppo_rollout import Task
    from pipeline.algorithms.ppo_trainer import PPOTrainer


class Config(Options):
    """PPO; its options are in `ppo_options.py`."""

    READS: ClassVar[tuple[str, ...]] = ("generate",)

    name: Literal["ppo"] = "ppo"

    def train(self, run: TrainRun) -> None:
        """Sample, score and learn, from the newest checkpoint on; leaves the policy's adapter.

        Raises:
            TrainingError: there is nothing to learn from, or a guard stopped it.
        """
        trackers = self._trackers(run)
        trainer = self.prepare(run)
        trainer.log = lambda line, update: _log(trackers, line, update)
        metrics = trainer.train()
        for tracker in trackers:
            tracker.finish()
        if trainer.ranks.rank:
            return  # the first process publishes
        for part in trainer.trained.values():
            part.release()
        run.publish(
            self,
            trainer.roles.model,
            [line for line in metrics if line["step"] % self.logging_steps == 0],
            {
                "examples": trainer.episodes * trainer.progress.update,
                "updates": trainer.progress.update,
                **({"stopped_by": f"kl_budget={self.kl_budget:g}"} if trainer.progress.update < trainer.total else {}),
                "prompts": len(trainer.tasks),
                "prompts_held_out": len(trainer.heldout),
                "prompts_too_long": len(run.prompts()) - len(trainer.tasks) - len(trainer.heldout),
                "start": trainer.progress.start,
                "evaluations": trainer.progress.evaluations,
                "alarms": sorted({alarm for line in metrics for alarm in line["alarms"]}),
            },
            adapter="policy",
        )

    def prepare(self, run: TrainRun) -> "PPOTrainer":
        """Everything loaded, and nothing trained yet.

        Raises:
            TrainingError: the reward or the prompts cannot be trained on, or the server cannot sample.
            ModelError: a model or an adapter cannot be loaded.
        """
        from pipeline.algorithms import scoring
        from pipeline.algorithms.ppo_roles import Roles
        from pipeline.algorithms.ppo_trainer import PPOTrainer
        from pipeline.sampling.local import end_tokens

        rewards.check(self.reward, run)
        server = self.server(run.step, run.work_dir / "adapters")
        if server is not None:
            server.check(self.max_length, self.temperature)
        setting = run.setting()
        tasks, heldout = self._tasks(run, setting.tokenizer)
        head = scoring.load_reward(run.folder(self.reward.step)) if self.reward.step else None
        shared = head is not None and head.shared and head.pool == "last"
        roles = Roles(
            setting.model,
            setting.peft_config(self),
            seed=run.seed,
            start=run.folder(self.start_from) if self.start_from else None,
            reward=head if shared else None,
            critic=self.critic,
            gradient_checkpointing=self.gradient_checkpointing,
        )
        return PPOTrainer(
            self,
            roles,
            setting.tokenizer,
            tasks,
            heldout=heldout,
            reward=None if shared else rewards.build(self.reward, run, roles.model, setting.tokenizer),
            judge=self._judge(run),
            server=server,
            eos=end_tokens(setting.model, setting.tokenizer),
            seed=run.seed,
            checkpoints=run.checkpoints,
            step=run.step,
        )

    def lacks(self) -> Iterable[str]:
        key = None if self.rollouts is None else self.rollouts.api_key_env
        return (f"rollouts.{lacking}" for lacking in lacking_key(key))

    def server(self, step: str, folder: Path) -> Server | None:
        """The server that samples for this step; None: there is none.

        Args:
            folder: for the adapters, if the recipe names none.

        Raises:
            ServerError: the key is not in the environment.
        """
        return None if self.rollouts is None else Server(self.rollouts, step, folder, at_once=self.rollout_batch_size)

    def _tasks(self, run: TrainRun, tokenizer: Any) -> "tuple[list[Task], list[Task]]":
        """Prompts to train on and prompts held out for evaluation, those left out that `max_length` has no room for."""
        from pipeline.algorithms.ppo_rollout import Task

        every = [Task(prompt, tuple(chat_ids(tokenizer, prompt.messages))) for prompt in run.prompts()]
        fit = [task for task in every if len(task.ids) + self.max_new_tokens <= self.max_length]
        # By a hash of the prompt, so that one more prompt in the file moves no other from one side to the other.
        ordered = sorted(fit, key=lambda task: digest(["held out", task.prompt.id]))
        count = self.eval_prompts if self.eval_steps else 0
        if len(ordered) <= count:
            raise TrainingError(
                f"{run.step}: {len(every)} prompts, {len(every) - len(fit)} of them longer than max_length leaves room "
                f"for, {count} to be held out: none is left to train on"
            )
        held = {task.prompt.id for task in ordered[:count]}
        return [task for task in fit if task.prompt.id not in held], ordered[:count]

    def _judge(self, run: TrainRun) -> Any:
        if self.eval_judge is None:
            return None
        judge: Any = self.eval_judge.build(run.session)
        if not hasattr(judge, "score"):
            raise TrainingError(
                f"{run.step}: eval_judge: {self.eval_judge.name} compares two answers and cannot score one by itself; "
                "name one that does, such as likelihood"
            )
        return judge

    def _trackers(self, run: TrainRun) -> list[Any]:
        """The trackers of `report_to`, started."""
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

        installed = [str(getattr(each, "value", each)) for each in get_available_trackers()]
        found = []
        for name in self.report_to:
            if name not in LOGGER_TYPE_TO_CLASS or name not in installed:
                why = "is not installed" if name in LOGGER_TYPE_TO_CLASS else "is none that accelerate knows"
                raise TrainingError(f"{run.step}: report_to: {name!r} {why}; installed are: {', '.join(installed)}")
            kind = LOGGER_TYPE_TO_CLASS[name]
            where = {"logging_dir": str(run.work_dir)} if kind.requires_logging_directory else {}
            tracker = kind(run.step, **where)
            tracker.start()
            tracker.store_init_configuration(self.model_dump(mode="json"))
            found.append(tracker)
        return found


def _log(trackers: list[Any], line: dict[str, Any], update: int) -> None:
    for tracker in trackers:
        tracker.log({name: value for name, value in line.items() if isinstance(value, int | float)}, step=update)
