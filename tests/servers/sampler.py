"""A server that samples: an answer follows from prompt and seed, so that a test knows every one. As a process of its own it
errs, and may die: python -m tests.servers.sampler PORT MODEL --faults 0.3 --dies-after 150
"""

import argparse
import hashlib
import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from tests.servers.reached import Reached, cut_short, disconnect, saying


def drawn(prompt: Sequence[int], seed: int | None, most: int, *, stops: Sequence[int], vocabulary: int) -> list[int]:
    """The tokens of an answer, with the stop token that ends it, if one does."""
    rng = random.Random(hashlib.sha256(json.dumps([list(prompt), seed]).encode()).digest())
    tokens = [rng.choice([t for t in range(4, vocabulary) if t not in stops]) for _ in range(rng.randint(1, most + 1))]
    return tokens[:most] if len(tokens) > most else [*tokens, stops[0]][:most]


def completion(payload: dict[str, Any], vocabulary: int) -> dict[str, Any]:
    """The reply to a request whose prompt is token ids, as vLLM gives it."""
    prompt, stops = payload["prompt"], payload["stop_token_ids"]
    tokens = drawn(prompt, payload.get("seed"), payload["max_tokens"], stops=stops, vocabulary=vocabulary)
    choice = {"index": 0, "text": "not read", "finish_reason": "stop" if tokens[-1] in stops else "length"}
    if payload.get("return_token_ids"):
        choice |= {"token_ids": tokens, "prompt_token_ids": prompt}
    return {"choices": [choice], "usage": {"prompt_tokens": len(prompt), "completion_tokens": len(tokens)}}


def listing(name: str, *, root: str = "", most: int = 512) -> dict[str, Any]:
    """The reply of /models."""
    return {"object": "list", "data": [{"id": name, "root": root or name, "max_model_len": most}]}


FAULTS: list[Any] = [
    saying(429, {"error": {"message": "slow down"}}, Retry_After="0.05"),
    saying(500, b"<html>Internal Server Error</html>"),
    saying(503, {"error": "loading"}),
    disconnect,
    cut_short,
    lambda handler: time.sleep(60),
    saying(200, b"not JSON"),
    saying(200, {"object": "error"}),
    saying(200, {"choices": [{"text": "x", "finish_reason": "abort"}]}),
    saying(200, {"choices": [{"text": "x", "finish_reason": "stop", "token_ids": [1, "2"]}]}),
    saying(200, {"choices": [{"text": 5, "finish_reason": "stop"}]}),
    saying(200, b"[" * 5000),
]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("model")
    parser.add_argument("--faults", type=float, default=0.0)
    parser.add_argument("--hangs", type=int, default=5)
    parser.add_argument("--dies-after", type=int, default=0)
    parser.add_argument("--vocabulary", type=int, default=90)
    parser.add_argument("--seconds", type=float, default=0.0)
    options = parser.parse_args()
    lock, seen, hangs = threading.Lock(), Counter[str](), [options.hangs]

    def errs(payload: dict[str, Any]) -> Any:
        """Each request may err when it comes first and when it comes again, and not after that."""
        key = hashlib.sha256(json.dumps(payload, sort_keys=True).encode()).hexdigest()
        with lock:
            seen[key] += 1
            if options.dies_after and seen.total() > options.dies_after:
                os._exit(9)
            rng = random.Random(f"{key} {seen[key]}")
            if seen[key] > 2 or rng.random() >= options.faults:
                return None
            fault = rng.choice(FAULTS)
            if fault is FAULTS[5]:
                hangs[0] -= 1
                if hangs[0] < 0:
                    return FAULTS[0]
            return fault

    def right(payload: dict[str, Any]) -> Any:
        time.sleep(options.seconds)
        return completion(payload, options.vocabulary)

    reached = Reached(right, port=options.port)
    reached.listed, reached.errs_by_payload = listing(options.model), errs
    print(reached.url, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
