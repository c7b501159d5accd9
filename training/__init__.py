"""Training of LLaDA models and of the add-ons that evaluations load.

One trainer, objectives as functions, short entry points.
"""

from llada_plugins.options.startup_messages import silence

silence()  # the commands import transformers' Trainer, and with it whatever it finds installed
