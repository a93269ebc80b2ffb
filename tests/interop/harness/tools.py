"""Command-line clients as child processes, their output awaited line by line."""

import subprocess
import threading
import time

from harness import DEADLINE, remaining

# Told whenever any tool says something, so that several can be awaited together.
_SAID = threading.Condition()


class Tool:
    """A running program and what it says, stderr included."""

    def __init__(self, *command, stdin=None, cwd=None):
        # Without stdbuf the mosquitto clients hold back what they say while a pipe takes it.
        self.command = [str(word) for word in command]
        self.lines = []
        self._ended = False
        self.process = subprocess.Popen(
            ["stdbuf", "-oL", *self.command],
            stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            cwd=cwd,
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stdout:
            with _SAID:
                self.lines.append(line.rstrip("\n"))
                _SAID.notify_all()
        with _SAID:
            self._ended = True
            _SAID.notify_all()

    def until(self, found, what):
        """Waits until `found(lines)` is something, and returns it."""
        until = time.monotonic() + DEADLINE
        with _SAID:
            while True:
                result = found(self.lines)
                if result:
                    return result
                if self._ended or not _SAID.wait(remaining(until)):
                    ending = "ended" if self._ended else "waited in vain"
                    raise AssertionError(f"{self}: {ending}, awaited {what}")

    def __str__(self):
        return " ".join(self.command) + " said:\n" + "\n".join(self.lines[-30:])

    def says(self, text, count=1):
        """Waits until `text` was in that many lines; returns these lines."""

        def found(lines):
            matching = [line for line in lines if text in line]
            return matching[:count] if len(matching) >= count else None

        return self.until(found, f"{count} × {text!r}")

    def more(self, seconds):
        """Waits until it says something more, for at most this time."""
        with _SAID:
            _SAID.wait(seconds)

    def write(self, text):
        """Writes to its stdin."""
        self.process.stdin.write(text)
        self.process.stdin.flush()

    def close_stdin(self):
        """Says that nothing more is written."""
        self.process.stdin.close()

    def ends(self, code=0):
        """Waits for its end with that code; returns what it said."""
        try:
            ended = self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self.stop()
            raise AssertionError(f"{self}\nand did not end") from None
        self.until(lambda _: self._ended, "the end of its output")
        assert ended == code, f"{self}\nand ended with {ended}"
        return self.lines

    def stop(self):
        """Ends it by SIGTERM, or SIGKILL when it does not listen."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(5)

    def kill9(self):
        """Ends it without a chance to say good-bye."""
        self.process.kill()
        self.process.wait(DEADLINE)


class Mosquitto:
    """mosquitto_pub and mosquitto_sub against one broker."""

    def __init__(self, port):
        self._port = port
        self._running = []

    def publish(self, topic, message, *options):
        """Publishes one message and waits for the end."""
        lines = self.start_pub("-t", topic, "-m", message, *options).ends()
        return lines

    def start_pub(self, *options, stdin=None):
        """mosquitto_pub as it runs."""
        return self._start("mosquitto_pub", *options, stdin=stdin)

    def start_sub(self, *options):
        """mosquitto_sub as it runs. Messages come as lines `got QOS RETAIN TOPIC PAYLOAD`."""
        if "-F" not in options:
            options = (*options, "-F", "got %q %r %t %p")
        return self._start("mosquitto_sub", "-d", *options)

    def subscribe(self, *options):
        """mosquitto_sub, once its subscriptions are active."""
        tool = self.start_sub(*options)
        tool.says("Subscribed (mid")
        return tool

    def _start(self, name, *options, stdin=None):
        tool = Tool(name, "-h", "127.0.0.1", "-p", self._port, *options, stdin=stdin)
        self._running.append(tool)
        return tool

    def stop(self):
        """Ends what still runs."""
        for tool in self._running:
            tool.stop()
        self._running.clear()


def messages(tool):
    """The messages that a mosquitto_sub has printed so far, without `got`."""
    return [line.removeprefix("got ") for line in tool.lines if line.startswith("got ")]


def got(tool, count):
    """Its first messages, awaited."""
    return tool.until(lambda _: messages(tool)[:count] if len(messages(tool)) >= count else None, f"{count} messages")


def got_together(tools, count):
    """What each of several has got, once it is that many in sum."""
    until = time.monotonic() + DEADLINE
    with _SAID:
        while sum(len(messages(tool)) for tool in tools) < count:
            assert _SAID.wait(remaining(until)), f"fewer than {count} messages:\n" + "\n".join(map(str, tools))
        return [messages(tool) for tool in tools]
