"""edgevit profile --device: the same measurement on several devices, in one report."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgevit.cli.report import ReportFiles
    from edgevit.reports import Absent
    from runtime.client.calls import ProfileOptions
    from runtime.devices.file import AddressOptions
    from runtime.devices.profiling import DeviceRun, Told
    from runtime.run_record import Measurement, NotMeasured, RunRecord


@dataclass(frozen=True)
class Where:
    """The devices as they were named, and how those are reached that no file describes."""

    words: list[str]
    file: Path | None
    options: AddressOptions


@dataclass
class _Found:
    """What came of it, in the order in which the devices were named.

    names are the records' own: the device, and with several bundles the bundle.
    """

    records: list[RunRecord] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    absent: list[Absent] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)
    pushed: list[dict[str, Any]] = field(default_factory=list)


def profile_on_devices(
    paths: list[Path],
    where: Where,
    options: ProfileOptions,
    files: ReportFiles | None,
    as_json: bool,
) -> bool:
    """Measure on each device and show all; whether every device gave numbers.

    This machine (`local`) takes its turn alone. A device that fails stands in the report with its
    reason.
    """
    from edgevit.cli.output import print_next, stdout
    from edgevit.cli.profile import options_as_words
    from edgevit.cli.profile_progress import watching

    with watching() as tell:
        found = _measure(paths, where, options, tell)
    saved = _save(found, files)
    if as_json:
        _print_json(found, files, saved)
    else:
        _show(found, files, saved)
        if files is None and found.records:
            again = [
                *_again(where),
                *options_as_words(options.threads, options.runs, options.per_op),
            ]
            print_next(
                stdout(), "edgevit", "profile", *map(str, paths), *again, "-o", "report.html"
            )
    return not found.absent and all(record.measurements for record in found.records)


def _measure(paths: list[Path], where: Where, options: ProfileOptions, tell: Told) -> _Found:
    from runtime.devices.file import LOCAL, find_devices
    from runtime.devices.profiling import profile_devices, works_from
    from runtime.profile_items import items_from
    from runtime.profiler import profile

    words = list(dict.fromkeys(where.words))
    remote = [word for word in words if word != LOCAL]
    known = find_devices(remote, where.file, where.options) if remote else []
    works = works_from(paths) if known else []
    labels = _labels(paths) if len(works) > 1 else {}
    here = items_from(paths) if LOCAL in words else []
    found = _Found()
    local = None
    if here:
        local = profile(here, **asdict(options), progress=lambda t, done: tell(LOCAL, t, done))
        local.environment.name = LOCAL
    runs = profile_devices(known, works, options, tell) if known else []
    by_word = dict(zip(remote, runs, strict=True))
    for word in words:
        if word in by_word:
            _add(found, by_word[word], labels)
        elif local is not None:
            found.records.append(local)
            found.names.append(LOCAL)
    return found


def _again(where: Where) -> list[str]:
    """The devices and how they are reached, as on the command line."""
    words = [word for each in where.words for word in ("--device", each)]
    words += ["--devices", str(where.file)] if where.file is not None else []
    return [*words, *where.options.words()]


def _labels(paths: list[Path]) -> dict[tuple[Path, str], str]:
    """Bundle and target to the label that tells artefacts of several bundles apart.

    They are those of a profile on this machine; a device is told of one bundle at a time.
    """
    from runtime.bundle import bundle_of
    from runtime.profile_items import items_from

    labels: dict[tuple[Path, str], str] = {}
    for item in items_from(paths):
        if (place := bundle_of(item.path)) is not None:
            labels.setdefault((place[0].path.resolve(), place[1]), item.label)
    return labels


def _add(found: _Found, run: DeviceRun, labels: dict[tuple[Path, str], str]) -> None:
    """Take over what a device gave; labels are those of several bundles, of one there are none."""
    from edgevit.reports import Absent

    name, several = run.known.name, bool(labels)
    for bundle, record in run.runs.items():
        either: list[Measurement | NotMeasured] = [*record.measurements, *record.not_measured]
        for each in either:
            each.label = labels.get((bundle.resolve(), each.target or ""), each.label)
        found.records.append(record)
        found.names.append(f"{name}-{bundle.resolve().name}" if several else name)
    for bundle, reason in run.failures.items():
        found.absent.append(Absent(f"{bundle} on {name}" if several else name, reason))
        found.failed.append({"device": name, "bundle": str(bundle), "reason": reason})
    for pushed in run.pushed:
        found.pushed.append(
            {
                "device": name,
                "bundle": str(pushed.bundle),
                "digest": pushed.digest,
                "size_bytes": pushed.size_bytes,
            }
        )


def _save(found: _Found, files: ReportFiles | None) -> list[ReportFiles]:
    """The page and the numbers beside it; nothing where nothing was measured."""
    from edgevit.cli.report import write_report

    if files is None or not found.records:
        return []
    alone = len(found.records) == 1 and not found.absent
    return write_report(found.records, files, None if alone else found.names, found.absent)


def _print_json(found: _Found, files: ReportFiles | None, saved: list[ReportFiles]) -> None:
    from edgevit.cli.output import print_json

    print_json(
        {
            "report": str(files.html) if files is not None and saved else "",
            "files": [str(each.json) for each in saved],
            "runs": [r.model_dump(mode="json", exclude_none=True) for r in found.records],
            "failed": found.failed,
            "pushed": found.pushed,
        }
    )


def _show(found: _Found, files: ReportFiles | None, saved: list[ReportFiles]) -> None:
    from edgevit.cli.output import megabytes, stderr, stdout
    from edgevit.reports import print_table

    console = stdout()
    if found.records:
        print_table(found.records, console, found.absent)
    else:
        for absent in found.absent:
            line = f"error: {absent.place} was not profiled: {absent.reason}"
            stderr().print(line, markup=False, soft_wrap=True)
    console.print()
    for pushed in found.pushed:
        told = (
            f"{pushed['bundle']} was pushed to {pushed['device']} and stays there: "
            f"{megabytes(pushed['size_bytes'])}, digest {pushed['digest'][:12]}"
        )
        console.print(told, markup=False, soft_wrap=True)
    if files is not None and saved:
        numbers = ", ".join(f"{each.json}, {each.csv}" for each in saved)
        console.print(f"Report: {files.html} (numbers: {numbers})", markup=False, soft_wrap=True)
