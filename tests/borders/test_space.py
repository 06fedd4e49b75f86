"""A full disk is one sentence."""

import errno
import os
from pathlib import Path

import pytest
from safetensors import SafetensorError

from rapo_jax import space
from rapo_jax.borders import whole_directory, whole_file
from rapo_jax.errors import UserError
from rapo_jax.locks import held
from rapo_jax.space import is_full, on_disk, require_space


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), True),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), True),
        (ValueError("RESOURCE_EXHAUSTED: Failed to write [OS error 28: ENOSPC No space left on device]"), True),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), True),
        (OSError(errno.EACCES, os.strerror(errno.EACCES)), False),
        (ValueError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes"), False),
    ],
)
def test_what_libraries_say_of_a_full_disk_is_known(error, full):
    """When this fails, a full disk is a traceback of a thousand lines, or memory that ran out is called a full disk."""
    assert is_full(error) is full


def test_a_full_disk_is_named_though_closing_the_file_fails_on_it_again():
    """When this fails, the sentence with the path is replaced by "No space left on device"."""
    file = Path("/dev/full").open("ab")  # noqa: SIM115 (closed by held)
    with pytest.raises(UserError, match="no space left for here"), held(file), on_disk(Path("here")):
        file.write(b"x")
        file.flush()
    assert file.closed


def test_a_full_disk_is_named_with_what_is_needed_and_free_and_safe(tmp_path, monkeypatch):
    """When this fails, somebody with ten disks does not learn which is full, how much is missing, or what was lost."""
    monkeypatch.setattr(space, "free_at", lambda path: 3_400)
    with pytest.raises(UserError) as refusal, on_disk(tmp_path / "a", need=12_000_000, safe="Safe: step 4."):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert str(refusal.value) == (
        f"no space left for {tmp_path / 'a'}: it needs 12.0 MB, and 3.4 kB of its disk are free. Safe: step 4. Make space, "
        "and run the same command again."
    )
    with pytest.raises(UserError, match=r"it needs 4.0 kB, and 3.4 kB of its disk are free. Make space"):
        require_space(tmp_path / "b" / "c", 4_000)
    require_space(tmp_path / "b" / "c", 3_000)


def test_files_and_directories_that_do_not_fit_are_named_and_leave_nothing(tmp_path):
    """When this fails, an export or a file of scores that does not fit leaves half of it on a disk that is full already."""
    for whole in (whole_file, whole_directory):
        with pytest.raises(UserError, match=f"no space left for {tmp_path / 'out'}: "), whole(tmp_path / "out"):
            raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []
