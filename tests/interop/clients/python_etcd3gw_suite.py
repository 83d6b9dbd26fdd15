#!/usr/bin/env python3
"""The test suite that the authors of etcd3gw publish with it, unchanged.

    python_etcd3gw_suite.py --endpoint URL
"""

import argparse
import os
import sys
from urllib.parse import urlparse

import pytest_cases


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--endpoint", required=True)
    parser.add_argument("--only", default="", help="a pytest expression")
    arguments = parser.parse_args()
    os.environ["TOOZ_TEST_HTTP_URL"] = arguments.endpoint
    os.environ["TOOZ_TEST_ETCD_PORT"] = str(urlparse(arguments.endpoint).port)
    return pytest_cases.run(["--pyargs", "etcd3gw.tests.test_etcd3gw", "-k", arguments.only])


if __name__ == "__main__":
    sys.exit(main())
