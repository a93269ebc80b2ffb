"""Works on the messages of a queue: python worker.py jobs

A message is acknowledged when its work is done, and given back when it fails. Ctrl-c finishes what is in hand first.
Work that takes longer than the queue's lease, 30 s by default, would have to extend it.
"""

import asyncio
import sys

from client import Outgoing, arguments, keep_open
from stafett.v1 import common_pb2, queue_pb2, queue_pb2_grpc


async def work(text):
    """The work itself; what it raises is a failure."""
    if text.startswith("bad"):
        raise ValueError("a bad job")
    print(f"done: {text}")


async def consume(channel, stop, queue):
    """One stream. Returns how long to wait before the next one."""
    window = common_pb2.Window(max_outstanding_messages=10)
    opening = queue_pb2.ConsumeRequest(open=queue_pb2.ConsumeOpen(queue=queue, window=window))
    outgoing = Outgoing(stop, opening, queue_pb2.ConsumeRequest(drain=common_pb2.Drain()))
    pause = 1
    async for event in queue_pb2_grpc.QueueServiceStub(channel).Consume(outgoing):
        match event.WhichOneof("event"):
            case "opened":
                print(f"working on {queue}")
            case "messages":
                for leased in event.messages.messages:
                    outgoing.send(await settle(leased))
            case "results":
                for failure in event.results.failures:
                    print(f"not settled, and comes again: {failure.error.message}", file=sys.stderr)
            case "closing":
                pause = event.closing.reconnect_after.ToTimedelta().total_seconds()
    return pause


async def settle(leased):
    """Does the work, and says what became of the message."""
    text = leased.message.payload.decode(errors="replace")
    # The number of a delivery ascends on its stream: it serves as the number of the frame that settles it.
    which = common_pb2.AckBatch(ack_id=leased.delivery_id, delivery_ids=[leased.delivery_id])
    try:
        await work(text)
    except Exception as error:
        print(f"failed: {text} (attempt {leased.delivery_attempt}): {error}")
        # Comes again after a second, or goes to the dead letter queue when it has failed too often.
        nack = queue_pb2.NackBatch(which=which, kind=queue_pb2.NACK_KIND_FAILED)
        nack.delay.seconds = 1
        return queue_pb2.ConsumeRequest(nack=nack)
    return queue_pb2.ConsumeRequest(ack=which)


def main():
    parser = arguments("Works on the messages of a queue.")
    parser.add_argument("queue")
    args = parser.parse_args()
    asyncio.run(keep_open(args.server, lambda channel, stop: consume(channel, stop, args.queue)))


if __name__ == "__main__":
    main()
