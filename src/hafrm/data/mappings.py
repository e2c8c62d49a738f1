"""Map the rows of one source to pairs: detect the form from its first rows, or apply the user's own mapping."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import partial
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any

from hafrm.contract import parse_conversation, parse_pair, row_schema, unread_columns
from hafrm.data.forms import EXPLICIT, FORMS, Form, nearest, ranking
from hafrm.data.options import DataOptions, ReadOptions
from hafrm.data.reports import Drop, Outcome, SourceReport, listed, records_of
from hafrm.errors import BadRowError, BadRowReason, ConfigError, first_line
from hafrm.pairs import PreferencePair
from hafrm.rows import Row, typed

_EXAMINED = 16
"""Maximum number of rows that are examined to detect a source's form."""

_SCORES = ("score_chosen", "score_rejected")


def read_pairs(
    rows: Iterable[Row],
    report: SourceReport,
    options: ReadOptions,
    *,
    named: Callable[[Row], Outcome | Iterable[Outcome]] | None = None,
) -> Iterator[PreferencePair]:
    """Turn the rows of a source into pairs one at a time, and count every row in the report.

    Args:
        rows: The rows.
        report: Receives the counts, the form and the unread columns; complete after the last pair.
        options: What to do with bad rows, and the user's columns or mapping.
        named: The mapping of a published set; the user's columns and mapping do not apply to it. Such sets have a few
            rows that break the contract and can't be repaired, such as empty answers: rows that the mapping accepts and
            the contract refuses count as dropped.

    Raises:
        BadRowError: a row is bad, and bad rows are not skipped.
        ConfigError: a column of `columns` does not exist, or the mapping can't be imported.
    """
    if named is not None:
        return records_of(rows, report, partial(_named_pairs, named), on_bad_row=options.on_bad_row)
    mapping = user_mapping(options.mapping) if options.mapping else None
    return _read(rows, report, options, mapping)


def _named_pairs(named: Callable[[Row], Outcome | Iterable[Outcome]], row: Row) -> Iterator[PreferencePair | Drop]:
    outcomes = list(Form("", (), named).rows(row))
    for part, outcome in enumerate(outcomes, start=1 if len(outcomes) > 1 else 0):
        if isinstance(outcome, Drop):
            yield outcome
            continue
        try:
            yield parse_pair(outcome, source=row.source, number=row.number, part=part)
        except BadRowError as error:
            yield Drop(error.reason.value)


def _read(
    rows: Iterable[Row], report: SourceReport, options: ReadOptions, mapping: Form | None
) -> Iterator[PreferencePair]:
    rows = renamed_rows(rows, options)
    form = mapping
    if form is None:
        form, rows = _recognised(rows)
    report.form = form.name
    scores = isinstance(options, DataOptions) and options.score_margins
    reader = _Reader(form, report, scores=scores, checked=mapping is None)
    if form.single:
        rows = reader.gathered(rows)
    try:
        yield from records_of(rows, report, reader.pairs, on_bad_row=options.on_bad_row)
    finally:
        report.unread = sorted(reader.unread.union(report.unread))


def _peeked(rows: Iterable[Row], enough: Callable[[Mapping[str, Any]], bool]) -> tuple[list[Row], Iterator[Row]]:
    """Read rows until one is enough, at most `_EXAMINED`; return the objects among them, and all rows."""
    waiting = iter(rows)
    seen: list[Row] = []
    for row in waiting:
        seen.append(row)
        if len(seen) == _EXAMINED or (isinstance(row.value, Mapping) and enough(row.value)):
            break
    return [row for row in seen if isinstance(row.value, Mapping)], chain(seen, waiting)


def renamed_rows(rows: Iterable[Row], options: ReadOptions) -> Iterator[Row]:
    """Rename columns as `data_options.columns` says; raise ConfigError if none of the first rows has one of them."""
    names = options.renamed
    if not names:
        yield from rows
        return
    wanted = set(names.values())

    def found(row: Mapping[str, Any]) -> bool:
        wanted.difference_update(row)
        return not wanted

    seen, rows = _peeked(rows, found)
    if wanted and seen:
        raise ConfigError(
            f"data_options.columns: {seen[0].source} has no column {', '.join(sorted(wanted))}. Its first row has "
            f"{listed(list(seen[0].value))}."
        )
    for row in rows:
        yield with_names(row, names)


def with_names(row: Row, names: Mapping[str, str]) -> Row:
    """Return a row with columns under other names; see `ReadOptions.renamed`."""
    if not names or not isinstance(row.value, Mapping):
        return row
    taken = set(names.values())
    kept = {name: value for name, value in row.value.items() if name not in taken}
    found = {name: row.value[column] for name, column in names.items() if column in row.value}
    return replace(row, value=kept | found)


def form_of(row: Mapping[str, Any], forms: Sequence[Form] = FORMS) -> Form | None:
    """Return the form of a row, or None if it is in none of the known ones."""
    return next((form for form in forms if form.recognises(row)), None)


def _recognised(rows: Iterable[Row]) -> tuple[Form, Iterator[Row]]:
    """Return the form of a source and all its rows; if the form is unknown, one that raises for every row."""
    seen, rows = _peeked(rows, lambda row: form_of(row) is not None)
    form = form_of(seen[-1].value) if seen else None
    if form is not None:
        return form, rows
    if not seen or not seen[0].value:
        return EXPLICIT, rows
    return _unknown(nearest(seen[0].value), [str(name) for name in seen[0].value]), rows


def _unknown(near: Form, columns: list[str]) -> Form:
    """Return a stand-in for a form that says which columns a row has, and which the nearest known form has."""

    def refuse(row: Row) -> Iterable[Outcome]:
        missing = near.missing(row.fields)
        if not missing:  # a column has another type: let the form say which
            return near.rows(row)
        raise BadRowError(
            BadRowReason.MISSING_FIELD,
            source=row.source,
            row=row.number,
            field=missing[0],
            problem=f"is missing: the columns {listed(columns)} match none of the known forms; the nearest, "
            f"{near.name}, has {', '.join(near.columns)}",
            remedy="Name the columns with `data_options.columns`, such as `prompt: question, chosen: better, rejected: "
            "worse`, or convert rows with `data_options.mapping`.",
            skippable=False,
        )

    return Form("", (), refuse)


@dataclass
class _Reader:
    """Turns the rows of one source, all in one form, into pairs."""

    form: Form
    report: SourceReport
    """Receives the number of pairs whose scores contradict their labels."""
    scores: bool
    """Whether scores are margins."""
    checked: bool
    """Whether rows of other forms are refused."""
    unread: set[str] = field(default_factory=set)
    first: tuple[Row, tuple[str, ...]] | None = None
    """The first good row, and its schema."""

    def pairs(self, row: Row) -> Iterator[PreferencePair | Drop]:
        """Yield the pairs of a row."""
        outcomes = list(self._outcomes(row))
        for part, outcome in enumerate(outcomes, start=1 if len(outcomes) > 1 else 0):
            if isinstance(outcome, Drop):
                yield outcome
                continue
            used: set[str] = set()
            if self.scores:
                scored, used = replace(row, value=outcome), set(_SCORES)
                better, worse = map(scored.required_number, _SCORES)
                outcome = {**outcome, "margin": better - worse}
            yield parse_pair(outcome, source=row.source, number=row.number, part=part)
            self.unread |= (unread_columns(outcome) & row.fields.keys()) - used
        self._check_schema(row)
        if wrong := sum(map(_contradicted, outcomes)):
            self.report.contradicted += wrong
            self.report.first_contradicted = self.report.first_contradicted or f"{row.source}:{row.number}"

    def _outcomes(self, row: Row) -> Iterable[Outcome]:
        if self.form.single:  # the row is a ranking that `gathered` made
            made = Form("", ("responses", "scores"), lambda row: ranking(row.fields["responses"], row.fields["scores"]))
            return made.rows(row)
        return self._of_form(row)

    def _of_form(self, row: Row) -> Iterable[Outcome]:
        """Apply the form to a row, and raise if the row is in another form."""
        if self.checked and self.form.columns and not self.form.recognises(row.fields):
            other = form_of(row.fields)
            if other is not None and other.to_rows is not self.form.to_rows:
                problem = f"the row is in the form {other.name}, but earlier rows are in the form {self.form.name}"
                remedy = "Write all rows of a source in one form, or split the source."
                raise row.error(BadRowReason.MIXED_SCHEMA, None, problem, remedy)
            if missing := self.form.missing(row.fields):
                remedy = f"Add it: the rows are read as {self.form.name}."
                raise row.error(BadRowReason.MISSING_FIELD, missing[0], "is missing", remedy)
        return self.form.rows(row)

    def _check_schema(self, row: Row) -> None:
        """Raise if a row of the contract mixes strings and messages in another way than the first."""
        if self.form.to_rows is not EXPLICIT.to_rows:
            return
        schema = row_schema(row.fields)
        self.first = self.first or (row, schema)
        first, expected = self.first
        if schema != expected:
            place = f"row {first.number}" if first.source == row.source else f"{first.source}, row {first.number}"
            problem = f"the row has {_schema_text(schema)}, but {place} has {_schema_text(expected)}"
            remedy = "Write all rows of a source in one schema, or split it."
            raise row.error(BadRowReason.MIXED_SCHEMA, None, problem, remedy)

    def gathered(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Merge rows of one response each into one ranking per prompt, which needs all rows in memory.

        Bad rows are passed on with their fault.
        """
        groups: dict[str, list[tuple[Row, Mapping[str, Any]]]] = {}
        for row in rows:
            try:
                for found in self._of_form(row):
                    assert not isinstance(found, Drop)
                    prompt = parse_conversation(found, source=row.source, number=row.number).prompt
                    groups.setdefault(json.dumps(prompt.as_row(), sort_keys=True), []).append((row, found))
            except BadRowError as error:
                yield replace(row, value=None, fault=error)
        for group in groups.values():
            first, found = group[0]
            rest = {name: value for name, value in found.items() if name not in ("response", "score")}
            value = rest | {name: [each[name[:-1]] for _, each in group] for name in ("responses", "scores")}
            yield replace(first, value=value, merged=len(group))


def _contradicted(outcome: Outcome) -> bool:
    """Return whether a pair has scores, and the rejected response has the higher one."""
    if isinstance(outcome, Drop):
        return False
    better, worse = (typed(outcome.get(name)) for name in _SCORES)
    return isinstance(better, int | float | Decimal) and isinstance(worse, int | float | Decimal) and better < worse


def row_mapping(options: ReadOptions, forms: Sequence[Form] = FORMS) -> Callable[[Row], Any]:
    """Return a function that converts a row to the single row of the contract for which it stands.

    Args:
        options: The user's mapping; the rows' columns have been renamed already.
        forms: The forms that are recognised; rows in others are returned as they are.

    Returns:
        The function; it raises BadRowError if a row does not represent exactly one row, as for a ranking.
    """
    mapping = user_mapping(options.mapping) if options.mapping else None

    def read(row: Row) -> Any:
        value = row.value
        if not isinstance(value, Mapping) or ("response" in value and mapping is None):
            return value
        form = mapping or form_of(value, forms)
        if form is None:
            is_completion = "completion" in value and "chosen" not in value
            return with_names(row, {"response": "completion"}).value if is_completion else value
        outcomes = list(form.rows(row))
        if len(outcomes) != 1 or isinstance(outcomes[0], Drop):
            problem = f"the row, read as {form.name}, yields {len(outcomes)} pairs or is left out"
            remedy = "Give rows with one pair, or with a prompt and a response."
            raise row.error(BadRowReason.UNSUPPORTED, None, problem, remedy)
        return outcomes[0]

    return read


def _schema_text(schema: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}` {kind}" for name, kind in zip(("prompt", "chosen", "rejected"), schema, strict=True))


def user_mapping(name: str) -> Form:
    """Import the user's function, named as in `ReadOptions.mapping`, as a form; raise ConfigError if that fails."""
    module = mapping_module(name)
    function = getattr(module, name.rpartition(":")[2], None)
    if not callable(function):
        raise ConfigError(f"data_options.mapping: {name} is not a function.")
    return Form(name, (), lambda row: _mapped(row, function))


def mapping_module(name: str) -> ModuleType:
    """Import the module of `data_options.mapping`, perhaps from the working folder; raise ConfigError if that fails."""
    place = name.rpartition(":")[0]
    path = list(sys.path)
    try:
        if not place.endswith(".py"):
            sys.path.append(str(Path.cwd()))
            return importlib.import_module(place)
        spec = importlib.util.spec_from_file_location(Path(place).stem, place)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except Exception as error:  # the module may do anything
        problem = f"{type(error).__name__}: {first_line(error)}"
        raise ConfigError(f"data_options.mapping: {place} can't be imported ({problem}).") from error
    finally:
        sys.path[:] = path
    return module


def mapping_digest(name: str) -> str | None:
    """Return a digest of the user's function and its file; None if it has no file, as in a notebook."""
    file = getattr(mapping_module(name), "__file__", None)
    return hashlib.sha256(name.encode() + Path(file).read_bytes()).hexdigest() if file else None


def _mapped(row: Row, function: Callable[[dict[str, Any]], Any]) -> list[Outcome]:
    """Call the user's function on a row."""
    try:
        made = function(dict(row.fields))
        if made is None:
            return [Drop("mapping")]
        made = [made] if isinstance(made, Mapping | PreferencePair) else list(made)
    except Exception as error:  # the function may do anything
        problem = f"data_options.mapping raised {type(error).__name__}: {first_line(error)}"
        remedy = "Repair the function, or let it return None for such rows."
        raise row.error(BadRowReason.WRONG_TYPE, None, problem, remedy) from error
    if not all(isinstance(each, Mapping | PreferencePair) for each in made):
        problem = f"data_options.mapping returned values of type {type(made[0]).__name__}"
        remedy = "Return a dict with prompt, chosen and rejected, a list of such dicts, or None."
        raise row.error(BadRowReason.WRONG_TYPE, None, problem, remedy)
    rows = [each.as_row() if isinstance(each, PreferencePair) else each for each in made]
    return rows or [Drop("mapping")]
