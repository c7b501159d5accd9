"""Tasks with exact rules, which need neither data files nor a network."""
