"""Parse which of two outputs a reply chooses. Only an explicit statement counts; nothing is inferred.

A statement is a sentence or a line that gives the choice and, at most, the reason: the choice alone (`**Output (a)**`),
under a label (`Answer: (b)`), or a preference (`I choose Output (a) because ...`, `Output (b) is better`). All
statements must agree; from the last one marked as final or overall on, they outweigh earlier ones. The text after the
last statement, and the reason in it, may say anything except prefer the other output or take the choice back.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

from hafrm.judging.explanations import contradicts, mentioned, with_names
from hafrm.judging.judges import Unscored

_THING = r"(?:one|match|output|response|answer|option|choice|overall)"
_TASK = r"(?:(?:given|original|user's)\s+)?(?:instructions?|prompt|question|task|request|query|user)"
_SCOPE = (
    r"(?:,?\s+(?:overall|here|clearly|definitely|by far|for sure|in my (?:opinion|view)|of the two(?:\s+\w+)?"
    rf"|(?:for|to) (?:the|this) {_TASK}))?"
)
_GOOD = r"(?:best|better|preferred|preferable|superior|stronger|winner|chosen|selected|winning)"
_NOUN = (
    r"(?:answer|verdict|choice|decision|selection|judge?ment|preference|pick|winner|result"
    rf"|{_GOOD}(?:\s+{_THING})?|(?:one|output|response|option)\s+that\s+(?:best|better)\b(?:(?!\bnot\b|n't)[^.,;:@]){{0,80}}?"
    r"|(?:one|output|response|option)\s+(?:that\s+)?i(?:'d|\s+would)?\s+(?:prefer|choose|pick|select))"
)
_SO = (
    r"(?:(?:(?:so|thus|therefore|hence|overall|but|and|yet|however|finally|clearly|definitely|it is|it's)\b"
    r"|in my (?:opinion|view))[,:]?\s*)*"
)
_BEFORE = (
    rf"(?P<before>(?:[^?!]{{0,300}}[,:]\s*)?{_SO}"
    r"(?:i(?:'d|\s+would)?\s+(?:think|believe|find|feel|say)\s+(?:that\s+)?)?)"
)
_LABEL = (
    rf"(?:(?:my|the|a|final|overall|correct|best|better|preferred)\s+)*{_NOUN}{_SCOPE}"
    r"\s*(?:is|(?:would|should|must) be|goes to|:|=|->|[\u2013\u2014-]|\s)+"
)
_VERB = (
    r"i(?:\s+(?:would|will|must)|'d|'ll)?\s+(?:have to\s+)?(?:(?:strongly|slightly|clearly|therefore)\s+)?"
    r"(?:prefer|choose|select|pick|favou?r|recommend|go with|go for|vote for)\s+"
)
_OVER = r"(?:\s+(?:over|than|to|rather than|instead of)\s+(?:@\w|the other(?:\s+one)?))?"
_UNSURE = (
    r"(?:if|unless|whether|either|could|might|may|maybe|perhaps|between(?! the two)|for some|or"
    r"|not|neither|nor|never|no|none|cannot|worse|worst|reject\w*|discard\w*|avoid|less|least|loser|inferior|weaker|wrong"
    r"|bad|incorrect)"
)
_DOUBT = re.compile(rf"\b{_UNSURE}\b|n't\b|\?")
"""Marks of doubt that invalidate a statement if they are in its introduction or its parentheses."""
_BECAUSE = (
    r"(?:because|since|as(?=\s+(?:its?\b|this|they|there|the other|@))|while|whereas|due to|given|for (?:its|being))"
)
_WHY = (
    rf"(?P<why>(?:\s*\((?:(?!\b{_UNSURE}\b)[^()@?])*\))?"
    rf"(?:\s*[,;:\u2013\u2014-]*\s*\b{_BECAUSE}\b.*)?)[\s.!]*"
)
_AS = rf"(?:,?\s+as\s+(?:the|my|a)\s+(?:(?:final|overall|clear)\s+)*{_NOUN})?"
_LETTER = r"[(\[]*(?P<letter>[ab])\b[)\]]*(?=[\s.!]*(?:$|because\b))"
_STATED = re.compile(
    rf"(?:(?P<lead>{_SO})|{_BEFORE}(?P<label>{_LABEL}|{_VERB}))\[*(?:@(?P<x>[ab])|(?(label){_LETTER}|(?!)))\]*"
    rf"{_OVER}{_AS}{_SCOPE}{_WHY}"
)
_PRAISED = re.compile(
    rf"{_BEFORE}@(?P<x>[ab])\s+(?:(?:is|seems|appears|looks|would be)\s+"
    rf"(?:(?:clearly|slightly|much|far|by far|definitely|overall|the|a|my)\s+)*(?:{_GOOD}|choice|pick|preference"
    rf"|(?:right|correct)(?=\s+{_THING}))(?:\s+{_THING})?|(?:best|better)\s+(?:matches|answers|follows|fits|fulfils|fulfills)\b[^,;@]*?|wins)"
    rf"{_OVER}{_SCOPE}{_WHY}"
)
_WORST = re.compile(r"\b(?:worse|worst|reject\w*|discard\w*)\b")
_FINAL = re.compile(r"\b(?:final|finally|overall)\b")
_BARE = re.compile(r"[\[(\s]*(?:@(?P<x>[ab])|(?:(?:output|option|response)\s+)?(?P<letter>[ab]))[\s.!\])]*")
_REFUSAL = re.compile(
    r"\b(?:i(?:'m| am) (?:unable|not able)|i (?:can't|cannot|can not|won't|will not|must decline)|sorry|as an ai)\b"
)
_LONGEST = 2000
"""Maximum characters of a sentence that is read as a statement."""
_UNSEEN = re.compile(r"[\ufe00-\ufe0f@]")
_UNREAD = ("So", "Cf")
"""Unicode categories of emoji and of invisible marks, which are removed."""
_TEXT_COMMAND = re.compile(r"\\(?:boxed|fbox|text\w*|math\w*)\b")
_MARKUP = re.compile(r"</?[A-Za-z][\w-]*/?>|<\|[^|<>]*\|>|[*`\"{}$\u201c\u201d\u300c\u300d]|(?<!\w)'|'(?!\w)")


@dataclass(frozen=True)
class _Statement:
    place: int
    """Index of its sentence within the reply."""
    choice: str
    why: str
    final: bool


def read_choice(reply: str) -> str | Unscored:
    """Return the choice that a reply states, "a" or "b", or why it has none."""
    if choice := bare_choice(reply):
        return choice
    text = _plain(reply)
    sentences = list(_sentences(text))
    stated = [each for place, sentence in enumerate(sentences) if (each := _stated(place, sentence))]
    decisive = max((place for place, each in enumerate(stated) if each.final), default=0)
    choices = {each.choice for each in stated[decisive:]}
    if len(choices) == 1:
        last = stated[-1]
        after = [last.why, *sentences[last.place + 1 :]]
        inverted = _WORST.search(last.why) and mentioned(last.why) <= {last.choice}
        return Unscored.AMBIGUOUS if inverted or contradicts(after, last.choice) else last.choice
    named = mentioned(text)
    if choices or len(named) == 2:
        return Unscored.AMBIGUOUS
    return Unscored.REFUSAL if _REFUSAL.search(text) and not named else Unscored.NO_CHOICE


def bare_choice(reply: str) -> str | None:
    """Return the choice of a reply that consists of nothing else, apart from markup."""
    match = _BARE.fullmatch(_unheaded(_plain(reply)).strip())
    return match["x"] or match["letter"] if match else None


def _plain(reply: str) -> str:
    """Normalise a reply: lower case, no markup, outputs named as by `with_names`, a line per field of a JSON object."""
    text = unicodedata.normalize("NFKC", reply).replace("\u2019", "'")
    unfenced = re.sub(r"^[ \t]*(?:```|~~~)[ \t]*\w*[ \t]*$", "", text, flags=re.MULTILINE).strip()
    try:
        fields = json.loads(unfenced)
    except (ValueError, RecursionError):
        fields = None
    if isinstance(fields, dict):
        unfenced = "\n".join(f"{name}: {value}" for name, value in fields.items())
    worded = _UNSEEN.sub("", _MARKUP.sub("", _TEXT_COMMAND.sub("", unfenced))).replace("_", " ")
    return with_names("".join(c for c in worded if unicodedata.category(c) not in _UNREAD))


def _unheaded(line: str) -> str:
    return line.lstrip(" \t#>-\u2022")


def _sentences(text: str) -> Iterator[str]:
    """Yield lines, split after each sentence; headings such as `## Output (a)`, which open a section, are left out."""
    for line in text.splitlines():
        heading = line.lstrip().startswith("#")
        for sentence in re.split(r"(?<=[.!?])\s+", _unheaded(line).strip()):
            if sentence and not (heading and _BARE.fullmatch(sentence)):
                yield sentence


def _stated(place: int, sentence: str) -> _Statement | None:
    """Parse a sentence as a statement; None if it is not one."""
    if len(sentence) > _LONGEST:
        return None
    match = _STATED.fullmatch(sentence) or _PRAISED.fullmatch(sentence)
    if match is None:
        return None
    found = match.groupdict()
    choice, before = found["x"] or found["letter"], found["before"] or found.get("lead") or ""
    if _doubted(before, choice):
        return None
    final = _FINAL.search(f"{before} {found.get('label') or ''}") is not None
    return _Statement(place, choice, found["why"], final)


def _doubted(before: str, choice: str) -> bool:
    """Return whether an introduction makes the choice conditional, negative or the lesser one.

    It may criticise the other output, and say anything before a "but".
    """
    own = re.split(r"\b(?:but|however|yet)\b", before)[-1]
    doubts = [clause for clause in re.split(r"[,;:]", own) if _DOUBT.search(clause)]
    about_other = all(mentioned(clause) == {*"ab"} - {choice} and " if " not in f" {clause}" for clause in doubts)
    return not about_other or contradicts([own], choice)
