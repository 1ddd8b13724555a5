"""The tables of docs/results/edvit.md, from what benchmarks/edvit_accuracy.py measured."""

from __future__ import annotations

from statistics import mean
from typing import Any

Result = dict[str, Any]


def body_of(results: list[Result]) -> list[str]:
    """Markdown, line by line; a cell is empty where there is nothing to measure."""
    counts = list(dict.fromkeys(r["parts"] for r in results))
    groups = {parts: [r for r in results if r["parts"] == parts] for parts in counts}
    body = [
        "| sub-models | parameters of each | times smaller | times fewer MACs | full | fused | points | by logits "
        '| without "other" |',
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for parts, group in groups.items():
        points = average(group, "fused") - average(group, "full")
        body.append(
            f"| {parts} | {max(r['params'] for r in group):,} of {group[0]['full_params']:,} | "
            f"{min(r['ratio'] for r in group):.1f} | {min(r['mac_ratio'] for r in group):.1f} | "
            f"{shown(group, 'full')} | {shown(group, 'fused')} | {points:+.2f} | {shown(group, 'logits')} | "
            f"{shown(group, 'no_other')} |"
        )
    body += [
        "",
        "Lost sub-models, their blocks filled with zeros: the fusion trained with random block dropout, and "
        "plain fusion.",
        "",
        "| sub-models | all there | plain | one lost | plain | gain | two lost | plain | gain |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for parts, group in groups.items():
        if "one_lost" not in group[0]:
            continue
        cells = [shown(group, "fused"), shown(group, "fused_plain")]
        for name in ("one_lost", "two_lost"):
            cells += [shown(group, name), shown(group, f"{name}_plain"), gain(group, name)]
        body.append(f"| {parts} | " + " | ".join(cells) + " |")
    return body


def average(group: list[Result], name: str) -> float:
    return mean(r[name] for r in group)


def shown(group: list[Result], name: str) -> str:
    """The mean, and each seed's beside it where there are several."""
    if any(name not in r for r in group):
        return "–"
    each = f" ({' '.join(f'{r[name]:.1f}' for r in group)})" if len(group) > 1 else ""
    return f"{average(group, name):.2f}{each}"


def gain(group: list[Result], name: str) -> str:
    if any(name not in r for r in group):
        return "–"
    return f"{average(group, name) - average(group, name + '_plain'):+.2f}"
