"""Best of n: the best, by a scorer, of n answers that are asked for no goal. What a model that is asked for the highest goal saves."""

import math

import numpy as np
from jaxtyping import Float


def best_of(scores_PN: Float[np.ndarray, "P N"]) -> Float[np.ndarray, "P N"]:
    """The mean over all choices of n out of N answers of the best of them, for n = 1 to N.

    The i-th of N scores in ascending order is the best of C(i - 1, n - 1) of the C(N, n) choices.

    >>> best_of(np.array([[3.0, 1.0, 2.0]])).round(3)
    array([[2.   , 2.667, 3.   ]])
    """
    N = scores_PN.shape[1]
    shares_NN = np.array([[math.comb(i, n) / math.comb(N, n + 1) for n in range(N)] for i in range(N)])
    return np.sort(scores_PN, axis=1) @ shares_NN


def at_number(best_PN: Float[np.ndarray, "P N"], number: float) -> float:
    """The mean over prompts of the best of so many answers, which need not be whole; at most of all that there are, at least of
    one.

    >>> at_number(np.array([[2.0, 4.0, 5.0]]), 1.5), at_number(np.array([[2.0, 4.0, 5.0]]), 9.0)
    (3.0, 5.0)
    """
    means_N = best_PN.mean(axis=0)
    return float(np.interp(number, np.arange(1, len(means_N) + 1), means_N))
