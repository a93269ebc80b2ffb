"""Counts primes for whoever asks, one part at a time: python sieve.py primes/count

A part is a range of numbers, "LOW HIGH". The work runs in a thread, so that the stream goes on meanwhile. Ctrl-c finishes
what is in hand first.
"""

import asyncio

from client import Outgoing, arguments, keep_open
from google.rpc import code_pb2, status_pb2
from stafett.v1 import call_pb2, call_pb2_grpc, common_pb2


def is_prime(number):
    """By trial division: there is to be something to do."""
    if number < 4:
        return number > 1
    return number % 2 > 0 and all(number % odd for odd in range(3, int(number**0.5) + 1, 2))


def count(text):
    """How many primes there are from LOW to below HIGH; a ValueError is the caller's fault."""
    low, high = map(int, text.split())
    return sum(map(is_prime, range(low, high)))


async def answer(request):
    """Answers one request."""
    reply = call_pb2.ServeReply(request_id=request.request_id)
    try:
        counted = await asyncio.to_thread(count, request.message.payload.decode())
        reply.message.payload = str(counted).encode()
        print(f"part {request.part.index + 1} of {request.part.count}: {counted}")
    except ValueError as error:
        reply.error.CopyFrom(status_pb2.Status(code=code_pb2.INVALID_ARGUMENT, message=str(error)))
    return call_pb2.ServeRequest(replies=call_pb2.ServeReplies(replies=[reply]))


async def serve(channel, stop, service):
    """One stream. Returns how long to wait before the next one."""
    # One at a time: two threads of Python would only share a core.
    opening = call_pb2.ServeRequest(open=call_pb2.ServeOpen(service=service, max_concurrent_requests=1))
    outgoing = Outgoing(stop, opening, call_pb2.ServeRequest(drain=common_pb2.Drain()))
    pause = 1
    async for event in call_pb2_grpc.CallServiceStub(channel).Serve(outgoing):
        match event.WhichOneof("event"):
            case "opened":
                print(f"serving {service} as {event.opened.responder_id}")
            case "requests":
                for request in event.requests.requests:
                    outgoing.send(await answer(request))
            case "closing":
                pause = event.closing.reconnect_after.ToTimedelta().total_seconds()
    return pause


def main():
    parser = arguments("Counts primes for whoever asks.")
    parser.add_argument("service")
    args = parser.parse_args()
    asyncio.run(keep_open(args.server, lambda channel, stop: serve(channel, stop, args.service)))


if __name__ == "__main__":
    main()
