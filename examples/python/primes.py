"""Counts the primes below a number, divided among those who serve: python primes.py 300000 primes/count

With several services it asks each in turn, --runs times, and says how their times compare: start one worker for the first
and two for the second.
"""

import statistics
import sys
import time

import grpc
from client import arguments, fail
from stafett.v1 import call_pb2, call_pb2_grpc, common_pb2

# More than there are workers, so that a quick one does more of them, and a lost one loses little.
PARTS = 64


def count(stub, service, below):
    """How many primes there are, how many workers counted them, and how many seconds it took."""
    step = -(-below // PARTS)
    ranges = (f"{low} {min(low + step, below)}" for low in range(0, below, step))
    parts = [common_pb2.Message(payload=text.encode()) for text in ranges]
    policy = call_pb2.GatherPolicy(stop_on_error=True)
    began = time.monotonic()
    total = 0
    for event in stub.Multicast(call_pb2.MulticastRequest(service=service, parts=parts, policy=policy)):
        if event.HasField("reply"):
            if event.reply.HasField("error"):
                sys.exit(f"part {event.reply.part}: {event.reply.error.message}")
            total += int(event.reply.message.payload)
        elif event.HasField("summary") and event.summary.missing_parts:
            sys.exit(f"{len(event.summary.missing_parts)} parts are not answered: nobody serves any more")
    return total, event.summary.asked, time.monotonic() - began


def main():
    parser = arguments("Counts the primes below a number, divided among those who serve.")
    parser.add_argument("below", type=int)
    parser.add_argument("services", nargs="+", metavar="service")
    parser.add_argument("--runs", type=int, default=1)
    args = parser.parse_args()
    found = {service: [] for service in args.services}
    with grpc.insecure_channel(args.server) as channel:
        stub = call_pb2_grpc.CallServiceStub(channel)
        try:
            for _ in range(args.runs):
                for service, runs in found.items():
                    runs.append(count(stub, service, args.below))
        except grpc.RpcError as error:
            fail(error)
    medians = []
    for service, runs in found.items():
        total, workers, _ = runs[-1]
        medians.append(statistics.median(seconds for *_, seconds in runs))
        print(f"{service}: {total} primes, {workers} at work, {medians[-1]:.3f} s")
    if len(medians) > 1:
        print(f"{medians[-1] / medians[0]:.2f} of the time (medians of {args.runs})")


if __name__ == "__main__":
    main()
