// What the examples share: arguments, clients, and streams that are opened again when the broker was away.
import * as path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import * as grpc from '@grpc/grpc-js';
import * as loader from '@grpc/proto-loader';
import type { ProtoGrpcType as Calls } from './generated/call';
import type { ErrorInfo__Output } from './generated/google/rpc/ErrorInfo';
import type { Status__Output } from './generated/google/rpc/Status';
import type { ProtoGrpcType as PubSub } from './generated/pubsub';
import type { ProtoGrpcType as Queues } from './generated/queue';
import type { StreamClosing__Output } from './generated/stafett/v1/StreamClosing';

const FILES = ['call', 'pubsub', 'queue'].map((name) => `stafett/v1/${name}.proto`);
// The same options as those of the types: see "generate" in package.json.
const definition = loader.loadSync([...FILES, 'google/rpc/error_details.proto'], {
  includeDirs: [path.join(__dirname, '../../../proto')],
  longs: Number,
  enums: String,
  defaults: true,
  oneofs: true,
});
const { v1 } = (grpc.loadPackageDefinition(definition) as unknown as Calls & PubSub & Queues).stafett;

// A connection that is silently gone is noticed after half a minute.
const options = { 'grpc.keepalive_time_ms': 20_000, 'grpc.keepalive_timeout_ms': 10_000 };

/** The command line: `--server HOST:PORT`, `--timeout SECONDS`, and at least as many words as are named. */
export function args(...names: string[]) {
  const { values, positionals } = parseArgs({
    options: {
      server: { type: 'string', default: '127.0.0.1:50051' },
      timeout: { type: 'string', default: '5' },
    },
    allowPositionals: true,
  });
  if (positionals.length < names.length) {
    console.error(`needs: ${names.join(' ')}`);
    process.exit(2);
  }
  const as = [values.server, grpc.credentials.createInsecure(), options] as const;
  return {
    words: positionals,
    timeout: Number(values.timeout),
    deadline: () => Date.now() + Number(values.timeout) * 1000,
    calls: () => new v1.CallService(...as),
    pubsub: () => new v1.PubSubService(...as),
    queues: () => new v1.QueueService(...as),
  };
}

/** A unary RPC as a promise. */
export function unary<T>(call: (callback: grpc.requestCallback<T>) => unknown): Promise<T> {
  return new Promise((resolve, reject) => {
    call((error, answer) => (error ? reject(error) : resolve(answer!)));
  });
}

/** Says what went wrong, with the broker's reason where it gives one, as NO_RESPONDERS; ends with code 1. */
export function fail(error: grpc.ServiceError): never {
  const [packed] = error.metadata?.get('grpc-status-details-bin') ?? [];
  const details = packed ? decode<Status__Output>('google.rpc.Status', packed as Buffer).details : [];
  const info = details.find((detail) => 'type_url' in detail && detail.type_url.endsWith('/google.rpc.ErrorInfo'));
  const { reason } = info ? decode<ErrorInfo__Output>('google.rpc.ErrorInfo', info.value as Buffer) : {};
  console.error(`${reason ?? grpc.status[error.code]}: ${error.details}`);
  process.exit(1);
}

function decode<T>(type: string, bytes: Buffer): T {
  return (definition[type] as loader.MessageTypeDefinition<object, object>).deserialize(bytes) as T;
}

/**
 * Runs `streamOnce` until ctrl-c or SIGTERM abort `stop`. It runs again, after the pause in milliseconds that it returns,
 * when the broker has closed the stream or cannot be reached.
 */
export async function keepOpen(streamOnce: (stop: AbortSignal) => Promise<number>): Promise<void> {
  const stopping = new AbortController();
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, () => stopping.abort());
  while (!stopping.signal.aborted) {
    const pause = await streamOnce(stopping.signal).catch((error: grpc.ServiceError) => {
      if (error.code !== grpc.status.UNAVAILABLE) fail(error);
      console.error(`trying again: ${error.details}`);
      return 1000;
    });
    await sleep(pause, undefined, { signal: stopping.signal }).catch(() => {});
  }
  console.log('stopped');
}

/** How long the broker asks to wait before the stream is opened again, in milliseconds. */
export function pauseOf({ reconnectAfter }: StreamClosing__Output): number {
  return reconnectAfter ? reconnectAfter.seconds * 1000 + reconnectAfter.nanos / 1e6 : 1000;
}
