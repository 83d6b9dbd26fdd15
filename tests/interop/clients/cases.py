"""What the Python scripts here share: named cases, each with a time limit, counted at the end."""

import signal
import sys
import time
import traceback

# No case waits longer than for a lease of a few seconds to expire.
LIMIT_SECONDS = 60


class Skip(Exception):
    """Raised by a case that has nothing to run on; its text says what is missing."""


class Cases:
    """The cases of one client, in the order of their definition."""

    def __init__(self):
        self._cases = []

    def __call__(self, name):
        def keep(function):
            self._cases.append((name, function))
            return function

        return keep

    def run(self, context, only=""):
        """Runs every case whose name contains `only`; returns the exit status of the script."""
        # Ended by the driver, a case still leaves its `with` blocks, which stop what it started.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        passed = failed = 0
        for name, function in self._cases:
            if only not in name:
                continue
            began = time.monotonic()
            try:
                _within_limit(function, context)
            except Skip as missing:
                print(f"left out  {name}: {missing}", flush=True)
                continue
            except Exception as error:
                failed += 1
                print(f"FAILED    {name}: {_told(error)}", flush=True)
                traceback.print_exc(file=sys.stderr)
                continue
            passed += 1
            print(f"passed    {name} ({time.monotonic() - began:.1f} s)", flush=True)
        print(f"{passed} passed, {failed} failed", flush=True)
        return 1 if failed or not passed else 0


def equal(actual, expected):
    """Fails with both values when they differ."""
    if actual != expected:
        raise AssertionError(f"{actual!r} instead of {expected!r}")


def eventually(what, condition, limit_seconds=30):
    """Waits until `condition()` gives something true, and returns that."""
    end = time.monotonic() + limit_seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {limit_seconds} s: {what}")
        time.sleep(0.02)


def raises(kind, function, *arguments, **named):
    """Fails unless the call raises `kind`; returns what was raised."""
    try:
        value = function(*arguments, **named)
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was not raised, the answer was {value!r}")


def _within_limit(function, context):
    def late(_signal, _frame):
        raise AssertionError(f"not done after {LIMIT_SECONDS} s")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(LIMIT_SECONDS)
    try:
        function(context)
    finally:
        signal.alarm(0)


def _told(error):
    text = " ".join(str(error).split())
    if not isinstance(error, AssertionError) or not text:
        text = f"{type(error).__name__}: {text}"
    return text[:600]
