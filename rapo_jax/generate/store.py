"""Samples on disk as they are drawn: one file that a repeated command goes on with, keyed by prompt and sample.

The first line says what the samples belong to; every other line is one sample with a checksum. A line that a kill left
incomplete, or whose checksum is wrong, is forgotten: its sample is drawn again. For process 0 only.
"""

import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from rapo_jax.borders import json_line, parse_json, shaped
from rapo_jax.errors import UserError
from rapo_jax.locks import held, locked
from rapo_jax.space import on_disk

KIND = "samples of rapo_jax"
BEGIN = json_line({"kind": KIND})[:-1].encode()  # of the first line
Key = tuple[int, int]  # (index of the prompt, number of its sample)


@dataclass(frozen=True)
class Sample:
    """The tokens of an answer without the stop token, what ended them, and which sample of which prompt they are.

    logps: the tokens' log-probabilities, on request. text: the answer where it is not just what the tokens say: cut at a stop
    string, or of a server that gives no tokens, whose count of them is `count`.
    """

    prompt: int
    tokens: list[int]
    finish_reason: Literal["stop", "length"]
    sample: int = 0
    logps: list[float] | None = None
    text: str | None = None
    count: int | None = None

    @property
    def key(self) -> Key:
        return self.prompt, self.sample

    @property
    def num_tokens(self) -> int:
        return len(self.tokens) if self.count is None else self.count

    def fields(self) -> dict[str, Any]:
        """As JSON; what is None is left out."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Header:
    """The first line. `identity` has what the samples depend on, by the names that a user knows; `day` is the date, YYYY-MM-DD,
    that a chat template writes for today's."""

    kind: str
    identity: dict[str, Any]
    format: int = 1
    day: str = ""


@dataclass
class SampleStore:
    """An open store: the samples that it held, to which `append` adds. `damaged` counts lines that were forgotten."""

    path: Path
    file: BinaryIO
    known: dict[Key, Sample]
    damaged: int = 0

    def append(self, samples: Iterable[Sample]) -> None:
        """Adds samples; they are on disk when this returns."""
        samples = list(samples)
        if not samples:
            return
        with on_disk(self.path, safe="The answers before are kept."):
            self.file.write(b"".join(line_of(sample) for sample in samples))
            self.file.flush()
            os.fsync(self.file.fileno())
        self.known |= {sample.key: sample for sample in samples}


@contextmanager
def open_store(path: Path, identity: Mapping[str, Any], *, day: str = "") -> Iterator[SampleStore]:
    """The store at `path`, made for `day` if it is absent, kept from other processes while the block runs.

    One without samples is removed. Raises UserError where it belongs to something else, is in use, or is no store.
    """
    file = locked(path)
    if file is None:
        raise UserError(f"{path} is in use by another process; wait for it, or choose another --out.")
    with held(file):
        header = read_header(path, file)
        if header is None:
            header = Header(KIND, dict(identity), day=day)
            with on_disk(path):
                file.truncate(0)
                file.write(f"{json_line(asdict(header))}\n".encode())
                file.flush()
        refuse_other(path, header.identity, identity)
        store = SampleStore(path, file, {})
        read_samples(store)
        try:
            yield store
        finally:
            if not store.known:
                path.unlink(missing_ok=True)


def day_of(path: Path) -> str:
    """The day of the store at `path`; "" where there is none yet. Raises UserError for what is no store."""
    if not path.exists():
        return ""
    with path.open("rb") as file:
        header = read_header(path, file)
    return header.day if header else ""


def read_header(path: Path, file: BinaryIO) -> Header | None:
    """The first line of a store, after which `file` then is; None for one that a kill left empty or incomplete. Raises
    UserError for what is no store."""
    file.seek(0)
    line = file.readline()
    if not line.endswith(b"\n") and (BEGIN.startswith(line) or line.startswith(BEGIN)):
        return None
    remedy = "rapo keeps unfinished answers under this name: choose another --out, or remove this file"
    try:
        header = shaped(parse_json(line, said=str(path)), Header, said=str(path))
    except UserError as error:
        raise UserError(f"{path} does not hold answers of rapo; {remedy}.") from error
    if header.kind != KIND or header.format != 1:
        raise UserError(f"{path} holds {header.kind}, format {header.format}; {remedy}.")
    return header


def refuse_other(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises UserError that names what differs."""
    now = json.loads(json.dumps(dict(now)))
    changed = [name for name in dict.fromkeys((*before, *now)) if before.get(name) != now.get(name)]
    if changed:
        listed = ", ".join(f"{name} ({before.get(name)}, now {now.get(name)})" for name in changed)
        raise UserError(
            f"{path} holds the answers of another command so far; what differs: {listed}. Repeat that command to go on, "
            "choose another --out, or remove this file. Nothing was overwritten."
        )


def read_samples(store: SampleStore) -> None:
    """Fills `store` with the sound lines after the header, and cuts off a last line that is incomplete."""
    end = store.file.tell()
    for line in store.file:
        if not line.endswith(b"\n"):
            break
        end += len(line)
        sample = sample_of(line)
        if sample:
            store.known[sample.key] = sample
        else:
            store.damaged += 1
    store.file.truncate(end)
    store.file.seek(end)


def line_of(sample: Sample) -> bytes:
    """A sample as a line, with the CRC-32 of the rest of the line."""
    body = json_line(sample.fields())
    return f'{body[:-1]}, "crc": {zlib.crc32(body.encode())}}}\n'.encode()


def sample_of(line: bytes) -> Sample | None:
    """The sample of a line, or None where the line is damaged."""
    try:
        fields = json.loads(line)
        crc = fields.pop("crc")
        sample = shaped(fields, Sample, said="")
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError):
        return None
    return sample if zlib.crc32(json_line(sample.fields()).encode()) == crc else None
