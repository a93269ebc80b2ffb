#!/usr/bin/env python3
"""Our broker against the peer to beat, row by row: the runs of a block alternate between the two, each on a fresh
server. Prints the table of docs/benchmarks.md.

  compare.py run [--only REGEX] [--runs 5] [--secs 3] [--quiet 120]    raw lines go to $LG_OUT/compare.jsonl
  compare.py table                                                     the table of that file again

Environment as in baseline.py. What has no door or no binary here is skipped and listed.
"""
import argparse, json, os, platform, re, resource, statistics, subprocess, sys, time

import baseline
from baseline import EXE, OUT, Server, Skip, measure, wait_quiet

FILES = 20000  # ulimit -n of every server and of the generator: two processes, 10,000 connections each


# A subscriber is there while they publish: what is run over every transport and version.
LIVE = {
    "q0 1-1": ["--e2e-window", "1000"],
    "q0 1-10": ["--subs", "10", "--fanout", "all", "--e2e-window", "1000"],
    "q1": ["--qos", "1", "--window", "100"],
    "q2": ["--qos", "2", "--window", "100"],
}

AMQP = ["amqp", "--uri", "amqp://guest:guest@127.0.0.1:25672/%2f", "--queue"]
JETSTREAM = ["nats", "--addr", "127.0.0.1:24222", "--mode", "js"]
REDIS = ["redis", "--url", "redis://127.0.0.1:26379/"]
STAFETT = ["stafett", "--addr", "{grpc}", "--mode", "queue"]

# system -> (how its scenarios are called, arguments); those that acknowledge after a sync, and the others.
SYNCED = {
    "stafett": ("stafett queue", STAFETT),
    "redis-always": ("redis always", REDIS),
    "nats-sync-always": ("jetstream always", JETSTREAM),
    "rabbitmq": ("rabbitmq quorum", AMQP + ["quorum"]),
}
UNSYNCED = {
    "stafett-interval": ("stafett interval", STAFETT),
    "redis-everysec": ("redis everysec", REDIS),
    "nats": ("jetstream", JETSTREAM),
    "rabbitmq-classic": ("rabbitmq classic", AMQP + ["classic-v2"]),
}
QUEUES = {**SYNCED, **UNSYNCED}


def scenarios(secs):
    """name -> (system, arguments of the generator)"""
    t = ["--secs", str(secs)]
    ours = ["stafett", "--addr", "{grpc}"]
    S = {}
    for system, (called, argv) in QUEUES.items():
        # 4,096 deliveries may be unsettled, as JetStream's max_ack_pending of four pulls of 1,024
        deep = ["--prefetch", "4096"] if system.startswith("stafett") else []
        for w in ("1", "64", "1024"):
            p = ["--phase", "enqueue-drain", "--window", w, *t]
            S[f"{called} w{w}"] = (system, argv + p + deep)
        S[f"{called} live"] = (system, argv + ["--window", "1024", *t] + deep)
        ten = ["--pubs", "10", "--subs", "10", "--topics", "10", "--window", "100"]
        S[f"{called} 10queues"] = (system, argv + ten + t + deep)
        # 100 publishers, each of which is a key; the peers have their messages in one order
        ordered = ["--ordered"] if system.startswith("stafett") else []
        keys = ["--pubs", "100", "--window", "10", *ordered]
        S[f"{called} keys"] = (system, argv + keys + t + deep)
        S[f"{called} 1k/s"] = (system, argv + ["--rate", "1000", "--window", "4096", *t] + deep)
    S["stafett queue shallow"] = ("stafett", ours + ["--mode", "queue", "--prefetch", "1024", "--phase", "enqueue-drain",
                                                     "--window", "1024", *t])
    for system in ("stafett", "rumqttd", "mosquitto", "nats-mqtt", "mqtt-forwarder"):
        addr = "{mqtt}" if system == "stafett" else "127.0.0.1:21883"
        m = ["mqtt", "--addr", addr, *t]
        for name, argv in LIVE.items():
            S[f"{system} mqtt {name}"] = (system, m + argv)
        S[f"{system} mqtt q0 10-1"] = (system, m + ["--pubs", "10", "--topics", "10", "--fanout", "all",
                                                    "--e2e-window", "1000"])
        # 100,000 deliveries may be under way, as with ten subscribers and 10,000
        S[f"{system} mqtt q0 1-100"] = (system, m + ["--subs", "100", "--fanout", "all", "--e2e-window", "100"])
        S[f"{system} mqtt q1 kept"] = (system, m + ["--qos", "1", "--window", "100", "--persistent"])
        for w in ("100", "1024"):
            # as many as a session of ours keeps while it is away, in its default
            S[f"{system} mqtt q1 away w{w}"] = (system, ["mqtt", "--addr", addr, "--qos", "1", "--window", w, "--phase",
                                                         "enqueue-drain", "--count", "100000"])
        for q in ("0", "1"):
            S[f"{system} mqtt q{q} 2k/s"] = (system, m + ["--qos", q, "--rate", "2000"])
        for n in ("10000", "18000"):
            S[f"{system} conns {n}"] = (system, ["mqtt-conns", "--addr", addr, "--conns", n, "--sources", "4"])
    doors = {"tls": "21884", "ws": "21885"}
    for system in ("stafett-doors", "mosquitto-doors", "nats-mqtt-doors"):
        for door, port in doors.items():
            addr = f"{{mqtt.{door}}}" if system == "stafett-doors" else f"127.0.0.1:{port}"
            # 3.1.1: NATS has no other
            m = ["mqtt-library", "--version", "3.1.1", "--transport", door, "--addr", addr, *t]
            m += ["--ca", "{ca}"] if door == "tls" else []
            for name, argv in LIVE.items():
                S[f"{system} {door} {name}"] = (system, m + argv)
    for system, addr in (("stafett", "{mqtt}"), ("mosquitto", "127.0.0.1:21883"), ("rumqttd", "127.0.0.1:21886")):
        for name, argv in LIVE.items():
            S[f"{system} mqtt5 {name}"] = (system, ["mqtt-library", "--version", "5", "--addr", addr, *t, *argv])
    for rate, more in (("1k/s", ["--rate", "1000"]), ("w1", []), ("w64", [])):
        c = ["--mode", "call", "--window", "1" if rate == "w1" else "64", *more, *t]
        S[f"stafett call {rate}"] = ("stafett", ours + c)
        S[f"nats call {rate}"] = ("nats", ["nats", "--addr", "127.0.0.1:24222", *c])
    S["stafett unary publish"] = ("stafett", ours + ["--mode", "publish", "--qos", "1", "--window", "64", *t])
    S["echo unary"] = ("grpc-echo", ["grpc-echo", "--addr", "127.0.0.1:25099", "--window", "64", *t])
    for b in ("1", "16"):
        # nothing is lost at the bound of 4,096 under way; the echo has 1,024
        stream = ["--mode", "pubsub", "--qos", "1", "--window", "1024", "--batch", b, *t]
        S[f"stafett stream b{b}"] = ("stafett", ours + stream + ["--e2e-window", "4096"])
        S[f"stafett stream b{b} alone"] = ("stafett", ours + stream + ["--subs", "0", "--phase", "enqueue"])
        S[f"echo bidi b{b}"] = ("grpc-echo", ["grpc-echo", "--addr", "127.0.0.1:25099", "--mode", "bidi",
                                              "--window", "1024", "--batch", b, *t])
    return S


IN, OUT_, RSS = "pub_msgs_s", "msgs_s", "rss_per_conn_bytes"
CPU, CONNECTS = "server_cpu_us", "connect_rate_s"
WORDS = {"q0 1-1": "QoS 0, 1 → 1", "q0 1-10": "QoS 0, 1 → 10", "q0 10-1": "QoS 0, 10 → 1", "q0 1-100": "QoS 0, 1 → 100",
         "q1": "QoS 1, 100 in flight", "q2": "QoS 2, 100 in flight"}
CALLED = {"mqtt-forwarder": "bare MQTT forwarder", "nats-mqtt": "NATS, MQTT", "nats-mqtt-doors": "NATS, MQTT",
          "mosquitto-doors": "mosquitto",
          "redis always": "Redis Streams, appendfsync always", "jetstream always": "JetStream, sync_interval always",
          "rabbitmq quorum": "RabbitMQ, quorum queue", "redis everysec": "Redis Streams, appendfsync everysec",
          "jetstream": "JetStream", "rabbitmq classic": "RabbitMQ, classic queue"}


def mqtt_rows():
    """The rows of the MQTT door; see ROWS."""
    def row(what, name, metric, peer):
        rows.append((what, f"stafett {name}", metric, f"{peer} {name}", metric, CALLED.get(peer, peer)))

    rows = []
    everyone = ("mqtt-forwarder", "nats-mqtt", "rumqttd", "mosquitto")
    for name in ("q0 1-1", "q0 10-1", "q0 1-10", "q0 1-100"):
        for peer in everyone:
            row(f"MQTT {WORDS[name]}", f"mqtt {name}", OUT_, peer)
        for peer in everyone:
            row(f"MQTT {WORDS[name]}, µs of the server's CPU per delivery (less is better)", f"mqtt {name}", CPU, peer)
    for name in ("q1", "q2"):
        for peer in ("mqtt-forwarder", "rumqttd", "nats-mqtt", "mosquitto"):
            row(f"MQTT {WORDS[name]}", f"mqtt {name}", OUT_, peer)
    for peer in ("nats-mqtt", "mosquitto"):
        row("MQTT QoS 1 to a connected session that is kept, 100 in flight", "mqtt q1 kept", OUT_, peer)
    for w in ("100", "1024"):
        for peer in ("nats-mqtt", "mosquitto"):
            row(f"MQTT QoS 1 to a session that is away, {w} in flight", f"mqtt q1 away w{w}", IN, peer)
            row(f"MQTT QoS 1, drain of that session ({w} in flight)", f"mqtt q1 away w{w}", OUT_, peer)
    for q in ("0", "1"):
        for quantile, called in (("p50", "p50"), ("p99", "p99"), ("p999", "p99.9")):
            row(f"MQTT QoS {q}, 2 000 a second, {called} in µs (less is better)", f"mqtt q{q} 2k/s",
                f"lat_us.{quantile}", "mosquitto")
    for n, called in (("10000", "10 000"), ("18000", "18 000")):
        for peer in ("mosquitto", "rumqttd", "nats-mqtt"):
            row(f"{called} idle MQTT connections, bytes of RSS each (less is better)", f"conns {n}", RSS, peer)
            row(f"{called} MQTT connections with a subscription, per second", f"conns {n}", CONNECTS, peer)
    for name in LIVE:
        for peer in ("rumqttd", "mosquitto"):
            row(f"MQTT 5, {WORDS[name]}", f"mqtt5 {name}", OUT_, peer)
        for door, called in (("tls", "TLS"), ("ws", "WebSocket")):
            for peer in ("nats-mqtt", "mosquitto"):
                rows.append((f"MQTT over {called}, {WORDS[name]}", f"stafett-doors {door} {name}", OUT_,
                             f"{peer}-doors {door} {name}", OUT_, CALLED.get(peer, peer)))
    return rows


def queue_rows():
    """Produce, Consume and both; see ROWS."""
    def row(what, ours, metric, theirs):
        rows.append((what, ours, metric, theirs, metric, CALLED[theirs.rsplit(" ", 1)[0]]))

    rows = []
    synced, unsynced = ([called for called, _ in group.values()] for group in (SYNCED, UNSYNCED))
    for (ours, *peers), how in ((synced, "acknowledged after sync"), (unsynced, "acknowledged before it")):
        for w, called in (("1", "1"), ("64", "64"), ("1024", "1 024")):
            for peer in peers:
                row(f"Produce, {how}, {called} in flight", f"{ours} w{w}", IN, f"{peer} w{w}")
        for peer in peers:
            row(f"Consume + ack of the backlog of 1 024 in flight, {how}", f"{ours} w1024", OUT_, f"{peer} w1024")
        for peer in peers:
            row(f"Produce and Consume at once, 1 024 in flight, {how}", f"{ours} live", OUT_, f"{peer} live")
        for peer in peers:
            row(f"Produce and Consume at once, 10 queues, 100 in flight each, {how}", f"{ours} 10queues", OUT_,
                f"{peer} 10queues")
        for peer in peers:
            row(f"Produce and Consume at once, ordered by 100 keys, 10 in flight each, {how}", f"{ours} keys", OUT_,
                f"{peer} keys")
        for quantile in ("p50", "p99"):
            for peer in peers:
                row(f"Produce to delivery at 1 000 a second, {quantile} in µs (less is better), {how}", f"{ours} 1k/s",
                    f"lat_us.{quantile}", f"{peer} 1k/s")
    return rows


# (what, our scenario, metric, the peer's scenario, metric, how the peer is called)
ROWS = [
    *queue_rows(),
    ("Consume + ack, 1 024 unsettled", "stafett queue shallow", OUT_, "jetstream w1024", OUT_, CALLED["jetstream"]),
    ("Publish (unary), at least once, one subscriber, 64 callers", "stafett unary publish", IN, "echo unary", IN,
     "bare unary echo"),
    *[(f"PublishStream, 1 024 in flight, {b} a frame, {what}", f"stafett stream b{b}{s}", m, f"echo bidi b{b}", OUT_,
       "bare stream echo") for b in ("1", "16") for what, s, m in
      (("one subscriber", "", OUT_), ("no subscriber", " alone", IN))],
    *[(f"Call, 1 000 a second, {called} in µs (less is better)", "stafett call 1k/s", f"ack_us.{quantile}",
       "nats call 1k/s", f"ack_us.{quantile}", "NATS request/reply")
      for quantile, called in (("p50", "p50"), ("p99", "p99"), ("p999", "p99.9"))],
    *[(f"Call, {callers}", f"stafett call {w}", IN, f"nats call {w}", IN, "NATS request/reply")
      for w, callers in (("w1", "one caller"), ("w64", "64 callers"))],
    *mqtt_rows(),
]


def blocks(only):
    """Rows that share a scenario are measured together: lists of scenario names, in order."""
    rows = [r for r in ROWS if not only or re.search(only, f"{r[0]}: {r[5]}")]
    result = []
    for what, ours, _, theirs, _, _ in rows:
        block = next((b for b in result if ours in b or theirs in b), None)
        if block is None:
            result.append(block := [])
        block += [name for name in (ours, theirs) if name not in block]
    return result


# ---- running ------------------------------------------------------------------------------------
def one(system, argv, left):
    server = Server(system)
    try:
        left = wait_quiet(left)
        return measure(server, argv), left
    finally:
        server.stop()


def run(o):
    os.makedirs(OUT, exist_ok=True)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if limit != resource.RLIM_INFINITY and limit < FILES:
        raise SystemExit(f"ulimit -Hn is {limit}, {FILES} are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, FILES))
    table = scenarios(o.secs)
    left = o.quiet
    out = open(f"{OUT}/compare.jsonl", "w")
    put = lambda rec: (out.write(json.dumps(rec) + "\n"), out.flush())
    put(dict(about=about(), runs=o.runs, secs=o.secs))
    for block in blocks(o.only):
        skipped = set()
        for i in range(o.runs):
            for name in block:
                if name in skipped:
                    continue
                system, argv = table[name]
                try:
                    rec, left = one(system, argv, left)
                except Skip as why:
                    skipped.add(name)
                    print(f"skipped {name}: {why}", file=sys.stderr, flush=True)
                    put(dict(scenario=name, skipped=str(why)))
                    continue
                put({**rec, "scenario": name, "run": i})
                shown = rec.get(RSS) or f"{rec.get('pub_msgs_s', '-')} in, {rec.get('msgs_s', '-')} out"
                print(f"{time.strftime('%H:%M:%S')} {name}: {shown}{' NOISY' if rec['noisy'] else ''} "
                      f"{rec.get('stderr', '')[-200:]}", flush=True)
    out.close()
    print()
    show(o)


# ---- the table ----------------------------------------------------------------------------------
def first_line(*argv):
    try:
        r = subprocess.run(argv, capture_output=True, text=True, timeout=10)
        return next((l.strip() for l in (r.stdout + r.stderr).splitlines() if l.strip()), "?")
    except (OSError, subprocess.TimeoutExpired):
        return "?"


def about():
    """The machine and what was measured on it."""
    cpuinfo = open("/proc/cpuinfo").read()
    cpu = re.search(r"model name\s*:\s*(.*)", cpuinfo)
    memory = int(re.search(r"MemTotal:\s*(\d+)", open("/proc/meminfo").read())[1]) / 2**20
    os.makedirs(baseline.WORK, exist_ok=True)
    lines = [f"{os.cpu_count()} × {cpu[1] if cpu else platform.machine()}, {memory:.0f} GiB, "
             f"Linux {platform.release()}, data on {first_line('findmnt', '-n', '-o', 'FSTYPE', '-T', baseline.WORK)}"]
    said = dict(STAFETT=["--version"], REDIS=["--version"], NATS=["--version"], MOSQUITTO=["-h"])
    lines += [first_line(EXE[k], *a) for k, a in said.items() if EXE[k]]
    if EXE["RABBITMQ"]:  # so does its --version
        lines.append("RabbitMQ " + first_line("dpkg-query", "-W", "-f", "${Version}", "rabbitmq-server"))
    if EXE["RUMQTTD"]:  # its --version starts it
        lines.append("rumqttd " + version_of_rumqttd())
    return lines


def version_of_rumqttd():
    """cargo install writes beside the binary what it has installed."""
    path = os.path.join(os.path.dirname(EXE["RUMQTTD"]), "..", ".crates.toml")
    found = re.search(r'"rumqttd (\S+)', open(path).read()) if os.path.exists(path) else None
    return found[1] if found else "of unknown version"


def amount(x):
    if x >= 999_500:
        return f"{x / 1e6:.2f} M"
    if x >= 9_950:
        return f"{x / 1e3:.0f} k"
    return f"{x / 1e3:.1f} k" if x >= 1_000 else f"{x:.0f}" if x >= 100 else f"{x:.3g}"


def value(rec, metric):
    """A figure of a run: what it says, `a.b` what stands in `a`, or what follows from it. None where it has none."""
    if metric == CPU:
        got = rec.get("received")
        return 1e6 * rec["server_cpu_s"] / got if got and "server_cpu_s" in rec else None
    for key in metric.split("."):
        rec = rec.get(key) if isinstance(rec, dict) else None
    return rec


def cell(recs, metric):
    values = [v for v in (value(r, metric) for r in recs if not r.get("failed")) if v is not None]
    if not values:
        return None, "failed" if recs else "not run"
    mid = statistics.median(values)
    return mid, f"{amount(mid)} ({amount(min(values))}–{amount(max(values))})"


def remarks(recs):
    """What a reader must know of these runs: nothing, as a rule."""
    notes = []
    for key, word in (("lost", "lost"), ("duplicates", "repeated"), ("reordered", "out of order"), ("garbage", "broken"),
                      ("pub_errors", "refused"), ("unacked", "unacknowledged"), ("left_in_server", "left"),
                      ("failed", "failed")):
        worst = max((int(r.get(key) or 0) for r in recs), default=0)
        if worst:
            notes.append(f"{worst} {word}")
    if any(r.get("client_cpu_s", 0) > 0.9 * r.get("wall_s", 1) for r in recs):
        notes.append("generator at its limit")
    if noisy := sum(r.get("noisy", False) for r in recs):
        notes.append(f"{noisy} of {len(recs)} runs noisy")
    return notes


def show(o):
    runs, skipped, head = {}, {}, {}
    for line in open(f"{OUT}/compare.jsonl"):
        rec = json.loads(line)
        if "about" in rec:
            head = rec
        elif "skipped" in rec:
            skipped[rec["scenario"]] = rec["skipped"]
        else:
            runs.setdefault(rec["scenario"], []).append(rec)
    print("\n".join(f"- {l}" for l in head.get("about", [])))
    print(f"- median (min–max) of {head.get('runs')} alternating runs of {head.get('secs'):g} s; messages per second\n")
    print("| what | Stafett | peer | peer's figure | ratio | remarks |\n|---|---|---|---|---|---|")
    only = getattr(o, "only", None)
    for what, ours, metric, theirs, their_metric, peer in ROWS:
        if only and not re.search(only, f"{what}: {peer}"):
            continue
        a, shown_a = cell(runs.get(ours, []), metric)
        b, shown_b = cell(runs.get(theirs, []), their_metric)
        shown_a = "skipped" if ours in skipped else shown_a
        shown_b = "skipped" if theirs in skipped else shown_b
        notes = [f"ours: {n}" for n in remarks(runs.get(ours, []))] + [f"peer: {n}" for n in remarks(runs.get(theirs, []))]
        ratio = f"{a / b:.2f}" if a is not None and b else "–"
        print(f"| {what} | {shown_a} | {peer} | {shown_b} | {ratio} | {'; '.join(notes)} |")
    reasons = {}
    for name, why in skipped.items():
        reasons.setdefault(why.removeprefix(f"{name.split()[0]}: "), []).append(name)
    for why, names in reasons.items():
        print(f"\nSkipped ({why}): {', '.join(names)}.")


if __name__ == "__main__":
    ap = argparse.ArgumentParser()
    sub = ap.add_subparsers(dest="cmd", required=True)
    r = sub.add_parser("run")
    r.add_argument("--only", help="a regular expression on \"what: peer\"")
    r.add_argument("--runs", type=int, default=5)
    r.add_argument("--secs", type=float, default=3)
    r.add_argument("--quiet", type=float, default=120, help="seconds of waiting for a quiet machine, in all")
    r.set_defaults(f=run)
    t = sub.add_parser("table")
    t.add_argument("--only")
    t.set_defaults(f=show)
    o = ap.parse_args()
    o.f(o)
