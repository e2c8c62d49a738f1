"""Which of two outputs a reply chooses: an explicit statement decides, and nothing is inferred.

A statement is a line or a sentence that says no more than the choice, with a reason behind it at most: `Output (a)`,
`**Answer: Output (b)**`, `I prefer Output (a)`. All statements of a reply must agree, and nothing else in it may prefer
the other output or take the choice back. Where nothing is stated, `Output (a) is better` counts as long as the other
output is not named at all: a sentence that compares the two is not weighed.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterator

from hafrm.judging.judges import Unscored

__all__ = ["bare_choice", "read_choice"]

_REASON = r"(?:\s*[,;:\u2013\u2014-]*\s*\b(?:because|since|as|due to)\b.*)?"
_END = rf"{_REASON}[\s.!]*"
_SO = r"(?:(?:so|thus|therefore|hence|overall)\b[,:]?\s*)?"
_INTRODUCTION = rf"(?:[^.?!]{{0,200}}[,:]\s*)?{_SO}"
_NOUN = (
    r"(?:answer|verdict|choice|decision|selection|judge?ment|preference|pick|winner|result"
    r"|(?:best|better|preferred|chosen|selected|winning)(?:\s+(?:one|match|output|response|answer|option|choice))?"
    r"|(?:one|output|response|option)\s+that\s+(?:best|better)\b[^.,;:]{0,80}?)"
)
_LABEL = rf"(?:(?:my|the|a|final|overall|correct|best|better|preferred)\s+)*{_NOUN}\s*(?:is|would be|:|=|->|\s)+"
_VERB = (
    r"(?:i(?:\s+(?:would|will|think i would|must)|'d|'ll)?\s+(?:(?:strongly|slightly|clearly)\s+)?"
    r"(?:prefer|choose|select|pick|favou?r|go with|go for|vote for)\s+)"
)
_NAMED = r"(?:the\s+)?(?:output|option|response)\s*[(\[]*\s*(?P<{}>[ab])\s*[)\]]*"
_LETTER = r"[(\[]*\s*(?P<{}>[ab])\s*[)\]]*"

_BARE = re.compile(rf"\[?\s*(?:{_NAMED.format('x')}|{_LETTER.format('y')})[\s.!\]]*", re.IGNORECASE)
_STATEMENT = re.compile(
    rf"{_SO}{_NAMED.format('x')}{_END}"
    rf"|(?P<before>{_INTRODUCTION})(?:{_LABEL}|{_VERB})(?:{_NAMED.format('y')}|{_LETTER.format('z')}){_END}",
    re.IGNORECASE | re.DOTALL,
)
_PRAISED = re.compile(
    rf"(?P<before>{_INTRODUCTION}(?:i\s+(?:think|believe|find|feel)\s+(?:that\s+)?)?){_NAMED.format('x')}\s+"
    r"(?:(?:is|seems|appears|looks|would be)\s+(?:(?:clearly|slightly|much|far|by far|definitely|overall|the|a)\s+)*"
    r"(?:best|better|preferred|preferable|superior|stronger|winner)"
    r"(?:\s+(?:one|match|output|response|answer|option|choice|overall))?"
    r"|(?:best|better)\s+(?:matches|answers|follows|fits|fulfils|fulfills)\b[^,;]*"
    rf"|wins){_END}",
    re.IGNORECASE | re.DOTALL,
)
_HEDGED = re.compile(
    r"\b(?:if|unless|whether|not|neither|nor|never|no|none|cannot|either|could|might|may|between|for some)\b|n't\b",
    re.IGNORECASE,
)
_OUTPUT = (
    r"(?:\b(?:outputs?|option|response|assistant|model)\s*[(\[]+\s*(?i:{0})\s*[)\]]+"
    r"|\b(?:output|option|response|assistant|model)\s+(?-i:{1})\b"
    r"|(?<![\w(])\(\s*(?:{0})\s*\)"
    r"|\b{2}\s+(?:one|output|option|response|answer)\b)"
)
_OTHER = {"a": _OUTPUT.format("b", "[Bb]", "second"), "b": _OUTPUT.format("a", "A", "first")}
"""How the other output than this one is named in running text; a lower-case `output a` may be a verb and an article."""
_NAMES = {choice: re.compile(_OTHER[other], re.IGNORECASE) for choice, other in (("a", "b"), ("b", "a"))}
_LOSING = r"(?:than|over|unlike|compared (?:to|with)|versus|vs\.?|beats|outperforms)\s+(?:the\s+)?"
_PREFERRING = r"(?:better|best|superior|prefer\w*|choose|chosen|select\w*|pick\w*|winner|wins|stronger|favou?r\w*)"
_CLAUSE = r"(?:,\s*(?:(?:while|whereas|but|so|and|yet|although)\b)?|\b(?:while|whereas|but)\b)"
_TURN = re.compile(
    r"\b(?:actually|wait|hmm|correction|second thoughts?|reconsider\w*|mistake|mistaken|my mind|sorry|scratch that"
    r"|instead|former|latter)\b|^no\b",
    re.IGNORECASE | re.MULTILINE,
)
_REFUSAL = re.compile(
    r"\b(?:i(?:'m| am) (?:sorry|unable|not able)|i (?:can't|cannot|can not|won't|will not|must decline)|sorry"
    r"|as an ai)\b",
    re.IGNORECASE,
)
_LONGEST = 2000
"""Characters of a sentence beyond which it states nothing."""
_UNSEEN = re.compile(r"[\ufe00-\ufe0f]")
_UNREAD = ("So", "Cf")
"""Categories of emoji, and of marks that are not seen."""
_TEXT_COMMAND = re.compile(r"\\(?:boxed|fbox|text\w*|math\w*)\b")
_MARKUP = re.compile(r"</?[A-Za-z][\w-]*/?>|<\|[^|<>]*\|>|[*`\"{}$\u201c\u201d\u300c\u300d]|(?<!\w)'|'(?!\w)")


def read_choice(reply: str) -> str | Unscored:
    """The choice that a reply states, "a" or "b", or why it is not taken for one."""
    text = _plain(reply)
    if choice := bare_choice(reply):
        return choice
    sentences = list(_sentences(text))
    stated = [(place, choice) for place, each in enumerate(sentences) if (choice := _matched(_STATEMENT, each))]
    choices = {choice for _, choice in stated}
    if len(choices) == 1:
        (choice,) = choices
        after = " ".join(sentences[stated[-1][0] + 1 :])
        taken_back = _TURN.search(after) or _prefers_other(text, choice) or any(map(_other_alone(choice), sentences))
        return Unscored.AMBIGUOUS if taken_back else choice
    named = {choice for choice, pattern in _NAMES.items() if pattern.search(text)} | choices
    if len(named) == 2:
        return Unscored.AMBIGUOUS
    praised = {choice for each in sentences if (choice := _matched(_PRAISED, each))}
    if len(praised) == 1 and not _TURN.search(text):
        return praised.pop()
    return Unscored.REFUSAL if _REFUSAL.search(text) and not named else Unscored.NO_CHOICE


def bare_choice(reply: str) -> str | None:
    """The choice of a reply that is nothing else, whatever its markup."""
    match = _BARE.fullmatch(_unheaded(_plain(reply)).strip())
    return _choice(match) if match else None


def _plain(reply: str) -> str:
    """A reply without markup: full-width and styled letters are plain ones, and a JSON object is a line a field."""
    text = unicodedata.normalize("NFKC", reply).replace("\u2019", "'")
    unfenced = re.sub(r"^[ \t]*(?:```|~~~)[ \t]*\w*[ \t]*$", "", text, flags=re.MULTILINE).strip()
    try:
        fields = json.loads(unfenced)
    except (ValueError, RecursionError):
        fields = None
    if isinstance(fields, dict):
        unfenced = "\n".join(f"{name}: {value}" for name, value in fields.items())
    worded = _UNSEEN.sub("", _MARKUP.sub("", _TEXT_COMMAND.sub("", unfenced))).replace("_", " ")
    return "".join(c for c in worded if unicodedata.category(c) not in _UNREAD)


def _unheaded(line: str) -> str:
    return line.lstrip(" \t#>-\u2022")


def _sentences(text: str) -> Iterator[str]:
    """Lines, cut behind each sentence; headings such as `## Output (a)`, which open a section, are left out."""
    for line in text.splitlines():
        heading = line.lstrip().startswith("#")
        for sentence in re.split(r"(?<=[.!?])\s+", _unheaded(line).strip()):
            if sentence and not (heading and _BARE.fullmatch(sentence)):
                yield sentence


def _matched(pattern: re.Pattern[str], sentence: str) -> str | None:
    match = pattern.fullmatch(sentence) if len(sentence) <= _LONGEST else None
    if match is None or _HEDGED.search(before := match["before"] or ""):
        return None
    choice = _choice(match)
    return None if re.search(_OTHER[choice], before, re.IGNORECASE) else choice


def _other_alone(choice: str) -> Callable[[str], bool]:
    """A test for a line that is nothing but the other output, such as `(b)`."""
    return lambda sentence: (match := _BARE.fullmatch(sentence)) is not None and _choice(match) != choice


def _choice(match: re.Match[str]) -> str:
    return next(value.lower() for name, value in match.groupdict().items() if value and name != "before")


def _prefers_other(text: str, choice: str) -> bool:
    """Whether a sentence seems to prefer the other output, other than by naming it as the lesser one."""
    losing = re.compile(_LOSING + _OTHER[choice], re.IGNORECASE)
    preferred = re.compile(
        rf"{_OTHER[choice]}[^.;\n]{{0,80}}?\b{_PREFERRING}\b|\b{_PREFERRING}\b[^.;\n]{{0,40}}?{_OTHER[choice]}",
        re.IGNORECASE,
    )
    own = _NAMES[choice].pattern
    # Another clause in between has a subject of its own: the chosen output, or the other one where it comes last.
    apart = re.compile(rf"{_CLAUSE}[^,.;\n]{{0,20}}{own}|{_CLAUSE}\s*{_OTHER[choice]}$", re.IGNORECASE)
    return any(not apart.search(found[0]) for found in preferred.finditer(losing.sub("", text)))
