"""From data names to pairs: files, folders, named sets, the simulated world, the hub, and rows in memory.

A data name is the first of these that fits: `world/NAME`; `hub:OWNER/NAME[:CONFIG][@REVISION]`; a name of the registry,
or NAME@PATH for a copy of that set's files on disk; a path of a file or folder; a pattern of paths such as
`parts/*.jsonl`; a plain `OWNER/NAME[:CONFIG][@REVISION]`, which is looked up on the hub. A folder was written by
`save_to_disk` of the `datasets` library, has files for each split, or has any files of rows, which are read in the
order of their names. Splits are drawn only from named sets; files are read whole, and folders and hub sets have their
own splits.

Every name except a file's may end in #SPLIT, which overrides the command's split:
`hub:HuggingFaceH4/ultrafeedback_binarized#test_prefs`, `folder#test`, `hh-harmless#test`. Every name may end in a slice
and a share (`hafrm.data.names`), which select rows, or pairs of named sets and the world.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import glob
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hafrm.data.hub import hub_call, hub_rows
from hafrm.data.mappings import read_pairs
from hafrm.data.memory import MemoryData, data_names_of
from hafrm.data.names import Selection, exists, parsed
from hafrm.data.options import ReadOptions
from hafrm.data.registry import NAMED_SOURCES, TEST_SHARE, VALIDATION_SHARE, NamedSource
from hafrm.data.reports import Drop, Outcome, PairSet, SourceReport, completed
from hafrm.data.rowfiles import FORMATS, files_named, has_known_suffix, read_rows, saved_files
from hafrm.data.simulated import is_simulated, simulated_names, simulated_source
from hafrm.data.splits import split_by_group
from hafrm.errors import ConfigError, DataError, UnknownDataError, UnreadableError
from hafrm.pairs import PreferencePair
from hafrm.rows import Row

SPLITS = ("train", "validation", "test")
"""Splits of named sets and of the world."""

_SIMULATED_NAME = re.compile(r"(?P<prefix>\w+)/(?P<set>[\w-]+)")
_HUB_NAME = re.compile(r"(?P<path>[A-Za-z0-9][\w.-]*/[\w.-]+)(?::(?P<config>[\w.-]+))?(?:@(?P<revision>[\w./-]+))?")
_SPLIT_NAMES = re.compile(r"(train|training|valid|validation|val|dev|eval|test)([-_.].*)?")
"""Names of files of one split, without their endings."""

_DEFAULTS = ReadOptions()


@dataclass
class PairSource:
    """A source of pairs, which can be read once."""

    pairs: Iterator[PreferencePair]
    report: SourceReport
    """Report on its rows, complete after the last pair."""
    reads: Sequence[Path] = ()
    """The files that are read; empty for sources without local files."""
    key: Sequence[str] | None = None
    """What the pairs depend on besides the content of these files; None if only reading the rows can tell."""
    held: int = 0
    """Bytes of data in memory that `key` identifies."""
    endless: bool = False
    """Whether the number of rows is unknown, as for a generator."""
    raw: Callable[[], Iterator[Row]] | None = None
    """Returns the selected raw rows; None for named sets and the world, which select from pairs."""

    def rows(self) -> Iterator[Row]:
        """Yield the source's raw rows; for named sets and the world, a row with the fields of each pair."""
        if self.raw is not None:
            return self.raw()
        return (Row(pair.as_row(), self.report.name, number) for number, pair in enumerate(self.pairs, 1))

    @property
    def bytes(self) -> int:
        """Size of the source: bytes of the files and of the data in memory."""
        return self.held + sum(path.stat().st_size for path in self.reads)


def data_names() -> list[str]:
    """Return the names of data sets that need no path: those of the registry and the simulated ones."""
    return [*NAMED_SOURCES, *simulated_names()]


def load_pairs(data: Any, *, split: str = "train", options: ReadOptions = _DEFAULTS) -> PairSet:
    """Load preference pairs.

    Args:
        data: One or more data names (see the module's docstring), rows in memory (see `data_names_of`), or a list of
            both. Several are concatenated.
        split: "train", "validation" or "test"; for a folder or a hub set any of its splits. Files are read whole, and
            NAME#SPLIT overrides this argument.
        options: How to read rows and treat bad ones, and the seed of drawn splits.

    Returns:
        The pairs, and one report per name.

    Raises:
        UnknownDataError: the name is unknown; the message suggests similar ones.
        UnreadableError: a file, folder or hub data set can't be read.
        ConfigError: no name is given, a named split does not exist, or a folder contains a split's file twice.
        BadRowError: a row breaks the data contract, and bad rows are not skipped.
        DataError: a source has no usable row.

    Example:
        >>> load_pairs([{"prompt": "Two plus two?", "chosen": "Four.", "rejected": "Five."}]).pairs[0].chosen[0].content
        'Four.'
    """
    result = PairSet([], [])
    for source in open_sources(data, split=split, options=options):
        result.pairs.extend(source.pairs)
        result.reports.append(source.report)
    return result


def open_sources(data: Any, *, split: str = "train", options: ReadOptions = _DEFAULTS) -> list[PairSource]:
    """Open sources of preference pairs that are read one pair at a time.

    Only named sets whose splits are drawn are read at once, because a draw needs the prompts of all rows. Arguments and
    errors are those of `load_pairs`; errors in rows are raised while the pairs are read.
    """
    names = data_names_of(data)
    if not names:
        raise ConfigError("No data given. Name a data set or a file; `hafrm data list` lists the known names.")
    sources = [_open(name, split, options) for name in names]
    if all(source.report.kind in ("named", "world") for source in sources):
        for option in ("columns", "mapping", "score_margins"):
            if getattr(options, option, None):
                raise ConfigError(f"data_options.{option} has no effect on {', '.join(names)}: leave it out.")
    return sources


def _open(name: str, split: str, options: ReadOptions) -> PairSource:
    found = parsed(name)
    if found.selection and isinstance(name, MemoryData):
        raise ConfigError(f"{name}: names of data in memory can't select rows. Select them before the call.")
    source = _source(found.base, found.split or split, options, found.selection, given=found.split is not None)
    if found.split and not source.report.split:
        raise ConfigError(f"{name}: a file is read whole and has no splits. Leave out #{found.split}.")
    source.report.name = name
    return replace(source, pairs=completed(source.pairs, source.report))


def _source(name: str, split: str, options: ReadOptions, selection: Selection, *, given: bool) -> PairSource:
    """Open a source; `given` means that its name ends in #SPLIT."""
    if isinstance(name, MemoryData):
        return _load_memory(name, split, options)
    if is_simulated(name):
        return _load_simulated(name, split, options, selection)
    if name.startswith("hub:"):
        return _load_hub(name, split, options, selection)
    if name.partition("@")[0] in NAMED_SOURCES:
        return _load_named(name, split, options, selection)
    path = Path(name)
    try:
        is_folder, found = path.is_dir(), path.exists() or path.is_symlink()
    except OSError as error:
        raise UnreadableError(f"{name}: can't be opened ({error.strerror}). Check the path.") from error
    if is_folder:
        return _load_folder(name, split, options, selection, given=given)
    if found:
        return _of_files([path], SourceReport(name=name, kind="file"), options, selection)
    if glob.has_magic(name):
        return _load_pattern(name, options, selection)
    if (missing := _absent(name)) is not None:
        raise missing
    return _load_hub(name, split, options, selection)


def require_source(name: str) -> None:
    """Raise unless a data name exists locally or could be on the hub, without reading anything.

    Raises:
        UnreadableError: the file does not exist.
        UnknownDataError: the name is unknown.
    """
    if isinstance(name, MemoryData):
        return
    found = parsed(name)
    if is_simulated(found.base) and found.base not in simulated_names():
        raise UnknownDataError(f"Unknown data set {name!r}. {_advice(name)}")
    elsewhere = found.path is None or name.partition("@")[0] in NAMED_SOURCES or glob.has_magic(found.base)
    if not elsewhere and not exists(Path(found.base)) and (missing := _absent(found.base)):
        raise missing


def _absent(name: str) -> DataError | None:
    """Return the error for a path that does not exist; None if it could be the name of a hub data set."""
    if has_known_suffix(name):
        return UnreadableError(f"{name}: no such file. {_advice(name)}")
    if _HUB_NAME.fullmatch(name) and not Path(name).parent.is_dir():
        return None
    return UnknownDataError(f"Unknown data set {name!r}. {_advice(name)}")


def _load_memory(name: MemoryData, split: str, options: ReadOptions) -> PairSource:
    held = name.of_split(split)
    report = SourceReport(name=name, kind="memory", read_from=[held.description])
    key = None if held.fingerprint is None else ["fingerprint", held.fingerprint]
    size = int(getattr(getattr(held.held, "data", None), "nbytes", 0)) if key else 0
    pairs = read_pairs(held.rows(), report, options)
    return PairSource(pairs, report, key=key, held=size, endless=held.size is None, raw=held.rows)


def _load_pattern(name: str, options: ReadOptions, selection: Selection) -> PairSource:
    matches = sorted(glob.glob(name, recursive=True))  # noqa: PTH207 - pathlib takes no absolute patterns
    paths = [Path(match) for match in matches if has_known_suffix(match)]
    if not paths:
        raise UnreadableError(f"{name}: no file of rows ({FORMATS}) matches the pattern. Check the pattern.")
    return _of_files(paths, SourceReport(name=name, kind="file"), options, selection)


def _load_folder(name: str, split: str, options: ReadOptions, selection: Selection, *, given: bool) -> PairSource:
    folder = Path(name)
    report = SourceReport(name=name, kind="folder", split=split)
    files = saved_files(folder, split)
    if files is None:
        files = _data_files(folder)
        if given or not files or any(_SPLIT_NAMES.fullmatch(path.name.split(".")[0]) for path in files):
            files = _split_files(folder, split)
        else:
            report.split, kinds = "", {path.name.partition(".")[2] for path in files}
            if len(kinds) > 1:  # parts of one data set have one format
                raise UnreadableError(
                    f"{folder}: the folder has files of several formats ({', '.join(sorted(kinds))}), so it is unclear "
                    f"which are the data. Give a pattern, such as '{folder}/*.{min(kinds)}', or the path of one file."
                )
    return _of_files(files, report, options, selection)


def _of_files(paths: Sequence[Path], report: SourceReport, options: ReadOptions, selection: Selection) -> PairSource:
    report.read_from += map(str, paths)
    source = _of_rows(lambda: _rows_of(paths), report, options, selection)
    return replace(source, reads=paths, key=["", str(selection)])


def _rows_of(paths: Sequence[Path]) -> Iterator[Row]:
    for path in paths:
        yield from read_rows(path)


def _of_rows(
    rows: Callable[[], Iterable[Row]], report: SourceReport, options: ReadOptions, selection: Selection
) -> PairSource:
    """Return a source of the selected rows."""

    def selected() -> Iterator[Row]:  # rows are counted, if at all, when the first is read
        yield from selection.of(rows(), lambda: sum(1 for _ in rows()), options.split_seed)

    return PairSource(read_pairs(selected(), report, options), report, raw=selected)


def _data_files(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if has_known_suffix(path))
    except OSError as error:
        raise UnreadableError(f"{folder}: can't be listed ({error.strerror}). Check its permissions.") from error


def _split_files(folder: Path, split: str) -> list[Path]:
    """Find a split's files in a folder: `SPLIT.jsonl`, or parts such as `SPLIT-00000-of-00002.parquet`."""
    files = _data_files(folder)
    found = files_named(files, re.escape(split))
    if not found:
        names = ", ".join(path.name for path in files[:8]) or "no data file"
        raise UnreadableError(
            f"{folder}: the folder has no file of the split {split!r}; it contains {names}. Add a file named "
            f"{split}.jsonl (or {FORMATS}), name an existing split as {folder}#SPLIT, or give the path of one file, "
            "which is read whole."
        )
    return found


def _load_hub(name: str, split: str, options: ReadOptions, selection: Selection) -> PairSource:
    match = _HUB_NAME.fullmatch(name.removeprefix("hub:"))
    if match is None:
        raise UnknownDataError(
            f"{name!r} is not the name of a hub data set. Write hub:OWNER/NAME, followed by :CONFIG, @REVISION and "
            "#SPLIT if needed."
        )
    arguments = {"name": match["config"], "revision": match["revision"]}
    arguments = {argument: value for argument, value in arguments.items() if value}
    call = hub_call(match["path"], arguments, split=split)
    report = SourceReport(name=name, kind="hub", split=split, read_from=[call])
    remedy = (
        f"Check the name and the network. If the set has no split {split!r}, name another one as {name}#SPLIT. Or "
        "download the data elsewhere and give the file's path."
    )
    if not name.startswith("hub:"):
        remedy = f"There is also no file or folder {name}. {remedy}"

    def rows() -> Iterator[Row]:
        return hub_rows(path, arguments, split=split, source=f"{name}/{split}", remedy=remedy)

    path = match["path"]
    return _of_rows(rows, report, options, selection)


def _load_named(name: str, split: str, options: ReadOptions, selection: Selection) -> PairSource:
    source_name, _, location = name.partition("@")
    source = NAMED_SOURCES[source_name]
    _require_split(name, split)
    own_split = "test" if split == "test" and source.has_test else "train"
    report = SourceReport(name=name, kind="named", split=split, licence=source.licence, notes=list(source.notes))
    files: list[Path] = []
    if location:
        files = _copied_files(name, Path(location), _file_split(source, own_split))
        report.read_from += map(str, files)
        rows = _rows_of(files)
    else:
        rows = _download(source, own_split, report)
    pairs = read_pairs(rows, report, options, named=_mapping(source, report))
    if own_split == "train":
        pairs = iter(_draw(list(pairs), split, report, has_test=source.has_test, seed=options.split_seed))
    key = [source.name, str(selection)] if location else None
    return PairSource(_selected_pairs(pairs, report, selection, options), report, files, key)


def _selected_pairs(
    pairs: Iterable[PreferencePair], report: SourceReport, selection: Selection, options: ReadOptions
) -> Iterator[PreferencePair]:
    """Return the selected pairs of a split, and count the others as dropped."""
    if not selection:
        return iter(pairs)
    found = list(pairs)
    kept = list(selection.of(found, lambda: len(found), options.split_seed))
    report.kept = len(kept)
    if len(kept) < len(found):
        report.dropped["not_selected"] = len(found) - len(kept)
    return iter(kept)


def _download(source: NamedSource, split: str, report: SourceReport) -> Iterator[Row]:
    on_hub = _file_split(source, split)
    report.read_from.append(hub_call(source.path, source.arguments, split=on_hub))
    remedy = (
        f"{source.access}Check the network, or download the files of {source.homepage} elsewhere and name them as "
        f"{source.name}@PATH."
    )
    place = f"{source.name}/{split}"
    return hub_rows(source.path, source.arguments, split=on_hub, source=place, remedy=remedy)


def _file_split(source: NamedSource, split: str) -> str:
    """Return the name of the source's files of its split "train" or "test"."""
    return "train" if source.split_column else source.splits.get(split, split)


def _mapping(source: NamedSource, report: SourceReport) -> Callable[[Row], Outcome | Iterable[Outcome]]:
    """Return a source's mapping, which drops the rows of other splits if a column names them."""
    if not source.split_column:
        return source.mapping
    own = "test" if report.split == "test" else "train"
    wanted = source.splits.get(own, own)

    def of_split(row: Row) -> Outcome | Iterable[Outcome]:
        return source.mapping(row) if row.string(source.split_column) == wanted else Drop("other_split")

    return of_split


def _copied_files(name: str, location: Path, split: str) -> list[Path]:
    """Find the files of a named source's split in a copy on disk: a folder, or just the training file."""
    if location.is_dir():
        return _split_files(location, split)
    if split == "test":
        raise ConfigError(f"{name} is one file, which is used for training. Give a folder with a test file too.")
    return [location]


def _draw(
    pairs: list[PreferencePair], split: str, report: SourceReport, *, has_test: bool, seed: int
) -> list[PreferencePair]:
    """Draw one split from a source's training data, and record the sizes of the others in the report."""
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


def _load_simulated(name: str, split: str, options: ReadOptions, selection: Selection) -> PairSource:
    found = _SIMULATED_NAME.fullmatch(name)
    if found is None or found["set"] not in simulated_source(found["prefix"]).names:
        raise UnknownDataError(f"Unknown data set {name!r}. {_advice(name)}")
    _require_split(name, split)
    first = int(selection.stop) if selection.stop.isdecimal() and int(selection.stop) else None
    pairs = list(_drawn(found["prefix"], found["set"], split, first))
    report = SourceReport(
        name=name, kind="world", split=split, read_from=["hafrm.world"], rows=len(pairs), kept=len(pairs)
    )
    return PairSource(_selected_pairs(pairs, report, selection, options), report)


@functools.lru_cache(maxsize=32)  # drawing takes seconds, and comparing methods reads each set repeatedly
def _drawn(prefix: str, name: str, split: str, size: int | None) -> tuple[PreferencePair, ...]:
    return tuple(simulated_source(prefix).pairs(name, split, size))


def _require_split(name: str, split: str) -> None:
    if split not in SPLITS:
        raise ConfigError(f"{name} has no split {split!r}. Use {', '.join(SPLITS[:-1])} or {SPLITS[-1]}.")


def _advice(name: str) -> str:
    """Suggest similar data sets and files, and how to list them."""
    folder = Path(name).parent
    nearby: list[str] = []
    with contextlib.suppress(OSError):
        nearby = [str(path) for path in folder.iterdir() if has_known_suffix(path)]
    nearest = difflib.get_close_matches(name.lower(), [*data_names(), *nearby], n=3, cutoff=0.5)
    did_you_mean = f"Did you mean {' or '.join(nearest)}? " if nearest else ""
    return (
        f"{did_you_mean}`hafrm data list` lists the known names. You can also give the path of a file ({FORMATS}) or "
        "of a folder, or hub:OWNER/NAME; #SPLIT after a name selects another split than the command's default."
    )
