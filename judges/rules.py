"""Looks only for mechanical faults, with no model: the second control.

A judge that agrees with this one is seeing broken text and not quality; a policy that gains on it has learnt to end its
answers and not to loop. Each fault gives a penalty, written in the evidence by name; a response's score is minus their
sum. A plain correct answer has no fault however short it is, and length as such earns nothing.

What is left out on purpose: refusals, correctness, tone, and repetition in scripts that put no spaces between words.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal

from pydantic import Field

from judges.base import JudgeConfig, Session, sigmoid
from pipeline.records import Pair, Prompt, Response, Verdict

MAX_REPEATED_NGRAMS = 0.15
MAX_REPEATED_LINES = 0.30
"""Shares of repetition that ordinary text has: the limits for duplicated 5-grams and for duplicated lines of the
MassiveText filter (Rae et al. 2021, arXiv:2112.11446, table A1)."""

MIN_WORDS = 20
"""Words below which no word is expected to be shared and no language is guessed: 'Paris.' answers many questions."""


class Config(JudgeConfig):
    name: Literal["rules"] = "rules"
    scale: float = Field(default=1.0, gt=0)
    """Log-odds (nats) per point of penalty: p_a = sigmoid(scale * (score_a - score_b))."""
    empty: float = Field(default=8.0, ge=0)
    """Penalty for a response in which nothing can be seen. At the default scale a sound answer wins with p 0.9997."""
    cut: float = Field(default=2.0, ge=0)
    """Penalty for a response that was cut off at the token limit."""
    repetition: float = Field(default=4.0, ge=0)
    """Penalty times the share of 4-word sequences that were there before, where that share is above 0.15."""
    repeated_lines: float = Field(default=4.0, ge=0)
    """Penalty times the share of lines (of three words or more) that were there before, where it is above 0.30."""
    debris: float = Field(default=2.0, ge=0)
    """Penalty for special tokens or pieces of a chat template in the text, and for playing the user's next turn."""
    unrelated: float = Field(default=2.0, ge=0)
    """Penalty for 20 words or more that share no content word with a prompt of three content words or more."""
    copy_of_prompt: float = Field(default=4.0, ge=0)
    """Penalty for saying the prompt's last turn again and next to nothing else."""
    language: float = Field(default=3.0, ge=0)
    """Penalty for another script than the prompt's, or for French where English is spoken and the reverse."""

    def build(self, session: Session) -> "RulesJudge":
        return RulesJudge(self)


class RulesJudge:
    def __init__(self, config: Config) -> None:
        self.config = config
        self.fingerprint = config.fingerprint()

    def judge(self, pairs: Sequence[Pair]) -> list[Verdict]:
        return [self._one(pair) for pair in pairs]

    def score(self, prompts: Sequence[Prompt], responses: Sequence[Response]) -> list[float | None]:
        """See `judges.base.Scorer`: minus the sum of the penalties."""
        answers = zip(prompts, responses, strict=True)
        return [-sum(self.penalties(prompt, response).values()) for prompt, response in answers]

    def penalties(self, prompt: Prompt, response: Response) -> dict[str, float]:
        """The penalty of each fault that this response has; empty for a sound one."""
        if not _visible(response.text):
            return {"empty": self.config.empty}  # nothing else can be said about an empty text
        faults = {name: share(prompt, response) for name, share in RULES.items()}
        return {name: getattr(self.config, name) * share for name, share in faults.items() if share > 0}

    def _one(self, pair: Pair) -> Verdict:
        faults_a, faults_b = self.penalties(pair.prompt, pair.a), self.penalties(pair.prompt, pair.b)
        score_a, score_b = -sum(faults_a.values()), -sum(faults_b.values())
        return Verdict(
            pair_id=pair.id,
            judge=self.config.name,
            fingerprint=self.fingerprint,
            p_a=sigmoid(self.config.scale * (score_a - score_b)),
            evidence={"penalties_a": faults_a, "penalties_b": faults_b},
        )


# One function a fault: how much of it there is, from 0 (none) to 1.


def _cut(prompt: Prompt, response: Response) -> float:
    return float(response.finished is False)  # None: nobody recorded it, which is no fault


def _repetition(prompt: Prompt, response: Response) -> float:
    share = _repeated(_ngrams(_words(response.text), 4))
    return share if share > MAX_REPEATED_NGRAMS else 0.0


def _repeated_lines(prompt: Prompt, response: Response) -> float:
    # Short lines repeat in sound text: brackets in code, headings of a table.
    words = [tuple(_words(line)) for line in response.text.splitlines()]
    share = _repeated([line for line in words if len(line) >= 3])
    return share if share > MAX_REPEATED_LINES else 0.0


def _debris(prompt: Prompt, response: Response) -> float:
    asked = _conversation(prompt).lower()
    # What the prompt itself speaks of may be in the answer: a dialogue that was asked for, a question about templates.
    found = (match.group().strip().lower() for match in DEBRIS.finditer(response.text))
    return float(any(piece.rstrip(":") not in asked for piece in found))


def _unrelated(prompt: Prompt, response: Response) -> float:
    asked, said = _content(_conversation(prompt)), _content(response.text)
    if len(asked) < 3 or len(_words(response.text)) < MIN_WORDS or _may_change_language(prompt):
        return 0.0
    return float(not asked & said)


def _copy_of_prompt(prompt: Prompt, response: Response) -> float:
    asked, said = _words(prompt.text), _words(response.text)
    if len(asked) < 3 or len(said) < 3:
        return 0.0
    # 'Correct this text: ...' is answered by most of the prompt, but without the instruction at its one end.
    both_ends = asked[:3] == said[:3] and asked[-3:] in [said[i : i + 3] for i in range(len(said))]
    in_common = (Counter(asked) & Counter(said)).total() / max(len(asked), len(said))
    return float(both_ends and in_common >= 0.8)


def _language(prompt: Prompt, response: Response) -> float:
    if _may_change_language(prompt):
        return 0.0
    return float(_other_script(prompt, response) or _other_language(prompt, response))


RULES: dict[str, Callable[[Prompt, Response], float]] = {
    "cut": _cut,
    "repetition": _repetition,
    "repeated_lines": _repeated_lines,
    "debris": _debris,
    "unrelated": _unrelated,
    "copy_of_prompt": _copy_of_prompt,
    "language": _language,
}
"""Every fault but `empty`, by the name of its weight in Config."""


DEBRIS = re.compile(
    r"<\|[^|<>\s]{1,40}\|>"  # <|im_start|>, <|endoftext|>, <|eot_id|>
    r"|\[/?INST\]|<</?SYS>>|</?(?:start|end)_of_turn>|\A<s>|</s>\s*\Z"
    r"|(?:\A|\n)#{2,3} (?:Instruction|Response|Input):"
    r"|(?:\A|\n)(?:User|Human|Assistant|Utilisateur|Humain):",
    re.IGNORECASE,
)
"""What the chat templates in use leave behind when a model writes them out, and a turn that is not the model's."""

LANGUAGE_WORDS = re.compile(
    r"\b(?:translat|tradui|traduction|language|langue|english|anglais|french|français|spanish|espagnol|german|allemand"
    r"|italian|italien|portugu|latin|greek|grec|russian|russe|arabic|arabe|hebrew|hébreu|chinese|chinois|mandarin"
    r"|japanese|japonais|korean|coréen|hindi|dutch|néerlandais)",
    re.IGNORECASE,
)
"""A prompt that speaks of a language may ask for an answer in it."""


def _set_of(words: str) -> frozenset[str]:
    return frozenset(words.split())


STOP_WORDS = {
    "en": _set_of(
        "the of and to in is are was were be been it its that this these those for with as at by from or an not have "
        "has had you your he she his her they their we our which who what when where how why will would can could "
        "should do does did there than then if but so on me about into more some such only other also"
    ),
    "fr": _set_of(
        "le la les un une des du de et est sont était étaient être été il elle ils elles ce cette ces cet que qui quoi "
        "dont où pour avec dans par sur au aux en ne pas plus vous votre vos nous notre nos leur leurs son sa ses mon "
        "ma mes je tu se si mais ou donc comme aussi très peut faire fait ont avez quand comment pourquoi quel quelle "
        "entre sans sous on me qu cela ça y"
    ),
}
"""Words that say which language a text is in and not what it is about. A word that is in both counts for neither."""

_ALL_STOP_WORDS = STOP_WORDS["en"] | STOP_WORDS["fr"]
_TELLING = {
    "en": STOP_WORDS["en"] - STOP_WORDS["fr"],
    "fr": STOP_WORDS["fr"] - STOP_WORDS["en"],
}


def _visible(text: str) -> bool:
    # Z: spaces and separators, C: controls, zero-width and bidi marks.
    return any(unicodedata.category(char)[0] not in "ZC" for char in text)


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


def _content(text: str) -> set[str]:
    """The text's words without stop words, cut to four letters so that `cooks` meets `cooking`."""
    return {word[:4] for word in _words(text) if word not in _ALL_STOP_WORDS and len(word) > 1}


def _ngrams(words: list[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def _repeated(items: Sequence[tuple[str, ...]]) -> float:
    """The share of items that were there before."""
    return 1 - len(set(items)) / len(items) if items else 0.0


def _conversation(prompt: Prompt) -> str:
    return "\n".join(message.content for message in prompt.messages)


def _may_change_language(prompt: Prompt) -> bool:
    return LANGUAGE_WORDS.search(_conversation(prompt)) is not None


def _scripts(text: str) -> Counter[str]:
    """Letters by script. The first word of a character's Unicode name is its script: LATIN, CYRILLIC, CJK, ..."""
    return Counter(unicodedata.name(char, "?").split()[0] for char in text if char.isalpha())


def _other_script(prompt: Prompt, response: Response) -> bool:
    asked, said = _scripts(_conversation(prompt)), _scripts(response.text)
    if said.total() < MIN_WORDS or not asked:
        return False
    expected = asked.most_common(1)[0][0]
    # Japanese alone writes in three scripts; any that the prompt uses is expected.
    own = sum(said[script] for script in asked if asked[script] >= asked[expected] / 10)
    return own < said.total() / 2


def _other_language(prompt: Prompt, response: Response) -> bool:
    """True if English was expected and the answer is French, or the reverse, by their stop words."""
    lang = prompt.lang.lower()[:2]
    if lang not in _TELLING:
        return False
    other = "fr" if lang == "en" else "en"
    # A French prompt whose `lang` nobody filled in ('en' is the default) may well be answered in French.
    return _speaks(response.text, other, MIN_WORDS) and not _speaks(_conversation(prompt), other, 3)


def _speaks(text: str, lang: str, min_words: int) -> bool:
    """True if the text is of this language: at least three times as many of its stop words as of the other's."""
    words = _words(text)
    hits = {name: sum(word in telling for word in words) for name, telling in _TELLING.items()}
    other = "fr" if lang == "en" else "en"
    return len(words) >= min_words and hits[lang] >= max(2, 3 * hits[other])
