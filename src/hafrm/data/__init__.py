"""Preference data: files, published sets, the simulated world and the hub, to pairs and to token ids.

`load_pairs` reads and accounts for every row; `encode_pairs` makes token ids; `pair_statistics` and `check_pairs` say
what a set holds and what is wrong with it.
"""

from hafrm.data.checks import Finding, check_pairs, shared_prompts
from hafrm.data.encode import EncodedPairs, encode_pairs
from hafrm.data.loading import SPLITS, data_names, load_pairs, local_path
from hafrm.data.options import DataOptions, OnBadRow, ReadOptions
from hafrm.data.prompts import PromptRow, read_prompts
from hafrm.data.registry import NAMED_SOURCES, NamedSource
from hafrm.data.reports import PairSet, SourceReport, fingerprint
from hafrm.data.rows import RawRow, read_rows
from hafrm.data.splits import split_by_group
from hafrm.data.statistics import PairStatistics, length_accuracy, pair_statistics

__all__ = [
    "NAMED_SOURCES",
    "SPLITS",
    "DataOptions",
    "EncodedPairs",
    "Finding",
    "NamedSource",
    "OnBadRow",
    "PairSet",
    "PairStatistics",
    "PromptRow",
    "RawRow",
    "ReadOptions",
    "SourceReport",
    "check_pairs",
    "data_names",
    "encode_pairs",
    "fingerprint",
    "length_accuracy",
    "load_pairs",
    "local_path",
    "pair_statistics",
    "read_prompts",
    "read_rows",
    "shared_prompts",
    "split_by_group",
]
