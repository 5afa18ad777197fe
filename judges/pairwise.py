"""Shows a language model both answers and reads how probable each of two labels is as its next token.

No text is generated, so there is no reply to parse and nothing that an answer can make the model write. The labels
are single tokens that suggest no order; which of them goes to the answer shown first is drawn from the pair's id.

The model prefers a place and a label whatever stands there (`order_free` is False); `both_orders` removes that.

What is left out: how it is written (`judges.rendering`) and who reads it: a Backend, of which `judges.local_llm` and
`judges.llm` have one each. Nothing here knows where log-probabilities come from.
"""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar, overload

from pydantic import Field, ValidationInfo, field_validator

from judges.base import JudgeConfig, sigmoid
from judges.rendering import (
    Constitution,
    PairTemplate,
    Rubric,
    Template,
    conversation,
    fill,
    in_language,
    language,
    neutralise,
    read_texts,
    text_of,
)
from judges.verdicts import share_of_votes
from pipeline.records import Pair, Verdict, digest, seed_of

SAMPLED, ALL = "sampled", "all"
"""What `principle` may say besides an id."""

N = TypeVar("N", int, float)

CONTRACTS = ("label", "json", "reason")
"""Ways to say a verdict: contract.<name>.<lang>.txt of judges/prompts."""


class PairwiseConfig(JudgeConfig):
    """What the judges that are asked about two answers at once have in common."""

    VERSION: ClassVar[int] = 2

    prompt: PairTemplate = "pairwise"
    """Template: `pairwise` is judges/prompts/pairwise.<lang>.txt; a path ending in .txt serves every language."""
    rubric: Rubric = "helpful"
    """What counts: `helpful` is judges/prompts/rubric.helpful.<lang>.txt; or a path ending in .txt."""
    constitution: str = "assistant"
    """Principles by id: `assistant` is judges/prompts/constitution.assistant.<lang>.txt; or a path ending in .txt."""
    principle: str | None = None
    """Which principles of the constitution stand in the place of the rubric. `sampled`: one for each pair, drawn from
    the pair's id and kept in the evidence (Bai et al. 2022, arXiv:2212.08073, section 4.1: the mean of many narrow
    judgements is a broad one). `all`: all of them. An id: that one. None: the rubric counts."""
    labels: tuple[tuple[str, str], ...] = Field(default=(("K", "P"), ("M", "R"), ("H", "T"), ("Q", "W")), min_length=1)
    """Names for the two answers, the first two of them that are one token each. Letters that suggest no order."""
    min_label_mass: float = Field(default=0.5, ge=0, le=1)
    """Least probability of the two labels together. Below it the model was about to say something else, and the
    verdict is an abstention (`unreadable`)."""

    @property
    def order_free(self) -> bool:
        return False

    @field_validator("constitution")
    @classmethod
    def _constitution_is_whole(cls, value: str) -> str:
        for text in read_texts(value, prefix="constitution.").values():
            Constitution.parse(text)
        return value

    @field_validator("principle")
    @classmethod
    def _principle_is_known(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value in (None, SAMPLED, ALL) or "constitution" not in info.data:
            return value
        for lang, text in read_texts(info.data["constitution"], prefix="constitution.").items():
            known = Constitution.parse(text).principles
            if value not in known:
                where = f" ({lang})" if lang else ""
                raise ValueError(f"no principle {value!r}{where}; there are {SAMPLED}, {ALL}, {', '.join(known)}")
        return value

    @field_validator("labels")
    @classmethod
    def _labels_differ(cls, value: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
        for first, second in value:
            if not first.strip() or not second.strip() or first.strip().lower() == second.strip().lower():
                raise ValueError(f"labels {first!r} and {second!r}: both must be words, and differ by more than case")
        return value

    def identity(self) -> dict[str, Any]:
        # The texts and not the names: an edited template is another judge, a renamed one is not.
        texts = {
            "prompt": digest(read_texts(self.prompt)),
            "rubric": digest(read_texts(self.rubric, prefix="rubric.")) if self.principle is None else None,
            "constitution": digest(read_texts(self.constitution, prefix="constitution.")) if self.principle else None,
            "contracts": digest({name: read_texts(name, prefix="contract.") for name in CONTRACTS}),
        }
        return {**super().identity(), **texts}


class Question(NamedTuple):
    """One rendered call: the two turns that the model reads."""

    prompt_id: str
    pair_id: str
    system: str
    user: str
    contracts: Mapping[str, str] = MappingProxyType({})
    """How a verdict is to be said, in the question's language, by the names of `CONTRACTS`."""


class Reading(NamedTuple):
    """What a backend says to one question: log-probabilities or votes for the two labels, or why there are none."""

    logprobs: tuple[float, float] | None = None
    """Of `Backend.labels`, in nats, spellings of a label summed."""
    votes: tuple[int, int] | None = None
    """For `Backend.labels`, where the replies were words."""
    abstained: str | None = None
    evidence: Mapping[str, Any] = MappingProxyType({})
    """What was said, for people."""
    tokens_in: int = 0
    tokens_out: int = 0
    cost_usd: float = 0.0


class Backend(Protocol):
    """Who gives label log-probabilities for a rendered question."""

    labels: tuple[str, str]
    special_tokens: tuple[str, ...]
    """Texts that would be read as control tokens; they are broken up in data."""
    contract: str
    """The one of `CONTRACTS` that its questions end with."""

    def read(self, questions: Sequence[Question]) -> list[Reading]:
        """One reading per question, in order. Ask for each question once: it is written at that moment."""
        ...


class Written(Sequence[Question]):
    """The questions about some pairs, each written when it is asked for: while others are being answered."""

    def __init__(self, judge: "PairwiseJudge", pairs: Sequence[Pair]) -> None:
        self.judge = judge
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    @overload
    def __getitem__(self, index: int) -> Question: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Question]: ...
    def __getitem__(self, index: int | slice) -> Question | Sequence[Question]:
        if isinstance(index, slice):
            return Written(self.judge, self.pairs[index])
        return self.judge.question(self.pairs[index])


class PairwiseJudge:
    """See `judges.base.Judge`."""

    def __init__(self, config: PairwiseConfig, backend: Backend) -> None:
        self.config = config
        self.fingerprint = config.fingerprint()
        self.backend = backend
        self.templates = {lang: Template.parse(text) for lang, text in read_texts(config.prompt).items()}
        # Of every language: a model that reads French takes </answer> for an end as well.
        self.tags = sorted({tag for template in self.templates.values() for tag in template.tags})
        self.rubrics = {lang: text_of(text) for lang, text in read_texts(config.rubric, prefix="rubric.").items()}
        constitutions = read_texts(config.constitution, prefix="constitution.")
        self.constitutions = {lang: Constitution.parse(text) for lang, text in constitutions.items()}
        self.contracts = {name: read_texts(name, prefix="contract.") for name in CONTRACTS}

    def judge(self, pairs: Sequence[Pair]) -> list[Verdict]:
        readings = self.backend.read(Written(self, pairs))
        return [self._verdict(pair, reading) for pair, reading in zip(pairs, readings, strict=True)]

    def question(self, pair: Pair) -> Question:
        """What the model is shown about this pair, the answer `a` first."""
        lang = language(pair.prompt)
        template = in_language(self.templates, lang)
        label_1, label_2 = self._labels(pair)
        contracts = {
            name: fill(text_of(in_language(texts, lang)), {"label_1": label_1, "label_2": label_2})
            for name, texts in self.contracts.items()
        }
        data = {"question": conversation(pair.prompt.messages), "answer_1": pair.a.text, "answer_2": pair.b.text}
        values = {name: neutralise(text, self.backend.special_tokens, self.tags) for name, text in data.items()}
        values |= {"rubric": self._rubric(pair, lang), "label_1": label_1, "label_2": label_2}
        values |= {"contract": contracts[self.backend.contract], "tag": digest(["tag", pair.id], length=8)}
        system, user = fill(template.system, values), fill(template.user, values)
        return Question(pair.prompt.id, pair.id, system, user, contracts)

    def _rubric(self, pair: Pair, lang: str) -> str:
        principles = self._principles(pair, lang)
        return (
            in_language(self.constitutions, lang).rubric(principles) if principles else in_language(self.rubrics, lang)
        )

    def _principles(self, pair: Pair, lang: str) -> list[str]:
        """Ids of the principles that decide this pair, the same in both orders; none: the rubric does."""
        known = list(in_language(self.constitutions, lang).principles)
        if self.config.principle is None:
            return []
        if self.config.principle == ALL:
            return known
        if self.config.principle == SAMPLED:
            return [known[seed_of("principle", pair.id) % len(known)]]
        return [self.config.principle]

    def _labels(self, pair: Pair) -> tuple[str, str]:
        """The labels of the answers shown first and second.

        A function of the pair's id, which exchanging the sides keeps: so a liking for one label is part of the bias
        that `both_orders` cancels, and over many pairs it has no side.
        """
        first, second = self.backend.labels
        return (first, second) if int(digest(["labels", pair.id]), 16) % 2 == 0 else (second, first)

    def _verdict(self, pair: Pair, reading: Reading) -> Verdict:
        labels, p_a, abstained = self._labels(pair), None, reading.abstained
        evidence: dict[str, Any] = {"labels": list(labels), **reading.evidence}
        if self.config.principle is not None:
            evidence["principles"] = self._principles(pair, language(pair.prompt))
        turned = labels != self.backend.labels
        if reading.logprobs is not None:
            logit_a, logit_b = _turned(reading.logprobs, turned)
            mass = math.exp(logit_a) + math.exp(logit_b)
            evidence |= {"logits": [logit_a, logit_b], "label_mass": mass}
            if mass < self.config.min_label_mass:
                abstained = "unreadable"
            else:
                p_a = sigmoid(logit_a - logit_b)
        elif reading.votes is not None:
            votes_a, votes_b = _turned(reading.votes, turned)
            evidence["votes"] = [votes_a, votes_b]
            p_a = share_of_votes(votes_a, votes_a + votes_b)
        return Verdict(
            pair_id=pair.id,
            judge=self.config.name,
            fingerprint=self.fingerprint,
            p_a=p_a,
            abstained=abstained,
            evidence=evidence,
            tokens_in=reading.tokens_in,
            tokens_out=reading.tokens_out,
            cost_usd=reading.cost_usd,
        )


def _turned(both: tuple[N, N], turned: bool) -> tuple[N, N]:
    return (both[1], both[0]) if turned else both
