"""Makes a call that outlives who makes it: python later.py text/upper hello

The broker stores the call and makes it as soon as the service is served; caller, responder and broker may come and go
meanwhile. python later.py REQUEST_ID waits for the reply to one that was made before.
"""

import sys

import grpc
from client import arguments, fail
from google.protobuf import duration_pb2
from stafett.v1 import call_pb2, call_pb2_grpc, common_pb2

# How long one answer to AwaitReply may take.
POLL = 30


def store(stub, service, text, timeout):
    """Stores a call, and returns its id."""
    within = duration_pb2.Duration()
    within.FromMilliseconds(int(timeout * 1000))
    # Idempotent: if its responder is lost, or the broker ends while one has it, it is made again.
    message = common_pb2.Message(payload=text.encode())
    request = call_pb2.CallAsyncRequest(service=service, request=message, timeout=within, idempotent=True)
    return stub.CallAsync(request, timeout=POLL).request_id


def wait_for(stub, request_id):
    """The reply, which may be an error: there is one in any case, at the latest when its time is over."""
    asked = call_pb2.AwaitReplyRequest(request_id=request_id, wait=duration_pb2.Duration(seconds=POLL))
    while not (answer := stub.AwaitReply(asked, timeout=POLL + 10)).done:
        pass
    return answer.reply


def main():
    parser = arguments("Makes a call that outlives who makes it.")
    parser.add_argument("service", metavar="service or request id")
    parser.add_argument("text", nargs="?")
    args = parser.parse_args()
    with grpc.insecure_channel(args.server) as channel:
        stub = call_pb2_grpc.CallServiceStub(channel)
        try:
            request_id = args.service
            if args.text is not None:
                request_id = store(stub, args.service, args.text, args.timeout)
                print(f"stored {request_id}", flush=True)
            reply = wait_for(stub, request_id)
        except grpc.RpcError as error:
            fail(error)
    if reply.HasField("error"):
        sys.exit(reply.error.message)
    print(f"{reply.message.payload.decode(errors='replace')} (from {reply.responder_id})")


if __name__ == "__main__":
    main()
