"""Scorers of the tests: python:tests.rounds.scorers:length."""


def length(prompts, responses):
    """From 1 to 10, by the number of characters, that of the prompt counted a little."""
    return [
        [1.0 + (len(text) * 7 + len(prompt[-1]["content"])) % 10 * 0.9 for text in each]
        for prompt, each in zip(prompts, responses, strict=True)
    ]
