"""A run directory as a graph of steps: what is done, what must be done again and why, and doing it.

A step is done when a directory with its fingerprint is published and sound. The fingerprint is a hash of what the step
reads: its part of the recipe, the fingerprints of its inputs, the bytes of its data files. So a second run does
nothing, a change redoes what depends on it, and going back redoes nothing at all.

    .lock                                    held while anything of the run is at work
    recipe.yaml  manifest.json               what this run is; what was done, where, in how long, on whose account
    report.html  ...                         copies of what the steps left in `out/public/`
    steps/<step>/<fingerprint>/              what a step made, with the MANIFEST.json that proves it
    steps/<step>/<fingerprint>.provenance.json   when, how long, on which machine, with which versions
    .staging/<step>-<fingerprint>/           what is being made; survives a kill, and is continued
      work/parts/<task>-of-<tasks>.jsonl     what tasks of a job array found out, until the run takes it in

The work is done in processes of their own (`pipeline.processes`), so that memory is given back between steps. What is
left out: recipes, models and judges, of which the engine knows nothing but who pays (`pipeline.account`), and cleaning
up what no recipe asks for any more.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import takewhile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from pipeline import account, launch, parts, store
from pipeline.errors import DataError, RecipeError
from pipeline.launch import HERE, LaunchConfig
from pipeline.lock import locked
from pipeline.processes import Stopped, raising_signals, run_workers
from pipeline.records import canonical, digest
from pipeline.worker import PROVENANCE

PACKAGES = (
    "prefloop", "torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "deepspeed", "datasets",
    "pydantic", "openai",
)  # fmt: skip
"""Packages whose versions can change what comes out."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One node of the graph. Functions are named `package.module:function` and called with a `worker.Job`."""

    name: str
    identity: dict[str, Any]
    """The part of the recipe that decides what comes out, JSON-ready, with the version number of the step's code."""
    inputs: tuple[str, ...] = ()
    """Names of earlier steps whose output it reads."""
    called: Mapping[str, str] = field(default_factory=dict)
    """By what name its functions find the output of an input, where that is not the step's own."""
    files: tuple[Path, ...] = ()
    """Data files whose bytes it reads."""
    options: dict[str, Any] = field(default_factory=dict)
    """What only changes how the work is done, JSON-ready: handed to the functions, not part of the fingerprint."""
    work: str | None = None
    """Runs first, in `ranks` processes at once that share their work through the journal or among themselves."""
    ranks: int = 1
    parted: bool = False
    """Its `work` may also be done by tasks of a job array, each into a part of its own (`worker.Job.part`)."""
    finish: str
    """Runs after `work` and fills `out/`."""
    launch: LaunchConfig = HERE
    """The processes in which `finish` runs; the first one alone writes."""


@dataclass(frozen=True)
class State:
    """Where one step stands."""

    step: Step
    fingerprint: str
    path: Path
    """Where its output is, or will be."""
    why: str
    """One sentence for people: "done", or what is different from the last time."""
    digest: str | None
    """Hash of the published output, every byte of it; None: the step must run."""

    @property
    def done(self) -> bool:
        """True if its output is there, whole, and made from what its inputs are now."""
        return self.digest is not None


def fingerprint(step: Step, inputs: Mapping[str, str], data: Sequence[Sequence[str]]) -> str:
    """What the output depends on, as 64 hex digits: `inputs` are fingerprints, `data` is [name, sha256] of files."""
    return digest({"step": step.name, "identity": step.identity, "inputs": dict(inputs), "data": data}, 64)


class Run:
    """One run directory and the steps that should be done in it, in an order in which each finds its inputs."""

    def __init__(
        self,
        directory: Path,
        steps: Sequence[Step],
        recipe_text: str,
        cache: Path,
        console: Console | None = None,
        *,
        recipe_name: str = "recipe.yaml",
    ) -> None:
        self.directory = directory
        self.steps = tuple(steps)
        self.recipe_text = recipe_text
        self.recipe_name = recipe_name
        self.cache = cache
        self.console = console or Console()
        earlier: set[str] = set()
        for step in self.steps:
            assert step.name not in earlier, f"two steps are called {step.name!r}"
            assert earlier.issuperset(step.inputs), f"{step.name!r} reads a step that does not come before it"
            earlier.add(step.name)

    @functools.cached_property
    def account(self) -> str:
        """Whose account paid calls are charged to. It stays so in this process, whatever becomes of the manifest.

        Raises:
            DataError: the manifest is damaged.
        """
        return account.name_of(self.directory)

    def states(self) -> list[State]:
        """Where each step stands. Reads no outputs, only their sizes, so it answers at once.

        Raises:
            DataError: a data file that a step reads is missing.
        """
        return self._states(self._data())

    def execute(self, dry_run: bool = False, until: str | None = None, before: str | None = None) -> list[State]:
        """Do what is not done. With nothing to do, no process is started and no file is touched.

        Args:
            until: the name of a step; only it and what it needs is done.
            before: the name of a step; only what comes before it is done.

        Raises:
            RecipeError: there is no such step.
            DataError: a data file is missing, or changed while a step was reading it.
            RunLockedError: another process is at work in this directory.
            StepFailedError: a step ended badly. Its `exit_code` is the step's own if that one gave its reason.
            SystemExit: 130 or 143, after SIGINT or SIGTERM.
        """
        data = self._data()
        states = self._states(data)
        wanted = self._needed(until) if before is None else self._before(before)
        if dry_run or (
            all(state.done for state in states if state.step.name in wanted) and not self._outdated_top(states)
        ):
            for state in (state for state in states if state.step.name in wanted):
                self._say(state.step, state.why if state.done else f"runs: {state.why}")
            return states
        store.make_dirs(self.directory)
        with self._at_work(self.directory) as lock:
            return self._do_all(data, lock, wanted)

    def share(self, name: str, task: int, tasks: int) -> None:
        """Do one task's share of the work of a step, into a part that the run takes in when it does the step.

        Tasks may be on other machines and at work at once: they hold no lock of the run, nor open its journal.

        Args:
            name: of a step that is `parted`, and all of whose inputs are done.
            task: from 0 to `tasks` - 1.

        Raises:
            RecipeError: there is no such step, or no such task.
            DataError: an input is not done, or a data file is missing.
            RunLockedError: another process does the same task.
            StepFailedError, SystemExit: as `execute`.
        """
        states = {state.step.name: state for state in self.states()}
        state = self._to_share(name, states)
        if not 0 <= task < tasks:
            raise RecipeError(f"{name}: there is no task {task} of {tasks}; their numbers are 0 to {tasks - 1}")
        if state.done:
            self._say(state.step, "done")
            return
        number = f"{task}-of-{tasks}"
        folder, part = (
            self._staging(state) / kind for kind in (f"tasks/{number}", f"work/{parts.FOLDER}/{number}.jsonl")
        )
        told = self._told(state.step, {name: states[name] for name in state.step.inputs})
        store.make_dirs(folder)
        with self._at_work(folder) as lock:
            store.write_json(folder / "job.json", {**told, "part": str(part.absolute())})
            run_workers(state.step.name, "work", [launch.shared(folder / "job.json", "work", tasks)[task]], lock)

    def _to_share(self, name: str, states: Mapping[str, State]) -> State:
        able = [step.name for step in self.steps if step.parted]
        if name not in able:
            raise RecipeError(f"{name}: no step of this name is done in shares; there are {', '.join(able)}")
        waiting = [each for each in states[name].step.inputs if not states[each].done]
        if waiting:
            raise DataError(f"{name}: {waiting[0]} is not done yet; prefloop run with --before {name} comes first")
        return states[name]

    @contextlib.contextmanager
    def _at_work(self, directory: Path) -> Iterator[int]:
        """Hold this directory; a signal ends the command in good order. Yields the lock."""
        try:
            with raising_signals(), locked(directory) as lock:
                yield lock
        except Stopped as stopped:
            name = signal.Signals(stopped.number).name
            self._print(f"Stopped by {name}. What is finished is kept: the same command continues from here.")
            raise SystemExit(128 + stopped.number) from None

    # ---- where things stand

    def _data(self) -> dict[Path, str]:
        """The hash of every data file."""
        missing = [
            f"{path}: no such file, and the step {step.name!r} reads it; check the path"
            for step in self.steps
            for path in step.files
            if not path.is_file()
        ]
        if missing:
            raise DataError("\n".join(missing))
        return {path: store.sha256_file(path) for path in {path for step in self.steps for path in step.files}}

    def _states(self, data: Mapping[Path, str]) -> list[State]:
        found: dict[str, State] = {}
        for step in self.steps:
            inputs = {name: found[name] for name in step.inputs}
            found[step.name] = self._state(step, inputs, [[str(path), data[path]] for path in step.files])
        return list(found.values())

    def _state(self, step: Step, inputs: Mapping[str, State], data: list[list[str]]) -> State:
        mark = fingerprint(step, {name: state.fingerprint for name, state in inputs.items()}, data)
        path = self.directory / "steps" / step.name / mark[:12]
        todo = State(step, mark, path, why="", digest=None)
        if not path.exists():
            return replace(todo, why=self._difference(step, inputs, data))
        problems = store.verify(path, hashes=False)
        if problems:
            return replace(todo, why=f"outputs damaged: {_some(problems)}")
        manifest = store.read_manifest(path) or {}
        # A step made again on a GPU may come out different under the same fingerprint; what was made from the
        # earlier output must then be made again too, or the report would speak of other weights than are there.
        stale = [n for n, state in inputs.items() if state.done and manifest["inputs"][n]["digest"] != state.digest]
        if stale:
            return replace(todo, why=_some([f"{name} came out different" for name in stale]))
        return replace(todo, why="done", digest=manifest["digest"])

    def _difference(self, step: Step, inputs: Mapping[str, State], data: list[list[str]]) -> str:
        """What is not as it was when the step last ran."""
        last = self._last_manifest(step)
        if last is None:
            return "never ran"
        reasons = [
            *_changes(last["identity"], json.loads(canonical(step.identity))),
            *(f"{name} changed" for name in _unequal(dict(last["data"]), dict(data))),
            *(f"{name} changed" for name, state in inputs.items() if state.done and _is_other(last, name, state)),
            *(f"{name} will run again" for name, state in inputs.items() if not state.done),
        ]
        return _some(reasons) if reasons else "its inputs are listed differently"

    def _last_manifest(self, step: Step) -> dict[str, Any] | None:
        published = (self.directory / "steps" / step.name).glob(f"*/{store.MANIFEST}")
        newest_first = sorted(published, key=lambda path: path.stat().st_mtime_ns, reverse=True)
        manifests = (store.read_manifest(path.parent) for path in newest_first)
        return next((manifest for manifest in manifests if manifest is not None), None)

    def _needed(self, until: str | None) -> frozenset[str]:
        """The step and all that it reads, directly or not; every step if none is named."""
        if until is None:
            return frozenset(step.name for step in self.steps)
        inputs = {step.name: step.inputs for step in self.steps}
        return frozenset({until}).union(*(self._needed(name) for name in inputs[until]))

    def _before(self, name: str) -> frozenset[str]:
        """Every step that comes before this one."""
        names = [step.name for step in self.steps]
        if name not in names:
            raise RecipeError(f"--before {name}: there is no such step; there are {', '.join(names)}")
        return frozenset(names[: names.index(name)])

    # ---- doing it

    def _do_all(self, data: Mapping[Path, str], lock: int, wanted: frozenset[str]) -> list[State]:
        for leftover in self.directory.glob(".*.tmp"):
            store.remove(leftover)
        if found := account.notice(self.directory, self.cache, self.account):
            self._print(escape(found))
        told: set[str] = set()
        while True:
            states = self._states(data)
            for name, content in self._outdated_top(states).items():
                store.write_bytes(self.directory / name, [content])
            mine = [state for state in states if state.step.name in wanted]
            for state in takewhile(lambda state: state.done, mine):
                if state.step.name not in told:
                    self._say(state.step, "done")
                    store.remove(self._staging(state))  # there if a kill came right after its publishing
                told.add(state.step.name)
            todo = next((state for state in mine if not state.done), None)
            if todo is None:
                return states
            by_name = {state.step.name: state for state in states}
            chosen = self._first_to_make(todo, by_name)
            self._make(chosen, {name: by_name[name] for name in chosen.step.inputs}, data, lock)
            told.add(chosen.step.name)

    def _first_to_make(self, todo: State, states: Mapping[str, State]) -> State:
        """`todo`, unless an input of it is damaged: then that one, which was thought to be done by its size alone."""
        for name in todo.step.inputs:
            problems = store.verify(states[name].path, hashes=True)
            if problems:
                damaged = replace(states[name], why=f"outputs damaged: {_some(problems)}", digest=None)
                return self._first_to_make(damaged, states)
        return todo

    def _make(self, state: State, inputs: Mapping[str, State], data: Mapping[Path, str], lock: int) -> None:
        """Work, finish, publish."""
        step = state.step
        self._say(step, f"runs: {state.why}")
        started, clock = datetime.now(UTC), time.monotonic()
        staging = self._staging(state)
        job = self._prepare(staging, step, inputs)
        peak = run_workers(step.name, "work", launch.shared(job, "work", step.ranks), lock) if step.work else 0
        # Whatever a killed `finish` left is half of something.
        store.remove(staging / "out")
        store.make_dirs(staging / "out")
        peak = max(peak, run_workers(step.name, "finish", launch.together(job, "finish", step.launch), lock))
        for path in step.files:
            if not path.is_file() or store.sha256_file(path) != data[path]:
                raise DataError(f"{path}: changed while {step.name!r} was reading it; run the same command again")
        wall = round(time.monotonic() - clock, 3)
        provenance = {
            "started": started.isoformat(timespec="seconds"),
            "wall_seconds": wall,
            "peak_memory_bytes": peak,
            "environment": _environment(),
            **_json_of(staging / "work" / PROVENANCE),
        }
        store.make_dirs(state.path.parent)
        store.write_json(_provenance_path(state), provenance)
        store.publish(staging / "out", state.path, _manifest(state, inputs, data))
        store.remove(staging)
        self._say(step, f"done in {_seconds(wall)}, peak {_size(peak)}")

    def _prepare(self, staging: Path, step: Step, inputs: Mapping[str, State]) -> Path:
        """The staging directory with its `job.json`; what a killed run left there is kept if it was made from these."""
        job, told = staging / "job.json", self._told(step, inputs)
        if job.exists() and _digests(_json_of(job)) != _digests(told):
            store.remove(staging)
        store.make_dirs(staging / "work")
        store.make_dirs(staging / "out")
        store.write_json(job, told)
        return job

    def _told(self, step: Step, inputs: Mapping[str, State]) -> dict[str, Any]:
        """What a worker reads in its `job.json`."""
        return {
            "step": step.name,
            "identity": step.identity,
            "options": step.options,
            "inputs": {
                step.called.get(name, name): {"path": str(state.path), "digest": state.digest}
                for name, state in inputs.items()
            },
            "files": [str(path) for path in step.files],
            "cache": str(self.cache),
            "run": self.account,
            "work": step.work,
            "finish": step.finish,
        }

    def _staging(self, state: State) -> Path:
        return self.directory / ".staging" / f"{state.step.name}-{state.fingerprint[:12]}"

    # ---- what lies at the top of the directory

    def _outdated_top(self, states: Sequence[State]) -> dict[str, bytes]:
        """The files at the top that are missing or not as they should be, with what they should hold."""
        wanted = {
            self.recipe_name: self.recipe_text.encode(),
            account.FILE: store.pretty(self._summary(states)).encode(),
        }
        if all(state.done for state in states):
            for path in (path for state in states for path in (state.path / "public").glob("*") if path.is_file()):
                wanted[path.name] = path.read_bytes()
        return {name: content for name, content in wanted.items() if _bytes_of(self.directory / name) != content}

    def _summary(self, states: Sequence[State]) -> dict[str, Any]:
        """`manifest.json`. It is a function of what is published and of the account, so that it is never rewritten in
        vain."""
        told = {state.step.name: _json_of(_provenance_path(state)) for state in states if state.done}
        machines: dict[str, list[str]] = {}
        for name, provenance in told.items():
            machines.setdefault(canonical(provenance.pop("environment", {})), []).append(name)
        return {
            "prefloop": _version("prefloop"),
            "account": self.account,
            "recipe_sha256": hashlib.sha256(self.recipe_text.encode()).hexdigest(),
            "steps": {state.step.name: _entry(state) | told.get(state.step.name, {}) for state in states},
            "environments": [{"steps": names, **json.loads(machine)} for machine, names in machines.items()],
            "totals": {
                "wall_seconds": round(sum(each.get("wall_seconds", 0) for each in told.values()), 3),
                "peak_memory_bytes": max((each.get("peak_memory_bytes", 0) for each in told.values()), default=0),
            },
        }

    def _say(self, step: Step, what: str) -> None:
        self._print(f"[bold]{escape(step.name)}[/]  {escape(what)}")

    def _print(self, line: str) -> None:
        # Neither coloured by guesses nor broken into lines: people and programs read it.
        self.console.print(line, highlight=False, soft_wrap=True)


# ---- sentences


def _changes(before: Any, now: Any, where: str = "") -> list[str]:
    """What differs between two JSON values, each with its dotted path: "judge.name: 'likelihood' -> 'length'"."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted({*before, *now})
        if "name" in before and "name" in now and before["name"] != now["name"]:
            keys = ["name"]  # another plugin: that its other options are others too is no news
        return [
            change
            for key in keys
            for change in _changes(before.get(key, _ABSENT), now.get(key, _ABSENT), f"{where}.{key}" if where else key)
        ]
    return [] if before == now else [f"{where}: {_short(before)} -> {_short(now)}"]


class _Absent:
    def __repr__(self) -> str:
        return "absent"


_ABSENT = _Absent()


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _some(reasons: Sequence[str]) -> str:
    more = [f"and {len(reasons) - 3} more"] if len(reasons) > 3 else []
    return "; ".join([*reasons[:3], *more])


def _unequal(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    return sorted(name for name in {*before, *now} if before.get(name) != now.get(name))


def _is_other(manifest: Mapping[str, Any], name: str, state: State) -> bool:
    before = manifest["inputs"].get(name)
    return before is None or before["fingerprint"] != state.fingerprint


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


# ---- what is written about a step


def _manifest(state: State, inputs: Mapping[str, State], data: Mapping[Path, str]) -> dict[str, Any]:
    """What is sealed with the output: nothing of the clock or the machine, so that equal work is equal bytes."""
    return {
        "step": state.step.name,
        "fingerprint": state.fingerprint,
        "identity": json.loads(canonical(state.step.identity)),
        "inputs": {name: {"fingerprint": each.fingerprint, "digest": each.digest} for name, each in inputs.items()},
        "data": [[str(path), data[path]] for path in state.step.files],
    }


def _entry(state: State) -> dict[str, Any]:
    """A step in the run's `manifest.json`, without its provenance."""
    if not state.done:
        return {"state": "to do", "fingerprint": state.fingerprint}
    manifest = store.read_manifest(state.path) or {}
    return {
        "state": "done",
        "fingerprint": state.fingerprint,
        "inputs": {name: each["fingerprint"] for name, each in manifest["inputs"].items()},
        "data": dict(manifest["data"]),
        "summary": _json_of(state.path / "summary.json"),
    }


def _provenance_path(state: State) -> Path:
    return state.path.with_name(f"{state.path.name}.provenance.json")


def _environment() -> dict[str, Any]:
    """The machine and the versions, read from package metadata so that nothing heavy is imported."""
    versions = {name: version for name in PACKAGES if (version := _version(name))}
    return {
        "python": platform.python_version(),
        "versions": versions,
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cpu_count": os.cpu_count(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    lines = (_bytes_of(Path("/proc/cpuinfo")) or b"").decode(errors="replace").splitlines()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor())


def _json_of(path: Path) -> dict[str, Any]:
    """The JSON object in a file; an empty one if there is no file."""
    found: dict[str, Any] = json.loads(_bytes_of(path) or b"{}")
    return found


def _digests(job: Mapping[str, Any]) -> dict[str, Any]:
    return {name: each["digest"] for name, each in job["inputs"].items()}


def _bytes_of(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
