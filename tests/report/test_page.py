"""The page itself: complete, alone, and deaf to what the data say."""

import base64
import csv
import hashlib
import json
import re
import tarfile
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from rapo_jax.config.yaml_text import parse_yaml
from rapo_jax.drawing import as_svg, styled
from rapo_jax.evaluate.suites import likelihood, preference, unlearning
from rapo_jax.evaluate.sweep import Sweep
from rapo_jax.quickstart.__main__ import answer_rows
from rapo_jax.report.charts import Easel, compared_charts
from rapo_jax.report.run_directory import read_run
from tests.compatibility.test_older_runs import ARCHIVE
from tests.evaluate.test_suites import FLAT, FOLLOWS
from tests.report.places import (
    CONFIG,
    ESTIMATE,
    HOSTILE,
    RECORDS,
    REPORT,
    Page,
    report,
    write_answers,
    write_results,
    write_run,
)  # fmt: skip

SWEEP = {
    "goals": [1, 5, 10],
    "num_prompts": 64,
    "models": {
        "base": [{"mean_score_by_goal": [4.0, 4.5, 4.0], "rank_correlation": 0.0}],
        "ra": [{"mean_score_by_goal": [2.0, 5.0, 8.0], "low_by_goal": [1, 4, 7], "high_by_goal": [3, 6, 9], "rank_correlation": 0.9}],
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two runs, the results of three suites, a sweep and hostile answers, and their page with its numbers."""
    place = tmp_path_factory.mktemp("place")
    write_run(place / "ra")
    write_run(place / "plain$x$<b>", config=(place / "ra" / "config.yaml").read_text().replace("seed: 0", "seed: 1"))
    results = (likelihood([FLAT, FOLLOWS]), unlearning([FLAT, FOLLOWS]))
    results += (preference([FOLLOWS], [FLAT], beta=1.0, reference="base"),)
    write_results(place / "evaluated", **{result.suite: result.tree() for result in results})
    (place / "sweep.json").write_text(json.dumps(SWEEP))
    rows = [
        {"prompt": f"{p} {HOSTILE}", "goal": g, "response": f"{g} {HOSTILE}"} for p in "ab" for g in (10, 1, 5.5, None)
    ]
    write_answers(place / "ra.jsonl", rows)
    write_answers(place / "named.jsonl", rows[:2])
    words = ["ra", "plain$x$<b>", "evaluated", "sweep.json", "ra.jsonl", "base=named.jsonl"]
    words = [str(place / word) if "=" not in word else f"base={place / 'named.jsonl'}" for word in words]
    files = ("--json", place / "n.json", "--csv", place / "n.csv")
    assert report(*words, "-o", place / "page.html", "--title", "A <title>", *files) == 0
    return place


@pytest.fixture(scope="module")
def page(place):
    return Page((place / "page.html").read_text(encoding="utf-8"))


def test_a_page_asks_for_nothing_from_elsewhere(page):
    """When this fails, opening a colleague's page tells somebody that it was opened, or shows half of it on a train."""
    addresses = [
        each for name in ("src", "href", "xlink:href", "srcset", "data", "action") for each in page.attribute(name)
    ]
    assert addresses and all(each.startswith(("#", "data:")) for each in addresses)
    styles = " ".join([*page.attribute("style"), page.styles])
    assert "--ink" in page.styles and "@import" not in styles and "url(" not in styles.replace("url(#", "")
    policy = next(content for content in page.attribute("content") if "default-src" in content)
    kinds = dict(each.strip().split(" ", 1) for each in policy.split(";"))
    assert kinds.pop("script-src").startswith("'sha256-")
    assert kinds == {
        "default-src": "'none'", "style-src": "'unsafe-inline'", "img-src": "data:", "base-uri": "'none'",
        "form-action": "'none'",
    }  # fmt: skip


def test_wide_figures_can_be_scrolled_by_keys(page):
    """When this fails, whoever has no mouse sees half of a figure: what is inside an image has no focus."""
    assert all("img" not in around for _, around in page.focusable)
    wide = [each for each in page.attribute("class") if each == "wide"]
    regions = [attributes for tag, attributes in page.tags if tag == "div" and attributes.get("class") == "scrolls"]
    assert wide and all(each["tabindex"] == "0" and each["role"] == "region" for each in regions)
    assert "img" in page.attribute("role")


def test_borders_of_controls_can_be_seen(page):
    """When this fails, a border has less than 3:1 against what is beside it (WCAG 2.2, 1.4.11)."""

    def luminance(colour):
        shares = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in shares]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    schemes = [
        dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block)) for block in re.findall(r":root \{([^}]*)\}", page.styles)
    ]
    assert len(schemes) == 2
    for colours in schemes:
        for behind in ("paper", "panel"):
            dark, light = sorted(luminance(colours[each]) for each in ("edge", behind))
            assert (light + 0.05) / (dark + 0.05) >= 3
    for control in ("select, button", "fieldset"):
        (colour,) = re.findall(rf"^{control} \{{[^}}]*border: 1px solid var\(--(\w+)\)", page.styles, re.MULTILINE)
        assert colour == "edge"


def test_text_of_any_direction_leaves_the_rest_in_order(page):
    """When this fails, an Arabic or Hebrew name or answer turns round what stands beside it."""
    assert {attributes.get("dir") for tag, attributes in page.tags if tag in ("blockquote", "option", "h1")} == {"auto"}
    assert "bdi" in {tag for tag, _ in page.tags} and "unicode-bidi: isolate" in page.styles
    (own,) = (text for attributes, text in page.scripts if not attributes.get("type"))
    assert 'element.dir = "auto"' in own


def test_a_figure_s_text_is_not_edited():
    """When this fails, a model whose name looks like markup has another name in its figure."""
    name = 'x id="q" url(#a) xlink:href= #1b1d21'
    with styled():
        figure, axes = Easel().axes()
        axes.plot([0, 1], [0, 1])
        axes.set(title=name)
        svg = as_svg(figure, "f1")
    root = ElementTree.fromstring(svg)
    assert name in ["".join(each.itertext()) for each in root.iter("text")]
    assert "var(--ink)" in svg and "#1b1d21" not in "".join(re.findall("<[^>]*>", svg))


def test_captions_name_runs_that_have_no_values(tmp_path):
    for name in ("a", "b"):
        write_run(tmp_path / name)
    write_run(tmp_path / "silent", records='{"step": 1}\n')
    runs = [read_run(tmp_path / name, name) for name in ("a", "b", "silent")]
    with styled():
        said = [chart.said for chart in compared_charts(runs, Easel())]
    assert said and all("No values of silent." in each for each in said)


def test_printed_commands_are_whole(tmp_path, monkeypatch):
    """When this fails, the command of a page makes another page, or that of a run writes to ".-again"."""
    monkeypatch.chdir(write_run(tmp_path / "run"))
    assert report(".", "-o", "../p.html", "--title", "A b", "--csv", "../n.csv", "--json", "../n.json") == 0
    shown = Page((tmp_path / "p.html").read_text()).shown
    assert "rapo report . -o ../p.html --title 'A b' --json ../n.json --csv ../n.csv" in shown
    assert f"run_dir={tmp_path / 'run'}-again" in shown and f"rapo export {tmp_path / 'run'} " in shown


def test_the_quickstart_keeps_every_answer():
    run = Sweep((1.0, 2.0), np.array([[1.0], [2.0]]), ("a", "b"), (("a",), ("b",)))
    assert [row["response"] for row in answer_rows({"m": [run, run]}, ["p"])] == ["a", "b", "a", "b"]


def test_every_id_is_unique_and_every_link_leads_to_one(page):
    """When this fails, a picture shows the marks of another, or the contents lead nowhere."""
    ids = page.attribute("id")
    assert len(ids) == len(set(ids)) and page.open == []
    targets = [each[1:] for each in page.attribute("href") if each.startswith("#")]
    targets += [each for name in ("aria-labelledby", "for") for each in page.attribute(name)]
    clipped = [each.split("url(#")[1].split(")")[0] for each in page.attribute("clip-path")]
    assert not {*targets, *clipped} - set(ids)


def test_only_the_page_s_own_script_runs(page, place):
    """When this fails, a response in the data is a program on the reader's machine."""
    (own,) = (text for attributes, text in page.scripts if not attributes.get("type"))
    assert len(page.scripts) == 4
    allowed = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
    assert f"script-src 'sha256-{allowed}'" in (place / "page.html").read_text()
    assert not [tag for tag, _ in page.tags if tag == "img"]
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]


def test_text_of_the_data_is_shown_as_text(page):
    assert "A <title>" in page.shown and "plain$x$<b>" in page.shown
    assert HOSTILE.split("\u2028")[0] in page.shown
    assert page.script("answers-json")["prompts"][0]["text"] == f"a {HOSTILE}"


def test_the_slider_has_every_answer_from_the_lowest_goal_to_the_highest(page):
    shown = page.script("answers-json")
    assert shown["models"] == ["ra", "base"] and [each["text"][0] for each in shown["prompts"]] == ["a", "b"]
    for prompt in shown["prompts"]:
        assert prompt["goals"] == ["no goal", "1", "5.5", "10"]
        texts = [
            [[one["text"].split()[0] for one in of_model] for of_model in at_goal] for at_goal in prompt["answers"]
        ]
        base = [["None"], ["1"], ["5.5"], ["10"]]
        assert [at_goal[0] for at_goal in texts] == base
        assert [at_goal[1] for at_goal in texts] == ([[], ["1"], [], ["10"]] if prompt["text"][0] == "a" else [[]] * 4)
    (slider,) = (attributes for tag, attributes in page.tags if attributes.get("type") == "range")
    assert (slider["min"], slider["max"], slider["step"]) == ("0", "3", "1")


def test_numbers_are_the_same_as_json_as_csv_and_in_the_page(page, place):
    inside, beside = page.script("numbers-json"), json.loads((place / "n.json").read_text())
    assert inside == beside and page.script("numbers-csv") == (place / "n.csv").read_text()
    ra, plain = beside["runs"]
    assert ra["curves"]["loss"]["value"] == [each["loss"] for each in RECORDS] and ra["speed"]["pairs_per_s"] == 30
    assert (ra["config"]["seed"], plain["config"]["seed"]) == (0, 1)
    with (place / "n.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["kind"] for row in rows} == {"run", "evaluation", "sweep"}
    bins = [row for row in rows if row["where"].startswith("sigmoid of the margin")]
    (of_model,) = (suite["curves"] for suite in beside["evaluations"][0]["results"] if suite["suite"] == "preference")
    (curve,) = of_model.values()
    assert bins and [(float(row["value"]), int(row["n"])) for row in bins] == list(
        zip(curve["right"], curve["preferences"], strict=True)
    )
    assert "preference: reliability by how sure" in page.shown
    (top,) = (row for row in rows if row["model"] == "ra" and row["where"] == "goal 10")
    assert (top["value"], top["low"], top["high"], top["n"]) == ("8.0", "7.0", "9.0", "64")


def test_scores_of_answers_are_drawn_and_told_beside_a_sweep(tmp_path, monkeypatch):
    """When this fails, means that a picture shows can be had nowhere as numbers, or a sweep of another model hides them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sweep.json").write_text(json.dumps(SWEEP))
    scores = [(1, 2.0), (1, 4.0), (9, 8.0), (None, 5.0), ([1, 2], 6.0)]
    rows = [{"prompt": "a", "response": "b", "goal": goal, "score": score} for goal, score in scores]
    write_answers(tmp_path / "x.jsonl", rows)
    assert report("sweep.json", "x.jsonl", "-o", "p.html", "--json", "n.json", "--csv", "n.csv") == 0
    page = Page((tmp_path / "p.html").read_text())
    assert "Mean score of the answers against the goal asked" in page.shown and "3, n 2" in page.shown
    found = {
        json.dumps(each["goal"]): (each["mean_score"], each["n"])
        for each in json.loads(Path("n.json").read_text())["answers"]
    }
    assert found == {"[1.0]": (3, 2), "[9.0]": (8, 1), "[]": (5, 1), "[1.0, 2.0]": (6, 1)}
    with Path("n.csv").open() as file:
        told = {
            row["where"]: (float(row["value"]), row["n"]) for row in csv.DictReader(file) if row["kind"] == "answers"
        }
    assert told == {"goal 1": (3, "2"), "goal 9": (8, "1"), "no goal": (5, "1"), "goal 1, 2": (6, "1")}


def test_runs_are_compared(page):
    assert "What differs in the configurations" in page.shown
    boxes = [attributes for _, attributes in page.tags if "data-series" in attributes]
    assert [box["data-series"] for box in boxes] == ["0", "1"]
    lines = [each for each in page.attribute("class") if each.startswith("series-")]
    assert set(lines) == {"series-0", "series-1"}


def test_many_runs_share_their_pictures(tmp_path):
    """When this fails, a page of 20 runs takes half a minute to make and as long to read."""
    words = [write_run(tmp_path / f"r{n}", config=CONFIG.replace("seed: 0", f"seed: {n}")) for n in range(7)]
    assert report(*words, "-o", tmp_path / "p.html") == 0
    page = Page((tmp_path / "p.html").read_text())
    assert (
        page.shown.count("Its curves are in the comparison of the runs.") == 7
        and "Curves by goal side" not in page.shown
    )
    assert {f"series-{n}" for n in range(7)} <= set(page.attribute("class"))


def test_a_page_of_ours_is_replaced_and_says_how_it_was_made(place, capsys):
    assert report(place / "ra", "-o", place / "page2.html") == 0
    assert report(f"first={place / 'ra'}", "-o", place / "page2.html") == 0
    assert "open it: file://" in capsys.readouterr().out
    page = Page((place / "page2.html").read_text())
    assert f"rapo report first={place / 'ra'} -o {place / 'page2.html'}" in page.shown
    assert "Run: first" in page.shown and "Comparison of the runs" not in page.shown


SECRET = "https://me:hunter2@host/rows?token=abc"


def with_secrets(tree):
    """The same tree with a secret in each text and each key of a number."""
    if isinstance(tree, dict):
        return {key: with_secrets(each) for key, each in tree.items()}
    if isinstance(tree, list):
        return [with_secrets(each) for each in tree]
    return SECRET if isinstance(tree, str) else tree


def test_secrets_in_addresses_are_not_shown(tmp_path, monkeypatch):
    """When this fails, whoever gets a page gets the passwords and tokens of whoever made it."""
    monkeypatch.chdir(tmp_path)
    token = "hf_" + "a" * 20
    config = json.dumps(with_secrets(parse_yaml(CONFIG, said="")) | {SECRET: {SECRET: [SECRET]}})
    data = with_secrets(REPORT) | {"run": dict.fromkeys(("device", "family", "rapo_jax", "jax", SECRET), SECRET)}
    data["train"] |= {"scores_from": SECRET, "preferences": {SECRET: 3}, "rows_dropped": {SECRET: 1}}
    run = write_run(
        tmp_path / token, config=config.replace('"rank": null', '"rank": 8'), report=data | {"eval": data["train"]},
        records=[record | {SECRET: 1.0} for record in RECORDS],
    )  # fmt: skip
    write_run(tmp_path / "other")
    named = {"quantity": SECRET, "where": SECRET, "model": SECRET} | ESTIMATE
    suite = {"suite": "odd", "explains": SECRET, "measures": [named], "curves": {SECRET: SECRET}}
    write_results(tmp_path / "evaluated", **{SECRET: suite, "odd": suite | {"suite": SECRET}})
    sweep = SWEEP | {"models": {SECRET: SWEEP["models"]["ra"], "\ud83d": SWEEP["models"]["ra"]}}
    (tmp_path / "sweep.json").write_text(json.dumps(sweep))
    row = {"prompt": SECRET, "response": SECRET, "model": SECRET, "goal": 1, "score": 2}
    write_answers(tmp_path / "a.jsonl", [row, row | {"goal": 3}, row | {"model": "\ud83d"}])
    words = [run, "other", "evaluated", "sweep.json", "a.jsonl"]
    files = ("--json", "n.json", "--csv", "n.csv", "--title", SECRET)
    assert report(*words, "-o", "p.html", *files) == 0
    for name in ("p.html", "n.json", "n.csv"):
        text = (tmp_path / name).read_text()
        assert "hunter2" not in text and "token=abc" not in text and token not in text and "***@host" in text
    with (tmp_path / "n.csv").open() as file:
        rows = list(csv.reader(file))
    assert {len(row) for row in rows} == {10} and {row[0] for row in rows[1:]} >= {"run", "evaluation", "sweep"}


@pytest.mark.parametrize(
    "records",
    ["", '{"st', json.dumps({"step": 1, "loss": None}) + "\n", '{"step": 1, "loss": NaN, "time/step_s": Infinity}\n'],
    ids=["nothing", "half a line", "null", "NaN"],
)
def test_runs_that_began_or_diverged_have_a_page(records, tmp_path):
    write_run(tmp_path / "run", records=records, report=None)
    write_run(tmp_path / "other")
    assert report(tmp_path / "run", tmp_path / "other", "-o", tmp_path / "p.html") == 0
    page = Page((tmp_path / "p.html").read_text())
    assert ("No step has been reported yet." in page.shown) == (not records.endswith("\n"))


def test_runs_of_an_earlier_version_have_a_page(tmp_path):
    """When this fails, whoever updates loses the pages of all runs before."""
    wanted = ("config.yaml", "data_report.json", "metrics.jsonl")
    with tarfile.open(ARCHIVE) as tar:
        members = [
            member for member in tar.getmembers() if Path(member.name).name in wanted and "/half/" in member.name
        ]
        tar.extractall(tmp_path, members, filter="data")
    runs = sorted({(tmp_path / member.name).parent for member in members})
    assert len(runs) == 5
    assert report(*(f"{run.parent.name}={run}" for run in runs), "-o", tmp_path / "p.html") == 0
    page = Page((tmp_path / "p.html").read_text())
    assert "Run: kto" in page.shown and "earlier version" in page.shown
