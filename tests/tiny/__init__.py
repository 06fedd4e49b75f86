"""What tests share: tiny models and groups, single optimizer steps on them, and whole runs through the command line.

`from tests import tiny` gives all that single steps need; whole runs in processes of their own are in tests.tiny.runs,
tokenizers with every family's shape of chat template in tests.tiny.chat_templates.
"""

from tests.tiny.command_line import rapo, rapo_until
from tests.tiny.directories import (
    CHAT_TEMPLATE,
    CONFIG,
    PAIRS,
    RUN,
    build_tokenizer,
    with_padding,
    write_model,
    write_rows,
)
from tests.tiny.families import FAMILIES
from tests.tiny.groups import (
    by_group,
    microbatch,
    one_group_a_row,
    packed,
    plain_sequences,
    plan_of,
    random_groups,
)
from tests.tiny.parameters import V, file_tensors, mesh_of, on_mesh, random_parameters, random_trained, tiny_spec
from tests.tiny.steps import (
    Trained,
    assert_same_metrics,
    assert_same_trees,
    branch_logps,
    plain_logps,
    tiny_config,
    train_steps,
    with_lora,
)

__all__ = [
    "CHAT_TEMPLATE",
    "CONFIG",
    "FAMILIES",
    "PAIRS",
    "RUN",
    "Trained",
    "V",
    "assert_same_metrics",
    "assert_same_trees",
    "branch_logps",
    "build_tokenizer",
    "by_group",
    "file_tensors",
    "mesh_of",
    "microbatch",
    "on_mesh",
    "one_group_a_row",
    "packed",
    "plain_logps",
    "plain_sequences",
    "plan_of",
    "random_groups",
    "random_parameters",
    "random_trained",
    "rapo",
    "rapo_until",
    "tiny_config",
    "tiny_spec",
    "train_steps",
    "with_lora",
    "with_padding",
    "write_model",
    "write_rows",
]
