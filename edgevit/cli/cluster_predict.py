"""edgevit cluster predict: the top classes of pictures from a running cluster."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgevit.cli.app import AsJson
from edgevit.cli.cluster import cluster_app
from edgevit.cli.cluster_options import (
    Coordinator,
    InputRef,
    PlanFolder,
    TlsCa,
    TlsCert,
    TlsKey,
    TokenFile,
    Where,
    warn,
)
from edgevit.cli.device_options import quiet_grpc

if TYPE_CHECKING:
    from partition.cluster.asking import ClusterAnswer
    from partition.cluster.running import Running
    from runtime.predict import Guess

LOOK_S = 5.0


@dataclass(frozen=True)
class _Found:
    """What was asked, what came, and what it means."""

    subject: str
    answer: ClusterAnswer
    top: list[Guess]


@cluster_app.command("predict")
def predict(
    plan: PlanFolder,
    pictures: Annotated[
        list[Path] | None, typer.Argument(metavar="[PHOTO]...", help="Picture files.")
    ] = None,
    input_ref: InputRef = None,
    top: Annotated[int, typer.Option("--top", min=1, help="Classes to show.")] = 5,
    coordinator: Coordinator = None,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    as_json: AsJson = False,
) -> None:
    """Show the likeliest classes of pictures, who answered, and where the time went."""
    quiet_grpc()
    if bool(pictures) == (input_ref is not None):
        raise typer.BadParameter("expected either picture files or --input-ref NAME")
    from edgevit.cli.output import print_json

    where = Where(coordinator, tls_ca, tls_cert, tls_key, token_file)
    running = where.running(plan)
    found, view = _ask(running, pictures or [], input_ref, top)
    labels = running.plan.record.labels
    for each in found:
        if each.answer.degraded:
            warn(f"{each.subject}: {_degraded(each.answer, labels, with_reasons=True)}")
    if as_json:
        print_json(_as_json(running, view, found))
    else:
        _show(running, found, where.words())


def _ask(
    running: Running, pictures: list[Path], input_ref: str | None, top: int
) -> tuple[list[_Found], str]:
    """The answers and the model's name; every picture is read before the first is sent."""
    from edgevit.cli.predict import prepared
    from partition.cluster.asking import Caller
    from runtime.inputs import to_input
    from runtime.predict import likeliest

    record = running.plan.record
    ready = [(str(p), prepared(p, record.preprocessing)) for p in pictures]
    with Caller(running) as caller:
        view = caller.look(LOOK_S)
        caller.check(view)
        if input_ref is not None:
            asked = [(input_ref, caller.request(view, None, input_ref))]
        else:
            asked = [
                (name, caller.request(view, to_input(x, view.input), None)) for name, x in ready
            ]
        found = []
        for name, request in asked:
            answer = caller.infer(request)
            logits = caller.logits_of(answer, len(record.labels))
            found.append(_Found(name, answer, likeliest(logits, record.labels, top)))
    return found, view.model


def _degraded(answer: ClusterAnswer, labels: list[str], *, with_reasons: bool) -> str:
    told = answer.missing if with_reasons else dict.fromkeys(answer.missing, "")
    who = ", ".join(f"{name} ({why})" if why else name for name, why in told.items())
    blind = ", ".join(labels[index] for index in answer.blind) or "no class"
    return f"degraded, without {who}; blind to {blind}"


def _as_json(running: Running, model: str, found: list[_Found]) -> dict[str, Any]:
    record = running.plan.record
    return {
        "plan": str(running.plan.path),
        "plan_digest": running.plan.digest,
        "coordinator": running.asked().how.address,
        "model": model,
        "probability": "softmax of the logits",
        "predictions": [
            {
                "picture": each.subject,
                "top": [asdict(guess) for guess in each.top],
                "degraded": each.answer.degraded,
                "answered": _answered(running, each.answer),
                "missing": dict(each.answer.missing),
                "blind_classes": [record.labels[index] for index in each.answer.blind],
                "straggler": each.answer.straggler,
                "mode": each.answer.mode,
                "timings_ms": {
                    "total": each.answer.elapsed_ms,
                    **each.answer.all_stages_ms,
                },
                "input_age_ms": each.answer.input_age_ms,
                "input_spread_ms": each.answer.input_spread_ms,
            }
            for each in found
        ],
    }


def _answered(running: Running, answer: ClusterAnswer) -> list[str]:
    """The sub-models that have a part in it."""
    return [s.name for s in running.plan.record.submodels if s.name not in answer.missing]


def _show(running: Running, found: list[_Found], where: list[str]) -> None:
    from edgevit.cli.output import plain, print_next, stdout
    from edgevit.cli.predict import table_of

    console, record = stdout(), running.plan.record
    for each in found:
        answer = each.answer
        console.print(each.subject, markup=False, soft_wrap=True)
        console.print(table_of(each.top))
        who = _answered(running, answer)
        console.print(
            f"{len(who)} of {len(record.submodels)} sub-models answered ({', '.join(who)}), "
            f"{answer.straggler} last",
            markup=False, soft_wrap=True,
        )  # fmt: skip
        if answer.degraded:
            told = plain(_degraded(answer, record.labels, with_reasons=False))
            console.print(f"[bold yellow]{told}[/]", soft_wrap=True)
        console.print(_timings(answer), markup=False, soft_wrap=True)
        if answer.input_age_ms is not None:
            told = f"its oldest input was {answer.input_age_ms:.0f} ms old"
            if answer.input_spread_ms is not None:
                told += f", the newest {answer.input_spread_ms:.0f} ms younger"
            console.print(told)
        console.print()
    console.print("The probability is the softmax of the logits")
    words = ["bench", str(running.plan.path), *where, "-o", "report.html"]
    print_next(console, "edgevit", "cluster", *words)


def _timings(answer: ClusterAnswer) -> str:
    stages = (f"{name.replace('_', ' ')} {ms:.2f}" for name, ms in answer.all_stages_ms.items())
    return f"{answer.elapsed_ms:.2f} ms: {', '.join(stages)}"
