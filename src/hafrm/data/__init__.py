"""Preference data: load pairs from files, named sets, the simulated world and the hub, and encode them.

`load_pairs` reads pairs and reports on every row; `encode_pairs` computes token ids; `pair_statistics` and
`check_pairs` describe a set and find its problems.
"""

from hafrm.data.checks import Finding, check_pairs, shared_prompts
from hafrm.data.encode import encode_pairs, load_tables
from hafrm.data.loading import SPLITS, data_names, load_pairs, require_source
from hafrm.data.memory import MemoryData, data_names_of
from hafrm.data.names import local_path
from hafrm.data.options import DataOptions, OnBadRow, ReadOptions
from hafrm.data.records import PromptRow, Prompts, load_prompts, nothing_left, read_records
from hafrm.data.registry import NAMED_SOURCES, NamedSource
from hafrm.data.reports import PairSet, SourceReport, fingerprint
from hafrm.data.rowfiles import read_rows
from hafrm.data.splits import split_by_group
from hafrm.data.statistics import PairStatistics, length_accuracy, pair_statistics
from hafrm.data.tables import PairTables

__all__ = [
    "NAMED_SOURCES",
    "SPLITS",
    "DataOptions",
    "Finding",
    "MemoryData",
    "NamedSource",
    "OnBadRow",
    "PairSet",
    "PairStatistics",
    "PairTables",
    "PromptRow",
    "Prompts",
    "ReadOptions",
    "SourceReport",
    "check_pairs",
    "data_names",
    "data_names_of",
    "encode_pairs",
    "fingerprint",
    "length_accuracy",
    "load_pairs",
    "load_prompts",
    "load_tables",
    "local_path",
    "nothing_left",
    "pair_statistics",
    "read_records",
    "read_rows",
    "require_source",
    "shared_prompts",
    "split_by_group",
]
