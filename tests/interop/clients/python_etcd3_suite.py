#!/usr/bin/env python3
"""The test suite that the authors of Python's etcd3 publish with it, unchanged, on a cluster of
three whose members are named as it expects.

    python_etcd3_suite.py --tests DIR --endpoint URL --etcdctl PATH
"""

import argparse
import functools
import os
import sys
from urllib.parse import urlparse

import etcd3
import hypothesis

import pytest_cases

original = hypothesis.settings

# The suite sends SIGSTOP to whatever process on the machine has a matching command line.
STOPS_PROCESSES = "it stops processes that it finds by name, anywhere on the machine"
LEFT_OUT = {
    "test_get_key_serializable": STOPS_PROCESSES,
    "test_get_prefix_serializable": STOPS_PROCESSES,
    "test_user_pwd_auth": "it patches a module that does not exist, and fails anywhere",
}

# Each example starts etcdctl; a hundred of each, its default, would take minutes.
EXAMPLES = 5


class FewerExamples:
    """The plugin that stands in for hypothesis's settings while the suite is loaded."""

    @staticmethod
    def register_profile(name, **chosen):
        # It holds one fixture for all examples, which hypothesis advises against since then.
        checks = list(hypothesis.HealthCheck)
        original.register_profile(name, max_examples=EXAMPLES, suppress_health_check=checks, **chosen)

    load_profile = staticmethod(original.load_profile)

    def pytest_sessionstart(self):
        hypothesis.settings = self

    def pytest_collection_finish(self):
        hypothesis.settings = original


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tests", required=True)
    parser.add_argument("--endpoint", required=True)
    parser.add_argument("--etcdctl", required=True)
    parser.add_argument("--only", default="", help="a pytest expression")
    arguments = parser.parse_args()
    url = urlparse(arguments.endpoint)
    os.environ["PYTHON_ETCD_HTTP_URL"] = arguments.endpoint
    os.environ["TEST_ETCD_VERSION"] = "v3.5.1"
    os.environ["PATH"] = os.path.dirname(arguments.etcdctl) + ":" + os.environ["PATH"]
    # Some of its tests connect to the default address.
    etcd3.client = functools.partial(etcd3.client, host=url.hostname, port=url.port)
    os.chdir(os.path.dirname(arguments.tests))
    return pytest_cases.run(["tests", "-k", arguments.only], LEFT_OUT, [FewerExamples()])


if __name__ == "__main__":
    sys.exit(main())
