"""etcdctl as a child process: run to its end, or started, read from, typed into and stopped."""

import json
import os
import re
import signal
import subprocess
import threading

from cases import eventually

COMMAND_LIMIT_SECONDS = 30


class Etcdctl:
    """One binary with its endpoints, written without a scheme, as etcdctl has them by default."""

    def __init__(self, binary, urls):
        self.binary = binary
        self.endpoints = ",".join(url.removeprefix("http://") for url in urls)

    def raw(self, *arguments, input=b"", timeout=COMMAND_LIMIT_SECONDS):
        """Runs a command to its end, whatever that is."""
        if isinstance(input, str):
            input = input.encode()
        return subprocess.run(
            self._line(arguments), env=_environment(), input=input, capture_output=True, timeout=timeout
        )

    def out(self, *arguments, input=b""):
        """The output of a command that must succeed."""
        ended = self.raw(*arguments, input=input)
        if ended.returncode:
            raise AssertionError(f"{' '.join(arguments)}: {ended.stdout.decode()}{ended.stderr.decode()}")
        return ended.stdout.decode()

    def all(self, *arguments):
        """As `out`, with what went to standard error: 3.4 prints health there."""
        ended = self.raw(*arguments)
        if ended.returncode:
            raise AssertionError(f"{' '.join(arguments)}: {ended.stdout.decode()}{ended.stderr.decode()}")
        return ended.stdout.decode() + ended.stderr.decode()

    def refused(self, *arguments, input=b""):
        """What a command says that must fail."""
        ended = self.raw(*arguments, input=input)
        said = ended.stdout.decode() + ended.stderr.decode()
        if not ended.returncode and "watch was canceled" not in said:
            raise AssertionError(f"{' '.join(arguments)} succeeded: {said}")
        return said

    def start(self, *arguments):
        """Starts a command that goes on until it is stopped; for a `with` statement."""
        return Running(self._line(arguments))

    def grant(self, seconds):
        """A new lease's id, as etcdctl writes it."""
        return self.out("lease", "grant", str(seconds)).split()[1]

    def kv(self, key):
        """The one pair of a key, as in JSON."""
        (kv,) = json.loads(self.out("get", key, "-w", "json"))["kvs"]
        return kv

    def at_least(self, *version):
        """Whether this etcdctl is of that version or later."""
        found = re.search(r"version: (\d+)\.(\d+)", self.out("version"))
        return tuple(map(int, found.groups())) >= version

    def _line(self, arguments):
        return [self.binary, "--command-timeout", "15s", "--endpoints", self.endpoints, *arguments]


class Running:
    """A started etcdctl. Leaving the `with` block kills it."""

    def __init__(self, line):
        self._child = subprocess.Popen(
            line, env=_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self._said = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._child.kill()
        self._child.wait()
        self._child.stdin.close()
        self._reader.join()
        self._child.stdout.close()

    def text(self):
        """What it has printed so far."""
        return self._said.decode(errors="replace")

    def lines(self):
        """The whole lines that it has printed so far."""
        return self.text().split("\n")[:-1]

    def prints(self, text):
        """Waits until it has printed exactly that."""
        try:
            eventually("", lambda: self.text() == text)
        except AssertionError:
            raise AssertionError(f"{self.text()!r} instead of {text!r}") from None

    def type(self, text):
        """Writes to its standard input."""
        self._child.stdin.write(text.encode())
        self._child.stdin.flush()

    def interrupt(self):
        """Ctrl-C, and waits for its end."""
        self._child.send_signal(signal.SIGINT)
        self._child.wait(timeout=15)

    def _read(self):
        while chunk := os.read(self._child.stdout.fileno(), 65536):
            self._said += chunk


def _environment():
    return {"PATH": os.environ["PATH"], "ETCDCTL_API": "3"}
