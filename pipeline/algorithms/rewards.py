"""What PPO, RLOO and GRPO are rewarded by: a reward-model step, a judge that scores single answers, or a function.

    reward: reward_model                     # the train step of that name
    reward: {judge: {name: likelihood}}      # d-RLAIF (Lee et al. 2023, arXiv:2309.00267, section 2.2.3)
    reward: mylab.rewards:brevity            # def brevity(prompts, responses) -> list[float | None]

All three answer as `judges.base.Scorer`: a score for each response to the prompt beside it, higher is better, None
where there is none to be had. What is left out: what becomes of a score (normalisation, penalties, the KL term).
"""

import hashlib
import importlib
import inspect
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from judges.base import AnyJudge, Scorer
from pipeline.algorithms import scoring
from pipeline.algorithms.base import Need, TrainRun
from pipeline.errors import TrainingError
from pipeline.plugins import Config, broken_import
from pipeline.records import Prompt, Response

Function = Callable[[Sequence[Prompt], Sequence[Response]], Sequence[float | None]]


class RewardConfig(Config):
    """Where rewards come from: one of step, judge and function. Text alone is a step, or with a colon a function."""

    ONE_OF: ClassVar[frozenset[str]] = frozenset({"step", "judge", "function"})

    step: str | None = None
    """An earlier train step that makes a reward model."""
    judge: AnyJudge | None = None
    """A judge that can score an answer by itself."""
    function: str | None = None
    """`module:function`, imported by that name. It is called with prompts and as many responses (`pipeline.records`),
    and returns a number for each, or None where it has none. The bytes of the files that it and its module are written
    in count: when they change the step is done again. What these import does not."""
    min_accuracy: float = Field(default=0.5, ge=0, lt=1)
    """What the reward model's accuracy on held-out pairs needs to exceed, with the low end of its interval, before
    anything is trained against it. 0.5 is chance; 0 takes any reward model."""

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"function" if ":" in value else "step": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        given = [name for name in sorted(self.ONE_OF) if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"needs one of function, judge and step, and has {' and '.join(given) or 'none'}")
        if self.function is not None:
            _imported(self.function)
        return self

    def identity(self) -> dict[str, Any]:
        found = super().identity()
        return found if self.function is None else {**found, "code": code_of(self.function)}

    def needs(self, option: str) -> tuple[Need, ...]:
        """The reward model's step, for `AlgorithmConfig.needs`; `option` is what the algorithm calls this block."""
        return () if self.step is None else (Need(option, self.step, "reward"),)


def check(reward: RewardConfig, run: TrainRun) -> None:
    """What can be wrong with a reward before any model is loaded.

    Raises:
        TrainingError: the reward model does not beat chance on held-out pairs.
    """
    if reward.step is None:
        return
    head = scoring.load_reward(run.folder(reward.step))
    accuracy, low, high = head.accuracy
    if 0 < reward.min_accuracy >= low:
        raise TrainingError(
            f"{run.step}: the reward model {reward.step!r} orders {accuracy:.1%} [{low:.1%}, {high:.1%}] of its "
            f"held-out pairs as the judge did, and the low end needs to exceed {reward.min_accuracy:.1%}, or a policy "
            "would learn its noise; give it more prompts, another learning_rate or, if it says that answers are cut, a "
            "higher max_length, or take it as it is with reward.min_accuracy=0"
        )


def build(reward: RewardConfig, run: TrainRun, model: Any, tokenizer: Any) -> Scorer:
    """The reward, ready to score.

    Args:
        model: the policy as a PeftModel. A reward model of the same base becomes one more adapter of it, frozen.
        tokenizer: the policy's.

    Raises:
        JudgeError: the judge cannot answer at all.
        TrainingError: it compares answers, and cannot score one.
        ModelError: the reward model cannot be loaded.
    """
    if reward.step is not None:
        head = scoring.load_reward(run.folder(reward.step))
        return scoring.SharedReward(head, model, tokenizer) if head.shared else scoring.SeparateReward(head)
    if reward.judge is not None:
        judge: Any = reward.judge.build(run.session)
        if not hasattr(judge, "score"):
            raise TrainingError(
                f"{run.step}: reward.judge: {reward.judge.name} compares two answers and cannot score one by itself; "
                "name one that does, such as likelihood, or train a reward_model on its verdicts"
            )
        return Checked(judge.score, reward.judge.name)
    assert reward.function is not None, "the recipe has one of the three"
    return Checked(_imported(reward.function), reward.function)


class Checked:
    """A reward from outside, whose answers are looked at before they are learned from."""

    def __init__(self, function: Function, name: str) -> None:
        self.function = function
        self.name = name

    def score(self, prompts: Sequence[Prompt], responses: Sequence[Response]) -> list[float | None]:
        """See `judges.base.Scorer`.

        Raises:
            TrainingError: not one finite number or None for each response.
        """
        scores = list(self.function(prompts, responses))
        if len(scores) != len(responses):
            raise TrainingError(f"{self.name}: {len(scores)} rewards for {len(responses)} responses; one for each")
        return [None if score is None else self._number(score) for score in scores]

    def _number(self, score: Any) -> float:
        try:
            number = float(score)
        except (TypeError, ValueError) as error:
            raise TrainingError(f"{self.name}: the reward {score!r} is no number; return a float or None") from error
        if not math.isfinite(number):
            raise TrainingError(f"{self.name}: the reward {number} is not finite; return None where there is none")
        return number


def code_of(name: str) -> list[str]:
    """SHA-256 of the source files of a `module:function`: of its module, and of where it is written if that is another.
    None of those that are not Python."""
    found = _imported(name)
    written_in = getattr(inspect.unwrap(found), "__module__", None) or type(found).__module__
    modules = [importlib.import_module(each) for each in dict.fromkeys((name.partition(":")[0], written_in))]
    files = [Path(file) for each in modules if (file := getattr(each, "__file__", None))]
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.suffix == ".py"]


def _imported(name: str) -> Function:
    """Raises ValueError, which a recipe tells by its key path."""
    module, _, function = name.partition(":")
    if not module or not function:
        raise ValueError(f"function: {name!r} found; needs to be module:function")
    try:
        found = getattr(importlib.import_module(module), function, None)
    except ModuleNotFoundError as error:
        raise ValueError(f"function: there is no module {error.name!r}; is it on PYTHONPATH?") from error
    except (Exception, SystemExit) as error:  # whatever somebody's module does when it is imported
        raise ValueError(f"function: {broken_import(module, error)}") from error
    if not callable(found):
        raise ValueError(f"function: {module} has no function {function!r}")
    return found  # type: ignore[no-any-return]
