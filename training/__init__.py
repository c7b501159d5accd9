"""Training of LLaDA models and of the parts that evaluations load: one trainer, objectives as functions, short entry points."""
