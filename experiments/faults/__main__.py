"""Every fault, injected: a table of what was observed, from the tests that inject them.

    python -m experiments.faults            # all: about half an hour on two cores
    python -m experiments.faults --quick    # those of `make test`

A test that injects a fault carries its name, as in @pytest.mark.fault("disk full"), and records
what it observed. This runs them and writes results/table.md and results/log.txt. A fault without a
test, or with one that failed, is written down as such.
"""

import argparse
import collections
import contextlib
import sys
from pathlib import Path

import pytest

from experiments.faults.anchors import ANCHORS

RESULTS = Path(__file__).parent / "results"


class Collector:
    """Gathers outcome and observations of every test that injects a fault."""

    def __init__(self) -> None:
        self.found: dict[str, list] = collections.defaultdict(list)
        self.names: dict[str, list[str]] = {}

    def pytest_collection_modifyitems(self, items: list) -> None:
        """Notes which test injects which faults."""
        for item in items:
            names = [str(mark.args[0]) for mark in item.iter_markers("fault")]
            self.names[item.nodeid] = names

    def pytest_runtest_logreport(self, report: object) -> None:
        """Notes an outcome; a failed or skipped setup is one too."""
        if report.when == "call" or report.outcome != "passed":
            observed = [str(value) for key, value in report.user_properties if key == "observed"]
            for name in self.names.get(report.nodeid, []):
                self.found[name].append((report.nodeid, report.outcome, observed))


def row(number: str, name: str, anchors: str, results: list) -> str:
    """Returns a line of the table."""
    counts = collections.Counter(outcome for _, outcome, _ in results)
    told = list(dict.fromkeys(text for _, _, observed in results for text in observed))
    tests = dict.fromkeys(node.split("::")[1].split("[")[0] for node, _, _ in results)
    shown = "; ".join(told[:3] or list(tests)[:3])
    shown = " ".join(shown.replace("|", "/").split())
    outcome = ", ".join(f"{count} {kind}" for kind, count in counts.items()) or "NO TEST RAN"
    return f"| {number} | {name} | {outcome} | {shown[:400]} | {anchors} |"


def main() -> int:
    """Runs the tests, writes and prints the table; 1 if any fault is not held."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", metavar="TEXT", help="tests so named; other rows stay")
    arguments = parser.parse_args()
    collector = Collector()
    chosen = "fault and not slow" if arguments.quick else "fault"
    with (RESULTS / "log.txt").open("w") as log, contextlib.redirect_stdout(log):
        command = [
            "tests",
            "-m",
            chosen,
            "-v",
            "--no-header",
            "-p",
            "no:cacheprovider",
            "--tb=short",
        ]
        command += ["-k", arguments.only] if arguments.only else []
        pytest.main(command, plugins=[collector])
    table, kept = RESULTS / "table.md", {}
    if arguments.only and table.exists():
        kept = {line.split("|")[2].strip(): line for line in table.read_text().splitlines()[2:]}
    lines = [
        "| # | fault | tests | observed | peers |",
        "|---|---|---|---|---|",
        *(
            row(*entry, collector.found[entry[1]])
            if entry[1] in collector.found or entry[1] not in kept
            else kept[entry[1]]
            for entry in ANCHORS
        ),
    ]
    unknown = set(collector.found) - {name for _, name, _ in ANCHORS}
    lines += [f"| ? | {name} | not in the list | | |" for name in sorted(unknown)]
    text = "\n".join(lines) + "\n"
    table.write_text(text)
    print(text)
    results = [outcome for found in collector.found.values() for _, outcome, _ in found]
    missing = [name for _, name, _ in ANCHORS if not collector.found.get(name) and name not in kept]
    failed = sum(outcome == "failed" for outcome in results)
    print(f"{len(ANCHORS) - len(missing)} of {len(ANCHORS)} faults injected, {failed} failed tests")
    return 1 if failed or (missing and not arguments.quick) else 0


if __name__ == "__main__":
    sys.exit(main())
