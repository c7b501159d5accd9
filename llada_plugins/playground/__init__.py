"""The playground: a page in the browser on which a model answers, step by step."""
