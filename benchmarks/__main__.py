"""Measure everything, print one table; exit code 1 if a limit is exceeded."""

from __future__ import annotations

import argparse
import gc
import sys
from pathlib import Path

import redis

from benchmarks import check, latency, shutdown, traffic
from benchmarks.report import Row, as_markdown, show
from examples.embedded_valkey import EmbeddedServer


def main() -> int:
    """Run all benchmarks."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=100, help="revocations per pool (default: 100)")
    parser.add_argument("--stops", type=int, default=10, help="workers to stop per pool and kind of body")
    parser.add_argument("--only", metavar="NAME", help="checks, latency, shutdown, commands or connections")
    parser.add_argument("--idle", type=float, default=30.0, help="seconds to watch an idle worker")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the table as Markdown as well")
    options = parser.parse_args()
    rows: list[Row] = []
    try:
        with EmbeddedServer() as server:
            with redis.Redis.from_url(server.url) as client:
                facts = client.info("server")
            _measure(server, options, rows)
            # A result that is collected later unsubscribes, and would look for its server at length.
            gc.collect()
    except KeyboardInterrupt:
        return 130
    name = "valkey" if "valkey_version" in facts else "redis"
    description = f"{name} {facts[f'{name}_version']}"
    show(rows, description)
    if options.write:
        options.write.write_text(as_markdown(rows, description))
    return 0 if all(row.within for row in rows) else 1


def _measure(server: EmbeddedServer, options: argparse.Namespace, rows: list[Row]) -> None:
    for name, measurement in (
        ("checks", check.measure()),
        ("latency", latency.measure(server.url, options.rounds)),
        ("shutdown", shutdown.measure(server.url, options.stops)),
        ("commands", traffic.measure_commands(server, options.idle)),
        ("connections", traffic.measure_connections(server)),
    ):
        if options.only not in (None, name):
            continue
        print(f"measuring {name} ...", file=sys.stderr)
        rows.extend(measurement)


if __name__ == "__main__":
    sys.exit(main())
