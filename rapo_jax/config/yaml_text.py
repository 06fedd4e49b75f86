"""YAML texts -> values: no code is executed, no key is given twice, and no text makes a value larger than itself allows.

Which keys a configuration has is not known here.
"""

from typing import Any

import yaml

from rapo_jax.errors import UserError

MOST_VALUES = 100_000  # of a text, with every alias written out
MOST_LEVELS = 100  # of lists in lists; the scanner's time grows with their square
MOST_BITS = 10_000  # of an integer; Python refuses to print longer ones


class StrictLoader(yaml.SafeLoader):
    """A YAML loader that executes no code and refuses duplicate keys, and values that contain themselves or explode."""

    def fetch_flow_collection_start(self, TokenClass: type) -> None:
        if self.flow_level >= MOST_LEVELS:
            raise yaml.MarkedYAMLError(problem="nested too deep", problem_mark=self.get_mark())
        super().fetch_flow_collection_start(TokenClass)

    def construct_document(self, node: yaml.Node) -> Any:
        num_values(node, {})
        return super().construct_document(node)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
        except (
            TypeError,
            AttributeError,
            KeyError,
            IndexError,
            OverflowError,
        ) as error:  # a tag for another kind of value
            raise yaml.MarkedYAMLError(problem=f"this is no {node.tag}", problem_mark=node.start_mark) from error
        if isinstance(value, int) and value.bit_length() > MOST_BITS:
            raise yaml.MarkedYAMLError(problem="an integer of thousands of digits", problem_mark=node.start_mark)
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        if isinstance(node, yaml.MappingNode):
            seen = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value in seen:
                    raise yaml.MarkedYAMLError(problem=f"{key.value} is given twice", problem_mark=key.start_mark)
                seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return super().construct_mapping(node, deep)


def num_values(node: yaml.Node, known: dict[yaml.Node, int | None]) -> int:
    """How many values a node stands for, every alias written out. `known` are counts by node, None while one is counted.

    Raises yaml.MarkedYAMLError for a node that contains itself, and for more than MOST_VALUES.
    """
    if node in known:
        count = known[node]
        if count is None:
            raise yaml.MarkedYAMLError(problem="a value that contains itself", problem_mark=node.start_mark)
        return count
    known[node] = None
    inside = node.value if isinstance(node, yaml.CollectionNode) else []
    parts = [part for each in inside for part in (each if isinstance(each, tuple) else (each,))]
    count = known[node] = 1 + sum(num_values(part, known) for part in parts)
    if count > MOST_VALUES:
        problem = f"more than {MOST_VALUES:,} values, aliases written out"
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
    return count


def parse_yaml(text: str, *, said: str) -> Any:
    """The value of a YAML text. `said` is what the UserError calls the text."""
    try:
        return yaml.load(text, Loader=StrictLoader)
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        line = f"line {mark.line + 1}: " if mark else ""
        fact = f"{line}{problem or str(error).splitlines()[0]}"
    except (ValueError, RecursionError) as error:  # month 13, an integer of thousands of digits, nested too deep
        fact = "nested too deep" if isinstance(error, RecursionError) else str(error)
    raise UserError(f"{said:.100} cannot be read as YAML: {fact:.300}.")


def yaml_text(tree: Any) -> str:
    """Plain dicts, lists and scalars as YAML, keys in their order."""
    return yaml.safe_dump(tree, sort_keys=False)
