"""Tasks with exact rules, which need neither data files nor a network; and what the
tasks on local files share.
"""
