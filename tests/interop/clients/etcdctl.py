#!/usr/bin/env python3
"""etcdctl's commands, one case a use of them; its output is compared with what etcd makes it print.

    etcdctl.py --etcdctl PATH --endpoint URL [--mirror-to URL]... [--cluster URL,URL,URL] [--slow]
"""

import argparse
import base64
import json
import re
import sys
import tempfile
import threading

import etcdctl_process
from cases import Cases, Skip, equal, eventually

case = Cases()


class Context:
    """The servers that the cases use."""

    def __init__(self, arguments):
        def client(urls):
            return etcdctl_process.Etcdctl(arguments.etcdctl, urls)

        self.ctl = client([arguments.endpoint])
        self.mirrors = [client([url]) for url in arguments.mirror_to]
        urls = arguments.cluster.split(",") if arguments.cluster else []
        self.cluster = client(urls) if urls else None
        self.members = [client([url]) for url in urls]
        self.against = arguments.against
        self.slow = arguments.slow

    def need_cluster(self):
        if not self.cluster:
            raise Skip("no --cluster")
        return self.cluster


def b64(text):
    return base64.b64encode(text.encode()).decode()


def revision(ctl):
    return json.loads(ctl.out("get", "any", "-w", "json"))["header"]["revision"]


# ---- keys


@case("put, get and del print what was written")
def _(on):
    ctl = on.ctl
    equal(ctl.out("put", "a/1", "one"), "OK\n")
    equal(ctl.out("put", "a/1", "eins", "--prev-kv"), "OK\na/1\none\n")
    equal(ctl.out("get", "a/1"), "a/1\neins\n")
    equal(ctl.out("get", "a/1", "--print-value-only"), "eins\n")
    equal(ctl.out("get", "a/none"), "")
    equal(ctl.out("del", "a/1", "--prev-kv"), "1\na/1\neins\n")
    equal(ctl.out("del", "a/1"), "0\n")


@case("put takes its value from standard input, and any bytes")
def _(on):
    value = b"two\nlines \x01\xff\x00"
    on.ctl.out("put", "stdin", input=value)
    answer = json.loads(on.ctl.out("get", "stdin", "-w", "json"))
    equal(base64.b64decode(answer["kvs"][0]["value"]), value)


@case("get by prefix, range, from a key, with limit, sorting, keys only and count")
def _(on):
    ctl = on.ctl
    for key, value in [("b/1", "z"), ("b/2", "y"), ("b/3", "x")]:
        ctl.out("put", key, value)
    equal(ctl.out("get", "b/", "--prefix", "--keys-only"), "b/1\n\nb/2\n\nb/3\n\n")
    equal(ctl.out("get", "b/1", "b/3", "--print-value-only"), "z\ny\n")
    equal(ctl.out("get", "b/3", "--from-key", "--limit", "1"), "b/3\nx\n")
    equal(ctl.out("get", "b/", "--prefix", "--limit", "2"), "b/1\nz\nb/2\ny\n")
    by_value = ["get", "b/", "--prefix", "--sort-by", "VALUE", "--print-value-only"]
    equal(ctl.out(*by_value, "--order", "ASCEND"), "x\ny\nz\n")
    equal(ctl.out(*by_value, "--order", "DESCEND"), "z\ny\nx\n")
    for target in ["CREATE", "KEY", "MODIFY"]:
        newest = ctl.out("get", "b/", "--prefix", "--sort-by", target, "--order", "DESCEND")
        equal(newest.split()[0], "b/3")
    ctl.out("put", "b/2", "y")
    by_version = ctl.out("get", "b/", "--prefix", "--sort-by", "VERSION", "--order", "DESCEND")
    equal(by_version.split()[0], "b/2")
    if ctl.at_least(3, 5):
        assert '"Count" : 3' in ctl.out("get", "b/", "--prefix", "--count-only", "-w", "fields")


@case("get at a revision, serializable and linearizable")
def _(on):
    ctl = on.ctl
    ctl.out("put", "c", "old")
    then = revision(ctl)
    ctl.out("put", "c", "new")
    equal(ctl.out("get", "c", "--rev", str(then)), "c\nold\n")
    equal(ctl.out("get", "c", "--consistency", "s"), "c\nnew\n")
    equal(ctl.out("get", "c", "--consistency", "l"), "c\nnew\n")
    future = "etcdserver: mvcc: required revision is a future revision"
    assert future in ctl.refused("get", "c", "--rev", str(then + 1000))


@case("every output format: json, fields, protobuf, table, hex")
def _(on):
    ctl = on.ctl
    ctl.out("put", "fmt/k", "v")
    answer = json.loads(ctl.out("get", "fmt/k", "-w", "json"))
    header, (kv,) = answer["header"], answer["kvs"]
    assert header["cluster_id"] and header["member_id"] and header["raft_term"], header
    equal((kv["key"], kv["value"], kv["version"]), (b64("fmt/k"), b64("v"), 1))
    equal(kv["create_revision"], kv["mod_revision"])
    equal(kv["mod_revision"], header["revision"])
    fields = ctl.out("get", "fmt/k", "-w", "fields")
    for line in ['"Key" : "fmt/k"', '"Value" : "v"', '"Version" : 1', '"More" : false']:
        assert line in fields, fields
    assert b"fmt/k" in ctl.raw("get", "fmt/k", "-w", "protobuf").stdout
    hexed = ctl.out("get", "fmt/k", "--hex")
    equal(hexed, "\\x66\\x6d\\x74\\x2f\\x6b\n\\x76\n")
    assert "MEMBER" not in fields and "NAME" in ctl.out("member", "list", "-w", "table")


@case("del by prefix, range and from a key")
def _(on):
    ctl = on.ctl
    for key in ["~d/1", "~d/2", "~d/3", "~e", "~f"]:
        ctl.out("put", key, "v")
    equal(ctl.out("del", "~d/1", "~d/3"), "2\n")
    equal(ctl.out("del", "~d/", "--prefix"), "1\n")
    equal(ctl.out("del", "~e", "--from-key"), "2\n")


@case("put with a lease, --ignore-lease and --ignore-value")
def _(on):
    ctl = on.ctl
    lease = ctl.grant(100)
    ctl.out("put", "ign", "1", f"--lease={lease}")
    ctl.out("put", "ign", "2", "--ignore-lease")
    kv = ctl.kv("ign")
    equal((kv["value"], f"{kv['lease']:x}"), (b64("2"), lease.lstrip("0")))
    ctl.out("put", "ign", "--ignore-value")
    kv = ctl.kv("ign")
    equal((kv["value"], kv.get("lease", 0)), (b64("2"), 0))
    assert "etcdserver: key not found" in ctl.refused("put", "ign/none", "--ignore-value")
    ctl.out("lease", "revoke", lease)


# ---- transactions


TXN = 'ver("t/a") = "0"\nmod("t/a") < "1"\n\nput t/a 1\nget t/a\n\nget t/a\ndel t/a\n\n'


@case("txn from a script: both branches")
def _(on):
    ctl = on.ctl
    equal(ctl.out("txn", input=TXN), "SUCCESS\n\nOK\n\nt/a\n1\n")
    equal(ctl.out("txn", input=TXN), "FAILURE\n\nt/a\n1\n\n1\n")


@case("txn --interactive asks for compares and both branches")
def _(on):
    said = on.ctl.out("txn", "-i", input='create("t/i") = "0"\n\nput t/i x\n\n\n')
    for part in ["compares:", "success requests", "failure requests", "SUCCESS", "OK"]:
        assert part in said, said


@case("txn compares value, version, create and mod")
def _(on):
    ctl = on.ctl
    ctl.out("put", "t/c", "m")
    at = ctl.kv("t/c")["mod_revision"]
    true = [
        'value("t/c") = "m"', 'value("t/c") > "a"', 'value("t/c") < "z"',
        'val("t/c") = "m"', 'ver("t/c") = "1"', f'c("t/c") = "{at}"',
        f'create("t/c") > "{at - 1}"', f'm("t/c") < "{at + 1}"', f'mod("t/c") = "{at}"',
    ]
    equal(ctl.out("txn", input="\n".join(true) + "\n\nget t/c\n\n\n"), "SUCCESS\n\nt/c\nm\n")
    for false in ['value("t/c") = "x"', 'ver("t/c") > "1"', f'mod("t/c") < "{at}"']:
        said = ctl.out("txn", input="\n".join([*true, false]) + "\n\nget t/c\n\n\n")
        equal(said, "FAILURE\n")


@case("txn refuses a key written twice, and writes nothing")
def _(on):
    ctl = on.ctl
    before = revision(ctl)
    said = ctl.refused("txn", input='ver("t/d") = "0"\n\nput t/d 1\nput t/d 2\n\n\n')
    assert "etcdserver: duplicate key given in txn request" in said
    equal((ctl.out("get", "t/d"), revision(ctl)), ("", before))


# ---- watches


@case("watch prints puts and deletes, with the pair before them")
def _(on):
    ctl = on.ctl
    start = revision(ctl) + 1
    with ctl.start("watch", "w/", "--prefix", "--prev-kv", "--rev", str(start)) as watch:
        ctl.out("put", "w/1", "a")
        ctl.out("put", "w/1", "b")
        ctl.out("del", "w/1")
        watch.prints("PUT\nw/1\na\nPUT\nw/1\na\nw/1\nb\nDELETE\nw/1\nb\nw/1\n\n")


@case("watch from a revision: history first, then what happens")
def _(on):
    ctl = on.ctl
    start = revision(ctl) + 1
    for value in "12":
        ctl.out("put", "wr", value)
    with ctl.start("watch", "wr", "--rev", str(start)) as watch:
        watch.prints("PUT\nwr\n1\nPUT\nwr\n2\n")
        ctl.out("put", "wr", "3")
        watch.prints("PUT\nwr\n1\nPUT\nwr\n2\nPUT\nwr\n3\n")


@case("watch of a range leaves out what is beside it")
def _(on):
    ctl = on.ctl
    start = revision(ctl) + 1
    for key in ["wa/a", "wa/b", "wa/c"]:
        ctl.out("put", key, key)
    with ctl.start("watch", "wa/a", "wa/c", "--rev", str(start)) as watch:
        watch.prints("PUT\nwa/a\nwa/a\nPUT\nwa/b\nwa/b\n")


@case("watch as json: revisions, versions and types")
def _(on):
    ctl = on.ctl
    start = revision(ctl) + 1
    ctl.out("txn", input='ver("wj") = "0"\n\nput wj/1 x\nput wj/2 y\n\n\n')
    ctl.out("del", "wj/1")
    with ctl.start("watch", "wj", "--prefix", "--rev", str(start), "-w", "json") as watch:
        events = eventually("three events", lambda: three(watch.lines()))
    keys = [base64.b64decode(event["kv"]["key"]).decode() for event in events]
    equal(keys, ["wj/1", "wj/2", "wj/1"])
    equal([event["kv"]["mod_revision"] for event in events], [start, start, start + 1])
    equal([event.get("type", 0) for event in events], [0, 0, 1])


def three(lines):
    events = [event for line in lines for event in json.loads(line).get("Events", [])]
    return events if len(events) >= 3 else None


@case("watch runs a command for each event, with the event in its environment")
def _(on):
    ctl = on.ctl
    start = revision(ctl) + 1
    ctl.out("put", "wx", "payload")
    command = ["sh", "-c", "echo $ETCD_WATCH_REVISION $ETCD_WATCH_EVENT_TYPE"
               " $ETCD_WATCH_KEY $ETCD_WATCH_VALUE"]
    with ctl.start("watch", "wx", "--rev", str(start), "--", *command) as watch:
        eventually("the command ran", lambda: f'{start} "PUT" "wx" "payload"' in watch.text())


@case("watch --interactive: several watches on one stream, cancel, progress")
def _(on):
    ctl = on.ctl
    start = revision(ctl) + 1
    ctl.out("put", "wi/1", "a")
    ctl.out("put", "wi/2", "b")
    with ctl.start("watch", "-i") as watch:
        watch.type(f"watch wi/1 --rev {start}\nwatch wi/2 --rev {start}\n")
        eventually("both", lambda: sorted(watch.text().split()) == sorted("PUT wi/1 a PUT wi/2 b".split()))
        watch.type("progress\n")
        eventually("progress", lambda: f"progress notify: {start + 1}" in watch.text())
        ctl.out("put", "wi/2", "c")
        eventually("an event after it", lambda: "wi/2\nc\n" in watch.text())


@case("watch --progress-notify still brings the events")
def _(on):
    ctl = on.ctl
    if not ctl.at_least(3, 5):
        raise Skip("etcdctl 3.4 has no such flag")
    start = revision(ctl) + 1
    ctl.out("put", "wp", "a")
    with ctl.start("watch", "wp", "--progress-notify", "--rev", str(start)) as watch:
        watch.prints("PUT\nwp\na\n")


@case("watch of compacted history is refused")
def _(on):
    ctl = on.ctl
    ctl.out("put", "wc", "1")
    ctl.out("put", "wc", "2")
    now = revision(ctl)
    ctl.out("compaction", str(now))
    said = ctl.refused("watch", "wc", "--rev", str(now - 1))
    assert "etcdserver: mvcc: required revision has been compacted" in said, said
    with ctl.start("watch", "wc", "--rev", str(now)) as watch:
        watch.prints("PUT\nwc\n2\n")


# ---- leases


@case("lease grant, timetolive, keep-alive, list and revoke")
def _(on):
    ctl = on.ctl
    said = ctl.out("lease", "grant", "60")
    lease = re.fullmatch(r"lease ([0-9a-f]{16}) granted with TTL\(60s\)\n", said)[1]
    ctl.out("put", "l/1", "x", f"--lease={lease}")
    left = ctl.out("lease", "timetolive", lease)
    assert re.fullmatch(rf"lease {lease} granted with TTL\(60s\), remaining\((60|59|58)s\)\n", left), left
    assert "attached keys([l/1])" in ctl.out("lease", "timetolive", lease, "--keys")
    kept = ctl.out("lease", "keep-alive", "--once", lease)
    equal(kept, f"lease {lease} keepalived with TTL(60)\n")
    listed = ctl.out("lease", "list")
    assert listed.startswith("found ") and f"\n{lease}\n" in listed, listed
    assert str(int(lease, 16)) in ctl.out("lease", "list", "-w", "json")
    equal(ctl.out("lease", "revoke", lease), f"lease {lease} revoked\n")
    equal(ctl.out("get", "l/1"), "")
    equal(ctl.out("lease", "timetolive", lease), f"lease {lease} already expired\n")
    assert "etcdserver: requested lease not found" in ctl.refused("lease", "revoke", lease)


@case("a lease takes its keys along when it expires")
def _(on):
    ctl = on.ctl
    lease = ctl.grant(2)
    ctl.out("put", "exp", "x", f"--lease={lease}")
    start = revision(ctl) + 1
    with ctl.start("watch", "exp", "--rev", str(start)) as watch:
        watch.prints("DELETE\nexp\n\n")
    assert lease not in ctl.out("lease", "list")


@case("lease keep-alive keeps a lease alive beyond its TTL, and says when it is gone")
def _(on):
    ctl = on.ctl
    lease = ctl.grant(4)
    with ctl.start("lease", "keep-alive", lease) as keeper:
        kept = f"lease {lease} keepalived with TTL(4)\n"
        eventually("renewals for longer than it lives", lambda: keeper.text().count(kept) >= 5)
        ctl.out("lease", "revoke", lease)
        eventually("it says so", lambda: f"lease {lease} expired or revoked." in keeper.text())


# ---- compaction and defragmentation


@case("compaction, also --physical, and what it takes away")
def _(on):
    ctl = on.ctl
    for value in "123":
        ctl.out("put", "cp", value)
    now = revision(ctl)
    equal(ctl.out("compaction", str(now - 1)), f"compacted revision {now - 1}\n")
    equal(ctl.out("get", "cp", "--rev", str(now - 1)), "cp\n2\n")
    compacted = "etcdserver: mvcc: required revision has been compacted"
    assert compacted in ctl.refused("get", "cp", "--rev", str(now - 2))
    assert compacted in ctl.refused("compaction", str(now - 1))
    equal(ctl.out("compaction", "--physical", str(now)), f"compacted revision {now}\n")
    assert "future revision" in ctl.refused("compaction", str(now + 1000))


@case("defrag keeps the data")
def _(on):
    ctl = on.ctl
    ctl.out("put", "df", "kept")
    said = ctl.out("defrag")
    equal(said, f"Finished defragmenting etcd member[{ctl.endpoints}]\n")
    equal(ctl.out("get", "df"), "df\nkept\n")


# ---- the server


@case("endpoint health, status and hashkv, in each format")
def _(on):
    ctl = on.ctl
    assert f"{ctl.endpoints} is healthy: successfully committed proposal" in ctl.all("endpoint", "health")
    health = json.loads(ctl.out("endpoint", "health", "-w", "json"))
    equal((health[0]["endpoint"], health[0]["health"]), (ctl.endpoints, True))
    parts = ctl.out("endpoint", "status").strip().split(", ")
    equal((parts[0], parts[4], parts[5]), (ctl.endpoints, "true", "false"))
    (status,) = json.loads(ctl.out("endpoint", "status", "-w", "json"))
    header = status["Status"]["header"]
    equal(status["Status"]["leader"], header["member_id"])
    assert status["Status"]["dbSize"] > 0 and status["Status"]["raftIndex"] > 0, status
    assert "IS LEADER" in ctl.out("endpoint", "status", "-w", "table")
    assert '"MemberID"' in ctl.out("endpoint", "status", "-w", "fields")
    one = ctl.out("endpoint", "hashkv")
    equal(one, ctl.out("endpoint", "hashkv"))
    (hashed,) = json.loads(ctl.out("endpoint", "hashkv", "-w", "json"))
    assert hashed["HashKV"]["hash"], hashed
    ctl.out("put", "hash", "changes")
    assert ctl.out("endpoint", "hashkv") != one


@case("endpoint health of a port where nobody listens")
def _(on):
    nobody = etcdctl_process.Etcdctl(on.ctl.binary, ["http://127.0.0.1:1"])
    assert "unhealthy" in nobody.refused("endpoint", "health", "--command-timeout", "1s")


@case("member list in each format")
def _(on):
    ctl = on.ctl
    listed = ctl.out("member", "list")
    parts = listed.strip().split(", ")
    equal((len(parts), parts[1], parts[5]), (6, "started", "false"))
    answer = json.loads(ctl.out("member", "list", "-w", "json"))
    equal(f"{answer['members'][0]['ID']:x}", parts[0])
    for form in ["table", "fields"]:
        assert parts[2] in ctl.out("member", "list", "-w", form)


@case("alarm list and disarm")
def _(on):
    equal(on.ctl.out("alarm", "list"), "")
    equal(on.ctl.out("alarm", "disarm"), "")


@case("snapshot save, and snapshot status of the file")
def _(on):
    ctl = on.ctl
    ctl.out("put", "snap", "shot")
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/db"
        assert f"Snapshot saved at {file}" in ctl.out("snapshot", "save", file)
        status = json.loads(ctl.out("snapshot", "status", file, "-w", "json"))
    assert status["totalKey"] > 0 and status["totalSize"] > 0, status
    equal(status["revision"], revision(ctl))


@case("version")
def _(on):
    assert re.match(r"etcdctl version: 3\.\d+\.\d+\nAPI version: 3\.\d+\n", on.ctl.out("version"))


# ---- lock, elect


@case("lock: one holder, the next in line after it, released on the way out")
def _(on):
    ctl = on.ctl
    with ctl.start("lock", "lk") as first:
        held = eventually("the first holds it", lambda: first.text().strip())
        assert re.fullmatch(r"lk/[0-9a-f]+", held), held
        with ctl.start("lock", "lk", "--ttl", "20") as second:
            keys = ["get", "lk/", "--prefix", "--keys-only"]
            eventually("two in line", lambda: ctl.out(*keys).count("lk/") == 2)
            equal(second.text(), "")
            first.interrupt()
            eventually("the second holds it", lambda: second.text().strip())
            second.interrupt()
        eventually("nobody in line", lambda: ctl.out(*keys) == "")


@case("lock runs a command under the lock and passes on how it ended")
def _(on):
    ctl = on.ctl
    command = ["--", "sh", "-c", "echo $ETCD_LOCK_KEY $ETCD_LOCK_REV"]
    key, at = ctl.out("lock", "lx", *command).split()
    assert key.startswith("lx/") and int(at) > 0, (key, at)
    equal(ctl.raw("lock", "lx", "--", "sh", "-c", "exit 3").returncode != 0, True)
    equal(ctl.out("get", "lx/", "--prefix"), "")


@case("elect: a leader, a listener, a successor")
def _(on):
    ctl = on.ctl
    with ctl.start("elect", "el", "one") as one:
        eventually("one leads", lambda: re.match(r"el/[0-9a-f]+\none\n", one.text()))
        with ctl.start("elect", "--listen", "el") as listener, ctl.start("elect", "el", "two") as two:
            eventually("the listener heard of one", lambda: "\none\n" in listener.text())
            eventually("two in line", lambda: ctl.out("get", "el/", "--prefix").count("el/") == 2)
            equal(two.text(), "")
            one.interrupt()
            eventually("two leads", lambda: "\ntwo\n" in two.text())
            eventually("the listener heard of two", lambda: "\ntwo\n" in listener.text())
            two.interrupt()
        eventually("nobody leads", lambda: ctl.out("get", "el/", "--prefix") == "")


# ---- mirrors


@case("make-mirror copies what is there and follows what comes")
def _(on):
    if not on.mirrors:
        raise Skip("no --mirror-to")
    for number, other in enumerate(on.mirrors):
        mirror(on.ctl, other, f"mm{number}/")


def mirror(ctl, other, prefix):
    ctl.out("put", prefix + "before", "1")
    ctl.out("put", prefix + "gone", "1")
    arguments = ["make-mirror", "--prefix", prefix, "--dest-prefix", "copy/", other.endpoints]
    with ctl.start(*arguments):
        eventually("what was there", lambda: other.out("get", "copy/before"))
        ctl.out("put", prefix + "after", "2")
        ctl.out("del", prefix + "gone")
        ctl.out("txn", input=f'ver("{prefix}t") = "0"\n\nput {prefix}t 3\nput {prefix}u 4\n\n\n')
        copied = "copy/after\n2\ncopy/before\n1\ncopy/t\n3\ncopy/u\n4\n"
        eventually("what came", lambda: other.out("get", "copy/", "--prefix") == copied)
    other.out("del", "copy/", "--prefix")


# ---- a cluster of three


@case("three members: member list, status, health and hashkv of all")
def _(on):
    cluster = on.need_cluster()
    members = cluster.out("member", "list").strip().split("\n")
    equal((len(members), all(", started, " in member for member in members)), (3, True))
    statuses = json.loads(cluster.out("endpoint", "status", "-w", "json"))
    equal(len({status["Status"]["leader"] for status in statuses}), 1)
    said = cluster.all("endpoint", "health")
    equal(said.count("is healthy"), 3)
    cluster.out("put", "three", "members")
    eventually("hashes agree", lambda: len({line.split(", ")[1] for line in
                                            cluster.out("endpoint", "hashkv").strip().split("\n")}) == 1)


@case("three members: --cluster finds all of them from one")
def _(on):
    cluster = on.need_cluster()
    one = on.members[0]
    if not one.at_least(3, 5) and on.against == "quorate":
        # Its 3.4 line sends URLs, as the member list has them, as authorities (docs/clients.md).
        raise Skip("etcdctl 3.4 cannot on quorate")
    equal(one.all("endpoint", "health", "--cluster").count("is healthy"), 3)
    equal(len(one.out("endpoint", "status", "--cluster").strip().split("\n")), 3)
    equal(len(one.out("endpoint", "hashkv", "--cluster").strip().split("\n")), 3)
    equal(one.out("defrag", "--cluster").count("Finished defragmenting"), 3)


@case("three members: move-leader moves it, and only from the leader")
def _(on):
    cluster = on.need_cluster()
    leader, others = roles(on)
    target = others[0]
    said = cluster.out("move-leader", f"{target['member_id']:x}")
    equal(said, f"Leadership transferred from {leader['member_id']:x} to {target['member_id']:x}\n")
    eventually("it leads", lambda: roles(on)[0]["member_id"] == target["member_id"])
    cluster.out("put", "after/move", "1")
    follower = next(member for member in on.members if member.endpoints == leader["endpoint"])
    assert "no leader endpoint given" in follower.refused("move-leader", f"{leader['member_id']:x}")


def roles(on):
    statuses = json.loads(on.cluster.out("endpoint", "status", "-w", "json"))
    found = [
        {"endpoint": status["Endpoint"], **status["Status"]["header"], "leader": status["Status"]["leader"]}
        for status in statuses
    ]
    leading = [member for member in found if member["member_id"] == member["leader"]]
    others = [member for member in found if member["member_id"] != member["leader"]]
    equal(len(leading), 1)
    return leading[0], others


@case("three members: what one takes, another shows, also to a watch")
def _(on):
    on.need_cluster()
    one, two, three_ = on.members
    start = revision(one) + 1
    with three_.start("watch", "across", "--rev", str(start)) as watch:
        one.out("put", "across", "1")
        equal(two.out("get", "across"), "across\n1\n")
        watch.prints("PUT\nacross\n1\n")


@case("four clients at once count without losing an increment")
def _(on):
    ctl = on.ctl
    ctl.out("put", "count", "0")
    failures = []

    def count():
        try:
            for _ in range(5):
                while True:
                    value = ctl.out("get", "count", "--print-value-only").strip()
                    swap = f'value("count") = "{value}"\n\nput count {int(value) + 1}\n\n\n'
                    if ctl.out("txn", input=swap).startswith("SUCCESS"):
                        break
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    equal((failures, ctl.out("get", "count")), ([], "count\n20\n"))


# ---- what takes a minute and more, only with --slow


def slow(name, arguments):
    @case(name)
    def _(on):
        if not on.slow:
            raise Skip("no --slow")
        said = on.ctl.raw(*arguments, timeout=300)
        equal((said.returncode, "FAIL" in said.stdout.decode()), (0, False))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--etcdctl", default="etcdctl")
    parser.add_argument("--endpoint", required=True)
    parser.add_argument("--against", choices=["quorate", "etcd"], default="quorate")
    parser.add_argument("--mirror-to", action="append", default=[])
    parser.add_argument("--cluster", default="")
    parser.add_argument("--slow", action="store_true")
    parser.add_argument("--only", default="", help="the cases whose name contains this")
    arguments = parser.parse_args()
    slow("check perf", ["check", "perf", "--load", "s"])
    slow("check datascale", ["check", "datascale", "--load", "s"])
    return case.run(Context(arguments), arguments.only)


if __name__ == "__main__":
    sys.exit(main())
