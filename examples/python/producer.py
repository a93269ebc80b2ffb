"""Puts messages into a queue: python producer.py jobs one two three"""

import sys

import grpc
from client import arguments
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
            sys.exit(f"{error.code().name}: {error.details()}")
    # Each message has an outcome of its own: a full queue may take some of them.
    refused = [result.error.message for result in answer.results if result.WhichOneof("outcome") == "error"]
    print(f"stored {len(messages) - len(refused)} messages")
    if refused:
        sys.exit(f"{len(refused)} were refused, the first one because: {refused[0]}")


if __name__ == "__main__":
    main()
