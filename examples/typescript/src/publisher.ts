// Publishes a message: node dist/publisher.js room/1 '22 degrees'
import type { PublishResponse__Output } from './generated/stafett/v1/PublishResponse';
import { args, fail, unary } from './client';

const { words, deadline, pubsub } = args('TOPIC', 'TEXT');
const [topic, text] = words as [string, string];

async function main() {
  const client = pubsub();
  const message = { topic, payload: Buffer.from(text), contentType: 'text/plain' };
  // The answer says that the message is on disk for everyone durable who takes it.
  const answer = await unary<PublishResponse__Output>((callback) =>
    client.publish({ message }, { deadline: deadline() }, callback),
  );
  console.log(`published to ${answer.matchedSubscribers} subscribers and ${answer.matchedQueues} queues`);
  client.close();
}

main().catch(fail);
