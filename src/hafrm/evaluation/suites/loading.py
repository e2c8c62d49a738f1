"""Load the items of suites: NAME is downloaded from the hub, NAME@PATH is a file or a folder on disk."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from hafrm.data import ReadOptions, SourceReport, fingerprint, read_rows
from hafrm.data.hub import hub_call, hub_rows
from hafrm.data.registry import UNPINNED
from hafrm.data.reports import records_of
from hafrm.data.rowfiles import SUFFIXES, files_named, has_known_suffix
from hafrm.errors import DataError, UnknownDataError, UnreadableError
from hafrm.evaluation.suites.items import Item, ItemSet, Suite
from hafrm.rows import Row

_NO_SUITES = {"items", "loading", "scoring", "summary"}
_MODULES = (info.name for info in pkgutil.iter_modules([str(Path(__file__).parent)]) if info.name not in _NO_SUITES)
_FOUND = (vars(importlib.import_module(f"hafrm.evaluation.suites.{name}")) for name in _MODULES)
SUITES: dict[str, Suite] = {
    suite.name: suite for found in _FOUND for suite in (found["SUITES"] if "SUITES" in found else [found["SUITE"]])
}
"""Suites by name: the `SUITE`, or the `SUITES`, of every other module of this package."""

_DEFAULTS = ReadOptions()


def load_suite(name: str, options: ReadOptions = _DEFAULTS) -> ItemSet:
    """Load a suite's items.

    Args:
        name: NAME or NAME@PATH. In a folder, files with the names of the suite's own files are read (for RewardBench
            also those of the Prior Sets, which are not downloaded from the hub), or all files if there are none.

    Raises:
        UnknownDataError: there is no such suite.
        UnreadableError: the hub, a file or a folder can't be read.
        ConfigError: a folder contains a file twice, with two endings or both whole and in parts.
        BadRowError: a row is not in the suite's format, and bad rows are not skipped.
        DataError: there are no usable rows.
    """
    suite_name, _, location = name.partition("@")
    if suite_name not in SUITES:
        raise UnknownDataError(f"Unknown suite {name!r}. Use {', '.join(SUITES)}, or one of them as NAME@PATH.")
    suite = SUITES[suite_name]
    report = SourceReport(name=name, kind="suite", split=suite.split, licence=suite.licence)
    items = _read(suite, Path(location), report, options) if location else _fetch(suite, report, options)
    if not items:
        counts = ", ".join(f"{count} {reason}" for reason, count in report.skipped.items())
        raise DataError(f"{name}: none of its {report.rows} rows is usable ({counts}). Give the suite's own files.")
    report.sha256 = fingerprint(items)
    return ItemSet(suite, items, [report])


def _read(suite: Suite, path: Path, report: SourceReport, options: ReadOptions) -> list[Item]:
    items: list[Item] = []
    for file in _files(suite, path):
        report.read_from.append(str(file))
        items += _items(suite, file.name, read_rows(file), report, options)
    return items


def _fetch(suite: Suite, report: SourceReport, options: ReadOptions) -> list[Item]:
    remedy = f"Check the network, or download the files of {suite.homepage} and name them as {suite.name}@PATH."
    items: list[Item] = []
    for part, (path, revision) in (suite.sets or {suite.split: (suite.path, suite.revision)}).items():
        arguments = {"revision": revision} if revision else {}
        report.read_from.append(hub_call(path, arguments, split=suite.split))
        if revision is None:
            report.notes.append(UNPINNED.format(suite.name))
        source = f"{suite.name}/{part}"
        rows = hub_rows(path, arguments, split=suite.split, source=source, remedy=remedy)
        items += _items(suite, part, rows, report, options)
    return items


def _items(suite: Suite, part: str, rows: Iterable[Row], report: SourceReport, options: ReadOptions) -> Iterator[Item]:
    gathered = suite.gather(rows) if suite.gather else rows
    return records_of(gathered, report, partial(_parsed, suite, part), on_bad_row=options.on_bad_row)


def _parsed(suite: Suite, part: str, row: Row) -> Iterator[Item]:
    """Yield a row's items with their places."""
    found = suite.parse(row, part)
    items = [found] if isinstance(found, Item) else list(found)
    for number, item in enumerate(items, start=1 if len(items) > 1 else 0):
        yield replace(item, source=row.source, row=row.number, part=number, fields=row.fields)


def _files(suite: Suite, path: Path) -> list[Path]:
    """Return the file, or the suite's files in the folder."""
    try:
        if not path.is_dir():
            return [path]
        files = sorted(file for file in path.iterdir() if has_known_suffix(file))
    except OSError as error:
        raise UnreadableError(f"{path}: can't be listed ({error.strerror}). Check the path.") from error
    if not files:
        raise UnreadableError(f"{path}: the folder contains no data file ({', '.join(SUFFIXES)}).")
    named = (files_named(files, names) for names in suite.files)
    return next(filter(None, named), files)
