"""The seven weight matrices of a decoder layer, described once.

Parameter shapes, shardings, matrix products, Hugging Face and peft tensor names, LoRA adapters, FLOP counts and the
default of `lora.targets` all follow from MATRICES; so do biases, in rapo_jax/models/parameters.py, where the norms are
too. No arrays here.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Matrix:
    """One matrix: the dimensions it contracts with its input, those of its output, and its Hugging Face module.

    >>> MATRICES["q"].letters, MATRICES["q"].equation, MATRICES["q"].file_letters
    ('DNH', 'BTD,DNH->BTNH', 'NH D')
    """

    inputs: str
    outputs: str
    module: str  # within a layer
    bias_flag: str  # the field of Spec that says whether the product adds a bias

    @property
    def letters(self) -> str:
        """The shape letters of the weight in one layer."""
        return self.inputs + self.outputs

    @property
    def file_letters(self) -> str:
        """The dimensions of the weight in a file, outputs first, as torch.nn.Linear has them."""
        return f"{self.outputs} {self.inputs}"

    @property
    def equation(self) -> str:
        """The einsum of activations and weight."""
        return f"BT{self.inputs},{self.letters}->BT{self.outputs}"


MATRICES = {
    "q": Matrix("D", "NH", "self_attn.q_proj", "qkv_bias"),
    "k": Matrix("D", "KH", "self_attn.k_proj", "qkv_bias"),
    "v": Matrix("D", "KH", "self_attn.v_proj", "qkv_bias"),
    "o": Matrix("NH", "D", "self_attn.o_proj", "out_bias"),
    "gate": Matrix("D", "F", "mlp.gate_proj", "mlp_bias"),
    "up": Matrix("D", "F", "mlp.up_proj", "mlp_bias"),
    "down": Matrix("F", "D", "mlp.down_proj", "mlp_bias"),
}
