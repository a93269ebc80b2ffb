// mqtt from npm in a headless Chromium, over WebSocket.
'use strict';

const assert = require('node:assert/strict');
const { test } = require('node:test');
const { Broker } = require('../harness');
const { listener, matrix, url } = require('../matrix');
const { Chromium } = require('./chromium');

const chromium = new Chromium();
const unsuspecting = new Chromium({ trusting: false });
matrix(['ws', 'wss'], chromium);

for (const scheme of ['ws', 'wss']) {
  test(`${scheme}: pages of an origin that is not allowed are refused`, async (t) => {
    const { directory, origin, stranger } = chromium;
    const origins = `websocket.origins = ["${origin}"]\n`;
    const broker = await Broker.start(t, () => listener(scheme, 0, directory, origins));
    const refused = await chromium.open(url(broker, scheme), { protocolVersion: 5 }, stranger);
    assert.equal(await refused.ended(), false);
    const allowed = await chromium.open(url(broker, scheme), { protocolVersion: 5 }, origin);
    assert.equal(await allowed.connected(), false);
    await allowed.end();
    assert.equal(await allowed.ended(), true);
  });
}

test('a page whose browser does not trust the authority is not connected', async (t) => {
  const broker = await Broker.start(t, () => listener('wss', 0, chromium.directory));
  const client = await unsuspecting.open(url(broker, 'wss'), { protocolVersion: 5 });
  assert.equal(await client.ended(), false);
});
