"""From data names to pairs: files, folders, named sets, the simulated world, the hub.

A data name is, in this order: `world/NAME`, or `world/NAME[:100]` for its first 100 pairs; `hub:OWNER/NAME[:CONFIG]`; a
name of the registry, or NAME@PATH for a copy of that set's files on disk; a path to a file or to a folder with one file
per split; a plain `OWNER/NAME[:CONFIG]`, which is looked up on the hub. Splits are drawn only from named sets; files
are read whole, and folders and hub sets have their own splits.

Every name except a file's may end in #SPLIT, which overrides the split that a command asks for:
`hub:HuggingFaceH4/ultrafeedback_binarized#test_prefs`, `folder#test`, `hh-harmless#test`. An existing path is used as
it is, even with a # in it.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hafrm.data.collecting import PairSet, RowMapping, SourceReport, fingerprinted, pairs_of
from hafrm.data.hub import hub_call, hub_rows
from hafrm.data.options import ReadOptions
from hafrm.data.rawrows import SUFFIXES, files_named, has_known_suffix, read_rows
from hafrm.data.registry import NAMED_SOURCES, TEST_SHARE, VALIDATION_SHARE, NamedSource
from hafrm.data.simulated import is_simulated, simulated_names, simulated_source
from hafrm.data.splits import split_by_group
from hafrm.errors import ConfigError, DataError, UnknownDataError, UnreadableError
from hafrm.pairs import PreferencePair

SPLITS = ("train", "validation", "test")
"""Splits of named sets and of the world."""

_SIMULATED_NAME = re.compile(r"(?P<prefix>\w+)/(?P<set>[\w-]+)(?:\[:(?P<size>[1-9]\d*)\])?")
_HUB_NAME = re.compile(r"(?P<path>[A-Za-z0-9][\w.-]*/[\w.-]+)(?::(?P<config>[\w.-]+))?")
_WITH_SPLIT = re.compile(r"(?P<name>[^#].*)#(?P<split>[\w-]*)")

_DEFAULTS = ReadOptions()


@dataclass
class PairSource:
    """A source of pairs that is read once, from beginning to end."""

    pairs: Iterator[PreferencePair]
    report: SourceReport
    """Account of its rows, complete after the last pair."""
    reads: Sequence[Path] = ()
    """The files that are read; empty if the source has none on this machine."""


def data_names() -> list[str]:
    """Return the names that need no path: the registry's and the simulated ones."""
    return [*NAMED_SOURCES, *simulated_names()]


def load_pairs(data: str | Sequence[str], *, split: str = "train", options: ReadOptions = _DEFAULTS) -> PairSet:
    """Load preference pairs.

    Args:
        data: One or more data names; see the module's docstring. Several are concatenated.
        split: "train", "validation" or "test"; for a folder or a hub set any of its splits. Files are read whole, and
            NAME#SPLIT overrides this argument.
        options: How to treat bad rows, and the seed of drawn splits.

    Returns:
        The pairs, and one report per name that accounts for its rows.

    Raises:
        UnknownDataError: the name is unknown; the message suggests similar ones.
        UnreadableError: a file, folder or hub data set can't be read.
        ConfigError: no name is given, a named split does not exist, or a folder contains a split's file twice.
        BadRowError: a row breaks the data contract, and bad rows are not skipped.
        DataError: a source has no usable row.
    """
    result = PairSet([], [])
    for source in open_sources(data, split=split, options=options):
        result.pairs.extend(source.pairs)
        result.reports.append(source.report)
    return result


def open_sources(
    data: str | Sequence[str], *, split: str = "train", options: ReadOptions = _DEFAULTS
) -> list[PairSource]:
    """Open sources of preference pairs without reading their rows, for pairs that need not all be in memory.

    Named sets whose splits are drawn are the exception: a draw needs the prompts of all rows, so they are read here.

    Args and errors are those of `load_pairs`; errors in rows are raised while pairs are read.
    """
    names = [data] if isinstance(data, str) else list(data)
    if not names:
        raise ConfigError("No data given. Name a data set or a file; `hafrm data list` lists the known names.")
    return [_open(name, split, options) for name in names]


def _open(name: str, split: str, options: ReadOptions) -> PairSource:
    bare, own_split = _without_split(name)
    source = _source(bare, own_split or split, options)
    if own_split and source.report.kind == "file":
        raise ConfigError(f"{name}: a file is read whole and has no splits. Leave out #{own_split}.")
    source.report.name = name
    return replace(source, pairs=_complete(source))


def _complete(source: PairSource) -> Iterator[PreferencePair]:
    """Yield a source's pairs, add their fingerprint to the report, and raise if there is none."""
    yield from fingerprinted(source.pairs, source.report)
    if not source.report.kept:
        raise DataError(f"{source.report.name}: {_account(source.report)}")


def local_path(name: str) -> Path | None:
    """Return the file or folder that a data name reads; None for the world and the hub."""
    path = _path_in(_without_split(name)[0])
    return path if path is not None and _exists(path) else None


def _path_in(name: str) -> Path | None:
    """Return the path in a name, existing or not."""
    if name.startswith("hub:") or is_simulated(name):
        return None
    source, _, location = name.partition("@")
    if source in NAMED_SOURCES:
        return Path(location) if location else None
    return Path(name)


def _without_split(name: str) -> tuple[str, str | None]:
    """Separate a name from its #SPLIT, if any."""
    found, path = _WITH_SPLIT.fullmatch(name), _path_in(name)
    if found is None or (path is not None and _exists(path)):
        return name, None
    if not found["split"]:
        raise ConfigError(f"{name}: the split's name is missing after #. Write NAME#SPLIT, such as hh-harmless#test.")
    return found["name"], found["split"]


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # for example, the name is too long
        return False


def _source(name: str, split: str, options: ReadOptions) -> PairSource:
    if is_simulated(name):
        return _load_simulated(name, split)
    if name.startswith("hub:"):
        return _load_hub(name, split, options)
    if name.partition("@")[0] in NAMED_SOURCES:
        return _load_named(name, split, options)
    path = Path(name)
    try:
        is_folder, exists = path.is_dir(), path.exists() or path.is_symlink()
    except OSError as error:
        raise UnreadableError(f"{name}: can't be opened ({error.strerror}). Check the path.") from error
    if is_folder:
        return _load_folder(name, split, options)
    if exists:
        return _load_file(name, options)
    if has_known_suffix(name):
        raise UnreadableError(f"{name}: no such file. {_advice(name)}")
    if _HUB_NAME.fullmatch(name):
        return _load_hub(name, split, options)
    raise UnknownDataError(f"Unknown data set {name!r}. {_advice(name)}")


def _load_file(name: str, options: ReadOptions) -> PairSource:
    return _of_files([Path(name)], SourceReport(name=name, kind="file"), options)


def _load_folder(name: str, split: str, options: ReadOptions) -> PairSource:
    report = SourceReport(name=name, kind="folder", split=split)
    return _of_files(_split_files(Path(name), split), report, options)


def _of_files(
    paths: Sequence[Path], report: SourceReport, options: ReadOptions, mapping: RowMapping | None = None
) -> PairSource:
    def pairs() -> Iterator[PreferencePair]:
        for path in paths:
            rows = read_rows(path)
            yield from pairs_of(rows, report, source=str(path), on_bad_row=options.on_bad_row, mapping=mapping)

    report.read_from += map(str, paths)
    return PairSource(pairs(), report, paths)


def _split_files(folder: Path, split: str) -> list[Path]:
    """Find a split's files in a folder: `SPLIT.jsonl`, or parts such as `SPLIT-00000-of-00002.parquet`."""
    try:
        files = sorted(path for path in folder.iterdir() if has_known_suffix(path))
    except OSError as error:
        raise UnreadableError(f"{folder}: can't be listed ({error.strerror}). Check its permissions.") from error
    found = files_named(files, re.escape(split))
    if not found:
        held = ", ".join(path.name for path in files[:8]) or "no data file"
        raise UnreadableError(
            f"{folder}: the folder has no file of the split {split!r}; it holds {held}. Add a file named "
            f"{split}.jsonl (or {', '.join(SUFFIXES[1:])}), name a split that is there as {folder}#SPLIT, or give the "
            "path of one file, which is read whole."
        )
    return found


def _load_hub(name: str, split: str, options: ReadOptions) -> PairSource:
    match = _HUB_NAME.fullmatch(name.removeprefix("hub:"))
    if match is None:
        raise UnknownDataError(
            f"{name!r} is no name of a hub data set. Write hub:OWNER/NAME or hub:OWNER/NAME:CONFIG, and #SPLIT behind "
            "it for another split than the command's own."
        )
    arguments = {"name": match["config"]} if match["config"] else {}
    call = hub_call(match["path"], arguments, split=split)
    report = SourceReport(name=name, kind="hub", split=split, read_from=[call])
    remedy = (
        f"Check the name and the network. If the set has no split {split!r}, name one that it has: {name}#SPLIT. Or "
        "download the data elsewhere and give the file's path."
    )
    if not name.startswith("hub:"):
        remedy = f"There is no file or folder {name} either. {remedy}"
    rows = hub_rows(match["path"], arguments, split=split, remedy=remedy)
    return PairSource(pairs_of(rows, report, source=f"{name}/{split}", on_bad_row=options.on_bad_row), report)


def _load_named(name: str, split: str, options: ReadOptions) -> PairSource:
    source_name, _, location = name.partition("@")
    source = NAMED_SOURCES[source_name]
    _require_split(name, split)
    own_split = "test" if split == "test" and source.has_test else "train"
    report = SourceReport(name=name, kind="named", split=split, licence=source.licence, notes=list(source.notes))
    if location:
        found = _of_files(_copied_files(name, Path(location), own_split), report, options, source.mapping)
    else:
        found = PairSource(_download(source, own_split, report, options), report)
    if own_split == "train":
        drawn = _draw(list(found.pairs), split, report, has_test=source.has_test, seed=options.split_seed)
        found = replace(found, pairs=iter(drawn))
    return found


def _download(source: NamedSource, split: str, report: SourceReport, options: ReadOptions) -> Iterator[PreferencePair]:
    report.read_from.append(hub_call(source.path, source.arguments, split=split))
    remedy = (
        f"{source.access}Check the network, or download the files of {source.homepage} elsewhere and name them as "
        f"{source.name}@PATH."
    )
    return pairs_of(
        hub_rows(source.path, source.arguments, split=split, remedy=remedy),
        report,
        source=f"{source.name}/{split}",
        on_bad_row=options.on_bad_row,
        mapping=source.mapping,
    )


def _copied_files(name: str, location: Path, split: str) -> list[Path]:
    """Find the files of a named source's split in a copy on disk: a folder, or just the training file."""
    if location.is_dir():
        return _split_files(location, split)
    if split == "test":
        raise ConfigError(f"{name} is one file, which counts as training split. Give a folder with a test file too.")
    return [location]


def _draw(
    pairs: list[PreferencePair], split: str, report: SourceReport, *, has_test: bool, seed: int
) -> list[PreferencePair]:
    """Draw one split from a source's training data; record the sizes of the others in the report."""
    rest, test = (pairs, []) if has_test else split_by_group(pairs, TEST_SHARE, seed)
    train, validation = split_by_group(rest, VALIDATION_SHARE, seed)
    parts = {"train": train, "validation": validation, "test": test}
    chosen = parts.pop(split)
    report.kept = len(chosen)
    report.dropped |= {f"in_{name}_split": len(part) for name, part in parts.items() if part}
    drawn = f"{VALIDATION_SHARE:.0%} of the training side as validation split"
    report.notes.append(
        f"drawn by prompt with seed {seed}: {drawn if has_test else f'{TEST_SHARE:.0%} as test split, {drawn}'}"
    )
    return chosen


def _load_simulated(name: str, split: str) -> PairSource:
    found = _SIMULATED_NAME.fullmatch(name)
    if found is None or found["set"] not in simulated_source(found["prefix"]).names:
        raise UnknownDataError(f"Unknown data set {name!r}. {_advice(name)}")
    _require_split(name, split)
    pairs = list(_drawn(found["prefix"], found["set"], split, int(found["size"]) if found["size"] else None))
    report = SourceReport(
        name=name, kind="world", split=split, read_from=["hafrm.world"], rows=len(pairs), kept=len(pairs)
    )
    return PairSource(iter(pairs), report)


@functools.lru_cache(maxsize=32)  # drawing takes seconds, and comparing methods reads each set repeatedly
def _drawn(prefix: str, name: str, split: str, size: int | None) -> tuple[PreferencePair, ...]:
    return tuple(simulated_source(prefix).pairs(name, split, size))


def _require_split(name: str, split: str) -> None:
    if split not in SPLITS:
        raise ConfigError(f"{name} has no split {split!r}. Use {', '.join(SPLITS[:-1])} or {SPLITS[-1]}.")


def _advice(name: str) -> str:
    """Suggest similar data sets and nearby files, and how to list them."""
    folder = Path(name).parent
    near_by: list[str] = []
    with contextlib.suppress(OSError):
        near_by = [str(path) for path in folder.iterdir() if has_known_suffix(path)]
    nearest = difflib.get_close_matches(name.lower(), [*data_names(), *near_by], n=3, cutoff=0.5)
    did_you_mean = f"Did you mean {' or '.join(nearest)}? " if nearest else ""
    return (
        f"{did_you_mean}`hafrm data list` lists the known names; the path of a file ({', '.join(SUFFIXES)}), of a "
        "folder with a file for each split, or a hub data set as hub:OWNER/NAME will do as well, "
        "with #SPLIT behind it for another split than the command's own."
    )


def _account(report: SourceReport) -> str:
    """Explain why a source has no pairs."""
    if not report.rows:
        return "holds no row. Give data with at least one pair."
    counts = ", ".join(f"{count} {reason}" for reason, count in {**report.skipped, **report.dropped}.items())
    remedy = f"The first bad row: {report.first_fault}" if report.first_fault else "Use another split, or other data."
    return f"none of its {report.rows} rows is left ({counts}). {remedy}"
