"""Names that a package imports when they are first used, so that `import tasquencer` stays fast."""

from __future__ import annotations

import ast
from collections.abc import Callable
from importlib import import_module, util

__all__ = ["lazy"]


def lazy(package: str) -> tuple[Callable[[str], object], Callable[[], list[str]], list[str]]:
    """Return the `__getattr__`, `__dir__` and `__all__` of a package (PEP 562).

    The names are those that the package imports under `if TYPE_CHECKING:`, so that each is listed once.
    """
    homes = _shown_to_type_checkers(package)

    def find(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(homes[name]), name)

    return find, lambda: sorted(homes), sorted(homes)


def _shown_to_type_checkers(package: str) -> dict[str, str]:
    """Return the module that defines each name."""
    spec = util.find_spec(package)
    source = getattr(spec.loader, "get_source", lambda _: None)(package) if spec is not None else None
    if source is None:
        raise ImportError(f"the source of {package} is missing: install the package with its .py files")
    return {
        alias.name: node.module
        for block in ast.parse(source).body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
