"""Scorers of the tests: python:tests.evaluate.scorers:vowels."""

CALLS: list[int] = []  # how many responses each call was asked for


def vowels(prompts, responses):
    """Between 1 and 10 by the share of vowels, and an attribute."""
    CALLS.append(sum(map(len, responses)))
    rewards = [[1 + 9 * sum(c in "aeiou" for c in text) / max(1, len(text)) for text in each] for each in responses]
    return rewards, [[{"length": float(len(text))} for text in each] for each in responses]


def length(prompts, responses):
    return [[float(len(text)) for text in each] for each in responses]


def failing(prompts, responses):
    raise RuntimeError("no scores today")
