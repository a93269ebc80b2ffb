"""The real program as a child process: started on free ports with a store of its own, stopped by its pid."""

import os
import selectors
import signal
import socket
import subprocess
import time

import grpc
from stafett.v1 import admin_pb2_grpc, pubsub_pb2_grpc, queue_pb2_grpc

from harness import DEADLINE, remaining


def free_port(taken=()):
    """A free port below those that the kernel gives to outgoing connections.

    A broker that comes back on its port must find it free: a client that dials it meanwhile must not get it as its own.
    """
    with open("/proc/sys/net/ipv4/ip_local_port_range", encoding="ascii") as file:
        lowest = int(file.read().split()[0])
    start = 10_000 + os.getpid() % 10_000
    for port in range(start, lowest):
        if port in taken:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("no port is free")


class Broker:
    """A broker that has said that it is ready."""

    def __init__(self, binary, directory, flags=(), keep_ports=False, data=None):
        self._binary = str(binary)
        self.data = data or directory / "data"
        self._flags = list(flags)
        self._log = directory / "broker.log"
        self._channels = []
        self.process = None
        self.doors = {}
        self._listen = {"grpc": "127.0.0.1:0", "mqtt": "127.0.0.1:0"}
        if keep_ports:
            first = free_port()
            second = free_port(taken=(first,))
            self._listen = {"grpc": f"127.0.0.1:{first}", "mqtt": f"127.0.0.1:{second}"}
        self.start()

    def start(self):
        """Starts the process and waits for its ready line."""
        env = {name: value for name, value in os.environ.items() if not name.startswith("STAFETT_")}
        command = [self._binary, "serve", "--data-dir", str(self.data)]
        for door, address in self._listen.items():
            command += [f"--{door}-listen", address]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                command + self._flags, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, env=env
            )
        line = self._first_line()
        words = line.split()
        assert words and words[0] == "ready", f"not the ready line: {line!r}\n{self.log()}"
        self.doors = dict(word.split("=", 1) for word in words[1:])

    def _first_line(self):
        until = time.monotonic() + DEADLINE
        line = b""
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not selector.select(remaining(until)):
                    self.kill9()
                    raise AssertionError(f"not ready within {DEADLINE} s\n{self.log()}")
                part = os.read(self.process.stdout.fileno(), 4096)
                if not part:
                    code = self.process.wait(DEADLINE)
                    raise AssertionError(f"ended with {code} before it was ready\n{self.log()}")
                line += part
        return line.decode()

    def log(self):
        """What all processes on this store have said to stderr."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    @property
    def mqtt_port(self):
        """Port of the MQTT door."""
        return int(self.doors["mqtt"].rsplit(":", 1)[1])

    def channel(self, **options):
        """A new gRPC channel; closed with the broker."""
        channel = grpc.insecure_channel(self.doors["grpc"], **options)
        self._channels.append(channel)
        return channel

    def queues(self, channel=None):
        """The QueueService, on a channel of its own unless one is given."""
        return queue_pb2_grpc.QueueServiceStub(channel or self.channel())

    def pubsub(self, channel=None):
        """The PubSubService, likewise."""
        return pubsub_pb2_grpc.PubSubServiceStub(channel or self.channel())

    def admin(self, channel=None):
        """The AdminService, likewise."""
        return admin_pb2_grpc.AdminServiceStub(channel or self.channel())

    def kill9(self):
        """Kills it as a crash would, and waits until it is gone."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(DEADLINE)
        self.process.stdout.close()
        self._close_channels()

    def terminate(self):
        """SIGTERM; says with which code it ended."""
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(DEADLINE)
        self.process.stdout.close()
        self._close_channels()
        return code

    def restart(self):
        """Starts it again after it ended, on the same store."""
        self.start()

    def crash(self):
        """kill -9 and start again on the same store."""
        self.kill9()
        self.start()

    def _close_channels(self):
        for channel in self._channels:
            channel.close()
        self._channels.clear()

    def stop(self):
        """The end of a test: a clean stop, which must succeed if the broker still runs."""
        if self.process.poll() is None:
            # Streams that a test left open end first: an open stream may use up the time to drain.
            self._close_channels()
            try:
                code = self.terminate()
            except subprocess.TimeoutExpired:
                self.kill9()
                raise
            assert code == 0, f"ended with {code}\n{self.log()}"
