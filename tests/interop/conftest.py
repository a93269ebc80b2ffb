"""Fixtures: a fresh broker for each test, and clients that end with it."""

import os
from pathlib import Path

import pytest

from harness.broker import Broker
from harness.certificates import certify
from harness.paho_client import Paho
from harness.tools import Mosquitto


@pytest.fixture(scope="session")
def binary():
    """The program under test."""
    path = Path(os.environ["STAFETT_BINARY"])
    assert os.access(path, os.X_OK), f"{path} cannot be run"
    return path


@pytest.fixture(scope="session")
def certificates(tmp_path_factory):
    """A directory with what `certify` makes."""
    directory = tmp_path_factory.mktemp("certificates")
    certify(directory)
    return directory


@pytest.fixture
def start_broker(binary, tmp_path, request):
    """Starts brokers, each on a store of its own; stops them at the end, and shows their logs when the test failed."""
    started = []

    def start(*flags, keep_ports=False):
        directory = tmp_path / f"broker{len(started)}"
        directory.mkdir()
        broker = Broker(binary, directory, flags, keep_ports)
        started.append(broker)
        return broker

    yield start
    failed = getattr(request.node, "failed", False)
    for broker in started:
        if failed:
            print(f"--- the broker's log\n{broker.log()[-4000:]}")
        broker.stop()


@pytest.fixture
def broker(start_broker):
    """One broker on free ports."""
    return start_broker()


@pytest.fixture
def mosquitto(broker):
    """mosquitto_pub and mosquitto_sub for it."""
    clients = Mosquitto(broker.mqtt_port)
    yield clients
    clients.stop()


@pytest.fixture
def paho(broker):
    """Makes paho clients for it."""
    made = []

    def connect(*arguments, **options):
        client = Paho(broker.mqtt_port, *arguments, **options)
        made.append(client)
        return client

    yield connect
    for client in made:
        client.drop()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.failed:
        item.failed = True
    return report
