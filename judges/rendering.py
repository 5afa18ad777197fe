"""How a comparison is written down for a language model: templates, rubrics, and data that must stay data.

Templates, rubrics and constitutions are files of `judges/prompts`, in the prompt's language, else in English. Their
first lines say in a comment (`# `) which file and version it is; nobody is shown them. Placeholders are filled in one
pass, so that an answer that holds one stays as it is. What a pair brings in is data: invisible characters go, and
whatever could close its block or pass for a chat turn is broken up.

What is left out: what is asked (`judges.pairwise`) and of whom (`judges.llm`, `judges.local_llm`).
"""

import glob
import json
import re
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple, TypeVar

from pydantic import AfterValidator

from pipeline.records import Message, Prompt

T = TypeVar("T")

PROMPTS = Path(__file__).parent / "prompts"

PLACEHOLDERS = frozenset({"rubric", "tag", "question", "answer_1", "answer_2", "label_1", "label_2", "contract"})
"""What the template of a comparison must hold, each at least once, and nothing else in double braces."""

ALONE = frozenset({"rubric", "tag", "question", "answer"})
"""The same of a template that shows one answer."""


class Template(NamedTuple):
    """The two turns of a prompt file, with placeholders."""

    system: str
    user: str
    tags: tuple[str, ...]
    """Words that open a block of data (`<answer ...`), to be broken up where data holds them."""

    @classmethod
    def parse(cls, text: str, placeholders: frozenset[str] = PLACEHOLDERS) -> "Template":
        """A file's text: comment lines, then `[system]` and `[user]` on lines of their own.

        Raises:
            ValueError: a part or a placeholder is missing, or a placeholder is unknown.
        """
        match = re.search(r"^\[system\]\n(?P<system>.*?)^\[user\]\n(?P<user>.*)\Z", text, re.DOTALL | re.MULTILINE)
        if match is None:
            raise ValueError("a prompt file needs a line [system] and after it a line [user]")
        system, user = match["system"].strip(), match["user"].strip()
        found = set(re.findall(r"\{\{(\w*)\}\}", system + user))
        if found != placeholders:
            missing, unknown = sorted(placeholders - found), sorted(found - placeholders)
            raise ValueError(f"placeholders of a prompt file: missing {missing}, unknown {unknown}")
        return cls(system, user, tuple(sorted(set(re.findall(r"</?(\w+)[^<>]*\{\{tag\}\}", user)))))


class Constitution(NamedTuple):
    """Principles by id, and what is said around those that count."""

    frame: str
    """With the placeholder {{principles}}."""
    principles: dict[str, str]

    @classmethod
    def parse(cls, text: str) -> "Constitution":
        """A file's text: comment lines, the frame, then each principle after its `[id]` on a line of its own.

        Raises:
            ValueError: no principle, an empty one or one id twice, or a frame without its placeholder.
        """
        frame, *parts = re.split(r"^\[([a-z0-9_-]+)\][ \t]*$", text_of(text), flags=re.MULTILINE)
        ids, texts = parts[::2], [part.strip() for part in parts[1::2]]
        if "{{principles}}" not in frame:
            raise ValueError("a constitution needs {{principles}} in what stands before its first [id]")
        if not ids or not all(texts) or len(set(ids)) < len(ids):
            raise ValueError(
                f"a constitution needs principles, each once under an [id]; found {', '.join(ids) or None}"
            )
        return cls(frame.strip(), dict(zip(ids, texts, strict=True)))

    def rubric(self, ids: Sequence[str]) -> str:
        """The frame around the principles of these ids, numbered where there are several."""
        texts = [self.principles[name] for name in ids]
        numbered = [f"{number}. {text}" for number, text in enumerate(texts, start=1)]
        return fill(self.frame, {"principles": "\n".join(numbered if len(numbered) > 1 else texts)})


def text_of(file: str) -> str:
    """What a file of `judges/prompts` says: its text without the comment at its head."""
    return re.sub(r"\A(?:# [^\n]*\n)+", "", file).strip()


def fill(text: str, values: dict[str, str]) -> str:
    """The text with its placeholders replaced in one pass, so that a value that holds a placeholder stays as it is."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], text)


def read_texts(name: str, prefix: str = "") -> dict[str, str]:
    """The texts called `name` by language: all of judges/prompts/<prefix><name>.<lang>.txt, or one file for all ('').

    Raises:
        ValueError: there is no such text, or none in English.
    """
    if name.endswith(".txt"):
        if not Path(name).is_file():
            raise ValueError(f"no file {name}")
        return {"": Path(name).read_text(encoding="utf-8")}
    found = sorted(PROMPTS.glob(f"{glob.escape(prefix + name)}.*.txt"))
    texts = {path.name.split(".")[-2]: path.read_text(encoding="utf-8") for path in found}
    if "en" not in texts:
        names = (path.name[len(prefix) : -len(".en.txt")] for path in PROMPTS.glob(f"{prefix}*.en.txt"))
        known = sorted(each for each in names if "." not in each)  # those with one are of another kind
        raise ValueError(f"no text {name!r} in judges/prompts; there are {', '.join(known)}, or a path ending in .txt")
    return texts


def in_language(texts: dict[str, T], lang: str) -> T:
    """The text in this language, else the English one, else the one that serves every language."""
    return next(texts[key] for key in (lang, "en", "") if key in texts)


def language(prompt: Prompt) -> str:
    """The key under which a prompt's texts are: `fr` for `fr-CA`."""
    return prompt.lang.lower().split("-")[0]


def conversation(messages: Sequence[Message]) -> str:
    """The request as the judge reads it: its text, or a JSON list of roles and contents where there are more turns."""
    if len(messages) == 1:
        return messages[0].content
    return json.dumps([message.model_dump() for message in messages], ensure_ascii=False)


INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\u3164\ufe00-\ufe0d\ufeff\uffa0\ufff0-\ufffb\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
"""Control, zero-width, bidirectional, filler, variation and tag characters: a person does not see them and a model
reads them. What only chooses between a letter's and an emoji's looks (U+FE0E, U+FE0F) stays."""

LINE_ENDS = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")

CONTROL_TOKENS = "|".join(
    (
        # <|im_start|> <|eot_id|> <|start_header_id|> <|END_OF_TURN_TOKEN|> <|channel|> <｜User｜> <|turn> <turn|>
        r"[<＜][|｜][^|｜<>＜＞\s]{1,60}[|｜]?[>＞]",
        r"[<＜]/?\w{1,40}[|｜][>＞]",
        r"<</?SYS>>|[<＜]/?s[>＞]|</?(?:start|end)_of_(?:turn|image|role|text)>|<(?:BOS|EOS|PAD)_TOKEN>",
        r"<(?:bos|eos|pad|unk|mask|sep|cls|eot|eod|endoftext|end_of_utterance)>|<(?:extra_id|unused|reserved)_?\d*>",
        r"</?(?:think|thinking|tool_calls?|tool_response|tools|function_calls?|function_results)>",
        r"\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|ARGS|CALL_ID|THINK|SYS"
        r"|CLS|SEP|MASK|PAD|UNK|BOS|EOS|gMASK|sMASK)\]",
    )
)
"""Control tokens of the chat templates in use, for a model whose tokenizer is not at hand: ChatML, Llama 2 to 4,
Mistral, Gemma, Phi, DeepSeek, Qwen, Command R, Granite, Harmony, GLM, T5 and BERT; also with full-width signs, which
some tokenizers turn into the plain ones."""

TURNS = re.compile(
    r"^(?=[ \t]*(?:#{1,4} ?)?(?:Human|Assistant|System|User|Instruction|Response|Input|Developer|Humain|Utilisateur"
    r"|Système)[ \t]*:)",
    re.IGNORECASE | re.MULTILINE,
)
"""Where a line opens a turn in templates without control tokens: `Human:`, `ASSISTANT:`, `### Response:`."""


def neutralise(text: str, special_tokens: Iterable[str], tags: Iterable[str]) -> str:
    """Data that cannot leave its block: no invisible characters, no control tokens, no turns, no tags of the template.

    A line that opens a turn is quoted with `> `. Invisible characters go first, for they could hide such a piece.
    """
    text = LINE_ENDS.sub("\n", INVISIBLE.sub("", text))
    own = literally(special_tokens)
    blocks = (rf"</?{re.escape(tag)}\b" for tag in tags)
    # Of all these, our own tokens may begin with any sign; looking for the others' first sign alone is three times as
    # fast, and it is done for every answer.
    known = rf"(?=[<＜\[])(?:{'|'.join([CONTROL_TOKENS, *blocks])})"
    return TURNS.sub("> ", break_up(text, f"{own}|{known}" if own else known))


def literally(tokens: Iterable[str]) -> str:
    """A pattern for these texts, the longest first. One character, or spaces alone, cannot be broken up."""
    ordered = sorted(tokens, key=len, reverse=True)
    return "|".join(re.escape(token) for token in ordered if len(token) > 1 and token.strip())


def break_up(text: str, forbidden: str) -> str:
    """The text with a space after the first character of whatever matches: a reader sees what was there, a tokenizer
    does not. No pattern: the text."""
    while forbidden:  # breaking one piece up can leave another that overlapped it
        broken = re.sub(forbidden, lambda match: f"{match[0][0]} {match[0][1:]}", text, flags=re.IGNORECASE)
        if broken == text:
            break
        text = broken
    return text


def _checked(name: str, placeholders: frozenset[str]) -> str:
    for text in read_texts(name).values():
        Template.parse(text, placeholders)
    return name


def _there(name: str) -> str:
    read_texts(name, prefix="rubric.")
    return name


PairTemplate = Annotated[str, AfterValidator(partial(_checked, placeholders=PLACEHOLDERS))]
"""The name of a template that shows two answers, or a path to one; refused where it is not whole."""

AloneTemplate = Annotated[str, AfterValidator(partial(_checked, placeholders=ALONE))]
"""The same for one answer."""

Rubric = Annotated[str, AfterValidator(_there)]
"""The name of a rubric, or a path to one."""
