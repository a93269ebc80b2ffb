"""The programs of examples/ against the real broker: what they do, and what they say."""

import itertools
import os
import shlex
import subprocess

import pytest
from google.protobuf import duration_pb2
from stafett.v1 import call_pb2, call_pb2_grpc, queue_pb2

from harness import DEADLINE, examples
from harness.streams import Stream

LANGUAGES = os.environ["STAFETT_EXAMPLES"].split()


@pytest.fixture
def broker(start_broker, binary):
    """The broker and the queues as the README says."""
    serve, *queues = map(shlex.split, examples.commands(""))
    assert serve[:3] == ["stafett", "serve", "--config"], serve
    started = start_broker("--config", examples.ROOT / serve[3], keep_ports=True)
    for command in queues:
        assert command[0] == "stafett", command
        server = {"STAFETT_SERVER": f"http://{started.doors['grpc']}"}
        subprocess.run([binary, *command[1:]], check=True, timeout=DEADLINE, env=server, stdout=subprocess.DEVNULL)
    return started


@pytest.fixture
def start(broker):
    """Starts programs; what still runs is stopped at the end."""
    started = []

    def one(language, program, *arguments, door="grpc"):
        tool = examples.start(language, program, "--server", broker.doors[door], *arguments)
        started.append(tool)
        return tool

    yield one
    for tool in started:
        tool.stop()


def stopped(tool):
    """Ends a program as ctrl-c does: it must say so, and find nothing wrong."""
    tool.process.terminate()
    assert tool.ends()[-1] == "stopped"


def test_every_publisher_reaches_every_subscriber(start):
    subscribers = [start(language, "subscriber", "room/#") for language in LANGUAGES]
    for subscriber in subscribers:
        subscriber.says("subscribed to room/#")
    publishers = [start(language, "publisher", f"room/{language}", "22 degrees") for language in LANGUAGES]
    for publisher in publishers:
        assert publisher.ends() == [f"published to {len(LANGUAGES)} subscribers and 0 queues"]
    for subscriber, language in itertools.product(subscribers, LANGUAGES):
        subscriber.says(f"room/{language}: 22 degrees")
    for subscriber in subscribers:
        stopped(subscriber)


def queue_for(broker, language):
    """A queue like the one of the README, for the programs of one language alone."""
    queues = broker.queues()
    queue = queues.GetQueue(queue_pb2.GetQueueRequest(name="jobs"), timeout=DEADLINE).queue
    queue.name = f"jobs.{language}"
    queues.CreateQueue(queue_pb2.CreateQueueRequest(queue=queue), timeout=DEADLINE)
    return queue.name


def test_a_worker_gets_what_a_producer_puts(broker, start):
    queues = {language: queue_for(broker, language) for language in LANGUAGES}
    workers = {language: start(language, "worker", queue) for language, queue in queues.items()}
    for language, worker in workers.items():
        worker.says(f"working on {queues[language]}")
    for language, queue in queues.items():
        assert start(language, "producer", queue, "one", "bad two", "three").ends() == ["stored 3 messages"]
    for worker in workers.values():
        worker.says("done: one")
        worker.says("done: three")
        worker.says("failed: bad two (attempt 3): a bad job")
    wait = duration_pb2.Duration(seconds=int(DEADLINE / 2))
    asked = queue_pb2.ReceiveRequest(queue="jobs.dead", wait=wait, auto_ack=True)
    buried = [broker.queues().Receive(asked, timeout=DEADLINE).messages[0] for _ in LANGUAGES]
    assert {(dead.dead_letter.source_queue, dead.dead_letter.attempts) for dead in buried} == {
        (queue, 3) for queue in queues.values()
    }
    assert {dead.message.payload for dead in buried} == {b"bad two"}
    for language, worker in workers.items():
        stopped(worker)
        # What it has done was acknowledged before it ended.
        asked = queue_pb2.GetQueueStatsRequest(name=queues[language])
        stats = broker.queues().GetQueueStats(asked, timeout=DEADLINE).stats
        assert (stats.ready, stats.leased, stats.delayed, stats.consumers) == (0, 0, 0, 0)


@pytest.mark.parametrize("kill", (False, True), ids=("stop", "kill"))
def test_what_holds_a_stream_comes_back_with_the_broker(broker, start, kill):
    running = [
        (
            start(language, "worker", queue_for(broker, language)),
            start(language, "subscriber", f"room/{language}"),
            start(language, "responder", f"text/{language}"),
        )
        for language in LANGUAGES
    ]
    for count in (1, 2):
        for worker, subscriber, responder in running:
            worker.says("working on jobs", count)
            subscriber.says("subscribed to room/", count)
            responder.says("serving text/", count)
        if count == 1:
            broker.kill9() if kill else broker.terminate()
            broker.restart()
    for language, (worker, subscriber, responder) in zip(LANGUAGES, running, strict=True):
        start(language, "producer", f"jobs.{language}", "four").ends()
        worker.says("done: four")
        start(language, "publisher", f"room/{language}", "23 degrees").ends()
        subscriber.says(f"room/{language}: 23 degrees")
        assert start(language, "caller", f"text/{language}", "again").ends()[0].startswith("AGAIN (from ")
        for tool in (worker, subscriber, responder):
            stopped(tool)


def test_every_caller_reaches_every_responder(start):
    responders = {language: start(language, "responder", f"text/{language}") for language in LANGUAGES}
    for language, responder in responders.items():
        responder.says(f"serving text/{language} as ")
    for caller, (language, responder) in itertools.product(LANGUAGES, responders.items()):
        (answer,) = start(caller, "caller", f"text/{language}", f"hello from {caller}").ends()
        assert answer.startswith(f"{f'hello from {caller}'.upper()} (from "), answer
        responder.says(f"answered hello from {caller}")
    for caller, (language, responder) in zip(LANGUAGES, responders.items(), strict=True):
        (answer,) = start(caller, "caller", f"text/{language}", "").ends(1)
        assert answer.endswith(": there is no text") and spelt("INVALID_ARGUMENT", answer), answer
        stopped(responder)


DIVIDED = [language for language in LANGUAGES if language in ("Python", "Rust")]


@pytest.mark.skipif(not DIVIDED, reason="neither Python nor Rust is wanted")
def test_primes_are_counted_by_whoever_serves_whoever_is_lost(broker, start):
    alone = start(DIVIDED[0], "sieve", "primes/one")
    both = [start(language, "sieve", "primes/two") for language in DIVIDED]
    for sieve in (alone, *both):
        sieve.says("serving primes/")
    for language in DIVIDED:
        *lines, compared = start(language, "primes", "20000", "primes/one", "primes/two", "--runs", "3").ends()
        counted = [line.split(", ")[:2] for line in lines]
        assert counted[0] == ["primes/one: 2262 primes", "1 at work"], lines
        assert counted[1][0] == "primes/two: 2262 primes", lines
        assert compared.endswith(" of the time (medians of 3)"), compared
    # One that is killed at work; there are as many primes all the same. A quick one might do all: then it was lost idle.
    another = start(DIVIDED[0], "sieve", "primes/two")
    another.says("serving primes/two")
    counting = start(DIVIDED[-1], "primes", "200000", "primes/two")
    another.says("part ")
    another.process.kill()
    (line,) = counting.ends()
    assert line.startswith("primes/two: 17984 primes, "), line
    (wrong,) = start(DIVIDED[0], "caller", "primes/two", "some").ends(1)
    assert spelt("INVALID_ARGUMENT", wrong), wrong
    for sieve in (alone, *both):
        stopped(sieve)
    (nobody,) = start(DIVIDED[0], "primes", "9", "primes/two").ends(1)
    assert nobody == "NO_RESPONDERS: nobody serves `primes/two`"


def test_a_call_outlives_who_made_it_and_the_broker(broker, start):
    ids = {}
    for language in LANGUAGES:
        later = start(language, "later", "--timeout", "600", f"later/{language}", f"hello from {language}")
        (stored,) = later.says("stored ")
        ids[language] = stored.removeprefix("stored ")
        later.process.kill()
    broker.kill9()
    broker.restart()
    for language, responder in itertools.product(LANGUAGES, LANGUAGES[:1]):
        serving = start(responder, "responder", f"later/{language}")
        (answer,) = start(language, "later", ids[language]).ends()
        assert answer.startswith(f"HELLO FROM {language.upper()} (from "), answer
        # And who stays has it at once.
        stored, answer = start(language, "later", f"later/{language}", "again").ends()
        assert stored.startswith("stored ") and answer.startswith("AGAIN (from "), (stored, answer)
        stopped(serving)
        *_, late = start(language, "later", "--timeout", "0.2", f"later/{language}", "x").ends(1)
        assert late == "the deadline of the call has passed", late
        (unknown,) = start(language, "later", "0" * 26).ends(1)
        assert spelt("NOT_FOUND", unknown), unknown


def spelt(code, line):
    """Whether a line begins with a status code, which each language spells as it does."""
    return line.replace("_", "").lower().startswith(code.replace("_", "").lower())


@pytest.mark.parametrize("language", LANGUAGES)
def test_what_goes_wrong_is_said(broker, start, language):
    assert start(language, "caller", "text/upper", "x").ends(1) == ["NO_RESPONDERS: nobody serves `text/upper`"]
    opening = call_pb2.ServeRequest(open=call_pb2.ServeOpen(service="text/silent"))
    silent = Stream(call_pb2_grpc.CallServiceStub(broker.channel()).Serve, opening)
    silent.expect("opened")
    (late,) = start(language, "caller", "--timeout", "0.5", "text/silent", "x").ends(1)
    assert spelt("DEADLINE_EXCEEDED", late), late
    # The responder is told of the deadline, and that it has passed.
    (request,) = silent.expect("requests").requests
    assert request.HasField("deadline")
    assert silent.expect("cancelled").request_ids == [request.request_id]
    silent.cancel()
    for program, arguments in (("worker", ()), ("producer", ("x",))):
        (unknown,) = start(language, program, "nowhere", *arguments).ends(1)
        assert spelt("NOT_FOUND", unknown) and "nowhere" in unknown, unknown
    (refused,) = start(language, "subscriber", "room/#/x").ends(1)
    assert spelt("INVALID_ARGUMENT", refused), refused


def test_a_lamp_is_called_from_every_language(broker, start):
    lamp = start("Device", "lamp", "kitchen", door="mqtt")
    for count in (1, 2):
        lamp.says("ready for lamps/kitchen/set", count)
        if count == 1:
            broker.crash()
    for language, state in zip(LANGUAGES, itertools.cycle(("on", "off"))):
        answer = start(language, "caller", "lamps/kitchen/set", state).ends()
        assert answer == [f"{state} (from lamp-kitchen)"]
    nobody = start(LANGUAGES[0], "caller", "lamps/cellar/set", "on").ends(1)
    assert nobody == ["NO_RESPONDERS: nobody serves `lamps/cellar/set`"]
