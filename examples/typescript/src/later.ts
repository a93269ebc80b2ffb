// Makes a call that outlives who makes it: node dist/later.js text/upper hello
//
// The broker stores the call and makes it as soon as the service is served; caller, responder and broker may come and go
// meanwhile. node dist/later.js REQUEST_ID waits for the reply to one that was made before.
import type { AwaitReplyResponse__Output } from './generated/stafett/v1/AwaitReplyResponse';
import type { CallAsyncResponse__Output } from './generated/stafett/v1/CallAsyncResponse';
import { args, fail, unary } from './client';

// How long one answer to awaitReply may take, in seconds.
const POLL = 30;

const { words, timeout, calls } = args('SERVICE or REQUEST_ID');
const [first, text] = words as [string, string | undefined];
const client = calls();

/** Stores a call, and returns its id. */
async function store(service: string, text: string) {
  const seconds = Math.floor(timeout);
  const answer = await unary<CallAsyncResponse__Output>((callback) =>
    client.callAsync(
      {
        service,
        request: { payload: Buffer.from(text) },
        timeout: { seconds, nanos: Math.round((timeout - seconds) * 1e9) },
        // If its responder is lost, or the broker ends while one has it, it is made again.
        idempotent: true,
      },
      callback,
    ),
  );
  console.log(`stored ${answer.requestId}`);
  return answer.requestId;
}

/** The reply, which may be an error: there is one in any case, at the latest when its time is over. */
async function waitFor(requestId: string) {
  for (;;) {
    const answer = await unary<AwaitReplyResponse__Output>((callback) =>
      client.awaitReply({ requestId, wait: { seconds: POLL } }, callback),
    );
    if (answer.done) return answer.reply;
  }
}

async function main() {
  const reply = await waitFor(text === undefined ? first : await store(first, text));
  client.close();
  if (reply?.error) {
    console.error(reply.error.message);
    process.exitCode = 1;
  } else {
    console.log(`${reply?.message?.payload} (from ${reply?.responderId})`);
  }
}

main().catch(fail);
