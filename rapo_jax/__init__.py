"""rapo_jax: reward-augmented preference alignment of language models in JAX.

A row with two scored responses becomes two goal-conditioned preferences. A sharded step compares the policy's and the
reference's log-probabilities of both. The result is a Hugging Face checkpoint that answers at the highest goal.

Method: Zhang et al., "Reward-Augmented Data Enhances Direct Preference Alignment of LLMs", 2024, arXiv:2410.08067.

Shape legend. The suffix of a name such as `q_BTNH` gives its dimensions, throughout the package:

    B rows   T tokens in a row   P groups in a row   C responses in a group   S scored positions in a row
    D model  N query heads  K key/value heads  H head  F feed-forward  V vocabulary  L layers
    M microbatches in an optimizer step   A branches of a group: branch 0 is the prompt, 1 to C the responses
    Z slots in a row, P * A: slot p * A + c is branch c of group p   R rank of an adapter
    U keys that queries attend to: the row's tokens, or a cache's slots   G query heads per key head, N / K
    X Y queries and keys of an attention tile; X elsewhere stands for several dimensions flattened into one
"""

__version__ = "0.1.0"
