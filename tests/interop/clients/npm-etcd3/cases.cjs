// The Node client etcd3, one case a use of it.
//
//     NODE_PATH=.../node_modules node cases.cjs URL URL,URL,URL [ONLY]
//
// The first URL is a single server, the others are a cluster of three; ONLY is a part of a case's
// name.
'use strict';

const assert = require('node:assert/strict');
const crypto = require('node:crypto');
const etcd3 = require('etcd3');
const { eventually, main, test } = require('./harness.cjs');
const { proxy } = require('./proxy.cjs');

const [endpoint, cluster, only] = process.argv.slice(2);
const client = new etcd3.Etcd3({ hosts: endpoint });
// Isolation levels, which the package declares for TypeScript only.
const Isolation = { SerializableSnapshot: 0, Serializable: 1, RepeatableReads: 2, ReadCommitted: 3 };

/** The events of a watcher, as they come. */
function heard(watcher) {
  const events = [];
  watcher.on('put', (kv, before) => events.push(['put', String(kv.key), String(kv.value), before ? String(before.value) : null]));
  watcher.on('delete', (kv, before) => events.push(['delete', String(kv.key), before ? String(before.value) : null]));
  return events;
}

/** How many watchers the server has. */
async function watchers() {
  const metrics = await (await fetch(`${endpoint}/metrics`)).text();
  return Number(/^etcd_debugging_mvcc_watcher_total (\d+)/m.exec(metrics)[1]);
}

const sleep = ms => new Promise(resolve => setTimeout(resolve, ms));

// ---- keys

test('put, get and delete, as text, number, JSON and bytes', async () => {
  await client.put('a/text').value('one');
  await client.put('a/number').value(42);
  await client.put('a/json').value(JSON.stringify({ x: [1] }));
  await client.put('a/bytes').value(Buffer.from([0, 255, 10]));
  assert.equal(await client.get('a/text'), 'one');
  assert.equal(await client.get('a/number').number(), 42);
  assert.deepEqual(await client.get('a/json').json(), { x: [1] });
  assert.deepEqual(await client.get('a/bytes').buffer(), Buffer.from([0, 255, 10]));
  assert.equal(await client.get('a/none'), null);
  assert.equal(await client.get('a/text').exists(), true);
  assert.equal((await client.put('a/text').value('two').getPrevious()).value.toString(), 'one');
  const gone = await client.delete().key('a/text').getPrevious();
  assert.deepEqual(gone.map(kv => kv.value.toString()), ['two']);
  assert.equal((await client.delete().key('a/text')).deleted, '0');
});

test('ranges: prefix, in range, all, limit, sorted by each target, count and keys', async () => {
  for (const [key, value] of [['1', 'z'], ['2', 'y'], ['3', 'x']]) await client.put(`b/${key}`).value(value);
  await client.put('b/2').value('y');
  assert.deepEqual(await client.getAll().prefix('b/'), { 'b/1': 'z', 'b/2': 'y', 'b/3': 'x' });
  assert.deepEqual(await client.getAll().inRange({ start: 'b/1', end: 'b/3' }).keys(), ['b/1', 'b/2']);
  assert.deepEqual(await client.getAll().inRange(new etcd3.Range('b/2', 'b/4')).keys(), ['b/2', 'b/3']);
  assert.equal(await client.getAll().prefix('b/').count(), 3);
  assert.ok((await client.getAll().all().count()) >= 3);
  const cut = await client.getAll().prefix('b/').limit(2).exec();
  assert.deepEqual([cut.kvs.length, cut.count, cut.more], [2, '3', true]);
  for (const [target, last] of [['Key', '3'], ['Version', '2'], ['Create', '3'], ['Mod', '2'], ['Value', '1']]) {
    const keys = await client.getAll().prefix('b/').sort(target, 'Descend').keys();
    assert.equal(keys[0], `b/${last}`, target);
  }
  assert.equal((await client.delete().inRange({ prefix: 'b/' })).deleted, '3');
});

test('reads at a revision, between revisions, serializable', async () => {
  const first = (await client.put('c/1').value('old')).header.revision;
  const second = (await client.put('c/1').value('new')).header.revision;
  await client.put('c/2').value('newest');
  assert.equal(await client.get('c/1').revision(first), 'old');
  assert.equal(await client.get('c/1').serializable(true), 'new');
  const of = () => client.getAll().prefix('c/');
  assert.deepEqual(await of().minModRevision(Number(second) + 1).keys(), ['c/2']);
  assert.deepEqual(await of().maxModRevision(second).keys(), ['c/1']);
  assert.deepEqual(await of().minCreateRevision(second).keys(), ['c/2']);
  assert.deepEqual(await of().maxCreateRevision(first).keys(), ['c/1']);
  await assert.rejects(client.get('c/1').revision(1e12).exec(), /required revision is a future revision/);
});

test('a namespace sees and writes only below its prefix', async () => {
  const space = client.namespace('ns/');
  await space.put('k').value('v');
  await space.namespace('in/').put('ner').value('w');
  assert.equal(await client.get('ns/k'), 'v');
  assert.deepEqual(await space.getAll(), { k: 'v', 'in/ner': 'w' });
  const watcher = await space.watch().prefix('').create();
  const events = heard(watcher);
  await client.put('beside').value('x');
  await client.put('ns/k').value('2');
  await eventually('an event', () => events.length);
  assert.deepEqual(events.map(event => event.slice(0, 3)), [['put', 'k', '2']]);
  await watcher.cancel();
  assert.equal((await space.delete().all()).deleted, '2');
  assert.equal(await client.get('beside'), 'x');
});

test('refusals become the errors of their codes', async () => {
  await assert.rejects(client.put('').value('x').exec(), etcd3.GRPCInvalidArgumentError);
  await assert.rejects(client.put('x').value('y').lease('1234').exec(), etcd3.EtcdLeaseInvalidError);
  await assert.rejects(client.kv.compact({ revision: '1000000000' }), etcd3.GRPCOutOfRangeError);
  const call = client.put('x').value(Buffer.alloc(1_600_000)).exec();
  await assert.rejects(call, /etcdserver: request is too large/);
});

// ---- transactions

test('if-then-else compares value, version, create, mod and lease', async () => {
  const lease = client.lease(60);
  const at = (await lease.put('t/1').value('m')).header.revision;
  const id = await lease.grant();
  const all = client
    .if('t/1', 'Value', '==', 'm').and('t/1', 'Value', '>', 'a').and('t/1', 'Value', '<', 'z')
    .and('t/1', 'Version', '==', 1).and('t/1', 'Create', '==', at).and('t/1', 'Mod', '!=', Number(at) + 1)
    .and('t/1', 'Lease', '==', id).and('t/none', 'Create', '==', 0)
    .then(client.put('t/2').value('yes'), client.get('t/2'), client.delete().key('t/1'));
  const won = await all.commit();
  assert.equal(won.succeeded, true);
  assert.deepEqual(won.responses.map(answer => answer.response), ['response_put', 'response_range', 'response_delete_range']);
  assert.equal(won.responses[1].response_range.kvs[0].value.toString(), 'yes');
  assert.equal(won.header.revision, String(Number(at) + 1));
  const lost = await client.if('t/1', 'Create', '>', 0).then(client.put('t/2').value('no')).else(client.get('t/2')).commit();
  assert.equal(lost.succeeded, false);
  assert.equal(lost.responses[0].response_range.kvs[0].mod_revision, won.header.revision);
  await lease.revoke();
});

for (const [name, isolation] of Object.entries(Isolation)) {
  test(`software transactions, ${name}: eight at once add to a counter`, async () => {
    const key = `stm/${name}`;
    await client.put(key).value(0);
    const add = () => client.stm({ retries: 500, isolation, prefetch: isolation < 2 ? [key] : [] }).transact(async tx => {
      const count = await tx.get(key).number();
      await tx.put(key).value(count + 1);
      assert.equal(await tx.get(key).number(), count + 1);
    });
    await Promise.all(Array.from({ length: 8 }, add));
    const count = await client.get(key).number();
    // ReadCommitted checks nothing at the end, so increments are lost by design.
    if (name === 'ReadCommitted') assert.ok(count >= 1 && count <= 8, String(count));
    else assert.equal(count, 8);
  });
}

// Not with SerializableSnapshot: there this client refuses, on etcd too, to write two keys that
// were last written at different revisions.
for (const name of ['Serializable', 'RepeatableReads']) {
  test(`software transactions, ${name}: eight at once move an amount about`, async () => {
    const key = account => `stm/${name}/${account % 4}`;
    await Promise.all([0, 1, 2, 3].map(account => client.put(key(account)).value(100)));
    const move = (_, i) => client.stm({ retries: 500, isolation: Isolation[name] }).transact(async tx => {
      const [from, to] = [await tx.get(key(i)).number(), await tx.get(key(i + 1)).number()];
      await Promise.all([tx.put(key(i)).value(from - 1), tx.put(key(i + 1)).value(to + 1)]);
    });
    await Promise.all(Array.from({ length: 8 }, move));
    const amounts = Object.values(await client.getAll().prefix(`stm/${name}/`).numbers());
    assert.deepEqual(amounts, [100, 100, 100, 100]);
  });
}

test('a software transaction that cannot win gives up', async () => {
  await client.put('stm/c').value(0);
  const loses = client.stm({ retries: 1 }).transact(async tx => {
    await tx.get('stm/c');
    await client.put('stm/c').value(Math.random());
    await tx.put('stm/c').value('mine');
  });
  await assert.rejects(loses, etcd3.STMConflictError);
  await client.stm().transact(async tx => {
    await tx.get('stm/c');
    await tx.delete().key('stm/c');
  });
  assert.equal(await client.get('stm/c'), null);
});

// ---- watches

test('watch: a key and a prefix, with the pair before, without deletes', async () => {
  const one = await client.watch().key('w/1').withPreviousKV().create();
  const all = await client.watch().prefix('w/').only('put').create();
  const range = await client.watch().inRange({ start: 'w/2', end: 'w/3' }).only('delete').create();
  const [ofOne, ofAll, ofRange] = [heard(one), heard(all), heard(range)];
  await client.put('w/1').value('a');
  await client.put('w/1').value('b');
  await client.put('w/2').value('c');
  await client.delete().prefix('w/');
  await client.put('w/end').value('.');
  await eventually('the last event', () => ofAll.some(event => event[1] === 'w/end') && ofRange.length && ofOne.length === 3);
  assert.deepEqual(ofOne, [['put', 'w/1', 'a', null], ['put', 'w/1', 'b', 'a'], ['delete', 'w/1', 'b']]);
  assert.deepEqual(ofAll.map(event => event[1]), ['w/1', 'w/1', 'w/2', 'w/end']);
  assert.deepEqual(ofRange, [['delete', 'w/2', null]]);
  await Promise.all([one.cancel(), all.cancel(), range.cancel()]);
  await client.put('w/1').value('after');
  await sleep(100);
  assert.equal(ofOne.length, 3);
});

test('watch from a revision brings history first', async () => {
  const start = (await client.put('wh').value('1')).header.revision;
  await client.put('wh').value('2');
  const watcher = await client.watch().key('wh').startRevision(start).create();
  const events = heard(watcher);
  await client.put('wh').value('3');
  await eventually('three events', () => events.length === 3);
  assert.deepEqual(events.map(event => event[2]), ['1', '2', '3']);
  await watcher.cancel();
});

test('watch resumes where it was when its connection is cut', async () => {
  const before = await proxy(endpoint);
  const through = new etcd3.Etcd3({ hosts: before.url });
  const watcher = await through.watch().prefix('wr/').create();
  const events = heard(watcher);
  let connected = 0;
  watcher.on('connected', () => (connected += 1));
  for (let round = 0; round < 5; round += 1) {
    await client.put(`wr/${round}`).value('before the cut');
    await eventually(`event ${2 * round}`, () => events.length === 2 * round + 1);
    const cut = new Promise(resolve => watcher.once('disconnected', resolve));
    before.cut();
    await cut;
    await client.put(`wr/${round}`).value('while it was cut');
    await eventually(`event ${2 * round + 1}`, () => events.length === 2 * round + 2);
  }
  assert.deepEqual(events.map(event => event[1]), [0, 0, 1, 1, 2, 2, 3, 3, 4, 4].map(round => `wr/${round}`));
  assert.equal(connected, 5);
  await watcher.cancel();
  through.close();
  before.close();
});

test('watch of compacted history ends with an error', async () => {
  const start = (await client.put('wc').value('1')).header.revision;
  await client.put('wc').value('2');
  await client.kv.compact({ revision: String(Number(start) + 1) });
  const watcher = client.watch().key('wc').startRevision(start).watcher();
  const error = await new Promise(resolve => watcher.on('error', resolve));
  assert.match(String(error), /Watcher canceled/);
});

test('two hundred watchers on one stream each hear their own key', async () => {
  const watchers = await Promise.all(Array.from({ length: 200 }, (_, i) => client.watch().key(`wm/${i}`).create()));
  const events = watchers.map(heard);
  await Promise.all(watchers.map((_, i) => client.put(`wm/${i}`).value(i)));
  await eventually('all events', () => events.every(of => of.length === 1));
  events.forEach((of, i) => assert.deepEqual(of[0].slice(0, 3), ['put', `wm/${i}`, String(i)]));
  await Promise.all(watchers.map(watcher => watcher.cancel()));
});

// ---- leases, locks, elections

test('a lease is kept alive by itself, and takes its keys along when revoked', async () => {
  const lease = client.lease(4);
  let kept = 0;
  lease.on('keepaliveSucceeded', () => (kept += 1));
  await lease.put('l/1').value('x');
  await sleep(5500);
  assert.equal(await client.get('l/1'), 'x');
  assert.ok(kept >= 2, `kept alive ${kept} times`);
  await lease.keepaliveOnce();
  const id = await lease.grant();
  const left = await client.leaseClient.leaseTimeToLive({ ID: id, keys: true });
  assert.deepEqual([left.grantedTTL, left.keys.map(String)], ['4', ['l/1']]);
  assert.ok((await client.leaseClient.leaseLeases()).leases.some(lease => lease.ID === id));
  await lease.revoke();
  assert.equal(await client.get('l/1'), null);
  assert.equal((await client.leaseClient.leaseTimeToLive({ ID: id })).TTL, '-1');
});

test('a lease that was revoked elsewhere is told as lost', async () => {
  const lease = client.lease(2);
  const id = await lease.grant();
  const lost = new Promise(resolve => lease.on('lost', resolve));
  await client.leaseClient.leaseRevoke({ ID: id });
  assert.ok((await lost) instanceof etcd3.EtcdLeaseInvalidError);
  assert.equal(lease.revoked(), true);
});

test('a released lease expires with its keys', async () => {
  const lease = client.lease(2, { autoKeepAlive: false });
  await lease.put('l/2').value('x');
  const watcher = await client.watch().key('l/2').create();
  const events = heard(watcher);
  lease.release();
  await eventually('it expires', () => events.length);
  assert.deepEqual(events, [['delete', 'l/2', null]]);
  await watcher.cancel();
});

test('lock: one holder, refused to a second, free after its release', async () => {
  const first = await client.lock('lock').ttl(10).acquire();
  await assert.rejects(client.lock('lock').acquire(), etcd3.EtcdLockFailedError);
  assert.ok(await first.leaseId());
  await first.release();
  assert.equal(await client.lock('lock').do(() => 'done'), 'done');
  await assert.rejects(client.lock('lock').do(() => Promise.reject(new Error('mine'))), /mine/);
  await (await client.lock('lock').acquire()).release();
});

test('election: a leader, an observer, a proclamation, a successor', async () => {
  const election = client.election('e', 5);
  const one = election.campaign('one');
  await one.wait();
  // This client's observer can miss the first leader, on etcd too; so it comes after it.
  const observer = await election.observe();
  await eventually('it hears of one', () => observer.leader() === 'one');
  const seen = [];
  observer.on('change', value => seen.push(value));
  assert.equal(await election.leader(), 'one');
  const two = election.campaign('two');
  let elected = false;
  two.on('elected', () => (elected = true));
  await two.getCampaignKey();
  await one.proclaim('uno');
  await eventually('it hears of uno', () => seen.includes('uno'));
  assert.equal(elected, false);
  await one.resign();
  await eventually('two leads', () => elected);
  await eventually('it hears of two', () => observer.leader() === 'two');
  await assert.rejects(one.proclaim('again'), etcd3.NotCampaigningError);
  await two.resign();
  await eventually('nobody leads', async () => (await election.leader()) === undefined);
  assert.equal(seen[0], 'uno');
  await observer.cancel();
});

test('election: a candidate whose lease is lost gives way', async () => {
  const election = client.election('e2', 2);
  const one = election.campaign('one');
  await one.wait();
  const before = await watchers();
  const two = election.campaign('two');
  await two.getCampaignKey();
  // The package listens a moment after its watch is created, and misses what comes with that.
  await eventually('the second one waits', async () => (await watchers()) > before);
  const lost = new Promise(resolve => one.on('error', resolve));
  const key = await one.getCampaignKey();
  const { kvs } = await client.get(key).exec();
  await client.leaseClient.leaseRevoke({ ID: kvs[0].lease });
  await two.wait();
  assert.equal(await election.leader(), 'two');
  assert.ok((await lost) instanceof Error);
  await two.resign();
});

// ---- the server

test('status, hashes, defragment, members', async () => {
  const status = await client.maintenance.status();
  const { members } = await client.cluster.memberList({});
  assert.equal(status.leader, members[0].ID);
  assert.match(status.version, /^3\./);
  assert.deepEqual(await client.maintenance.hash(), await client.maintenance.hash());
  await client.put('h').value('x');
  await client.maintenance.defragment();
  assert.equal(await client.get('h'), 'x');
});

test('an alarm stops writes until it is disarmed', async () => {
  const { ID: memberID } = (await client.cluster.memberList({})).members[0];
  const alarm = action => client.maintenance.alarm({ action, memberID, alarm: etcd3.AlarmType.Nospace });
  await alarm(etcd3.AlarmAction.Activate);
  try {
    assert.equal((await client.maintenance.alarm({ action: etcd3.AlarmAction.Get })).alarms.length, 1);
    // A client of its own: after such a refusal this one rests for a while, all calls of it.
    const other = new etcd3.Etcd3({ hosts: endpoint });
    await assert.rejects(other.put('x').value('y').exec(), etcd3.GRPCResourceExhastedError);
    other.close();
  } finally {
    await alarm(etcd3.AlarmAction.Deactivate);
  }
  assert.deepEqual((await client.maintenance.alarm({ action: etcd3.AlarmAction.Get })).alarms, []);
  await client.put('x').value('y');
});

test('a snapshot: whole pages, and their digest at the end', async () => {
  await client.put('snap').value('shot');
  const stream = await client.maintenance.snapshot();
  const chunks = [];
  await new Promise((resolve, reject) => {
    stream.on('data', chunk => chunks.push(chunk));
    stream.on('end', resolve);
    stream.on('error', reject);
  });
  const file = Buffer.concat(chunks.map(chunk => chunk.blob));
  const [data, digest] = [file.subarray(0, -32), file.subarray(-32)];
  assert.equal(data.length % 512, 0);
  assert.deepEqual(crypto.createHash('sha256').update(data).digest(), digest);
  assert.equal(chunks.at(-1).remaining_bytes, '0');
});

test('three hosts: what was written through one is read through all', async () => {
  const many = new etcd3.Etcd3({ hosts: cluster.split(',') });
  await many.put('three').value('hosts');
  for (const host of cluster.split(',')) {
    const one = new etcd3.Etcd3({ hosts: host });
    assert.equal(await one.get('three'), 'hosts');
    one.close();
  }
  assert.equal((await many.cluster.memberList({})).members.length, 3);
  many.close();
});

test('a hundred calls at once on one connection', async () => {
  await Promise.all(Array.from({ length: 100 }, (_, i) => client.put(`many/${i}`).value(i)));
  assert.equal(await client.getAll().prefix('many/').count(), 100);
});

main(only);
