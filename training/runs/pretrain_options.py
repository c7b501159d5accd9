"""Options of pre-training."""

from __future__ import annotations

from dataclasses import dataclass

from llada_plugins.models.families import dense_families
from llada_plugins.models.llada_config import Attention
from llada_plugins.options.fields import arg
from llada_plugins.sampling.config import SamplerConfig
from training.data import corpus

from .options import check_blocks
from .presets import PRETRAIN_PRESETS

# of a model from scratch where no flag says otherwise
SHAPE = {"d_model": 128, "n_layers": 4, "n_heads": 4}
SEQ_LEN = 256


@dataclass(frozen=True, kw_only=True)
class PretrainOptions:
    """What is trained on what."""

    preset: str | None = arg(
        None,
        f"a model from scratch: {', '.join(PRETRAIN_PRESETS)}; it sets the other flags' defaults, "
        "--dataset too",
    )
    model: str | None = arg(
        None, "checkpoint folder or hub id to go on from (default: a model from scratch)"
    )
    attention: Attention | None = arg(
        None,
        "full or block_causal, of a --model or --family that may have either, as A2D's do (mdlm, "
        "bd3lm); what is saved says it (default: the checkpoint's, or the family's)",
    )
    block_length: int | None = arg(
        None,
        "tokens of a block of block-causal attention; what is saved says it (default: the "
        "checkpoint's, or the family's)",
    )
    dataset: str | None = arg(
        None,
        'text file, JSONL file of rows {"text": text} or {"input_ids": [ids]}, folder with a file '
        "for each "
        f"split, hub name, or one of {', '.join(corpus.NAMES)}",
    )
    dataset_config: str | None = arg(None, "configuration of a hub data set")
    train_split: str = arg("train", "split to train on; a file has none")
    eval_split: str | None = arg(
        None,
        "split for the validation bound (default: validation, else test); a file has none: see "
        "--eval_data",
    )
    eval_data: str | None = arg(
        None, "file for the validation bound, in place of a split of --dataset"
    )
    eval_rows: int = arg(
        512, "rows of the validation bound at most, spread evenly over the data; 0 = all"
    )
    seq_len: int | None = arg(
        None,
        "tokens of a row (default: the model's context); from scratch also the context (default: "
        f"{SEQ_LEN})",
    )
    pack_boundaries: bool = arg(
        False, "tokens attend to their own document only, not to others packed into the same row"
    )
    random_lengths: float = arg(
        0.01, "share of batches cut to a length drawn from 1 to theirs; 0-1"
    )
    token_cache: str | None = arg(
        None, "folder for tokenised data, which any run may share (default: tokens in output_dir)"
    )
    tokenizer: str | None = arg(
        None,
        "of a model from scratch: folder or hub id of one with an EOS and a mask token (default: "
        "bytes)",
    )
    family: str | None = arg(
        None,
        "of a model from scratch: whose layers, attention and names of tensors it has, one of "
        f"{', '.join(dense_families())} (default: llada)",
    )
    d_model: int | None = arg(None, f"of a model from scratch: width (default: {SHAPE['d_model']})")
    n_layers: int | None = arg(
        None, f"of a model from scratch: layers (default: {SHAPE['n_layers']})"
    )
    n_heads: int | None = arg(
        None, f"of a model from scratch: attention heads (default: {SHAPE['n_heads']})"
    )
    mlp_hidden_size: int | None = arg(
        None,
        "of a model from scratch: hidden units of an MLP (default: 8/3 of the width, to the next "
        "16)",
    )
    prompt: str = arg(
        "",
        "text before the sample that every evaluation prints; empty: the beginning of a document",
    )
    gen_length: int = arg(
        64, "tokens of the sample; 0 = no sample (nor is there one under FSDP or DeepSpeed)"
    )
    steps: int | None = arg(None, "denoising steps of the sample (default: gen_length)")
    remask_ratio: float = arg(
        0.0, "share of the sample masked again after every step but the last (0-1); 0 = tokens stay"
    )
    temperature: float = arg(0.8, "of the sample; 0 = greedy")
    top_k: int = arg(
        0, "sample among the k most probable tokens only, at a temperature above 0; 0 = all"
    )
    top_p: float = arg(
        0.0,
        "sample among the most probable tokens of this total probability (0-1), at a temperature "
        "above 0; 0 = all",
    )

    def __post_init__(self) -> None:
        if self.preset is not None and self.preset not in PRETRAIN_PRESETS:
            raise ValueError(
                f"--preset must be one of {', '.join(PRETRAIN_PRESETS)}, got {self.preset!r}"
            )
        if self.dataset is None:
            raise ValueError("give --dataset FILE, FOLDER or NAME, or --preset NAME, which has one")
        check_blocks(
            self.attention,
            self.block_length,
            self.model or self.family,
            "leave it out, or give the --family of one that has others",
        )
        self._check_shape()
        if self.eval_data is not None and self.eval_split is not None:
            raise ValueError("--eval_data and --eval_split are alternatives: give one")
        if self.eval_rows < 0:
            raise ValueError(f"--eval_rows must be 0 or more, got {self.eval_rows}")
        if not 0 <= self.random_lengths <= 1:
            raise ValueError(f"--random_lengths must be between 0 and 1, got {self.random_lengths}")
        if self.gen_length:
            self.sampler()

    def _check_shape(self) -> None:
        of_scratch = ("preset", "tokenizer", "family", *SHAPE, "mlp_hidden_size")
        given = [name for name in of_scratch if getattr(self, name) is not None]
        if self.model is not None and given:
            raise ValueError(f"--model brings its shape and tokenizer: leave --{given[0]} out")
        if self.family is not None and self.family not in dense_families():
            raise ValueError(
                f"--family must be one of {', '.join(dense_families())}, got {self.family!r}"
            )
        for name in ("seq_len", *SHAPE, "mlp_hidden_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} must be at least 1, got {value}")

    def sampler(self) -> SamplerConfig:
        """How the sample is decoded."""
        return SamplerConfig(
            gen_length=self.gen_length,
            steps=self.steps,
            remask_ratio=self.remask_ratio or None,
            temperature=self.temperature,
            top_k=self.top_k or None,
            top_p=self.top_p or None,
        )
