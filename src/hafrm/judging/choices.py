"""Parsing of a reply that chooses one of two outputs. Only an explicit statement counts; nothing is inferred.

A statement is a sentence or line that contains the choice and at most its reason: the choice alone (`**Output (a)**`),
after a label (`Answer: (b)`), or as a preference (`I choose Output (a) because ...`, `Output (b) is better`). All
statements must agree; statements before the last one that is marked as final or overall are ignored. The reason, and
the text after the last statement, must not prefer the other output or take the choice back.

Texts are read in lower case, with `@a` or `@b` for an output that is named, and `@A` or `@B` for one that is identified
by its position ("the second one"). A clause is a comparison if it has a word such as "better" or "more helpful". It
favours its subject, or the other output if it has a "not". The last comparison in a sentence counts.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hafrm.judging.judges import Unscored

# Statements of a choice

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

# Explanations of a choice

_KIND = r"(?:output|option|response|assistant|model|candidate)"
_NAME = re.compile(
    rf"(?:\bthe\s+)?\b{_KIND}s?\s*[(\[]+\s*(?P<kind>[ab])\s*[)\]]+"
    rf"|\b(?:the\s+)?{_KIND}\s+(?P<capital>(?-i:[AB]|b))\b"
    r"|(?<![\w(\[])[(\[]+\s*(?P<letter>[ab])\s*[)\]]+"
    r"|(?<![\w'-])(?P<subject>(?-i:[AB]))(?=\s+(?:is|was|wins|would|should)\b)",
    re.IGNORECASE,
)
"""Names of an output in running text, except a lower-case `output a`, which may be a verb and an article."""
_ORDINAL = re.compile(
    r"\b(?:the\s+)?(?:(?P<first>first)|second)\s+(?:one|output|option|response|answer)\b"
    r"|\bthe\s+(?:(?P<former>former|first(?=\s*(?:[.!,;]|is\b|$)))|(?:latter|second(?=\s*(?:[.!,;]|is\b|$))))"
    rf"|\b{_KIND}\s+#?(?:(?P<one>1)|2)\b",
    re.MULTILINE,
)
_OTHER = re.compile(r"\bthe other(?:\s+(?:one|output|option|response|answer)\b|(?=\s+(?:is|was|has)\b))")
_OBJECT = re.compile(
    r"\b(?:than|over|unlike|compared (?:to|with)|versus|vs\.?|instead of|rather than|(?<=erior )to|(?<=erable )to"
    r"|(?<=erred )to)\s+@(\w)"
)
_BEATEN = re.compile(r"\b(?:beats|outperforms|surpasses)\b")
_NOT_AS = re.compile(r"(?:\bnot|n't)\s+(?:\w+\s+)?(?:as|so)\s+\w+\s+as\b")
_BETTER_IN = re.compile(r"\b(?:has|with|gives|offers|provides|does)\s+(?:an?\s+)?better\b")
_CLAUSES = re.compile(
    r"[,;:()\u2013\u2014]|\b(?=(?:while|whereas|although|though|but|however|yet|because|since|so|and)\b)"
)
_CONCEDING = re.compile(r"\s*(?:and\s+)?(?:even\s+)?(?:while|whereas|although|though)\b")
_ADVERSE = re.compile(r"\s*(?:but|however|yet)\b")
_SAME = re.compile(
    r"\s*(?:(?:and|but|so|because|since|as|also|while|though|yet)\s+)*"
    r"(?:it\b|it's|which|this (?:one|output|response)|this(?=\s+is)|making it|is|was|should|must|has|gives|provides"
    r"|offers|wins|the|less|more)\b"
)
"""Beginnings of a clause that has the same subject as the one before."""
_CHOOSE = r"(?:prefer|choose|pick|select|favou?r|recommend|take|go with|vote for)"
_CHOSEN = re.compile(rf"(?:\b(?:i|we)\b|\bi'\w+|\bwould|\bshould|^)[^@]{{0,30}}\b{_CHOOSE}\s+@(\w)")
_DECISIVE = re.compile(
    r"\b(?:better|best(?=$|\s+(?:one|output|response|answer|choice|option|overall|match|answers|follows|fits|of)\b)"
    r"|preferred|preferable|superior|stronger|strongest|wins|winner(?! of)|deserves|the one$"
    rf"|(?:that|what|which|one) i(?:'d|\s+would)?\s+{_CHOOSE}|(?:should|would) win"
    r"|(?:is|be|been|was) (?:chosen|picked|selected|favou?red)|my (?:choice|pick|vote|answer|preference)"
    r"|the (?:right|correct) (?:one|choice|answer|output|response))(?!\w)"
)
_FLAW = (
    r"(?:words|text|verbose|wordy|vague|generic|repetitive|confus\w+|errors?|mistakes?|harmful|biased|convoluted|superficial|wrong"
    r"|offensive|misleading|unclear|off-topic|of a|like|than|long\w*|rambling|redundant|dangerous|toxic|about)"
)
_PARTIAL = re.compile(
    rf"\bmo(?:re|st)\s+(?!{_FLAW}\b)\w+|\bless\s+{_FLAW}\b|\b(?:clearer|safer|cleaner|nicer|richer|closer|fewer)\b"
)
"""A comparison in a single respect, which a sentence may concede."""
_LESSER = re.compile(
    rf"\b(?:worse|worst|inferior|weaker|weakest|loses|loser|reject\w*|discard\w*|less\s+(?!{_FLAW}\b|than\b)\w+|least\s+\w+)\b"
)
_HYPOTHETICAL = re.compile(r"\b(?:could|might)\b|\bwould\b.*\bif\b")
_NOT = re.compile(r"\b(?:not(?!\s+(?:only|just))|no|never|neither|hardly|cannot|nothing)\b|n't\b")
_TAKEN_BACK = re.compile(
    r"\b(?:i (?:was|am) (?:wrong|mistaken)|my mistake|scratch that|on second thoughts?|i take (?:it|that) back"
    r"|i meant?|chang(?:e|ed|ing) my (?:mind|answer|choice)|reconsider\w*|correct myself)\b"
)
_DENIED = re.compile(r"no|not|nope|wrong|(?:just )?kidding")
_TURN = re.compile(r"(?:actually|instead|rather|no|wait|hmm+|correction|sorry|apologies|or rather)\b")
"""Beginnings of a sentence that changes the choice to the output that it names."""
_NAMED_LAST = re.compile(
    r"(?:^|[,:;]\s*)(?:(?:\w+\s+){0,2}|(?:\w+\s+){0,4}(?:choice|answer|verdict|pick|decision|winner|it)\s+(?:is|was)\s+)"
    r"@(\w)$"
)
"""A sentence that consists of little more than a name at its end: "or maybe @b"."""


@dataclass(frozen=True)
class _Statement:
    place: int
    """Index of its sentence within the reply."""
    choice: str
    why: str
    final: bool


def read_choice(reply: str) -> str | Unscored:
    """Return the choice stated in a reply, "a" or "b", or why there is none."""
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
        inverted = _WORST.search(last.why) and _mentioned(last.why) <= {last.choice}
        return Unscored.AMBIGUOUS if inverted or _contradicts(after, last.choice) else last.choice
    named = _mentioned(text)
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
    return _with_names("".join(c for c in worded if unicodedata.category(c) not in _UNREAD))


def _unheaded(line: str) -> str:
    return line.lstrip(" \t#>-\u2022")


def _sentences(text: str) -> Iterator[str]:
    """Yield the sentences of each line, except headings such as `## Output (a)`."""
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
    """Return whether an introduction turns the choice into a condition, a negation or the worse option.

    It may criticise the other output, and say anything before a "but".
    """
    own = re.split(r"\b(?:but|however|yet)\b", before)[-1]
    doubts = [clause for clause in re.split(r"[,;:]", own) if _DOUBT.search(clause)]
    about_other = all(_mentioned(clause) == {*"ab"} - {choice} and " if " not in f" {clause}" for clause in doubts)
    return not about_other or _contradicts([own], choice)


def _with_names(text: str) -> str:
    """Convert a text to lower case, with outputs as `@a`, `@b`, `@A` and `@B`."""

    def name(match: re.Match[str]) -> str:
        return "@" + next(value for value in match.groups() if value).lower()

    def ordinal(match: re.Match[str]) -> str:
        return "@A" if match["first"] or match["former"] or match["one"] else "@B"

    return _ORDINAL.sub(ordinal, _NAME.sub(name, text).lower())


def _mentioned(text: str) -> set[str]:
    return {letter.lower() for letter in re.findall(r"@([abAB])", text)}


def _contradicts(sentences: Sequence[str], choice: str) -> bool:
    """Return whether an explanation prefers the output that was not chosen, or takes the choice back."""
    other, subject = _other(choice), choice
    for sentence in sentences:
        text = _OTHER.sub(f"@{other}", sentence.strip(" .!"))
        if _taken_back(text, other):
            return True
        favoured, subject = _favoured(text, subject)
        if favoured == other:
            return True
    return False


def _taken_back(text: str, other: str) -> bool:
    """Return whether a sentence takes the choice back, or consists of the other output's name."""
    if _TAKEN_BACK.search(text) or _DENIED.fullmatch(text) or (_TURN.match(text) and other in _mentioned(text)):
        return True
    named = _NAMED_LAST.search(_OBJECT.sub("", text))
    return named is not None and named[1].lower() == other and not _NOT.search(text)


def _other(choice: str) -> str:
    return "b" if choice == "a" else "a"


def _favoured(sentence: str, subject: str) -> tuple[str | None, str]:
    """Return the output that a sentence finally favours, if any, and the subject of its last clause."""
    clauses = [clause for clause in _CLAUSES.split(sentence) if clause.strip()]
    asserted: str | None = None
    conceded: str | None = None
    for place, clause in enumerate(clauses):
        favoured, decisive, subject = _compared(clause, subject)
        if favoured is None:
            continue
        if _CONCEDING.match(clause) or any(map(_ADVERSE.match, clauses[place + 1 : place + 2])):
            conceded = favoured if decisive else conceded
        else:
            asserted = favoured
    return asserted or conceded, subject


def _compared(clause: str, subject: str) -> tuple[str | None, bool, str]:
    """Return the output that a clause favours, whether it does so overall, and its subject (default: `subject`)."""
    if chosen := _CHOSEN.search(clause):
        favoured = chosen[1].lower()
        return _other(favoured) if _NOT.search(clause) else favoured, True, favoured
    worded = _BETTER_IN.sub("has more", _NOT_AS.sub("worse than", _BEATEN.sub("better than", clause)))
    beaten, bare = _OBJECT.findall(worded), _OBJECT.sub("", worded).strip()
    names = re.findall(r"@([abAB])", bare)
    if names:
        subject = names[0].lower()
    elif beaten:
        subject = _other(beaten[0].lower())
    elif not _SAME.match(bare):
        return None, False, subject
    decisive, lesser = _DECISIVE.search(bare), _LESSER.search(bare)
    if _HYPOTHETICAL.search(bare) or not (decisive or lesser or _PARTIAL.search(bare)):
        return None, False, subject
    against = bool(lesser) != bool(_NOT.search(bare))
    return _other(subject) if against else subject, bool(decisive), subject
