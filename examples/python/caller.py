"""Calls a service, whoever serves it, over gRPC or MQTT: python caller.py text/upper hello"""

import grpc
from client import arguments, fail
from stafett.v1 import call_pb2, call_pb2_grpc, common_pb2


def main():
    parser = arguments("Calls a service.")
    parser.add_argument("service")
    parser.add_argument("text")
    args = parser.parse_args()
    # Idempotent: if its responder is lost, another one may do it again.
    message = common_pb2.Message(payload=args.text.encode())
    request = call_pb2.CallRequest(service=args.service, request=message, idempotent=True)
    with grpc.insecure_channel(args.server) as channel:
        try:
            # The deadline of the RPC is that of the call; the responder is told of it.
            reply = call_pb2_grpc.CallServiceStub(channel).Call(request, timeout=args.timeout).reply
        except grpc.RpcError as error:
            fail(error)
    print(f"{reply.message.payload.decode(errors='replace')} (from {reply.responder_id})")


if __name__ == "__main__":
    main()
