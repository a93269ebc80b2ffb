// The MQTT door with mqtt from npm, in both versions of the protocol.
'use strict';

const assert = require('node:assert/strict');
const { test } = require('node:test');
const { Broker, ask, within } = require('./harness');

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
