"""Files and functions stay small enough to be read in one go."""

import ast
from pathlib import Path

import pytest

import rapo_jax

ROOT = Path(rapo_jax.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
MOST_LINES_OF_A_FILE, MOST_LINES_OF_A_FUNCTION, MOST_PARAMETERS = 400, 60, 8
# file.function: why it may be larger
POINTERS = "a kernel's parameters are pointers to its operands and results, in the order that pallas_call passes them"
EXCEPTIONS = {
    "models/attention/gpu._forward_kernel": POINTERS,
    "models/attention/gpu._gradient_of_queries_kernel": POINTERS,
    "models/attention/gpu._gradients_of_keys_kernel": POINTERS,
}


def functions(path: Path):
    """(file.function, its node) for every function, methods and inner functions included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{path.relative_to(ROOT).with_suffix('')}.{node.name}", node


def num_parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    names = [each.arg for each in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_and_its_functions_can_be_read_in_one_go(path):
    """When this fails, nothing breaks yet, but the next reader gives up and the next change goes to the wrong place."""
    large = [f"{path.name} has {lines} lines"] if (lines := path.read_text().count("\n")) > MOST_LINES_OF_A_FILE else []
    for name, node in functions(path):
        if name in EXCEPTIONS:
            continue
        assert node.end_lineno is not None
        lines, parameters = node.end_lineno - node.lineno + 1, num_parameters(node)
        if lines > MOST_LINES_OF_A_FUNCTION:
            large.append(f"{name} has {lines} lines")
        if parameters > MOST_PARAMETERS:
            large.append(f"{name} has {parameters} parameters")
    assert not large, f"{large}: split them"


def test_exceptions_name_functions_that_are_still_too_large():
    """When this fails, an exception outlived its reason, and the next function of that name can grow unnoticed."""
    nodes = {name: node for path in FILES for name, node in functions(path)}
    for name in EXCEPTIONS:
        node = nodes[name]
        assert node.end_lineno is not None
        lines = node.end_lineno - node.lineno + 1
        assert lines > MOST_LINES_OF_A_FUNCTION or num_parameters(node) > MOST_PARAMETERS, f"{name} no longer needs one"
