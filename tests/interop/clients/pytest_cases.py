"""A pytest run printed as the other scripts print theirs: a line a case, a closing line."""

import pytest


class Lines:
    """The plugin that prints; what pytest says itself goes to standard error."""

    def __init__(self, left_out=None):
        self._left_out = left_out or {}
        self._passed = self._failed = 0

    def pytest_collection_modifyitems(self, items):
        for item in items:
            reason = self._left_out.get(item.name)
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))

    def pytest_runtest_logreport(self, report):
        name = report.nodeid.split("::", 1)[-1]
        if report.skipped:
            reason = report.longrepr[2].removeprefix("Skipped: ") if isinstance(report.longrepr, tuple) else ""
            print(f"left out  {name}: {reason}", flush=True)
        elif report.failed:
            self._failed += 1
            crash = getattr(report.longrepr, "reprcrash", None)
            told = " ".join(str(crash.message if crash else report.longrepr).split())
            print(f"FAILED    {name} ({report.when}): {told[:600]}", flush=True)
        elif report.when == "call":
            self._passed += 1
            print(f"passed    {name} ({report.duration:.1f} s)", flush=True)

    def close(self, status):
        """Prints the closing line; `status` is pytest's own exit status."""
        if status not in (0, 1):
            self._failed += 1
        print(f"{self._passed} passed, {self._failed} failed", flush=True)
        return 1 if self._failed or not self._passed else 0


def run(arguments, left_out=None, plugins=()):
    """Runs pytest; the tests in `left_out` are not run, for the reason that it gives for each."""
    lines = Lines(left_out)
    quiet = ["-p", "no:cacheprovider", "-p", "no:terminal", "-p", "no:warnings"]
    return lines.close(pytest.main([*quiet, *arguments], plugins=[lines, *plugins]))
