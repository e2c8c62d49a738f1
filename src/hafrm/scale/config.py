"""The options of `hafrm score` with its engines. Knows no Ray, so that `--help` needs none."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from hafrm.errors import ConfigError
from hafrm.evaluation.bulk import ScoreConfig
from hafrm.models.remote import is_server

__all__ = ["BulkConfig"]

_OF_RAY = ("num_actors", "cpus_per_actor", "gpus_per_actor", "rows_per_part", "ray_address")


@dataclass(frozen=True, kw_only=True)
class BulkConfig(ScoreConfig):
    """Give every row of a file, or of a folder of files, its reward."""

    model: str
    """A run, a stock reward model, a causal model with its reference, or the address of a reward server."""

    data: str
    """The file of rows: JSON lines (also .gz), JSON or Parquet; each row a prompt with a response, or a pair. With
    `ray` also a folder of such files, all JSON lines or all Parquet."""

    out: str | None = None
    """Where the JSON lines go; by default standard output. With `ray` a folder: `scored/` and `errors/` in it."""

    engine: Literal["local", "ray"] = "local"
    """`local`: a file, in this process. `ray`: a file or a folder of JSON lines or Parquet, by Ray actors, to a folder;
    the same command goes on with a job that was killed. Rows that can't be scored then go to `errors/` with their
    reason, whatever `data_options.on_bad_row` says."""

    num_actors: int | None = None
    """With `ray`: how many actors score, each with the model. By default as many as the CPUs or GPUs allow."""

    cpus_per_actor: float | None = None
    """With `ray`: CPUs of an actor, which computes on as many threads; by default 1."""

    gpus_per_actor: float | None = None
    """With `ray`: GPUs of an actor; by default 0, and the model runs on a CPU. 0.5 lets two actors share one."""

    rows_per_part: int | None = None
    """With `ray`: rows of an output file, which is what a kill can cost an actor; by default 4096."""

    ray_address: str | None = None
    """With `ray`: a cluster's address, or `auto`. By default $RAY_ADDRESS, or else a Ray of this machine's own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.engine not in ("local", "ray"):
            raise ConfigError(f"engine must be `local` or `ray`, got {self.engine!r}")
        given = [name for name in _OF_RAY if getattr(self, name) is not None]
        if self.engine == "local":
            if given:
                raise ConfigError(f"--{' and --'.join(given)} need --engine ray: the local engine has no use for them.")
            if self.out is not None and Path(self.out).is_dir():  # found at the end, that would cost all rewards
                raise ConfigError(f"--out {self.out} is a folder: the local engine writes a file. Name one.")
            return
        if self.out is None:
            raise ConfigError("--engine ray writes a folder: name it with --out.")
        for name, least in (("num_actors", 1), ("rows_per_part", 1), ("cpus_per_actor", 0), ("gpus_per_actor", 0)):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= least):
                raise ConfigError(f"{name} must be at least {least}, got {value}")

    @property
    def cpus(self) -> float:
        """CPUs of an actor."""
        return 1.0 if self.cpus_per_actor is None else self.cpus_per_actor

    @property
    def gpus(self) -> float:
        """GPUs of an actor."""
        return self.gpus_per_actor or 0.0

    @property
    def part_size(self) -> int:
        """Rows of a part."""
        return self.rows_per_part or 4096

    @property
    def folder(self) -> Path:
        """The output's folder, which the Ray engine always has."""
        assert self.out is not None
        return Path(self.out)

    def for_actors(self) -> BulkConfig:
        """These options for an actor: its working folder is another, and it computes where Ray gave it room."""
        score = self.score
        if not is_server(self.model):  # a server computes where it is
            score = replace(score, device=score.device or ("cuda" if self.gpus else "cpu"))
            if score.chat_template not in (None, "default"):  # that word is no file, whatever is called so here
                score = replace(score, chat_template=_absolute(score.chat_template))
        reference = self.reference and _absolute(self.reference)
        model, out = _absolute(self.model), str(self.folder.resolve())
        return replace(self, model=model, reference=reference, out=out, score=score)


def _absolute(name: str) -> str:
    """The whole path of what is a file or folder here; another name as it is."""
    return str(Path(name).resolve()) if Path(name).exists() else name
