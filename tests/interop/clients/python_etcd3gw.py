#!/usr/bin/env python3
"""The Python client etcd3gw, which speaks JSON over HTTP, one case a use of it.

    python_etcd3gw.py --endpoint URL
"""

import argparse
import base64
import sys
import threading
from urllib.parse import urlparse

import etcd3gw
from etcd3gw import exceptions

from cases import Cases, equal, eventually, raises

case = Cases()


def b64(text):
    return base64.b64encode(text.encode()).decode()


def heard(events, number):
    """The next events of a watch: type, key and value."""
    seen = []
    for _ in range(number):
        event = next(events)
        seen.append((event.get("type", "PUT"), event["kv"]["key"], event["kv"].get("value", b"")))
    return seen


# ---- keys


@case("put, get and delete, any bytes")
def _(etcd):
    equal(etcd.put("a/1", "one"), True)
    equal(etcd.put("a/2", b"\x00\xff"), True)
    equal((etcd.get("a/1"), etcd.get("a/2"), etcd.get("a/none")), ([b"one"], [b"\x00\xff"], []))
    equal((etcd.delete("a/1"), etcd.delete("a/1")), (True, False))
    equal(etcd.delete_prefix("a/"), True)


@case("metadata: numbers as text, what is zero left out")
def _(etcd):
    etcd.put("b", "1")
    etcd.put("b", "2")
    ((value, meta),) = etcd.get("b", metadata=True)
    equal((value, meta["key"], meta["version"]), (b"2", b"b", "2"))
    equal(int(meta["mod_revision"]) - int(meta["create_revision"]), 1)
    assert "lease" not in meta, meta


@case("ranges sorted by each target, in both orders")
def _(etcd):
    for key, value in [("1", "z"), ("2", "y"), ("3", "x"), ("2", "y")]:
        etcd.put("c/" + key, value)
    for target, last in [("key", "3"), ("version", "2"), ("create", "3"), ("mod", "2"), ("value", "1")]:
        found = etcd.get_prefix("c/", sort_order="descend", sort_target=target)
        equal((target, found[0][1]["key"]), (target, b"c/" + last.encode()))
    equal([value for value, _ in etcd.get_prefix("c/", sort_order="ascend")], [b"z", b"y", b"x"])
    assert len(etcd.get_all()) >= 3


@case("create and replace swap once")
def _(etcd):
    equal((etcd.create("d", "1"), etcd.create("d", "2")), (True, False))
    equal((etcd.replace("d", "1", "3"), etcd.replace("d", "1", "4")), (True, False))
    equal(etcd.get("d"), [b"3"])


@case("a transaction as JSON: compares, both branches, answers in order")
def _(etcd):
    etcd.put("t/1", "m")
    transaction = {
        "compare": [{"key": b64("t/1"), "result": "EQUAL", "target": "VALUE", "value": b64("m")},
                    {"key": b64("t/2"), "target": "CREATE", "create_revision": "0"}],
        "success": [{"requestPut": {"key": b64("t/2"), "value": b64("x")}},
                    {"request_range": {"key": b64("t/2")}},
                    {"requestDeleteRange": {"key": b64("t/1")}}],
        "failure": [{"requestRange": {"key": b64("t/2")}}],
    }
    won = etcd.transaction(transaction)
    equal(won["succeeded"], True)
    put, got, gone = won["responses"]
    equal(put["response_put"]["header"]["revision"], won["header"]["revision"])
    equal(got["response_range"]["kvs"][0]["value"], b64("x"))
    equal(gone["response_delete_range"]["deleted"], "1")
    lost = etcd.transaction(transaction)
    equal((lost.get("succeeded", False), len(lost["responses"])), (False, 1))


@case("refusals are errors with etcd's text")
def _(etcd):
    error = raises(exceptions.Etcd3Exception, etcd.put, "", "x")
    assert "etcdserver: key is not provided" in str(error.detail_text), error.detail_text
    error = raises(exceptions.Etcd3Exception, etcd.post, etcd.get_url("/lease/revoke"), json={"ID": 12345})
    assert "etcdserver: requested lease not found" in str(error.detail_text), error.detail_text


# ---- watches


@case("watch: puts and deletes in order, then cancelled")
def _(etcd):
    events, cancel = etcd.watch("w/1")
    etcd.put("w/1", "a")
    etcd.put("w/1", "b")
    etcd.delete("w/1")
    equal(heard(events, 3), [("PUT", b"w/1", b"a"), ("PUT", b"w/1", b"b"), ("DELETE", b"w/1", b"")])
    cancel()


@case("watch_prefix from a revision, with large values")
def _(etcd):
    etcd.put("w/2/a", "1")
    start = int(etcd.get("w/2/a", metadata=True)[0][1]["mod_revision"])
    large = "x" * 400_000
    etcd.put("w/2/b", large)
    events, cancel = etcd.watch_prefix("w/2/", start_revision=start)
    equal(heard(events, 2), [("PUT", b"w/2/a", b"1"), ("PUT", b"w/2/b", large.encode())])
    cancel()


@case("watch_once, and its time limit")
def _(etcd):
    raises(exceptions.WatchTimedOut, etcd.watch_once, "w/none", timeout=1)
    done = threading.Event()

    def write():
        while not done.wait(0.1):
            etcd.put("w/3/k", "x")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        equal(etcd.watch_once("w/3/k", timeout=20)["kv"]["value"], b"x")
    finally:
        done.set()
        writer.join()


# ---- leases and locks


@case("a lease: keys, refreshed, revoked with its keys")
def _(etcd):
    lease = etcd.lease(60)
    etcd.put("l/1", "x", lease=lease)
    equal((lease.keys(), lease.refresh()), ([b"l/1"], 60))
    assert 50 < lease.ttl() <= 60
    equal(lease.revoke(), True)
    equal((etcd.get("l/1"), lease.ttl()), ([], -1))


@case("a lease expires with its keys")
def _(etcd):
    lease = etcd.lease(2)
    etcd.put("l/2", "x", lease=lease)
    eventually("it expires", lambda: etcd.get("l/2") == [])


@case("lock: one holder, the next after its release, refreshed")
def _(etcd):
    first, second = etcd.lock("one", ttl=20), etcd.lock("one", ttl=20)
    equal((first.acquire(), second.acquire(), first.is_acquired()), (True, False, True))
    equal(first.refresh(), 20)
    equal((first.release(), second.acquire(), second.release()), (True, True, True))
    with etcd.lock("one", ttl=20) as held:
        equal(held.is_acquired(), True)


# ---- the server


@case("status and members")
def _(etcd):
    status, members = etcd.status(), etcd.members()
    equal(status["leader"], members[0]["ID"])
    assert status["version"].startswith("3.") and int(status["dbSize"]) > 0, status
    assert members[0]["clientURLs"], members


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--endpoint", required=True)
    parser.add_argument("--only", default="", help="the cases whose name contains this")
    arguments = parser.parse_args()
    url = urlparse(arguments.endpoint)
    etcd = etcd3gw.client(host=url.hostname, port=url.port, timeout=10)
    return case.run(etcd, arguments.only)


if __name__ == "__main__":
    sys.exit(main())
