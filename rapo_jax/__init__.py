"""rapo_jax: language models that know how good an answer was asked for.

A row with two scored responses becomes two goal-conditioned preferences; a sharded step compares the policy's and the
reference's log-probabilities of both; the result is a Hugging Face checkpoint that answers at the highest goal.

Method: Zhang et al., "Reward-Augmented Data Enhances Direct Preference Alignment of LLMs", 2024.

Shape legend. A name like `q_BTNH` says what each dimension counts, everywhere in this package:

    B rows   T tokens in a row   P groups in a row   C responses in a group   S scored positions in a row
    D model  N query heads  K key/value heads  H head  F feed-forward  V vocabulary  L layers
    M microbatches in an optimizer step   A branches of a group: its prompt, branch 0, and C responses
    Z slots in a row, P * A: slot p * A + c is branch c of group p   R rank of an adapter
"""

__version__ = "0.1.0"
