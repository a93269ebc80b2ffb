"""Publishes a message: python publisher.py room/1 "22 degrees" """

import grpc
from client import arguments, fail
from stafett.v1 import common_pb2, pubsub_pb2, pubsub_pb2_grpc


def main():
    parser = arguments("Publishes a message.")
    parser.add_argument("topic")
    parser.add_argument("text")
    args = parser.parse_args()
    message = common_pb2.Message(topic=args.topic, payload=args.text.encode(), content_type="text/plain")
    with grpc.insecure_channel(args.server) as channel:
        pubsub = pubsub_pb2_grpc.PubSubServiceStub(channel)
        try:
            # The answer says that the message is on disk for everyone durable who takes it.
            answer = pubsub.Publish(pubsub_pb2.PublishRequest(message=message), timeout=args.timeout)
        except grpc.RpcError as error:
            fail(error)
    print(f"published to {answer.matched_subscribers} subscribers and {answer.matched_queues} queues")


if __name__ == "__main__":
    main()
