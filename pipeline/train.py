"""Stage 3: one train step, in a process of its own: preferences -> an adapter, saved as a standard PEFT folder.

A killed step goes on from its newest sound checkpoint, with the same numbers as if nothing had happened. What is left
out: what is learned and how (`pipeline.algorithms`), checkpoints included.
"""

from pipeline import store
from pipeline.algorithms.base import TrainRun
from pipeline.label import session_of, tell_spending
from pipeline.launch import HERE, LaunchConfig
from pipeline.models import ModelConfig
from pipeline.plugins import Config
from pipeline.recipe import AnyAlgorithm
from pipeline.worker import Job

VERSION = 2
"""Raised when a change of this file, or of what is shared by all algorithms, changes what comes out."""


class Training(Config):
    """The identity of a train step."""

    RUNTIME = frozenset({"launch", "budget_usd", "allow_inexact_resume"})

    seed: int
    model: ModelConfig
    algorithm: AnyAlgorithm
    launch: LaunchConfig = HERE
    budget_usd: float | None = None
    allow_inexact_resume: bool = False


def finish(job: Job) -> None:
    """Train, alone or together with others, and write the adapter, its model card, metrics.jsonl and summary.json.

    Raises:
        TrainingError: there is nothing to learn from, the model cannot be trained here, or a guard stopped it.
        LostRankError: another process of the step ended or fell silent.
    """
    # Only here, because planning imports this file, and this one imports torch.
    from pipeline.algorithms.ranks import together

    config = Training.model_validate(job.options["config"])
    run = TrainRun(
        step=job.step,
        seed=config.seed,
        model=config.model,
        launch=config.launch,
        inputs=job.inputs,
        work_dir=job.work_dir,
        out=job.out,
        session=session_of(job, config.budget_usd),
        fingerprinted={**config.identity(), "files": {str(path): store.sha256_file(path) for path in job.files}},
        allow_inexact_resume=config.allow_inexact_resume,
    )
    with together(job.step, job.rank, job.world, config.launch.timeout_s):
        _ = run.checkpoints.newest  # what cannot be gone on from is refused before a model loads
        config.algorithm.train(run)
    if job.rank == 0:
        tell_spending(job)  # of a judge that gave rewards
