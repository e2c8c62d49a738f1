"""How data is read and encoded: the options that training, evaluation and scoring share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hafrm.encoding import Overlong
from hafrm.errors import ConfigError

__all__ = ["DataOptions", "OnBadRow", "ReadOptions"]

OnBadRow = Literal["error", "skip"]
"""What happens to a row that breaks the data contract: `error` stops with file, row, field and remedy."""


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How rows are read and checked."""

    on_bad_row: OnBadRow = "error"
    """Rows that break the data contract: `error` stops and says what is wrong; `skip` leaves them out, counted."""

    split_seed: int = 0
    """Seed of the splits that are drawn here: by prompt, where a source brings none."""

    def __post_init__(self) -> None:
        if self.on_bad_row not in ("error", "skip"):
            raise ConfigError(f"data_options.on_bad_row must be `error` or `skip`, got {self.on_bad_row!r}")


@dataclass(frozen=True, kw_only=True)
class DataOptions(ReadOptions):
    """How rows are read, checked and cut to length."""

    max_length: int = 512
    """The most tokens of a prompt with one response (the paper's Table 5)."""

    overlong: Overlong = "drop"
    """Pairs over `max_length`: `drop` leaves them out, as the authors do; `truncate` cuts responses at their end."""

    tokens_per_batch: int | None = None
    """The most tokens that go through the model at once in training: a step's pairs are cut into parts of so many. It
    changes no loss and no gradient but kto_pair's, whose means are over a part; less saves memory. Default: 1024 on a
    CPU, which gains next to nothing by more, and 8192 on other devices."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tokens_per_batch is not None and self.tokens_per_batch < 1:
            raise ConfigError(f"data_options.tokens_per_batch must be at least 1, got {self.tokens_per_batch}")
        if self.max_length < 2:
            raise ConfigError(f"data_options.max_length must be at least 2, got {self.max_length}")
        if self.overlong not in ("drop", "truncate"):
            raise ConfigError(f"data_options.overlong must be `drop` or `truncate`, got {self.overlong!r}")

    def token_budget(self, device_type: str) -> int:
        """`tokens_per_batch`, or its default on a device of this type."""
        return self.tokens_per_batch or (1024 if device_type == "cpu" else 8192)
