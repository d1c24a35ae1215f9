"""Agents of other frameworks. Only `make test-agents` installs these."""

from __future__ import annotations

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("pydantic_ai") and find_spec("agents") else ["test_*.py"]
