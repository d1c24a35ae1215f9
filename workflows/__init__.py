"""Deterministic code: one task per file."""
