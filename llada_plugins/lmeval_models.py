"""lm-eval's view of the Engine: `lm_eval --model llada --model_args pretrained=…,steps=…`.

Thin by intention: names, argument forms and bookkeeping that lm-eval expects, most of it
in harness/lmeval_*.py; answers and likelihoods are the Engine's. The classes are found
through the `lm_eval.models` entry points of setup.cfg, so nothing here registers by
decorator.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any

import lm_eval.models  # noqa: F401  (importing it first keeps lm-eval's own models registered)
import torch
from lm_eval.api.instance import Instance
from lm_eval.utils import simple_parse_args_string

from llada_plugins.engine.batches import AUTO
from llada_plugins.engine.engine import Engine, Request
from llada_plugins.engine.notices import WarnOnce
from llada_plugins.engine.record_options import SUFFIX
from llada_plugins.harness import lmeval_cached_requests, lmeval_tokens
from llada_plugins.harness.lmeval_answers import answer, totals_of
from llada_plugins.harness.lmeval_cache import check_cache
from llada_plugins.harness.lmeval_likelihood import LikelihoodLM
from llada_plugins.harness.lmeval_notes import LikelihoodNotes, attach_each
from llada_plugins.harness.lmeval_options import (
    NAMING,
    SeedWarnings,
    check_given_once,
    refuse_chats,
    warn_of_chat,
)
from llada_plugins.harness.lmeval_requests import DEFAULT_MAX_GEN_TOKS, read_request
from llada_plugins.harness.lmeval_saving import check_output, fail_where_unsaved
from llada_plugins.harness.lmeval_tasks import named_template
from llada_plugins.harness.lmeval_tokenizers import lend
from llada_plugins.harness.lmeval_trajectories import question_ids, samples_folder, with_place
from llada_plugins.models.folder import DEFAULT

from ._lm_eval_hook import register

logger = logging.getLogger(__name__)


class LLaDA(LikelihoodLM):
    """The baseline LLaDA under lm-eval.

    Every option of EngineConfig and SamplerConfig is a model_arg of the same name.
    Options of a task's generation_kwargs and of --gen_kwargs go before those of
    model_args; the answer's length is gen_length from either, else the task's
    max_gen_toks.
    """

    method = "llada"

    def __init__(
        self,
        pretrained: str | None = None,
        *,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
        trust_remote_code: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        if trust_remote_code:
            logger.warning("trust_remote_code has no effect: the model is native")
        device = self.place(device)
        if self.rank == 0:
            check_output(samples_folder())
            fail_where_unsaved()
        check_cache(self.rank)
        if str(batch_size).startswith(AUTO):  # also auto:N, lm-eval's wish for N measurements
            batch_size = AUTO
        placed = with_place(options)
        self.engine = Engine(
            self.method, pretrained=pretrained, batch_size=batch_size, device=device, **placed
        )
        self._record_beside_samples = placed is not options
        self.engine.batches.most_rows = max_batch_size
        self.tokenizer = self.engine.tokenizer
        lend(self.engine.config.tokenizer or pretrained, self.tokenizer)
        self._device = self.engine.model.device
        self._warnings = WarnOnce(logger)
        self._seed_warnings = SeedWarnings()
        self._notes = LikelihoodNotes()
        self._take_down()

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> LLaDA:
        """As lm-eval's, but an option that lm-eval passes as well ends with one line."""
        check_given_once(arg_dict, additional_config)
        model = super().create_from_arg_obj(arg_dict, additional_config)
        if not NAMING & arg_dict.keys():  # lm-eval reads them again, for a folder's name
            arg_dict["pretrained"] = model.engine.config.pretrained or DEFAULT
        return model

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: dict[str, Any] | None = None
    ) -> LLaDA:
        """The same for options as one string."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def batch_size(self) -> int | str:
        return self.engine.config.batch_size

    @property
    def batch_sizes(self) -> dict[int, int]:
        """For the results file, as of lm-eval's own models: rows that were chosen here."""
        return dict(enumerate(self.engine.batches.chosen_rows()))

    @property
    def max_length(self) -> int:
        return self.engine.max_length

    @property
    def max_gen_toks(self) -> int:
        return DEFAULT_MAX_GEN_TOKS

    @property
    def eot_token_id(self) -> int | None:
        return self.engine.special.eos

    @property
    def prefix_token_id(self) -> int | None:
        """Stands before a text scored without context: BOS, or EOS where there is no BOS."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        self._choose_template()
        return lmeval_cached_requests.tokenizer_name(self.engine)

    def tok_encode(
        self,
        string: str | Sequence[str],
        add_special_tokens: bool | None = None,
        left_truncate_len: int | None = None,
        **kwargs: Any,
    ) -> list[int] | list[list[int]]:
        """Token ids; of several strings a list of lists. See harness/lmeval_tokens.py."""
        options = add_special_tokens, left_truncate_len
        if isinstance(string, str):
            return lmeval_tokens.encode(self.engine, string, *options)
        return [lmeval_tokens.encode(self.engine, each, *options) for each in string]

    def tok_batch_encode(
        self,
        strings: Sequence[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and attention mask, both (B, L), padded as by lm-eval's own models."""
        return lmeval_tokens.encode_batch(
            self.engine, strings, padding_side, left_truncate_len, truncation
        )

    def tok_decode(self, tokens: int | list[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids."""
        string = self.tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens)
        assert isinstance(string, str)
        return string

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The chat as a prompt.

        add_generation_prompt=False continues the last message (lm-eval's gen_prefix).
        """
        self._enter_run()
        self._choose_template()
        self._chats = True
        return self.engine.render_chat(chat_history, prefill=not add_generation_prompt)

    def _choose_template(self) -> None:
        """Render through the template that the running evaluation names.

        lm-eval names it to a model only where results are written down.
        """
        name = named_template()
        if name is not None:
            self.engine.use_template(name or None)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template's text, for the results file.

        A name given with --apply_chat_template is the one that prompts are rendered by.
        ValueError where the tokenizer has no template of that name: lm-eval's own
        method records it, and renders another.
        """
        self.engine.use_template(chat_template if isinstance(chat_template, str) else None)
        templates = self.tokenizer.chat_template
        return templates.get("default") if isinstance(templates, dict) else templates

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answers in the order of the requests; all are checked before the first is decoded.

        Those that a --use_cache file holds are taken from there. The requests get notes of
        what their answers cost; their sums, of all processes, go into the results.
        """
        self._enter_run()
        warn_of_chat(self.engine.asked.preset, chats=self._chats)
        self._warn_of_processes()
        lmeval_cached_requests.check_cached(requests)
        parsed = [
            self._request(*instance.args)._replace(id=id)
            for instance, id in zip(requests, question_ids(requests))
        ]
        if self._chats:
            refuse_chats(parsed)
        self._record(requests, parsed)
        self._place_recorder()
        with closing(self._progress("generate_until", len(requests), disable_tqdm)) as bar:
            answers = answer(self.engine, requests, parsed, self.cache_hook, bar)
        self._totals.merge(self.gather_object(totals_of(requests, answers)) or [])
        attach_each(requests, [each.note for each in answers])
        return [each.text for each in answers]

    def _request(self, prompt: str, gen_kwargs: Mapping[str, Any]) -> Request:
        return read_request(self.engine, prompt, gen_kwargs)

    def _place_recorder(self) -> None:
        """Trajectories go beside the samples, whose folder is known once the model is loaded."""
        folder = samples_folder() if self._record_beside_samples else None
        if self.engine.recorder and folder:
            self.engine.recorder.path = folder / SUFFIX

    def _record(self, requests: Sequence[Instance], parsed: Sequence[Request]) -> None:
        """Note the samplers for the results file; say so where a --seed has no effect."""
        for instance, request in zip(requests, parsed):
            self._samplers.note(instance.task_name, [request.sampler])
        drawn = any(self.engine.draws(request.sampler) for request in parsed)
        if drawn and "seed" not in self.engine.given:
            self._seed_warnings.warn("answers", "seed")


class LLaDAUPS(LLaDA):
    """Learned remasking (RemeDi): the baseline's options and `ups`, the folder of a policy head."""

    method = "llada_ups"


class LLaDAALA(LLaDA):
    """Routed seeds (ALA): the baseline's options and `router`, the folder of a router.

    Likelihoods are those of the routed denoiser, which is another model of the answer:
    they do not compare decoders of one model.
    """

    method = "llada_ala"


class LLaDAPRM(LLaDA):
    """Process-reward candidates and back-masking: options of ReviewConfig and PRMConfig too.

    LLaDA-R3's; method: vanilla, backmask or window. Likelihoods are the baseline's: a
    process reward model changes decoding only.
    """

    method = "llada_prm"


register()  # so that importing this module by hand makes the names known as well
