"""edgevit cluster: the devices of a plan and their coordinator, launched and stopped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from edgevit.cli.app import AsJson, app
from edgevit.cli.cluster_options import PlanFolder
from edgevit.cli.device_options import quiet_grpc
from edgevit.cli.server_options import Insecure, Metrics, TlsCert, TlsClientCa, TlsKey

if TYPE_CHECKING:
    from partition.cluster.coordinator import CoordinatorOptions
    from partition.cluster.launch import DeviceLaunch, Launched, Told
    from partition.cluster.stop import DeviceStop, Stopped

ORDER = ["launch", "status", "predict", "bench", "stop"]


class InOrder(TyperGroup):
    """Its help has the verbs in the order of their use; each registers itself from its own file."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Their names."""
        return sorted(super().list_commands(ctx), key=ORDER.index)


cluster_app = typer.Typer(
    name="cluster",
    cls=InOrder,
    help="Serve a plan: an agent on each device, its sub-models on it, a coordinator over all.",
    no_args_is_help=True,
)
app.add_typer(cluster_app)

HOW = {"local": "a process here", "ssh": "by ssh", "given": "as it was"}


@cluster_app.command("launch")
def launch(
    plan: PlanFolder,
    listen: Annotated[
        str,
        typer.Option("--listen", metavar="ADDR", help="Of the coordinator: HOST:PORT; 0: any."),
    ] = "127.0.0.1:8000",
    worker_timeout: Annotated[
        float,
        typer.Option("--worker-timeout", min=0.001, help="Seconds until a sub-model is left out."),
    ] = 5.0,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tls_client_ca: TlsClientCa = None,
    token_file: Annotated[
        Path | None, typer.Option("--token-file", help="Ask callers for the token in it.")
    ] = None,
    insecure: Insecure = False,
    metrics: Metrics = None,
    as_json: AsJson = False,
) -> None:
    """Start or mend what PLAN/cluster.yaml says; what runs already stays as it is."""
    quiet_grpc()
    from edgevit.cli.output import print_json
    from partition.cluster.coordinator import CoordinatorOptions
    from partition.cluster.launch import launch as run

    options = CoordinatorOptions(
        listen=listen, worker_timeout_s=worker_timeout, tls_cert=tls_cert, tls_key=tls_key,
        tls_client_ca=tls_client_ca, token_file=token_file, insecure=insecure, metrics=metrics,
    )  # fmt: skip
    with _kept(plan), drawn() as told:
        launched = run(plan, options, told)
    if as_json:
        print_json(_launch_json(plan, launched, _next(plan, launched, options)))
    else:
        _show_launch(launched, _next(plan, launched, options))
    if launched.problems:
        raise typer.Exit(1)


@cluster_app.command("stop")
def stop(plan: PlanFolder, as_json: AsJson = False) -> None:
    """End what `edgevit cluster launch` started, and nothing else."""
    quiet_grpc()
    from edgevit.cli.output import print_json
    from partition.cluster.stop import stop as run

    with drawn() as told:
        stopped = run(plan, told)
    if as_json:
        print_json(_stop_json(plan, stopped))
    else:
        _show_stop(plan, stopped)
    if stopped.problems:
        raise typer.Exit(1)


@contextmanager
def drawn() -> Iterator[Told]:
    """A listener for what is done on each device: a line for each on stderr while it lasts, silent
    where nobody watches."""
    from edgevit.cli.output import plain, stderr

    console = stderr()
    if not console.is_terminal:
        yield lambda name, text: None
        return
    from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

    from partition.cluster.launch import FINISHED

    tasks: dict[str, TaskID] = {}
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as lines:

        def draw(name: str, text: str) -> None:
            if name not in tasks:
                tasks[name] = lines.add_task(name, total=1.0)
            done = 1.0 if text in FINISHED else 0.0  # which ends the clock of its line
            lines.update(tasks[name], description=plain(f"{name}: {text}"), completed=done)

        yield draw


@contextmanager
def _kept(plan: Path) -> Iterator[None]:
    """Whatever cuts a launch off, a line says what became of what it had started."""
    from edgevit.cli.output import stderr
    from partition.cluster.state import state_file

    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        if state_file(plan).exists():
            stderr().print(
                f"What was started runs: the same command goes on from there, `edgevit cluster "
                f"stop {plan}` ends it.",
                markup=False, soft_wrap=True,
            )  # fmt: skip
        raise


def _next(plan: Path, launched: Launched, options: CoordinatorOptions) -> list[str]:
    """What comes next. Its token is known to who asks here, its authority is not."""
    verb = ["status", str(plan)] if launched.problems else ["predict", str(plan), "PHOTO"]
    words = ["--tls-ca", "CA"] if options.tls_cert else []
    words += ["--tls-cert", "CERT", "--tls-key", "KEY"] if options.tls_client_ca else []
    return ["edgevit", "cluster", *verb, *words]


def _launch_json(plan: Path, launched: Launched, command: list[str]) -> dict[str, Any]:
    from dataclasses import asdict

    coordinator = asdict(launched.coordinator) if launched.coordinator else None
    return {
        "plan": str(plan),
        "digest": launched.plan.digest,
        "changed": launched.changed,
        "coordinator": coordinator,
        "devices": [asdict(device) for device in launched.devices],
        "problems": launched.problems,
        "notes": launched.notes,
        "next": command,
    }


def _show_launch(launched: Launched, command: list[str]) -> None:
    from edgevit.cli.output import plain, print_next, stdout

    console = stdout()
    table = _table("device", "agent", "address", "sub-models", "what was done")
    for device in launched.devices:
        cells = (device.name, HOW[device.kind], device.address or "–", ", ".join(device.submodels))
        table.add_row(*map(plain, cells), _done(device))
    console.print(table)
    for problem in launched.problems:
        console.print(f"✗ {problem}", style="red", markup=False, soft_wrap=True)
    for note in launched.notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)
    coordinator = launched.coordinator
    if coordinator is not None:
        how = "started" if coordinator.started else "as it was"
        metrics = f", metrics at {coordinator.metrics}" if coordinator.metrics else ""
        console.print(
            f"\nCoordinator at {coordinator.address}{metrics} ({how}), plan "
            f"{launched.plan.digest[:12]}",
            markup=False, soft_wrap=True,
        )  # fmt: skip
    if not launched.changed and not launched.problems:
        console.print("Nothing to do: all of it was there.")
    print_next(console, *command)


def _done(device: DeviceLaunch) -> str:
    """One cell of markup."""
    if device.problem:
        return "[red]failed[/]"
    said = ["agent started"] if device.started else []
    for what, names in (("uploaded", device.pushed), ("loaded", device.loaded)):
        if names:
            said.append(f"{len(names)} {what}")
    return ", ".join(said) or "nothing to do"


def _stop_json(plan: Path, stopped: Stopped) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "plan": str(plan),
        "coordinator": stopped.coordinator,
        "devices": [asdict(device) for device in stopped.devices],
        "problems": stopped.problems,
        "next": _next_of_stop(plan, stopped),
    }


def _next_of_stop(plan: Path, stopped: Stopped) -> list[str]:
    return ["edgevit", "cluster", "stop" if stopped.problems else "launch", str(plan)]


def _show_stop(plan: Path, stopped: Stopped) -> None:
    from edgevit.cli.output import plain, print_next, stdout

    console = stdout()
    if not stopped.devices and not stopped.coordinator:
        console.print(f"Nothing of {plan} runs.", markup=False, soft_wrap=True)
    else:
        table = _table("what", "agent", "what was done")
        table.add_row("coordinator", "–", "ended" if stopped.coordinator else "had gone")
        for device in stopped.devices:
            table.add_row(plain(device.name), HOW[device.kind], _undone(device))
        console.print(table)
    for problem in stopped.problems:
        console.print(f"✗ {problem}", style="red", markup=False, soft_wrap=True)
    print_next(console, *_next_of_stop(plan, stopped))


def _undone(device: DeviceStop) -> str:
    """One cell of markup."""
    if device.problem:
        return "[red]failed[/]"
    if device.left.ended:
        return "ended"
    if device.left.unloaded:
        return f"{len(device.left.unloaded)} unloaded"
    return "had gone" if device.kind == "local" else "nothing to do"


def _table(*titles: str) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for title in titles:
        table.add_column(title, overflow="fold")
    return table
