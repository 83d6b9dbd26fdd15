"""What `run` measured, as a table of quorate's figures over etcd's. Reads its lines of JSON.

With --line, prints the figures of one run themselves: to follow, not to quote.
"""

import json
import statistics
import sys


def latency(run, quantile):
    """A latency in seconds: of events where there are some, of requests elsewhere."""
    event = run["figures"]["parts"].get("event", run["figures"])
    return event["latency_seconds"][quantile]


def throughput(run):
    """Requests a second; none where the rate was given."""
    if run["figures"]["rate_per_second"] is not None:
        return None
    return run["figures"]["throughput_per_second"]


def cpu(run):
    """Processor time of all members for a request, the warm-up's requests taken for alike."""
    figures = run["figures"]
    whole = figures["elapsed_seconds"] + figures["warmup_seconds"]
    return run["cpu_seconds"] / (figures["requests"] * whole / figures["elapsed_seconds"])


COLUMNS = {
    "throughput": throughput,
    "p50": lambda run: latency(run, "p50"),
    "p99": lambda run: latency(run, "p99"),
    "processor time a request": cpu,
}


def line(run):
    rate = run["figures"]["throughput_per_second"]
    p50, p99 = (latency(run, quantile) * 1e3 for quantile in ("p50", "p99"))
    changed = "  LEADER CHANGED" if run["figures"]["leader_changed"] else ""
    print(
        f"{run['case']:15} {run['round']}  {run['server']:8} {rate:9.0f}/s"
        f"  p50 {p50:7.2f} ms  p99 {p99:7.2f} ms  processor {cpu(run) * 1e6:6.0f} us{changed}",
        flush=True,
    )


def ratios(runs, figure):
    """The ratio of each round, or none."""
    by_round = {}
    for run in runs:
        by_round.setdefault(run["round"], {})[run["server"]] = figure(run)
    found = []
    for pair in by_round.values():
        if pair["quorate"] is None or not pair["etcd"]:
            return []
        found.append(pair["quorate"] / pair["etcd"])
    return found


def cell(found):
    if not found:
        return "-"
    return f"{statistics.median(found):.2f} ({min(found):.2f}-{max(found):.2f})"


def table(runs):
    cases = list(dict.fromkeys(run["case"] for run in runs))
    rounds = max(run["round"] for run in runs)
    print(f"quorate / etcd, median of {rounds} rounds (smallest-largest)\n")
    print("| case | " + " | ".join(COLUMNS) + " |")
    print("|---" * (len(COLUMNS) + 1) + "|")
    for case in cases:
        own = [run for run in runs if run["case"] == case]
        cells = [cell(ratios(own, figure)) for figure in COLUMNS.values()]
        print(f"| {case} | " + " | ".join(cells) + " |")
    print("\nMore throughput is better, less of everything else.")


def main():
    runs = [json.loads(text) for text in sys.stdin]
    if sys.argv[1:] == ["--line"]:
        for run in runs:
            line(run)
    elif runs:
        table(runs)


main()
