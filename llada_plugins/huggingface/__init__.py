"""The networks as classes of transformers: configs, models, loading, saving, generate."""
