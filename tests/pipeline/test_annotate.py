"""People's votes: the order of the pairs, what is kept, what two pages do to each other, and who may ask at all."""

import csv
import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import pytest
from annotating import Served, fetch, folder_of, pair_of, verdict_of

from pipeline import cli, rounds, store
from pipeline.annotate import material, words
from pipeline.annotate.ballots import Ballots, open_ballots
from pipeline.annotate.desk import Desk
from pipeline.errors import DataError
from pipeline.importers.base import Options
from pipeline.importers.collect import collect, format_names
from pipeline.records import Pair


def desk_of(top: Path, number: int = 12, *, double: float = 0.0, control: float = 0.0) -> Desk:
    folder = folder_of(top, [pair_of(each) for each in range(number)])
    items = material.read(folder / "pairs.jsonl", None, double=double, control=control, seed=0)
    return Desk(items, Ballots(folder / material.DATABASE), seed=0)


# ---- order


def test_the_pairs_that_the_judge_is_least_sure_of_come_first_and_what_it_left_open_before_all() -> None:
    sureness = {f"pair{n}": n / 100 for n in range(50)}
    asked = list(material.order(sureness, sureness, control=0.0, seed=1))
    assert asked == [(f"pair{n}", "unsure") for n in range(50)]
    assert next(material.order([*sureness, "open"], sureness | {"pair0": 0.01}, control=0.0, seed=1))[0] == "open"


def test_control_pairs_are_drawn_without_the_judge_and_are_their_share_of_whatever_was_asked() -> None:
    names = [f"pair{n}" for n in range(2000)]
    one = list(material.order(names, {name: n / 4000 for n, name in enumerate(names)}, control=0.1, seed=3))
    other = list(material.order(names, {name: -n / 4000 for n, name in enumerate(names)}, control=0.1, seed=3))
    drawn = [name for name, sample in one if sample == "control"]
    assert drawn == [name for name, sample in other if sample == "control"]
    assert 160 <= len(drawn) <= 240  # 200 expected, 3 deviations are 40
    for end in (100, 500, 1500):
        assert abs(sum(sample == "control" for _, sample in one[:end]) - end / 10) <= 1
    assert sorted(name for name, _ in one) == sorted(names)


@pytest.mark.parametrize("control", [0.0, 0.3, 1.0])
def test_every_pair_is_asked_once_whatever_the_share_of_controls(control: float) -> None:
    names = [f"pair{n}" for n in range(40)]
    assert sorted(name for name, _ in material.order(names, {}, control=control, seed=0)) == sorted(names)


def publish(run: Path, step: str, name: str, inputs: dict[str, str], records: dict[str, list[Pair]]) -> None:
    staging = run / f"staging-{step}-{name}"
    store.make_dirs(staging)
    for file, rows in records.items():
        store.write_jsonl(staging / file, rows)
    manifest = {"inputs": {each: {"fingerprint": mark} for each, mark in inputs.items()}}
    store.publish(staging, run / "steps" / step / name, manifest)


def test_of_a_run_the_pairs_of_its_last_command_are_taken_and_the_verdicts_on_them(tmp_path: Path) -> None:
    pairs = [pair_of(0)]
    for name in ("old", "new"):
        publish(tmp_path, "generate", name, {}, {"pairs.jsonl": pairs})
    publish(tmp_path, "label", "said", {"generate": "old1234"}, {"verdicts.jsonl": [verdict_of(pairs[0], 0.5)]})  # type: ignore[list-item]
    steps = tmp_path / "steps"
    (tmp_path / "manifest.json").write_text('{"steps": {"generate": {"fingerprint": "old1234"}}}')
    assert material.find(tmp_path) == (steps / "generate/old/pairs.jsonl", steps / "label/said/verdicts.jsonl", 1)
    (tmp_path / "manifest.json").write_text('{"steps": {"generate": {"fingerprint": "new1234"}}}')
    assert material.find(tmp_path) == (steps / "generate/new/pairs.jsonl", None, 1)


def rounds_of(run: Path, count: int) -> None:
    """A run of so many rounds, each with a pair of its own and a verdict on it."""
    for number in range(1, count + 1):
        generate, label, mark = (rounds.step_of(number, step) for step in ("generate", "label", "mark"))
        publish(run, generate, mark, {}, {"pairs.jsonl": [pair_of(number)]})
        verdicts = {"verdicts.jsonl": [verdict_of(pair_of(number), 0.5)]}
        publish(run, label, "said", {generate: mark + "1234"}, verdicts)  # type: ignore[arg-type]


def used(run: Path, count: int) -> None:
    """Say that the last command was one of so many rounds."""
    names = [[rounds.step_of(number, step) for step in ("generate", "mark")] for number in range(1, count + 1)]
    store.write_json(run / "manifest.json", {"steps": {name: {"fingerprint": mark + "1234"} for name, mark in names}})


def test_of_a_run_with_rounds_the_newest_that_its_last_command_has_is_asked_about_or_the_one_that_is_named(
    tmp_path: Path,
) -> None:
    def asked(number: int | None = None) -> tuple[int, list[Pair]]:
        pairs, verdicts, found = material.find(tmp_path, number)
        assert verdicts is not None and verdicts.parts[-3] == rounds.step_of(found, "label")
        return found, list(store.read_jsonl(pairs, Pair))

    rounds_of(tmp_path, 3)
    assert asked() == (3, [pair_of(3)])
    assert [asked(number) for number in (1, 2, 3)] == [(number, [pair_of(number)]) for number in (1, 2, 3)]
    used(tmp_path, 2)
    assert asked() == (2, [pair_of(2)])
    used(tmp_path, 4)  # which is at work, and has not generated its fourth
    assert asked() == (3, [pair_of(3)])


def test_votes_on_several_rounds_are_kept_together_and_each_page_counts_those_on_its_own(tmp_path: Path) -> None:
    rounds_of(tmp_path, 2)
    told = {}
    for number, options in ((1, ["--round", "1"]), (2, [])):
        with Served(tmp_path, *options) as page:
            told[number] = page.told
            state = page.ask("ann", "1")
            assert (state["progress"], state["last"]) == ({"mine": 0, "skipped": 0, "done": 0, "needed": 1}, None)
            assert state["question"]["pair"] == pair_of(number).id
            page.ask("ann", "1", "vote", pair=pair_of(number).id, choice="tie")
    assert told[1].startswith("1 pairs, the least sure first") and told[2].startswith("1 pairs of round 2, the least")
    assert cli.main(["annotate", str(tmp_path), "--export", str(tmp_path / "votes.csv")]) == 0
    found = collect([tmp_path / "votes.csv"], "auto", Options(), max_bad=0)
    assert [pair.prompt.text for pair, _ in found.judgements()] == ["Question 1?", "Question 2?"]


def test_what_has_no_pairs_is_told_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def told(*arguments: str) -> str:
        assert cli.main(["annotate", *arguments]) == 2
        return capsys.readouterr().err

    assert "nowhere: no such run; name a run directory" in told(str(tmp_path / "nowhere"))
    assert "neither a run directory nor a folder with pairs.jsonl" in told(str(tmp_path))
    (tmp_path / "steps").mkdir()
    assert "no pairs yet; let its generate step finish" in told(str(tmp_path))
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    assert "holds no pair" in told(str(empty))
    assert "--double: 1.5 found; needs a share from 0 to 1" in told(str(tmp_path), "--double", "1.5")
    assert "so nobody has voted" in told(str(tmp_path), "--export", str(tmp_path / "votes.csv"))
    assert "--round: 2 found, and" in told(str(empty), "--round", "2")
    every = told(str(tmp_path), "--round", "2", "--export", str(tmp_path / "votes.csv"))
    assert "--round: 2 found with --export, which writes those on all rounds" in every
    rounds_of(tmp_path / "run", 2)
    assert "--round: 3 found, of which" in (several := told(str(tmp_path / "run"), "--round", "3"))
    assert "name one of 1, 2; a later one has some when its generate step is done" in several


# ---- votes


def test_sides_are_drawn_for_each_annotator_and_pair_and_a_vote_is_kept_for_the_answer_and_not_the_side(
    tmp_path: Path,
) -> None:
    desk = desk_of(tmp_path, 60)
    shown: Counter[tuple[str, str]] = Counter()
    while question := desk.next("ann", "1")["question"]:
        pair = desk.items[question["pair"]].pair
        side = "left" if question["left"].startswith("good") else "right"
        shown[side, "a" if pair.a.text.startswith("good") else "b"] += 1
        desk.vote("ann", "1", pair.id, side, "")  # type: ignore[arg-type]
    votes = list(desk.ballots.votes())
    assert len(votes) == 60
    for pair, vote, _ in votes:
        assert getattr(pair, vote.choice).text.startswith("good")
    assert min(shown.values()) >= 5 and len(shown) == 4  # 15 of each expected, 3 deviations are 10


def test_undo_takes_back_the_last_vote_shows_it_again_and_twice_does_no_harm(tmp_path: Path) -> None:
    desk = desk_of(tmp_path)
    first = desk.next("ann", "1")["question"]["pair"]
    second = desk.vote("ann", "1", first, "left", "so")["question"]["pair"]
    state = desk.vote("ann", "1", second, "skip", "")
    assert state["progress"] == {"mine": 1, "skipped": 1, "done": 1, "needed": 12}
    state = desk.undo("ann", "1", state["last"])
    assert (state["question"]["pair"], state["undone"]["choice"], state["last"]) == (second, "skip", first)
    for expected in ({"choice": "left", "note": "so"}, None):
        state = desk.undo("ann", "1", first)
        assert (state["question"]["pair"], state["undone"], state["last"]) == (first, expected, None)
    assert state["progress"]["done"] == 0 and list(desk.ballots.votes()) == []


def test_two_pages_of_one_person_get_different_pairs_and_of_two_votes_on_one_pair_the_last_counts(
    tmp_path: Path,
) -> None:
    desk = desk_of(tmp_path)
    one, other = (desk.next("ann", page)["question"]["pair"] for page in "12")
    assert one != other and desk.next("ann", "1")["question"]["pair"] == one
    desk.vote("ann", "1", one, "tie", "")
    state = desk.vote("ann", "2", one, "left", "")
    assert (state["progress"]["mine"], state["progress"]["done"]) == (1, 1)
    (pair, vote, _), *more = desk.ballots.votes()
    assert (pair.id, vote.choice, vote.shown, more) == (one, desk.sides("ann", one)[0], desk.sides("ann", one), [])
    with sqlite3.connect(tmp_path / material.DATABASE) as kept:
        assert [said for (said,) in kept.execute("SELECT said FROM events")] == ["tie", vote.choice]


def test_a_pair_is_voted_on_once_and_a_doubled_one_by_two_people(tmp_path: Path) -> None:
    desk = desk_of(tmp_path, 60, double=0.25)
    for who in ("ann", "ben", "cy"):
        while question := desk.next(who, who)["question"]:
            desk.vote(who, who, question["pair"], "tie", "")
            if who == "ann" and desk.next(who, who)["progress"]["mine"] == 40:
                break
    by_pair = Counter(pair.id for pair, _, _ in desk.ballots.votes())
    assert by_pair == {name: item.needed for name, item in desk.items.items()}
    assert 5 <= sum(item.needed == 2 for item in desk.items.values()) <= 25  # 15 expected
    progress = desk.next("cy", "cy")["progress"]
    assert progress["done"] == progress["needed"] == by_pair.total()


def test_what_one_person_skips_another_is_asked(tmp_path: Path) -> None:
    desk = desk_of(tmp_path, 1)
    name = desk.next("ann", "1")["question"]["pair"]
    assert desk.vote("ann", "1", name, "skip", "")["question"] is None
    assert desk.next("ben", "2")["question"]["pair"] == name


def test_a_process_sees_what_another_one_kept(tmp_path: Path) -> None:
    desk = desk_of(tmp_path)
    other = Ballots(tmp_path / material.DATABASE)
    name = desk.next("ann", "1")["question"]["pair"]
    desk.vote("ann", "1", name, "left", "")
    assert [pair.id for pair, _, _ in other.votes()] == [name]


# ---- votes on a step's folder, which is replaced when the step is made again


def step_of(top: Path) -> Path:
    """A published step with pairs."""
    publish(top, "compare", "f1", {}, {"pairs.jsonl": [pair_of(n) for n in range(4)]})
    return top / "steps" / "compare" / "f1"


def make_again(step: Path) -> None:
    """As a run does where it finds a published file damaged."""
    (step / "pairs.jsonl").write_text("damaged")
    step_of(step.parents[2])
    assert store.verify(step, hashes=True) == []


@pytest.mark.parametrize("named", ["folder", "file"])
def test_votes_on_a_steps_folder_outlive_the_folder(tmp_path: Path, named: str) -> None:
    step = step_of(tmp_path)
    told = step if named == "folder" else step / "pairs.jsonl"
    with Served(told) as page:
        pair = page.ask("ann", "1")["question"]["pair"]
        page.ask("ann", "1", "vote", pair=pair, choice="left")
    make_again(step)
    with Served(told) as page:
        assert page.ask("ann", "1")["progress"]["mine"] == 1
    assert cli.main(["annotate", str(told), "--export", str(tmp_path / "votes.csv")]) == 0
    with open(tmp_path / "votes.csv", newline="", encoding="utf-8") as file:
        assert [row["pair_id"] for row in csv.DictReader(file)] == [pair]
    # They are not among the votes on the run's own pairs, which are trained on.
    assert not (tmp_path / material.DATABASE).exists()


def test_votes_that_are_in_a_steps_folder_already_are_not_removed_and_are_found_by_the_same_command(
    tmp_path: Path,
) -> None:
    step = step_of(tmp_path)
    inside = Ballots(step / material.DATABASE)
    item = material.Item(pair_of(0), "control", 1)
    inside.cast(item, "ann", "a", "ab")
    with pytest.raises(DataError, match=r"people's votes are in it; prefloop annotate .*f1 --export FILE moves them"):
        make_again(step)
    with pytest.raises(DataError, match=r"cannot be moved .*; end the page that has them open"):
        open_ballots(step)
    # Closed by a kill: what was said last is in the write-ahead log alone.
    (tmp_path / "killed").mkdir()
    for file in step.glob(f"{material.DATABASE}*"):
        (tmp_path / "killed" / file.name).write_bytes(file.read_bytes())
    inside.close()
    for file in (tmp_path / "killed").iterdir():
        file.rename(step / file.name)
    assert cli.main(["annotate", str(step), "--export", str(tmp_path / "votes.csv")]) == 0
    make_again(step)
    assert [(pair.id, vote.choice) for pair, vote, _ in open_ballots(step).votes()] == [(item.pair.id, "a")]


def test_votes_in_both_places_are_told_apart_by_nobody_but_the_user(tmp_path: Path) -> None:
    step = step_of(tmp_path)
    open_ballots(step).close()
    Ballots(step / material.DATABASE).close()
    with pytest.raises(DataError, match="both hold votes on these pairs; move the first into a folder of its own"):
        open_ballots(step)


def test_a_file_that_is_no_database_is_an_error_that_says_which(tmp_path: Path) -> None:
    (tmp_path / material.DATABASE).write_bytes(b"this is no database at all, but long enough to look" * 50)
    with pytest.raises(DataError, match=r"annotations\.sqlite: votes cannot be kept here"):
        Ballots(tmp_path / material.DATABASE)


@pytest.mark.parametrize("to_format", [None, *format_names()])
def test_what_people_voted_is_read_back_from_every_format_that_it_can_be_written_in(
    to_format: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    desk = desk_of(tmp_path, 2)
    first, second = pair_of(0), pair_of(1)
    desk.vote("ann", "1", first.id, "left", "")
    desk.vote("ann", "1", second.id, "right", "")
    said = {pair.prompt.text: getattr(pair, vote.choice).text for pair, vote, _ in desk.ballots.votes()}
    file = tmp_path / ("votes.csv" if to_format is None else "votes.jsonl")
    more = [] if to_format is None else ["--to-format", to_format]
    if cli.main(["annotate", str(tmp_path), "--export", str(file), *more]):
        # What holds single answers cannot hold a choice between two, and says so.
        assert to_format in ("thumbs",) and to_format in capsys.readouterr().err
        return
    found = collect([file], "auto", Options(), max_bad=0)
    back = {pair.prompt.text: getattr(pair, cast[0].choice).text for pair, cast in found.judgements()}
    assert back == said


def same_text(number: int) -> Pair:
    return pair_of(number, "the same", "the same")


def test_two_answers_of_the_same_text_are_not_asked_about(tmp_path: Path) -> None:
    pairs = [pair_of(0), same_text(1), pair_of(2)]
    folder = folder_of(tmp_path, pairs, [0.1, 0.5, 0.9])
    items = material.read(folder / "pairs.jsonl", folder / "verdicts.jsonl", double=1, control=0.5, seed=0)
    assert {item.pair.id for item in items} == {pairs[0].id, pairs[2].id}
    store.write_jsonl(folder / "pairs.jsonl", [same_text(0), same_text(1)])
    with pytest.raises(DataError, match=r"pairs\.jsonl: in each of 2 pairs both answers are the same text"):
        material.read(folder / "pairs.jsonl", None, double=0, control=0, seed=0)


def test_votes_that_were_once_cast_on_the_same_text_are_exported_and_skipped_wherever_they_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(Ballots(tmp_path / material.DATABASE)) as ballots:
        ballots.cast(material.Item(same_text(0), "unsure", 1), "ann", "tie", "ab")
        argilla = ["annotate", str(tmp_path), "--export", str(tmp_path / "votes.jsonl"), "--to-format", "argilla"]
        assert cli.main(argilla) == 2
        told = capsys.readouterr().err
        assert f"{ballots.path}: the votes cannot be written as argilla: their table: no row says anything" in told
        assert "the two answers are the same text: 1" in told and "votes.csv" not in told
        ballots.cast(material.Item(pair_of(1), "control", 1), "ann", "a", "ab")
    assert cli.main(argilla) == 0
    assert cli.main(["annotate", str(tmp_path), "--export", str(tmp_path / "votes.csv")]) == 0
    for file in ("votes.csv", "votes.jsonl"):
        ((pair, _),) = collect([tmp_path / file], "auto", Options(), max_bad=0).judgements()
        assert pair.prompt.text == "Question 1?"


def test_a_format_without_a_file_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["annotate", str(tmp_path), "--to-format", "argilla"]) == 2
    assert "--to-format: argilla found without --export FILE" in capsys.readouterr().err


@pytest.mark.parametrize("texts", [('=1+1, "x"\r\ny\n\n', "😀 répo\u2028nse ; \t@"), ("a lone\rreturn", "\r")])
def test_the_export_has_every_vote_with_its_texts_as_they_are(tmp_path: Path, texts: tuple[str, str]) -> None:
    folder = folder_of(tmp_path, [pair_of(0, *texts), pair_of(1)])
    items = material.read(folder / "pairs.jsonl", None, double=0, control=1, seed=0)
    desk = Desk(items, Ballots(folder / material.DATABASE), seed=0)
    name = pair_of(0, *texts).id
    desk.vote("ann", "1", name, "right", 'because, "it" is\nso')
    desk.vote("ann", "1", pair_of(1).id, "skip", "")
    assert cli.main(["annotate", str(folder), "--export", str(tmp_path / "votes.csv")]) == 0
    with open(tmp_path / "votes.csv", newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    pair = desk.items[name].pair
    assert (row["pair_id"], row["response_a"], row["response_b"]) == (name, pair.a.text, pair.b.text)
    assert json.loads(row["prompt"]) == [{"role": "user", "content": "Question 0?"}]
    assert (row["rater"], row["note"], row["sample"]) == ("ann", 'because, "it" is\nso', "control")
    assert row["choice"] == row["shown"][1]
    ((found, _),) = collect([tmp_path / "votes.csv"], "auto", Options(), max_bad=0).judgements()
    assert {found.a.text, found.b.text} == set(texts)


@pytest.mark.parametrize("answer", ["", "nan", '[{"role": "assistant", "content": "x"}]'])
def test_an_answer_that_a_table_could_not_tell_from_another_thing_comes_back_from_the_export(
    tmp_path: Path, answer: str
) -> None:
    plain = pair_of(0)
    pair = Pair.of(plain.prompt, plain.a, plain.b.model_copy(update={"text": answer}))
    with closing(Ballots(tmp_path / material.DATABASE)) as ballots:
        ballots.cast(material.Item(pair, "control", 1), "ann", "a", "ab")
    assert cli.main(["annotate", str(tmp_path), "--export", str(tmp_path / "votes.csv")]) == 0
    ((found, (vote,)),) = collect([tmp_path / "votes.csv"], "auto", Options(), max_bad=0).judgements()
    chosen = found.a if vote.choice == "a" else found.b
    assert ({found.a.text, found.b.text}, chosen.text) == ({pair.a.text, pair.b.text}, pair.a.text)


def test_how_a_pair_came_to_be_asked_about_is_known_after_the_import(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, [pair_of(n) for n in range(12)])
    desk = desk_of(tmp_path, control=0.5)
    for item in desk.items.values():
        desk.vote("ann", "1", item.pair.id, "tie", "")
    assert cli.main(["annotate", str(folder), "--export", str(tmp_path / "votes.csv")]) == 0
    found = collect([tmp_path / "votes.csv"], "auto", Options(), max_bad=0)
    known = {pair.prompt.text: vote.sample for pair, (vote,) in found.judgements()}
    assert known == {item.pair.prompt.text: item.sample for item in desk.items.values()}
    assert set(known.values()) == {"control", "unsure"}


def test_a_pair_that_was_voted_on_for_the_judges_doubt_is_asked_again_when_it_is_drawn_at_random(
    tmp_path: Path,
) -> None:
    desk = desk_of(tmp_path, control=0.0)
    first = desk.next("ann", "1")["question"]["pair"]
    desk.vote("ann", "1", first, "left", "")
    drawn = desk_of(tmp_path, control=1.0)
    asked = []
    while question := drawn.next("ann", "1")["question"]:
        asked.append(question["pair"])
        drawn.vote("ann", "1", question["pair"], "tie", "")
    assert sorted(asked) == sorted(drawn.items)


# ---- languages


@pytest.mark.parametrize(
    ("chosen", "accepted", "expected"),
    [
        (None, "fr-CH, fr;q=0.9, en;q=0.8", "fr"),
        (None, "de, en;q=0.5, fr;q=0.4", "en"),
        (None, "en;q=0.1,fr;q=x,fr-FR;q=0.2", "fr"),
        (None, "fr;q=0, ja", "en"),
        ("en", "fr", "en"),
        ("xx", "fr", "fr"),
    ],
)
def test_the_page_speaks_what_was_chosen_or_what_the_browser_likes_best(
    chosen: str | None, accepted: str, expected: str
) -> None:
    assert words.language(chosen, accepted) == expected


def test_both_languages_say_all_there_is_to_say() -> None:
    assert words.ENGLISH.keys() == words.FRENCH.keys()
    for key, said in words.ENGLISH.items():
        assert said.count("{") == words.FRENCH[key].count("{"), key


# ---- over HTTP


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with Served(folder_of(tmp_path_factory.mktemp("served"), [pair_of(n) for n in range(30)])) as found:
        yield found


def test_the_page_comes_with_a_policy_that_lets_nothing_else_in(served: Served) -> None:
    status, headers, html = served.get()
    assert status == 200 and "Which answer is better?" in html
    assert "default-src 'none'; script-src 'self'; style-src 'self'" in headers["Content-Security-Policy"]
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert (headers["Referrer-Policy"], headers["Cache-Control"]) == ("no-referrer", "no-store")
    assert "Set-Cookie" not in headers and "Access-Control-Allow-Origin" not in headers
    assert "La première" not in html and 'lang="fr"' in served.get(Accept_Language="fr")[2]


@pytest.mark.parametrize("token", ["", "x", "é%20", "%2e%2e"])
def test_without_the_token_nothing_is_told(served: Served, token: str) -> None:
    path = quote(token, safe="%")
    assert fetch(f"{served.origin}/{path}/", None, {})[0] == 403
    status, headers, _ = fetch(f"{served.origin}/{path}/vote", b"{}", {"Origin": served.origin})
    assert status == 403 and "Content-Security-Policy" in headers
    assert fetch(f"{served.origin}/", None, {})[0] == 403


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "evil.example:80", "[::", "0.0.0.0"])
def test_a_name_that_somebody_bound_to_this_machine_is_refused(served: Served, host: str) -> None:
    assert served.get(Host=host)[0] == 403
    body = {"annotator": "ann", "page": "1"}
    assert served.post("next", body, Host=host, Origin=f"http://{host}")[0] == 403


@pytest.mark.parametrize("origin", ["", "null", "http://evil.example", "http://localhost:1", "https://127.0.0.1"])
def test_a_foreign_origin_neither_votes_nor_reads(served: Served, origin: str) -> None:
    before = served.ask("origin", "o")
    body = {"annotator": "origin", "page": "o", "pair": before["question"]["pair"], "choice": "left"}
    for path in ("vote", "undo", "next"):
        assert served.post(path, body, Origin=origin)[0] == 403
    if origin:
        assert served.get(Origin=origin)[0] == 403
    assert served.ask("origin", "o") == before


def test_what_does_not_fit_is_refused_and_kept_nowhere(served: Served) -> None:
    good = {"annotator": "fit", "page": "f", "pair": served.ask("fit", "f")["question"]["pair"], "choice": "tie"}
    for change, code in (
        ({"choice": "a"}, 422),
        ({"annotator": "x@y.example"}, 422),
        ({"annotator": " "}, 422),
        ({"annotator": "a\nb"}, 422),
        ({"note": "n" * 4001}, 422),
        ({"more": 1}, 422),
        ({"note": "n" * 70_000}, 413),
        ({"pair": "0" * 16}, 409),
    ):
        assert served.post("vote", good | change)[0] == code, change
    assert served.post("vote", good, Content_Type="text/plain")[0] == 415
    assert fetch(served.address + "vote", b"{", {"Origin": served.origin, "Content-Type": "application/json"})[0] == 422
    assert served.get("vote")[0] == 405
    assert served.ask("fit", "f")["progress"]["mine"] == 0


def test_a_port_that_is_taken_is_an_error_that_says_so(
    served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of(tmp_path, [pair_of(0)])
    assert cli.main(["annotate", str(folder), "--port", str(served.port)]) == 2
    assert f"--port {served.port}: cannot be used (something else listens there)" in capsys.readouterr().err
    assert cli.main(["annotate", str(folder), "--port", "70000"]) == 2


def test_a_killed_server_has_every_vote_that_it_acknowledged_and_goes_on(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, [pair_of(n) for n in range(8)])
    said = {}
    for _ in range(2):
        with Served(folder) as server:
            state = server.ask("ann", "1")
            assert state["progress"]["mine"] == len(said)
            for _ in range(4):
                question = state["question"]
                said[question["pair"]] = question["left"]
                state = server.ask("ann", "1", "vote", pair=question["pair"], choice="left", note="n")
            server.kill()
    votes = {pair.id: getattr(pair, vote.choice).text for pair, vote, _ in Ballots(folder / material.DATABASE).votes()}
    assert votes == said and len(votes) == 8
