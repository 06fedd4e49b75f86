"""Directories that are on disk or in a bucket of Google Cloud Storage, gs://BUCKET/PATH.

A bucket has no directories and renames nothing at once: whoever commits something there does so with its last file.
"""

import importlib.util
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rapo_jax.borders import json_text, parse_json, write_json
from rapo_jax.errors import UserError

SCHEME = "gs://"
ADDRESS = re.compile(r"gs://[a-z0-9][a-z0-9._-]{1,61}[a-z0-9](/[^/\s]+)+/?")

Directory = Any  # pathlib.Path or etils.epath.Path, which has its interface


def is_bucket(text: str | Path) -> bool:
    return str(text).startswith(SCHEME)


def directory_at(text: str | Path, *, said: str) -> Directory:
    """The directory of that name, `said` by the user so. Raises UserError for an address that is none or cannot be used here."""
    if not is_bucket(text):
        if "://" in str(text):
            raise UserError(f"{said} must be a directory or gs://BUCKET/PATH.")
        return Path(text).absolute()
    if not ADDRESS.fullmatch(str(text)):
        raise UserError(f"{said} must be gs://BUCKET/PATH, with a path in the bucket.")
    if not importlib.util.find_spec("gcsfs"):
        raise UserError(f"{said} needs the package gcsfs: pip install 'rapo_jax[gcs]'.")
    from etils import epath
    from fsspec.config import conf

    for name in ("gs", "gcs"):
        conf.setdefault(name, {})["use_listings_cache"] = False  # others write there too
    return epath.Path(str(text).rstrip("/"))


@contextmanager
def reachable(directory: Directory, *, said: str) -> Iterator[None]:
    """A block that looks into a directory for the first time. Raises UserError where a bucket cannot be reached or used."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of gcsfs, google.auth, aiohttp: no common class
        if not is_bucket(str(directory)):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UserError(
            f"{said} cannot be used ({reason}); does the bucket exist, and may this machine's account write into it?"
        ) from error


def read_marker(path: Directory) -> dict[str, Any]:
    return parse_json(path.read_text(), said=str(path))


def write_marker(path: Directory, value: Any) -> None:
    """A small JSON file, written whole or not at all."""
    if is_bucket(str(path)):
        path.write_text(json_text(value))  # an object of a bucket appears when it is whole
    else:
        write_json(path, value)


def remove(directory: Directory) -> None:
    """Removes a directory, as far as that is possible."""
    if is_bucket(str(directory)):
        directory.rmtree(missing_ok=True)
    else:
        shutil.rmtree(directory, ignore_errors=True)
