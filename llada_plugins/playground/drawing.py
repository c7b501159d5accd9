"""What the page shows, as HTML in which everything that came from elsewhere is escaped."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

from llada_plugins.engine.engine import Engine
from llada_plugins.engine.identity import of_model
from llada_plugins.engine.recording import changed
from llada_plugins.engine.request import Completion
from llada_plugins.engine.visible import BREAK, visible
from llada_plugins.engine.watching import MASK
from llada_plugins.models import text
from llada_plugins.reports.colours import colours
from llada_plugins.sampling.config import SamplerConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Gradio's HTML goes through two template languages: no letter of ours is one of theirs
TEMPLATES = str.maketrans({"$": "&#36;", "{": "&#123;", "}": "&#125;", "`": "&#96;", "@": "&#64;"})

BAD = colours()["bad"]
STYLE = (
    """
.playground { font: 16px/1.6 ui-monospace, monospace; white-space: pre-wrap;
  overflow-wrap: anywhere; margin: 0; min-height: 1.6em; }
.playground :is(.masked, .hint) { color: var(--body-text-color-subdued); }
.playground .new { text-decoration: underline 2px; }
.playground .back { outline: 2px dashed currentColor; }
.playground .role { font-weight: bold; }
.told { min-height: 1.6em; white-space: pre-line; margin: 0; color: var(--body-text-color); }
.told.wrong { font-weight: bold; }
.options .form { display: grid; align-items: start; width: 100%;
  background: var(--block-background-fill);
  grid-template-columns: repeat(auto-fill, minmax(min(16rem, 100%), 1fr)); }
#conversation:not(:has(.role)) { display: none; }
.steps { width: 100%; height: 46rem; border: 1px solid var(--border-color-primary); }
"""
    f".told.wrong {{ color: {BAD.light}; }} .dark .told.wrong {{ color: {BAD.dark}; }}\n"
)


WAITING = (
    '<p class="playground"><span class="hint">The answer comes here step by step: ░ is masked, '
    "what is new is underlined, what was masked again is framed.</span></p>"
)


def title(engine: Engine) -> str:
    """The head of the page: which model answers."""
    model = of_model(engine)
    told = [
        f"model {model['checkpoint']}",
        f"{model['model_num_parameters']:,} parameters",
        f"{model['model_dtype'].removeprefix('torch.')} on {engine.model.device}",
    ]
    return f"<h1>llada-plugins playground</h1><p>{lines(', '.join(told))}</p>"


def harmless(string: str) -> str:
    """Text that neither HTML nor a template of Gradio's takes for anything else."""
    return escape(string).translate(TEMPLATES)


def lines(string: str) -> str:
    """Text with its line breaks; what would act on a reader is written out."""
    return "\n".join(harmless(visible(line)) for line in string.split("\n"))


def status(words: str, wrong: bool = False) -> str:
    """A line that screen readers are told."""
    role = "alert" if wrong else "status"
    return f'<p class="told{" wrong" * wrong}" role="{role}">{lines(words)}</p>'


def in_work(engine: Engine, before: Sequence[int], tokens: Sequence[int]) -> str:
    """An answer in work; what stands since `before`, and what was masked again, is marked."""
    kept = text.before_end(tokens, engine.special.ends)
    earlier = before if len(before) == len(tokens) else tokens
    shown = [
        _token(engine, then, token)
        for then, token in zip(earlier, kept)  # what follows the end is not shown
    ]
    return f'<div class="playground" role="group" aria-label="answer">{"".join(shown)}</div>'


def _token(engine: Engine, before: int, token: int) -> str:
    mask = engine.special.mask
    if token == mask:
        kind = "masked" if before == mask else "masked back"
        return f'<span class="{kind}">{MASK}</span>'
    kind = "stands" if before == token else "new"
    return f'<span class="{kind}">{_piece(engine.tokenizer, token)}</span>'


@functools.lru_cache(maxsize=2**16)  # decoding a token takes longer than all else that is drawn
def _piece(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    return harmless(visible(text.piece(tokenizer, token)).replace(BREAK, f"{BREAK}\n"))


def done(completion: Completion) -> str:
    """A whole answer."""
    return (
        f'<div class="playground" role="group" aria-label="answer">{lines(completion.text)}</div>'
    )


def costs(completion: Completion) -> str:
    """What an answer cost, in words."""
    judged = [f"{completion.num_prm_calls} PRM calls"] if completion.num_prm_calls else []
    told = [
        f"{completion.num_tokens} tokens",
        f"{completion.num_forwards} forwards",
        f"{completion.tokens_per_forward:.2f} tokens a forward",
        *judged,
        f"{completion.seconds:.2f} s",
    ]
    return ", ".join(told)


def decoded_with(engine: Engine, sampler: SamplerConfig) -> str:
    """An engine's method and the options that are not the defaults, its own first."""
    options = {"gen_length": sampler.gen_length, **changed(sampler)}
    told = [*changed(engine.method_options).items(), *options.items()]
    return " ".join([engine.method, *(f"{name}={value}" for name, value in told)])


def conversation(turns: Sequence[Mapping[str, str]]) -> str:
    """The turns of a conversation, from the first."""
    told = [
        f'<p class="playground"><span class="role">{harmless(turn["role"])}</span> '
        f"{lines(turn['content'])}</p>"
        for turn in turns
    ]
    return "".join(told)


def framed(page: str) -> str:
    """A whole page within the page, which can reach nothing around it."""
    return (
        '<iframe class="steps" title="steps of the answer" sandbox="allow-scripts" '
        f'srcdoc="{harmless(page)}"></iframe>'
    )
