"""What the examples share: arguments, a channel, and streams that are opened again when the broker was away."""

import argparse
import asyncio
import contextlib
import signal
import sys

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

# A connection that is silently gone is noticed after half a minute.
KEEPALIVE = (("grpc.keepalive_time_ms", 20_000), ("grpc.keepalive_timeout_ms", 10_000))


def arguments(description):
    """A parser that knows --server and --timeout."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--server", default="127.0.0.1:50051", metavar="HOST:PORT")
    parser.add_argument("--timeout", type=float, default=5, metavar="SECONDS", help="longest wait for an answer")
    return parser


def fail(error):
    """Says what went wrong, with the broker's reason where it gives one, as NO_RESPONDERS; ends with code 1."""
    reason = error.code().name
    status = rpc_status.from_call(error)
    info = error_details_pb2.ErrorInfo()
    for detail in status.details if status else ():
        if detail.Unpack(info):
            reason = info.reason
    sys.exit(f"{reason}: {error.details()}")


async def keep_open(server, stream_once):
    """Runs `stream_once(channel, stop)` until SIGINT or SIGTERM set `stop`.

    It runs again, after the pause in seconds that it returns, when the broker has closed the stream or cannot be reached.
    """
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with grpc.aio.insecure_channel(server, options=KEEPALIVE) as channel:
        while not stop.is_set():
            try:
                pause = await stream_once(channel, stop)
            except grpc.aio.AioRpcError as error:
                if error.code() != grpc.StatusCode.UNAVAILABLE:
                    fail(error)
                print(f"trying again: {error.details()}", file=sys.stderr)
                pause = 1
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), pause)
    print("stopped")


class Outgoing:
    """What goes to the broker on a stream, in order; `drain` when `stop` is set."""

    def __init__(self, stop, opening, drain):
        self._frames = asyncio.Queue()
        self.send(opening)
        self._draining = asyncio.create_task(self._drain_at(stop, drain))

    async def _drain_at(self, stop, drain):
        await stop.wait()
        self.send(drain)

    def send(self, frame):
        """Sends a frame."""
        self._frames.put_nowait(frame)

    async def __aiter__(self):
        try:
            while True:
                yield await self._frames.get()
        finally:
            self._draining.cancel()
