// Calls a service, whoever serves it, over gRPC or MQTT: node dist/caller.js text/upper hello
import type { CallResponse__Output } from './generated/stafett/v1/CallResponse';
import { args, fail, unary } from './client';

const { words, deadline, calls } = args('SERVICE', 'TEXT');
const [service, text] = words as [string, string];

async function main() {
  const client = calls();
  // Idempotent: if its responder is lost, another one may do it again.
  const request = { service, request: { payload: Buffer.from(text) }, idempotent: true };
  // The deadline of the RPC is that of the call; the responder is told of it.
  const { reply } = await unary<CallResponse__Output>((callback) =>
    client.call(request, { deadline: deadline() }, callback),
  );
  console.log(`${reply?.message?.payload} (from ${reply?.responderId})`);
  client.close();
}

main().catch(fail);
