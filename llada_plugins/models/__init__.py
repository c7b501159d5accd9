"""Networks, families of checkpoints, loading, quantisation, LoRA, tokenizers."""
