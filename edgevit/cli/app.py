"""The typer application that every verb registers itself with."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(
    name="edgevit",
    help="Convert vision transformers to Core ML, TFLite, ExecuTorch and ONNX, prove every "
    "artefact against torch, and profile it.",
    epilog="Every verb takes --json, and --debug for the traceback behind an error.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")
]
Threads = Annotated[int, typer.Option("--threads", min=1, help="CPU threads of the engine.")]


def _show_version(asked: bool) -> None:
    if asked:
        from edgevit import __version__

        typer.echo(f"edgevit {__version__}")
        raise typer.Exit


@app.callback()
def edgevit(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Options that come before the verb; `help` above is what a person reads."""
