"""A language model behind an API, asked how good one answer is, from 1 to 9.

The score is the mean of the digits by their probability as the first token of the reply (Lee et al. 2023,
arXiv:2309.00267, section 2.3), or the digit that is said where the endpoint tells no probabilities. Each answer is
scored once, however many pairs it is in, so there is no place to prefer, and n answers cost n calls and not n squared.
It sees less than a comparison does: two good answers often get one score.

What is left out: comparisons (`judges.llm`), attempts and money (`judges.client`).
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import Field

from judges.api import ApiConfig, Call, Endpoint
from judges.base import Cost, Session, sigmoid
from judges.ledger import NANO
from judges.llm import ABSTAINED, THOUGHT_ONLY, thought_only
from judges.rendering import (
    ALONE,
    AloneTemplate,
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
from judges.replies import Outcome, Reply
from judges.verdicts import expected_score, score_of
from pipeline.records import Pair, Prompt, Response, Verdict, digest

LOWEST, HIGHEST = 1, 9
"""One digit each, so that one token says it all."""


class Config(ApiConfig):
    """Which model is asked, and what its scores mean."""

    RUNTIME: ClassVar[frozenset[str]] = ApiConfig.RUNTIME
    VERSION: ClassVar[int] = 2

    name: Literal["rating"] = "rating"
    prompt: AloneTemplate = "rating"
    """Template: `rating` is judges/prompts/rating.<lang>.txt; a path ending in .txt serves every language."""
    rubric: Rubric = "helpful"
    """What counts: `helpful` is judges/prompts/rubric.helpful.<lang>.txt; or a path ending in .txt."""
    points: float = Field(default=1.0, gt=0)
    """A difference of so many points makes the better answer 73 % likely to be preferred."""
    min_digit_mass: float = Field(default=0.5, ge=0, le=1)
    """Least probability of the digits together. Below it the reply was about to say something else."""

    def identity(self) -> dict[str, Any]:
        # The texts and not the names: an edited template is another judge, a renamed one is not.
        texts = {"prompt": digest(read_texts(self.prompt)), "rubric": digest(read_texts(self.rubric, prefix="rubric."))}
        return {**super().identity(), **texts}

    def cost(self, pairs: Sequence[Pair]) -> Cost:
        """Each different answer is asked about once."""
        writer = Writer(self)
        asked = {(pair.prompt, side.text): None for pair in pairs for side in (pair.a, pair.b)}
        return self.cost_of(("".join(turn["content"] for turn in writer.turns(*each)), 1, 8) for each in asked)

    def build(self, session: Session) -> "RatingJudge":
        return RatingJudge(self, Endpoint(self, session))


class Writer:
    """Writes the question about one answer."""

    def __init__(self, config: Config) -> None:
        self.templates = {lang: Template.parse(text, ALONE) for lang, text in read_texts(config.prompt).items()}
        self.tags = sorted({tag for template in self.templates.values() for tag in template.tags})
        self.rubrics = {lang: text_of(text) for lang, text in read_texts(config.rubric, prefix="rubric.").items()}

    def turns(self, prompt: Prompt, text: str) -> list[dict[str, str]]:
        """The two turns that the model reads."""
        lang = language(prompt)
        template = in_language(self.templates, lang)
        data = {"question": conversation(prompt.messages), "answer": text}
        values = {name: neutralise(each, (), self.tags) for name, each in data.items()}
        values |= {"rubric": in_language(self.rubrics, lang), "tag": digest(["tag", prompt.id, text], length=8)}
        return [
            {"role": "system", "content": fill(template.system, values)},
            {"role": "user", "content": fill(template.user, values)},
        ]


class Rating(NamedTuple):
    """What was said of one answer."""

    reply: Reply
    score: float | None = None
    abstained: str | None = None


class RatingJudge:
    """See `judges.base.Judge`."""

    def __init__(self, config: Config, endpoint: Endpoint) -> None:
        self.config = config
        self.fingerprint = config.fingerprint()
        self.endpoint = endpoint
        self.features = endpoint.find_out(1, logprobs=True)
        self.writer = Writer(config)

    def judge(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """One verdict per pair; an answer that is in several pairs is scored once."""
        asked = {(pair.prompt, side.text): None for pair in pairs for side in (pair.a, pair.b)}
        ratings = dict(zip(asked, self._ratings(list(asked)), strict=True))
        return [
            self._verdict(pair, ratings[pair.prompt, pair.a.text], ratings[pair.prompt, pair.b.text]) for pair in pairs
        ]

    def score(self, prompts: Sequence[Prompt], responses: Sequence[Response]) -> list[float | None]:
        """See `judges.base.Scorer`: points from 1 to 9."""
        texts = [(prompt, response.text) for prompt, response in zip(prompts, responses, strict=True)]
        return [rating.score for rating in self._ratings(texts)]

    def _ratings(self, answers: Sequence[tuple[Prompt, str]]) -> list[Rating]:
        return self.endpoint.client.run([partial(self._rating, prompt, text) for prompt, text in answers])

    async def _rating(self, prompt: Prompt, text: str) -> Rating:
        turns = self.writer.turns(prompt, text)
        max_out = 1 if self.features.logprobs else 8
        reply = await self.endpoint.complete(Call(turns, max_out, logprobs=self.features.logprobs))
        if reply.outcome != Outcome.OK:
            return Rating(reply, abstained=ABSTAINED.get(reply.outcome, "failed"))
        if thought_only(reply) and not reply.logprobs:
            return Rating(replace(reply, detail=THOUGHT_ONLY), abstained="truncated")
        if reply.logprobs is None:
            said = score_of(reply.text or "", LOWEST, HIGHEST)
            return Rating(reply, said, None if said is not None else "unreadable")
        found = expected_score(reply.logprobs, LOWEST, HIGHEST)
        if found is None or found[1] < self.config.min_digit_mass:
            return Rating(reply, abstained="unreadable")
        return Rating(reply, round(found[0], 6))

    def _verdict(self, pair: Pair, a: Rating, b: Rating) -> Verdict:
        # Of two reasons always the same one, whichever side it is on.
        reasons = sorted(rating.abstained for rating in (a, b) if rating.abstained)
        details = [rating.reply.detail for rating in (a, b) if rating.reply.detail]
        trouble = {"trouble": details} if details else {}
        p_a = None
        if a.score is not None and b.score is not None:
            p_a = sigmoid((a.score - b.score) / self.config.points)
        return Verdict(
            pair_id=pair.id,
            judge=self.config.name,
            fingerprint=self.fingerprint,
            p_a=p_a,
            abstained=reasons[0] if reasons else None,
            evidence={"score_a": a.score, "score_b": b.score, "said": [a.reply.text, b.reply.text], **trouble},
            tokens_in=a.reply.tokens_in + b.reply.tokens_in,
            tokens_out=a.reply.tokens_out + b.reply.tokens_out,
            cost_usd=(a.reply.cost + b.reply.cost) / NANO,
        )
