"""Stage 1 answers every prompt, whoever does which part of the work, and pairs the answers by the book."""

import dataclasses
import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scripted.sampler import Config as Scripted
from tiny import job_of, prompt_of, response_of

from pipeline import generate, store
from pipeline.errors import DataError
from pipeline.generate import Answer, Pairing, Policy, Sampling
from pipeline.models import ModelConfig
from pipeline.ratings import kl_to_base
from pipeline.recipe import PromptsConfig
from pipeline.records import Message, Pair, Prompt
from pipeline.sampling.local import Config as Local

# ---- pairs

FOUR = [response_of(text, index=index) for index, text in enumerate(["one", "two", "three", "four"])]
PROMPT = prompt_of("Which?")


def texts(pairs: list[Pair]) -> list[set[str]]:
    return [{pair.a.text, pair.b.text} for pair in pairs]


@pytest.mark.parametrize("pairing", ["all", "best_worst"])
def test_every_two_answers_are_a_pair(pairing: str) -> None:
    # 4 choose 2.
    found = texts(generate.pairs_of(PROMPT, FOUR, pairing, 1))
    assert len(found) == 6
    assert all({one.text, other.text} in found for one, other in itertools.combinations(FOUR, 2))


@pytest.mark.parametrize(("count", "pairs"), [(0, 0), (1, 0), (2, 1), (3, 1), (4, 2)])
def test_random_pairs_take_an_answer_at_most_once(count: int, pairs: int) -> None:
    found = texts(generate.pairs_of(PROMPT, FOUR[:count], "random", 1))
    assert len(found) == pairs
    assert len(set().union(*found)) == 2 * pairs


def test_random_pairs_differ_between_prompts_and_seeds_and_nothing_else() -> None:
    def pairings(prompts: range, seed: int) -> set[str]:
        return {
            str(sorted(map(sorted, texts(generate.pairs_of(prompt_of(f"p{n}"), FOUR, "random", seed)))))
            for n in prompts
        }

    # Four answers can be paired in three ways; forty prompts see all of them.
    assert len(pairings(range(40), 1)) == 3
    assert len(set().union(*(pairings(range(1), seed) for seed in range(40)))) == 3
    assert pairings(range(1), 1) == pairings(range(1), 1)


@pytest.mark.parametrize("pairing", ["all", "random", "best_worst"])
def test_of_answers_with_one_text_only_the_first_takes_part(pairing: str) -> None:
    twice = [*FOUR[:2], response_of("one", index=2), response_of("two", index=3)]
    (pair,) = generate.pairs_of(PROMPT, twice, pairing, 1)
    assert {(side.text, side.index) for side in (pair.a, pair.b)} == {("one", 0), ("two", 1)}
    assert generate.pairs_of(PROMPT, [response_of("one", index=index) for index in range(4)], pairing, 1) == []


@pytest.mark.parametrize("pairing", ["all", "random", "best_worst"])
def test_the_order_of_the_answers_does_not_matter(pairing: str) -> None:
    answers = [*FOUR, response_of("one", index=4), response_of("five", index=5)]
    expected = generate.pairs_of(PROMPT, answers, pairing, 1)
    for seed in range(5):
        shuffled = random.Random(seed).sample(answers, len(answers))
        assert generate.pairs_of(PROMPT, shuffled, pairing, 1) == expected


# ---- prompts


def write_prompts(path: Path, *prompts: Prompt) -> Path:
    store.write_jsonl(path, prompts)
    return path


def test_the_limit_counts_over_all_files(tmp_path: Path) -> None:
    one = write_prompts(tmp_path / "one.jsonl", *(prompt_of(f"a{n}") for n in range(3)))
    two = write_prompts(tmp_path / "two.jsonl", *(prompt_of(f"b{n}") for n in range(3)))
    for limit, expected in ((2, "a0 a1"), (4, "a0 a1 a2 b0"), (None, "a0 a1 a2 b0 b1 b2"), (99, "a0 a1 a2 b0 b1 b2")):
        found = generate.read_prompts(PromptsConfig(files=(one, two), limit=limit))
        assert [prompt.id for prompt in found] == expected.split()


def test_the_system_message_is_added_where_there_is_none(tmp_path: Path) -> None:
    path = write_prompts(tmp_path / "p.jsonl", prompt_of("plain"), prompt_of("own", system="Rhyme."))
    plain, own = generate.read_prompts(PromptsConfig(files=(path,), system="Be short."))
    assert plain.messages == (Message(role="system", content="Be short."), Message(role="user", content="plain"))
    assert own.messages == (Message(role="system", content="Rhyme."), Message(role="user", content="own"))
    plain, own = generate.read_prompts(PromptsConfig(files=(path,)))
    assert plain == prompt_of("plain")


def test_an_id_that_is_there_twice_is_an_error_that_names_it(tmp_path: Path) -> None:
    one = write_prompts(tmp_path / "one.jsonl", prompt_of("x", name="sky"), prompt_of("y"))
    two = write_prompts(tmp_path / "two.jsonl", prompt_of("z", name="sky"))
    with pytest.raises(DataError, match=r"one\.jsonl, .*two\.jsonl: 1 ids .* more than once, such as 'sky'"):
        generate.read_prompts(PromptsConfig(files=(one, two)))
    assert len(generate.read_prompts(PromptsConfig(files=(one, two), limit=2))) == 2


def test_a_prompt_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl: no such file"):
        generate.read_prompts(PromptsConfig(files=(tmp_path / "none.jsonl",)))


def test_files_without_any_prompt_are_named_and_one_that_is_empty_beside_another_is_not(tmp_path: Path) -> None:
    empty, full = tmp_path / "empty.jsonl", tmp_path / "full.jsonl"
    empty.write_text("\n")
    full.write_text('{"id": "1", "prompt": "Why?"}\n')
    with pytest.raises(DataError, match=r"^[^,]*empty\.jsonl: no prompt is there; write one a line, such as \{\"id\""):
        generate.read_prompts(PromptsConfig(files=(empty,)))
    assert [each.id for each in generate.read_prompts(PromptsConfig(files=(empty, full)))] == ["1"]


# ---- the work


@pytest.fixture(autouse=True)
def _nothing_built() -> Iterator[None]:
    Scripted.BUILT.clear()
    Scripted.ANSWERED.clear()
    yield


@pytest.fixture
def config(tmp_path: Path) -> Pairing:
    """Seven prompts, three answers each, in batches of one prompt (4 // 3)."""
    path = write_prompts(tmp_path / "prompts.jsonl", *(prompt_of("x" * n, name=f"p{n}") for n in range(1, 8)))
    sampling = Sampling(
        seed=1,
        model=ModelConfig(),
        sampler=Scripted(),
        prompts=PromptsConfig(files=(path,)),
        samples=3,
        purpose="train",
    )
    return Pairing(sampling=sampling, pairing="all")


def run(config: Pairing, top: Path, world: int = 1) -> dict[str, bytes]:
    """The bytes of every file that the step leaves, done by `world` processes."""
    for rank in range(world):
        generate.work(job_of(top, config, rank=rank, world=world))
    job = job_of(top, config)
    generate.finish(job)
    return {path.name: path.read_bytes() for path in job.out.iterdir()}


def test_the_work_leaves_prompts_answers_pairs_and_their_numbers(config: Pairing, tmp_path: Path) -> None:
    run(config, tmp_path / "a")
    out = tmp_path / "a" / "out"
    prompts = list(store.read_jsonl(out / "prompts.jsonl", Prompt))
    answers = list(store.read_jsonl(out / "answers.jsonl", Answer))
    pairs = list(store.read_jsonl(out / "pairs.jsonl", Pair))
    assert [prompt.id for prompt in prompts] == [f"p{n}" for n in range(1, 8)]
    expected = [(f"p{n}", "base", index) for n in range(1, 8) for index in range(3)]
    assert [(each.prompt_id, each.response.source, each.response.index) for each in answers] == expected
    # One batch a prompt: tokens are 1, 2 and 3, and the answer with index 1 is cut.
    assert json.loads((out / "summary.json").read_text()) == {
        "answers": 21,
        "finished": 14,
        "pairs": 21,
        "prompts": 7,
        "prompts_without_pair": 0,
        "tokens": 42,
    }
    own = {each.response.text: each.prompt_id for each in answers}
    assert all(own[pair.a.text] == own[pair.b.text] == pair.prompt.id for pair in pairs)


def test_prompts_whose_answers_are_all_the_same_are_counted(config: Pairing, tmp_path: Path) -> None:
    sampling = config.sampling.model_copy(update={"sampler": Scripted(same=True)})
    files = run(config.model_copy(update={"sampling": sampling}), tmp_path / "a")
    summary = json.loads(files["summary.json"])
    assert (summary["pairs"], summary["prompts_without_pair"], files["pairs.jsonl"]) == (0, 7, b"")


@pytest.mark.parametrize("world", [2, 3, 9])
def test_any_number_of_processes_leaves_the_same_bytes(world: int, config: Pairing, tmp_path: Path) -> None:
    alone = run(config, tmp_path / "alone")
    Scripted.ANSWERED.clear()
    assert run(config, tmp_path / "shared", world) == alone
    assert sorted(Scripted.ANSWERED) == sorted(("base", f"p{n}") for n in range(1, 8))


def test_what_is_in_the_journal_is_not_asked_for_again(config: Pairing, tmp_path: Path) -> None:
    top = tmp_path / "a"
    generate.work(job_of(top, config, rank=1, world=3))
    first = list(Scripted.ANSWERED)
    assert 0 < len(first) < 7
    files = run(config, top)
    assert len(Scripted.ANSWERED) == 7
    assert list(Scripted.BUILT) == [(frozenset(), False)] * 2
    assert run(config, top) == files
    # With nothing left to answer, no model loads.
    assert len(Scripted.BUILT) == 2


def test_missing_answers_are_an_error_and_not_a_shorter_file(config: Pairing, tmp_path: Path) -> None:
    generate.work(job_of(tmp_path / "a", config, rank=0, world=2))
    with pytest.raises(DataError, match="a batch of answers is missing"):
        generate.finish(job_of(tmp_path / "a", config))


def changes(sampling: Sampling, tmp_path: Path) -> dict[str, Sampling]:
    """What is different -> the sampling with it."""
    other = write_prompts(tmp_path / "other.jsonl", *(prompt_of("y" * n, name=f"p{n}") for n in range(1, 8)))
    return {
        "seed": sampling.model_copy(update={"seed": 2}),
        "model": sampling.model_copy(update={"model": ModelConfig(quantization="int8")}),
        "option": sampling.model_copy(update={"sampler": Scripted(word="figure")}),
        "sampler": sampling.model_copy(update={"sampler": Local(batch_size=4)}),
        "texts": sampling.model_copy(update={"prompts": PromptsConfig(files=(other,))}),
        "system": sampling.model_copy(update={"prompts": sampling.prompts.model_copy(update={"system": "Be short."})}),
        "samples": sampling.model_copy(update={"samples": 2}),
        "purpose": sampling.model_copy(update={"purpose": "heldout"}),
    }


def test_answers_are_kept_under_everything_that_changes_them(config: Pairing, tmp_path: Path) -> None:
    def keys(sampling: Sampling, policies: dict[str, Policy]) -> set[str]:
        found = {item.key for item in generate.items_of(sampling, policies)}
        assert len(found) == len(generate.items_of(sampling, policies))
        return found

    trained: dict[str, Policy] = {}
    for name, weights in (("one", b"1"), ("two", b"2")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "weights").write_bytes(weights)
        store.seal(folder, {})
        trained[name] = Policy.of(folder)
    every = {name: keys(each, {"base": Policy()}) for name, each in changes(config.sampling, tmp_path).items()}
    every["as it is"] = keys(config.sampling, {"base": Policy()})
    every["an adapter"] = keys(config.sampling, {"dpo": trained["one"]})
    every["another adapter"] = keys(config.sampling, {"dpo": trained["two"]})
    whole = {name: Policy(digest=name, whole=ModelConfig(base="here", quantization="none")) for name in ("1", "2")}
    every["a whole model"] = keys(config.sampling, {"dpo": whole["1"]})
    every["another whole model"] = keys(config.sampling, {"dpo": whole["2"]})
    for (one, own), (other, others) in itertools.combinations(every.items(), 2):
        assert not own & others, (one, other)


def test_answers_are_not_kept_under_names_nor_under_places(config: Pairing, tmp_path: Path) -> None:
    def keys(name: str, policy: Policy) -> list[str]:
        return [item.key for item in generate.items_of(config.sampling, {"base": Policy(), name: policy})]

    assert keys("dpo", Policy(tmp_path / "a", "1")) == keys("run/dpo", Policy(tmp_path / "b", "1"))
    here, there = (ModelConfig(base=name, quantization="none") for name in ("here", "there"))
    assert keys("m", Policy(digest="1", whole=here)) == keys("n", Policy(digest="1", whole=there))


def test_one_policy_under_two_names_is_asked_once_and_answers_by_both(config: Pairing, tmp_path: Path) -> None:
    policies = {"base": Policy(), "dpo": Policy(tmp_path, "1"), "again": Policy(tmp_path, "1")}
    job = job_of(tmp_path / "a", config)
    generate.answer(config.sampling, job, policies)
    assert len(Scripted.ANSWERED) == 2 * 7
    answers = generate.collect(config.sampling, job, policies)
    said = {name: [a.response.text for a in answers if a.response.source == name] for name in policies}
    assert len(said["again"]) == 21
    assert said["again"] == said["dpo"]


def test_whole_models_are_loaded_after_the_base_and_one_at_a_time_and_are_held_to_no_base(
    config: Pairing, tmp_path: Path
) -> None:
    whole = {name: Policy(digest=name, whole=ModelConfig(base=name, quantization="none")) for name in ("big", "small")}
    policies = {"big": whole["big"], "base": Policy(), "dpo": Policy(tmp_path, "1"), "small": whole["small"]}
    job = job_of(tmp_path / "a", config)
    generate.answer(config.sampling, job, policies)
    # The base with its adapter is scored by the base; a model of its own answers as what it is, alone.
    assert list(Scripted.BUILT) == [(frozenset({"dpo"}), True), (frozenset(), False), (frozenset(), False)]
    answers = generate.collect(config.sampling, job, policies)
    assert {each.response.source for each in answers} == policies.keys()


@pytest.mark.parametrize(
    "options", [{"temperature": 0.7}, {"temperature": 0.0}, {"top_p": 0.9}, {"top_k": 40}], ids=str
)
def test_answers_that_are_no_draws_of_the_policys_own_distribution_tell_of_no_kl(
    options: dict[str, Any], tiny: ModelConfig, tiny_adapters: dict[str, Path], config: Pairing, tmp_path: Path
) -> None:
    # At temperature 0 the mean of log p - log p_base over the answers is no expectation under the policy at all.
    policies = {"base": Policy(), "one": Policy(tiny_adapters["one"], "1")}
    kl = {}
    for name, own in (("drawn", {}), ("heated or cut", options)):
        sampler = Local(max_new_tokens=3, batch_size=4, **own)
        sampling = config.sampling.model_copy(update={"model": tiny, "sampler": sampler, "samples": 1})
        job = job_of(tmp_path / name, config)
        generate.answer(sampling, job, policies)
        answers = [each for each in generate.collect(sampling, job, policies) if each.response.source == "one"]
        assert all(each.response.logprob is not None for each in answers)
        kl[name] = kl_to_base(generate.responses_by_prompt(answers))
    assert kl["drawn"] is not None
    assert kl["heated or cut"] is None


def test_another_file_with_the_same_prompts_has_the_same_keys(config: Pairing, tmp_path: Path) -> None:
    prompts = generate.read_prompts(config.sampling.prompts)
    path = write_prompts(tmp_path / "copy.jsonl", *reversed(prompts))
    copied = config.sampling.model_copy(update={"prompts": PromptsConfig(files=(path,))})
    assert generate.items_of(copied, {"base": Policy()}) == generate.items_of(config.sampling, {"base": Policy()})


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("sources", [1, 2, 3])
def test_every_batch_is_answered_once_by_every_source_and_every_process_has_its_part_of_each(
    world: int, sources: int, config: Pairing, tmp_path: Path
) -> None:
    policies = {"base": Policy()}
    for name in ("dpo", "kto")[: sources - 1]:
        store.make_dirs(tmp_path / name)
        store.seal(tmp_path / name, {"name": name})
        policies[name] = Policy.of(tmp_path / name)
    for rank in range(world):
        before = len(Scripted.ANSWERED)
        generate.answer(config.sampling, job_of(tmp_path / "a", config, rank=rank, world=world), policies)
        # Seven batches a source: nobody has more than one more of them than another.
        mine = [source for source, _ in Scripted.ANSWERED[before:]]
        assert {mine.count(source) for source in policies} <= {7 // world, 7 // world + 1}
    assert sorted(Scripted.ANSWERED) == sorted((source, f"p{n}") for source in policies for n in range(1, 8))
    answers = generate.collect(config.sampling, job_of(tmp_path / "a", config), policies)
    names = [(each.prompt_id, each.response.source, each.response.index) for each in answers]
    assert names == sorted(names)
    assert len(names) == 7 * sources * 3
    assert {reference for _, reference in Scripted.BUILT} == {sources > 1}


def test_a_checkpoint_without_its_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"MANIFEST\.json is missing or damaged"):
        Policy.of(tmp_path)


def test_a_real_model_answers_the_same_by_one_process_and_by_two(
    config: Pairing, tiny: ModelConfig, tmp_path: Path
) -> None:
    local = Local(max_new_tokens=8, batch_size=4)
    sampling = config.sampling.model_copy(update={"model": tiny, "sampler": local})
    real = config.model_copy(update={"sampling": sampling})
    alone = run(real, tmp_path / "alone")
    assert run(real, tmp_path / "shared", 2) == alone
    answers = [Answer.model_validate_json(line) for line in alone["answers.jsonl"].splitlines()]
    assert len(answers) == 21
    assert all(each.response.logprob is not None and each.response.logprob < 0 for each in answers)


def test_the_journal_is_shared_between_runs(config: Pairing, tmp_path: Path) -> None:
    def job(name: str) -> Any:
        return dataclasses.replace(job_of(tmp_path / name, config), cache=tmp_path / "cache")

    generate.work(job("first"))
    generate.work(job("second"))
    assert len(Scripted.BUILT) == 1
