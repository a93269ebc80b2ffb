"""The programs of examples/, built and run with the commands that their README gives, in a copy of the tree."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from harness.tools import Tool

ROOT = Path(__file__).resolve().parents[3]
# Where the copy lies; CARGO_TARGET_DIR is that of the broker, which has some of the same crates.
TARGET = Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target").resolve()
COPY = TARGET / "interop" / "examples"
# What was copied there; all else in it was built.
COPIED = COPY.with_suffix(".copied")
README = "examples/README.md"
ENVIRONMENT = {"CARGO_TARGET_DIR": str(TARGET), "PYTHONUNBUFFERED": "1"}
BUILD_SECONDS = 600


def commands(section):
    """The commands of a section of the README, those before its first section for an empty name."""
    text = (ROOT / README).read_text()
    sections = re.split(r"^## +(.*)$", f"## \n{text}", flags=re.M)
    named = dict(zip(sections[1::2], sections[2::2], strict=True))
    blocks = re.findall(r"^```console$(.*?)^```$", named[section], flags=re.M | re.S)
    found = re.findall(r"^\$ (.*)$", "\n".join(blocks), flags=re.M)
    assert found, f"{README}: no commands in the section {section!r}"
    return found


def copy_tree():
    """Copies what the examples are made of, as git knows it or would take it, and removes what no longer is there."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "examples", "proto", "rust-toolchain.toml"]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    current = {name for name in names.split("\0") if (ROOT / name).is_file()}
    if COPIED.exists():
        for name in set(COPIED.read_text().splitlines()) - current:
            (COPY / name).unlink(missing_ok=True)
    else:
        shutil.rmtree(COPY, ignore_errors=True)
    COPIED.parent.mkdir(parents=True, exist_ok=True)
    COPIED.write_text("\n".join(sorted(current)))
    for name in current:
        source, copy = ROOT / name, COPY / name
        if not (copy.exists() and copy.read_bytes() == source.read_bytes()):
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, copy)


def build(section):
    """Runs the commands of a section but the last one, which runs a program."""
    began = time.monotonic()
    *preparing, _run = commands(section)
    script = "\n".join(["set -euo pipefail", *preparing])
    # The tools of the tests are not those of the examples.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | ENVIRONMENT
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=COPY, env=environment, timeout=BUILD_SECONDS, text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"examples: {section} is not built by the commands of {README}:\n{done.stdout[-8000:]}")
    print(f"examples: {section} built in {time.monotonic() - began:.0f} s", flush=True)


def start(section, program, *arguments):
    """A program of a section as it runs: the last command for `program` instead, and other arguments."""
    directory, *_, run = commands(section)
    words = run.split()[:-1]
    renamed = [re.sub(r"\b(worker|lamp)\b", program, word) for word in words]
    environment = [f"{name}={value}" for name, value in ENVIRONMENT.items()]
    command = ["env", "-u", "PYTHONPATH", *environment, *renamed, *arguments]
    return Tool(*command, cwd=COPY / directory.removeprefix("cd "))


if __name__ == "__main__":
    copy_tree()
    for wanted in sys.argv[1:]:
        build(wanted)
