// Puts messages into a queue: node dist/producer.js jobs one two three
import type { EnqueueBatchResponse__Output } from './generated/stafett/v1/EnqueueBatchResponse';
import { args, fail, unary } from './client';

const { words, deadline, queues } = args('QUEUE', 'TEXT');
const [queue, ...texts] = words;

async function main() {
  const client = queues();
  const messages = texts.map((text) => ({ payload: Buffer.from(text) }));
  const { results } = await unary<EnqueueBatchResponse__Output>((callback) =>
    client.enqueueBatch({ queue, messages }, { deadline: deadline() }, callback),
  );
  client.close();
  // Each message has an outcome of its own: a full queue may take some of them.
  let stored = 0;
  for (const [index, { error }] of results.entries()) {
    if (error) console.error(`${texts[index]} was refused: ${error.message}`);
    else stored += 1;
  }
  console.log(`stored ${stored} messages`);
  if (stored < results.length) process.exitCode = 1;
}

main().catch(fail);
