// The MQTT door with mqtt from npm, in both versions of the protocol.
'use strict';

const assert = require('node:assert/strict');
const { execFileSync } = require('node:child_process');
const crypto = require('node:crypto');
const { once } = require('node:events');
const path = require('node:path');
const { test } = require('node:test');
const mqtt = require('mqtt');
const { Broker, ask, within } = require('./harness');

function users(directory) {
  const file = path.join(directory, 'users');
  execFileSync(process.env.STAFETT_BINARY, ['passwd', file, 'ann'], { input: 'pässword\n', stdio: ['pipe', 'ignore', 'ignore'] });
  return `[mqtt]\nusers = "${file}"\n`;
}

/** What becomes of a client: its CONNACK, or the error. */
async function greeted(t, client) {
  t.after(() => client.endAsync(true));
  const refused = once(client, 'error').then(([error]) => error);
  return within('CONNACK', Promise.race([once(client, 'connect').then(([connack]) => connack), refused]));
}

/** The client's side of SCRAM-SHA-256 (RFC 5802) in the words of MQTT. */
class Scram {
  constructor(user, password) {
    this.password = password;
    this.nonce = crypto.randomBytes(18).toString('base64');
    this.bare = `n=${user},r=${this.nonce}`;
  }

  get properties() {
    return { authenticationMethod: 'SCRAM-SHA-256', authenticationData: Buffer.from(`n,,${this.bare}`) };
  }

  answer(packet, callback) {
    const challenge = packet.properties.authenticationData.toString();
    const [nonce, salt, iterations] = challenge.split(',').map((field) => field.slice(2));
    if (!nonce.startsWith(this.nonce)) return callback(new Error('another nonce'));
    const hmac = (key, text) => crypto.createHmac('sha256', key).update(text).digest();
    const salted = crypto.pbkdf2Sync(this.password, Buffer.from(salt, 'base64'), Number(iterations), 32, 'sha256');
    const key = hmac(salted, 'Client Key');
    const last = `c=biws,r=${nonce}`;
    const signed = `${this.bare},${challenge},${last}`;
    const signature = hmac(crypto.createHash('sha256').update(key).digest(), signed);
    const proof = Buffer.from(key.map((byte, at) => byte ^ signature[at])).toString('base64');
    this.signature = `v=${hmac(hmac(salted, 'Server Key'), signed).toString('base64')}`;
    const properties = { ...this.properties, authenticationData: Buffer.from(`${last},p=${proof}`) };
    return callback(undefined, { cmd: 'auth', reasonCode: 0x18, properties });
  }
}

for (const protocolVersion of [4, 5]) {
  const version = { protocolVersion };

  test(`v${protocolVersion}: QoS 0, 1 and 2 in order`, async (t) => {
    const broker = await Broker.start(t);
    const [receiver, sender] = [await broker.mqtt(version), await broker.mqtt(version)];
    for (const qos of [0, 1, 2]) {
      const topic = `a/${qos}`;
      const [granted] = await receiver.subscribeAsync(topic, { qos });
      assert.equal(granted.qos, qos);
      const sent = Array.from({ length: 50 }, (_, number) => String(number));
      await Promise.all(sent.map((payload) => sender.publishAsync(topic, payload, { qos })));
      const received = await receiver.inbox.take(50, 'message');
      assert.deepEqual(received.map(([, payload]) => payload), sent);
      assert.deepEqual(new Set(received.map(([, , packet]) => packet.qos)), new Set([qos]));
    }
  });

  test(`v${protocolVersion}: a user name and a password`, async (t) => {
    const broker = await Broker.start(t, users);
    const connect = (options) => mqtt.connect(`mqtt://${broker.doors.mqtt}`, { ...version, reconnectPeriod: 0, ...options });
    const connack = await greeted(t, connect({ username: 'ann', password: 'pässword' }));
    assert.equal(connack.cmd, 'connack');
    const wrong = await greeted(t, connect({ username: 'ann', password: 'password' }));
    assert.equal(wrong.code, protocolVersion === 5 ? 0x86 : 4);
    const nameless = await greeted(t, connect({}));
    assert.equal(nameless.code, protocolVersion === 5 ? 0x87 : 5);
  });

  test(`v${protocolVersion}: a queue under its name`, async (t) => {
    const broker = await Broker.start(t);
    await ask(broker.client('QueueService'), 'CreateQueue', { queue: { name: 'orders' } });
    const [worker, sender] = [await broker.mqtt(version), await broker.mqtt(version)];
    await sender.publishAsync('$queue/orders', 'coffee', { qos: 1 });
    const [granted] = await worker.subscribeAsync('$queue/orders', { qos: 1 });
    assert.equal(granted.qos, 1);
    assert.equal((await worker.inbox.next('an order'))[1], 'coffee');
  });
}

test('v5: SCRAM-SHA-256 by enhanced authentication', async (t) => {
  const broker = await Broker.start(t, users);
  const connect = (scram) => {
    const options = { protocolVersion: 5, reconnectPeriod: 0, properties: scram.properties };
    const client = mqtt.connect(`mqtt://${broker.doors.mqtt}`, options);
    client.handleAuth = (packet, callback) => scram.answer(packet, callback);
    return client;
  };
  const scram = new Scram('ann', 'pässword');
  const client = connect(scram);
  const { properties } = await greeted(t, client);
  assert.equal(properties.authenticationMethod, 'SCRAM-SHA-256');
  assert.equal(properties.authenticationData.toString(), scram.signature);
  const received = once(client, 'message');
  await client.subscribeAsync('a', { qos: 1 });
  await client.publishAsync('a', 'authenticated', { qos: 1 });
  assert.equal((await within('a message', received))[1].toString(), 'authenticated');
  for (const wrong of [new Scram('ann', 'password'), new Scram('nobody', 'pässword')]) {
    assert.equal((await greeted(t, connect(wrong))).code, 0x87);
  }
});

test('v5: properties and topic aliases', async (t) => {
  const broker = await Broker.start(t);
  const receiver = await broker.mqtt({ protocolVersion: 5, properties: { topicAliasMaximum: 5 } });
  const sender = await broker.mqtt({ protocolVersion: 5, autoUseTopicAlias: true, autoAssignTopicAlias: true });
  await receiver.subscribeAsync('a/#', { qos: 1, properties: { subscriptionIdentifier: 7 } });
  const properties = {
    payloadFormatIndicator: true,
    messageExpiryInterval: 60,
    contentType: 'text/plain',
    responseTopic: 'answers',
    correlationData: Buffer.from([0, 255]),
    userProperties: { b: ['1', '1'], a: '2' },
  };
  for (let number = 0; number < 3; number += 1) {
    await sender.publishAsync('a/long/topic', String(number), { qos: 1, properties: { ...properties } });
  }
  for (const [topic, payload, packet] of await receiver.inbox.take(3, 'message')) {
    assert.equal(topic, 'a/long/topic');
    assert.match(payload, /^[012]$/);
    const said = packet.properties;
    assert.deepEqual(said.userProperties.b, ['1', '1']);
    assert.equal(said.userProperties.a, '2');
    assert.equal(said.contentType, 'text/plain');
    assert.equal(said.responseTopic, 'answers');
    assert.deepEqual([...said.correlationData], [0, 255]);
    assert.equal(said.subscriptionIdentifier, 7);
    assert.ok(said.messageExpiryInterval >= 50 && said.messageExpiryInterval <= 60);
  }
});

test('v5: a shared subscription divides the messages', async (t) => {
  const broker = await Broker.start(t);
  const version = { protocolVersion: 5 };
  const members = [await broker.mqtt(version), await broker.mqtt(version)];
  const sender = await broker.mqtt(version);
  const received = [];
  const all = new Promise((resolve) => {
    for (const member of members) {
      member.on('message', (_topic, payload) => {
        if (received.push(payload.toString()) === 40) resolve();
      });
    }
  });
  for (const member of members) await member.subscribeAsync('$share/crew/jobs/#', { qos: 1 });
  const sent = Array.from({ length: 40 }, (_, number) => String(number));
  for (const payload of sent) await sender.publishAsync('jobs/1', payload, { qos: 1 });
  await within('all messages', all);
  assert.deepEqual(received.sort(), sent.sort());
});
