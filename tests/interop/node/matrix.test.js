// mqtt from npm in Node, over everything that it speaks.
'use strict';

const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { after } = require('node:test');
const mqtt = require('mqtt');
const { DEADLINE, Inbox, certify } = require('./harness');
const { matrix } = require('./matrix');

class Client {
  #client;
  #connacks = new Inbox();

  constructor(url, options) {
    this.inbox = new Inbox();
    this.#client = mqtt.connect(url, { reconnectPeriod: 0, connectTimeout: DEADLINE, ...options });
    this.#client.on('connect', (connack) => this.#connacks.put(connack.sessionPresent));
    this.#client.on('message', (topic, payload, packet) => {
      this.inbox.put([topic, payload.toString(), packet.qos, packet.retain]);
    });
    this.#client.on('error', () => {});
  }

  connected() {
    return this.#connacks.next('CONNACK');
  }

  async subscribe(filter, qos) {
    return (await this.#client.subscribeAsync(filter, { qos }))[0].qos;
  }

  publish(topic, text, options) {
    return this.#client.publishAsync(topic, text, options);
  }

  end() {
    return this.#client.endAsync();
  }

  /** Cuts the connection; it does not come back. */
  lose() {
    this.#client.options.reconnectPeriod = 0;
    this.#client.stream.destroy();
  }
}

const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'stafett-certificates-'));
certify(directory);
after(() => fs.rmSync(directory, { recursive: true }));
const ca = fs.readFileSync(path.join(directory, 'authority.pem'));
matrix(['mqtt', 'mqtts', 'ws', 'wss'], { directory, open: (url, options) => new Client(url, { ca, ...options }) });
