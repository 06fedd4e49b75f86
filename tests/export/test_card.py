"""Model cards: what the hub reads in them, what a user runs from them, and what must not be in them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from rapo_jax.chat.goal_prompt import PAPER_GOAL_PROMPT
from rapo_jax.chat.templates import Ending
from rapo_jax.config.files import from_dict
from rapo_jax.errors import masked
from rapo_jax.export.card import model_card
from rapo_jax.export.origins import Origins, hub_name, origins

ENDING = Ending(token=2, suffix="<|im_end|>\n", kept="<|im_end|>")


def card_of(config: dict, *, kind="model", comes_from: Origins | None = None) -> str:
    more = {"origins": comes_from or Origins(), "ending": ENDING, "stops": (2, 7)}
    return model_card(from_dict(config), 12, replace(PAPER_GOAL_PROMPT, baked=10.0), kind=kind, **more)


def model_at(directory: Path, *, card: str = "", name: str | None = None) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps({"_name_or_path": name} if name else {}))
    if card:
        (directory / "README.md").write_text(card)
    return directory


def hold_in_cache(place: Path, monkeypatch, *names: str) -> None:
    """The hub's cache is at `place` and has folders of these names."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(place / "cache"))
    for name in names:
        (place / "cache" / name).mkdir(parents=True)


LLAMA_CARD = "---\nlicense: llama3.1\nbase_model: meta-llama/Llama-3.1-8B\n---\n\n# Model\n"


@pytest.mark.parametrize(
    ("path", "directory", "card", "name", "expected"),
    [
        ("org/model", "models--org--model/snapshots/1", LLAMA_CARD, None, ("org/model", {"license": "llama3.1"})),
        ("HERE", "hub/models--org--some--model/snapshots/1", "", None, ("org/some--model", {})),
        ("HERE", "mine", LLAMA_CARD, None, ("meta-llama/Llama-3.1-8B", {"license": "llama3.1"})),
        ("HERE", "mine", "", "mistralai/Mistral-7B-v0.1", ("mistralai/Mistral-7B-v0.1", {})),
        ("HERE", "mine", "", "/data/checkpoint-100", (None, {})),
        ("HERE", "mine", "", "exports/step1", (None, {})),
        ("HERE", "mine", "---\nlicense: other\nlicense_name: qwen\nlicense_link: LICENSE\n---\n", "../x",
         (None, {"license": "other", "license_name": "qwen", "license_link": "LICENSE"})),
        ("HERE", "mine", "# No front matter\n", None, (None, {})),
        ("HERE", "mine", "---\nlicense: [\n---\n", None, (None, {})),
    ],
)  # fmt: skip
def test_the_base_model_and_its_licence_are_named_where_they_are_known(
    path, directory, card, name, expected, tmp_path, monkeypatch, capsys
):
    """When this fails, a published model does not show under its base model, or with someone else's licence."""
    monkeypatch.chdir(tmp_path)
    hold_in_cache(tmp_path, monkeypatch, "models--mistralai--Mistral-7B-v0.1")
    at = model_at(tmp_path / directory, card=card, name=name)
    config = from_dict({"model": {"path": str(at) if path == "HERE" else path}})
    found = origins(config, at)
    assert (found.base_model, found.licence) == expected
    assert ("cannot be read as YAML" in capsys.readouterr().out) == ("[" in card)


def test_only_the_hubs_own_copy_counts_as_the_hubs_weights(tmp_path):
    """When this fails, adapters are loaded onto the parent of the model that they were trained on."""
    assert hub_name("org/model", tmp_path) == "org/model"
    assert hub_name(str(tmp_path), model_at(tmp_path / "mine", name="org/parent")) is None


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"path": "HuggingFaceH4/ultrafeedback_binarized"}, ("HuggingFaceH4/ultrafeedback_binarized",)),
        ({"path": "data/pairs.jsonl"}, ()),
        ({"path": "data/pairs"}, ()),  # a directory that is gone, or of another working directory
        ({"path": "data/pairs.jsonl.gz"}, ()),
        ({"path": "/data/pairs"}, ()),
        ({"sources": [{"path": "a/b"}, {"path": "here.csv"}, {"path": "c/d"}, {"path": "a/b"}]}, ("a/b", "c/d")),
    ],
)
def test_data_sets_of_the_hub_are_named_and_files_are_not(data, expected, tmp_path, monkeypatch):
    """When this fails, a published card names a directory of this machine as somebody's data set."""
    names = ("HuggingFaceH4--ultrafeedback_binarized", "a--b", "c--d")
    hold_in_cache(tmp_path, monkeypatch, *(f"datasets--{name}" for name in names))
    config = from_dict({"model": {"path": "org/model"}, "data": data})
    assert origins(config, model_at(tmp_path)).datasets == expected


def test_the_front_matter_is_what_the_hub_reads():
    """When this fails, the hub refuses the card, or lists the model without its base, licence and data."""
    comes_from = Origins("org/base", {"license": "other", "license_name": "gemma"}, ("org/data",))
    card = ModelCard(card_of({"model": {"path": "org/base"}}, comes_from=comes_from))
    assert card.data.to_dict() == {
        "base_model": "org/base",
        "datasets": ["org/data"],
        "library_name": "transformers",
        "license": "other",
        "license_name": "gemma",
        "pipeline_tag": "text-generation",
        "tags": ["rapo_jax", "dpo"],
    }


@pytest.mark.parametrize(
    ("kind", "task", "library", "line"),
    [
        ("model", "text-generation", "transformers", 'chat = pipeline("text-generation", model='),
        ("adapter", "text-generation", "peft", "eos_token_id=[2, 7])"),
        ("reward model", "text-classification", "transformers", r"text.removesuffix('<|im_end|>\n') + '<|im_end|>'"),
        ("reward adapter", "text-classification", "peft", "AutoPeftModelForSequenceClassification.from_pretrained("),
    ],
)
def test_each_kind_of_export_has_a_program_of_its_own(kind, task, library, line):
    """When this fails, a reward model's card shows how to chat with it."""
    text = card_of({"model": {"path": "org/base"}}, kind=kind)
    data = ModelCard(text).data
    assert (data.pipeline_tag, data.library_name) == (task, library)
    program = text.partition("```python\n")[2].partition("```")[0]
    assert line in program
    compile(program, "card", "exec")


def test_a_card_shows_neither_directories_nor_tokens():
    """When this fails, a published model card reveals someone's home directory, or a password."""
    address = "https://me:hunter2@example.org/rows.jsonl?token=abcdef"
    card = card_of({"model": {"path": "/home/me/models/base"}, "data": {"path": address}, "run_dir": "/home/me/run"})
    assert "/home/me" not in card and "hunter2" not in card and "abcdef" not in card
    assert "https://***@example.org/rows.jsonl?token=***" in card
    lists = {
        "drop_sources": ["/home/me/x", "wiki"],
        "sources": [{"path": "/home/me/a.jsonl"}, {"path": "/home/me/b.jsonl"}],
    }
    card = card_of({"model": {"path": "org/base"}, "data": lists})
    assert "/home/me" not in card and "- x\n" in card and "- wiki\n" in card and "path: b.jsonl\n" in card


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://user:hf_abc@host/a", "https://***@host/a"),
        ("https://hf_abcdefghijklmnop1234@host", "https://***@host"),
        ("see hf_abcdefghijklmnop1234.", "see hf_***."),
        ("s3://b/k?X-Amz-Signature=12ab&rows=2", "s3://b/k?X-Amz-Signature=***&rows=2"),
        ("mail me@host, a://b/c@d, hf_short", "mail me@host, a://b/c@d, hf_short"),
    ],
)
def test_secrets_of_an_address_are_masked(text, expected):
    assert masked(text) == expected
