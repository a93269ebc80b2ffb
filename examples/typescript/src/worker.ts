// Works on the messages of a queue: node dist/worker.js jobs
//
// A message is acknowledged when its work is done, and given back when it fails. Ctrl-c finishes what is in hand first.
// Work that takes longer than the queue's lease, 30 s by default, would have to extend it.
import type { ConsumeRequest } from './generated/stafett/v1/ConsumeRequest';
import type { ConsumeResponse__Output } from './generated/stafett/v1/ConsumeResponse';
import type { LeasedMessage__Output } from './generated/stafett/v1/LeasedMessage';
import { args, fail, keepOpen, pauseOf } from './client';

const { words, queues } = args('QUEUE');
const [queue] = words as [string];
const client = queues();

/** The work itself; what it throws is a failure. */
async function work(text: string): Promise<void> {
  if (text.startsWith('bad')) throw new Error('a bad job');
  console.log(`done: ${text}`);
}

/** Does the work, and says what became of the message. */
async function settle(leased: LeasedMessage__Output): Promise<ConsumeRequest> {
  const text = String(leased.message?.payload);
  // The number of a delivery ascends on its stream: it serves as the number of the frame that settles it.
  const which = { ackId: leased.deliveryId, deliveryIds: [leased.deliveryId] };
  try {
    await work(text);
    return { ack: which };
  } catch (error) {
    console.log(`failed: ${text} (attempt ${leased.deliveryAttempt}): ${(error as Error).message}`);
    // Comes again after a second, or goes to the dead letter queue when it has failed too often.
    return { nack: { which, kind: 'NACK_KIND_FAILED', delay: { seconds: 1 } } };
  }
}

/** One stream. Returns how long to wait before the next one. */
async function consume(stop: AbortSignal): Promise<number> {
  const stream = client.consume();
  const drain = () => stream.write({ drain: {} });
  stop.addEventListener('abort', drain);
  let pause = 1000;
  try {
    stream.write({ open: { queue, window: { maxOutstandingMessages: 10 } } });
    for await (const { event, messages, results, closing } of stream as AsyncIterable<ConsumeResponse__Output>) {
      if (event === 'opened') console.log(`working on ${queue}`);
      for (const leased of messages?.messages ?? []) stream.write(await settle(leased));
      for (const { error } of results?.failures ?? []) {
        console.error(`not settled, and comes again: ${error?.message}`);
      }
      if (closing) pause = pauseOf(closing);
    }
  } finally {
    stop.removeEventListener('abort', drain);
  }
  return pause;
}

keepOpen(consume)
  .then(() => client.close())
  .catch(fail);
