"""The statistics against SciPy, NumPy and pencil, and the sentences they become."""

import math

import numpy as np
import pytest
from scipy import stats

from pipeline.errors import JudgeError
from pipeline.ratings import (
    Checkpoint,
    Comparison,
    JudgeInfo,
    Results,
    compare_checkpoints,
    corrected,
    describe,
    describe_judge,
    distinct,
    headline,
    kl_to_base,
    perplexity,
    repetition,
    reward_score,
)
from pipeline.records import Pair, Prompt, Response, Verdict
from pipeline.statistics.win_rate import WinRate


def words(text: str) -> list[str]:
    return text.split()


def checkpoint(name: str, tokens: float | None = 50.0) -> Checkpoint:
    return Checkpoint(
        name=name, algorithm=name, n_answers=1, tokens_mean=tokens, words_mean=1, finished_share=None, distinct_2=0,
        repetition=0, kl=None,
    )  # fmt: skip


def judge(name: str, labelled: bool = False) -> JudgeInfo:
    return JudgeInfo(
        name=name, fingerprint="f", labelled=labelled, asked=1, ties=0, abstained={}, prefers_longer=None,
        position_a=None,
    )  # fmt: skip


# --- comparisons


def test_abstentions_are_in_no_rate_and_bounded_from_both_sides() -> None:
    rows = [("a", 1.0), ("b", 0.5), ("c", 0.0), ("d", None)]
    found = compare_checkpoints("rules", checkpoint("dpo", 60), checkpoint("base", 50), rows)
    assert found.win_rate == 0.5
    assert (found.n, found.ties, found.abstained) == (3, 1, 1)
    assert (found.worst_low, found.worst_high) == (1.5 / 4, 2.5 / 4)
    assert found.tokens_ratio == 1.2


def test_the_bounds_hold_the_rate_of_a_judge_that_never_abstains_however_it_chooses_what_to_leave_open() -> None:
    # It leaves open a third of what `one` wins, and nothing else: the rate is 0.6, and it sees about 0.5.
    random, held, missed = np.random.default_rng(20), 0, 0
    for _ in range(100):
        won = random.uniform(size=100) < 0.6
        rows = [(f"p{n}", None if w and random.uniform() < 1 / 3 else float(w)) for n, w in enumerate(won)]
        found = compare_checkpoints("rules", checkpoint("dpo"), checkpoint("base"), rows)
        held += found.bounds_low <= 0.6 <= found.bounds_high
        missed += not found.low <= 0.6 <= found.high
    assert held / 100 >= 0.95
    assert missed / 100 >= 0.3


def test_without_abstentions_the_bounds_are_the_interval() -> None:
    rows = [(f"p{place}", float(place % 3 > 0)) for place in range(60)]
    found = compare_checkpoints("rules", checkpoint("dpo"), checkpoint("base"), rows)
    assert (found.bounds_low, found.bounds_high) == (found.low, found.high)


def test_a_comparison_is_the_mirror_of_the_exchanged_one() -> None:
    random = np.random.default_rng(10)
    rows = [(f"p{place}", None if place % 9 == 0 else random.uniform()) for place in range(70)]
    exchanged = [(prompt, None if p is None else 1 - p) for prompt, p in rows]
    there = compare_checkpoints("rules", checkpoint("dpo", 60), checkpoint("base", 50), rows)
    back = compare_checkpoints("rules", checkpoint("base", 50), checkpoint("dpo", 60), exchanged).swap()
    for name, value in there.model_dump().items():
        assert getattr(back, name) == (pytest.approx(value) if isinstance(value, float) else value), name
    assert there.swap().swap().model_dump() == pytest.approx(there.model_dump())


def test_a_judge_that_answered_nothing_is_an_error_that_says_so() -> None:
    with pytest.raises(JudgeError, match=r"'rules', dpo against base: it abstained on all 2 verdicts"):
        compare_checkpoints("rules", checkpoint("dpo"), checkpoint("base"), [("a", None), ("b", None)])


def test_one_judges_comparisons_are_corrected_together_and_another_judges_apart() -> None:
    def made(by: str, one: str, p_value: float) -> Comparison:
        rate = WinRate(
            win_rate=0.6, low=0.51, high=0.69, standard_error=0.05, n=9, n_clusters=9, p_value=p_value,
            smallest_detectable=0.1, decisive=True, bootstrap_low=0.5, bootstrap_high=0.7,
        )  # fmt: skip
        return Comparison(
            **rate.model_dump(), judge=by, one=one, other="base", ties=0, abstained=0, worst_low=0, worst_high=1,
            bounds_low=0, bounds_high=1, tokens_ratio=None, p_holm=p_value,
        )  # fmt: skip

    found = corrected([made("x", "dpo", 0.01), made("x", "kto", 0.04), made("x", "sft", 0.03), made("y", "dpo", 0.04)],
                      confidence=0.95)  # fmt: skip
    assert [one.p_holm for one in found] == pytest.approx([0.03, 0.06, 0.06, 0.04])
    assert [one.decisive for one in found] == [True, False, False, True]


@pytest.mark.parametrize(("comparisons", "deviations"), [(1, 1.959964), (10, 2.807034)])
def test_the_smallest_detectable_difference_is_at_the_level_that_one_of_several_comparisons_has(
    comparisons: int, deviations: float
) -> None:
    # Normal deviates of 0.975 and, a tenth of the 5 % being for each, of 0.9975; 0.841621 is that of 0.8, the power.
    rows = [(f"p{place}", float(place % 2)) for place in range(100_000)]
    one = compare_checkpoints("rules", checkpoint("dpo"), checkpoint("base"), rows)
    several = [one.model_copy(update={"other": f"base{place}"}) for place in range(comparisons)]
    error = 0.5 / math.sqrt(100_000)
    for found in corrected([*several, one.model_copy(update={"judge": "other"})], confidence=0.95)[:-1]:
        assert found.smallest_detectable == pytest.approx((deviations + 0.841621) * error, rel=1e-4)


# --- checkpoints


def test_kl_is_the_mean_log_ratio_by_pencil() -> None:
    answers = {
        "a": [Response(text="x", source="dpo", logprob=-10, ref_logprob=-14)],
        "b": [Response(text="y", source="dpo", logprob=-20, ref_logprob=-22)],
        "c": [Response(text="z", source="dpo", logprob=-5, ref_logprob=-5)],
    }
    found = kl_to_base(answers)
    assert found is not None
    assert found.value == pytest.approx(2.0)
    assert found.standard_error == pytest.approx(stats.sem([4, 2, 0]))
    assert 0 <= found.low < 2 < found.high <= 4


def test_kl_of_a_known_pair_of_distributions_is_recovered() -> None:
    # One token from p = (0.5, 0.3, 0.2) against q = (0.2, 0.3, 0.5): sum p log(p/q) = 0.3 log 2.5.
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.3, 0.5])
    drawn = np.random.default_rng(11).choice(3, size=4000, p=p)
    answers = {
        f"p{place}": [Response(text="t", source="s", logprob=math.log(p[token]), ref_logprob=math.log(q[token]))]
        for place, token in enumerate(drawn)
    }
    found = kl_to_base(answers)
    assert found is not None
    assert found.low < stats.entropy(p, q) < found.high
    assert found.high - found.low < 0.05


def test_kl_is_unknown_where_one_log_probability_is_missing() -> None:
    whole = Response(text="x", source="dpo", logprob=-1, ref_logprob=-2)
    assert kl_to_base({"a": [whole], "b": [Response(text="y", source="dpo", logprob=-1)]}) is None
    assert (
        kl_to_base({"a": [whole], "b": [Response(text="y", source="dpo", logprob=-1, ref_logprob=-math.inf)]}) is None
    )
    assert kl_to_base({}) is None


def test_distinct_2_by_pencil() -> None:
    # "a b a b" has ab, ba, ab; "a b" has ab: 4 bigrams, 2 of them different.
    assert distinct([words("a b a b"), words("a b")], 2) == 0.5
    assert distinct([words("a"), []], 2) == 0.0


def test_repetition_by_pencil() -> None:
    # Six 4-grams: abcd bcda cdab dabc abcd bcda; two have occurred before.
    assert repetition(words("a b c d a b c d a")) == pytest.approx(2 / 6)
    assert repetition(words("a b c")) == 0.0


def test_describe_by_pencil() -> None:
    answers = {
        "a": [Response(text="The cat sat", source="dpo", n_tokens=4, finished=True)],
        "b": [Response(text="the CAT", source="dpo", n_tokens=8, finished=False)],
    }
    found = describe("dpo", "dpo", answers)
    assert (found.n_answers, found.tokens_mean, found.words_mean, found.finished_share) == (2, 6.0, 2.5, 0.5)
    assert found.distinct_2 == pytest.approx(2 / 3)  # the cat, cat sat, the cat
    assert (found.repetition, found.kl) == (0.0, None)


def test_a_number_that_some_answer_lacks_is_unknown() -> None:
    answers = [Response(text="x", source="dpo", n_tokens=4, finished=True), Response(text="y", source="dpo")]
    found = describe("dpo", "dpo", {"a": answers})
    assert (found.tokens_mean, found.finished_share) == (None, None)


def test_a_checkpoint_without_answers_is_refused() -> None:
    with pytest.raises(ValueError, match="'dpo' has no answers"):
        describe("dpo", "dpo", {"a": []})


def test_refusals_are_a_share_of_the_answers_with_prompts_as_the_units() -> None:
    refuses, answers = Response(text="I can't help with that.", source="dpo"), Response(text="Yes.", source="dpo")
    found = describe("dpo", "dpo", {"a": [refuses, refuses], "b": [answers, answers]}).refusals
    assert found is not None
    assert (found.value, found.n, found.n_clusters) == (0.5, 4, 2)
    none = describe("dpo", "dpo", {str(n): [answers] for n in range(40)}).refusals
    assert none is not None
    assert (none.value, none.low) == (0, pytest.approx(0, abs=1e-12))
    assert none.high == pytest.approx(1.959964**2 / (40 + 1.959964**2))  # Wilson's upper end for 0 of 40


def test_perplexity_weighs_tokens_and_its_interval_is_over_rows() -> None:
    # 2 nats over 1 token and 4 over 5: 6 nats over 6 tokens, and not the mean of exp(2) and exp(0.8).
    found = perplexity([(2.0, 1), (4.0, 5)])
    assert found.value == pytest.approx(math.e)
    assert (found.n, found.n_clusters) == (6, 2)
    random = np.random.default_rng(5)
    tokens = random.integers(5, 40, 200)
    nll = tokens * random.gamma(4.0, 0.25, 200)  # a mean of one nat a token
    drawn = random.integers(200, size=(20_000, 200))
    spread = np.quantile(nll[drawn].sum(1) / tokens[drawn].sum(1), [0.025, 0.975])
    found = perplexity(list(zip(nll.tolist(), tokens.tolist(), strict=True)))
    assert (found.low, found.high) == pytest.approx(tuple(np.exp(spread)), rel=0.01)
    assert found.low < found.value < found.high
    assert found.value == pytest.approx(math.exp(math.fsum(nll) / int(tokens.sum())), rel=1e-12)


def test_a_reward_is_in_deviations_of_the_bases_answers() -> None:
    base = [1.0, 3.0, 5.0]  # mean 3, sample deviation 2
    found = reward_score("reward_model", [("a", 7.0), ("a", 9.0), ("b", 5.0)], base)
    assert found.score.value == pytest.approx((2 + 3 + 1) / 3)
    assert (found.model, found.score.n, found.score.n_clusters) == ("reward_model", 3, 2)
    assert reward_score("r", [("a", 5.0)], [4.0, 4.0]).score.value == 1.0  # no deviation to divide by


# --- judges


def test_what_a_judge_prefers_is_counted_over_what_it_decided() -> None:
    asked = [Prompt.model_validate({"id": f"p{place}", "prompt": "?"}) for place in range(5)]
    texts = [("aaa", "b"), ("a", "bbb"), ("aa", "bb"), ("aaa", "b"), ("a", "b")]
    pairs = [
        Pair(id=str(place), prompt=prompt, a=Response(text=a, source="x"), b=Response(text=b, source="y"))
        for place, (prompt, (a, b)) in enumerate(zip(asked, texts, strict=True))
    ]
    given = [{"p_a": 0.9}, {"p_a": 0.8}, {"p_a": 0.7}, {"p_a": 0.5}, {"abstained": "refused"}]
    verdicts = [
        Verdict.model_validate({"pair_id": pair.id, "judge": "j", "fingerprint": "f", **said})
        for pair, said in zip(pairs, given, strict=True)
    ]
    found = describe_judge("j", "f", how="labelled", pairs=pairs, verdicts=verdicts)
    assert (found.asked, found.ties, found.abstained) == (5, 1, {"refused": 1})
    assert found.prefers_longer == 0.5  # the longer won the first, lost the second; the third has no longer
    assert found.position_a == 1.0


def test_a_judge_that_decided_nothing_prefers_nothing() -> None:
    found = describe_judge("j", "f", how=None, pairs=[], verdicts=[])
    assert (found.asked, found.prefers_longer, found.position_a) == (0, None, None)


# --- the headline


def results_of(rates: dict[tuple[str, str, str], float], labelling: str | None = "likelihood") -> Results:
    """Results whose scores are the given rates on 200 prompts, with a spread of +-0.2."""
    names = list(dict.fromkeys(name for _, one, other in rates for name in (other, one)))
    judges = list(dict.fromkeys(by for by, _, _ in rates))
    comparisons = [
        compare_checkpoints(
            by, checkpoint(one), checkpoint(other),
            [(f"p{place}", rate + (0.2 if place % 2 else -0.2)) for place in range(200)],
        )
        for (by, one, other), rate in rates.items()
    ]  # fmt: skip
    return Results.of(
        checkpoints=[checkpoint(name) for name in names],
        judges=[judge(name, name == labelling) for name in judges],
        comparisons=comparisons,
        prompts=200,
        labelling_judge=labelling,
    )


def test_the_headline_names_the_winner_the_numbers_and_who_labelled() -> None:
    found = results_of({("likelihood", "dpo", "base"): 0.63, ("rules", "dpo", "base"): 0.57})
    one, other = found.comparisons
    assert found.headline == (
        f"dpo beats base: 63.0 % of 200 held-out prompts [{100 * one.low:.1f}, {100 * one.high:.1f}] by likelihood, "
        f"which also labelled the training data; 57.0 % [{100 * other.low:.1f}, {100 * other.high:.1f}] by rules, "
        "which did not."
    )


def test_the_headline_says_which_part_a_judge_had_in_the_training() -> None:
    found = results_of({("likelihood", "dpo", "base"): 0.63, ("rules", "dpo", "base"): 0.57})
    for how, told in (
        ("labelled in part", "by likelihood, which also had a part in labelling the training data;"),
        ("rewarded", "by likelihood, which also rewarded policies in training;"),
    ):
        judges = (judge("likelihood", True).model_copy(update={"how": how}), judge("rules"))
        for labelling in ("human", None):
            said = headline(found.model_copy(update={"judges": judges, "labelling_judge": labelling}))
            assert told in said
            assert said.endswith("by rules, which did not." if labelling else "by rules.")


def test_the_headline_says_not_decisive_and_what_could_have_been_seen() -> None:
    found = results_of({("rules", "kto", "base"): 0.51})
    points = math.ceil(100 * found.comparisons[0].smallest_detectable)
    assert found.headline.startswith("kto against base is not decisive: 51.0 % of 200 held-out prompts [")
    assert "by rules, which did not label the training data;" in found.headline
    assert found.headline.endswith(f"the smallest difference this sample could show is {points} points.")


def test_a_checkpoint_that_got_worse_is_said_to_be_worse() -> None:
    assert results_of({("rules", "ppo", "base"): 0.4}).headline.startswith("ppo is worse than base: 40.0 %")


def test_judges_that_differ_are_said_to_differ() -> None:
    part = results_of({("likelihood", "dpo", "base"): 0.65, ("rules", "dpo", "base"): 0.51})
    assert part.headline.startswith("dpo beats base by some judges only: 65.0 %")
    assert part.headline.endswith("by rules, which did not (not decisive).")
    against = results_of({("likelihood", "dpo", "base"): 0.65, ("rules", "dpo", "base"): 0.4})
    assert against.headline.startswith("The judges contradict each other on dpo against base: 65.0 %")


def test_the_best_is_chosen_by_a_judge_that_did_not_label() -> None:
    rates = {
        ("likelihood", "dpo", "base"): 0.8, ("likelihood", "kto", "base"): 0.6,
        ("rules", "dpo", "base"): 0.6, ("rules", "kto", "base"): 0.7,
    }  # fmt: skip
    assert results_of(rates).headline.startswith("kto beats base")


def test_a_judge_that_compared_only_some_does_not_choose_where_another_compared_all() -> None:
    some = {("people", "dpo", "base"): 0.8, ("likelihood", "dpo", "base"): 0.6, ("likelihood", "kto", "base"): 0.7}
    by_all = {("rules", "dpo", "base"): 0.55, ("rules", "kto", "base"): 0.65}
    assert results_of({**some, **by_all}).headline.startswith("kto beats base")
    # If only a judge that labelled compared the other, that one is not called the best for it.
    first, second = results_of(some).headline.split(". kto ")
    assert first.startswith("dpo beats base")
    assert second.startswith("beats base: 70.0 %")


def test_without_a_base_the_first_checkpoint_is_what_others_are_measured_against_though_a_judge_left_it_out() -> None:
    rates = {("people", "kto", "dpo"): 0.6, ("rules", "dpo", "sft"): 0.6, ("rules", "kto", "sft"): 0.7}
    found = results_of(rates)
    trained = [each.model_copy(update={"algorithm": "sft"}) for each in (checkpoint("sft"), *found.checkpoints[:2])]
    assert found.model_copy(update={"checkpoints": tuple(trained)}).base == "sft"


def test_the_second_sentence_compares_the_best_two_directly_and_without_repeating_roles() -> None:
    rates = {("rules", "dpo", "base"): 0.6, ("rules", "kto", "base"): 0.7, ("rules", "dpo", "kto"): 0.4}
    first, second = results_of(rates).headline.split(". kto ")
    assert first.startswith("kto beats base")
    assert second.startswith("beats dpo: 60.0 % [") and "label" not in second


def test_votes_of_people_are_not_called_a_judge_that_did_not_label() -> None:
    assert "label" not in results_of({("rules", "dpo", "base"): 0.7}, labelling=None).headline


def test_nothing_compared_is_said() -> None:
    nothing = Results.of(checkpoints=[checkpoint("base")], judges=[], comparisons=[], prompts=0)
    assert headline(nothing) == nothing.headline == "No checkpoint was compared."


def test_results_keep_their_value_through_json() -> None:
    found = results_of({("rules", "dpo", "base"): 0.6})
    assert Results.model_validate_json(found.model_dump_json()) == found
