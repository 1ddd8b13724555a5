"""edgevit verify: run every artefact of a bundle against its reference."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgevit.cli.app import AsJson, Threads, app


@app.command("verify")
def verify(
    bundle: Annotated[Path, typer.Argument(help="A bundle folder.")],
    threads: Threads = 1,
    as_json: AsJson = False,
) -> None:
    """Check a bundle's bytes and run its artefacts against reference.npz; needs no torch."""
    from edgevit.cli.output import plain, print_json, print_next, stdout, verdict
    from runtime.check import verify_bundle

    checks = verify_bundle(bundle, threads=threads)
    failed = [target for target, check in checks if check.status == "failed"]
    passed = [target for target, check in checks if check.status == "passed"]
    if as_json:
        print_json(
            {
                "bundle": str(bundle),
                "failed": failed,
                "targets": {t: c.model_dump(exclude_none=True) for t, c in checks},
            }
        )
    else:
        console = stdout()
        for target, check in checks:
            console.print(f"{target:<11}{verdict(check)} [dim]({plain(check.prover)})[/]")
        console.print()
        if not failed and passed:
            print_next(console, "edgevit", "profile", str(bundle), "-o", "report.html")
        elif not passed:
            console.print("Nothing was verified: no artefact ran here and passed")
    if failed or not passed:
        raise typer.Exit(1)
