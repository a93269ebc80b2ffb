"""Prints what is published: python subscriber.py 'room/#'

What is published while it is away is missed; SubscribeStream with a client id and a session expiry would get it later.
"""

import asyncio

from client import arguments, keep_open
from stafett.v1 import pubsub_pb2, pubsub_pb2_grpc


async def subscribe(channel, stop, topic_filter):
    """One stream. Returns how long to wait before the next one."""
    request = pubsub_pb2.SubscribeRequest(filters=[pubsub_pb2.TopicFilter(filter=topic_filter)])
    stream = pubsub_pb2_grpc.PubSubServiceStub(channel).Subscribe(request)
    pause = 1
    cancelling = asyncio.create_task(cancel_at(stop, stream))
    try:
        async for event in stream:
            match event.WhichOneof("event"):
                case "opened":
                    print(f"subscribed to {topic_filter}")
                case "deliveries":
                    for delivery in event.deliveries.deliveries:
                        print(f"{delivery.message.topic}: {delivery.message.payload.decode(errors='replace')}")
                case "closing":
                    pause = event.closing.reconnect_after.ToTimedelta().total_seconds()
    except asyncio.CancelledError:
        if not stop.is_set():
            raise
    finally:
        cancelling.cancel()
    return pause


async def cancel_at(stop, stream):
    """A stream of deliveries ends when it is cancelled."""
    await stop.wait()
    stream.cancel()


def main():
    parser = arguments("Prints what is published.")
    parser.add_argument("filter", help="as room/+ or room/#")
    args = parser.parse_args()
    asyncio.run(keep_open(args.server, lambda channel, stop: subscribe(channel, stop, args.filter)))


if __name__ == "__main__":
    main()
