// A headless Chromium with MQTT clients in its pages.
'use strict';

const { execFileSync } = require('node:child_process');
const { once } = require('node:events');
const fs = require('node:fs');
const http = require('node:http');
const os = require('node:os');
const path = require('node:path');
const { after, before } = require('node:test');
const { chromium } = require('playwright-core');
const { DEADLINE, Inbox, certify, within } = require('../harness');

const BUNDLE = path.join(path.dirname(require.resolve('mqtt/package.json')), 'dist', 'mqtt.min.js');

/** What runs in a page: a client that tells what happens to it. */
function connect({ id, url, options }) {
  const client = window.mqtt.connect(url, options);
  window[id] = client;
  client.on('connect', (connack) => window.tell(id, 'connect', connack.sessionPresent));
  client.on('message', (topic, payload, packet) => {
    window.tell(id, 'message', [topic, payload.toString(), packet.qos, packet.retain]);
  });
  client.on('close', () => window.tell(id, 'close'));
  client.on('error', () => {});
}

/** A page in which clients are made. */
class Page {
  #page;
  #clients = new Map();

  static async open(context, origin) {
    const page = new Page();
    page.#page = await context.newPage();
    await page.#page.goto(`${origin}/`);
    await page.#page.exposeFunction('tell', (id, event, told) => page.#clients.get(id)[event](told));
    return page;
  }

  async client(url, options) {
    const id = `client${this.#clients.size}`;
    const client = new Client(this, id);
    this.#clients.set(id, client);
    const all = { reconnectPeriod: 0, connectTimeout: DEADLINE, ...options };
    await this.run('a client', connect, { id, url, options: all });
    return client;
  }

  run(what, script, argument) {
    return within(what, this.#page.evaluate(script, argument));
  }

  /** As a user closes it. */
  close() {
    return this.#page.close();
  }
}

/** A client in a page. */
class Client {
  #id;
  #connacks = new Inbox();
  #ends = new Inbox();
  #connected = false;

  constructor(page, id) {
    this.page = page;
    this.inbox = new Inbox();
    this.#id = id;
  }

  connect(sessionPresent) {
    this.#connected = true;
    this.#connacks.put(sessionPresent);
  }

  message(message) {
    this.inbox.put(message);
  }

  close() {
    this.#ends.put(this.#connected);
  }

  connected() {
    return this.#connacks.next('CONNACK');
  }

  /** Waits for the end of its connection; says whether it ever was connected. */
  ended() {
    return this.#ends.next('the end of the connection');
  }

  #ask(method, ...args) {
    const script = ([id, method, args]) => window[id][method](...args);
    return this.page.run(method, script, [this.#id, method, args]);
  }

  async subscribe(filter, qos) {
    return (await this.#ask('subscribeAsync', filter, { qos }))[0].qos;
  }

  async publish(topic, text, options) {
    await this.#ask('publishAsync', topic, text, options);
  }

  async end() {
    await this.#ask('endAsync');
  }

  /** Closes its page when it is its own, and its socket otherwise. */
  async lose() {
    if (this.alone) await this.page.close();
    else await this.#ask('endAsync', true);
  }
}

/** The browser, begun before the tests of a file and ended after them, and what serves its pages. */
class Chromium {
  #pages = new Map();

  constructor({ trusting = true } = {}) {
    this.directory = fs.mkdtempSync(path.join(os.tmpdir(), 'stafett-chromium-'));
    certify(this.directory);
    this.trusting = trusting;
    before(() => this.#begin());
    after(() => this.close());
  }

  async #begin() {
    if (this.trusting) this.#trust();
    this.server = http.createServer((request, response) => {
      const bundle = request.url === '/mqtt.js';
      response.setHeader('content-type', bundle ? 'text/javascript' : 'text/html');
      response.end(bundle ? fs.readFileSync(BUNDLE) : '<!doctype html><title>MQTT</title><script src="/mqtt.js"></script>');
    });
    await once(this.server.listen(0, '127.0.0.1'), 'listening');
    const { port } = this.server.address();
    this.origin = `http://127.0.0.1:${port}`;
    this.stranger = `http://localhost:${port}`;
    const env = { ...process.env, HOME: this.directory };
    const executablePath = execFileSync('sh', ['-c', 'command -v chromium'], { encoding: 'utf8' }).trim();
    const options = { executablePath, args: ['--no-sandbox'], env, timeout: DEADLINE };
    this.browser = await chromium.launch(options);
    this.context = await this.browser.newContext();
  }

  /** Puts the authority where this browser looks for those that its user trusts. */
  #trust() {
    const database = path.join(this.directory, '.pki', 'nssdb');
    fs.mkdirSync(database, { recursive: true });
    const certutil = (...words) => execFileSync('certutil', ['-d', `sql:${database}`, ...words]);
    certutil('-N', '--empty-password');
    certutil('-A', '-t', 'C,,', '-n', 'test', '-i', path.join(this.directory, 'authority.pem'));
  }

  /** A client at `url`, in the page of this origin; one with a will in a page of its own. */
  async open(url, options, origin = this.origin) {
    const alone = Boolean(options.will);
    const page = (!alone && this.#pages.get(origin)) || (await Page.open(this.context, origin));
    if (!alone) this.#pages.set(origin, page);
    const client = await page.client(url, options);
    client.alone = alone;
    return client;
  }

  async close() {
    await this.browser?.close();
    this.server?.close();
    fs.rmSync(this.directory, { recursive: true, force: true });
  }
}

module.exports = { Chromium };
