"""What python -m llada_plugins.app does: load the model, and serve the page on this machine."""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from llada_plugins.engine.record_options import SUFFIX
from llada_plugins.methods.table import METHODS
from llada_plugins.options.fields import arg
from llada_plugins.sampling.config import SamplerConfig

from .asking import Models
from .drawing import STYLE

if TYPE_CHECKING:
    import gradio
    from fastapi import FastAPI

HOST = "127.0.0.1"  # this machine alone
FONTS = ("system-ui", "sans-serif")  # of the reader's system: Gradio's own are fetched
MONOSPACE = ("ui-monospace", "monospace")
# whatever Gradio's page names, the browser asks nobody else
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'"
# where Gradio's own have too little contrast (WCAG 2.1, 1.4.3)
COLOURS = {
    "block_info_text_color": "*neutral_600",
    "block_info_text_color_dark": "*neutral_300",
    "block_label_text_color": "*neutral_700",
    "block_label_text_color_dark": "*neutral_200",
    "block_title_text_color": "*neutral_700",
    "block_title_text_color_dark": "*neutral_200",
    "button_primary_background_fill": "*primary_700",
    "button_primary_background_fill_dark": "*primary_700",
    "button_primary_background_fill_hover": "*primary_800",
    "button_primary_background_fill_hover_dark": "*primary_800",
    "body_text_color_subdued": "*neutral_600",
    "body_text_color_subdued_dark": "*neutral_300",
}
# what of Gradio's is not there
PLAIN: dict[str, Any] = {
    "footer_links": [],
    "enable_monitoring": False,
    "ssr_mode": False,
    "pwa": False,
    "mcp_server": False,
}
OWN = ("record", "record_file")  # options that the playground sets itself


@dataclass(frozen=True, kw_only=True)
class AppConfig:
    """Which model, and where the page is."""

    model: Literal[tuple(METHODS)] = arg(  # type: ignore[valid-type]  # names of a table
        "llada", f"one of {', '.join(METHODS)}; the page can change it"
    )
    port: int = arg(7860, f"of {HOST}, where the page is served; 0: any free one")
    share: bool = arg(
        False,
        "also a public link: whoever has it uses this machine's model, and all that is asked and "
        "answered goes through Gradio's servers",
    )

    def __post_init__(self) -> None:
        if not 0 <= self.port < 2**16:
            raise ValueError(f"port must be from 0 to {2**16 - 1}, got {self.port}")


def run(config: AppConfig, options: Mapping[str, Any]) -> None:
    """Serve the page until Ctrl-C, or until the process is asked to end (SIGTERM)."""
    with ended_in_order(), served(config, options) as url:
        try:
            print(f"{url}  (Ctrl-C ends it)", flush=True)
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            print()


@contextmanager
def ended_in_order() -> Iterator[None]:
    """While this lasts, SIGTERM ends the process as an error does: what was asked is deleted."""
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def served(config: AppConfig, options: Mapping[str, Any]) -> Iterator[str]:
    """The page at its address, while this lasts. ValueError, OSError, ImportError on mistakes."""
    port = free_port(config.port)
    with built(config.model, options, public=config.share) as page, closing(page):
        yield launched(page, port, config.share)


@contextmanager
def built(
    method: str, options: Mapping[str, Any], *, public: bool = False
) -> Iterator[gradio.Blocks]:
    """The page and its model, while this lasts; what it keeps on the disk goes at the end.

    public: may anybody ask?
    """
    told = [name for name in OWN if name in options]
    if told:
        raise ValueError(f"{told[0]} has no effect: the playground records every answer itself")
    check_gradio()
    with tempfile.TemporaryDirectory(prefix="llada-playground-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        defaults = {"gen_length": SamplerConfig.gen_length, "overlong": "error"}
        record = {"record": "trajectory", "record_file": os.path.join(folder, SUFFIX)}
        models = Models(method, {**defaults, **options, **record}, public=public)
        from .page import build

        yield build(models)


def mounted(page: gradio.Blocks, name: str, password: str) -> FastAPI:
    """The page as an application of another server, for those who know name and password."""
    import gradio
    from fastapi import FastAPI

    return gradio.mount_gradio_app(
        FastAPI(**_protected()), page, path="/", auth=(name, password), **_looks(), **PLAIN
    )


def check_gradio() -> None:
    """Raise ImportError with the install line where Gradio is missing."""
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "the playground needs gradio: pip install 'llada-plugins[app]'"
        ) from error


def free_port(port: int) -> int:
    """The port, or any free one for 0; ValueError where another program has it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ValueError(
                f"port {port} of {HOST} cannot be used ({error.strerror}): give --port another, or "
                "0 for any free one"
            ) from error
        return int(probe.getsockname()[1])


def launched(page: gradio.Blocks, port: int, share: bool) -> str:
    """Serve the page; returns its address."""
    for name in ("NO_PROXY", "no_proxy"):  # Gradio asks its own server, with a proxy if one is set
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), HOST]))
    _, local, public = page.launch(
        server_name=HOST,
        server_port=port,
        share=share,
        quiet=True,
        prevent_thread_lock=True,
        # it would give up where the page takes 3 seconds, as on a busy machine, and advise a
        # public link; that the server answers is known by then
        _frontend=False,
        app_kwargs=_protected(),
        **_looks(),
        **PLAIN,
    )
    return public or local


def _looks() -> dict[str, Any]:
    import gradio

    theme = gradio.themes.Default(font=FONTS, font_mono=MONOSPACE).set(**COLOURS)
    return {"theme": theme, "css": STYLE}


def _protected() -> dict[str, Any]:
    """What FastAPI needs to send the policy."""
    from starlette.middleware import Middleware

    return {"middleware": [Middleware(Policy)]}


class Policy:
    """ASGI middleware that forbids the browser every other place, in a header of each answer."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                policy = (b"content-security-policy", POLICY.encode())
                message = {**message, "headers": [*message.get("headers", ()), policy]}
            await send(message)

        await self.app(scope, receive, send_with_policy)
