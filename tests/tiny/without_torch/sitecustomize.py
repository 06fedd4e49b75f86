"""Python reads this when it starts with this directory in PYTHONPATH: torch is then as if it were not installed.

So it is for users, and an import of transformers takes half the time.
"""

import sys
from importlib.machinery import ModuleSpec, PathFinder


class WithoutTorch(PathFinder):
    @classmethod
    def find_spec(cls, fullname: str, path=None, target=None) -> ModuleSpec | None:
        return None if fullname == "torch" else super().find_spec(fullname, path, target)


sys.meta_path[sys.meta_path.index(PathFinder)] = WithoutTorch
