"""Configuration files: the paper's defaults, overrides, inheritance, and one sentence for each mistake."""

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from rapo_jax.config.files import as_dict, from_dict, load_config, to_yaml
from rapo_jax.errors import UserError

CONFIGS = sorted((Path(__file__).parents[2] / "configs").rglob("*.yaml"))


@pytest.fixture
def load(tmp_path):
    """A function (YAML text, *overrides) -> Config."""

    def load(text="", *overrides):
        (tmp_path / "run.yaml").write_text(text)
        return load_config(tmp_path / "run.yaml", list(overrides))

    return load


@pytest.fixture
def refusal(load):
    """A function (YAML text, *overrides) -> the message with which it is refused."""

    def refusal(text="", *overrides):
        with pytest.raises(UserError) as caught:
            load(text, *overrides)
        return str(caught.value)

    return refusal


# Defaults.


def test_the_defaults_are_the_papers(load):
    """When this fails, `rapo train` without settings is no longer the published method. Appendix B.1: AdamW, 5e-7,
    cosine with 10% warmup, 128 pairs a step, one epoch, 1024 tokens of which 512 are prompt; beta 0.01 as in its
    scripts."""
    config = load()
    assert (config.objective.name, config.objective.options) == ("dpo", {"beta": 0.01, "label_smoothing": 0.0})
    optimizer = config.optimizer
    assert (optimizer.learning_rate, optimizer.schedule, optimizer.warmup_ratio) == (5e-7, "cosine", 0.1)
    assert (optimizer.b1, optimizer.b2, optimizer.eps, optimizer.weight_decay) == (0.9, 0.999, 1e-8, 0.0)
    assert (config.train.batch_size, config.train.num_epochs) == (128, 1.0)
    assert (config.data.max_length, config.data.max_prompt_length) == (1024, 512)
    assert config.relabel.goals == ("chosen", "rejected")
    assert (config.relabel.template, config.relabel.goal_max, config.relabel.ties) == ("paper", 10.0, "drop")


def test_a_prompt_has_half_of_a_short_row_unless_a_length_is_given(load, refusal):
    """When this fails, data.max_length=256 alone is refused for a setting that nobody gave; or a run with 600 tokens, which
    began under an earlier version, does not resume."""
    lengths = {most: load("", f"data.max_length={most}").data.max_prompt_length for most in (2, 256, 512, 513, 600)}
    assert lengths == {2: 1, 256: 128, 512: 256, 513: 512, 600: 512}
    given = "data: {max_prompt_length: 512}"
    assert refusal(given, "data.max_length=256").startswith(
        "data.max_length=256 must exceed data.max_prompt_length=512;"
    )
    assert from_dict(as_dict(load("", "data.max_length=256"))).data.max_prompt_length == 128


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("train.learning_rate", "optimizer.learning_rate"),
        ("learning_rate", "optimizer.learning_rate"),
        ("optimizer.learnig_rate", "optimizer.learning_rate"),
        ("optimiser", "optimizer"),
        ("data.columns.promt", "data.columns.prompt"),
        ("objective.betta", "objective.beta"),
        ("pathh", "model.path or data.path"),
    ],
)
def test_a_mistyped_key_is_answered_with_the_whole_one(refusal, key, meant):
    """When this fails, the hint names half a key, and the next attempt is refused too."""
    assert refusal("", f"{key}=1") == f"unknown key {key}; did you mean {meant}?"


def test_an_empty_file_is_the_defaults(load):
    assert load("") == load("# only a comment\n") == load("model:\n") == from_dict({})


# Overrides.


def test_the_command_line_wins_over_the_file_and_the_file_over_the_defaults(load):
    config = load("objective: {beta: 0.1, label_smoothing: 0.2}", "objective.beta=0.5", "model.path=some/dir")
    assert config.objective.options == {"beta": 0.5, "label_smoothing": 0.2}
    assert config.model.path == "some/dir"
    assert config.optimizer.learning_rate == 5e-7


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("relabel.goals=[]", ()),
        ("relabel.goals=[chosen]", ("chosen",)),
        ("relabel.template=Score = {goal}", "Score = {goal}"),
        ("train.max_steps=null", None),
        ("train.max_steps=3", 3),
        ("optimizer.learning_rate=1e-6", 1e-6),
        ("optimizer.max_grad_norm=1", 1.0),
        ("model.random_init=true", True),
        ("run_dir=runs/a=b", "runs/a=b"),
        (" seed = 7", 7),
    ],
)
def test_an_override_is_read_as_yaml(load, override, value):
    found = load("", override)
    for key in override.partition("=")[0].strip().split("."):
        found = getattr(found, key)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("number", ["5e-7", "5E-7", "5.0e-7", "0.0000005", "'5e-7'"])
def test_numbers_in_scientific_notation_are_numbers(load, number):
    """When this fails, 5e-7, as everyone writes it, is read as a string, which is YAML 1.1's rule."""
    assert load(f"optimizer: {{learning_rate: {number}}}").optimizer.learning_rate == 5e-7


# What is refused.


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("objective.betta=0.1", "unknown key objective.betta; did you mean objective.beta?"),
        ("modle.path=x", "unknown key modle; did you mean model?"),
        ("train.batchsize=4", "unknown key train.batchsize; did you mean train.batch_size?"),
        ("mesh.zzz=1", "unknown key mesh.zzz; known: context, data, fsdp, tensor"),
        ("objective.name=dbo", "objective.name='dbo' is unknown; did you mean 'dpo'?"),
        ("data.columns.score=x", "unknown key data.columns.score; did you mean data.columns.score_chosen?"),
    ],
)
def test_a_misspelt_name_is_refused_with_the_nearest_known_one(refusal, override, message):
    """When this fails, a misspelt key is ignored, and a run has other settings than its author believes."""
    assert refusal("", override) == message


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "seed=1" + "0" * 400,
            "000 must be a finite number, not negative.",
        ),
        ("optimizer.learning_rate=1" + "0" * 400, "optimizer.learning_rate=1000"),
        ("run_dir='a\0b'", "special characters are not allowed"),
        ('run_dir="a\\0b"', "run_dir='a\\x00b' is not a usable path (embedded null byte); correct it."),
        (
            'relabel.template="\\ud800"',
            "relabel.template='\\ud800' holds half of a surrogate pair, which is not Unicode",
        ),
        ("reference.cache=" + "x" * 300, "is not a usable path (File name too long); correct it."),
        ("run_dir=a\udcffb", "run_dir=a\\udcffb cannot be read as YAML"),
        ("data.drop_sources=&a [*a]", "a value that contains itself"),
        ("extends=x", "unknown key extends; "),
    ],
)
def test_an_override_that_no_run_can_have_is_refused(refusal, override, message):
    """When this fails, a slip on a command line is a traceback."""
    assert message in refusal("", override)


def test_a_file_with_a_name_that_none_can_have_is_refused(tmp_path):
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    (tmp_path / "run.yaml").write_text(f"extends: {'x' * 300}")
    with pytest.raises(UserError, match="is not a usable path \\(Too many levels of symbolic links\\)"):
        load_config(tmp_path / "loop.yaml")
    with pytest.raises(UserError, match="which is not a usable path \\(File name too long\\)"):
        load_config(tmp_path / "run.yaml")


def test_a_key_that_is_not_a_string_is_unknown(refusal):
    assert (
        refusal("5: 3")
        == "unknown key 5; known: data, lora, mesh, model, objective, optimizer, reference, relabel, rounds, rows, run_dir, seed, train"
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.batch_size=64.5", "train.batch_size=64.5: expected an integer."),
        ("train.batch_size=many", "train.batch_size='many': expected an integer."),
        ("train.batch_size=true", "train.batch_size=True: expected an integer."),
        ("train.batch_size=", "train.batch_size=None: expected an integer."),
        ("objective.beta=high", "objective.beta='high': expected a number."),
        ("objective.beta=true", "objective.beta=True: expected a number."),
        ("model.remat=1", "model.remat=1: expected one of none, mlp, attention, full."),
        ("model.random_init=1", "model.random_init=1: expected true or false."),
        ("model.dtype=float16", "model.dtype='float16': expected one of float32, bfloat16."),
        ("relabel.goals=chosen", "relabel.goals='chosen': expected a list, such as [chosen, rejected]."),
        ("relabel.goals=[best]", "relabel.goals='best': expected one of chosen, rejected."),
        ("data.columns=x", "data.columns must hold keys and values, found 'x'."),
        ("run_dir=2024", "run_dir=2024: expected a text (in quotes, if it looks like something else)."),
    ],
)
def test_a_wrong_type_is_refused_with_what_was_expected(refusal, override, message):
    assert refusal("", override) == message


def test_a_value_cannot_be_used_as_a_section(refusal):
    assert refusal("model: x", "model.path=y") == "model is a value, it has no 'path'."
    assert refusal("", "seed.first=1") == "seed={'first': 1}: expected an integer."


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["data.max_length=512", "data.max_prompt_length=512"],
            "data.max_length=512 must exceed data.max_prompt_length=512; raise the first or lower the second.",
        ),
        (["objective.beta=0"], "objective.beta=0.0 must be positive and finite."),
        (["objective.beta=.nan"], "objective.beta=nan must be positive and finite."),
        (["train.batch_size=0"], "train.batch_size=0 must be positive and finite."),
        (["train.max_steps=-1"], "train.max_steps=-1 must be positive and finite."),
        (["train.max_skipped_steps=0"], "train.max_skipped_steps=0 must be positive and finite."),
        (["train.keep_best=-1"], "train.keep_best=-1 must be a finite number, not negative."),
        (["seed=-1"], "seed=-1 must be a finite number, not negative."),
        (["optimizer.learning_rate=-1e-6"], "optimizer.learning_rate=-1e-06 must be a finite number, not negative."),
        (["optimizer.learning_rate=nan"], "optimizer.learning_rate=nan must be a finite number, not negative."),
        (["optimizer.weight_decay=-0.1"], "optimizer.weight_decay=-0.1 must be a finite number, not negative."),
        (["optimizer.warmup_ratio=1.5"], "optimizer.warmup_ratio=1.5 must lie in [0, 1]."),
        (["optimizer.b1=1"], "optimizer.b1=1.0 must lie in [0, 1)."),
        (["lora.rank=0"], "lora.rank=0 must be positive and finite."),
        (["lora.rank=8", "lora.alpha=-1"], "lora.alpha=-1.0 must be positive and finite."),
        (["lora.alpha=32"], "lora.alpha=32.0 without lora.rank does nothing; set lora.rank, such as 16, or remove it."),
        (
            ["lora.rank=8", "lora.targets=[q_proj]"],
            "lora.targets: 'q_proj' is not one of q, k, v, o, gate, up, down; did you mean 'q'?",
        ),
        (
            ["lora.rank=8", "lora.targets=[q, q]"],
            "lora.targets=[q, q] must name at least one matrix, and each once.",
        ),
        (["lora.rank=8", "lora.targets=[]"], "lora.targets=[] must name at least one matrix, and each once."),
        (["optimizer.eps=0"], "optimizer.eps=0.0 must be positive and finite."),
        (["objective.label_smoothing=0.5"], "objective.label_smoothing=0.5 must lie in [0, 0.5)."),
        (["relabel.goals=[chosen, chosen]"], "relabel.goals=[chosen, chosen] names a side twice; name each once."),
        (
            ["relabel.template=papr"],
            "relabel.template='papr' has no {goal}; write one with {goal} or name one of: paper, released_code.",
        ),
    ],
)
def test_a_value_out_of_range_is_refused(refusal, overrides, message):
    """When this fails, a NaN learning rate, which compares false with everything, is found after loading the model."""
    assert refusal("", *overrides) == message


def test_options_that_the_objective_does_not_read_are_refused(refusal):
    """When this fails, someone runs a sweep over a beta that does nothing."""
    overrides = ["objective.name=sft", "relabel.goals=[]", "objective.beta=0.5", "objective.label_smoothing=0.1"]
    assert refusal("", *overrides) == (
        "objective.name=sft does not read objective.beta=0.5, objective.label_smoothing=0.1; remove it or set it to null (it reads no options)."
    )


def test_both_refusals_of_a_loss_on_one_response_come_at_once(refusal):
    """When this fails, fine-tuning from a file that is for pairs is refused a second time, for something else."""
    message = refusal("objective: {beta: 0.1}", "objective.name=sft")
    assert message == (
        "objective.name=sft does not read objective.beta=0.1; remove it or set it to null (it reads no options). Besides: "
        "objective.name=sft trains on one response and has no rejected one to take a goal from, but "
        "relabel.goals=[chosen, rejected]; set relabel.goals=[chosen] (each response at its own score) or relabel.goals=[] "
        "(no goals)."
    )


def test_an_empty_override_is_an_empty_string(load):
    """When this fails, a command line cannot remove the evaluation that its configuration file asks for."""
    assert load("data: {eval_path: some.jsonl}", "data.eval_path=").data.eval_path == ""


def test_an_option_set_to_null_takes_its_default_whichever_loss_reads_it(load):
    """When this fails, a file that extends another cannot unset an option that its own loss does not read."""
    objective = load("objective: {name: hinge, beta: null, gamma: null, shift_end: null}").objective
    assert objective.options == {"beta": 0.1}
    assert load("", "objective.name=dpo_shift", "objective.shift_end=null").objective.options["shift_end"] is None


def test_an_objective_takes_the_defaults_of_its_function(load):
    assert load("", "objective.name=simpo").objective.options == {"beta": 2.0, "gamma": 0.5, "label_smoothing": 0.0}
    assert load("objective: {name: simpo, gamma: 1.0}").objective.options["gamma"] == 1.0
    written = yaml.safe_load(to_yaml(load("", "objective.name=hinge")))["objective"]
    assert written == {"name": "hinge", "weight": 1.0, "best_goal_weight": 0.0, "beta": 0.1}


def test_losses_add_up_each_with_its_weight_and_its_options(load):
    config = load("objective: {name: ipo, average: true, plus: [{name: sft, weight: 0.5}, {name: dpo, beta: 0.3}]}")
    assert [(t.name, t.weight, t.options) for t in config.objective.terms] == [
        ("ipo", 1.0, {"beta": 0.1, "average": True}), ("sft", 0.5, {}), ("dpo", 1.0, {"beta": 0.3, "label_smoothing": 0.0})
    ]  # fmt: skip
    assert from_dict(as_dict(config)) == config


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (
            "{name: rpo}",
            "objective.name='rpo' means different things to different people; choose rpo_sq, rpo_bwd_kl, rpo_fwd_kl "
            "(Nemotron-4's reward-aware preference optimization); reward_distill (Fisch's robust preference "
            "optimization); dpo with objective.plus=[{name: sft, weight: ...}] (Liu's regularized preference optimization).",
        ),
        (
            "{name: dro}",
            "objective.name='dro' means different things to different people; choose dro_pointwise (direct reward "
            "optimization, explicit rewards); robust_dpo (distributionally or noise-robust DPO).",
        ),
        (
            "{name: slic}",
            "objective.name='slic' means different things to different people; choose slic_hf (SLiC-HF's calibration on "
            "log-probabilities); hinge (RSO's hinge on log-ratios).",
        ),
        (
            "{name: hinge, label_smoothing: 0.1, gamma: 2}",
            "objective.name=hinge does not read objective.label_smoothing=0.1, objective.gamma=2.0; remove it or set it to null (it reads beta).",
        ),
        ("{plus: [{name: sfd}]}", "objective.plus[0].name='sfd' is unknown; did you mean 'sft'?"),
        ("{plus: [{nam: sft}]}", "unknown key objective.plus[0].nam; did you mean objective.plus[0].name?"),
        ("{plus: {name: sft}}", "objective.plus={'name': 'sft'}: expected a list, such as [{name: sft, weight: 0.5}]."),
        ("{plus: [{name: sft, weight: -1}]}", "objective.plus[0].weight=-1.0 must be a finite number, not negative."),
        (
            "{plus: [{name: sft, plus: [{name: dpo}]}]}",
            "objective.plus[0] is itself an added loss; it has neither plus nor best_goal_weight.",
        ),
        (
            "{name: bradley_terry, plus: [{name: sft}]}",
            "objective.name=bradley_terry trains a scalar head and cannot be added to other losses; remove plus.",
        ),
        (
            "{name: exo_pair, label_smoothing: 0}",
            "objective.label_smoothing=0.0 must lie in (0, 0.5): exo_pair takes its logarithm.",
        ),
        (
            "{name: discopop, temperature: 1}",
            "objective.temperature=1.0 must lie in (0, 1): discopop's exponential overflows from 1 on.",
        ),
        ("{name: dro_pointwise, log_z0: .inf}", "objective.log_z0=inf must be a finite number."),
        (
            "{name: orpo, best_goal_weight: 0.1}",
            "objective.best_goal_weight=0.1 multiplies beta, and orpo has none; use dpo or another objective with beta.",
        ),
    ],
)
def test_an_impossible_objective_is_refused(refusal, objective, message):
    assert refusal(f"objective: {objective}") == message


@pytest.mark.parametrize(
    ("relabel", "why"),
    [
        ("{goals: []}", "relabel.goals=[]"),
        ("{goal_kind: directions, attributes: [a, b], goals: [chosen]}", "relabel.goal_kind=directions"),
        ("{template: 'As {source}: {goal}'}", "relabel.template names {source}"),
    ],
)
def test_the_best_goal_term_needs_a_highest_goal(load, refusal, relabel, why):
    """When this fails, the exported chat template asks for something other than the highest goal."""
    assert refusal(f"{{relabel: {relabel}, objective: {{best_goal_weight: 0.1}}}}") == (
        f"objective.best_goal_weight=0.1 asks for the highest goal, but {why}; name the goals or remove the weight."
    )
    assert not load(f"relabel: {relabel}").relabel.has_highest_goal
    assert load().relabel.has_highest_goal


@pytest.mark.parametrize("goals", ["[chosen, rejected]", "[rejected]"])
def test_sft_has_no_rejected_response_to_take_a_goal_from(refusal, goals):
    """When this fails, the option is accepted and ignored."""
    assert refusal("", "objective.name=sft", f"relabel.goals={goals}") == (
        f"objective.name=sft trains on one response and has no rejected one to take a goal from, but "
        f"relabel.goals={goals}; set relabel.goals=[chosen] (each response at its own score) or relabel.goals=[] (no goals)."
    )


def test_sft_takes_goals_of_the_chosen_response_or_none(load):
    assert load("", "objective.name=sft", "relabel.goals=[]").relabel.goals == ()
    assert load("", "objective.name=sft", "relabel.goals=[chosen]").relabel.goals == ("chosen",)


def test_a_duplicate_key_is_refused_with_its_line(refusal):
    """When this fails, the last value of the key silently wins, as YAML has it."""
    message = refusal("seed: 1\nmodel:\n  path: a\n  path: b\n")
    assert re.fullmatch(r".*run\.yaml cannot be read as YAML: line 4: path is given twice\.", message)


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system [echo]", "!!python/name:os.system", "!Config {}"])
def test_yaml_runs_no_code(refusal, tag):
    """When this fails, a configuration from the internet can run any program."""
    assert re.search(
        r"run\.yaml cannot be read as YAML: line 1: could not determine a constructor for the tag",
        refusal(f"seed: {tag}"),
    )


def test_a_syntax_error_is_reported_with_its_line(refusal):
    assert re.search(r"run\.yaml cannot be read as YAML: line 3: ", refusal("seed: 1\nmodel: {path: [a\nseed: 2\n"))
    assert "run.yaml must hold keys and values" in refusal("- a\n- b\n")


def test_a_binary_file_is_refused(tmp_path):
    (tmp_path / "run.yaml").write_bytes(b"seed: \xff\xfe")
    with pytest.raises(UserError, match=r"run\.yaml is not text in UTF-8 .*; CONFIG must be a YAML file"):
        load_config(tmp_path / "run.yaml")


@pytest.mark.parametrize("override", ["optimizer.learning_rate", "--beta", "data.path"])
def test_an_override_without_an_equals_sign_is_refused_with_an_example(refusal, override):
    assert refusal("", override) == (
        f"{override!r} is not an override; write key=value, such as optimizer.learning_rate=1e-6."
    )


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.yaml does not exist; CONFIG must be a YAML file"):
        load_config(tmp_path / "nowhere.yaml")


# The configuration that a run records.


def changed(load):
    return load(
        "",
        "model.path=a",
        "optimizer.learning_rate=1e-30",
        "relabel.goals=[]",
        "relabel.template='Score: {goal}, # \" é'",
        "data.chat_template=null",
        "train.max_steps=7",
        "data.columns.prompt=question",
        "run_dir='2024'",
    )


def test_a_written_configuration_reads_back_unchanged(load, tmp_path):
    """When this fails, `rapo export`, and users' next runs, read wrong settings from a run's config.yaml."""
    for config in (load(), changed(load)):
        (tmp_path / "config.yaml").write_text(to_yaml(config))
        assert load_config(tmp_path / "config.yaml") == config
        assert from_dict(as_dict(config)) == config


@settings(deadline=None)  # the machine may be busy
@given(st.floats(min_value=1e-12, max_value=1e3), st.text(max_size=20))
def test_numbers_and_strings_survive_writing(tmp_path_factory, number, text):
    path = tmp_path_factory.getbasetemp() / "round_trip.yaml"
    overrides = {"optimizer": {"learning_rate": number}, "model": {"path": text}}
    config = from_dict(overrides)
    path.write_text(to_yaml(config), encoding="utf-8")
    assert load_config(path) == config


# The files in configs/.


@pytest.mark.parametrize("path", CONFIGS, ids=[path.name for path in CONFIGS])
def test_every_file_in_configs_loads_and_begins_with_its_command(path):
    """When this fails, the first command that a new user tries does not work."""
    load_config(path)
    comment = path.read_text().split("\n\n")[0]
    lines = [line for line in comment.splitlines() if line.startswith("#")]
    assert any("rapo train" in line or "rapo round" in line for line in lines), (
        f"the first comment of {path.name} gives no `rapo train` or `rapo round` command"
    )


# Inheritance.


@pytest.fixture
def extended(tmp_path):
    """A function (**texts by file name, "_" for "/") -> the Config of run.yaml."""

    def extended(*overrides, **texts):
        for name, text in texts.items():
            path = tmp_path / f"{name.replace('_', '/')}.yaml"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        return load_config(tmp_path / "run.yaml", list(overrides))

    return extended


def test_an_ablation_is_a_file_of_a_few_lines(extended):
    base = "data: {path: pairs.jsonl, max_length: 2048}\nrelabel: {goals: [chosen], ties: keep}"
    config = extended("seed=3", run="extends: base.yaml\nrelabel: {goals: [rejected], fraction: 0.5}", base=base)
    assert (config.data.path, config.data.max_length) == ("pairs.jsonl", 2048)
    assert (config.relabel.goals, config.relabel.ties, config.relabel.fraction) == (("rejected",), "keep", 0.5)
    assert config.seed == 3


def test_a_file_is_looked_for_beside_the_one_that_extends_it(extended):
    config = extended(
        run="extends: below/middle.yaml",
        below_middle="extends: bottom.yaml\nseed: 2",
        below_bottom="seed: 1\nrun_dir: r",
    )
    assert (config.seed, config.run_dir) == (2, "r")


def test_circular_inheritance_is_reported_with_all_files(extended, tmp_path):
    with pytest.raises(UserError) as caught:
        extended(run="extends: other.yaml", other="extends: run.yaml")
    files = [tmp_path / f"{name}.yaml" for name in ("run", "other", "run")]
    assert str(caught.value) == f"{' extends '.join(map(str, files))}: a circle; remove one `extends`."


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: none.yaml", "run.yaml extends .*none.yaml, which does not exist; CONFIG must be a YAML file"),
        ("extends: [a.yaml]", r"run.yaml: extends=\['a.yaml'\]: expected the name of a YAML file."),
    ],
)
def test_a_file_that_cannot_be_extended_is_named(extended, text, message):
    with pytest.raises(UserError, match=message):
        extended(run=text)


# Data and relabelling.


def test_several_sources_are_a_list_of_keys_and_values(load):
    config = load("data: {sources: [{path: a.jsonl, weight: 2}, {path: b.jsonl, columns: {label: good}}]}")
    assert [source.weight for source in config.data.sources] == [2.0, None]
    assert config.data.sources[1].columns.label == "good"
    assert from_dict(as_dict(config)) == config
    assert load(to_yaml(load("data: {source_weights: {gpt4: 1, web: 1e-1}}"))).data.source_weights == {
        "gpt4": 1,
        "web": 0.1,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: {sources: [{pth: x}]}", "unknown key data.sources[0].pth; did you mean data.sources[0].path?"),
        ("data: {sources: [{split: x}]}", "data.sources[0] has no path; add path: FILE_OR_HUB_ID."),
        ("data: {sources: [{path: x, weight: 0}]}", "data.sources[0].weight=0.0 must be positive and finite."),
        ("data: {sources: [x]}", "data.sources[0] must hold keys and values, found 'x'."),
        (
            "data: {sources: x}",
            "data.sources='x': expected a list, such as [{path: pairs.jsonl}, {path: more.jsonl, weight: 0.5}].",
        ),
        ("data: {path: a, sources: [{path: b}]}", "data.path=a and data.sources are both set; remove one of them."),
        (
            "data: {eval_path: a, eval_fraction: 0.1}",
            "data.eval_path and data.eval_fraction=0.1 are both set; remove one of them.",
        ),
        ("data: {eval_fraction: 1}", "data.eval_fraction=1.0 must lie in [0, 1)."),
        ("data: {constant_rewards: [1]}", "data.constant_rewards=[1.0] must be two: of chosen and of rejected."),
        ("data: {source_weights: {a: -1}}", "data.source_weights.a=-1.0 must be a finite number, not negative."),
        ("data: {source_weights: [a]}", "data.source_weights=['a']: expected keys and values, such as {name: 0.5}."),
        ("data: {pairs: best}", "data.pairs='best': expected one of auto, best_random, best_worst, all, each."),
        (
            "data: {pairs: each}",
            "objective.name=dpo compares two and has no use for data.pairs=each; choose one of auto, best_random, "
            "best_worst, all.",
        ),
        (
            "{data: {pairs: best_worst}, objective: {name: rrhf}}",
            "objective.name=rrhf compares all responses of a row and has no use for data.pairs=best_worst; choose one of "
            "auto.",
        ),
        ("relabel: {goal_min: 10}", "relabel.goal_min=10.0 must be less than relabel.goal_max=10.0; change one."),
        ("relabel: {fraction: 0}", "relabel.fraction=0.0 must lie in (0, 1]."),
        ("relabel: {decimals: 16}", "relabel.decimals=16 must lie in [0, 15]."),
        (
            "relabel: {rejected_goals: {min: 6, max: 5}}",
            "relabel.rejected_goals.min=6.0 exceeds relabel.rejected_goals.max=5.0; exchange them.",
        ),
        (
            "relabel: {goal_kind: directions, attributes: [wit]}",
            "relabel.goal_kind=directions needs two attributes, relabel.attributes=[wit] has 1; name two.",
        ),
        (
            "relabel: {scale: {fit: range, source_min: 1}}",
            "relabel.scale.fit=range maps from relabel.scale.source_min=1.0 to relabel.scale.source_max=None; set both, "
            "the first less than the second.",
        ),
        (
            "relabel: {scale: {fit: minmax, source_min: 1}}",
            "relabel.scale.source_min=1.0 is read by relabel.scale.fit=range only, not minmax.",
        ),
        (
            "relabel: {scale: {fit: minmax, file: scale.json}}",
            "relabel.scale.file=scale.json and relabel.scale.fit=minmax are both set; remove one of them.",
        ),
        ("relabel: {scale: {fit: quantile, quantile: 0.5}}", "relabel.scale.quantile=0.5 must lie in [0, 0.5)."),
        (
            "relabel: {attributes: [wit, truth], template: 'Wit: {wit}'}",
            "relabel.template='Wit: {wit}' has no {goals} and no {truth}; write one with {goals} or name one of: paper, "
            "released_code.",
        ),
        (
            "relabel: {template: 'As {source}.'}",
            "relabel.template='As {source}.' has no {goal}, but relabel.goals=[chosen, rejected]; write one with {goal} "
            "or set relabel.goals=[].",
        ),
    ],
)  # fmt: skip
def test_impossible_data_and_goals_are_refused(refusal, text, message):
    assert refusal(text) == message


def test_both_goals_of_a_pair_need_an_even_batch(load):
    """When this fails, a step leaves one goal of a pair for the next step without a word."""
    with pytest.raises(
        UserError, match=r"rows.twins=together fills a step two by two, but train.batch_size=9 is odd; make"
    ):
        load("{rows: {twins: together}, train: {batch_size: 9}}")
    for one_goal in ("[]", "[chosen]"):
        assert load(f"{{rows: {{twins: together}}, train: {{batch_size: 9}}, relabel: {{goals: {one_goal}}}}}")
