"""Check an explanation of a choice between two outputs: does it prefer the other one, or take the choice back?

Texts are in lower case, with `@a` or `@b` for an output that is named, and `@A` or `@B` for one that is identified by
its position ("the second one"). A clause compares if it has a word such as "better" or "more helpful"; it favours its
subject, or the other output after "not". The last comparison in a sentence counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

_KIND = r"(?:output|option|response|assistant|model|candidate)"
_NAME = re.compile(
    rf"(?:\bthe\s+)?\b{_KIND}s?\s*[(\[]+\s*(?P<kind>[ab])\s*[)\]]+"
    rf"|\b(?:the\s+)?{_KIND}\s+(?P<capital>(?-i:[AB]|b))\b"
    r"|(?<![\w(\[])[(\[]+\s*(?P<letter>[ab])\s*[)\]]+"
    r"|(?<![\w'-])(?P<subject>(?-i:[AB]))(?=\s+(?:is|was|wins|would|should)\b)",
    re.IGNORECASE,
)
"""Names of an output in running text; a lower-case `output a` may be a verb and an article."""
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
"""A comparison in one respect, which a sentence may concede."""
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
"""Beginnings of a sentence that switches to the output that it names."""
_NAMED_LAST = re.compile(
    r"(?:^|[,:;]\s*)(?:(?:\w+\s+){0,2}|(?:\w+\s+){0,4}(?:choice|answer|verdict|pick|decision|winner|it)\s+(?:is|was)\s+)"
    r"@(\w)$"
)
"""A sentence that ends in little more than a name: "or maybe @b"."""


def with_names(text: str) -> str:
    """Convert a text to lower case, with outputs as `@a`, `@b`, `@A` and `@B`."""

    def name(match: re.Match[str]) -> str:
        return "@" + next(value for value in match.groups() if value).lower()

    def ordinal(match: re.Match[str]) -> str:
        return "@A" if match["first"] or match["former"] or match["one"] else "@B"

    return _ORDINAL.sub(ordinal, _NAME.sub(name, text).lower())


def mentioned(text: str) -> set[str]:
    """Return the outputs that a text names."""
    return {letter.lower() for letter in re.findall(r"@([abAB])", text)}


def contradicts(sentences: Sequence[str], choice: str) -> bool:
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
    """Return whether a sentence takes a choice back, or only names the other output."""
    if _TAKEN_BACK.search(text) or _DENIED.fullmatch(text) or (_TURN.match(text) and other in mentioned(text)):
        return True
    named = _NAMED_LAST.search(_OBJECT.sub("", text))
    return named is not None and named[1].lower() == other and not _NOT.search(text)


def _other(choice: str) -> str:
    return "b" if choice == "a" else "a"


def _favoured(sentence: str, subject: str) -> tuple[str | None, str]:
    """Return the output that a sentence finally favours, if any, and the subject of its last clause."""
    clauses = list(_clauses(sentence))
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


def _clauses(sentence: str) -> Iterator[str]:
    return (clause for clause in _CLAUSES.split(sentence) if clause.strip())


def _compared(clause: str, subject: str) -> tuple[str | None, bool, str]:
    """Return the output that a clause favours, whether overall, and its subject, possibly that of the clause before."""
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
