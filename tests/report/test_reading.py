"""What a page is made of is read as it is: runs that only began, files that were cut off, numbers that are not finite."""

import math

import pytest

from rapo_jax.errors import UserError
from rapo_jax.report.answers import Answer, gallery_of, goal_label, read_answers, text_of_prompt
from rapo_jax.report.charts import binned, undrawn
from rapo_jax.report.comparison import ABSENT, differences, setting
from rapo_jax.report.facts import data_facts, mesh_of, metric_rows, objective_of, origin, speed
from rapo_jax.report.inputs import own_names, read_inputs, short_names
from rapo_jax.report.page import overview
from rapo_jax.report.run_directory import curve, flat, read_records, read_run
from tests.report.places import CONFIG, ESTIMATE, RECORDS, REPORT, report, write_answers, write_results, write_run


def test_a_record_that_was_cut_off_or_is_not_finite_is_no_number(tmp_path):
    """When this fails, a run that goes on, or one that diverged, has no page."""
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 2, "loss": null, "note": "x"}\n{"step": 1, "loss": 0.5}\n{"step": 3, "loss": Infinity}\n{"step": 4, "lo'
    )
    one, two, three = read_records(path)
    assert one == {"step": 1, "loss": 0.5}
    assert math.isnan(two["loss"]) and "note" not in two and math.isnan(three["loss"])
    path.write_text('{"loss": 1}\n{"step": 4}\n')
    with pytest.raises(UserError, match=r"line 1 is no record of a step: step=None; remove the line"):
        read_records(path)


def test_a_curve_is_thinned_to_means_over_neighbours():
    records = [{"step": n, "loss": float(n)} for n in range(1, 8)] + [{"step": 8, "loss": math.nan}]
    assert curve(records, "loss", most=100) == ([1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5, 6, 7], 1)
    assert curve(records, "loss", most=3) == ([2, 5, 7], [2, 5, 7], 3)
    assert curve(records, "kl", most=3) == ([], [], 1)


def test_a_run_says_what_was_trained_from_what_and_how_fast(tmp_path):
    run = read_run(write_run(tmp_path / "ra"), "ra")
    facts = dict(origin(run))
    assert (facts["model"], facts["objective"], facts["trained"]) == ("models/base", "dpo, beta 0.1", "all weights")
    assert facts["goals"] == "rewards of chosen and rejected responses, from 1 to 10"
    assert facts["steps"] == "4 of 4, epoch 1.00" and "earlier version" in facts["versions"]
    assert run.median("pairs_per_s") == 30  # of 20, 30, 40: the first report compiles
    assert speed(run)["hours"][1] == 8 / 3600 and speed(run)["mfu"][1] is None
    where, rows = metric_rows(run)
    assert where == "held-out data at step 4" and rows == [("loss", [0.45, 0.4, 0.5, None, None])]


def test_a_run_that_diverged_says_so(tmp_path):
    """When this fails, a run whose loss is lost after its second step looks short, or healthy by an evaluation before that."""
    records = [record | ({"loss": None} if record["step"] > 2 else {}) for record in RECORDS]
    run = read_run(write_run(tmp_path / "ra", records=records), "ra")
    assert dict(origin(run))["steps"] == "4 of 4, epoch 1.00; loss not finite in 2 of 4 reports, first at step 3"
    assert "not finite" in dict(overview([run]).rows)["ra"][2]
    assert undrawn([run], "loss") == " Not finite, so not drawn: 2 reports of ra, first at step 3."
    assert undrawn([run], "rewards/accuracies") == ""


def test_peak_memory_is_the_most_of_any_report(tmp_path):
    records = [{"step": n, "memory/peak_gib": gib} for n, gib in ((1, 30.0), (2, 10.0), (3, 11.0))]
    assert speed(read_run(write_run(tmp_path / "x", records=records), "x"))["peak_gib"][1] == 30


def test_steps_that_were_not_reported_count_in_the_time(tmp_path):
    run = read_run(
        write_run(tmp_path / "x", records=[{"step": 10, "time/step_s": 1.0}, {"step": 30, "time/step_s": 2.0}]), "x"
    )
    assert run.seconds == 10 * 1 + 20 * 2


def test_objectives_are_said_with_their_terms_and_options():
    plus = [{"name": "sft", "weight": 2.0}]
    config = flat({"objective": {"name": "dpo", "weight": 1.0, "plus": plus, "beta": 0.5, "label_smoothing": 0.0}})
    assert objective_of(config) == "dpo + 2 sft, beta 0.5"
    assert objective_of({"objective.name": "dpo", "objective.best_goal_weight": 0.2}).startswith(
        "dpo + 0.2 likelihood at"
    )


def test_every_row_of_the_data_is_accounted_for():
    facts = dict(data_facts(REPORT["train"]))
    assert (facts["rows read"], facts["  empty response"], facts["records"]) == ("12", "1", "11")
    assert facts["ties (equal scores)"] == "1 found, 1 dropped"
    assert facts["tokens of prompts cut"] == "7 in 2 rows" and facts["tokens of responses cut"] == "0"
    assert binned({"--1": 1, "\u00b2": 1}) == ([], [], 0.8)
    assert binned({"1": 2, "3": 5}) == ([1.0, 3.0], [2, 5], 0.8)
    assert binned({str(n): 1 for n in range(100)}) == (
        [1 + 3 * n for n in range(34)],
        [3] * 33 + [1],
        pytest.approx(2.4),
    )
    assert data_facts({}) == []


def test_what_differs_is_found_and_what_came_with_a_version_is_apart():
    """When this fails, two runs of two versions seem to differ in every new setting, or a real difference is not seen."""
    found = differences(
        [{"seed": 0, "rows.split": "auto", "objective.beta": 0.1, "run_dir": "a"}, {"seed": 1, "run_dir": "b"}]
    )
    assert found.rows == (("seed", ("0", "1")), ("objective.beta", ("0.1", ABSENT)))
    assert found.unrecorded == ("rows.split",)
    assert [setting(each) for each in (None, True, 1e-6, 0.1, ["a", 2], {"a": 1.0}, "")] == [
        "null", "true", "1e-06", "0.1", "[a, 2]", "{a: 1}", "''",
    ]  # fmt: skip


def test_the_axis_that_shares_rows_is_told_where_it_is_in_use():
    """When this fails, a report hides how a run's rows were shared, or names an axis that nobody used."""
    made = {"device": "TPU v5e", "num_devices": 8}
    unused, used = ({"data": 1, "fsdp": 8 // size, "context": size, "tensor": 1} for size in (1, 4))
    assert mesh_of({}, made | {"mesh": unused}) == "8 TPU v5e (1 data x 8 fsdp x 1 tensor)"
    assert mesh_of({}, made | {"mesh": used}) == "8 TPU v5e (1 data x 2 fsdp x 4 context x 1 tensor)"
    earlier = {"mesh.data": 1, "mesh.fsdp": -1, "mesh.tensor": 1}
    assert mesh_of(earlier, {}).startswith("1 data x -1 fsdp x 1 tensor (-1: ")
    assert mesh_of(earlier | {"mesh.context": 2}, {}).startswith("1 data x -1 fsdp x 2 context x 1 tensor (")


def test_answers_go_from_no_goal_and_the_lowest_to_the_highest():
    answers = [Answer("m", "Hi", goal, str(goal)) for goal in ((10.0,), (), (2.0,))]
    answers += [Answer("n", "Hi", (2.0,), "two"), Answer("m", "Few goals", (1.0,), "one")]
    gallery = gallery_of([answers[-1], *answers[:-1]])
    assert gallery.num_prompts == 2 and gallery.models == ("m", "n")
    first, second = gallery.spectra
    assert (first.prompt, second.prompt) == ("Hi", "Few goals"), "prompts with more goals come first"
    assert [goal_label(goal) for goal in first.goals] == ["no goal", "2", "10"]
    assert [[len(by_model) for by_model in by_goal] for by_goal in first.answers] == [[1, 0], [1, 1], [1, 0]]
    assert goal_label((9.0, 2.5)) == "9, 2.5"


def test_answer_files_of_rapo_generate_are_read(tmp_path):
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
    rows = [
        {"prompt": turns, "response": "Hello", "goal": [9, 2.5], "score": 3},
        {"question": "Why?", "response": "", "goal": None, "model": "other"},
    ]
    one, two = read_answers(write_answers(tmp_path / "a.jsonl", rows), "mine")
    assert one == Answer("mine", "system: Be brief.\n\nuser: Hi", (9.0, 2.5), "Hello", 3.0)
    assert two == Answer("other", "Why?", (), "")
    assert text_of_prompt([{"role": "user", "content": "Hi"}]) == "Hi"


def test_things_are_called_by_the_shortest_end_of_their_path(tmp_path):
    assert short_names(["runs/a/dpo", "runs/b/dpo"]) == ["a/dpo", "b/dpo"]
    found = [("run", tmp_path / "ra"), ("answers", tmp_path / "ra.jsonl"), ("sweep", tmp_path / "sweep.json")]
    assert own_names(found) == ["ra", "ra", tmp_path.name]
    files = ("beta-0.1.jsonl", "beta-0.5.jsonl.gz", "v1.2", "a.jsonl", "a.txt")
    assert own_names([("answers", tmp_path / name) for name in files]) == [
        "beta-0.1", "beta-0.5", "v1.2", "a.jsonl", "a.txt",
    ]  # fmt: skip


def test_answers_of_different_files_are_one_model_s_only_where_they_have_one_name(tmp_path):
    """When this fails, a page shows the answers of two models as those of one."""

    def models(*words):
        return [
            (a.model, a.text) for a in read_inputs([str(tmp_path / w) if "=" not in w else w for w in words]).answers
        ]

    for name in ("beta-0.1", "beta-0.5"):
        write_answers(tmp_path / f"{name}.jsonl", [{"prompt": "x", "response": name}])
    for name, rows in {"one": ("m",), "two": ("m", "n")}.items():
        write_answers(tmp_path / f"{name}.jsonl", [{"prompt": "x", "response": name, "model": m} for m in rows])
    assert models("beta-0.1.jsonl", "beta-0.5.jsonl") == [(each, each) for each in ("beta-0.1", "beta-0.5")]
    both = [f"x={tmp_path}/beta-0.1.jsonl", f"x={tmp_path}/beta-0.5.jsonl"]
    assert models(*both) == [("x", "beta-0.1"), ("x", "beta-0.5")]
    assert models(f"x={tmp_path}/one.jsonl") == [("x", "one")]
    assert models(f"x={tmp_path}/two.jsonl", "one.jsonl") == [("x: m", "two"), ("x: n", "two"), ("m", "one")]
    assert models("one.jsonl", "two.jsonl") == [("one: m", "one"), ("two: m", "two"), ("n", "two")]


def bad_inputs(at):
    write_run(at / "run")
    write_run(at / "other" / "run")
    write_run(at / "list", config="- 1\n")
    write_run(at / "torn", records='{"step": 1}\nhello\n{"step": 2}\n')
    (at / "empty").mkdir()
    write_results(at / "half", odd={"suite": "odd", "measures": []})
    row = {"quantity": "q", "where": "all", "model": "m"} | ESTIMATE
    suite = {"suite": "preference", "explains": "", "measures": [row], "curves": {}}
    bins = {"said": [0.5, 0.6], "right": [0.5, None], "preferences": [1, 1]}
    heat = {"goals": [1, 2], "rewards": ["1"], "logp_per_token": [[0.5]]}
    for name, changed in {
        "value": {"measures": [row | {"value": "high"}]},
        "number": {"measures": [row | {"n": None}]},
        "bins": {"curves": {"m": bins}},
        "ragged": {"curves": {"m": bins | {"right": [0.5]}}},
        "heat": {"suite": "likelihood", "curves": {"m": heat}},
        "bare": {"curves": {"n": bins | {"right": [0.5, 0.5]}}},
        "lacks": {"suite": "unlearning", "curves": {"m": {}}, "measures": [
            row | {"model": "n"}, row | {"quantity": "log-probability under no goal, nats"},
        ]},
    }.items():  # fmt: skip
        write_results(at / name, odd=suite | changed)
    (write_results(at / "void") / "results.json").write_text("{}")
    write_run(at / "noname", config=CONFIG.replace("{name: dpo,", "{name: ,"))
    write_run(at / "true", config=CONFIG.replace("goals: [chosen, rejected]", "goals: true"))
    write_run(at / "word", config=CONFIG.replace("goals: [chosen, rejected]", "goals: chosen"))
    for name, text in {
        "x.json": "{}",
        "sweep.json": '{"goals": [1, 2], "models": {"m": [{"mean_score_by_goal": [1]}]}}',
    }.items():
        (at / name).write_text(text)
    write_answers(at / "no.jsonl", [{"response": "x"}])
    write_answers(at / "goal.jsonl", [{"prompt": "x", "response": "x", "goal": "high"}])
    write_answers(at / "none.jsonl", [])
    write_answers(at / "good.jsonl", [{"prompt": "x", "response": "x"}])
    write_answers(at / "link.jsonl.txt", [{"prompt": "x", "response": "y"}])
    (at / "link.jsonl").symlink_to(at / "good.jsonl")


BAD = {
    "nowhere": "nowhere does not exist; a page shows run directories,",
    "empty": "empty holds no config.yaml, no results.json and no sweep.json;",
    "list": "config.yaml holds no keys and values;",
    "torn": "metrics.jsonl line 2 is not JSON",
    "half": "results.json is not what rapo evaluate writes: odd lacks explains, curves; evaluate again, or leave it out.",
    "void": "results.json holds no suites; evaluate again, or leave it out.",
    "value": "odd: measures[0].value is 'high', expected a number;",
    "number": "odd: measures[0].n is None, expected an integer;",
    "bins": "odd: curves of m: right[1] is None, expected a number;",
    "ragged": "odd: curves of m: said, right and preferences are not of one length;",
    "heat": "odd: curves of m: logp_per_token has not a row for each of rewards and a column for each of goals;",
    "bare": "odd has no curves of m;",
    "lacks": "odd has log-probabilities of one model that another lacks;",
    "noname": "config.yaml: objective.name is None, expected a text",
    "true": "config.yaml: relabel.goals is True, expected a list; correct it, or leave this run out.",
    "word": "config.yaml: relabel.goals is 'chosen', expected a list;",
    "x.json": "x.json is neither a goal sweep nor the results of rapo evaluate;",
    "sweep.json": "sweep.json is no goal sweep",
    "no.jsonl": "no.jsonl line 1 has no prompt;",
    "goal.jsonl": 'goal="high" must be a number, a list of numbers, or null.',
    "none.jsonl": "none.jsonl holds no answers.",
    "run run": "run is named twice;",
    "a=run a=other/run": "2 runs are named a; give each its own NAME=RUN_DIR.",
    "run -o empty": "--out=empty is a directory; it must be a file, such as",
    "run -o page.html --json ./page.html": "--out and --json are both page.html; give each a file of its own.",
    "run -o page.html --json n --csv n": "--json and --csv are both n;",
    "good.jsonl -o page.html --csv good.jsonl": "--csv=good.jsonl is one of the files to show, which it would replace;",
    "a=good.jsonl -o page.html --json link.jsonl": "--json=link.jsonl is one of the files to show,",
    "run -o page.html --json run/config.yaml": "--json=run/config.yaml lies in ",
    "run -o page.html --csv other/run/new/n.csv": "run, a directory of a run or of results; choose a file outside.",
    "run -o half/page.html": "--out=half/page.html lies in ",
    "link.jsonl=good.jsonl link.jsonl.txt": "2 answer files are of a model link.jsonl; give each its own NAME=FILE.",
    "run -o x.json": "--out=x.json exists and is no page of rapo report;",
}


@pytest.mark.parametrize("words", BAD)
def test_what_cannot_be_shown_gets_one_sentence(words, tmp_path, monkeypatch, capsys):
    bad_inputs(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert report(*words.split(), *(() if "-o" in words else ("-o", "page.html"))) == 2
    said = capsys.readouterr().err
    assert BAD[words] in said and said.startswith("rapo report: ") and said.count("\n") == 1
    assert not (tmp_path / "page.html").exists()


def test_a_configuration_of_an_unknown_key_is_shown(tmp_path):
    """When this fails, runs of later and of earlier versions have no page."""
    run = read_run(write_run(tmp_path / "x", config=CONFIG + "later: {key: [1]}\n", report=None, records=RECORDS), "x")
    assert run.config["later.key"] == [1] and run.planned is None
