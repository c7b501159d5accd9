"""Measurements of speed; run one as `python -m benchmarks.NAME`.

Nothing in llada_plugins or training imports them.
"""
