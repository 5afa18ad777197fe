"""The model card of an export: everything a reader needs to judge and to load what was exported.

It says what a run can prove and no more: who labelled and how that judge did in its exam, what the comparison found
with its interval, which bytes were trained on. What is unknown is said to be unknown.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from judges.grading import ExamReport
from pipeline import store
from pipeline.models import BUILT_IN, ModelConfig
from pipeline.ratings import Results, interval, percent
from pipeline.recipe import Recipe, dump
from pipeline.rounds import made_by


@dataclass(frozen=True)
class Exported:
    """What is in the folder."""

    names: tuple[str, ...]
    merged: bool
    dtype: str
    base: str
    """The base that adapters name; empty for merged models."""
    kind: str
    """What transformers loads them as: CausalLM and its like."""
    bases: Mapping[str, ModelConfig]
    """Step -> what it was trained on: the run's base, or for a reward model its own."""
    licences: Mapping[str, str]
    """Base -> the licence that its card names, or `unknown`."""
    called: Mapping[str, str]
    """Step -> what the comparison calls its policy: in a sweep, `dpo[beta=0.1]`."""
    serve: str
    gaps: Mapping[str, float] = field(default_factory=dict)
    """Largest difference that merging and rounding made to a logit, by step."""


def card(recipe: Recipe, done: Mapping[str, Path], exported: Exported) -> str:
    """The text of README.md."""
    sections = {
        "How to load": _loading(exported),
        "Training": _training(recipe, done, exported),
        "Data": "\n".join(_data(done)),
        "Labels": _labels(recipe, done),
        "Comparison": "\n".join(_comparison(done, exported)),
        "Licence": "\n\n".join(_licence(base, found) for base, found in exported.licences.items()),
        "Recipe": f"~~~~yaml\n{dump(recipe).replace('~~~~', '')}~~~~",
    }
    told = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())
    kind = "Merged models" if exported.merged else "LoRA adapters"
    title = f"{kind} {', '.join(exported.names)} on {' and '.join(exported.licences)}"
    return f"{_front(exported)}\n# {title}\n\n{told}\n"


def _front(exported: Exported) -> str:
    bases, found = list(exported.licences), set(exported.licences.values())
    # Of models under different licences, which are in the text, the one field can name none.
    licence = "" if len(found) > 1 or "unknown" in found else f"license: {json.dumps(found.pop())}\n"
    library = "transformers" if exported.merged else "peft"
    base = json.dumps(bases if len(bases) > 1 else bases[0])
    return f"---\nlibrary_name: {library}\nbase_model: {base}\n{licence}tags: [prefloop]\n---\n"


def _loading(exported: Exported) -> str:
    name = exported.names[0]
    lines = [f"```\n{exported.serve}\n```", ""]
    if exported.merged:
        lines += [f"```python\nAutoModelFor{exported.kind}.from_pretrained({json.dumps(name)})\n```"]
        return "Said in this folder; each folder is a whole model with its tokenizer.\n\n" + "\n".join(lines)
    lines += [
        "```python",
        f"base = AutoModelFor{exported.kind}.from_pretrained({json.dumps(exported.base)})",
        f"model = PeftModel.from_pretrained(base, {json.dumps(name)})",
        "```",
    ]
    return "Said in this folder; all adapters are served on one base.\n\n" + "\n".join(lines)


def _training(recipe: Recipe, done: Mapping[str, Path], exported: Exported) -> str:
    held: dict[str, list[str]] = {}
    for name, model in exported.bases.items():
        held.setdefault(f"Base {model.base}, held in {model.quantization} while training", []).append(name)
    told = "; ".join(how if len(held) == 1 else f"{how} ({', '.join(names)})" for how, names in held.items())
    lines = [f"{told}; seed {recipe.seed}.", ""]
    for name in exported.names:
        summary = store.read_json(done[f"train.{name}"] / "summary.json")
        did = f"{summary['examples']} examples, {summary['updates']} updates"
        gap = exported.gaps.get(name)
        merged = f"; merged in {exported.dtype}, its logits within {gap:.2g} of those before" if gap is not None else ""
        number, step = made_by(recipe.train, name) or (1, name)
        where = f", in round {number}" if number > 1 else ""
        also = f" (in the sweep {exported.called[name]})" if exported.called[name] != name else ""
        lines.append(f"- {name}{also}: {recipe.train[step].name} on {did}{where}{merged}")
        lines += [f"  - alarm: {alarm}" for alarm in summary.get("alarms", ())]
        lines += [f"  - inexact: {how}" for how in summary.get("inexact_resume", ())]
    if any(model.quantization != "none" for model in exported.bases.values()):
        lines += ["", _quantised(exported, BUILT_IN in exported.licences)]
    return "\n".join(lines)


def _quantised(exported: Exported, built_in: bool) -> str:
    if exported.merged:
        return "The adapter is added to the dequantised weights, which it was trained on, and not to the original ones."
    if built_in:
        return "`base` has the dequantised weights, which the adapters were trained on."
    return (
        "On unquantised weights the adapters answer a little differently than they were trained and compared: those "
        "differ from the quantised ones by the rounding of the quantisation. A merged export has no such difference."
    )


def _data(done: Mapping[str, Path]) -> Iterator[str]:
    found = {}
    for step in ("generate", "answers", "exam"):
        manifest = store.read_manifest(done[step]) if step in done else None
        found.update(dict(manifest["data"]) if manifest else {})
    if not found:
        yield "unknown"
        return
    yield "| file | sha256 |\n| --- | --- |"
    for path, sha256 in found.items():
        yield f"| {_cell(Path(path).name)} | {sha256} |"


def _labels(recipe: Recipe, done: Mapping[str, Path]) -> str:
    if recipe.judge is None:
        return "By people's votes."
    told = f"By the judge {recipe.judge.name}, fingerprint {recipe.judge.fingerprint()}."
    if "exam" not in done:
        return f"{told} It was not examined."
    exam = ExamReport.model_validate_json((done["exam"] / "exam.json").read_text(encoding="utf-8"))
    if exam.passed:
        return f"{told} It passed an exam of {exam.asked} questions."
    return f"{told} It failed an exam of {exam.asked} questions: {'; '.join(exam.causes)}"


def _comparison(done: Mapping[str, Path], exported: Exported) -> Iterator[str]:
    if "compare" not in done:
        yield "Not compared."
        return
    results = Results.model_validate_json((done["compare"] / "results.json").read_text(encoding="utf-8"))
    yield f"{results.headline}\n"
    yield f"Against the base, on {results.prompts} held-out prompts:\n"
    yield "| step | judge | win rate | interval |\n| --- | --- | --- | --- |"
    for name in (exported.called[name] for name in exported.names):
        for found in results.between(name, results.base):
            cells = (name, found.judge, percent(found.win_rate), interval(found.low, found.high))
            yield f"| {' | '.join(map(_cell, cells))} |"


def _licence(base: str, licence: str) -> str:
    if licence == "unknown":
        return f"The licence of {base} is unknown: its model card is not here or names none. Look it up."
    return f"{base} is under {licence}, by its model card; what is trained on it follows its terms."


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
