"""`rapo generate --engine URL`: a server's samples are what ours would ask for, each once, whatever goes wrong on the way."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections import Counter

import pytest

from rapo_jax.generate import served
from rapo_jax.generate.progress import Progress
from rapo_jax.generate.sampling import Sampling
from rapo_jax.generate.served import seed_of
from rapo_jax.opened import answer_text, open_tokenizer
from rapo_jax.servers import server as servers
from rapo_jax.servers.together import ask_all
from tests import tiny
from tests.opened.exports import as_export
from tests.servers.reached import Reached, say, saying
from tests.servers.sampler import completion, drawn, listing

DONE, USER_ERROR, INTERRUPTED = 0, 2, 75
KEY = "sk-not-to-be-printed"
NUM_PROMPTS, NUM_SAMPLES = 60, 5


class World:
    """A model, prompts, and the command."""

    def __init__(self, directory):
        self.directory = directory
        self.model = as_export(tiny.write_model(directory / "model"), directory / "exported")
        self.opened = open_tokenizer(self.model)
        rows = [{"prompt": f"What is {n} plus one{'?' * (n % 5)}", "at": n} for n in range(NUM_PROMPTS)]
        tiny.write_rows(directory / "prompts.jsonl", rows)

    def generate(self, out, url, *more, prompts="prompts.jsonl"):
        options = ["--max-new-tokens", 6, "--temperature", 1, "--seed", 3, "--engine", url, *more]
        return tiny.rapo("generate", self.model, "--prompts", self.directory / prompts, "--out", out, *options)

    def expected(self, asked, *, num_samples=NUM_SAMPLES):
        """The rows' (response, finish reason, number of tokens) from the prompts' tokens, by index, as they were sent."""
        stops, found = self.opened.stop_tokens, []
        for index, tokens in asked.items():
            for number in range(num_samples):
                seed = seed_of(3, index, number)
                answer = drawn(tokens, seed, 6, stops=stops, vocabulary=90)
                ended = answer[-1] in stops
                answer = answer[:-1] if ended else answer
                found.append((answer_text(self.opened.tokenizer, answer), "stop" if ended else "length", len(answer)))
        return found


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(servers, "FIRST_WAIT", 0.02)
    monkeypatch.setattr(servers, "LONGEST_WAIT", 0.5)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.fixture
def reached(world):
    reached = Reached(lambda payload: completion(payload, 90))
    reached.listed = listing("exported", root=str(world.model))
    yield reached
    reached.close()


def rows_of(out):
    return [json.loads(line) for line in out.read_text().splitlines()]


def answers_of(out):
    return [(row["response"], row["finish_reason"], row["num_tokens"]) for row in rows_of(out)]


def prompts_asked(world):
    """The tokens of every prompt as our engine is asked them, by index."""
    from rapo_jax.generate.prompts import chat_tokens, read_prompts

    prompts = read_prompts(str(world.directory / "prompts.jsonl"))
    tokens = chat_tokens(world.opened, prompts, goals=[world.opened.goal_prompt.baked] * len(prompts), max_length=4096)
    return {index: each.tolist() for index, each in enumerate(tokens)}


class Process:
    """The server as a process that is started again, once, when it dies."""

    def __init__(self, model, *, faults, dies_after):
        self.model, self.faults, self.starts = model, faults, 0
        self.first = self.process = self.start(0, "--dies-after", dies_after)
        self.url = self.process.stdout.readline().strip()
        self.watcher = threading.Thread(target=self.watch, daemon=True)
        self.watcher.start()

    def start(self, port, *more):
        self.starts += 1
        options = [port, self.model, "--faults", self.faults, "--vocabulary", 90, *more]
        command = [sys.executable, "-m", "tests.servers.sampler", *map(str, options)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def watch(self):
        self.process.wait()
        time.sleep(2)  # so that everybody sees that it is away
        self.process = self.start(self.url.split(":")[2].removesuffix("/v1"), "--hangs", 0)

    def close(self):
        self.watcher.join()
        self.process.kill()
        for process in (self.first, self.process):
            process.wait()
            process.stdout.close()


def test_every_sample_comes_once_from_a_server_that_errs_and_is_restarted(world, tmp_path, monkeypatch, capsys):
    """When this fails, a night of sampling ends with a traceback, a hole, or an answer that is another prompt's."""
    monkeypatch.setattr(servers, "SAY_AFTER", 0.1)
    process = Process(world.model, faults=0.4, dies_after=200)
    try:
        more = ["--n", NUM_SAMPLES, "--engine-concurrency", 16, "--engine-timeout", 3]
        assert world.generate(tmp_path / "a.jsonl", process.url, *more) == DONE, capsys.readouterr()
    finally:
        process.close()
    said = capsys.readouterr().out
    assert process.starts == 2 and answers_of(tmp_path / "a.jsonl") == world.expected(prompts_asked(world))
    assert [row["sample"] for row in rows_of(tmp_path / "a.jsonl")] == list(range(NUM_SAMPLES)) * NUM_PROMPTS
    assert "  server 300 requests answered, " in said and "malformed " in said and "HTTP 429 " in said
    assert "  the server is away (" in said and "  the server answers again, after " in said
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_what_ctrl_c_stopped_goes_on_and_asks_for_nothing_twice(world, reached, tmp_path, monkeypatch, capsys):
    """When this fails, Ctrl-C loses what was paid for, or an interrupted command gives other answers."""
    add = Progress.add

    def add_and_stop(progress, drawn):
        add(progress, drawn)
        if progress.answers:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("rapo_jax.servers.together.EVERY", 0.05)
    monkeypatch.setattr("rapo_jax.servers.together.MOST", 20)
    out, more = tmp_path / "a.jsonl", ["--n", NUM_SAMPLES, "--engine-concurrency", 4]
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "add", add_and_stop)
        assert world.generate(out, reached.url, *more) == INTERRUPTED
    kept = len((tmp_path / "a.jsonl.partial").read_text().splitlines()) - 1
    assert 0 < kept < 300 and f"interrupted: {kept} of 300 answers are kept in" in capsys.readouterr().out
    before = len(reached.requests)
    assert world.generate(out, reached.url, *more) == DONE
    assert len(reached.requests) - before == 300 - kept and before - kept <= 4 * 5 + 20
    assert answers_of(out) == world.expected(prompts_asked(world)) and reached.most_at_once <= 4 + 4


def test_the_server_reads_what_our_engine_would_and_is_told_all_settings(world, reached, tmp_path, capsys):
    """When this fails, a server samples from another distribution than the one that the rows record."""
    rows = [{"prompt": "Hi"}, {"prompt": "Hi", "goal": 2, "temperature": 0, "top_p": 0.5, "max_new_tokens": 4}]
    tiny.write_rows(world.directory / "two.jsonl", rows)
    reached.listed = listing("exported", most=2048)
    out = tmp_path / "a.jsonl"
    command = [
        "generate",
        world.model,
        "--prompts",
        world.directory / "two.jsonl",
        "--out",
        out,
        "--engine",
        reached.url,
    ]
    assert tiny.rapo(*command, "--engine-concurrency", 1) == DONE
    sampled, greedy = reached.requests
    decode = world.opened.tokenizer.decode
    asks = [world.opened.goal_prompt.sentence(goal) for goal in (5, 2)]
    assert [decode(sent["prompt"]).count(said) for sent, said in zip(reached.requests, asks, strict=True)] == [1, 1]
    assert {each["path"] for each in reached.requests} == {"/v1/completions"}
    assert {each["key"] for each in reached.requests} == {f"Bearer {KEY}"}
    named = ("model", "max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    assert [greedy[name] for name in named] == ["exported", 4, 0.0, 0.5, -1, 0.0, 1.0] and "seed" not in greedy
    assert greedy["stop_token_ids"] == list(world.opened.stop_tokens) and sampled["max_tokens"] == 512
    assert [row["goal"] for row in rows_of(out)] == [5, 2] and KEY not in str(capsys.readouterr())
    assert not {"stop", "logprobs"} & {*sampled, *greedy}
    known = {*served.SETTINGS, *served.THEIR_OWN, "seed", "stop", "logps"}
    assert {*vars(Sampling())} == known  # a further setting has to be sent, too
    assert len({seed_of(3, prompt, n) for prompt in range(50) for n in range(50)}) == 2500


def with_logprobs(payload):
    """As vLLM: the answer ends with the token that completes a stop string, and its text before that."""
    right = completion(payload, 90)
    choice = right["choices"][0]
    logprobs = [-0.5 * (1 + number) for number in range(len(choice["token_ids"]))]
    return right | {"choices": [choice | {"logprobs": {"token_logprobs": logprobs}}]}


def test_a_server_is_told_how_to_cut_and_where_to_stop_and_tells_log_probabilities(world, reached, tmp_path):
    """When this fails, a server samples without what was asked for, or answers of two engines end in different places."""
    reached.right = with_logprobs
    more = ["--top-k", 7, "--min-p", 0.1, "--repetition-penalty", 1.5, "--logps"]
    assert world.generate(tmp_path / "a.jsonl", reached.url, *more, "--stop", "never said") == DONE
    named = ("top_k", "min_p", "repetition_penalty", "stop", "logprobs")
    assert all([sent[name] for name in named] == [7, 0.1, 1.5, ["never said"], 1] for sent in reached.requests)
    rows, text_of = rows_of(tmp_path / "a.jsonl"), world.opened.tokenizer.decode
    assert all(row["logps"] == [-0.5 * (1 + n) for n in range(row["num_tokens"])] for row in rows)
    assert [text_of(row["tokens"], skip_special_tokens=True) for row in rows] == [row["response"] for row in rows]
    assert all([row[name] for name in named[:4]] == [7, 0.1, 1.5, ["never said"]] for row in rows)
    stop = next(row["response"] for row in rows if row["num_tokens"] > 4)[2:4]
    assert world.generate(tmp_path / "b.jsonl", reached.url, *more, "--stop", stop) == DONE
    for free, row in zip(rows, rows_of(tmp_path / "b.jsonl"), strict=True):
        assert row["response"] == free["response"].split(stop)[0] and len(row["tokens"]) == len(row["logps"])
        if stop in free["response"]:
            assert row["finish_reason"] == "stop" and row["tokens"] == free["tokens"][: row["num_tokens"]]
            assert stop in text_of(row["tokens"]) and stop not in text_of(row["tokens"][:-1])


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--logps"], "the server gives no log-probabilities; leave out --logps"),
        (["--min-p", 0.1], "the server refused the question (HTTP 400: unknown argument: min_p)"),
    ],
)
def test_what_the_server_cannot_do_is_never_left_out_in_silence(more, said, world, reached, tmp_path, capsys):
    """When this fails, a server that knows no min-p draws other answers than were asked for, and nobody is told."""
    error = {"error": {"message": "unknown argument: min_p"}}
    reached.errs_by_payload = lambda payload: saying(400, error) if "min_p" in payload else None
    assert world.generate(tmp_path / "a.jsonl", reached.url, *more) == USER_ERROR
    (message,) = capsys.readouterr().err.splitlines()
    assert said in message


@pytest.mark.parametrize("sends", ["text", "chat"])
def test_a_server_without_token_ids_is_asked_in_text_or_messages(sends, world, reached, tmp_path, capsys):
    """When this fails, a server's own template asks for another goal than the one that the rows record."""
    tokenizer = world.opened.tokenizer
    asked = list(prompts_asked(world).values())

    def right(payload):
        if sends == "text":
            ids = tokenizer(payload["prompt"], add_special_tokens=False).input_ids
            choice = {"text": "Hello.", "finish_reason": "stop"}
            return {"choices": [choice], "usage": {"prompt_tokens": len(ids), "completion_tokens": 3}}
        assert payload["chat_template_kwargs"] == {"goal": 5.0}
        said = f"{payload['messages'][-1]['content']}<"
        (ids,) = [each for each in asked if said in tokenizer.decode(each)]
        message = {"role": "assistant", "content": "Hello."}
        return {"choices": [{"message": message, "finish_reason": "stop"}], "prompt_token_ids": ids}

    reached.right = right
    out = tmp_path / "a.jsonl"
    assert world.generate(out, reached.url, "--engine-sends", sends) == DONE, capsys.readouterr()
    assert {row["response"] for row in rows_of(out)} == {"Hello."}
    counted = {"text": 3, "chat": len(tokenizer("Hello.", add_special_tokens=False).input_ids)}
    assert {row["num_tokens"] for row in rows_of(out)} == {counted[sends]}


def test_a_field_that_the_server_does_not_know_is_left_out_and_said(world, reached, tmp_path, capsys):
    """When this fails, a TPU server that takes no seeds of requests cannot be asked at all."""

    def errs(payload):
        unknown = [name for name in ("seed", "top_k", "return_token_ids") if name in payload]
        said = {"error": {"message": f"unknown argument: {unknown[0]}"}} if unknown else None
        return saying(400, said) if said else None

    reached.errs_by_payload = errs
    assert world.generate(tmp_path / "a.jsonl", reached.url, "--engine-concurrency", 1) == DONE
    assert len(reached.requests) == NUM_PROMPTS + 3
    assert "note   the server takes no seeds: the same command draws other answers" in capsys.readouterr().out
    assert {row["response"] for row in rows_of(tmp_path / "a.jsonl")} == {"not read"}


def other_prompt(payload):
    right = completion(payload, 90)
    right["choices"][0]["prompt_token_ids"] = [payload["prompt"][0] + 1, *payload["prompt"][1:]]
    return right


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (saying(400, {"error": {"message": f"too long, {KEY}"}}), "the server refused the question (HTTP 400: too long, ***)"),
        (lambda handler: say(handler, 200, {"choices": [{"text": "x", "finish_reason": "abort"}]}), "gave no answer in 2 attempts (the last: an answer that ended with 'abort')"),
        (saying(401, {"error": "who?"}), "refused the key in OPENAI_API_KEY (HTTP 401: who?); correct it there."),
        (saying(404, {"error": "The model `exported` does not exist."}), "correct the address, or --engine-model=exported."),
    ],
)  # fmt: skip
def test_a_server_that_answers_nothing_is_given_up_early(error, said, world, reached, tmp_path, capsys, monkeypatch):
    """When this fails, ten thousand requests are sent to a server that refuses all of them."""
    monkeypatch.setattr(servers, "ATTEMPTS", 2)
    monkeypatch.setattr(served, "ENOUGH_FAILED", 5)
    monkeypatch.setattr("rapo_jax.servers.together.MOST", 3)
    reached.errs = lambda number: error
    assert world.generate(tmp_path / "a.jsonl", reached.url, "--engine-concurrency", 2) == USER_ERROR
    (message,) = capsys.readouterr().err.splitlines()
    assert said in message and KEY not in message and len(reached.requests) < 40
    assert list(tmp_path.iterdir()) == []


def test_one_prompt_that_is_refused_costs_only_itself(world, reached, tmp_path, capsys):
    """When this fails, one odd prompt among thousands ends the command at every start."""
    first = prompts_asked(world)[7]
    reached.errs_by_payload = lambda payload: saying(400, {"error": "odd"}) if payload["prompt"] == first else None
    out = tmp_path / "a.jsonl"
    assert world.generate(out, reached.url) == USER_ERROR
    message = capsys.readouterr().err
    assert (
        "gave no answer to 1 request (the first: prompt 8, sample 0: the server refused the question (HTTP 400: odd))"
        in message
    )
    assert "the others are kept" in message
    reached.errs_by_payload = lambda payload: None
    before = len(reached.requests)
    assert world.generate(out, reached.url) == DONE and len(reached.requests) == before + 1


def test_a_server_that_reads_another_prompt_is_found_out(world, reached, tmp_path, capsys):
    """When this fails, a server with another tokenizer or template answers prompts that nobody asked."""
    reached.right = other_prompt
    assert world.generate(tmp_path / "a.jsonl", reached.url) == USER_ERROR
    assert "the server read other tokens, from number 1 on: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("listed", "more", "said"),
    [
        (listing("llama", root="/models/llama"), [], "--engine={url} serves llama, and none of them has the name of MODEL_DIR="),
        (listing("llama"), ["--engine-model", "exported"], "does not serve --engine-model=exported; it serves llama: name one"),
        (listing("exported", most=12), [], "60 prompts do not fit the model of --engine={url}, which takes 12 tokens (the first: "),
        ("none", [], "--engine={url} gave no answer in 3 attempts (the last: an answer without a reply: \"none\")"),
        (None, [], "--engine={url} does not list its models; correct the address, or name one with --engine-model."),
        (None, ["--engine", "foo"], "--engine=foo is unknown; known: http://HOST:PORT/v1, own"),
        (None, ["--engine", "own", "--engine-model", "x"], "--engine-model: these are of a server; add --engine URL, or"),
        (None, ["--batch-size", "4"], "--batch-size: the server decides that by itself; leave out it."),
        (None, ["--engine", "http://127.0.0.1:9/v1"], "--engine=http://127.0.0.1:9/v1 does not answer (ConnectError: "),
        (None, ["--engine-key-from", "NOT_SET"], "--engine-key-from=NOT_SET: this environment variable is not set; put"),
        (listing("exported"), ["--engine-sends", "chat", "--raw"], "--engine-sends=chat leaves the chat template to the server"),
        (listing("exported"), ["--engine-sends", "chat", "--no-goal"], "asks for a goal by itself, and 60 prompts are to be"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_one_sentence(listed, more, said, world, reached, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(servers, "ATTEMPTS", 3)
    reached.listed = listed
    assert world.generate(tmp_path / "a.jsonl", reached.url, *more) == USER_ERROR
    (message,) = capsys.readouterr().err.splitlines()
    assert said.format(url=reached.url) in message and not reached.requests and list(tmp_path.iterdir()) == []


def test_the_key_that_is_missing_is_named(world, reached, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    reached.errs = lambda number: saying(401, {"error": "no key"})
    assert world.generate(tmp_path / "a.jsonl", reached.url) == USER_ERROR
    assert (
        "needs a key (HTTP 401: no key); put it in the environment variable OPENAI_API_KEY, or name"
        in capsys.readouterr().err
    )


def test_a_server_that_stays_away_is_given_up_after_the_patience(world, reached, tmp_path, capsys):
    """When this fails, a server that died at midnight is waited for until somebody looks."""
    reached.errs = lambda number: saying(503, {"error": "loading"}) if number > 20 else None
    assert world.generate(tmp_path / "a.jsonl", reached.url, "--engine-patience", 0.3) == USER_ERROR
    assert "(HTTP 503: loading; --engine-patience); what was answered is kept: run the same" in capsys.readouterr().err
    reached.errs = lambda number: None
    assert world.generate(tmp_path / "a.jsonl", reached.url) == DONE
    assert "20 of 60 answers found in" in capsys.readouterr().out


def test_no_question_is_taken_before_there_is_room_for_it(reached):
    """When this fails, a file of a million prompts is a million requests in memory."""
    import contextlib

    taken, given, ahead = Counter(), Counter(), []

    def questions():
        for number in range(5000):
            taken["all"] += 1
            yield number

    async def ask(number):
        return number * 2

    for answered in ask_all(
        questions(), ask, session=contextlib.AsyncExitStack(), concurrency=8, passed_on=KeyError, most=16
    ):
        assert all(answer == 2 * number for number, answer in answered)
        given["all"] += len(answered)
        ahead.append(taken["all"] - given["all"])
    assert given["all"] == 5000 and max(ahead) <= 8 * 5
