"""Users: the command-line tools with user name and password, and a password that is asked for at a terminal."""

import os
import pty
import select
import subprocess
import termios
import time

import pytest

from harness import DEADLINE, remaining
from harness.tools import Mosquitto, Tool, got


@pytest.fixture
def users(binary, tmp_path):
    """A users' file: ann's password is "secret"."""
    file = tmp_path / "users"
    subprocess.run([binary, "passwd", file, "ann"], input="secret\n", text=True, check=True, timeout=DEADLINE)
    return file


def start(start_broker, users):
    """A broker that lets in these users alone."""
    config = users.with_name("stafett.toml")
    config.write_text(f'[mqtt]\nusers = "{users}"\n')
    return start_broker("--config", config)


@pytest.mark.parametrize("version", ("mqttv311", "mqttv5"))
def test_a_user_name_and_a_password(start_broker, users, version):
    broker = start(start_broker, users)
    clients = Mosquitto(broker.mqtt_port)
    ann = ("-V", version, "-u", "ann", "-P", "secret")
    subscriber = clients.subscribe(*ann, "-q", 1, "-t", "a", "-C", 1)
    clients.publish("a", "from ann", *ann, "-q", 1)
    assert got(subscriber, 1) == ["1 0 a from ann"]
    subscriber.ends()
    for wrong in (("-u", "ann", "-P", "guessed"), ("-u", "nobody", "-P", "secret"), ()):
        refused = Tool("mosquitto_pub", "-p", broker.mqtt_port, "-V", version, *wrong, "-t", "a", "-m", "x")
        why = "not authori" if not wrong else "bad user name or password"
        refused.until(lambda lines, why=why: any(why in line.lower() for line in lines), why)
        assert refused.process.wait(DEADLINE) != 0


def read(terminal, until):
    """What a terminal says next."""
    assert select.select([terminal], [], [], remaining(until))[0], "it says nothing"
    return os.read(terminal, 1024)


def test_a_password_is_asked_for_at_a_terminal(binary, users, start_broker):
    for again, code in (("typed", 0), ("mistyped", 2)):
        pid, terminal = pty.fork()
        if pid == 0:
            os.execv(binary, [str(binary), "passwd", str(users), "bob"])
        said = b""
        until = time.monotonic() + DEADLINE
        for prompt, answer in ((b"Password of bob: ", "typed"), (b"Again: ", again)):
            while prompt not in said:
                said += read(terminal, until)
            # The prompt comes first, and nothing tells when the terminal stops to show: a person is not as quick as this.
            while termios.tcgetattr(terminal)[3] & termios.ECHO:
                assert remaining(until), "the terminal shows what is typed"
            os.write(terminal, answer.encode() + b"\n")
        try:
            while part := read(terminal, until):
                said += part
        except OSError:
            pass  # That is how a terminal ends.
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == code, said
        assert b"typed" not in said, "the password was shown"
        assert (b"the two passwords differ" in said) == (code == 2), said
        os.close(terminal)
    clients = Mosquitto(start(start_broker, users).mqtt_port)
    clients.publish("a", "x", "-u", "bob", "-P", "typed", "-q", 1)
