// The broker as a child process and clients whose answers are awaited, each with a deadline.
'use strict';

const { execFileSync, spawn } = require('node:child_process');
const { once } = require('node:events');
const fs = require('node:fs');
const net = require('node:net');
const os = require('node:os');
const path = require('node:path');
const readline = require('node:readline');
const grpc = require('@grpc/grpc-js');
const loader = require('@grpc/proto-loader');
const mqtt = require('mqtt');
const protobuf = require('protobufjs');

// Longest wait for anything, in milliseconds; generous, since it only matters when something is wrong.
const DEADLINE = 30_000;

const PROTO = path.join(__dirname, '..', '..', '..', 'proto');
const LOADED = grpc.loadPackageDefinition(
  loader.loadSync(['stafett/v1/admin.proto', 'stafett/v1/pubsub.proto', 'stafett/v1/queue.proto'], {
    includeDirs: [PROTO],
    keepCase: true,
    longs: Number,
    enums: String,
    defaults: true,
    oneofs: true,
  }),
);
const SERVICES = LOADED.stafett.v1;
const RPC = new protobuf.Root();
RPC.resolvePath = (_, target) => path.join(PROTO, target);
RPC.loadSync(['google/rpc/status.proto', 'google/rpc/error_details.proto'], { keepCase: true });

/** `promise`, or an error that says what was awaited in vain. */
async function within(what, promise) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`waited in vain for ${what}`)), DEADLINE);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

/** Things that come one after the other and are awaited. */
class Inbox {
  #items = [];
  #waiting = [];

  put(item) {
    const waiting = this.#waiting.shift();
    if (waiting) waiting(item);
    else this.#items.push(item);
  }

  next(what) {
    if (this.#items.length > 0) return Promise.resolve(this.#items.shift());
    return within(what, new Promise((resolve) => this.#waiting.push(resolve)));
  }

  async take(count, what) {
    const taken = [];
    while (taken.length < count) taken.push(await this.next(`${what} ${taken.length + 1} of ${count}`));
    return taken;
  }
}

/** A free port below those that the kernel gives to outgoing connections: a broker that comes back finds it free. */
async function freePort() {
  const lowest = Number(fs.readFileSync('/proc/sys/net/ipv4/ip_local_port_range', 'utf8').split('\t')[0]);
  for (let port = 10_000 + (process.pid % 10_000); port < lowest; port += 1) {
    const probe = net.createServer().listen(port, '127.0.0.1');
    const free = await once(probe, 'listening').then(() => true, () => false);
    if (free) {
      await new Promise((resolve) => {
        probe.close(resolve);
      });
      return port;
    }
  }
  throw new Error('no port is free');
}

/** A server's certificate in `directory`, and who signed it: authority.pem, server.pem, server.key. */
function certify(directory) {
  const openssl = (...words) => execFileSync('openssl', words, { cwd: directory, stdio: 'ignore' });
  const key = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes'];
  openssl('req', '-x509', ...key, '-days', '2', '-subj', '/CN=test', '-keyout', 'authority.key', '-out', 'authority.pem');
  openssl('req', '-new', ...key, '-subj', '/CN=localhost', '-keyout', 'server.key', '-out', 'server.csr');
  const names = 'basicConstraints=CA:FALSE\nsubjectAltName=DNS:localhost,IP:127.0.0.1\n';
  fs.writeFileSync(path.join(directory, 'server.ext'), names);
  const by = ['-CA', 'authority.pem', '-CAkey', 'authority.key', '-CAcreateserial', '-days', '2'];
  openssl('x509', '-req', '-in', 'server.csr', '-extfile', 'server.ext', ...by, '-out', 'server.pem');
}

/** A broker that has said that it is ready, on free ports and a store of its own; it ends with the test `t`. */
class Broker {
  /** `config`: what its configuration file says, given the directory that holds it. */
  static async start(t, config = () => '') {
    const broker = new Broker();
    broker.config = config;
    broker.directory = fs.mkdtempSync(path.join(os.tmpdir(), 'stafett-node-'));
    t.after(async () => {
      for (const close of broker.closing.reverse()) await close();
      try {
        await broker.stop();
      } finally {
        fs.rmSync(broker.directory, { recursive: true, force: true });
      }
    });
    await broker.begin();
    return broker;
  }

  constructor() {
    this.closing = [];
    this.said = '';
  }

  async begin() {
    const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith('STAFETT_')));
    const flags = ['--data-dir', path.join(this.directory, 'data')];
    const config = path.join(this.directory, 'stafett.toml');
    fs.writeFileSync(config, this.config(this.directory));
    flags.push('--grpc-listen', '127.0.0.1:0', '--mqtt-listen', '127.0.0.1:0', '--config', config);
    this.process = spawn(process.env.STAFETT_BINARY, ['serve', ...flags], { env, stdio: ['ignore', 'pipe', 'pipe'] });
    this.process.stderr.on('data', (part) => {
      this.said += part;
    });
    this.ended = once(this.process, 'exit');
    const lines = readline.createInterface({ input: this.process.stdout });
    const ready = Promise.race([once(lines, 'line').then(([line]) => line), this.ended.then(() => 'nothing')]);
    const [first, ...doors] = (await within('the ready line', ready)).split(' ');
    if (first !== 'ready') throw new Error(`not ready but ${first}\n${this.said}`);
    this.doors = Object.fromEntries(doors.map((door) => door.split('=')));
  }

  async stop() {
    if (this.process.exitCode === null && this.process.signalCode === null) this.process.kill('SIGTERM');
    const [code] = await within('the end of the broker', this.ended);
    if (code !== 0) throw new Error(`the broker ended with ${code}\n${this.said}`);
  }

  /** Ends it and starts it again on the same store; `crash`: with kill -9. */
  async restart(crash) {
    if (crash) {
      this.process.kill('SIGKILL');
      await within('the end of the broker', this.ended);
    } else {
      await this.stop();
    }
    await this.begin();
  }

  client(service, options = {}) {
    const client = new SERVICES[service](this.doors.grpc, grpc.credentials.createInsecure(), options);
    this.closing.push(() => client.close());
    return client;
  }

  /** A connected MQTT client; what it receives is in `inbox` as [topic, payload, packet]. */
  async mqtt(options = {}, url = `mqtt://${this.doors.mqtt}`) {
    const client = mqtt.connect(url, { reconnectPeriod: 0, connectTimeout: DEADLINE, ...options });
    client.inbox = new Inbox();
    client.on('message', (topic, payload, packet) => client.inbox.put([topic, payload.toString(), packet]));
    client.on('error', () => {});
    const [connack] = await within('CONNACK', once(client, 'connect'));
    client.connack = connack;
    this.closing.push(() => client.endAsync(true));
    return client;
  }
}

/** A call with one answer: { answer, metadata }, or the error. */
function call(client, method, request, { metadata = new grpc.Metadata(), deadline = DEADLINE } = {}) {
  return new Promise((resolve, reject) => {
    let received;
    const options = { deadline: Date.now() + deadline };
    client[method](request, metadata, options, (error, answer) => {
      if (error) reject(error);
      else resolve({ answer, metadata: received });
    }).on('metadata', (metadata) => {
      received = metadata;
    });
  });
}

/** The answer alone. */
async function ask(client, method, request, options) {
  return (await call(client, method, request, options)).answer;
}

/** The error of a call that must be refused. */
async function refused(client, method, request, options) {
  try {
    await call(client, method, request, options);
  } catch (error) {
    return error;
  }
  throw new Error(`${method} was not refused`);
}

/** A two-way stream. Events come in order, heartbeats apart; what another wait has passed over is kept. */
class Stream {
  #events = new Inbox();
  #kept = [];
  #batched = [];

  constructor(call, opening) {
    this.call = call;
    call.on('data', (event) => this.#events.put(event));
    call.on('error', (error) => this.#events.put({ event: 'error', error }));
    call.on('end', () => this.#events.put({ event: 'end' }));
    call.write(opening);
  }

  /** The next event of that name. */
  async expect(name) {
    for (;;) {
      const place = this.#kept.findIndex((event) => event.event === name);
      if (place >= 0) return this.#kept.splice(place, 1)[0][name];
      await this.#take(name);
    }
  }

  /** That many messages, from whatever batches they come in. */
  async messages(count) {
    while (this.#batched.length < count) await this.#take(`${count} messages`);
    return this.#batched.splice(0, count);
  }

  async #take(what) {
    const event = await this.#events.next(what);
    if (event.event === 'error') throw event.error;
    if (event.event === 'messages') this.#batched.push(...event.messages.messages);
    else if (event.event === 'deliveries') this.#batched.push(...event.deliveries.deliveries);
    else if (event.event !== 'heartbeat') this.#kept.push({ ...event, end: true });
  }

  send(request) {
    this.call.write(request);
  }

  /** Ends it from this side and waits until it has ended. */
  async cancel() {
    this.call.cancel();
    await this.expect('end').catch((error) => {
      if (error.code !== grpc.status.CANCELLED) throw error;
    });
  }
}

/** The details of google.rpc that a refusal carries: name of the type to its fields. */
function details(error) {
  const [packed] = error.metadata.get('grpc-status-details-bin');
  const status = RPC.lookupType('google.rpc.Status').decode(packed);
  const named = status.details.map(({ type_url: url, value }) => {
    const type = RPC.lookupType(url.split('/')[1]);
    return [type.name, type.toObject(type.decode(value))];
  });
  return Object.fromEntries(named);
}

module.exports = { Broker, DEADLINE, Inbox, Stream, ask, call, certify, details, freePort, grpc, refused, within };
