// Serves a service that makes text upper case: node dist/responder.js text/upper
//
// Requests are answered side by side, in any order. Ctrl-c finishes what is in hand first.
import * as grpc from '@grpc/grpc-js';
import type { IncomingRequest__Output } from './generated/stafett/v1/IncomingRequest';
import type { ServeReply } from './generated/stafett/v1/ServeReply';
import type { ServeResponse__Output } from './generated/stafett/v1/ServeResponse';
import { args, fail, keepOpen, pauseOf } from './client';

const { words, calls } = args('SERVICE');
const [service] = words as [string];
const client = calls();

/** The service itself; a RangeError is the caller's fault. `cancelled` says that nobody waits for the answer any more. */
async function upper(text: string, cancelled: AbortSignal): Promise<string> {
  cancelled.throwIfAborted();
  if (text === '') throw new RangeError('there is no text');
  return text.toUpperCase();
}

/** Answers one request. */
async function answer({ requestId, message }: IncomingRequest__Output, cancelled: AbortSignal): Promise<ServeReply> {
  const text = String(message?.payload);
  try {
    const payload = Buffer.from(await upper(text, cancelled));
    console.log(`answered ${text}`);
    return { requestId, message: { payload } };
  } catch (error) {
    const code = error instanceof RangeError ? grpc.status.INVALID_ARGUMENT : grpc.status.INTERNAL;
    console.log(`refused: ${(error as Error).message}`);
    return { requestId, error: { code, message: (error as Error).message } };
  }
}

/** One stream. Returns how long to wait before the next one. */
async function serve(stop: AbortSignal): Promise<number> {
  const stream = client.serve();
  const drain = () => stream.write({ drain: {} });
  stop.addEventListener('abort', drain);
  const inHand = new Map<number, AbortController>();
  let pause = 1000;
  try {
    stream.write({ open: { service, maxConcurrentRequests: 16 } });
    for await (const { opened, requests, cancelled, closing } of stream as AsyncIterable<ServeResponse__Output>) {
      if (opened) console.log(`serving ${service} as ${opened.responderId}`);
      for (const request of requests?.requests ?? []) {
        const cancelling = new AbortController();
        inHand.set(request.requestId, cancelling);
        void answer(request, cancelling.signal).then((reply) => {
          inHand.delete(request.requestId);
          if (!cancelling.signal.aborted) stream.write({ replies: { replies: [reply] } });
        });
      }
      for (const requestId of cancelled?.requestIds ?? []) inHand.get(requestId)?.abort();
      if (closing) pause = pauseOf(closing);
    }
  } finally {
    stop.removeEventListener('abort', drain);
    for (const cancelling of inHand.values()) cancelling.abort();
  }
  return pause;
}

keepOpen(serve)
  .then(() => client.close())
  .catch(fail);
