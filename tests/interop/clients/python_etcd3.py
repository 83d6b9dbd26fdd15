#!/usr/bin/env python3
"""The Python client etcd3 (gRPC), one case a use of it.

    python_etcd3.py --endpoint URL
"""

import argparse
import hashlib
import io
import sys
import threading
import time
from urllib.parse import urlparse

import etcd3
import grpc
from etcd3 import etcdrpc, exceptions

from cases import Cases, equal, eventually, raises

case = Cases()


def code(kind, function, *arguments, **named):
    """The gRPC code and text of a call that must fail, as the client passes it on."""
    error = raises(kind, function, *arguments, **named)
    return error.code().name, error.details()


def collect(iterator, number):
    """The next events of a watch."""
    return [next(iterator) for _ in range(number)]


def told(event):
    return type(event).__name__, event.key, event.value


# ---- keys


@case("put, get, delete, with metadata and the pair before")
def _(etcd):
    at = etcd.put("a/1", "one").header.revision
    value, meta = etcd.get("a/1")
    equal((value, meta.key, meta.version), (b"one", b"a/1", 1))
    equal((meta.create_revision, meta.mod_revision, meta.lease_id), (at, at, 0))
    equal(etcd.put("a/1", b"\x00\xff", prev_kv=True).prev_kv.value, b"one")
    equal(etcd.get("a/1")[1].version, 2)
    equal(etcd.get("a/1", serializable=True)[0], b"\x00\xff")
    gone = etcd.delete("a/1", prev_kv=True, return_response=True)
    equal((gone.deleted, gone.prev_kvs[0].value), (1, b"\x00\xff"))
    equal((etcd.delete("a/1"), etcd.get("a/1")), (False, (None, None)))


@case("ranges: prefix, from-to, all, sorted by each target, keys only")
def _(etcd):
    for key, value in [("1", "z"), ("2", "y"), ("3", "x")]:
        etcd.put("b/" + key, value)
    etcd.put("b/2", "y")
    equal([value for value, _ in etcd.get_prefix("b/")], [b"z", b"y", b"x"])
    equal([value for value, _ in etcd.get_range("b/1", "b/3")], [b"z", b"y"])
    for target, last in [("key", "3"), ("version", "2"), ("create", "3"), ("mod", "2"), ("value", "1")]:
        found = etcd.get_prefix("b/", sort_order="descend", sort_target=target)
        equal((target, next(found)[1].key), (target, b"b/" + last.encode()))
    for value, meta in etcd.get_prefix("b/", keys_only=True):
        equal((value, meta.key[:2]), (b"", b"b/"))
    assert etcd.get_all_response().count >= 3
    equal(etcd.get_prefix_response("b/").count, 3)
    equal(etcd.delete_prefix("b/").deleted, 3)


@case("put_if_not_exists and replace swap once")
def _(etcd):
    equal((etcd.put_if_not_exists("c", "1"), etcd.put_if_not_exists("c", "2")), (True, False))
    equal((etcd.replace("c", "1", "3"), etcd.replace("c", "1", "4")), (True, False))
    equal(etcd.get("c")[0], b"3")


@case("refusals carry etcd's codes and texts")
def _(etcd):
    equal(code(grpc.RpcError, etcd.put, "", "x"), ("INVALID_ARGUMENT", "etcdserver: key is not provided"))
    equal(code(grpc.RpcError, etcd.put, "x", "y", lease=12345),
          ("NOT_FOUND", "etcdserver: requested lease not found"))
    equal(code(grpc.RpcError, etcd.compact, 1 << 40),
          ("OUT_OF_RANGE", "etcdserver: mvcc: required revision is a future revision"))
    large = b"x" * 1_600_000
    equal(code(grpc.RpcError, etcd.put, "x", large), ("INVALID_ARGUMENT", "etcdserver: request is too large"))


# ---- transactions


@case("transactions compare value, version, create and mod, in each direction")
def _(etcd):
    at = etcd.put("t/1", "m").header.revision
    of = etcd.transactions
    true = [
        of.value("t/1") == "m", of.value("t/1") != "x", of.value("t/1") > "a", of.value("t/1") < "z",
        of.version("t/1") == 1, of.version("t/1") < 2, of.create("t/1") == at, of.mod("t/1") > at - 1,
        of.create("t/none") == 0, of.version("t/none") == 0, of.mod("t/", "t0") == at,
    ]
    for compare in true:
        equal((compare, etcd.transaction([compare], [], [])[0]), (compare, True))
    for compare in [of.value("t/1") == "n", of.version("t/1") > 1, of.value("t/none") != "x"]:
        equal((compare, etcd.transaction([compare], [], [])[0]), (compare, False))


@case("a transaction's operations run in order, nested ones too")
def _(etcd):
    of = etcd.transactions
    before = etcd.put("t/2", "0").header.revision
    won, answers = etcd.transaction(
        [of.value("t/2") == "0"],
        [of.put("t/2", "1", prev_kv=True), of.get("t/2"),
         of.txn([of.value("t/2") == "0"], [of.put("t/3", "2")], []), of.get("t/3")],
        [],
    )
    put, got, nested, inner = answers
    equal(won, True)
    equal(put.response_put.prev_kv.value, b"0")
    equal([(value, meta.mod_revision) for value, meta in got], [(b"1", before + 1)])
    equal(nested.response_txn.succeeded, True)
    equal([(value, meta.mod_revision) for value, meta in inner], [(b"2", before + 1)])
    won, (gone, nothing) = etcd.transaction(
        [of.value("t/2") == "0"], [], [of.delete("t/2", prev_kv=True), of.get("t/2")])
    equal((won, gone.response_delete_range.prev_kvs[0].value, nothing), (False, b"1", []))


@case("a transaction that is refused writes nothing")
def _(etcd):
    of = etcd.transactions
    twice = [of.put("t/4", "1"), of.put("t/4", "2")]
    equal(code(grpc.RpcError, etcd.transaction, [], twice, []),
          ("INVALID_ARGUMENT", "etcdserver: duplicate key given in txn request"))
    half = [of.put("t/4", "1"), of.put("t/5", "2", lease=999)]
    equal(code(grpc.RpcError, etcd.transaction, [], half, []),
          ("NOT_FOUND", "etcdserver: requested lease not found"))
    many = [of.put(f"t/{i}", "x") for i in range(129)]
    equal(code(grpc.RpcError, etcd.transaction, [], many, []),
          ("INVALID_ARGUMENT", "etcdserver: too many operations in txn request"))
    equal(etcd.get("t/4"), (None, None))


# ---- watches


@case("watch: puts and deletes in order, then cancelled")
def _(etcd):
    events, cancel = etcd.watch("w/1")
    etcd.put("w/1", "a")
    etcd.put("w/1", "b")
    etcd.delete("w/1")
    equal([told(event) for event in collect(events, 3)],
          [("PutEvent", b"w/1", b"a"), ("PutEvent", b"w/1", b"b"), ("DeleteEvent", b"w/1", b"")])
    cancel()
    etcd.put("w/1", "c")
    equal(list(events), [])


@case("watch: from a revision, with the pair before")
def _(etcd):
    start = etcd.put("w/2", "a").header.revision
    etcd.put("w/2", "b")
    etcd.delete("w/2")
    etcd.put("w/2", "c")
    events, cancel = etcd.watch("w/2", start_revision=start, prev_kv=True)
    seen = collect(events, 4)
    equal([event.value for event in seen], [b"a", b"b", b"", b"c"])
    equal([event.prev_value for event in seen], [b"", b"a", b"b", b""])
    equal([event.mod_revision for event in seen], [start + i for i in range(4)])
    cancel()


@case("watch_prefix, watch_once and callbacks share one stream")
def _(etcd):
    heard = []
    watches = [etcd.add_watch_prefix_callback(f"w/3/{i}", heard.append) for i in range(20)]
    start = etcd.put("w/3/7", "x").header.revision
    eventually("one callback", lambda: heard)
    equal([event.key for response in heard for event in response.events], [b"w/3/7"])
    equal(etcd.watch_once("w/3/7", timeout=5, start_revision=start).value, b"x")
    raises(exceptions.WatchTimedOut, etcd.watch_once, "w/3/none", timeout=0.2)
    for watch in watches:
        etcd.cancel_watch(watch)
    etcd.put("w/3/7", "y")
    equal(etcd.watch_prefix_once("w/3/", timeout=5, start_revision=start + 1).value, b"y")
    equal(len(heard), 1)


@case("watch of compacted history tells from where on it can be watched")
def _(etcd):
    start = etcd.put("w/4", "1").header.revision
    etcd.put("w/4", "2")
    etcd.compact(start + 1)
    events, _ = etcd.watch("w/4", start_revision=start)
    error = raises(exceptions.RevisionCompactedError, next, events)
    equal(error.compacted_revision, start + 1)
    events, cancel = etcd.watch("w/4", start_revision=error.compacted_revision)
    equal(next(events).value, b"2")
    cancel()


@case("watch brings ten thousand events, each once and in order")
def _(etcd):
    events, cancel = etcd.watch_prefix("w/5/")
    of = etcd.transactions

    def write():
        for i in range(100):
            etcd.transaction([], [of.put(f"w/5/{i:03}/{j:03}", "x") for j in range(100)], [])

    writer = threading.Thread(target=write)
    writer.start()
    equal([event.key for event in collect(events, 10_000)],
          [f"w/5/{i:03}/{j:03}".encode() for i in range(100) for j in range(100)])
    cancel()
    writer.join()


# ---- leases and locks


@case("a lease: its own id, keys, refreshed, revoked with its keys")
def _(etcd):
    lease = etcd.lease(60, lease_id=4711)
    equal((lease.id, lease.ttl, lease.granted_ttl, lease.keys), (4711, 60, 60, []))
    etcd.put("l/1", "x", lease=lease)
    etcd.put("l/2", "x", lease=4711)
    equal((sorted(lease.keys), etcd.get("l/1")[1].lease_id), ([b"l/1", b"l/2"], 4711))
    assert 50 < lease.remaining_ttl <= 60
    equal([answer.TTL for answer in lease.refresh()], [60])
    raises(exceptions.PreconditionFailedError, etcd.lease, 60, lease_id=4711)
    lease.revoke()
    equal((etcd.get("l/1")[0], etcd.get_lease_info(4711).TTL), (None, -1))
    equal(code(grpc.RpcError, lease.revoke), ("NOT_FOUND", "etcdserver: requested lease not found"))


@case("a lease expires, and lives on while it is refreshed")
def _(etcd):
    kept, left = etcd.lease(4), etcd.lease(2)
    etcd.put("l/kept", "x", lease=kept)
    etcd.put("l/left", "x", lease=left)
    events, cancel = etcd.watch("l/left")
    end = time.monotonic() + 5.5
    while time.monotonic() < end:
        equal([answer.TTL for answer in kept.refresh()], [4])
        time.sleep(0.4)
    equal((type(next(events)).__name__, etcd.get("l/left")[0]), ("DeleteEvent", None))
    equal(etcd.get("l/kept")[0], b"x")
    cancel()
    kept.revoke()


@case("lock: one holder, the next after its release, refreshed, lost with its lease")
def _(etcd):
    with etcd.lock("one", ttl=10) as held:
        equal(held.is_acquired(), True)
        other = etcd.lock("one", ttl=10)
        equal((other.acquire(timeout=0.2), other.is_acquired()), (False, False))
        equal([answer.TTL for answer in held.refresh()], [10])
        waiting = threading.Thread(target=other.acquire)
        waiting.start()
    waiting.join()
    equal((held.is_acquired(), other.is_acquired()), (False, True))
    other.lease.revoke()
    equal((other.is_acquired(), other.release()), (False, False))


@case("a counter under the lock loses no increment")
def _(etcd):
    etcd.put("counter", "0")

    def count():
        for _ in range(3):
            with etcd.lock("counter", ttl=20):
                etcd.put("counter", str(int(etcd.get("counter")[0]) + 1))

    threads = [threading.Thread(target=count) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    equal(etcd.get("counter")[0], b"9")


# ---- the server


@case("status, members and hash")
def _(etcd):
    status, members = etcd.status(), list(etcd.members)
    equal((status.leader.id, len(members)), (members[0].id, 1))
    assert status.version.startswith("3.") and status.db_size > 0, (status.version, status.db_size)
    assert status.raft_term > 0 and status.raft_index > 0 and members[0].client_urls, members
    before = etcd.hash()
    assert before == etcd.hash() and before


@case("compact and defragment")
def _(etcd):
    at = etcd.put("d", "x").header.revision
    etcd.compact(at, physical=True)
    etcd.defragment()
    equal(etcd.get("d")[0], b"x")


@case("an alarm stops writes until it is disarmed")
def _(etcd):
    (alarm,) = etcd.create_alarm()
    equal((alarm.alarm_type, alarm.member_id), (etcdrpc.NOSPACE, 0))
    try:
        equal(len(list(etcd.list_alarms())), 1)
        equal(code(grpc.RpcError, etcd.put, "x", "y"),
              ("RESOURCE_EXHAUSTED", "etcdserver: mvcc: database space exceeded"))
        etcd.get("x")
    finally:
        (gone,) = etcd.disarm_alarm()
    equal((gone.alarm_type, list(etcd.list_alarms())), (etcdrpc.NOSPACE, []))
    etcd.put("x", "y")


@case("a snapshot: whole pages, and their digest at the end")
def _(etcd):
    etcd.put("snap", "shot")
    file = io.BytesIO()
    etcd.snapshot(file)
    data, digest = file.getvalue()[:-32], file.getvalue()[-32:]
    equal((len(data) % 512, hashlib.sha256(data).digest()), (0, digest))
    assert b"shot" in data


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--endpoint", required=True)
    parser.add_argument("--only", default="", help="the cases whose name contains this")
    arguments = parser.parse_args()
    url = urlparse(arguments.endpoint)
    with etcd3.client(host=url.hostname, port=url.port, timeout=10) as etcd:
        return case.run(etcd, arguments.only)


if __name__ == "__main__":
    sys.exit(main())
