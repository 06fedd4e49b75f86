"""Checks that an export, read back, is what was written."""

from pathlib import Path

from rapo_jax.parts import Fingerprints


def require_same(found: Fingerprints, written: Fingerprints, directory: Path) -> None:
    """Raises RuntimeError for another fingerprint of any parameter: a bug, or a disk that lost what was written."""
    differing = [name for name in written if found.get(name) != written[name]]
    if differing or found.keys() != written.keys():
        raise RuntimeError(f"{directory} was written but reads back as something else: {', '.join(differing[:3])}")
