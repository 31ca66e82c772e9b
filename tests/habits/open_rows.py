"""Rows that are not true yet, and why: each gives another number than its peer without a word."""
from __future__ import annotations

OPEN: dict[str, str] = {}
