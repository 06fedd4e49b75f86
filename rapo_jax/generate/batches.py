"""How many samples are drawn at once, and in how much room: few shapes, which follow from a sample's own length and the options.

A repeated command therefore computes every sample in the shapes that it had before, whatever is left to do.
"""

from dataclasses import dataclass

PROMPT_MULTIPLE = 64  # prompts are padded to a multiple of this many tokens, so that few shapes are compiled
PREFILL_CHUNK = 256  # prompt tokens that are computed at once; longer prompts are padded to a multiple of it
PREFILL_ROWS = 8  # prompts that are computed at once
SEGMENT = 16  # tokens that are drawn before finished samples are fetched, their slots refilled and a signal is noticed


@dataclass(frozen=True)
class BatchLimits:
    """The most samples that are drawn at once, and the most tokens of their prompts and answers that the cache has room for."""

    num_samples: int = 16
    num_tokens: int = 16384

    def num_slots(self, room: int, *, num_samples: int, row_shards: int) -> int:
        """Slots of this many tokens for so many samples: a multiple of the mesh's shards of rows, at least one for each.

        >>> BatchLimits(48, 16384).num_slots(256, num_samples=240, row_shards=1)
        48
        >>> BatchLimits(48, 16384).num_slots(4096, num_samples=240, row_shards=1)
        4
        """
        whole = min(self.num_samples, -(-num_samples // 8) * 8)
        return max(1, min(-(-whole // row_shards), self.num_tokens // room // row_shards)) * row_shards

    def num_prompts(self, length: int, *, row_shards: int) -> int:
        """The prompts of this padded length that are computed at once."""
        return self.num_slots(length, num_samples=PREFILL_ROWS, row_shards=row_shards)


def padded_length(length: int) -> int:
    """The length that a prompt is padded to.

    >>> padded_length(3), padded_length(65), padded_length(257)
    (64, 128, 512)
    """
    multiple = PROMPT_MULTIPLE if length <= PREFILL_CHUNK else PREFILL_CHUNK
    return -(-length // multiple) * multiple


def room_of(length: int) -> int:
    """The room of the cache that holds so many tokens of a row: few different ones, multiples of 64.

    >>> [room_of(length) for length in (1, 65, 129, 193, 257, 1000)]
    [64, 128, 192, 256, 512, 1024]
    """
    if length <= 256:
        return max(64, -(-length // 64) * 64)
    return 1 << (length - 1).bit_length()
