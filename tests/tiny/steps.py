"""Log-probabilities and optimizer steps of a tiny decoder on any part of the eight test devices, and how to compare them."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import Mesh

from rapo_jax.batch import Batch
from rapo_jax.batching.batch_plan import Group, materialise
from rapo_jax.config.files import as_dict, from_dict
from rapo_jax.config.tree import Config
from rapo_jax.models.decoder import ForwardOptions, abstract_decoder, plain_layout
from rapo_jax.models.lora import adapted_spec
from rapo_jax.models.spec import Spec
from rapo_jax.parallel import my_rows, num_row_shards, to_device
from rapo_jax.train.forward import Forward, response_logps
from rapo_jax.train.optim import adamw
from rapo_jax.train.reference import resident_reference
from rapo_jax.train.state import State, first_state, trained_shardings
from rapo_jax.train.step import TrainStep, make_train_step
from tests.tiny.groups import plan_of
from tests.tiny.parameters import on_mesh, random_parameters, random_trained, tiny_spec


def tiny_config(**sections: dict) -> Config:
    """DPO in float32 with every optimizer feature on and updates large enough to see.

    eps is far above rounding errors: Adam otherwise divides noise by noise where a gradient is nearly 0, and two ways
    to one number would differ by a whole step in such entries.
    """
    tree = {
        "model": {"dtype": "float32"},
        "objective": {"beta": 0.1},
        "optimizer": {
            "learning_rate": 1e-2,
            "warmup_ratio": 0.0,
            "weight_decay": 0.1,
            "max_grad_norm": 1.0,
            "eps": 1e-3,
        },
    }
    for name, section in sections.items():
        tree[name] = {**tree.get(name, {}), **section} if isinstance(section, dict) else section
    return from_dict(tree)


def with_lora(config: Config, family: str, **section) -> tuple[Config, Spec]:
    """The configuration with a section `lora`, and a tiny family's spec with its adapters."""
    config = from_dict(as_dict(config) | {"lora": {"rank": 3} | section})
    return config, adapted_spec(tiny_spec(family), **vars(config.lora))


def branch_logps(spec: Spec, parameters: dict, batch: Batch, *, kernel: str | None = None) -> Array:
    """[B, P, A] by the code that trains; branch 0 is the prompt."""
    graph, _ = abstract_decoder(spec)
    forward = Forward(dtype=jnp.dtype("float32"), kernel=kernel)
    return response_logps(graph, parameters, batch, forward=forward, remat="none")[0]


def plain_logps(spec: Spec, parameters: dict, tokens_BT: Array, is_response_BT: Array) -> Array:
    """[group, response] by definition: one causal sequence a row, softmax over the whole vocabulary."""
    graph, _ = abstract_decoder(spec)
    decoder = nnx.merge(graph, parameters)
    hidden_BTD = decoder(tokens_BT, plain_layout(tokens_BT), options=ForwardOptions(kernel="einsum"))
    logps_BTV = jax.nn.log_softmax(decoder.logits(hidden_BTD), axis=-1)
    next_BT = jnp.take_along_axis(logps_BTV[:, :-1], tokens_BT[:, 1:, None], axis=-1)[..., 0]
    return jnp.where(is_response_BT[:, 1:], next_BT, 0.0).sum(-1).reshape(-1, 2)


@dataclass(frozen=True)
class Trained:
    """What some steps left: metrics of each step as floats, and the final state on the mesh."""

    metrics: list[dict[str, float]]
    state: State
    step: TrainStep


def train_steps(
    config: Config, spec: Spec, mesh: Mesh, groups: list[Group], *, num_steps: int = 3, row_length: int = 128
) -> Trained:
    """Optimizer steps from the parameters of seed 1 against the reference of seed 0, so that rewards are not 0.

    Adapters of seed 1 stand on the reference.
    """
    plan = plan_of(
        groups,
        config,
        num_steps=num_steps,
        row_length=row_length,
        num_shards=num_row_shards(mesh),
        context=mesh.shape["context"],
    )
    reference = resident_reference(on_mesh(random_parameters(spec), spec, mesh), config, spec, mesh)
    start = jax.device_put(random_trained(spec, seed=1), trained_shardings(spec, mesh))
    state = first_state(start, spec, mesh, adamw(config.optimizer, spec))
    step = make_train_step(config, spec, mesh, plan.shape, num_steps=num_steps)
    metrics = []
    with jax.set_mesh(mesh):
        for number, rows in enumerate(plan.steps):
            moved = plan.moved.get(number, ())
            batch = materialise(groups, rows, plan.shape, mine=my_rows(mesh, plan.shape.B), moved=moved)
            state, values = step(state, reference, to_device(batch, mesh, plan.shape.B))
            metrics.append({name: float(value) for name, value in values.items()})
    return Trained(metrics, state, step)


def assert_same_metrics(one: list[dict], other: list[dict], *, atol: float = 1e-6, rtol: float = 1e-5) -> None:
    """All metrics of all steps; NaN, an absent goal side, equals NaN."""
    assert len(one) == len(other)
    for step, (a, b) in enumerate(zip(one, other, strict=True), start=1):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_allclose(a[name], b[name], atol=atol, rtol=rtol, err_msg=f"{name} at step {step}")


def assert_same_trees(one, other, *, atol: float, rtol: float = 0.0) -> None:
    leaves, others = jax.tree_util.tree_leaves_with_path(one), jax.tree_util.tree_leaves_with_path(other)
    assert [path for path, _ in leaves] == [path for path, _ in others]
    for (path, a), (_, b) in zip(leaves, others, strict=True):
        np.testing.assert_allclose(
            np.asarray(a), np.asarray(b), atol=atol, rtol=rtol, err_msg=jax.tree_util.keystr(path)
        )
