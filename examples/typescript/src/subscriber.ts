// Prints what is published: node dist/subscriber.js 'room/#'
//
// What is published while it is away is missed; SubscribeStream with a client id and a session expiry would get it later.
import * as grpc from '@grpc/grpc-js';
import type { SubscribeResponse__Output } from './generated/stafett/v1/SubscribeResponse';
import { args, fail, keepOpen, pauseOf } from './client';

const { words, pubsub } = args('FILTER');
const [filter] = words as [string];
const client = pubsub();

/** One stream. Returns how long to wait before the next one. */
async function subscribe(stop: AbortSignal): Promise<number> {
  const stream = client.subscribe({ filters: [{ filter }] });
  const cancel = () => stream.cancel();
  stop.addEventListener('abort', cancel);
  let pause = 1000;
  try {
    for await (const { event, deliveries, closing } of stream as AsyncIterable<SubscribeResponse__Output>) {
      if (event === 'opened') console.log(`subscribed to ${filter}`);
      for (const { message } of deliveries?.deliveries ?? []) console.log(`${message?.topic}: ${message?.payload}`);
      if (closing) pause = pauseOf(closing);
    }
  } catch (error) {
    if (!stop.aborted || (error as grpc.ServiceError).code !== grpc.status.CANCELLED) throw error;
  } finally {
    stop.removeEventListener('abort', cancel);
  }
  return pause;
}

keepOpen(subscribe)
  .then(() => client.close())
  .catch(fail);
