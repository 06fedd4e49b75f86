"""ArmoRM (Wang et al., "Interpretable Preferences via Multi-Objective Reward Modeling and Mixture-of-Experts", 2024): a Llama
with a regression head for each of 19 attributes, and a gating network that weighs them by the prompt.

    r = W h            h: the final hidden state at the response's last token; the attributes, before any transformation
    g = s softmax(MLP(p) / temperature)      p: the same at the first token of the assistant's header, after its last turn
    reward = sum_j g_j (r T)_j               T takes from every attribute its correlation with verbosity

Attributes were learnt as (x - 0.5) / 10 of marks from 1 to 10 and (x + 0.5) / 5 of marks from 0 to 4; none is bounded.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Float, Float32, Int

from rapo_jax.batch import Batch, Shape
from rapo_jax.batching.batch_plan import Group
from rapo_jax.borders import read_object
from rapo_jax.chat.goal_prompt import GoalPrompt
from rapo_jax.config.tree import Config
from rapo_jax.errors import UserError, counted
from rapo_jax.messages import Record
from rapo_jax.models.attention.layout import Layout
from rapo_jax.models.decoder import Decoder, ForwardOptions, abstract_decoder
from rapo_jax.models.directory import model_directory
from rapo_jax.models.files import load_parameters, open_tensors, require_finite
from rapo_jax.models.spec import Spec, read_config, spec_from_config
from rapo_jax.opened import AS_RECORDED, ModelDirectory, OpenedTokenizer, Rendering
from rapo_jax.parallel import replicated
from rapo_jax.score.by_model import agreed_groups, one_pass
from rapo_jax.score.scorer import MakeMesh, Origin, RowScores, ScoreRequest, refuse_options
from rapo_jax.train.forward import Forward, at_home, sums_by_branch
from rapo_jax.train.microbatches import microbatch
from rapo_jax.train.state import parameter_shardings
from rapo_jax.train.step import LogpsStep, batch_shardings

ARCHITECTURE = "LlamaForRewardModelWithGating"
OWN_KEYS = ("gating_temperature", "gating_hidden_dim", "gating_n_hidden", "num_objectives")
ATTRIBUTES = (
    "helpsteer-helpfulness helpsteer-correctness helpsteer-coherence helpsteer-complexity helpsteer-verbosity "
    "ultrafeedback-overall_score ultrafeedback-instruction_following ultrafeedback-truthfulness ultrafeedback-honesty "
    "ultrafeedback-helpfulness beavertails-is_safe prometheus-score argilla-overall_quality argilla-judge_lm "
    "code-complexity code-style code-explanation code-instruction-following code-readability"
).split()
HEADER = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"  # of Llama 3
REGRESSION, TRANSFORM, SCALE = "regression_layer.weight", "reward_transform_matrix", "gating.logit_scale"


@dataclass(frozen=True)
class ArmoHeads:
    """The weights above the decoder, float32; J attributes. layers: weight [out, in] and bias of each layer of the gating."""

    regression_JD: Float32[np.ndarray, "J D"]
    transform_JJ: Float32[np.ndarray, "J J"]
    layers: tuple[tuple[Float32[np.ndarray, "_ _"], Float32[np.ndarray, " _"]], ...]
    scale: float
    temperature: float

    @property
    def arrays(self) -> dict[str, Any]:
        return {"regression": self.regression_JD, "transform": self.transform_JJ, "layers": self.layers}

    @cached_property
    def digest(self) -> str:
        hashes = hashlib.sha256(repr((self.scale, self.temperature)).encode())
        for array in jax.tree.leaves(self.arrays):
            hashes.update(np.ascontiguousarray(array).tobytes())
        return hashes.hexdigest()[:12]


def reward_and_attributes(
    arrays: Mapping[str, Any],
    last_XD: Float[Array, "*X D"],
    gate_XD: Float[Array, "*X D"],
    *,
    scale: float,
    temperature: float,
) -> Float[Array, "*X _"]:
    """The reward, followed by the attributes, of hidden states at the last token and at the header; float32."""

    def times(x: Array, weight: Array) -> Array:
        return jnp.einsum("...i,oi->...o", x, weight, precision="highest")

    attributes_XJ = times(last_XD.astype(jnp.float32), arrays["regression"])
    x = gate_XD.astype(jnp.float32)
    for number, (weight, bias) in enumerate(arrays["layers"]):
        x = times(jax.nn.relu(x) if number else x, weight) + bias
    gates_XJ = scale * jax.nn.softmax(x / temperature, axis=-1)
    rewards_X = (gates_XJ * times(attributes_XJ, arrays["transform"].T)).sum(-1)
    return jnp.concatenate([rewards_X[..., None], attributes_XJ], -1)


@dataclass(frozen=True)
class ArmoReadout:
    """What a pass reads of the hidden states: the reward and the attributes of every response. header: its tokens."""

    heads: ArmoHeads
    header: tuple[int, ...]

    @property
    def width(self) -> int:
        return 1 + len(self.heads.regression_JD)

    @property
    def digest(self) -> str:
        return self.heads.digest

    def step(self, forward: Forward, spec: Spec, mesh: Mesh, shape: Shape) -> LogpsStep:
        graph, _ = abstract_decoder(spec)
        options = ForwardOptions(forward.dtype, "none", forward.kernel, forward.unrolled)

        def scores(parameters: dict, arrays: dict, batch: Batch[Array]) -> Array:
            rows, decoder = microbatch(batch, 0), nnx.merge(graph, parameters)
            assert isinstance(decoder, Decoder)
            index_BT = jnp.broadcast_to(jnp.arange(rows.tokens.shape[1]), rows.tokens.shape)
            layout = Layout(index=index_BT, position=rows.position, group=rows.group, branch=rows.branch)
            hidden_BTD = decoder(rows.tokens, layout, options=options)
            last, gate = (
                jnp.take_along_axis(hidden_BTD, at_BS[..., None], axis=1)
                for at_BS in (rows.source, header_positions(rows, self.header))
            )
            mixing = {"scale": self.heads.scale, "temperature": self.heads.temperature}
            numbers_BSK = reward_and_attributes(arrays, last, gate, **mixing)
            each = jax.vmap(lambda one_BS: at_home(sums_by_branch(one_BS, rows)[0], rows), in_axes=-1, out_axes=-1)
            numbers_BPAK = each(numbers_BSK)
            return numbers_BPAK.reshape(*numbers_BPAK.shape[:2], -1)

        everywhere = replicated(mesh)
        shardings = (parameter_shardings(spec, mesh), everywhere, batch_shardings(mesh, shape))
        compiled = jax.jit(scores, in_shardings=shardings, out_shardings=everywhere)
        return lambda parameters, batch: compiled(parameters, self.heads.arrays, batch)


def header_positions(rows: Batch[Array], header: Sequence[int]) -> Int[Array, "B S"]:
    """For every scored position, where in its row the last header of its prompt begins; 0 where nothing is scored."""
    begins_BT = (rows.branch == 0) & (rows.group > 0)
    for at, token in enumerate(header):
        here = jnp.roll(rows.tokens, -at, axis=1) == token
        begins_BT &= (
            here & (jnp.roll(rows.group, -at, axis=1) == rows.group) & (jnp.roll(rows.branch, -at, axis=1) == 0)
        )
    group_BS = jnp.take_along_axis(rows.group, rows.source, axis=1)
    own_BST = begins_BT[:, None, :] & (rows.group[:, None, :] == group_BS[..., None])
    return jnp.where(own_BST, jnp.arange(rows.tokens.shape[1]), 0).max(-1)


@dataclass(frozen=True)
class ArmoModel:
    """The closed model of ArmoRM's decoder, which has no vocabulary: a spec that ties one needs no tensor of its own."""

    inner: ModelDirectory

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def directory(self) -> Path:
        return self.inner.directory

    @property
    def mesh(self) -> Mesh:
        return self.inner.mesh

    @property
    def spec(self) -> Spec:
        config = {key: value for key, value in read_config(self.directory).items() if key not in OWN_KEYS}
        return replace(spec_from_config(config), tied=True)

    def open_tokenizer(self, how: Rendering = AS_RECORDED) -> OpenedTokenizer:
        return self.inner.open_tokenizer(how)

    def own_goal_prompt(self) -> GoalPrompt | None:
        return self.inner.own_goal_prompt()

    def identity(self) -> dict[str, str | int]:
        return self.inner.identity()

    def parameters(self, dtype: jnp.dtype) -> dict[str, Any]:
        names = frozenset(name for name in open_tensors(self.directory).files if is_head(name))
        return load_parameters(self.directory, self.spec, mesh=self.mesh, dtype=dtype, beside=names)

    def header(self, config: Config) -> tuple[int, ...]:
        """The tokens of the assistant's header. Raises UserError where they are not those of Llama 3's markers."""
        how = Rendering(config.data.chat_template, config.data.template_options)
        tokenizer = self.inner.open_tokenizer(how).tokenizer
        markers = ("<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>")
        vocabulary = tokenizer.get_vocab()
        if lacking := [marker for marker in markers if marker not in vocabulary]:
            raise UserError(
                f"{self.name}: its tokenizer has no {' or '.join(lacking)}, by which ArmoRM finds the end of a prompt."
            )
        return tuple(tokenizer.encode(HEADER, add_special_tokens=False))

    def heads(self) -> ArmoHeads:
        """The weights above the decoder. Raises UserError where one is missing or of another shape."""
        tensors, config, D = open_tensors(self.directory), read_config(self.directory), self.spec.D
        layers = sorted(
            name for name in tensors.files if name.startswith("gating.layers.") and name.endswith(".weight")
        )
        wanted = [REGRESSION, TRANSFORM, SCALE, *layers, *(name.replace(".weight", ".bias") for name in layers)]
        if missing := [name for name in wanted if name not in tensors.files] + ["gating.layers"] * (not layers):
            raise UserError(f"{self.directory} lacks {', '.join(missing)}: it is no ArmoRM; leave out --scorer=armorm.")

        def read(name: str) -> Float32[np.ndarray, "..."]:
            array = tensors.read(name, (slice(None),) * len(tensors.shape(name))).astype(np.float32)
            require_finite(array, name, self.directory)
            return array

        pairs = tuple((read(name), read(name.replace(".weight", ".bias"))) for name in layers)
        regression_JD, transform_JJ = read(REGRESSION), read(TRANSFORM)
        J, widths = len(regression_JD), [D, *(len(bias) for _, bias in pairs)]
        shapes = [weight.shape for weight, _ in pairs] == list(zip(widths[1:], widths[:-1], strict=True))
        if regression_JD.shape != (J, D) or transform_JJ.shape != (J, J) or not shapes or widths[-1] != J:
            raise UserError(
                f"{self.directory}: the heads of ArmoRM do not fit each other and hidden_size={D}; download it again."
            )
        scale, temperature = float(read(SCALE).reshape(-1)[0]), float(config.get("gating_temperature") or 10)
        return ArmoHeads(regression_JD, transform_JJ, pairs, scale, temperature)


def is_head(name: str) -> bool:
    return name in (REGRESSION, TRANSFORM) or name.startswith("gating.")


@dataclass(frozen=True)
class ArmoRM:
    """The scorer: rewards, and the attributes that they are mixed from."""

    config: Config
    model: ArmoModel

    @property
    def origin(self) -> Origin:
        return {"kind": "armorm", "model": self.model.name}

    def score(self, records: Sequence[Record], *, kept: Path) -> list[RowScores]:
        readout = ArmoReadout(self.model.heads(), self.model.header(self.config))
        groups = agreed_groups(records, self.config, read_by=self.model, scored=self.model)
        require_headers(groups, readout.header)
        numbers = one_pass("armorm", self.model, groups=groups, kept=kept, config=self.config, readout=readout)
        numbers_GCK = numbers.reshape(len(groups), -1, readout.width)[:, 1:]
        names = attribute_names(readout.width - 1)
        scores = []
        for record, numbers_CK in zip(records, numbers_GCK.tolist(), strict=True):
            own = numbers_CK[: len(record.responses)]
            attributes = tuple(dict(zip(names, each[1:], strict=True)) for each in own)
            scores.append(RowScores(tuple(each[0] for each in own), attributes))
        return scores


def attribute_names(number: int) -> list[str]:
    """The published attributes; of a model with another number of heads, numbers."""
    return ATTRIBUTES if number == len(ATTRIBUTES) else [f"attribute_{at}" for at in range(number)]


def require_headers(groups: Sequence[Group], header: tuple[int, ...]) -> None:
    """Raises UserError for prompts without the assistant's header, which the gating reads."""
    width = len(header)
    lacking = [
        group.row
        for group in groups
        if header not in {tuple(group.prompt[at : at + width].tolist()) for at in range(len(group.prompt) - width + 1)}
    ]
    if lacking:
        raise UserError(
            f"{counted(len(lacking), 'prompt')} (the first: row {lacking[0]}) would not end with Llama 3's header of the assistant, "
            "which ArmoRM reads; leave out data.chat_template."
        )


def is_armorm(name: str) -> bool:
    """Whether a directory says that it is one."""
    file = Path(name) / "config.json"
    return file.is_file() and ARCHITECTURE in (read_object(file).get("architectures") or ())


def open_armorm(config: Config, request: ScoreRequest, mesh: MakeMesh) -> ArmoRM:
    """--scorer=armorm."""
    refuse_options(request, of=("--model",))
    directory = model_directory(request.model, option="--model")
    on = mesh()
    if on.shape.get("context", 1) > 1:
        raise UserError("--scorer=armorm reads whole rows; set mesh.context=1.")
    return ArmoRM(config, ArmoModel(ModelDirectory(request.model, directory, on)))
