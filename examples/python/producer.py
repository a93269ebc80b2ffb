"""Puts messages into a queue: python producer.py jobs one two three"""

import sys

import grpc
from client import arguments, fail
from stafett.v1 import common_pb2, queue_pb2, queue_pb2_grpc


def main():
    parser = arguments("Puts messages into a queue.")
    parser.add_argument("queue")
    parser.add_argument("text", nargs="+")
    args = parser.parse_args()
    messages = [common_pb2.Message(payload=text.encode()) for text in args.text]
    with grpc.insecure_channel(args.server) as channel:
        queues = queue_pb2_grpc.QueueServiceStub(channel)
        try:
            request = queue_pb2.EnqueueBatchRequest(queue=args.queue, messages=messages)
            answer = queues.EnqueueBatch(request, timeout=args.timeout)
        except grpc.RpcError as error:
            fail(error)
    # Each message has an outcome of its own: a full queue may take some of them.
    stored = 0
    for text, result in zip(args.text, answer.results, strict=True):
        if result.HasField("error"):
            print(f"{text} was refused: {result.error.message}", file=sys.stderr)
        else:
            stored += 1
    print(f"stored {stored} messages")
    if stored < len(messages):
        sys.exit(1)


if __name__ == "__main__":
    main()
