"""What several people's votes amount to: numbers by hand, from independent packages, and from people made up."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from pipeline import crowd
from pipeline.agreement import LABELS
from pipeline.importers.base import Aggregate, Options
from pipeline.importers.collect import collect
from pipeline.records import Vote

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
    other = {"a": "b", "b": "a", "tie": "tie"}
    swapped = [vote.model_copy(update={"choice": other[vote.choice]}) for vote in INVERTED]
    one = crowd.probabilities(crowd.grouped(INVERTED), rule)
    exchanged = crowd.probabilities(crowd.grouped(swapped), rule)
    assert exchanged == pytest.approx({pair: 1 - p for pair, p in one.items()})


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
