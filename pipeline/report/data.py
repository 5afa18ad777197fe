"""What a report is made of: records, whole before anything is drawn.

What is left out: reading a run directory, which fills them (`pipeline.compare`).
"""

from pydantic import Field

from judges.grading import ExamReport
from judges.ledger import Spent
from pipeline.agreement import AgreementReport
from pipeline.algorithms.held_out import HeldOut
from pipeline.crowd import People
from pipeline.findings import Finding
from pipeline.ratings import Results
from pipeline.records import Message, Record


class Labels(Record):
    """What labelling the training data came to."""

    judge: str
    prompts: int
    candidates: int | None = None
    """Answers to each prompt. None: the pairs are people's."""
    pairs: int
    decided: int
    ties: int
    abstained: dict[str, int] = Field(default_factory=dict)
    """Reason -> count."""
    confidence: tuple[int, ...] = ()
    """Decided pairs by confidence, in bins of equal width from 0.5 to 1."""
    findings: dict[str, float] = Field(default_factory=dict)
    """What the judge tells of itself (`judges.base.JudgeConfig.summary`); `..._rate` is a share."""


class StepTime(Record):
    """What one step of the run took."""

    name: str
    state: str
    seconds: float | None = None
    peak_memory_bytes: int | None = None


class Sample(Record):
    """One held-out prompt with every checkpoint's answer and every judge's scores."""

    prompt: tuple[Message, ...]
    kind: str = ""
    lang: str = ""
    answers: dict[str, str]
    """Checkpoint -> text."""
    finished: dict[str, bool | None] = Field(default_factory=dict)
    """Checkpoint -> whether the answer ended by itself."""
    scores: dict[str, dict[str, float | None]] = Field(default_factory=dict)
    """Judge -> `one vs other` -> P(`one` is better), or None where the judge abstained."""
    evidence: dict[str, dict[str, str]] = Field(default_factory=dict)
    """Judge -> `one vs other` -> what the judge said, in lines."""


class ReportData(Record):
    """Everything a report is made of."""

    title: str
    recipe_yaml: str
    """The resolved recipe."""
    results: Results
    """Of the last round, if there are several."""
    rounds: tuple[Results, ...] = ()
    """Of every round, the first one first; empty where there is one."""
    labels: Labels | None = None
    curves: dict[str, list[dict[str, float | None]]] = Field(default_factory=dict)
    """Train step -> its log, one mapping an entry: `step` and any metrics."""
    reward_models: dict[str, HeldOut] = Field(default_factory=dict)
    """Train step -> how its reward model did on held-out pairs."""
    steps: tuple[StepTime, ...] = ()
    spending: tuple[Spent, ...] = ()
    """What paid judges took; empty where none was asked."""
    versions: dict[str, str] = Field(default_factory=dict)
    hardware: dict[str, str] = Field(default_factory=dict)
    exam: ExamReport | None = None
    """What the labelling judge's exam found. None: it was not examined."""
    findings: tuple[Finding, ...] = ()
    """What the doctor found before anything was loaded or trained."""
    people: People | None = None
    """Who voted, where people labelled."""
    against_people: AgreementReport | None = None
    """How the comparing judges do on votes that nobody was trained on."""
    alarms: tuple[str, ...] = ()
    """What makes the whole run doubtful; above the warnings, and louder."""
    warnings: tuple[str, ...] = ()
    between_judges: AgreementReport | None = None
    """How far the comparing judges agree with one another, on the very answers that they compared."""
    samples: tuple[Sample, ...] = ()
    kept_at: tuple[str, ...] = ()
    """Files of the run, relative to its directory, that hold all answers and all verdicts."""
