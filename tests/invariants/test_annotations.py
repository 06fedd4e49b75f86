"""Public functions declare the shapes of their arrays; the tests compare every call with them (tests/shapes.py)."""

import ast
import re
from pathlib import Path

import rapo_jax

ROOT = Path(rapo_jax.__file__).parent
NAMED_BY_SHAPE = re.compile(r"_[A-Z][A-Za-z]*$")
CONTAINERS = ("tuple", "list", "dict", "Sequence", "Callable")
# file.function: why no shape can be said
EXCEPTIONS: dict[str, str] = {}


def bare(annotation: ast.expr | None) -> bool:
    """Whether an annotation is an array of any shape: Array, np.ndarray, or one of them or None."""
    if annotation is None:
        return False
    parts = annotation
    if isinstance(parts, ast.BinOp):
        return bare(parts.left) or bare(parts.right)
    if isinstance(parts, ast.Subscript) and ast.unparse(parts.value) in CONTAINERS:
        inner = parts.slice.elts if isinstance(parts.slice, ast.Tuple) else [parts.slice]
        return any(bare(each) for each in inner)
    return ast.unparse(annotation) in ("Array", "jax.Array", "np.ndarray")


def offenders(path: Path):
    module = ast.parse(path.read_text())
    owners = [module, *(node for node in module.body if isinstance(node, ast.ClassDef))]
    for owner in owners:
        for node in owner.body:
            if not isinstance(node, ast.FunctionDef) or (node.name.startswith("_") and node.name != "__call__"):
                continue
            name = f"{path.relative_to(ROOT).with_suffix('')}.{node.name}"
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            wrong = [a.arg for a in arguments if bare(a.annotation)]
            wrong += [a.arg for a in arguments if a.annotation is None and NAMED_BY_SHAPE.search(a.arg)]
            wrong += ["its result"] * bare(node.returns)
            if wrong:
                yield name, f"{name}: {', '.join(wrong)}"


def test_every_array_of_a_public_function_has_a_shape():
    """When this fails, a function can be called with a transposed array, and broadcasting hides the mistake."""
    found = dict(each for path in sorted(ROOT.rglob("*.py")) for each in offenders(path))
    missing = [said for name, said in found.items() if name not in EXCEPTIONS]
    assert not missing, "annotate with jaxtyping, Float[Array, 'B T'] ...:\n" + "\n".join(missing)
    assert set(EXCEPTIONS) <= set(found), f"no exception needed: {set(EXCEPTIONS) - set(found)}"
