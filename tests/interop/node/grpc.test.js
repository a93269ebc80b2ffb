// The gRPC door with @grpc/grpc-js: the same as the tests in Python, in short.
'use strict';

const assert = require('node:assert/strict');
const { test } = require('node:test');
const { Broker, Stream, ask, call, details, grpc, refused } = require('./harness');

const payloads = (messages) => messages.map((item) => item.message.payload.toString());
const numbered = (count) => Array.from({ length: count }, (_, number) => String(number));

async function createQueue(client, queue) {
  return (await ask(client, 'CreateQueue', { queue })).queue;
}

function enqueue(client, queue, payload, fields = {}) {
  return ask(client, 'Enqueue', { queue, message: { payload: Buffer.from(payload), ...fields } });
}

async function receive(client, queue, fields = {}) {
  return (await ask(client, 'Receive', { queue, wait: { seconds: 10 }, ...fields })).messages;
}

test('a queue: enqueue, receive, acknowledge', async (t) => {
  const queues = (await Broker.start(t)).client('QueueService');
  await createQueue(queues, { name: 'orders' });
  const properties = [
    { key: 'b', value: '1' },
    { key: 'a', value: '2' },
    { key: 'b', value: '1' },
  ];
  const stored = await enqueue(queues, 'orders', 'coffee', { properties, content_type: 'text/plain' });
  const [leased] = await receive(queues, 'orders');
  assert.equal(leased.origin.message_id, stored.message_id);
  assert.equal(leased.message.payload.toString(), 'coffee');
  assert.deepEqual(leased.message.properties, properties);
  assert.equal(leased.delivery_attempt, 1);
  const settle = { queue: 'orders', lease_tokens: [leased.lease_token] };
  assert.deepEqual((await ask(queues, 'Acknowledge', settle)).failures, []);
  const [failure] = (await ask(queues, 'Acknowledge', settle)).failures;
  assert.equal(failure.error.code, grpc.status.FAILED_PRECONDITION);
});

test('a message that fails twice goes to the dead letter queue', async (t) => {
  const queues = (await Broker.start(t)).client('QueueService');
  await createQueue(queues, { name: 'graves' });
  await createQueue(queues, { name: 'orders', max_deliveries: 2, dead_letter_queue: 'graves' });
  await enqueue(queues, 'orders', 'unlucky');
  for (const attempt of [1, 2]) {
    const [leased] = await receive(queues, 'orders');
    assert.equal(leased.delivery_attempt, attempt);
    const nack = { queue: 'orders', lease_tokens: [leased.lease_token], kind: 'NACK_KIND_FAILED' };
    assert.deepEqual((await ask(queues, 'Nack', nack)).failures, []);
  }
  const [dead] = await receive(queues, 'graves');
  assert.equal(dead.message.payload.toString(), 'unlucky');
  assert.equal(dead.dead_letter.source_queue, 'orders');
});

test('Produce and Consume: batches in, a window out', async (t) => {
  const queues = (await Broker.start(t)).client('QueueService');
  await createQueue(queues, { name: 'orders' });
  const produce = new Stream(queues.Produce(), { open: { queue: 'orders' } });
  await produce.expect('opened');
  const total = 500;
  for (let batch = 1; batch <= total / 50; batch += 1) {
    const messages = numbered(total)
      .slice((batch - 1) * 50, batch * 50)
      .map((number) => ({ payload: Buffer.from(number) }));
    produce.send({ batch: { batch_id: batch, messages } });
  }
  for (let through = 0; through < total / 50; ) {
    const ack = await produce.expect('ack');
    assert.deepEqual(ack.errors, []);
    through = ack.through_batch_id;
  }
  produce.call.end();
  await produce.expect('end');

  const open = { queue: 'orders', window: { max_outstanding_messages: 20 } };
  const consume = new Stream(queues.Consume(), { open });
  assert.equal((await consume.expect('opened')).window.max_outstanding_messages, 20);
  const received = [];
  let id = 0;
  while (received.length < total) {
    const messages = await consume.messages(20);
    received.push(...messages);
    id += 1;
    consume.send({ ack: { ack_id: id, delivery_ids: messages.map((message) => message.delivery_id) } });
  }
  assert.deepEqual(payloads(received), numbered(total));
  consume.send({ drain: {} });
  for (let through = 0; through < id; ) {
    const results = await consume.expect('results');
    assert.deepEqual(results.failures, []);
    through = results.acked_through;
  }
  await consume.expect('end');
});

test('publish and subscribe within a window', async (t) => {
  const broker = await Broker.start(t);
  const pubsub = broker.client('PubSubService');
  const open = { filters: [{ filter: 'shop/+/orders' }], window: { max_outstanding_messages: 5 } };
  const stream = new Stream(broker.client('PubSubService').SubscribeStream(), { open });
  assert.ok((await stream.expect('opened')).session_id);
  for (const number of numbered(20)) {
    const message = { topic: 'shop/1/orders', payload: Buffer.from(number) };
    assert.equal((await ask(pubsub, 'Publish', { message })).matched_subscribers, 1);
  }
  const received = [];
  for (let id = 1; received.length < 20; id += 1) {
    const deliveries = await stream.messages(5);
    received.push(...deliveries);
    stream.send({ ack: { ack_id: id, delivery_ids: deliveries.map((delivery) => delivery.delivery_id) } });
  }
  assert.deepEqual(payloads(received), numbered(20));
  await stream.cancel();
});

test('a retained value comes first and can be deleted', async (t) => {
  const broker = await Broker.start(t);
  const pubsub = broker.client('PubSubService');
  const topic = 'room/1';
  await ask(pubsub, 'Publish', { message: { topic, payload: Buffer.from('20'), retain: true } });
  const open = { filters: [{ filter: 'room/#' }] };
  const stream = new Stream(pubsub.SubscribeStream(), { open });
  await stream.expect('opened');
  const [first] = await stream.messages(1);
  assert.ok(first.retained);
  assert.deepEqual(payloads([first]), ['20']);
  await ask(pubsub, 'Publish', { message: { topic, retain: true } });
  assert.equal((await refused(pubsub, 'GetRetained', { topic })).code, grpc.status.NOT_FOUND);
  await stream.cancel();
});

test('a refusal carries google.rpc details', async (t) => {
  const queues = (await Broker.start(t)).client('QueueService');
  const bad = await refused(queues, 'CreateQueue', { queue: { name: 'no/slash' } });
  assert.equal(bad.code, grpc.status.INVALID_ARGUMENT);
  assert.equal(details(bad).BadRequest.field_violations[0].field, 'queue.name');
  await createQueue(queues, { name: 'small', max_messages: 1 });
  await enqueue(queues, 'small', 'fits');
  const full = await refused(queues, 'Enqueue', { queue: 'small', message: { payload: Buffer.from('x') } });
  assert.equal(full.code, grpc.status.RESOURCE_EXHAUSTED);
  assert.equal(details(full).ErrorInfo.reason, 'QUEUE_FULL');
  assert.ok(details(full).RetryInfo && details(full).QuotaFailure);
});

test('gzip, metadata and deadlines', async (t) => {
  const broker = await Broker.start(t);
  // 2 is gzip.
  const queues = broker.client('QueueService', { 'grpc.default_compression_algorithm': 2 });
  await createQueue(queues, { name: 'packed' });
  const payload = 'much of the same, '.repeat(20_000);
  await enqueue(queues, 'packed', payload);
  const [leased] = await receive(queues, 'packed', { auto_ack: true });
  assert.equal(leased.message.payload.toString(), payload);

  const metadata = new grpc.Metadata();
  metadata.set('x-request-id', 'interop-8');
  const answered = await call(broker.client('AdminService'), 'GetServerInfo', {}, { metadata });
  assert.deepEqual(answered.metadata.get('x-request-id'), ['interop-8']);

  const late = await refused(queues, 'Receive', { queue: 'packed', wait: { seconds: 60 } }, { deadline: 300 });
  assert.equal(late.code, grpc.status.DEADLINE_EXCEEDED);
});
