"""Answers from a server: the same policy, the gap to it measured and corrected, and faults that change nothing."""

import json
import math
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_ppo
import torch
from servers.completions import BASE, Completions, completion_server
from test_ppo import lines, one_of_two, trained, trainer_of
from tiny_ppo import config

from pipeline import store
from pipeline.algorithms import ppo_rollout, ppo_server
from pipeline.algorithms.ppo import Config
from pipeline.algorithms.ppo_completion import Asked, Sampling, read_answer
from pipeline.algorithms.ppo_server import ServerError
from pipeline.errors import TrainingError
from pipeline.models import ModelConfig
from pipeline.records import seed_of
from pipeline.sampling.local import uniforms
from pipeline.train import Training


@pytest.fixture
def server(tiny_folder: Path) -> Iterator[Completions]:
    with completion_server(tiny_folder) as world:
        yield world


SMALL = {"max_steps": 2, "per_device_train_batch_size": 2, "normalize_samples": 4, "max_new_tokens": 6}
"""Two updates of four answers of at most six tokens."""


def served(tiny: ModelConfig, server: Completions, rollouts: dict[str, Any] | None = None, **options: Any) -> Training:
    """A small training with answers from the server."""
    return config(
        tiny, rollouts={"base_url": server.url, "outage_s": 600.0, **(rollouts or {})}, **{**SMALL, **options}
    )


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries after milliseconds."""
    monkeypatch.setattr(ppo_server, "BACKOFF_S", 0.01)


# ---- the same policy


def test_a_server_with_the_same_policy_trains_to_the_same_weights_as_sampling_here(
    tiny: ModelConfig, server: Completions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = trainer_of(tmp_path / "there", served(tiny, server))
    found = there.train()

    def seeded(rows: int, tokens: int, seed: int) -> torch.Tensor:
        """The random numbers that the server draws for the same answers."""
        return torch.cat([uniforms(1, tokens, seed_of(seed, row)) for row in range(rows)])

    monkeypatch.setattr(ppo_rollout, "uniforms", seeded)
    here = trainer_of(tmp_path / "here", config(tiny, importance_cap=2.0, **SMALL))
    expected = here.train()
    for line, other in zip(found, expected, strict=True):
        assert line["length"] == other["length"] and line["score"] == other["score"]
        assert line["mismatch"] < 1e-5 and 0 <= line["mismatch_kl"] < 1e-8
        assert line["mismatch_ratio_max"] == pytest.approx(1, abs=1e-4) and line["mismatch_truncated"] == 0
    for role, part in here.trained.items():
        moved = part.flat.data - trainer_of(tmp_path / role, config(tiny)).trained[role].flat.data
        assert float((there.trained[role].flat.data - part.flat.data).norm()) < 1e-3 * float(moved.norm()), role


def test_each_update_is_answered_by_its_own_weights_and_nothing_is_left_at_the_server(
    tiny: ModelConfig, server: Completions, tmp_path: Path
) -> None:
    trained(tmp_path, served(tiny, server, max_steps=3))
    names = server.names("/load_lora_adapter")
    # The answers that scores are normalised by and those of the first update are of the same weights.
    assert [name.split("-")[-2] for name in names] == ["0", "1", "2"]
    assert len({name.split("-")[-1] for name in names}) == 3
    asked = [body["model"] for path, body in server.calls if path == "/completions" and body["model"] != BASE]
    assert asked == [names[0]] * (4 + 4) + [names[1]] * 4 + [names[2]] * 4
    assert server.names("/unload_lora_adapter") == names
    assert not server.adapters and not list((tmp_path / "work" / "adapters").iterdir())


def test_no_two_answers_of_a_run_have_the_same_seed(tiny: ModelConfig, server: Completions, tmp_path: Path) -> None:
    # Two prompts, so that each is answered twice in an update.
    trained(tmp_path, served(tiny, server), count=2)
    seeds = [body["seed"] for path, body in server.calls if path == "/completions" and body["model"] != BASE]
    assert len(set(seeds)) == len(seeds) == 3 * 4


# ---- a gap between sampler and trainer


@pytest.mark.parametrize(
    ("shift", "kl", "ratio", "weight", "truncated"),
    [
        # p / q is e^-shift everywhere; k3 is r - 1 - log r; the weight is min(r, 2).
        (-math.log(2.5), 1.5 - math.log(2.5), 2.5, 2.0, 1.0),
        (math.log(2), math.log(2) - 0.5, 0.5, 0.5, 0.0),
    ],
)
def test_a_planted_gap_is_measured_and_corrected_by_the_truncated_ratio(
    shift: float,
    kl: float,
    ratio: float,
    weight: float,
    truncated: float,
    tiny: ModelConfig,
    server: Completions,
    tmp_path: Path,
) -> None:
    server.shift = shift
    # Log-probabilities above 0 would be refused; a cold model has none near it.
    trainer = trainer_of(tmp_path, served(tiny, server, temperature=4.0))
    trainer._begin()
    episodes = trainer._answers(trainer.tasks[:4], 1)
    batch = trainer.compare(episodes, trainer.scores(episodes), 0)
    trainer.judge_tokens(batch)
    assert batch.weight_BT is not None
    assert batch.weight_BT[batch.mask_BT].tolist() == pytest.approx([weight] * int(batch.mask_BT.sum()), abs=1e-4)
    line = trainer.update()
    assert line["mismatch"] == pytest.approx(abs(shift), abs=1e-4)
    assert line["mismatch_kl"] == pytest.approx(kl, abs=1e-4)
    assert line["mismatch_ratio_max"] == pytest.approx(ratio, abs=1e-3)
    assert line["mismatch_truncated"] == truncated


def test_a_gap_above_the_limit_stops_the_run_and_says_what_to_do(
    tiny: ModelConfig, server: Completions, tmp_path: Path
) -> None:
    server.shift = -1.1
    with pytest.raises(
        TrainingError, match=r"at update 1 by the guard max_mismatch: .* 1\.10 nats .* same base, dtype"
    ):
        trained(tmp_path, served(tiny, server))


def test_a_server_that_goes_on_with_an_old_adapter_is_noticed(
    tiny: ModelConfig, server: Completions, tmp_path: Path
) -> None:
    server.stale = True
    training = served(tiny, server, learning_rate=1e-2, guards={"max_mismatch": 1e-3})
    with pytest.raises(TrainingError, match=r"stopped at update 2 by the guard max_mismatch"):
        trained(tmp_path, training)


def test_the_ratio_is_truncated_at_2_where_a_server_samples_and_the_recipe_says_nothing() -> None:
    block = {"base_url": "http://localhost:8000/v1"}
    assert Config(reward=tiny_ppo.LETTERS).cap is None
    assert Config(reward=tiny_ppo.LETTERS, rollouts=block).cap == 2
    assert Config(reward=tiny_ppo.LETTERS, rollouts=block, importance_cap=5.0).cap == 5


# ---- faults that pass


@pytest.fixture(scope="module")
def undisturbed(tiny: ModelConfig, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The files of a training with nothing in its way, and its checkpoints."""
    top = tmp_path_factory.mktemp("undisturbed")
    with completion_server(tiny_folder) as world, pytest.MonkeyPatch.context() as patched:
        seal = store.seal

        def keep(folder: Path, manifest: dict[str, Any]) -> None:
            seal(folder, manifest)
            shutil.copytree(folder, top / "kept" / folder.name)

        patched.setattr(store, "seal", keep)
        return trained(top / "whole", served(tiny, world)), top / "kept"


FAULTS = {
    "errors": {"/completions": [None, 500, 503, 429, 502]},
    "half a reply": {"/completions": [None, None, "half", "cut", "half"]},
    "errors on loading": {"/load_lora_adapter": [None, 503, 500, 500]},
    "a reply to loading that is lost": {"/load_lora_adapter": [None, "cut", None, "cut"]},
    "an adapter that stays": {"/unload_lora_adapter": [500, 500]},
}


@pytest.mark.parametrize("faults", FAULTS.values(), ids=FAULTS)
def test_a_fault_that_passes_changes_nothing(
    faults: dict[str, list[Any]], tiny: ModelConfig, server: Completions, tmp_path: Path, undisturbed: Any
) -> None:
    server.faults = {path: list(queue) for path, queue in faults.items()}
    assert trained(tmp_path, served(tiny, server)) == undisturbed[0]
    assert not any(server.faults.values())


def test_a_server_that_was_started_anew_is_given_the_adapter_again(
    tiny: ModelConfig, server: Completions, tmp_path: Path, undisturbed: Any
) -> None:
    count = 0

    def forget(told: dict[str, Any]) -> None:
        nonlocal count
        count += 1
        if count in (3, 8):
            server.adapters.clear()

    server.edit = forget
    assert trained(tmp_path, served(tiny, server)) == undisturbed[0]
    loaded = server.names("/load_lora_adapter")
    assert len(loaded) > len(set(loaded)) == 2


def test_a_server_that_is_away_for_a_moment_is_waited_for(
    tiny: ModelConfig, server: Completions, tmp_path: Path, undisturbed: Any
) -> None:
    trainer = trainer_of(tmp_path, served(tiny, server))
    answers = trainer._answers
    stops: list[int] = []

    def away(tasks: Any, seed: int) -> Any:
        stops.append(len(server.calls))
        server.stop()
        threading.Timer(0.2, server.start).start()
        return answers(tasks, seed)

    trainer._answers = away  # type: ignore[method-assign]
    metrics = trainer.train()
    assert len(stops) == 3
    assert [json.loads(json.dumps(line)) for line in metrics] == lines(undisturbed[0])


def test_a_training_that_goes_on_from_a_checkpoint_leaves_the_same_bytes_and_takes_back_what_was_left(
    tiny: ModelConfig, server: Completions, tmp_path: Path, undisturbed: Any
) -> None:
    expected, kept = undisturbed
    shutil.copytree(kept / "checkpoint-1", tmp_path / "work" / "checkpoints" / "checkpoint-1")
    training = served(tiny, server)
    algorithm = training.algorithm
    assert isinstance(algorithm, Config)
    left = algorithm.server("train.ppo", tmp_path / "work" / "adapters")
    assert left is not None
    # What a killed run of this step had loaded, and the adapter of another run at the same server.
    for name in (left.name_of(1, "f" * 64), "train.ppo-00000000-1-ffffffff"):
        server.adapters[name] = server.base
    (tmp_path / "work" / "adapters" / left.name_of(1, "f" * 64)).mkdir(parents=True)
    assert trained(tmp_path, training) == expected
    assert list(server.adapters) == ["train.ppo-00000000-1-ffffffff"]
    assert not list((tmp_path / "work" / "adapters").iterdir())


# ---- faults that do not pass


def test_a_server_that_stays_away_stops_the_run(tiny: ModelConfig, server: Completions, tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, served(tiny, server, {"outage_s": 0.05}))
    server.stop()
    with pytest.raises(ServerError, match=r"^train\.ppo: rollouts: http://\S+: no answer for 0\.05 s .* run the same"):
        trainer.train()


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        ({"/completions": [None, *[500] * 50]}, r"/completions fails, 5 times \(HTTP 500: planted\); see the server's"),
        ({"/completions": [None, *["half"] * 50]}, r"/completions fails, 5 times \(HTTP 200: the reply is no JSON\)"),
        ({"/completions": [None, 401]}, r"it does not answer \(HTTP 401: planted\)"),
        ({"/completions": [None, *[404] * 50]}, r"does not know the adapter train\.ppo-\w+-0-\w+, which it has just"),
        (
            {"/load_lora_adapter": [None, 404]},
            r"does not load .* \(HTTP 404: planted\); name a directory in adapter_dir",
        ),
        ({"/load_lora_adapter": [None, 400]}, r"does not load .* --enable-lora, and with --max-lora-rank"),
    ],
)
def test_a_fault_that_stays_stops_the_run_and_says_what_to_do(
    faults: dict[str, list[Any]], message: str, tiny: ModelConfig, server: Completions, tmp_path: Path
) -> None:
    server.faults = faults
    with pytest.raises(ServerError, match=r"^train\.ppo: rollouts: http://127\.0\.0\.1:\d+/v1: .*" + message):
        trained(tmp_path, served(tiny, server))


ASKED = Asked((5, 6, 7), seed=1)
SAMPLING = Sampling(temperature=1.0, max_new_tokens=4, eos=frozenset({2}), vocabulary=300)


def completion(**changes: Any) -> dict[str, Any]:
    """An answer of three tokens that ends, with these changes of its choice."""
    logprobs = {"tokens": ["token_id:9", "token_id:8", "token_id:2"], "token_logprobs": [-1.0, -2.0, -0.5]}
    choice = {"index": 0, "token_ids": [9, 8, 2], "prompt_token_ids": [5, 6, 7], "logprobs": logprobs, **changes}
    return {"model": "policy", "choices": [{name: value for name, value in choice.items() if value != "absent"}]}


def test_an_answer_is_its_token_ids_and_their_log_probabilities_also_from_a_server_without_token_ids() -> None:
    expected = ((9, 8, 2), (-1.0, -2.0, -0.5))
    assert read_answer(completion(), "policy", ASKED, SAMPLING) == expected
    assert read_answer(completion(token_ids="absent", prompt_token_ids="absent"), "policy", ASKED, SAMPLING) == expected
    cut = completion(token_ids=[9, 8, 7, 6], logprobs={"token_logprobs": [-1.0] * 4})
    assert read_answer(cut, "policy", ASKED, SAMPLING).tokens == (9, 8, 7, 6)


WORDS = {"tokens": [" a", " b", "<end>"], "token_logprobs": [-1.0, -2.0, -0.5]}


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ("<html>", "no completion"),
        ({}, "no completion"),
        ({"model": "policy", "choices": []}, "no completion"),
        ({"model": "policy", "choices": [7]}, "no completion"),
        ({**completion(), "model": "policy-before"}, "'policy-before' answered, and 'policy' was asked"),
        (completion(prompt_token_ids=[1, 5, 6, 7]), "it read 4 token ids, and not the 3 it was given"),
        (completion(token_ids="absent", logprobs=WORDS), "no token ids came"),
        (completion(token_ids=["9", "8", "2"]), "no token ids came"),
        (completion(logprobs=None), "no log-probabilities came"),
        (completion(logprobs={"token_logprobs": [-1.0, None, -0.5]}), "no log-probabilities came"),
        (completion(logprobs={"token_logprobs": [-1.0, math.nan, -0.5]}), "a log-probability is nan"),
        (completion(logprobs={"token_logprobs": [12.5, -1.0, -0.5]}), "a log-probability is 12.5"),
        (completion(logprobs={"token_logprobs": [-1.0, -2.0]}), "3 token ids and 2 log-probabilities"),
        (completion(token_ids=[], logprobs={"token_logprobs": []}), "0 token ids and 0 log-probabilities"),
        (completion(token_ids=[9] * 5, logprobs={"token_logprobs": [-1.0] * 5}), "5 token ids .* at most 4"),
        (completion(token_ids=[9, 300, 2]), "token id 300 came, and the base has 300"),
        (completion(token_ids=[2, 9, 2]), "goes on after its end, token id 2"),
        (completion(token_ids=[9, 8, 7], finish_reason="stop", stop_reason=7), "after 3 of 4 tokens without an end"),
    ],
)
def test_an_answer_that_cannot_be_learned_from_is_an_error(told: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message + ".*; "):
        read_answer(told, "policy", ASKED, SAMPLING)


def test_an_answer_that_cannot_be_learned_from_stops_the_run(
    tiny: ModelConfig, server: Completions, tmp_path: Path
) -> None:
    trainer = trainer_of(tmp_path, served(tiny, server))
    server.edit = lambda told: told["choices"][0].pop("logprobs")
    with pytest.raises(ServerError, match=r"^train\.ppo: rollouts: http://\S+: no log-probabilities came"):
        trainer.train()


# ---- before the base loads


def nowhere(tiny: ModelConfig) -> ModelConfig:
    """A base that would not load."""
    return tiny.model_copy(update={"base": "nowhere"})


def refuse_adapters(server: Completions) -> None:
    server.faults = {"/load_lora_adapter": [404]}


def not_vllm(server: Completions) -> None:
    server.faults = {"/models": [404]}


def without_logprobs(server: Completions) -> None:
    server.edit = lambda told: told["choices"][0].pop("logprobs")


def small(server: Completions) -> None:
    server.max_model_len = 512


def raw(server: Completions) -> None:
    server.raw = True


@pytest.mark.parametrize(
    ("plant", "message"),
    [
        (Completions.stop, r"no answer \(ConnectError.*\); start the server, or mend base_url"),
        (not_vllm, r"there is no list of models at /models \(HTTP 404"),
        (small, r"it takes 512 tokens, and max_length is 1024; start it with --max-model-len 1024"),
        (refuse_adapters, r"it takes no adapters .* VLLM_ALLOW_RUNTIME_LORA_UPDATING=True .* --enable-lora"),
        (without_logprobs, r"no log-probabilities came"),
        (
            raw,
            r"its log-probabilities are those of temperature 1 and not of 0\.7; .* --logprobs-mode processed_logprobs",
        ),
    ],
)
def test_a_server_that_cannot_do_it_is_told_before_the_base_loads(
    plant: Any, message: str, tiny: ModelConfig, server: Completions, tmp_path: Path
) -> None:
    plant(server)
    with pytest.raises(ServerError, match=r"^train\.ppo: rollouts: http://\S+: " + message):
        trained(tmp_path, served(nowhere(tiny), server, temperature=0.7))


def test_a_server_is_asked_for_log_probabilities_at_the_temperature_of_the_policy(
    tiny: ModelConfig, server: Completions, tmp_path: Path
) -> None:
    assert all(line["mismatch"] < 1e-5 for line in lines(trained(tmp_path, served(tiny, server, temperature=0.7))))


def test_a_key_comes_from_the_environment_and_is_in_no_message(
    tiny: ModelConfig, server: Completions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = served(nowhere(tiny), server, {"api_key_env": "ROLLOUTS_KEY"})
    monkeypatch.delenv("ROLLOUTS_KEY", raising=False)
    with pytest.raises(ServerError, match=r"^train\.ppo: rollouts: the environment variable ROLLOUTS_KEY is not set"):
        trained(tmp_path, training)
    monkeypatch.setenv("ROLLOUTS_KEY", "planted")
    server.faults = {"/models": [401]}
    with pytest.raises(ServerError, match=r"HTTP 401: \*\*\*"):
        trained(tmp_path, training)


@pytest.mark.parametrize(
    ("block", "word"),
    [
        ({"base_url": "localhost:8000"}, "no address"),
        ({"base_url": "https://key@host/v1"}, "a key does not belong in an address"),
        ({"base_url": "http://gpu-box:8000/v1"}, "is not encrypted"),
        ({}, "base_url"),
    ],
)
def test_an_address_that_cannot_be_right_is_refused_when_the_recipe_is_read(block: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Config(reward=tiny_ppo.LETTERS, rollouts=block)


# ---- several processes


@pytest.mark.slow
def test_two_processes_ask_for_a_share_each_and_learn_what_one_learns(
    tiny: ModelConfig, server: Completions, tmp_path: Path
) -> None:
    import socket

    training = served(tiny, server)

    def asked() -> list[int]:
        found = [body["seed"] for path, body in server.calls if path == "/completions" and body["model"] != BASE]
        server.calls.clear()
        return sorted(found)

    one = trainer_of(tmp_path / "one", training)
    expected = one.train()
    by_one = asked()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(one_of_two, args=(port, tmp_path, training), nprocs=2)  # type: ignore[no-untyped-call]
    assert len(server.names("/load_lora_adapter")) == 2
    assert asked() == by_one
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert found[0]["metrics"] == found[1]["metrics"]
    assert torch.allclose(found[0]["flat"]["policy"], one.trained["policy"].flat.data, atol=1e-3)
    assert [line["score"] for line in found[0]["metrics"]] == [line["score"] for line in expected]


def test_a_step_with_another_address_is_the_same_step_and_one_that_samples_here_is_another() -> None:
    def identity(**options: Any) -> Any:
        return Config(reward=tiny_ppo.LETTERS, **options).identity()

    here, there = identity(), identity(rollouts={"base_url": "http://localhost:8000/v1"})
    assert there == identity(rollouts={"base_url": "https://elsewhere/v1", "timeout_s": 5.0}) != here
