"""Reach: how far along its direction an item can be steered and be right."""

from __future__ import annotations
