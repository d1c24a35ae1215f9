"""How payloads are written: plain JSON through Pydantic, readable by clients in any language."""

from __future__ import annotations

from temporalio.contrib.pydantic import pydantic_data_converter

__all__ = ["data_converter"]

data_converter = pydantic_data_converter
"""Give this to a client that starts tasks from Python without `TasquencerPlugin`."""
