"""Compiled layers: the same numbers as eager ones, few graphs, and never a silent fallback."""
