"""Options for reading and encoding data, shared by training, evaluation and scoring."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hafrm.encoding import Overlong
from hafrm.errors import ConfigError
from hafrm.options import check, option

OnBadRow = Literal["error", "skip"]
"""What to do with rows that break the data contract: `error` stops and names file, row, field and remedy; `skip` leaves
them out and counts them.
"""


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """Options for reading and checking rows."""

    on_bad_row: OnBadRow = "error"
    """What to do with rows that break the data contract: `error` stops with an explanation; `skip` leaves them out and
    counts them.
    """

    split_seed: int = 0
    """Seed for drawing splits (by prompt, from sources without splits of their own), the rows of a share such as
    FILE*0.3, and off-topic pairs.
    """

    columns: str | None = None
    """Columns with other names, as `prompt: question, chosen: response_j, rejected: response_k`: each name that hafrm
    reads, followed by the column's name in the data.
    """

    mapping: str | None = None
    """A Python function, as `module:function` or `file.py:function`, that takes each row as a dict and returns a row
    with `prompt`, `chosen` and `rejected`, a list of such rows, or None to leave the row out.
    """

    def __post_init__(self) -> None:
        check(self, "data_options.")
        _ = self.renamed
        if self.columns and self.mapping:
            raise ConfigError("data_options.columns has no effect with data_options.mapping: rename in the function.")
        if self.mapping is not None and not all(self.mapping.rpartition(":")):
            raise ConfigError(f"data_options.mapping must be module:function or file.py:function, got {self.mapping!r}")

    @property
    def renamed(self) -> dict[str, str]:
        """Return the names in the data by the names that hafrm reads; see `columns`.

        Raises:
            ConfigError: `columns` does not have the form "name: column, ...", or a name occurs twice.
        """
        found: dict[str, str] = {}
        for part in filter(str.strip, (self.columns or "").split(",")):
            name, colon, column = (each.strip() for each in part.partition(":"))
            if not (name and colon and column) or name in found:
                problem = f"{name} twice" if name in found else repr(part.strip())
                raise ConfigError(
                    f"data_options.columns contains {problem}. Write names that hafrm reads with those in the data, as "
                    "`prompt: question, chosen: response_j, rejected: response_k`."
                )
            found[name] = column
        return found


@dataclass(frozen=True, kw_only=True)
class DataOptions(ReadOptions):
    """Options for reading, checking and truncating rows."""

    max_length: int = option(512, least=2)
    """Maximum tokens of a prompt with one response (512 in the paper's Table 5)."""

    overlong: Overlong = "drop"
    """Pairs over `max_length`: `drop` leaves them out, as the authors do; `truncate` cuts off the end of responses."""

    batch_by: Literal["pair", "prompt"] = "pair"
    """How training draws pairs: `pair` one by one, `prompt` all pairs of a prompt together, so that each response is
    computed only once for all of its pairs. This is faster if prompts have several pairs, but batches are less varied.
    """

    off_topic: float = option(0.0, least=0, most=1)
    """Number of off-topic pairs to add, as a share of the training pairs. Each copies prompt and chosen response of a
    random pair; its rejected response is the chosen one of another prompt of the same data. Length and style can't tell
    these two apart, so the reward has to depend on the prompt. Validation pairs get none.
    """

    score_margins: bool = False
    """Use the difference of a pair's scores as its margin (`score_chosen` and `score_rejected`, the scores of a
    ranking, or the strength of a preference) instead of the column `margin`.
    """

    tokens_per_batch: int | None = option(None, least=1)
    """Maximum tokens per forward pass in training: the pairs of a step are split into parts of this size. Smaller
    values save memory. The losses and gradients stay the same, except for kto_pair, aot and aot_unpaired, which compare
    a pair with the others of its part. Default: 1024 on a CPU, where larger values hardly help, and 8192 on other
    devices; less if memory is short.
    """
