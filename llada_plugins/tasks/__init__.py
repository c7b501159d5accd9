"""Tasks with exact rules, which need neither data files nor a network.

What the tasks on local files share is here as well.
"""
