"""Rows in every format, files of scores, of scales and of prompts."""

import functools
import io
import json
from typing import Any

import pyarrow
import pyarrow.csv
import pyarrow.parquet
from hypothesis import strategies as st

from rapo_jax.batching.pipeline import batches, load_training, plan_training, read_part
from rapo_jax.borders import json_line
from rapo_jax.config.files import load_config
from rapo_jax.data.relabelled import relabel_records
from rapo_jax.data.scaling import Scales
from rapo_jax.export.preferences import as_rows
from rapo_jax.generate.prompts import chat_tokens, read_prompts
from rapo_jax.relabel import Scale
from tests.fuzz.hostile import altered, as_json, damaged
from tests.fuzz.place import Border, Place, lines_of
from tests.tiny import PAIRS

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Yes"},
]
ROWS: dict[str, dict[str, Any]] = {
    "pairs": PAIRS[3],
    "turns": {"chosen": TURNS, "rejected": [*TURNS[:2], {"role": "assistant", "content": "No"}], "score_chosen": 7, "score_rejected": 2},
    "single": {"messages": TURNS, "score": 3},
    "labels": {"prompt": "Hi", "completion": "Yes", "label": True, "score": 3},
    "lists": {"prompt": "Hi", "responses": ["A", "B", "C"], "rewards": [3, 1, 2], "attributes": [{"a": 1}] * 3},
    "numbered": {"prompt": "Hi", "response_0": "A", "response_0_reward": 1, "response_1": "B", "response_1_reward": 2},
    "helpsteer": {"prompt": "Hi", "response": "A", "helpfulness": 3, "correctness": 2, "verbosity": 1},
    "nectar": {"prompt": "\n\nHuman: Hi\n\nAssistant: ", "answers": [{"answer": "A", "rank": 1}, {"answer": "B", "rank": 2}]},
    "sampled": {"prompt": "Hi", "all_generated_responses": ["A", "B"], "all_rm_scores": [0.5, 0.25]},
    "ultrafeedback": {
        "source": "web",
        "instruction": "Hi",
        "completions": [
            {"response": text, "overall_score": score, "fine-grained_score": 2, "annotations": {"honesty": {"Rating": "3"}}}
            for text, score in (("A", 10), ("B", 2))
        ],
    },
}  # fmt: skip
SHORT_RUN = b"data: {max_length: 256, max_prompt_length: 192}\ntrain: {batch_size: 1}\n"
ROW_KEYS = (
    "prompt",
    "chosen",
    "rejected",
    "source",
    "system",
    "weight",
    "score_chosen",
    "label",
    "attributes",
    "completions",
)
HOWS = [
    [],
    ["data.bad_rows=drop"],
    ["relabel.goals=[]"],
    ["relabel.goals=[]", "objective.name=sft"],
    ["objective.name=kto"],
    ["objective.name=sft", "relabel.goals=[chosen]", "data.pairs=each"],
    ["data.columns.weight=weight", "data.bad_rows=drop"],
    ["relabel.scale.fit=minmax"],
    ["relabel.scale.fit=zscore", "relabel.scale.by=source", "data.bad_rows=drop"],
    ["relabel.attributes=[a]", "relabel.template='{goals}'"],
    ["data.pairs=all", "data.eval_fraction=0.5"],
    ["data.rewards=constant"],
]


def read_data(place: Place, given: tuple[str, bytes, list[str]], *, more: dict[str, bytes] | None = None) -> object:
    """Rows through the whole of the data pipeline, and as `rapo relabel` writes them."""
    name, content, how = given
    directory = place.write({name: content, "run.yaml": SHORT_RUN} | (more or {}))
    config = load_config(directory / "run.yaml", [f"data.path={directory / name}", *how])
    data = load_training(config, place.opened.tokenizer, goal_prompt=place.goal_prompt)
    plan = plan_training(data.groups, config, num_row_shards=1)
    next(batches(data.groups, plan, range(plan.shape.B))(0))
    relabelled, _ = relabel_records(read_part(config, "train").records, config)
    lines = [
        json_line(row).encode() for one in relabelled for row in as_rows(one, config, goal_prompt=place.goal_prompt)
    ]
    return data, lines


def rows_of(alteration: Any, base: list[dict[str, Any]]) -> list[Any]:
    return [*base, alteration, *base]


ALTERED_ROWS = (
    st.sampled_from(list(ROWS.values()))
    .flatmap(lambda row: st.tuples(altered([row], keys=ROW_KEYS), st.sampled_from([[], [row], [PAIRS[0], PAIRS[1]]])))
    .map(lambda drawn: rows_of(*drawn))
)
HOW = st.sampled_from(HOWS)


JSON_LINES = st.one_of(
    st.tuples(st.just("rows.jsonl"), ALTERED_ROWS.map(lines_of), HOW),
    st.tuples(st.just("rows.json"), ALTERED_ROWS.map(as_json), HOW),
    st.tuples(st.just("rows.json"), ALTERED_ROWS.map(lambda rows: json.dumps(rows, indent=2).encode()), HOW),
    st.tuples(st.sampled_from(["rows.jsonl", "rows.json"]), damaged(lines_of(PAIRS[:4])), HOW),
)
CSV_BASE = (
    "\ufeffprompt,chosen,rejected,score_chosen,score_rejected\r\n" + 'Hi,"Yes, ""I""\nam",No,9,1\n' * 3
).encode()
CELLS = st.one_of(
    st.sampled_from(["", "nan", "1e400", "9" * 5_000, '"', "\0", "x" * 200_000, "1_0", "٣", "a,b"]), st.text(max_size=5)
)
CSV_DAMAGED = st.tuples(
    st.sampled_from(["rows.csv", "rows.tsv"]),
    st.one_of(
        damaged(CSV_BASE),
        st.lists(CELLS, min_size=5, max_size=5).map(
            lambda cells: CSV_BASE + ",".join(cells).encode("utf-8", "replace")
        ),
    ),
    HOW,
)
# One of them is whole: few of the others can be read, and what hypothesis draws changes with the constants in our code.
CSV = st.one_of(st.tuples(st.just("rows.csv"), st.just(CSV_BASE), st.just(HOWS[0])), CSV_DAMAGED)


def compressed(whole: bytes) -> st.SearchStrategy[tuple[str, bytes]]:
    import bz2
    import gzip
    import lzma

    forms = {"rows.jsonl.gz": gzip.compress(whole, mtime=0), "rows.csv.gz": gzip.compress(CSV_BASE, mtime=0),
             "rows.jsonl.bz2": bz2.compress(whole), "rows.jsonl.xz": lzma.compress(whole)}  # fmt: skip
    return st.one_of(*(st.tuples(st.just(name), damaged(data)) for name, data in forms.items()))


COMPRESSED = st.tuples(compressed(lines_of(PAIRS)), HOW).map(lambda drawn: (*drawn[0], drawn[1]))


# Parquet.


@functools.cache
def parquet_bytes(kind: str) -> bytes:
    """A table of scored pairs, in one of several ways of writing it; "typed" with columns of every type."""
    table = pyarrow.Table.from_pylist(PAIRS)
    if kind == "typed":
        now = pyarrow.array([0] * len(PAIRS), pyarrow.timestamp("us", "UTC"))
        columns = {
            "when": now, "day": now.cast(pyarrow.date32()), "raw": pyarrow.array([b"\xff"] * len(PAIRS)),
            "money": pyarrow.array([1] * len(PAIRS)).cast(pyarrow.decimal128(30, 2)),
            "named": pyarrow.array([[("a", 1)]] * len(PAIRS), pyarrow.map_(pyarrow.string(), pyarrow.int64())),
            "kind": pyarrow.array(["a"] * len(PAIRS)).dictionary_encode(), "nothing": pyarrow.nulls(len(PAIRS)),
        }  # fmt: skip
        for name, column in columns.items():
            table = table.append_column(name, column)
    file = io.BytesIO()
    pyarrow.parquet.write_table(table, file, compression={"plain": "none", "zstd": "zstd"}.get(kind, "snappy"))
    return file.getvalue()


PARQUET = st.one_of(
    st.sampled_from(["plain", "snappy", "zstd", "typed"]).flatmap(lambda kind: damaged(parquet_bytes(kind))),
    ALTERED_ROWS.map(lambda rows: table_of(rows)),
)


def table_of(rows: list[Any]) -> bytes:
    """Altered rows as parquet, where pyarrow can write them."""
    file = io.BytesIO()
    try:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    except Exception:
        return parquet_bytes("typed")
    return file.getvalue()


PARQUETS = st.tuples(st.just("rows.parquet"), PARQUET, HOW)


# Files of scores, scales and prompts.

SCORES = [{"row": row, "rewards": [3.0, 1.0]} for row in range(1, 13)]
SCALE = Scales(reward=Scale(1.0, 9.0, 1.0, 10.0, clip=True, decimals=1)).tree()


def read_with_scores(place: Place, content: bytes) -> object:
    scores = place.scratch / "scores.jsonl"
    return read_data(place, ("rows.jsonl", lines_of(PAIRS), [f"data.rewards={scores}"]), more={"scores.jsonl": content})


def read_with_scale(place: Place, content: bytes) -> object:
    scale = place.scratch / "scale.json"
    return read_data(
        place, ("rows.jsonl", lines_of(PAIRS), [f"relabel.scale.file={scale}"]), more={"scale.json": content}
    )


PROMPTS = [{"prompt": "Hi"}, {"messages": TURNS[:2], "id": 7}, {"instruction": "Hi", "goal": 3}, {"question": "Hi"}]


def read_prompt_file(place: Place, given: tuple[str, bytes]) -> object:
    name, content = given
    directory = place.write({name: content})
    prompts = read_prompts(str(directory / name))
    tokens = chat_tokens(place.opened, prompts, goals=[7.0] * len(prompts), max_length=256)
    return tokens, [json_line(dict(prompt.row.values)).encode() for prompt in prompts]


SCORE_FILES = st.one_of(altered(SCORES[:1]).map(lambda one: lines_of([*SCORES[1:], one])), damaged(lines_of(SCORES)))
PROMPT_FILES = st.tuples(
    st.sampled_from(["p.jsonl", "p.json"]),
    st.one_of(
        altered([PROMPTS]).map(lambda rows: lines_of(rows) if isinstance(rows, list) else as_json(rows)),
        damaged(lines_of(PROMPTS)),
    ),
)
DATA = {
    "json rows": Border(JSON_LINES, read_data, 30),
    "csv": Border(CSV, read_data, 10),
    "compressed": Border(COMPRESSED, read_data, 5),
    "parquet": Border(PARQUETS, read_data, 15),
    "scores": Border(SCORE_FILES, read_with_scores, 5),
    "scale": Border(altered([SCALE]).map(as_json), read_with_scale, 5),
    "prompts": Border(PROMPT_FILES, read_prompt_file, 10),
}
