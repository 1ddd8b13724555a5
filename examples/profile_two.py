"""Profile two artefacts against each other, interleaved, and write the page.

python examples/profile_two.py A.onnx B.onnx [report.html]
"""

import sys
from pathlib import Path

from edgevit.reports import findings, write_html
from runtime.profile_items import items_from
from runtime.profiler import profile
from runtime.stats import ratio


def main(one: str, other: str, page: str = "report.html") -> None:
    record = profile(items_from([Path(one), Path(other)]), threads=1, runs=50)
    for missing in record.not_measured:
        raise SystemExit(f"{missing.label}: {missing.reason}")
    first, second = record.measurements
    found = ratio(first, second)
    print(f"{first.label}: p50 {first.latency.p50:.3f} ms, p95 {first.latency.p95:.3f} ms")
    print(f"{second.label}: p50 {second.latency.p50:.3f} ms, p95 {second.latency.p95:.3f} ms")
    print(f"ratio {found.ratio:.3f}, blocks {found.low:.2f} to {found.high:.2f}")
    for finding in findings([record]):
        print(f"[{finding.level}] {finding.text}")
    write_html([record], Path(page))
    print(f"page: {page}")


if __name__ == "__main__":
    main(*sys.argv[1:])
