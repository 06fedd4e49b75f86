"""Tiny decoders, tiny groups of random tokens, and whole runs on any part of the eight test devices."""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import AxisType, Mesh

from rapo_jax.batch import CHOSEN_SIDE, REJECTED_SIDE, Batch, Shape
from rapo_jax.batching.batch_plan import BatchPlan, Group, make_plan, materialise, shuffled_steps
from rapo_jax.batching.groups import what_is_scored
from rapo_jax.config.files import as_dict, from_dict
from rapo_jax.config.tree import Config
from rapo_jax.models.decoder import abstract_decoder, plain_layout
from rapo_jax.models.lora import adapted_spec
from rapo_jax.models.parameters import parameter_letters, place, shape_of, trained_letters
from rapo_jax.models.spec import Spec, spec_from_config
from rapo_jax.parallel import AXES, my_rows, num_row_shards
from rapo_jax.train.loop import to_device
from rapo_jax.train.optim import direction
from rapo_jax.train.reference import resident_reference
from rapo_jax.train.state import State, first_state, parameter_shardings, trained_shardings
from rapo_jax.train.step import TrainStep, make_train_step, response_logps
from tests.parity.families import FAMILIES

V = FAMILIES["llama3"]["vocab_size"]


@functools.cache
def tiny_spec(family: str) -> Spec:
    """3 or 4 layers, 4 query and 2 key heads, V = 96, D = 32; windows are 8 positions wide where there are any."""
    return spec_from_config(FAMILIES[family])


def random_parameters(spec: Spec, *, seed: int = 0) -> dict:
    """Host arrays large enough that every flag of the spec shows in the result."""
    return random_tree(spec, parameter_letters(spec), seed=seed)


def random_trained(spec: Spec, *, seed: int) -> dict:
    """The same of what is trained; with adapters, both factors of each differ from 0."""
    return random_tree(spec, trained_letters(spec), seed=seed)


def random_tree(spec: Spec, all_letters: dict, *, seed: int) -> dict:
    random, tree = np.random.default_rng(seed), {}
    for path, letters in all_letters.items():
        noise = random.normal(size=shape_of(spec, letters)).astype(np.float32)
        is_scale = path[-1].endswith("norm") and not spec.gemma
        place(tree, path, 0.15 * noise + np.float32(is_scale))
    return tree


def random_groups(num: int, *, seed: int = 0, prompt: tuple[int, int] = (9, 30), response=(4, 20)) -> list[Group]:
    """Pairs with prompts and responses of random lengths in [low, high), all longer together than a window of 8."""
    random = np.random.default_rng(seed)
    tokens = lambda low, high: random.integers(0, V, random.integers(low, high)).astype(np.int32)  # noqa: E731
    groups = []
    for row in range(num):
        side = (CHOSEN_SIDE, REJECTED_SIDE)[int(random.integers(2))]
        groups.append(Group(tokens(*prompt), (tokens(*response), tokens(*response)), (8.0, 3.0), side, row))
    return groups


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


def mesh_of(data: int, fsdp: int, tensor: int) -> Mesh:
    """A mesh over the first data * fsdp * tensor test devices."""
    devices = jax.devices()[: data * fsdp * tensor]
    return jax.make_mesh((data, fsdp, tensor), AXES, devices=devices, axis_types=(AxisType.Auto,) * 3)


def one_group_a_row(groups: list[Group], *, row_length: int) -> tuple[list[list[int]], Shape]:
    scored = max(group.num_scored("responses") for group in groups)
    rows = [[index] for index in range(len(groups))]
    return rows, Shape(M=1, B=len(groups), T=row_length, S=scored, P=1, C=2)


def packed(groups: list[Group], *, row_length: int) -> tuple[list[list[int]], Shape]:
    everyone = [np.arange(len(groups))]
    (rows,) = make_plan(groups, everyone, row_length=row_length, rows_per_shard=1, num_row_shards=1).steps
    assert max(map(len, rows)) > 2, "rows must be shared for the test to mean anything"
    shape = make_plan(groups, everyone, row_length=row_length, rows_per_shard=len(rows), num_row_shards=1).shape
    return rows, shape


def microbatch(groups: list[Group], rows: list[list[int]], shape: Shape) -> Batch:
    """The first microbatch, [B, ...], as response_logps takes it."""
    batch = materialise(groups, rows, shape, mine=range(shape.B))
    return jax.tree.map(lambda x: jnp.asarray(x[0]) if np.ndim(x) else x, batch)


def branch_logps(spec: Spec, parameters: dict, batch: Batch, *, kernel: str | None = None) -> Array:
    """[B, P, C + 1] by the code that trains; branch 0 is the prompt."""
    graph, _ = abstract_decoder(spec)
    dtype = jnp.dtype("float32")
    options = {"dtype": dtype, "remat": "none", "num_vocabulary_shards": 1, "kernel": kernel}
    return response_logps(graph, parameters, batch, **options)[0]


def by_group(x_BPc: Array, rows: list[list[int]]) -> Array:
    """[group, response], in the order of the groups' numbers."""
    places = sorted((member, b, p) for b, row in enumerate(rows) for p, member in enumerate(row))
    _, b, p = np.array(places).T
    return x_BPc[b, p, 1:]


def plain_sequences(groups: list[Group]) -> tuple[np.ndarray, np.ndarray]:
    """Every prompt + response as a row of its own: tokens [B, T], and where a token of a response stands."""
    sequences = [(g.prompt, y) for g in groups for y in g.responses]
    length = max(len(x) + len(y) for x, y in sequences)
    tokens_BT = np.zeros((len(sequences), length), np.int32)
    is_response_BT = np.zeros((len(sequences), length), bool)
    for row, (x, y) in enumerate(sequences):
        tokens_BT[row, : len(x) + len(y)] = np.concatenate([x, y])
        is_response_BT[row, len(x) : len(x) + len(y)] = True
    return tokens_BT, is_response_BT


def plain_logps(spec: Spec, parameters: dict, tokens_BT: Array, is_response_BT: Array) -> Array:
    """[group, response] by the book: one causal sequence a row, softmax over the whole vocabulary."""
    graph, _ = abstract_decoder(spec)
    decoder = nnx.merge(graph, parameters)
    hidden_BTD, _ = decoder(tokens_BT, plain_layout(tokens_BT), kernel="einsum")
    logps_BTV = jax.nn.log_softmax(decoder.logits(hidden_BTD), axis=-1)
    next_BT = jnp.take_along_axis(logps_BTV[:, :-1], tokens_BT[:, 1:, None], axis=-1)[..., 0]
    return jnp.where(is_response_BT[:, 1:], next_BT, 0.0).sum(-1).reshape(-1, 2)


@dataclass(frozen=True)
class Trained:
    """What some steps left: metrics of each step as floats, and the final state on the mesh."""

    metrics: list[dict[str, float]]
    state: State
    step: TrainStep


def plan_of(groups: list[Group], config: Config, *, num_steps: int, row_length: int, num_shards: int) -> BatchPlan:
    sizes = np.array([group.num_tokens for group in groups])
    steps = shuffled_steps(sizes, batch_size=config.train.batch_size, num_steps=num_steps, seed=config.seed)
    limits = {"row_length": row_length, "rows_per_shard": config.rows.per_shard, "num_row_shards": num_shards}
    return make_plan(groups, steps, **limits, scored=what_is_scored(config))


def on_mesh(parameters: dict, spec: Spec, mesh: Mesh) -> dict:
    return jax.device_put(parameters, parameter_shardings(spec, mesh))


def train_steps(
    config: Config, spec: Spec, mesh: Mesh, groups: list[Group], *, num_steps: int = 3, row_length: int = 128
) -> Trained:
    """Optimizer steps from the parameters of seed 1 against the reference of seed 0, so that rewards are not 0.

    Adapters of seed 1 stand on the reference.
    """
    plan = plan_of(groups, config, num_steps=num_steps, row_length=row_length, num_shards=num_row_shards(mesh))
    reference = resident_reference(on_mesh(random_parameters(spec), spec, mesh), config, spec, mesh)
    start = jax.device_put(random_trained(spec, seed=1), trained_shardings(spec, mesh))
    state = first_state(start, spec, mesh, direction(config.optimizer, spec))
    step = make_train_step(config, spec, mesh, plan.shape, num_steps=num_steps)
    metrics = []
    with jax.set_mesh(mesh):
        for rows in plan.steps:
            batch = materialise(groups, rows, plan.shape, mine=my_rows(mesh, plan.shape.B))
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
