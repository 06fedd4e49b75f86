"""`rapo relabel`: what it writes is what TRL reads, with a report and a picture beside it."""

import json

import pyarrow.parquet
import pytest
import yaml

from rapo_jax.batching.pipeline import read_part
from rapo_jax.chat.goal_prompt import configured_goal_prompt
from rapo_jax.config.files import load_config
from rapo_jax.errors import UserError
from rapo_jax.export import preferences
from rapo_jax.export.preferences import write_preferences
from tests.data.reading import read_file

ROWS = [
    {"prompt": f"Is {n} even?", "chosen": "Yes." if n % 2 == 0 else "No.", "rejected": "Who knows?",
     "score_chosen": 9.0 - n % 3, "score_rejected": 2.5}
    for n in range(10)
]  # fmt: skip
SETS = [{"prompt": row["prompt"], "responses": ["A", "B", row["chosen"]], "rewards": [1, 2, 4]} for row in ROWS]


@pytest.fixture(autouse=True)
def quick_picture(request, monkeypatch):
    """A second saved in every test but those that look at the picture."""
    if "picture" not in request.node.name:
        monkeypatch.setattr(preferences, "draw_report", lambda path, *_, **__: path.write_bytes(b"a picture"))


@pytest.fixture
def config(tmp_path):
    """A function (rows, tree) -> Config of a file with these rows."""

    def config(rows=ROWS, **tree):
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        tree["data"] = {"path": str(tmp_path / "rows.jsonl"), **tree.get("data", {})}
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(tree))
        return load_config(tmp_path / "run.yaml")

    return config


def write(config, out):
    goal_prompt = configured_goal_prompt(config.relabel, placement="system", chat_template="")
    return write_preferences(config, out, goal_prompt=goal_prompt)


def written(config, out):
    counts = write(config, out)
    return counts, [json.loads(line) for line in out.read_text().splitlines()]


def answer(text):
    return [{"role": "assistant", "content": text}]


def test_pairs_are_conversations_with_their_goal_and_scores(config, tmp_path):
    counts, rows = written(config(), tmp_path / "out.jsonl")
    assert counts == {"rows": 10, "dropped": 0, "ties": 0, "chosen": 10, "rejected": 10}
    assert list(rows[1]) == ["prompt", "chosen", "score_chosen", "rejected", "score_rejected", "goal", "goal_of", "source_row"]  # fmt: skip
    assert [turn["role"] for turn in rows[1]["prompt"]] == ["system", "user"]
    assert (rows[1]["chosen"], rows[1]["rejected"]) == (answer("Who knows?"), answer("Yes."))
    assert (rows[1]["score_chosen"], rows[1]["score_rejected"], rows[1]["goal"], rows[1]["goal_of"]) == (2.5, 9, 2.5, "rejected")  # fmt: skip


def test_what_was_written_is_read_again_as_the_same_pairs(config, tmp_path):
    """When this fails, the relabelled file can be read by others but not by `rapo train`."""
    written(config(), tmp_path / "out.jsonl")
    records = read_file(str(tmp_path / "out.jsonl"), scores=True).records
    assert [record.responses for record in records[:2]] == [("Yes.", "Who knows?"), ("Who knows?", "Yes.")]
    assert records[1].rewards == (2.5, 9)


def test_parquet_holds_what_json_lines_hold(config, tmp_path):
    _, rows = written(config(), tmp_path / "out.jsonl")
    write(config(), tmp_path / "other.parquet")
    assert pyarrow.parquet.read_table(tmp_path / "other.parquet").to_pylist() == rows


def test_each_labelled_response_is_one_line(config, tmp_path):
    _, rows = written(config(objective={"name": "kto"}), tmp_path / "out.jsonl")
    assert len(rows) == 40
    assert list(rows[0])[:4] == ["prompt", "completion", "label", "score"]
    assert [(row["completion"], row["label"], row["goal"]) for row in rows[:4]] == [
        (answer("Yes."), True, 9), (answer("Who knows?"), False, 9),
        (answer("Who knows?"), True, 2.5), (answer("Yes."), False, 2.5),
    ]  # fmt: skip


def test_a_single_response_is_written_as_a_completion(config, tmp_path):
    tree = {"objective": {"name": "sft"}, "relabel": {"goals": ["chosen"]}}
    _, rows = written(config(**tree), tmp_path / "out.jsonl")
    assert (len(rows), rows[0]["completion"], rows[0]["score"], rows[0]["goal"]) == (10, answer("Yes."), 9, 9)
    _, rows = written(config(**tree, data={"pairs": "each"}), tmp_path / "each.jsonl")
    assert [(row["completion"], row["goal"]) for row in rows[:2]] == [(answer("Yes."), 9), (answer("Who knows?"), 2.5)]


def test_sets_keep_all_responses_in_the_order_of_the_goal(config, tmp_path):
    counts, rows = written(config(SETS, objective={"name": "rrhf"}), tmp_path / "out.jsonl")
    assert counts["chosen"] == 10 and counts["rejected"] == 20
    assert [(row["responses"], row["rewards"], row["goal"]) for row in rows[:3]] == [
        (["Yes.", "B", "A"], [4, 2, 1], 4), (["B", "A", "Yes."], [2, 1, 4], 2), (["A", "B", "Yes."], [1, 2, 4], 1)
    ]  # fmt: skip


def test_a_report_a_picture_and_the_scale_are_written_beside_the_file(config, tmp_path):
    tree = {"relabel": {"scale": {"fit": "minmax"}, "goal_max": 5.0}}
    written(config([*ROWS, ROWS[0] | {"rejected": "Yes."}], **tree), tmp_path / "out.jsonl")
    report = json.loads((tmp_path / "out.report.json").read_text())
    assert (report["rows_read"], report["rows_dropped"]) == (11, {"identical_responses": 1})
    assert report["scores"]["rejected"] == {"1": 10}
    assert report["margins"] == {"3": 6, "4": 4}
    assert json.loads((tmp_path / "out.scale.json").read_text()) == report["scale"]
    assert report["scale"]["reward"]["goal_max"] == 5
    assert (tmp_path / "out.report.png").read_bytes().startswith(b"\x89PNG")


def test_a_failure_halfway_leaves_nothing_that_blocks_the_next_attempt(config, tmp_path, monkeypatch):
    def fails(path, *_, title):
        path.write_bytes(b"half a picture")
        raise OSError("no space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="no space"):
        patched.setattr(preferences, "draw_report", fails)
        write(config(), tmp_path / "out.jsonl")
    assert not list(tmp_path.glob("out.*"))
    _, rows = written(config(), tmp_path / "out.jsonl")
    assert len(rows) == 20


def test_what_a_killed_attempt_left_does_not_block_the_next(config, tmp_path):
    """When this fails, `rapo relabel` that was killed after its report refuses for ever."""
    for name in ("out.jsonl.relabelling", "out.report.json", "out.report.png", "out.jsonl.tmp"):
        (tmp_path / name).write_text("half")
    _, rows = written(config(), tmp_path / "out.jsonl")
    assert len(rows) == 20 and json.loads((tmp_path / "out.report.json").read_text())["rows_read"] == 10
    assert not (tmp_path / "out.jsonl.relabelling").exists() and not (tmp_path / "out.jsonl.tmp").exists()


@pytest.mark.parametrize("name", ["out.jsonl", "out.report.json", "out.report.png"])
def test_nothing_is_overwritten(config, tmp_path, name):
    (tmp_path / name).write_text("...")
    with pytest.raises(UserError, match=f"{name} exists; nothing was written. Choose another --out."):
        write(config(), tmp_path / "out.jsonl")
    assert not [path for path in tmp_path.glob("out*") if path.name != name]


def test_what_is_not_read_and_goals_off_the_scale_are_said(config, tmp_path, capsys):
    """When this fails, the verb for looking at data hides what the run says of it: a system turn lost, a score of 40 of 10."""
    rows = [row | {"system": "Be terse.", "score_chosen": 10 * row["score_chosen"]} for row in ROWS]
    write(config(rows), tmp_path / "out.jsonl")
    notes = " ".join(capsys.readouterr().out.split())
    assert "note: 10 rows hold 'system', which is not read; data.columns.system=system reads it" in notes
    assert "10 goals are not from 1 to 10; relabel.scale.fit maps scores" in notes


def test_data_of_nothing_but_ties_is_refused(config, tmp_path):
    tied = [row | {"score_chosen": 3, "score_rejected": 3} for row in ROWS]
    with pytest.raises(UserError, match="nothing is left of its 10 rows; 10 records are ties"):
        write(config(tied), tmp_path / "out.jsonl")


# What the settings of the data section do, from files to records.


def test_weights_and_sources_go_with_their_rows(config, tmp_path):
    rows = [row | {"source": ("gpt4", "web")[n % 2]} for n, row in enumerate(ROWS)]
    tree = {"data": {"source_weights": {"web": 0.1}}, "relabel": {"goals": []}}
    _, lines = written(config(rows, **tree), tmp_path / "out.jsonl")
    assert [(line["source"], line.get("weight")) for line in lines[:2]] == [("gpt4", None), ("web", 0.1)]
    with pytest.raises(UserError, match=r"data.source_weights names gpt5, which no row is from; sources: gpt4, web"):
        read_part(config(rows, data={"source_weights": {"gpt5": 1.0}}), "train")


def test_a_weighted_objective_needs_weights(config):
    """When this fails, weighted_sft is sft under another name."""
    rows = [{"prompt": "Hi", "response": f"{n}", "w": n} for n in range(3)]
    tree = {"relabel": {"goals": []}, "objective": {"name": "weighted_sft"}}
    with pytest.raises(
        UserError, match=r"weighted_sft weighs responses, and data.path=.* has no weights: name their col"
    ):
        read_part(config(rows, **tree), "train")
    prepared = read_part(config(rows, data={"columns": {"weight": "w"}}, **tree), "train")
    assert [record.weight for record in prepared.records] == [0, 1, 2]


def test_every_row_must_have_the_source_that_the_template_names(config):
    """When this fails, every prompt says "As , ..." and nobody notices."""
    made = config([ROWS[0] | {"source": "web"}, ROWS[1]], relabel={"template": "As {source}: {goal}."})
    with pytest.raises(
        UserError, match=r"says \{source\}, but 1 of 2 rows have none \(the first is row 2\); name their"
    ):
        read_part(made, "train")


def test_rewards_come_from_a_file_of_scores_and_are_mapped(config, tmp_path):
    """The second round of the paper: binary pairs relabelled by the first policy's implicit reward."""
    bare = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in ROWS]
    lines = [{"kind": "implicit_reward", "beta": 0.01}]
    lines += [{"row": n, "rewards": [n / 100, -n / 100]} for n in range(1, 11)]
    (tmp_path / "scores.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    tree = {"data": {"rewards": str(tmp_path / "scores.jsonl")}, "relabel": {"scale": {"fit": "minmax"}, "decimals": 2}}
    prepared = read_part(config(bare, **tree), "train")
    assert prepared.records[-1].rewards == (10, 1)
    assert prepared.records[0].rewards == (5.95, 5.05)
    assert prepared.reward_source.endswith("scores.jsonl (kind implicit_reward, beta 0.01)")


def test_constants_replace_missing_scores(config):
    bare = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in ROWS]
    prepared = read_part(config(bare, data={"rewards": "constant", "constant_rewards": [8, 3]}), "train")
    assert {record.rewards for record in prepared.records} == {(8, 3)}
    assert prepared.reward_source == "constants 8 and 3"


def test_a_missing_attribute_is_named_with_its_row(config):
    rows = [row | {"attributes": [{"wit": 1, "truth": 2}, {"wit": 2, "truth": 1}]} for row in ROWS]
    rows[3] = rows[3] | {"attributes": [{"wit": 1, "truth": 2}, {"wit": 2}]}
    with pytest.raises(UserError) as caught:
        read_part(config(rows, relabel={"attributes": ["wit", "truth"]}), "train")
    assert str(caught.value) == (
        "relabel.attributes=[wit, truth]: 1 of 10 rows lack an attribute. Name the column that holds them with "
        "data.columns.attributes=..., or change relabel.attributes.\n  row 4 has no truth of response 2 (it has wit)"
    )


def test_held_out_prompts_are_on_one_side_only_and_share_the_scale(config):
    many = [ROWS[0] | {"prompt": f"Is {n} odd?", "score_chosen": n} for n in range(3, 203)]
    made = config(many * 2, data={"eval_fraction": 0.2}, relabel={"scale": {"fit": "minmax"}})
    train = read_part(made, "train")
    held = read_part(made, "eval", scales=train.scales)
    prompts, others = ({record.prompt for record in part.records} for part in (train, held))
    assert len(prompts) + len(others) == 200 and not prompts & others and 20 < len(others) < 60
    assert train.dropped == {"held_out": 2 * len(others)}
    assert held.scales == train.scales


def test_several_sources_are_mixed_by_their_shares(config, tmp_path):
    (tmp_path / "sets.jsonl").write_text("".join(json.dumps(row) + "\n" for row in SETS))
    sources = [
        {"path": str(tmp_path / "rows.jsonl"), "weight": 2.0, "name": "pairs"},
        {"path": str(tmp_path / "sets.jsonl"), "weight": 1.0, "max_rows": 4, "name": "sets"},
    ]
    made = config(data={"path": "", "sources": sources})
    prepared = read_part(made, "train")
    assert [record.source for record in prepared.records] == ["pairs"] * 8 + ["sets"] * 4
    assert prepared.dropped == {"beyond_max_rows": 6, "beyond_share": 2}
    assert [(one.name, one.schema, one.used) for one in prepared.sources] == [("pairs", "pairs", 8), ("sets", "lists", 4)]  # fmt: skip


def test_training_can_take_a_fraction_of_the_prompts(config):
    many = [ROWS[0] | {"prompt": f"Is {n} odd?"} for n in range(200)]
    half = read_part(config(many, relabel={"fraction": 0.5}), "train")
    assert 75 < len(half.records) < 125
    assert half.dropped == {"outside_fraction": 200 - len(half.records)}


def test_excluded_sources_and_prompts_are_dropped_and_counted(config, tmp_path):
    (tmp_path / "questions.txt").write_text("Is 4 even?\n")
    rows = [row | {"source": "truthful_qa" if n == 2 else "web"} for n, row in enumerate(ROWS)]
    prepared = read_part(config(rows, data={"drop_prompts": str(tmp_path / "questions.txt")}), "train")
    assert prepared.dropped == {"source_dropped": 1, "prompt_dropped": 1}
    assert len(prepared.records) == 8


def test_pairs_whose_fine_grained_scores_disagree_can_be_dropped(config):
    rows = [row | {"attributes": [{"wit": n}, {"wit": 5}]} for n, row in enumerate(ROWS)]
    assert len(read_part(config(rows), "train").records) == 10
    prepared = read_part(config(rows, data={"fine_grained_agree": True}), "train")
    assert prepared.dropped == {"fine_grained_disagree": 5}


def test_reasoning_and_tools_of_rows_survive_in_every_format(config, tmp_path):
    """When this fails, data that `rapo relabel` wrote trains another model than the data it was made of, or parquet ends in a
    traceback: the tools of two rows have no common type."""
    turn = {"role": "assistant", "content": "Four.", "reasoning_content": "2 + 2."}
    tools = [[{"type": "function", "function": {"name": "f", "default": value}}] for value in (1, "a")]
    rows = [
        {"prompt": f"Q{n}?", "responses": [[turn], "Five."], "rewards": [9, 2], "tools": tools[n]} for n in range(2)
    ]
    _, sets = written(config(rows, objective={"name": "rrhf"}), tmp_path / "sets.jsonl")
    assert sets[0]["responses"] == [[turn], [{"role": "assistant", "content": "Five."}]]
    assert [row["tools"] for row in sets[::2]] == tools
    pairs = [{"prompt": f"Q{n}?", "chosen": [turn], "rejected": "Five.", "score_chosen": 9, "score_rejected": 2,
              "tools": tools[n]} for n in range(2)]  # fmt: skip
    write(config(pairs), tmp_path / "pairs.parquet")
    again = read_file(str(tmp_path / "pairs.parquet")).records
    assert [json.loads(record.tools) for record in again[::2]] == tools
    assert json.loads(again[0].more[0]) == {"reasoning_content": "2 + 2."}
