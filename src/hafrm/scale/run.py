"""The driver of a scoring job: plans it, lets Ray Data hand its parts to actors, and counts what they did."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from hafrm import atomic
from hafrm.errors import ConfigError, HafrmError, MissingExtraError, first_line
from hafrm.evaluation.bulk import ScoreCounts
from hafrm.models.identity import model_identity
from hafrm.scale.actors import PartScorer
from hafrm.scale.config import BulkConfig
from hafrm.scale.output import JobFolder, intact
from hafrm.scale.plan import Input, Part, find_input, plan_parts

__all__ = ["score_folder"]

_FORMAT = 1
_SECONDS_TO_CONNECT = 5
_MOST_BLOCKS = 4096  # entries of Ray's object store; where there are more parts, a block holds several


def score_folder(config: BulkConfig) -> ScoreCounts:
    """Score a file or a folder on Ray, or go on with what an earlier call left.

    Returns:
        The counts of the whole job, with what earlier calls did of it.

    Raises:
        MissingExtraError: Ray is not installed.
        ConfigError: there is nothing to score, or the output's folder is of another job, or in use.
        ModelError: no model loads, or it fails at all rows of a part, or actors die of it.
        UnreadableError: a file can't be read.
        DataError: a file of the job's own is damaged.
        HafrmError: Ray gave the job up.
    """
    if importlib.util.find_spec("ray") is None:
        raise MissingExtraError("--engine ray needs Ray: pip install 'hafrm[ray]'")
    found = find_input(Path(config.data))
    if found.left_out:
        _say(f"left out, as neither JSON lines nor Parquet: {', '.join(found.left_out)}")
    out = JobFolder(config.folder)
    with _alone(config, out):
        parts = _begin(config, found, out)
        out.clear_temporary()
        waiting = [part for part in parts if not out.is_done(part)]
        if 0 < len(waiting) < len(parts):
            _say(f"goes on after {len(parts) - len(waiting)} of {len(parts)} parts")
        start = time.perf_counter()
        if waiting:
            _run(config, found, waiting)
        counts, now = out.counts(parts), out.counts(waiting)
        _write_result(out, counts, parts=len(parts), now=now, seconds=time.perf_counter() - start)
    return counts


@contextmanager
def _alone(config: BulkConfig, out: JobFolder) -> Iterator[None]:
    """Hold the output's folder, so that no second driver writes there.

    Raises:
        ConfigError: another one does, or the folder holds what is no job, or lies in the input.
    """
    data = Path(config.data)
    if data.is_dir() and out.path.resolve().is_relative_to(data.resolve()):
        raise ConfigError(f"--out {out.path} lies in the input's folder, of which it would become a part.")
    foreign = out.path.is_dir() and not out.job.exists() and any(path.name[0] != "." for path in out.path.iterdir())
    if foreign:
        raise ConfigError(f"{out.path} holds something that is no scoring job's. Name a new folder with --out.")
    with atomic.alone(out.path):
        yield


def _begin(config: BulkConfig, found: Input, out: JobFolder) -> list[Part]:
    """The job's parts: as they were planned where it began before, which must have been the same job.

    Raises:
        ConfigError: it was another one.
        DataError: what it was can't be read.
    """
    depends_on = _depends_on(config, found)
    if out.job.exists():
        with intact(out.job, "Name a new folder with --out: nobody knows what this one is of."):
            before = json.loads(out.job.read_bytes())
            changed = [name for name, value in depends_on.items() if before["depends_on"].get(name) != value]
            if changed or before["format"] != _FORMAT:
                raise ConfigError(
                    f"{out.path} holds a job that is not this one: {', '.join(changed) or 'its format'} changed. Their "
                    "rewards would not agree. Name a new folder with --out, or delete that one."
                )
            return [Part(**part) for part in before["parts"]]
    parts = plan_parts(found, config.part_size)
    described = {"format": _FORMAT, "depends_on": depends_on, "parts": [asdict(part) for part in parts]}
    atomic.write_json(out.job, described)
    return parts


def _depends_on(config: BulkConfig, found: Input) -> dict[str, Any]:
    """What the output depends on, as plain values by what a message calls them."""
    stats = {name: (found.folder / name).stat() for name in found.files}
    return {
        **model_identity(config.model, config, config.score),
        "rows_per_part": config.part_size,
        "the input": [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()],
    }


def _run(config: BulkConfig, found: Input, parts: Sequence[Part]) -> None:
    """Let actors score parts."""
    with _ray(config) as ray:
        from ray.data import ActorPoolStrategy

        items = [{"part": json.dumps(asdict(part))} for part in parts]
        blocks = ray.data.from_items(items, override_num_blocks=min(len(items), _MOST_BLOCKS))
        done = blocks.map(
            PartScorer,
            fn_constructor_args=(config.for_actors(), found.folder.resolve()),
            compute=ActorPoolStrategy(size=min(_actors(config, ray.cluster_resources()), len(parts))),
            num_cpus=config.cpus,
            num_gpus=config.gpus,
        )
        try:
            for number, _ in enumerate(done.iter_rows(), start=1):
                _show(number, len(parts))
        except Exception as error:
            raise _unwrapped(error) from error


@contextmanager
def _ray(config: BulkConfig) -> Iterator[Any]:
    """Ray, connected and quiet: a caller's own connection is used and left as it is."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when Ray starts: nothing is sent anywhere
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = -1  # a part may take long
    context.raise_original_map_exception = True  # as `_unwrapped` looks for it
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what fails is raised
    connected = ray.is_initialized()
    if not connected:
        address = config.ray_address or os.environ.get("RAY_ADDRESS") or "local"
        _require_listener(address)
        try:
            ray.init(address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise _unreachable(address, error) from error
    try:
        yield ray
    finally:
        if not connected:
            ray.shutdown()


def _require_listener(address: str) -> None:
    """Refuse a HOST:PORT at which nothing listens: Ray itself would try for minutes.

    Raises:
        ConfigError: no connection is taken there.
    """
    try:
        parts = urlsplit(f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError:  # Ray knows what is wrong with it
        return
    if not host or not port:  # `local`, `auto`, or a client's ray://HOST:PORT
        return
    try:
        socket.create_connection((host, port), _SECONDS_TO_CONNECT).close()
    except OSError as error:
        raise _unreachable(address, error) from error


def _unreachable(address: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"Ray at {address} can't be reached: {first_line(error)}. See that a cluster runs there (--ray_address, or "
        "RAY_ADDRESS)."
    )


def _actors(config: BulkConfig, resources: Mapping[str, float]) -> int:
    """How many actors to start.

    Raises:
        ConfigError: Ray has no room for one.
    """
    room = [
        int(resources.get(kind, 0) / each) for kind, each in (("CPU", config.cpus), ("GPU", config.gpus)) if each > 0
    ]
    most = min(room, default=1)
    wanted = most if config.num_actors is None else config.num_actors
    if not 0 < wanted <= most:
        raise ConfigError(
            f"Ray has {resources.get('CPU', 0):g} CPUs and {resources.get('GPU', 0):g} GPUs, room for {most} actors of "
            f"{config.cpus:g} CPUs and {config.gpus:g} GPUs. Ask for fewer with --num_actors, or for less an actor."
        )
    return wanted


def _unwrapped(error: BaseException) -> HafrmError:
    """What an actor raised, out of what Ray made of it; or what befell Ray."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, HafrmError):
            return cause
        cause = getattr(cause, "cause", None) or cause.__cause__
    said = str(error).strip().splitlines() or [type(error).__name__]
    return HafrmError(f"Ray gave the job up: {said[-1]} The same command goes on after the parts that are done.")


def _write_result(out: JobFolder, counts: ScoreCounts, *, parts: int, now: ScoreCounts, seconds: float) -> None:
    rows, these = (found.scored + found.unscored.total() for found in (counts, now))
    atomic.write_json(
        out.result,
        {
            "rows": rows,
            "scored": counts.scored,
            "unscored": dict(counts.unscored),
            "parts": parts,
            "last_run": {"rows": these, "seconds": seconds},
        },
    )


def _show(done: int, parts: int) -> None:
    """Progress on a terminal."""
    if sys.stderr.isatty():
        print(f"\r{done} of {parts} parts", end="\n" if done == parts else "", file=sys.stderr)  # noqa: T201


def _say(text: str) -> None:
    print(f"hafrm score: {text}", file=sys.stderr)  # noqa: T201
