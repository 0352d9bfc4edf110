"""The page itself, by Gradio: controls, and what happens when they change."""

import contextlib
import html
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vitfold.errors import DataError, VitfoldError, missing, one_line
from vitfold.exporting.runtime import installed
from vitfold.serve.explore import markup
from vitfold.serve.explore.cache import Cache
from vitfold.serve.explore.examples import Examples
from vitfold.serve.explore.explorer import BUDGET, LEAST, MOST, OWN, Explorer, Photograph
from vitfold.serve.explore.lines import Origin
from vitfold.serve.explore.speeds import LARGEST_BATCH, rounds
from vitfold.serve.explore.views import NOTHING, Asked, Views

HOST, PORT = "127.0.0.1", 7860

FIRST = "ward"
"""The method that the page begins with."""

SESSIONS, IDLE = 256, 3600
"""How many visitors' photographs are kept at a time, and for how many seconds."""

SWEEP = (60, 300)
"""What was uploaded and is left over goes: looked for so often, when so old, in seconds. A file is
deleted as soon as it is read."""

HINT = (
    "Drop a photograph or take an example, drag the budget, and see which tokens become one, what "
    "that loses, and what it costs."
)

COPY = """(text) => {
  const said = (words) => { document.querySelector('#vf-copied').textContent = words; };
  const old = () => {
    const area = document.createElement('textarea');
    area.value = text; document.body.append(area); area.select();
    const done = document.execCommand('copy'); area.remove();
    said(done ? 'Copied.' : 'This browser does not let pages copy: mark the text and copy it.');
  };
  if (!navigator.clipboard) { old(); return; }
  navigator.clipboard.writeText(text).then(() => said('Copied.'), old);
}"""
"""Copies a text, and says so."""


def library() -> Any:
    """Gradio, which the extra `explore` brings."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ImportError:
        raise missing("gradio", "explore") from None
    return gradio


class Page:
    """The handlers of the page, which has one model for all who look at it.

    folder: where uploads lie while the page is open; files elsewhere are neither read nor deleted.
    """

    def __init__(self, explorer: Explorer, origin: Origin, examples: Examples) -> None:
        self.explorer, self.examples = explorer, examples
        self.views = Views(explorer, origin)
        self._prepared: Cache[int, Photograph] = Cache(len(examples))
        self.folder: Path | None = None
        self.title = f"vitfold explore: {origin.name}"

    def example(self, number: int) -> Photograph | None:
        """An example, as the model sees it; the same for all who look at it."""
        if not 0 <= number < len(self.examples):
            return None
        name, picture = self.examples[number]
        return self._prepared.get(number, lambda: self.explorer.photograph(picture, name))

    def receive(self, path: str | None, before: Photograph | None) -> tuple[Any, None, str]:
        """The photograph that was uploaded, or the one before and why it cannot be read. The file
        goes at once."""
        if path is None or not self._is_upload(path):
            return before, None, "" if path is None else markup.alert("this is no upload")
        try:
            return self.explorer.upload(Path(path)), None, ""
        except VitfoldError as error:
            return before, None, markup.alert(str(error))
        except Exception as error:  # whatever a decoder raises: the page goes on
            return before, None, markup.alert(f"this file cannot be read: {one_line(error)}")
        finally:
            with contextlib.suppress(OSError):
                os.unlink(path)

    def _is_upload(self, path: str) -> bool:
        return self.folder is not None and Path(path).resolve().is_relative_to(self.folder)

    def redraw(self, *chosen: Any) -> tuple[str, str, str, str, str, str]:
        """All that depends on the photograph, the methods and the budget."""
        asked = Asked(*chosen)
        views = self.views
        return (
            views.pictures(asked),
            views.answers(asked),
            views.costs(asked),
            views.python(asked),
            views.command(asked),
            views.speeds(asked),
        )

    def scrub(self, *chosen: Any) -> str:
        """The pictures alone, after another block."""
        return self.views.pictures(Asked(*chosen))

    def place(self, *chosen: Any) -> tuple[str, str]:
        """What depends on the runtime and the batch."""
        asked = Asked(*chosen)
        return self.views.command(asked), self.views.speeds(asked)

    def build(self) -> Any:
        """The page."""
        gr = library()
        with gr.Blocks(
            title=self.title, analytics_enabled=False, delete_cache=SWEEP, fill_width=True
        ) as page:
            gr.Markdown(f"# {html.escape(self.title)}\n\n{HINT}")
            with gr.Row():
                with gr.Column(scale=1, min_width=280):
                    controls = self._controls(gr)
                with gr.Column(scale=2, min_width=320):
                    shown = self._shown(gr)
            with gr.Row():
                with gr.Column(min_width=280):
                    shown |= self._measuring(gr)
                with gr.Column(min_width=280):
                    shown |= self._copying(gr)
            self._wire(gr, page, controls | shown)
        return page

    def _controls(self, gr: Any) -> dict[str, Any]:
        methods = self.explorer.methods
        first = OWN if OWN in methods else FIRST
        parts = {"photograph": gr.State(None, time_to_live=IDLE)}
        parts["file"] = gr.File(
            label="Photograph",
            file_types=["image"],
            type="filepath",
            height=150,
            elem_id="vf-file",
        )
        parts["said"] = gr.HTML(elem_id="vf-said")
        parts["gallery"] = gr.Gallery(
            [(picture, name) for name, picture in self.examples],
            label="Examples",
            columns=4,
            height="auto",
            allow_preview=False,
            object_fit="cover",
            buttons=[],
            interactive=False,
            elem_id="vf-examples",
        )
        parts["share"] = gr.Slider(
            LEAST,
            MOST,
            BUDGET,
            step=0.02,
            label="Budget",
            info="share of the dense FLOPs",
            buttons=[],
            elem_id="vf-budget",
        )
        parts["method"] = gr.Dropdown(methods, value=first, label="Method", elem_id="vf-method")
        parts["other"] = gr.Dropdown(
            [NOTHING, *methods], value=NOTHING, label="Compared with", elem_id="vf-other"
        )
        return parts

    def _shown(self, gr: Any) -> dict[str, Any]:
        last = self.explorer.depth - 1
        return {
            "block": gr.Slider(
                0, last, last, step=1, label="After block", buttons=[], elem_id="vf-block"
            ),
            "pictures": gr.HTML(markup.note("Looking ..."), elem_id="vf-pictures"),
            "answers": gr.HTML(elem_id="vf-answers"),
            "costs": gr.HTML(elem_id="vf-costs"),
        }

    def _measuring(self, gr: Any) -> dict[str, Any]:
        gr.Markdown("## Time on this machine")
        names = installed(self.explorer.device)
        with gr.Row():
            runtime = gr.Dropdown(
                names, value=names[0], label="Runtime", min_width=120, elem_id="vf-runtime"
            )
            batch = gr.Slider(
                1, LARGEST_BATCH, 1, step=1, label="Batch", buttons=[], elem_id="vf-batch"
            )
        return {
            "runtime": runtime,
            "batch": batch,
            "measure": gr.Button("Measure", variant="primary", elem_id="vf-measure"),
            "speeds": gr.HTML(elem_id="vf-speeds"),
        }

    def _copying(self, gr: Any) -> dict[str, Any]:
        gr.Markdown("## This fold elsewhere")
        parts = {}
        for name, label in ("python", "Python"), ("command", "Command"):
            parts[name] = gr.Textbox(
                label=label, lines=2, max_lines=8, interactive=False, elem_id=f"vf-{name}"
            )
            parts[f"copy {name}"] = gr.Button(
                f"Copy the {label if name == 'python' else name}", size="sm",
                elem_id=f"vf-copy-{name}",
            )  # fmt: skip
        gr.HTML('<p id="vf-copied" class="vf-note" role="status"></p>')
        return parts

    def _wire(self, gr: Any, page: Any, parts: dict[str, Any]) -> None:
        chosen = [
            parts[name]
            for name in ("photograph", "method", "share", "other", "block", "runtime", "batch")
        ]
        everything = [
            parts[name] for name in ("pictures", "answers", "costs", "python", "command", "speeds")
        ]
        model = {
            "inputs": chosen,
            "trigger_mode": "always_last",
            "concurrency_id": "model",
            "concurrency_limit": 1,
            "api_visibility": "private",
        }
        drawing = {"fn": self.redraw, "outputs": everything, "show_progress": "minimal"} | model
        drawing["show_progress_on"] = parts["pictures"]
        received: dict[str, Any] = {"outputs": [parts["photograph"], parts["file"], parts["said"]]}
        received |= {"api_visibility": "private", "show_progress": "minimal"}
        page.load(
            lambda: self.example(0), None, parts["photograph"], api_visibility="private"
        ).then(**drawing)
        parts["file"].upload(self.receive, [parts["file"], parts["photograph"]], **received).then(
            **drawing
        )
        parts["gallery"].select(_numbered(gr, self.example), None, parts["photograph"],
                                api_visibility="private").then(**drawing)  # fmt: skip
        parts["share"].input(**drawing)
        for name in "method", "other":
            parts[name].change(**drawing)
        parts["block"].input(
            **model | {"fn": self.scrub, "outputs": parts["pictures"], "show_progress": "hidden"}
        )
        for name in "runtime", "batch":
            parts[name].change(
                **model
                | {"fn": self.place, "outputs": [parts["command"], parts["speeds"]]}
                | {"show_progress": "hidden"}
            )
        parts["measure"].click(
            **model | {"fn": _measuring(gr, self.views), "outputs": parts["speeds"]}
        )
        for name in "python", "command":
            parts[f"copy {name}"].click(None, parts[name], None, js=COPY)


def _numbered(gr: Any, example: Callable[[int], Any]) -> Callable[..., Any]:
    """The example that was chosen in the gallery."""

    def select(event: Any) -> Any:
        return example(event.index)

    select.__annotations__["event"] = gr.SelectData
    return select


def _measuring(gr: Any, views: Views) -> Callable[..., str]:
    """Measures with a bar."""

    def measure(*chosen: Any, progress: Any = gr.Progress()) -> str:  # noqa: B008
        asked, done = Asked(*chosen), iter(range(1, 10**6))
        total = rounds(asked.picks)
        progress(0, desc="preparing")
        return views.measured(
            asked, lambda: progress((next(done), total), desc="measuring", unit="batches")
        )

    return measure


@contextlib.contextmanager
def opened(
    page: Page, host: str = HOST, port: int | None = None, browser: bool = False
) -> Iterator[str]:
    """The page served, at an address; afterwards it is closed, and nothing of it is left.

    host: this machine alone, unless another is given.
    port: 0: any that is free; None: 7860, or the next that is free.
    """
    gr = library()
    with tempfile.TemporaryDirectory(prefix="vitfold-explore-") as folder, _files_in(folder):
        page.folder = Path(folder).resolve()
        blocks = page.build()
        blocks.queue(api_open=False, max_size=64)
        try:
            _, address, _ = blocks.launch(
                server_name=host,
                server_port=free_port(host) if port == 0 else port,
                inbrowser=browser,
                max_file_size=page.explorer.limits.bytes,
                state_session_capacity=SESSIONS,
                theme=gr.themes.Default(
                    font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
                ),
                css_paths=Path(__file__).with_name("page.css"),
                prevent_thread_lock=True,
                **QUIET,
            )
        except OSError as error:
            raise DataError(f"--host {host} --port {port}: {one_line(error)}") from None
        try:
            yield address
        finally:
            blocks.close(verbose=False)


QUIET: dict[str, Any] = {
    "share": False,
    "quiet": True,
    "show_error": True,
    "footer_links": [],
    "run_history": False,
    "enable_monitoring": False,
    "ssr_mode": False,
    "pwa": False,
    "mcp_server": False,
}
"""Nothing of the page goes elsewhere, or is kept."""


@contextlib.contextmanager
def _files_in(folder: str) -> Iterator[None]:
    """Within it, what is uploaded lies in this folder."""
    before = os.environ.get("GRADIO_TEMP_DIR")
    os.environ["GRADIO_TEMP_DIR"] = folder
    try:
        yield
    finally:
        if before is None:
            del os.environ["GRADIO_TEMP_DIR"]
        else:
            os.environ["GRADIO_TEMP_DIR"] = before


def wait() -> None:
    """Until Ctrl-C, or until the process is asked to end: what is open is closed behind it."""
    ended = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: ended.set())
    try:
        with contextlib.suppress(KeyboardInterrupt):
            ended.wait()
    finally:
        signal.signal(signal.SIGTERM, before)


def free_port(host: str) -> int:
    """A port that nobody listens on."""
    try:
        with socket.create_server((host, 0)) as server:
            return int(server.getsockname()[1])
    except OSError as error:
        raise DataError(f"--host {host}: {one_line(error)}") from None
