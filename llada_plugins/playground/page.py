"""The page itself, of Gradio's components; what they do is in the other files of this room."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from llada_plugins.methods.table import METHODS

from . import drawing
from .asking import NAMES, Models, Question, Setting
from .examples import EXAMPLES, INFILL
from .form import (
    ABSENT,
    MAIN,
    Control,
    Value,
    controls,
    controls_of_methods,
    num_controls,
    paired,
    preset_names,
    shown,
    with_preset,
    with_preset_of,
)
from .showing import MISTAKES, Shown, answered

WAITING = 16  # questions in the queue, at most
# of the prompt, with a mark in the place of what is selected in its box
MARK = """(text) => {
  const box = document.querySelector("#prompt textarea");
  return text.slice(0, box.selectionStart) + "<|infill|>" + text.slice(box.selectionEnd);
}"""
# a button that waits, without asking the server, which may be far
HOLD = "() => ({__type__: 'update', interactive: false})"
MARKS = (
    "a span is marked <|infill:8|> (8 tokens), <|infill|> (gen_length) or <|infill:4,8,16|> (the "
    "best of these lengths)"
)
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}


class Column(NamedTuple):
    """The controls of one setting."""

    method: gr.Dropdown
    preset: gr.Dropdown
    options: list[Any]  # in the order of `paired`

    @property
    def inputs(self) -> list[Any]:
        """What says how an answer is decoded."""
        return [self.method, *self.options]


class Outputs(NamedTuple):
    """What an answer changes on the page."""

    status: Any
    first: Any  # the answers of both settings
    second: Any
    steps: Any
    trajectory: Any  # what can be saved
    page: Any
    conversation: Any
    turns: Any


def build(models: Models) -> gr.Blocks:
    """The page."""
    with gr.Blocks(
        title="llada-plugins playground", analytics_enabled=False, fill_width=True
    ) as page:
        gr.HTML(drawing.title(models.first))
        turns = gr.State([])
        with gr.Row():
            with gr.Column(min_width=300):
                question, forget = _question(models)
                compare = gr.Checkbox(label="compare with a second setting", elem_id="compare")
                pause = gr.Slider(
                    0, 2, 0, label="pause", info="seconds to wait after each step", elem_id="pause"
                )
                with gr.Row():
                    start = gr.Button("Answer", variant="primary", elem_id="answer")
                    stop = gr.Button("Stop", elem_id="stop")
                status = gr.HTML(drawing.status("ready"), elem_id="status")
            outputs, beside = _outputs(status, turns)
        _saved(outputs)
        with gr.Row():
            columns = [_column(models, number, status, start) for number in range(len(NAMES))]
        compare.change(_visible, compare, [columns[1].box, beside], **QUIET)
        settings = [each for column in columns for each in column.controls.inputs]
        job = gr.on(
            [start.click, question[1].submit],
            functools.partial(answer, models),
            [*question, turns, compare, pause, *settings],
            list(outputs),
            concurrency_id="model",
            concurrency_limit=1,
            show_progress="minimal",
            show_progress_on=status,
            api_visibility="private",
        )
        stop.click(lambda: drawing.status("stopped"), None, status, cancels=job, **QUIET)
        forget.click(lambda: ([], ""), None, [turns, outputs.conversation], **QUIET)
    page.queue(max_size=WAITING)
    return page


def _question(models: Models) -> tuple[list[Any], gr.Button]:
    """Whether it is a conversation, the prompt, the system message; what begins anew."""
    mode = gr.Radio(
        ["prompt", INFILL, *["chat"] * models.chats],
        value="prompt",
        label="mode",
        info="prompt: the text as it is; infill: its marked spans are filled in; chat: a turn, in "
        "the tokenizer's chat template",
        elem_id="mode",
    )
    prompt = gr.Textbox(label="prompt", lines=4, max_lines=12, elem_id="prompt")
    mark = gr.Button("Mark the selection as a span", visible=False, elem_id="mark")
    mark.click(None, prompt, prompt, js=MARK, **QUIET)
    if models.first.folder in EXAMPLES:
        name, text = EXAMPLES[models.first.folder]
        gr.Button(name, size="sm", elem_id="example").click(text, mode, prompt, **QUIET)
    system = gr.Textbox(
        label="system", info="message before a conversation", visible=False, elem_id="system"
    )
    forget = gr.Button("New conversation", visible=False, elem_id="forget")
    mode.change(
        lambda chosen: [
            *(gr.update(visible=chosen == each) for each in ("chat", "chat", INFILL)),
            gr.update(info=MARKS if chosen == INFILL else None),
        ],
        mode,
        [system, forget, mark, prompt],
        **QUIET,
    )
    return [mode, prompt, system], forget


def _outputs(status: Any, turns: gr.State) -> tuple[Outputs, Any]:
    """What an answer changes, and the column of the second one.

    What stands below all columns is placed by `_saved`.
    """
    with gr.Column(min_width=300):
        gr.HTML("<h2>Answer</h2>")
        conversation = gr.HTML("", elem_id="conversation")
        first = gr.HTML(drawing.WAITING, elem_id="first")
    with gr.Column(min_width=300, visible=False) as beside:
        gr.HTML("<h2>Answer of the second setting</h2>")
        second = gr.HTML("", elem_id="second")
    steps = gr.HTML("", elem_id="steps", render=False)
    trajectory, page = (
        gr.DownloadButton(f"Save the {name}", visible=False, elem_id=f"save-{name}", render=False)
        for name in ("trajectory", "page")
    )
    found = Outputs(status, first, second, steps, trajectory, page, conversation, turns)
    return found, beside


def _saved(outputs: Outputs) -> None:
    """Place the steps of an answer, and what can be saved of it."""
    outputs.steps.render()
    with gr.Row():
        outputs.trajectory.render()
        outputs.page.render()


class _Placed(NamedTuple):
    """A setting's controls, and the box that they stand in."""

    controls: Column
    box: Any


def _column(models: Models, number: int, status: Any, start: gr.Button) -> _Placed:
    """One setting; choosing a method or a preset fills in what it says.

    start: the button that waits for that.
    """
    with gr.Column(min_width=300, visible=number == 0) as box:
        gr.HTML(f"<h2>{NAMES[number].capitalize()} setting</h2>")
        with gr.Row(elem_classes="options"):
            method = gr.Dropdown(
                list(METHODS),
                value=models.first.method,
                label=_label("method", number),
                info="how masks become an answer; see docs/methods",
                elem_id=f"{NAMES[number]}-method",
            )
            preset = gr.Dropdown(
                [("–", ABSENT), *preset_names(models.first.config.pretrained)],
                value=ABSENT,
                label=_label("preset", number),
                info="a published setting: its options of decoding; the model stays",
                elem_id=f"{NAMES[number]}-preset",
            )
        own, boxes = _of_methods(models, number)
        options = [*_components(controls(), number, shown(models.first.sampler)), *own]
    column = Column(method, preset, options)
    for chosen in (method, preset):
        # what stands in the form is decoded, so nothing is before it is filled in
        chosen.change(None, None, start, js=HOLD, **QUIET)
        chosen.change(_prepared, method, [status, *boxes], **QUIET).then(
            functools.partial(_filled, models, number),
            [method, preset],
            [status, *options],
            **QUIET,
        ).then(lambda: gr.update(interactive=True), None, start, **QUIET)
    return _Placed(column, box)


def _of_methods(models: Models, number: int) -> tuple[list[Any], list[Any]]:
    """The controls of all methods' own options, and a box for each method, one of them shown."""
    components, boxes = [], []
    for name, every in controls_of_methods().items():
        with gr.Column(visible=name == models.first.method) as box:
            gr.HTML(f"<h3>Options of {name}</h3>")
            values = shown(models.begins(name))
            components += _components(every, number, values, of=name)
        boxes.append(box)
    return components, boxes


def _components(
    every: Sequence[Control], number: int, values: Mapping[str, Value], of: str = ""
) -> list[Any]:
    """The components of controls, those that are not in MAIN folded away.

    number: of the setting. of: the method whose options they are.
    """
    main = [each for each in every if each.name in MAIN]
    with gr.Row(elem_classes="options"):
        found = [_component(each, number, values, of) for each in main]
    if others := every[len(main) :]:
        elem_id = "-".join(filter(None, [NAMES[number], of, "others"]))
        title = f"all other options of {of or 'decoding'}"
        with gr.Accordion(title, open=False, elem_id=elem_id), gr.Row(elem_classes="options"):
            found += [_component(each, number, values, of) for each in others]
    return found


def _label(name: str, number: int) -> str:
    return name if number == 0 else f"{name} ({NAMES[number]})"


def _component(control: Control, number: int, values: Mapping[str, Value], of: str) -> Any:
    """Gradio's component for an option."""
    told: dict[str, Any] = {
        "value": values[control.name],
        "label": _label(control.name, number),
        "info": control.help,
        "elem_id": "-".join(filter(None, [NAMES[number], of, control.name])),
    }
    if control.kind == "check":
        return gr.Checkbox(**told)
    if control.kind == "choice":
        return gr.Dropdown([(each or "–", each) for each in control.choices], **told)
    return gr.Textbox(**told)


def _visible(wanted: bool) -> list[Any]:
    return [gr.update(visible=wanted), gr.update(visible=wanted)]


def _prepared(method: str) -> list[Any]:
    """The status and the boxes of all methods, before one is loaded."""
    boxes = [gr.update(visible=name == method) for name in controls_of_methods()]
    return [drawing.status(f"preparing {method}"), *boxes]


def _filled(models: Models, number: int, method: str, preset: str) -> list[Any]:
    """The status, and all controls as this method, or this preset with it, has them.

    number: of the setting.
    """
    try:
        values = with_preset(models.of(method), preset)
    except MISTAKES as error:
        told = drawing.status(f"error: {error}", wrong=True)
        return [told, *[gr.skip()] * num_controls()]
    own = with_preset_of(models.begins(method), preset)
    begins = f"as {preset} was published" if preset else f"the options that {method} begins with"
    of_methods = [
        own[control.name] if name == method else gr.skip()
        for name, every in controls_of_methods().items()
        for control in every
    ]
    filled = [values[control.name] for control in controls()]
    told = drawing.status(f"{NAMES[number]} setting: {begins}")
    return [told, *filled, *of_methods]


def answer(models: Models, *values: Any) -> Iterator[list[Any]]:
    """The outputs while a question is answered.

    values: of the inputs, the method and the controls of each setting at their end.
    """
    mode, prompt, system, turns, compare, pause, *entered = values
    width = 1 + num_controls()
    columns = [entered[:width], entered[width:]][: 1 + bool(compare)]
    try:
        settings = [_setting(*each) for each in columns]
        chat = mode == "chat"
        question = Question(
            prompt=prompt,
            chat=chat,
            infill=mode == INFILL,
            system=system if chat else "",
            earlier=turns,
        )
        with tempfile.TemporaryDirectory(prefix="llada-playground-") as folder:
            for each in answered(models, question, settings, Path(folder), pause or 0.0):
                yield list(_outputs_of(each))
    except MISTAKES as error:
        yield list(_outputs_of(Shown(drawing.status(f"error: {error}", wrong=True))))


def _setting(method: str, *options: Value) -> Setting:
    entered = paired(options)
    return Setting(method, entered.sampler, entered.of_methods.get(method, {}))


def _outputs_of(shown: Shown) -> Outputs:
    first, second = shown.answers
    trajectory = page = gr.update(visible=False)
    if shown.files is not None:
        trajectory, page = (gr.update(value=str(path), visible=True) for path in shown.files)
    conversation, turns = gr.skip(), gr.skip()
    if shown.turns is not None:
        conversation, turns = drawing.conversation(shown.turns), shown.turns
    return Outputs(shown.status, first, second, shown.steps, trajectory, page, conversation, turns)
