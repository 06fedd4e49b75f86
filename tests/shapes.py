"""Run-time checks of every array's dtype and shape against its jaxtyping annotation, for the tests.

jaxtyping's import hook decorates every function and dataclass of the package; beartype compares the arguments and the
result with the annotations. Only signatures that mention an array are compared: the type checker sees to the rest, and
comparing everything would cost more than it finds.
"""

import functools
import re
from collections.abc import Callable
from typing import TypeVar

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

F = TypeVar("F", bound=Callable)
# An int is a float (PEP 484), as the type checker has it.
compare = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check_shapes() -> None:
    """Call before anything of rapo_jax is imported, and after its large dependencies: the hook disables Python's cache of
    compiled modules for whatever is first imported from inside the package."""
    install_import_hook("rapo_jax", "tests.shapes.compared")


def compared(function: F) -> F:
    """`function`, compared with its annotations if they mention an array. beartype looks at it on its first call: making
    all comparisons at import would take seconds."""
    if not re.search("Array|ndarray", str(function.__annotations__)):
        return function
    comparison = functools.cache(lambda: compare(function))

    @functools.wraps(function)
    def called(*args, **kwargs):
        return comparison()(*args, **kwargs)

    return called
