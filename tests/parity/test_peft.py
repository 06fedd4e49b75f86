"""Adapters are peft's: the same steps in torch, the same files, and the same model merged or not."""

import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import transformers
from jax.sharding import AxisType, Mesh

from rapo_jax.config.files import from_dict
from rapo_jax.models.peft import adapter_tensors, save_adapters
from rapo_jax.opened import open_model
from rapo_jax.parallel import AXES
from rapo_jax.runs.setup import set_up, starting_parameters
from rapo_jax.train.state import trainable
from tests.parity import torch_dpo, trajectory
from tests.parity.test_torch_training import assert_same_metrics, their_steps
from tests.parity.torch_dpo import Recipe
from tests.tiny import assert_same_trees, rapo

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # from other libraries

NUM_STEPS = 6
LORA = {"rank": 4, "alpha": 12.0}


def with_adapter(model, directory: Path, *, is_trainable: bool = False):
    """The model under peft, imported only here because that takes seconds."""
    import peft

    return peft.PeftModel.from_pretrained(model, directory, is_trainable=is_trainable)


def base_model(directory: Path):
    options = {"dtype": torch.float32, "attn_implementation": "eager"}
    return transformers.AutoModelForCausalLM.from_pretrained(directory, **options).eval()


def configuration(directory: Path, family: str, **sections) -> dict:
    rows = trajectory.write_rows(directory / "rows.jsonl", 24, system_turns=False)
    return {
        "run_dir": str(directory / "run"),
        "model": {"path": str(trajectory.write_model(directory / "model", family)), "dtype": "float32"},
        "data": {"path": str(rows)},
        "objective": {"beta": 0.1},
        "train": {"batch_size": 6, "max_steps": NUM_STEPS},
        "relabel": {"template": "Answer as one who scores {goal} of {goal_max}."},
        "rows": {"length": 256, "per_shard": 1},
    } | sections


@pytest.mark.parametrize(
    ("family", "lora"),
    [("llama", LORA), ("qwen2", LORA | {"rslora": True}), ("gemma2", LORA | {"targets": ["q", "o", "down"]})],
    ids=["llama", "qwen2-rslora", "gemma2-three-targets"],
)
def test_steps_from_the_same_adapters_are_those_of_peft(family, lora, tmp_path):
    """When this fails, a LoRA run has another scale, gradient or weight decay than the same run under peft."""
    optimizer = {"learning_rate": 1e-2, "warmup_ratio": 0.0, "schedule": "linear", "weight_decay": 0.1}
    tree = configuration(tmp_path, family, lora=lora, optimizer=optimizer)
    setup = set_up(from_dict(tree))
    ones = (1,) * len(AXES)
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(ones), AXES, axis_types=(AxisType.Auto,) * len(AXES))
    (tmp_path / "start").mkdir()
    first = trainable(starting_parameters(setup), setup.spec, mesh, seed=0)
    save_adapters(first, setup.spec, tmp_path / "start", base=tree["model"]["path"])

    ours = trajectory.run(tree)
    model = with_adapter(base_model(setup.model_dir), tmp_path / "start", is_trainable=True)
    recipe = Recipe(beta=0.1, learning_rate=1e-2, schedule="linear", weight_decay=0.1)
    theirs = torch_dpo.train(model, their_steps(ours), recipe)
    assert ours.metrics[0]["loss"] == pytest.approx(np.log(2), rel=1e-6)
    assert abs(theirs[-1]["rewards/margins"]) > 1e-3, "the adapters must show for agreement to say anything"
    assert_same_metrics(ours.metrics, theirs)
    expected = {n.replace(".default", ""): p.detach().numpy() for n, p in model.named_parameters() if p.requires_grad}
    assert ours.weights.keys() == expected.keys()
    begun = dict(adapter_tensors(first, setup.spec))
    for name, tensor in expected.items():
        np.testing.assert_allclose(ours.weights[name], tensor, rtol=1e-4, atol=2e-5, err_msg=name)
        assert np.abs(tensor - begun[name]).max() > 1e-3, f"{name} hardly moved"


@functools.cache
def exported(family: str, directory: Path) -> Path:
    """A directory with a run of LoRA, its merged export and its adapters."""
    tree = configuration(
        directory,
        family,
        lora=LORA,
        optimizer={"learning_rate": 1e-2, "warmup_ratio": 0.0},
        mesh={"data": 2, "fsdp": 2, "tensor": 2},
        rows={"length": 256},
    )
    (directory / "run.yaml").write_text(json.dumps(tree))
    assert rapo("train", directory / "run.yaml") == 0
    assert rapo("export", directory / "run", directory / "merged") == 0
    assert rapo("export", directory / "run", directory / "adapter", "--adapter") == 0
    return directory


@pytest.fixture(params=["qwen2", "gemma2"])
def place(request, tmp_path_factory) -> Path:
    root = tmp_path_factory.getbasetemp() / f"lora-{request.param}"
    root.mkdir(exist_ok=True)
    return exported(request.param, root)


def logits_of(model) -> np.ndarray:
    tokens = torch.tensor(np.random.default_rng(0).integers(0, 384, (2, 48)))
    with torch.no_grad():
        return model(tokens).logits.numpy()


def test_the_merged_model_is_the_model_with_the_adapters(place):
    """When this fails, one of the two exports of a run is not the model that was trained."""
    base = logits_of(base_model(place / "model"))
    whole = logits_of(base_model(place / "merged"))
    adapted = logits_of(with_adapter(base_model(place / "model"), place / "adapter").eval())
    assert np.abs(whole - base).max() > 0.1, "the steps must show, or exports of the start would pass"
    np.testing.assert_allclose(adapted, whole, atol=1e-4)


def test_an_adapter_directory_is_small_and_has_the_goal_in_its_chat_template(place):
    """When this fails, whoever loads the adapters gets the model without the behaviour it was trained for."""
    names = {path.name for path in (place / "adapter").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer_config.json", "README.md"} <= names
    assert not names & {"model.safetensors", "config.json"}
    adapter, merged = (transformers.AutoTokenizer.from_pretrained(place / kind) for kind in ("adapter", "merged"))
    assert adapter.chat_template == merged.chat_template
    asked = adapter.apply_chat_template([{"role": "user", "content": "Oak?"}], tokenize=False)
    assert "Answer as one who scores 10 of 10." in asked
    config = json.loads((place / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (4, 12.0, str(place / "model"))
    assert "AutoPeftModelForCausalLM" in (place / "adapter" / "README.md").read_text()


def test_adapters_are_not_exported_on_weights_they_were_not_trained_on(place, tmp_path, capsys):
    """When this fails, an export merges adapters into another model, and only its users find out."""
    other = trajectory.write_model(tmp_path / "model", place.name.removeprefix("lora-"), loudness=1.5)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").symlink_to(place / "run" / "checkpoints")
    text = (place / "run" / "config.yaml").read_text().replace(str(place / "model"), str(other))
    (tmp_path / "run" / "config.yaml").write_text(text)
    for more in ([], ["--adapter"]):
        assert rapo("export", tmp_path / "run", tmp_path / "out", *more) == 2
        assert "holds other weights than those that the adapters of" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_adapter_directory_is_opened_as_the_merged_model(place, tmp_path):
    """When this fails, adapters cannot be trained on from or generated with, or give other answers than their merged model."""
    adapted, whole = (open_model(place / kind) for kind in ("adapter", "merged"))
    assert adapted.spec == whole.spec and adapted.goal_prompt == whole.goal_prompt
    assert adapted.stop_tokens == whole.stop_tokens
    assert_same_trees(adapted.parameters, whole.parameters, atol=1e-6)
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": "Oak or elm?"}) + "\n")
    for kind in ("adapter", "merged"):
        files = ("--prompts", tmp_path / "prompts.jsonl", "--out", tmp_path / f"{kind}.jsonl")
        assert rapo("generate", place / kind, *files, "--max-new-tokens", 8) == 0
    answers = [json.loads((tmp_path / f"{kind}.jsonl").read_text())["response"] for kind in ("adapter", "merged")]
    assert answers[0] == answers[1] != ""


def test_the_program_in_an_adapters_card_runs(place, capsys):
    """When this fails, whoever follows the card gets a traceback."""
    program = (place / "adapter" / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    capsys.readouterr()
    exec(program.replace("PATH_OF_THIS_DIRECTORY", str(place / "adapter")).replace("200", "5"), {})
    assert capsys.readouterr().out.strip()


def test_a_run_from_adapters_starts_from_their_merged_model_and_exports_it(place, tmp_path, capsys):
    """When this fails, a second round forgets the first, or its adapters are exported for a base that peft cannot load."""
    start = [f"model.path={place / 'adapter'}", f"run_dir={tmp_path / 'run'}", "train.max_steps=1"]
    assert rapo("train", place / "run.yaml", *start) == 0
    assert f"model.path={place / 'adapter'}: LoRA adapters, merged in float32 into" in capsys.readouterr().out
    assert rapo("export", tmp_path / "run", tmp_path / "out", "--adapter") == 2
    assert "the adapters were trained over those of" in capsys.readouterr().err
    assert rapo("export", tmp_path / "run", tmp_path / "out") == 0
    assert transformers.AutoConfig.from_pretrained(tmp_path / "out").model_type == place.name.removeprefix("lora-")
