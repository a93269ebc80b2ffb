"""Serves a service that makes text upper case: python responder.py text/upper

Requests are answered side by side, in any order. Ctrl-c finishes what is in hand first.
"""

import asyncio

from client import Outgoing, arguments, keep_open
from google.rpc import code_pb2, status_pb2
from stafett.v1 import call_pb2, call_pb2_grpc, common_pb2


async def upper(text):
    """The service itself; a ValueError is the caller's fault."""
    if not text:
        raise ValueError("there is no text")
    return text.upper()


async def answer(request, outgoing):
    """Answers one request."""
    text = request.message.payload.decode(errors="replace")
    reply = call_pb2.ServeReply(request_id=request.request_id)
    try:
        reply.message.payload = (await upper(text)).encode()
        print(f"answered {text}")
    except Exception as error:
        code = code_pb2.INVALID_ARGUMENT if isinstance(error, ValueError) else code_pb2.INTERNAL
        reply.error.CopyFrom(status_pb2.Status(code=code, message=str(error)))
        print(f"refused: {error}")
    outgoing.send(call_pb2.ServeRequest(replies=call_pb2.ServeReplies(replies=[reply])))


async def serve(channel, stop, service):
    """One stream. Returns how long to wait before the next one."""
    opening = call_pb2.ServeRequest(open=call_pb2.ServeOpen(service=service, max_concurrent_requests=16))
    outgoing = Outgoing(stop, opening, call_pb2.ServeRequest(drain=common_pb2.Drain()))
    tasks = {}
    pause = 1
    async for event in call_pb2_grpc.CallServiceStub(channel).Serve(outgoing):
        match event.WhichOneof("event"):
            case "opened":
                print(f"serving {service} as {event.opened.responder_id}")
            case "requests":
                for request in event.requests.requests:
                    task = asyncio.create_task(answer(request, outgoing))
                    tasks[request.request_id] = task
                    task.add_done_callback(lambda _, number=request.request_id: tasks.pop(number))
            case "cancelled":
                # Nobody waits for these any more.
                for number in event.cancelled.request_ids:
                    if task := tasks.get(number):
                        task.cancel()
            case "closing":
                pause = event.closing.reconnect_after.ToTimedelta().total_seconds()
    return pause


def main():
    parser = arguments("Serves a service.")
    parser.add_argument("service")
    args = parser.parse_args()
    asyncio.run(keep_open(args.server, lambda channel, stop: serve(channel, stop, args.service)))


if __name__ == "__main__":
    main()
