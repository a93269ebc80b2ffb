// What is asked of mqtt from npm wherever it runs: each QoS both ways, retained values, wills, sessions over a restart.
//
// A face opens clients at the listener of a broker. What a client receives is in `inbox` as [topic, text, QoS, retain];
// `connected` waits for its next CONNACK and says whether a session was present.
'use strict';

const assert = require('node:assert/strict');
const path = require('node:path');
const { test } = require('node:test');
const { Broker, freePort } = require('./harness');

const CARRIERS = {
  mqtt: '',
  mqtts: 'tls',
  ws: 'websocket',
  wss: 'tls websocket',
};

/** The listener for a scheme, called so, with the certificate in `directory`; `more` is what else it says. */
function listener(scheme, port, directory, more = '') {
  const over = CARRIERS[scheme];
  const [cert, key] = ['server.pem', 'server.key'].map((name) => path.join(directory, name));
  const tls = over.includes('tls') ? `tls = { cert = "${cert}", key = "${key}" }\n` : '';
  const web = over.includes('websocket') ? 'transport = "websocket"\n' : '';
  return `[[mqtt.listeners]]\nname = "${scheme}"\nlisten = "127.0.0.1:${port}"\n${tls}${web}${more}`;
}

/** Where a scheme's listener is. */
function url(broker, scheme) {
  const address = broker.doors[`mqtt.${scheme}`];
  return CARRIERS[scheme].includes('websocket') ? `${scheme}://${address}/mqtt` : `${scheme}://${address}`;
}

/** What the session of a client that comes back is asked for with. */
function kept(protocolVersion) {
  const properties = protocolVersion === 5 ? { properties: { sessionExpiryInterval: 3600 } } : {};
  return { protocolVersion, ...properties, clientId: 'kitchen', clean: false };
}

const SCENARIOS = {
  async 'each QoS both ways'({ open, protocolVersion }) {
    const sender = await open({ protocolVersion });
    for (const granted of [0, 1, 2]) {
      const receiver = await open({ protocolVersion });
      assert.equal(await receiver.subscribe('shop/+/orders', granted), granted);
      for (const qos of [0, 1, 2]) {
        for (const text of ['smörgås', 'x'.repeat(300_000), 'last']) {
          await sender.publish('shop/1/orders', text, { qos });
          const expected = ['shop/1/orders', text, Math.min(qos, granted), false];
          assert.deepEqual(await receiver.inbox.next(`QoS ${qos}`), expected);
        }
      }
      await receiver.end();
    }
  },

  async 'retained values'({ open, protocolVersion }) {
    const [watcher, sender] = [await open({ protocolVersion }), await open({ protocolVersion })];
    await watcher.subscribe('temp/+', 2);
    for (const qos of [0, 1, 2]) {
      const topic = `temp/${qos}`;
      await sender.publish(topic, '20', { qos, retain: true });
      assert.deepEqual(await watcher.inbox.next('the live one'), [topic, '20', qos, false]);
      const late = await open({ protocolVersion });
      await late.subscribe('temp/+', 2);
      assert.deepEqual(await late.inbox.next('the retained value'), [topic, '20', qos, true]);
      await sender.publish(topic, '', { qos, retain: true });
      for (const client of [watcher, late]) {
        assert.deepEqual(await client.inbox.next('the deletion'), [topic, '', qos, false]);
      }
      await late.end();
    }
  },

  async wills({ open, protocolVersion }) {
    const watcher = await open({ protocolVersion });
    await watcher.subscribe('state/#', 2);
    for (const qos of [0, 1, 2]) {
      const will = { topic: `state/${qos}`, payload: 'gone', qos, retain: true };
      const lost = await open({ protocolVersion, will });
      await lost.lose();
      assert.deepEqual(await watcher.inbox.next('the will'), [will.topic, 'gone', qos, false]);
      const late = await open({ protocolVersion });
      await late.subscribe(will.topic, 2);
      assert.deepEqual(await late.inbox.next('the retained will'), [will.topic, 'gone', qos, true]);
      await late.end();
      const polite = await open({ protocolVersion, will });
      await polite.end();
      await watcher.publish('state/end', 'end', { qos: 1 });
      assert.deepEqual(await watcher.inbox.next('the end'), ['state/end', 'end', 1, false]);
    }
  },

  async 'a session that is away over a restart'({ open, protocolVersion, broker, crash }) {
    const away = await open(kept(protocolVersion));
    assert.equal(away.sessionPresent, false);
    await away.subscribe('shop/#', 2);
    await away.end();
    const expected = [];
    const send = async (sender, text, qos) => {
      await sender.publish('shop/1', text, { qos });
      expected.push(['shop/1', text, qos, false]);
    };
    const before = await open({ protocolVersion });
    for (let number = 0; number < 10; number += 1) await send(before, `missed ${number}`, 1 + (number % 2));
    await before.end();
    await broker.restart(crash);
    await send(await open({ protocolVersion }), 'after it', 2);
    const back = await open(kept(protocolVersion));
    assert.equal(back.sessionPresent, true);
    // A client may hand a message out with its PUBREL: their order is that of each QoS.
    const byQos = (a, b) => a[2] - b[2];
    const came = await back.inbox.take(expected.length, 'what was missed');
    assert.deepEqual(came.sort(byQos), expected.sort(byQos));
  },

  async 'a session that is there over a restart'({ open, protocolVersion, broker, crash }) {
    const stays = await open({ ...kept(protocolVersion), reconnectPeriod: 200 });
    await stays.subscribe('shop/#', 2);
    for (const text of ['before', 'meanwhile']) {
      const sender = await open({ protocolVersion });
      await sender.publish('shop/1', text, { qos: 2 });
      assert.deepEqual(await stays.inbox.next(text), ['shop/1', text, 2, false]);
      await sender.end();
      if (text === 'before') {
        await broker.restart(crash);
      }
    }
    assert.equal(await stays.connected(), true);
    // It publishes again, too.
    await stays.publish('shop/1', 'after', { qos: 2 });
    assert.deepEqual(await stays.inbox.next('its own'), ['shop/1', 'after', 2, false]);
  },
};

/** Defines the tests of a face over each of the schemes; `face.open(url, options)` opens a client that trusts the
 * authority in `face.directory`. */
function matrix(schemes, face) {
  for (const scheme of schemes) {
    for (const protocolVersion of [4, 5]) {
      for (const [name, scenario] of Object.entries(SCENARIOS)) {
        for (const crash of name.includes('restart') ? [false, true] : [false]) {
          test(`${scheme} v${protocolVersion}: ${name}${crash ? ', kill -9' : ''}`, async (t) => {
            const port = await freePort();
            const broker = await Broker.start(t, () => listener(scheme, port, face.directory));
            const open = async (options) => {
              const client = await face.open(url(broker, scheme), options);
              broker.closing.push(() => client.lose());
              client.sessionPresent = await client.connected();
              return client;
            };
            await scenario({ open, protocolVersion, broker, crash });
          });
        }
      }
    }
  }
}

module.exports = { listener, matrix, url };
