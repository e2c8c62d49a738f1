"""A model folder's list of files: none may change, and none that transformers would read may be added.

The list is part of `hafrm.json`; exports and checkpoints of policies have it in `checksums.json`.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

from hafrm import atomic
from hafrm.errors import DamagedError, first_line

CHECKSUMS_FILE = "checksums.json"
"""Name of the list of files in exports and in checkpoints of policies."""

CARD_FILE = "README.md"
CARD_MARK = "Trained with hafrm"
"""Text in the card of every export, by which `hafrm export` recognises them."""

ADAPTER_FOLDER = "adapter"
"""Subfolder of a run's folder with its adapters."""
ADAPTER_FILE = "adapter_model.safetensors"

WHOLE_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
"""The file of a whole model's weights, and the index of several; the former takes precedence, as in transformers."""

_READ_BY_NAME = frozenset(
    f"""
    {WHOLE_FILE} {INDEX_FILE} config.json generation_config.json adapter_config.json {ADAPTER_FILE}
    value_head.bin tokenizer_config.json special_tokens_map.json added_tokens.json chat_template.json
    processor_config.json preprocessor_config.json video_preprocessor_config.json audio_tokenizer_config.json
    vocab.json vocab.txt merges.txt bpe.codes dict.txt emoji.json byte_maps.json tekken.json entity_vocab.json
    normalizer.json prophetnet.tokenizer target_vocab.json vocab-src.json vocab-tgt.json word_pronunciation.json
    word_shape.json value_head.safetensors
    """.split()
)
"""Files in a model's folder that transformers, PEFT or hafrm read by their names."""
_READ_BY_FORM = re.compile(
    r"tokenizer\..*"  # tokenizer.json, versioned files (tokenizer.4.0.0.json), tokenizer.model.v3
    r"|.*\.(jinja|model|spm|tiktoken)"
    r"|(additional_chat_templates|custom_generate)/.*"
)
MODEL_FILES = re.compile(
    rf"({ADAPTER_FOLDER}/)?({'|'.join(map(re.escape, sorted(_READ_BY_NAME)))}|{CHECKSUMS_FILE})"
    rf"|{_READ_BY_FORM.pattern}|model-\d{{5}}-of-\d{{5}}\.safetensors|\w+\.py"
)
"""Matches the relative paths under which hafrm, transformers and PEFT save files in a model's folder."""

_DIGEST = re.compile("[0-9a-f]{64}")


def checksums(folder: Path, *, but: Iterable[str] = ()) -> dict[str, str]:
    """Compute the SHA-256 of each file in a folder and its subfolders, by relative path; leave out those in `but`."""
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: _file_digest(path) for name, path in files.items() if name not in set(but)}


def list_problem(sha256: object) -> str:
    """Return, as a clause, why a value is not a valid list of checksums; empty if it is one."""
    if not isinstance(sha256, dict):
        return "is not a list of files with their checksums"
    for name, digest in sha256.items():
        path = PurePosixPath(name)
        if not name or path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
            return f"names {name!r}, which is not a path within the folder"
        if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            return f"has {digest!r} for {name}, which is not a SHA-256 of 64 hexadecimal digits"
    return ""


def require_checksums(
    folder: Path, sha256: Mapping[str, str], *, kept_in: str, remedy: str, complete: bool = True
) -> None:
    """Raise unless a folder contains the files that were saved, and no others that would be read. Reads all files.

    Args:
        sha256: Result of `checksums` when it was saved.
        kept_in: The file of the folder that contains them.
        remedy: What to do about a damaged file, as a clause.
        complete: Whether the list covers all files of the model, so that other files that would be read are refused.

    Raises:
        DamagedError: names the file.
    """
    for name, digest in sha256.items():
        path = folder / name
        if not path.is_file():
            raise DamagedError(f"{path} is missing. {remedy}.")
        if (found := _file_digest(path)) != digest:
            raise DamagedError(
                f"{path} has changed since it was saved: its checksum differs. {remedy}; if you changed it on "
                f"purpose, set its checksum in {folder / kept_in} to {found}."
            )
    for name in strangers(folder) if complete else ():
        if name not in sha256:
            raise DamagedError(
                f"{folder / name} would be read by its name, but is not among the saved files ({folder / kept_in}). "
                f"Move it away; if it belongs to the model, add it to that list with its checksum "
                f"{_file_digest(folder / name)}."
            )


def save_checksums(folder: Path) -> None:
    """Write the list of a folder's current files: weights, config and tokenizer."""
    atomic.write_json(folder / CHECKSUMS_FILE, {"sha256": checksums(folder, but=[CHECKSUMS_FILE])})


def require_listed(folder: Path, *, remedy: str) -> None:
    """Raise DamagedError unless a folder matches its `checksums.json`; folders without that file pass."""
    if (folder / CHECKSUMS_FILE).is_file():
        require_checksums(folder, listed(folder, remedy=remedy), kept_in=CHECKSUMS_FILE, remedy=remedy)


def listed(folder: Path, *, remedy: str = "Delete it") -> dict[str, str]:
    """Read the list in a folder's `checksums.json`; return an empty one if there is none.

    Raises:
        DamagedError: the file is not such a list.
    """
    path = folder / CHECKSUMS_FILE
    try:
        sha256 = json.loads(path.read_text(encoding="utf-8"))["sha256"]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedError(f"{path} is damaged ({first_line(error)}). {remedy}.") from error
    if problem := list_problem(sha256):
        raise DamagedError(f"{path}: `sha256` {problem}. {remedy}.")
    return dict(sha256)


def strangers(folder: Path) -> Iterator[str]:
    """Yield the relative paths of all files that would be read by their names."""
    for pattern in ("*", "additional_chat_templates/*", "custom_generate/*"):
        for path in sorted(folder.glob(pattern)):
            name = path.relative_to(folder).as_posix()
            if (name in _READ_BY_NAME or _READ_BY_FORM.fullmatch(name)) and path.is_file():
                yield name


def _file_digest(path: Path) -> str:
    """Return a file's SHA-256, cached while the file is unchanged, because commands check a folder several times."""
    stat = path.stat()
    return _digest_of_state(path.resolve(), stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


@functools.lru_cache(maxsize=4096)
def _digest_of_state(path: Path, *state: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
