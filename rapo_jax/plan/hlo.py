"""Parses the text of a compiled program (XLA's optimized HLO) into instructions, as far as `rapo plan` needs it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

BITS = {"pred": 8, "bf16": 16, "f16": 16, "f32": 32, "f64": 64, "c64": 64}
ARRAY = re.compile(r"\b(pred|bf16|f8\w+|f\d+|[su]\d+|c\d+)\[([\d,]*)\](\{[^}]*\})?")
HEAD = re.compile(r"^(ENTRY )?%([\w.\-]+) \(.*\{$")
LINE = re.compile(r"^\s*(ROOT )?%([\w.\-]+) = (.*)$")
STARTS = re.compile(r"^\s*((ROOT )?%[\w.\-]+ = |ENTRY |%|HloModule|$)|^\}(,|$)")
CALLED = re.compile(r"\b(?:calls|to_apply|body|condition|true_computation|false_computation)=%([\w.\-]+)")
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


@dataclass(frozen=True)
class ArrayType:
    """A dense array's type; `in_memory` is False if the compiler keeps it in on-chip memory (memory space 1)."""

    dtype: str
    shape: tuple[int, ...]
    in_memory: bool

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def num_bytes(self) -> float:
        bits = BITS.get(self.dtype) or int(re.sub(r"\D*(\d+).*", r"\1", self.dtype))
        return self.size * bits / 8


@dataclass(frozen=True)
class Instruction:
    """`attributes` is the text after the operands; for a constant its value, for a parameter its number."""

    name: str
    opcode: str
    results: tuple[ArrayType, ...]
    operands: tuple[str, ...]
    attributes: str
    is_root: bool

    @property
    def called(self) -> list[str]:
        """The computations that the instruction calls."""
        found = CALLED.findall(self.attributes)
        branches = BRANCHES.search(self.attributes)
        return found + (re.findall(r"%([\w.\-]+)", branches[1]) if branches else [])

    def attribute(self, pattern: str) -> str | None:
        found = re.search(pattern, self.attributes)
        return found[1] if found else None

    def required(self, pattern: str) -> str:
        """An attribute that every instruction of this opcode has."""
        found = self.attribute(pattern)
        assert found is not None, f"{self.opcode} {self.name} has no {pattern}: {self.attributes:.200}"
        return found


Computation = dict[str, Instruction]


@dataclass(frozen=True)
class Module:
    entry: str
    computations: dict[str, Computation]


def parse_hlo(text: str) -> Module:
    """Parses a module: computations by name, each with its instructions by name.

    >>> module = parse_hlo('''ENTRY %main (x: f32[4,8]) -> f32[4,4] {
    ...   %x = f32[4,8]{1,0:T(4,128)S(1)} parameter(0)
    ...   ROOT %y = f32[4,4]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={1}
    ... }''')
    >>> module.computations["main"]["y"].operands
    ('x', 'x')
    """
    computations: dict[str, Computation] = {}
    current, entry = {}, ""
    for statement in statements(text):
        if head := HEAD.match(statement):
            current = computations.setdefault(head[2], {})
            entry = head[2] if head[1] else entry
        elif found := LINE.match(statement):
            instruction = read_instruction(found)
            current[instruction.name] = instruction
    return Module(entry, computations)


def statements(text: str) -> Iterator[str]:
    """Lines, with continuation lines joined (kernels' metadata contain line breaks)."""
    whole: list[str] = []
    for line in text.splitlines():
        if whole and STARTS.match(line):
            yield " ".join(whole)
            whole = []
        whole.append(line)
    yield " ".join(whole)


def read_instruction(found: re.Match) -> Instruction:
    is_root, name, rest = bool(found[1]), found[2], found[3]
    end = closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    results = tuple(read_array(a) for a in ARRAY.finditer(rest[:end]))
    opening = rest.index("(", end)
    opcode, stop = rest[end:opening].strip(), closing(rest, opening)
    operands = tuple(re.findall(r"%([\w.\-]+)", rest[opening:stop]))
    attributes = rest[opening + 1 : stop] if opcode in ("constant", "parameter") else rest[stop + 1 :]
    return Instruction(name, opcode, results, operands, attributes, is_root)


def read_array(found: re.Match) -> ArrayType:
    shape = tuple(map(int, found[2].split(","))) if found[2] else ()
    return ArrayType(found[1], shape, in_memory="S(1)" not in (found[3] or ""))


def closing(text: str, opening: int) -> int:
    """The index of the parenthesis that closes the one at `opening`."""
    depth = 0
    for at in range(opening, len(text)):
        depth += {"(": 1, ")": -1}.get(text[at], 0)
        if depth == 0:
            return at
    return len(text) - 1
