"""Part of stage 4: what needs a model and no judge. Scores of the checkpoints' answers by the run's reward models, and
the perplexity of text that nobody was trained on.

    NLL = - sum over the tokens t of the answers of log pi(y_t | what precedes it)      perplexity = exp(NLL / tokens)

The text is tokenised once for base and adapters alike, as SFT reads it: of a conversation the assistant's turns count,
each with the token that ends it, of a plain text every token but the first. A reward model on the policy's base is one
more adapter of it, so that one base is in memory. Work is shared batch by batch through the journal, as that of
`generate`. What is left out: means and intervals (`pipeline.ratings`).
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pipeline import demonstrations, store
from pipeline.adapters import attach, role
from pipeline.algorithms import scoring
from pipeline.demonstrations import Demonstration
from pipeline.errors import DataError
from pipeline.generate import Answer, Elsewhere, policy_called
from pipeline.models import ModelConfig, has_encoder, load_model, load_tokenizer, padded_logprobs
from pipeline.plugins import Config
from pipeline.progress import Bar
from pipeline.recipe import BASE, PerplexityConfig
from pipeline.records import Prompt, Record, digest
from pipeline.worker import Job

KIND = "measures"
"""The kind of the journal's rows: a batch's numbers."""

VERSION = 2
"""Raised when a change of this file or of what rows of text are read as changes what comes out."""

ANSWERS, ROWS = 32, 8
"""Answers, and rows of text, of a unit of work."""

TOKENS = 1024
"""Tokens of a forward pass over text, unless a single row has more."""


class Measuring(Config):
    """The identity of the step."""

    model: ModelConfig
    checkpoints: tuple[str, ...]
    """`base` and names of policies, whose perplexity is measured."""
    rewards: tuple[str, ...]
    """Names of the reward models that score the answers."""
    perplexity: PerplexityConfig | None
    elsewhere: tuple[Elsewhere, ...] = ()
    """Policies and reward models of these names that no step of this run made. A whole model is none of them: it may
    count its tokens otherwise, and a perplexity is one of tokens."""


class Score(Record):
    """A line of scores.jsonl: one answer by one reward model."""

    prompt_id: str
    source: str
    index: int
    model: str
    score: float


class Reading(Record):
    """A line of perplexity.jsonl: one row of text by one checkpoint."""

    where: str
    """File and row."""
    source: str
    nll: float
    """Sum over the tokens, in nats."""
    tokens: int
    """0: no token of an answer is left within `max_length`."""


class Measures(NamedTuple):
    """What the step left; nothing where there is no such step."""

    scores: Sequence[Score] = ()
    readings: Sequence[Reading] = ()


class Item(NamedTuple):
    """A unit of work: some answers by one reward model, or some rows of text by one checkpoint."""

    key: str
    kind: Literal["score", "nll"]
    who: str
    rows: Sequence[Any]


def work(job: Job) -> None:
    """Measure this process's share, into the journal."""
    config = Measuring.model_validate(job.options["config"])
    items = _items(config, job)
    journal = store.Journal(job.cache / store.JOURNAL)
    keys = [item.key for item in items]
    known = journal.get_many(KIND, keys)
    mine = [item for item in items[job.rank :: job.world] if item.key not in known]
    with Bar(job.step, total=len(items)) as bar:
        for item, found in _measured(config, job, mine):
            journal.put_many(KIND, {item.key: found})
            bar.at(journal.count(KIND, keys))
    journal.close()


def finish(job: Job) -> None:
    """Write scores.jsonl, perplexity.jsonl and summary.json.

    Raises:
        DataError: a batch is missing, which is a defect of the work before.
    """
    config = Measuring.model_validate(job.options["config"])
    items = _items(config, job)
    found = store.Journal(job.cache / store.JOURNAL).get_many(KIND, [item.key for item in items])
    if len(found) < len({item.key for item in items}):
        raise DataError(f"{job.step}: a batch of numbers is missing from {job.cache}; run the same command again")
    scores = [
        Score(prompt_id=prompt.id, source=each.response.source, index=each.response.index, model=item.who, score=score)
        for item in items
        if item.kind == "score"
        for (prompt, each), score in zip(item.rows, found[item.key], strict=True)
    ]
    readings = [
        Reading(where=row.where, source=item.who, nll=nll, tokens=tokens)
        for item in items
        if item.kind == "nll"
        for row, (nll, tokens) in zip(item.rows, found[item.key], strict=True)
    ]
    # In an order that says nothing of the batches.
    scores.sort(key=lambda each: (each.model, each.prompt_id, each.source, each.index))
    readings.sort(key=lambda each: (each.source, each.where))
    store.write_jsonl(job.out / "scores.jsonl", scores)
    store.write_jsonl(job.out / "perplexity.jsonl", readings)
    rows = {each.where for each in readings}
    empty = {each.where for each in readings if not each.tokens}
    told = {"scores": len(scores), "rows": len(rows), "rows_without_answer": len(empty)}
    store.write_json(job.out / "summary.json", told)


def read(folder: Path | None) -> Measures:
    """What the step left in its folder; None: there is no such step."""
    if folder is None:
        return Measures()
    scores = list(store.read_jsonl(folder / "scores.jsonl", Score))
    return Measures(scores, list(store.read_jsonl(folder / "perplexity.jsonl", Reading)))


def texts_of(config: PerplexityConfig, model: ModelConfig) -> list[Demonstration]:
    """The rows of text. Reads no weights.

    Raises:
        DataError: a file cannot be read, has none, or has rows that are none or that this model cannot read.
    """
    rows = demonstrations.read(config.files, config.dataset_text_field, config.limit)
    plain = [row.where for row in rows if row.text is not None]
    if plain and has_encoder(model):
        raise DataError(
            f"{plain[0]}: {model.base} is an encoder-decoder, which reads a prompt and writes an answer, and this is "
            "one text; give it prompt and completion, or messages"
        )
    return rows


# ---- the work


def _items(config: Measuring, job: Job) -> list[Item]:
    """The whole work, a function of recipe, answers, files and adapters alone. Needs no tokenizer."""
    return [*_scoring(config, job), *_reading(config, job)]


def _scoring(config: Measuring, job: Job) -> Iterator[Item]:
    prompts = {prompt.id: prompt for prompt in store.read_jsonl(job.inputs["answers"] / "prompts.jsonl", Prompt)}
    answers = list(store.read_jsonl(job.inputs["answers"] / "answers.jsonl", Answer))
    # Those to one prompt together, and prompts of like length; the longest first, whose memory will be the most.
    lengths = {name: sum(len(turn.content) for turn in prompt.messages) for name, prompt in prompts.items()}
    answers.sort(key=lambda each: (-lengths[each.prompt_id], each.prompt_id, each.response.key))
    for name in _known(config, job):
        model = policy_called(name, config.elsewhere, job).digest
        for some in _parts(answers, ANSWERS):
            rows = [(prompts[each.prompt_id], each) for each in some]
            asked = [
                [[(turn.role, turn.content) for turn in prompt.messages], each.response.text, each.response.finished]
                for prompt, each in rows
            ]
            yield Item(digest(["score", VERSION, config.model.identity(), model, asked], 64), "score", name, rows)


def _reading(config: Measuring, job: Job) -> Iterator[Item]:
    if config.perplexity is None:
        return
    rows = texts_of(config.perplexity, config.model)
    rows.sort(key=lambda row: (-len(row.text or "") - sum(len(turn.content) for turn in row.messages), row.where))
    for name in config.checkpoints:
        adapter = policy_called(name, config.elsewhere, job).digest
        for some in _parts(rows, ROWS):
            shown = [[row.text, [(turn.role, turn.content) for turn in row.messages]] for row in some]
            asked = ["nll", VERSION, config.model.identity(), adapter, config.perplexity.max_length, shown]
            yield Item(digest(asked, 64), "nll", name, some)


def _known(config: Measuring, job: Job) -> list[str]:
    """The reward models of a kind that is known here: an algorithm from outside may leave another."""
    return [name for name in config.rewards if (_folder(config, job, name) / scoring.FACTS).exists()]


def _folder(config: Measuring, job: Job, name: str) -> Path:
    """Of what was trained."""
    folder = policy_called(name, config.elsewhere, job).folder
    assert folder is not None  # or it is the base
    return folder


def _parts(rows: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _measured(config: Measuring, job: Job, items: Sequence[Item]) -> Iterator[tuple[Item, list[Any]]]:
    """Each item with its numbers. No base is in memory twice at a time."""
    heads = {name: scoring.load_reward(_folder(config, job, name)) for name in _known(config, job)}
    shared = [item for item in items if item.kind == "nll" or heads[item.who].shared]
    if shared:
        yield from _on_one_base(config, job, heads, shared)
    for name, head in heads.items():
        theirs = [item for item in items if item.kind == "score" and item.who == name and not head.shared]
        reward = scoring.SeparateReward(head) if theirs else None
        for item in theirs:
            yield item, _scores(reward, item)


def _on_one_base(
    config: Measuring, job: Job, heads: Mapping[str, Any], items: Sequence[Item]
) -> Iterator[tuple[Item, list[Any]]]:
    tokenizer = load_tokenizer(config.model)
    acting = {item.who for item in items if item.kind == "nll"}
    found = {name: policy_called(name, config.elsewhere, job).folder for name in config.checkpoints if name in acting}
    folders = {name: folder for name, folder in found.items() if folder is not None}
    # PEFT makes modules of these names, whose names cannot have a dot.
    roles = {name: f"policy{place}" for place, name in enumerate(folders)}
    model = attach(load_model(config.model), {called: folders[name] for name, called in roles.items()})
    rewards: dict[str, Any] = {}
    for name in dict.fromkeys(item.who for item in items if item.kind == "score"):
        rewards[name] = scoring.SharedReward(heads[name], model, tokenizer, f"reward{len(rewards)}")
        model = rewards[name].model.eval()
    for item in items:
        if item.kind == "score":
            yield item, _scores(rewards[item.who], item)
        else:
            assert config.perplexity is not None  # or there would be no such item
            with role(model, roles.get(item.who, BASE)):
                yield item, nll_of(model, tokenizer, item.rows, config.perplexity.max_length)


def _scores(reward: Any, item: Item) -> list[float]:
    # Rounded, so that a number survives its way through JSON unchanged.
    found = reward.score([prompt for prompt, _ in item.rows], [each.response for _, each in item.rows])
    return [round(score, 6) for score in found]


def nll_of(model: Any, tokenizer: Any, rows: Sequence[Demonstration], max_length: int) -> list[tuple[float, int]]:
    """Sum of the NLLs in nats of each row's tokens that count, and how many they are, by the model as it acts now.

    Args:
        max_length: tokens of a row, or of a part of it that is read by itself; what follows is cut off.
    """
    from pipeline.algorithms.sft import MASKED, encode
    from pipeline.architectures import is_encoder_decoder

    owners, prefixes, answers, counted = [], [], [], []
    for place, row in enumerate(rows):
        for ids, labels in encode(tokenizer, row, assistant_only=True, apart=is_encoder_decoder(model)):
            learned = [label != MASKED for label in labels[:max_length]]
            # Nothing precedes the first token, so nothing predicts it.
            start = next((index for index in range(1, len(learned)) if learned[index]), None)
            if start is not None:
                owners.append(place)
                prefixes.append(ids[:start])
                answers.append(ids[start:max_length])
                counted.append(learned[start:])
    found = [(0.0, 0)] * len(rows)
    if owners:
        longest = max(len(prefix) + len(answer) for prefix, answer in zip(prefixes, answers, strict=True))
        logprobs = padded_logprobs(model, prefixes, answers, rows=max(1, TOKENS // longest))
        for place, logprob_T, counts in zip(owners, logprobs, counted, strict=True):
            nll = -sum(each for each, counts in zip(logprob_T.double().tolist(), counts, strict=True) if counts)
            found[place] = (round(found[place][0] + nll, 6), found[place][1] + sum(counts))
    return found
