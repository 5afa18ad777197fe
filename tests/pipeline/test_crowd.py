"""What several people's votes amount to: numbers by hand, from independent packages, and from people made up."""

import itertools
import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from pipeline import crowd
from pipeline.agreement import LABELS
from pipeline.importers.base import Aggregate, Options
from pipeline.importers.collect import collect
from pipeline.records import EXCHANGED, Vote

SHARED = Path(__file__).parents[3] / "shared" / "data"


def votes_of(table: dict[str, dict[str, str]]) -> list[Vote]:
    return [
        Vote(pair_id=pair, annotator=who, choice=choice)  # type: ignore[arg-type]
        for pair, said in table.items()
        for who, choice in said.items()
    ]


INVERTED = votes_of(
    {
        "p1": {"u1": "a", "u2": "a", "u3": "b"},
        "p2": {"u1": "b", "u2": "b", "u3": "a"},
        "p3": {"u1": "a", "u2": "a", "u3": "b"},
        "p4": {"u1": "b", "u3": "a"},
    }
)
"""u3 always says the opposite. crowd-kit 1.4.2 gives Dawid-Skene a, b, a, b; krippendorff gives alpha -1/3."""


def test_an_inverted_annotator_is_seen_through_and_a_majority_is_not_made_up() -> None:
    p = crowd.probabilities(crowd.grouped(INVERTED), "dawid_skene")
    assert [p[name] > 0.5 for name in ("p1", "p2", "p3", "p4")] == [True, False, True, False]
    p = crowd.probabilities(crowd.grouped(INVERTED), "majority")
    # By hand: (2 + 1) / (3 + 2), its complement, and a tie where nobody has the majority.
    assert p == pytest.approx({"p1": 0.6, "p2": 0.4, "p3": 0.6, "p4": 0.5})


def test_with_hardly_any_smoothing_it_is_as_sure_as_the_paper() -> None:
    pair = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3])
    who = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 2])
    said = np.array([0, 0, 1, 1, 1, 0, 0, 0, 1, 1, 0])
    found = crowd.dawid_skene(pair, who, said, labels=2, smoothing=1e-6)
    assert found.posterior_NL[3, 1] > 0.999


def test_alpha_is_the_one_of_independent_packages() -> None:
    found = crowd.people(INVERTED, {f"p{n}": f"p{n}" for n in range(1, 5)})
    assert found.alpha is not None
    assert found.alpha.value == pytest.approx(-1 / 3)
    assert found.shared == 4 and found.unanimous == 0


def test_dawid_skene_beats_the_majority_and_knows_who_is_how_good() -> None:
    random = np.random.default_rng(7)
    accuracies = np.array([*np.linspace(0.55, 0.95, 11), 0.2])
    truth = random.integers(0, 2, 1000)
    votes = []
    for item, label in enumerate(truth):
        for who in random.choice(12, size=5, replace=False):
            said = label if random.random() < accuracies[who] else 1 - label
            votes.append(Vote(pair_id=str(item), annotator=f"{who:02}", choice=LABELS[said]))  # type: ignore[arg-type]
    by_pair = crowd.grouped(votes)

    def right(rule: Aggregate) -> float:
        p = crowd.probabilities(by_pair, rule)
        return float(np.mean([(p[str(item)] > 0.5) == (label == 0) for item, label in enumerate(truth)]))

    assert right("dawid_skene") > right("majority") + 0.02
    found = crowd.people(votes, {pair: pair for pair in by_pair})
    estimated = [each.accuracy for each in found.annotators]
    assert estimated == pytest.approx(accuracies, abs=0.05)


@pytest.mark.parametrize("rule", ["dawid_skene", "majority"])
def test_one_vote_is_not_certainty_and_ties_are_kept(rule: Aggregate) -> None:
    votes = votes_of({f"p{n}": {"anonymous/1": "a" if n % 2 else "b"} for n in range(50)})
    p = crowd.probabilities(crowd.grouped(votes), rule)
    assert all(p[f"p{n}"] == pytest.approx(2 / 3 if n % 2 else 1 / 3) for n in range(50))
    ties = votes_of({"p1": {"u1": "tie", "u2": "tie", "u3": "a"}, "p3": {"u1": "tie"}})
    assert set(crowd.probabilities(crowd.grouped(ties), rule).values()) == {0.5}
    assert all(verdict.is_tie for verdict in crowd.verdicts(ties, rule))


@pytest.mark.parametrize("rule", ["dawid_skene", "majority"])
def test_a_lone_vote_is_not_turned_round_by_how_many_other_pairs_have_a(rule: Aggregate) -> None:
    # Which answer is called a is drawn by chance: that it won six of eight times says nothing about the ninth.
    shared = {f"p{n}": {"ana": label, "ben": label} for n, label in enumerate("aaaaaabb")}
    votes = votes_of({**shared, "alone": {"carol": "b"}})
    # Carol is taken to have cast one vote of each kind before, and one right one more: she is right in 2 of 3.
    assert crowd.probabilities(crowd.grouped(votes), rule)["alone"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("rule", ["dawid_skene", "majority"])
def test_exchanging_the_sides_exchanges_every_verdict(rule: Aggregate) -> None:
    swapped = [vote.swap() for vote in INVERTED]
    one = crowd.probabilities(crowd.grouped(INVERTED), rule)
    exchanged = crowd.probabilities(crowd.grouped(swapped), rule)
    assert exchanged == pytest.approx({pair: 1 - p for pair, p in one.items()})


def votes_at_random(random: np.random.Generator) -> dict[str, list[crowd.Cast]]:
    """Twelve pairs with one to five votes on each, ties among them, by five people and by nobody in particular."""
    names = ("ana", "ben", "carol", "dan", "eve", "anonymous", "anonymous")
    return {
        f"p{n}": [
            crowd.Cast(names[who], str(random.choice(LABELS, p=(0.5, 0.3, 0.2))), None)
            for who in random.choice(len(names), size=random.integers(1, 6), replace=False)
        ]
        for n in range(12)
    }


@pytest.mark.parametrize("rule", ["dawid_skene", "majority"])
@pytest.mark.parametrize("seed", range(5))
def test_exchanging_the_sides_of_some_pairs_exchanges_their_verdicts_and_no_others(seed: int, rule: Aggregate) -> None:
    random = np.random.default_rng(seed)
    one = votes_at_random(random)
    flipped = {pair for pair in one if random.random() < 0.5}
    exchanged = {
        pair: [vote._replace(choice=EXCHANGED[vote.choice]) for vote in cast] if pair in flipped else cast
        for pair, cast in one.items()
    }
    p = crowd.probabilities(one, rule)
    expected = {pair: 1 - p[pair] if pair in flipped else p[pair] for pair in p}
    assert crowd.probabilities(exchanged, rule) == pytest.approx(expected, rel=0, abs=1e-12)


@pytest.mark.parametrize("said", [(0, 0), (1, 1), (0, 1)])
def test_a_step_is_as_sure_of_two_pairs_on_one_side_as_of_one_on_each(
    said: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crowd, "ROUNDS", 1)
    # Two people say the same of two pairs. Each was right twice, and is taken to have been right four times and wrong
    # twice before, on both sides together: pi is 6/8 and 2/8. Two votes then come to (3/4)^2 : (1/4)^2 = 9 : 1.
    pair, who = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    found = crowd.dawid_skene(pair, who, np.repeat(said, 2), labels=2)
    assert found.confusion_WLL == pytest.approx(np.array([[[3 / 4, 1 / 4], [1 / 4, 3 / 4]]] * 2))
    assert found.posterior_NL[[0, 1], said] == pytest.approx([9 / 10] * 2)


@pytest.mark.parametrize("side", [0, 1])
def test_a_step_from_a_vote_for_a_side_and_a_tie_is_that_of_pencil_and_paper(
    side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crowd, "ROUNDS", 1)
    found = crowd.dawid_skene(np.array([0, 0]), np.array([0, 1]), np.array([side, 2]), labels=3)
    # The shares are 1/2 for the side and 1/2 for a tie. Taken to have been said before, of both sides together: 4 are
    # right, 2 wrong, 2 ties; of a tie: 2 the sides, 2 a tie. Ana adds 1/2 to what is right of a side, and 1/2 to the
    # side that is said of a tie; Ben adds 1/2 to the tie that is said of a side, and 1/2 to the one said of a tie.
    right, wrong, tie = Fraction(9, 17), Fraction(4, 17), Fraction(5, 17)
    ana = [[right, wrong, wrong], [wrong, right, wrong], [Fraction(5, 18), Fraction(5, 18), Fraction(8, 18)]]
    ben = [[2 * wrong, wrong, tie], [wrong, 2 * wrong, tie], [Fraction(2, 9), Fraction(2, 9), Fraction(5, 9)]]
    assert found.confusion_WLL == pytest.approx(np.array([ana, ben], dtype=np.float64))
    # p: one of each label before, and the shares: 5/4, 5/4 and 3/2 of 4.
    assert found.prior_L == pytest.approx([5 / 16, 5 / 16, 6 / 16])
    weights = [5 * right * tie, 5 * wrong * tie, 6 * Fraction(5, 18) * Fraction(5, 9)]
    posterior = [float(each / sum(weights)) for each in weights]
    assert found.posterior_NL[0, [side, 1 - side, 2]] == pytest.approx(posterior)


def plain_skene(votes: list[tuple[int, int, str]], rounds: int) -> list[dict[str, float]]:
    """The model vote by vote, with five numbers a person: a side that is right, wrong or called a tie; a tie that is
    called a side or a tie. No two pairs of `votes`, which are (pair, person, label), may have one vote only."""
    pairs, people = 1 + max(vote[0] for vote in votes), 1 + max(vote[1] for vote in votes)
    cast = [[(who, said) for of, who, said in votes if of == pair] for pair in range(pairs)]
    T = [{label: sum(said == label for _, said in each) / len(each) for label in LABELS} for each in cast]
    for _ in range(rounds):
        ties = 1 + sum(each["tie"] for each in T)
        prior = {"a": (3 + pairs - ties) / 2, "b": (3 + pairs - ties) / 2, "tie": ties}
        side = [{"right": 4.0, "wrong": 2.0, "tie": 2.0} for _ in range(people)]
        drawn = [{"side": 2.0, "tie": 2.0} for _ in range(people)]
        for pair, who, said in votes:
            if said == "tie":
                side[who]["tie"] += T[pair]["a"] + T[pair]["b"]
                drawn[who]["tie"] += T[pair]["tie"]
            else:
                side[who]["right"] += T[pair][said]
                side[who]["wrong"] += T[pair][EXCHANGED[said]]
                drawn[who]["side"] += T[pair]["tie"]
        for pair, each in enumerate(cast):
            weight = dict(prior)
            for who, said in each:
                for true in LABELS:
                    if true == "tie":
                        share = drawn[who]["tie"] if said == "tie" else drawn[who]["side"] / 2
                        weight[true] *= share / sum(drawn[who].values())
                    else:
                        kind = "tie" if said == "tie" else "right" if said == true else "wrong"
                        weight[true] *= side[who][kind] / sum(side[who].values())
            T[pair] = {label: weight[label] / sum(weight.values()) for label in LABELS}
    return T


def test_its_steps_are_those_of_plain_loops_over_the_votes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crowd, "ROUNDS", 7)
    monkeypatch.setattr(crowd, "TOLERANCE", 0.0)
    random = np.random.default_rng(3)
    chosen = [(n, int(who)) for n in range(10) for who in random.choice(4, size=3, replace=False)]
    votes = [(pair, who, str(random.choice(LABELS, p=(0.6, 0.2, 0.2)))) for pair, who in chosen]
    pair, who, said = np.array([(pair, who, LABELS.index(label)) for pair, who, label in votes]).T
    found = crowd.dawid_skene(pair, who, said, labels=3)
    expected = [[each[label] for label in LABELS] for each in plain_skene(votes, rounds=7)]
    assert found.posterior_NL == pytest.approx(np.array(expected), rel=0, abs=1e-12)


def test_planted_matrices_are_found_where_the_better_answer_is_always_a() -> None:
    random = np.random.default_rng(5)
    right, tie = np.array([0.5, 0.6, 0.7, 0.8, 0.9]), np.array([0.3, 0.2, 0.2, 0.1, 0.05])
    side = np.stack([right, 1 - right - tie, tie], axis=1)
    drawn = np.stack([0.2 - tie / 2, 0.2 - tie / 2, 0.6 + tie], axis=1)
    truth = np.where(random.random(800) < 0.7, 0, 2)
    pair, who = np.divmod(np.arange(800 * 5), 5)
    chances = np.where((truth[pair] == 0)[:, None], side[who], drawn[who])
    said = (random.random(len(pair))[:, None] > chances.cumsum(axis=1)).sum(axis=1)
    found = crowd.dawid_skene(pair, who, said, labels=3)
    planted = np.stack([side, side[:, [1, 0, 2]], drawn], axis=1)
    # Of 560 sides and 240 ties each: three standard deviations of a share are 0.06 and 0.09.
    assert found.confusion_WLL == pytest.approx(planted, abs=0.09)
    assert found.prior_L == pytest.approx([0.35, 0.35, 0.3], abs=0.06)


def test_a_habit_of_the_left_is_found_where_the_places_are_known() -> None:
    votes = [
        Vote(pair_id=str(n), annotator="lefty", choice="a" if n % 2 else "b", shown="ab" if n % 2 else "ba")
        for n in range(10)
    ]
    votes += [vote.model_copy(update={"annotator": "blind", "shown": None}) for vote in votes]
    blind, lefty = crowd.people(votes, {str(n): str(n) for n in range(10)}).annotators
    assert (lefty.left, blind.left) == (1.0, None)
    assert lefty.left_p == pytest.approx(2 / 2**10)  # both tails of ten heads in a row
    assert lefty.agreement == 1.0


@pytest.mark.parametrize(("successes", "trials"), [(0, 1), (5, 10), (3, 20), (470, 1000)])
def test_the_binomial_test_is_scipys(successes: int, trials: int) -> None:
    from scipy.stats import binomtest

    assert crowd.binomial_p(successes, trials) == pytest.approx(binomtest(successes, trials).pvalue)


needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no {SHARED}")
PANDALM = Options(choices={"1": "a", "2": "b", "0": "tie"})


@needs_shared
def test_pandalm_is_read_as_it_is_and_the_majority_is_its_own_label() -> None:
    found = collect([SHARED / "pandalm_votes.csv"], "auto", PANDALM, max_bad=0)
    counts = found.counts()
    assert (counts.rows, counts.pairs, counts.votes, counts.annotators) == (1200, 400, 1200, 3)
    assert counts.choices == {"a": 512, "b": 571, "tie": 117}
    people = [json.loads(line) for line in (SHARED / "pandalm_human.jsonl").open(encoding="utf-8")]
    label = {(row["prompt"], row["a"], row["b"]): row["label"] for row in people}
    other = {"a": "b", "b": "a", "tie": "tie"}
    same = 0
    for pair, cast in found.judgements():
        said = crowd.majority([vote.choice for vote in cast])
        straight = label.get((pair.prompt.text, pair.a.text, pair.b.text))
        exchanged = label.get((pair.prompt.text, pair.b.text, pair.a.text))
        same += said == (straight or other[str(exchanged)])
    assert same == 400


@needs_shared
def test_pandalms_alpha_is_krippendorffs_formula_written_out() -> None:
    found = collect([SHARED / "pandalm_votes.csv"], "auto", PANDALM, max_bad=0)
    # Every pair has three votes: observed disagreement over that of all votes put into one urn.
    given = [[vote.choice for vote in cast] for _, cast in found.judgements()]
    observed = np.mean([x != y for cast in given for x, y in itertools.permutations(cast, 2)])
    everything = [choice for cast in given for choice in cast]
    n, counts = len(everything), np.unique(everything, return_counts=True)[1]
    expected = 1 - sum(counts * (counts - 1)) / (n * (n - 1))
    people = crowd.people(found.votes(), found.prompt_of())
    assert people.alpha is not None and people.alpha.value == pytest.approx(1 - observed / expected)
    # 0.8770 with the sides as the file has them: which answer is called a moves the urn a little.
    assert people.alpha.value == pytest.approx(0.8770, abs=1e-3)


@needs_shared
def test_the_hh_file_is_read_as_it_is() -> None:
    counts = collect([SHARED / "hh_harmless_base_first1200.jsonl.gz"], "auto", Options(), max_bad=0).counts()
    assert (counts.rows, counts.imported, counts.pairs, counts.votes) == (1200, 1200, 1200, 1200)
    assert set(counts.formats.values()) == {"anthropic_hh"}
