"""Run-time checks of dtypes and shapes against jaxtyping annotations, for the tests.

jaxtyping's import hook decorates the functions and dataclasses of the package; beartype compares arguments and results with
the annotations. Only signatures with a shape in them are compared: the type checker covers the others, and binding their
arguments at every call would take a tenth of the suite's time. Runs in
processes of their own (the command line, two processes) are not checked.
"""

import functools
import importlib
import re
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jaxtyping
from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

F = TypeVar("F", bound=Callable)
# An int is a float (PEP 484), as the type checker has it.
compare = beartype(conf=BeartypeConf(is_pep484_tower=True))


# While a module of the package is imported, the hook keeps Python from finding compiled files, also those of the modules
# that it imports in turn: these come first.
DEPENDENCIES = (
    "datasets",
    "flax.nnx",
    "grain",
    "optax",
    "orbax.checkpoint.experimental.v1",
    "scipy.stats",
    "transformers.models.auto.tokenization_auto",
    "transformers.tokenization_utils_base",
    "jax.experimental.pallas.ops.tpu.splash_attention",
    "jax.experimental.pallas.triton",
)


def check_shapes() -> None:
    """Call before anything of rapo_jax is imported."""
    for name in DEPENDENCIES:
        importlib.import_module(name)
    jaxtyping.jaxtyped = where_shapes_are(jaxtyping.jaxtyped)
    install_import_hook("rapo_jax", "tests.shapes.compared")


def where_shapes_are(jaxtyped: Callable) -> Callable:
    """`jaxtyped`, which leaves functions and classes without a shape in their annotations as they are."""

    def decorator(**options: Any) -> Callable:
        return lambda decorated: jaxtyped(**options)(decorated) if has_shapes(decorated) else decorated

    return decorator


def has_shapes(decorated: Any) -> bool:
    """Of a function, method, property or class: whether its annotations hold a shape, as in Float[Array, 'B T']."""
    function = getattr(decorated, "__func__", None) or getattr(decorated, "fget", None) or decorated
    return bool(re.search(r"(Array|ndarray), '", str(function.__annotations__)))


def compared(function: F) -> F:
    """`function`, compared with its annotations if these hold a shape. beartype looks at it on its first call: making
    all comparisons at import would take seconds."""
    if not has_shapes(function):
        return function
    comparison = functools.cache(lambda: compare(function))

    @functools.wraps(function)
    def called(*args, **kwargs):
        if function.__name__ == "__init__" and is_tree(type(args[0])):
            return None
        return comparison()(*args, **kwargs)

    return called


@functools.cache
def is_tree(cls: type) -> bool:
    """Whether JAX takes instances apart and makes new ones from any leaves: shapes, shardings, placeholders."""
    try:
        return not jax.tree_util.all_leaves([object.__new__(cls)])
    except AttributeError:  # JAX looked for the first field of this empty instance
        return True
