#!/usr/bin/python3
"""A second disk whose power fails: the same as shim.c models, told by the kernel and not by the C library.

witness.py MOUNT STORE IMAGE CONTROL SEED

A file system (FUSE) at MOUNT shows what lies in STORE. It keeps what was synced apart from what was only written, so it also
sees what goes past the C library, through copied descriptors, through paths relative to a directory, and through maps. Names
hold when their directory was synced; sync_file_range never arrives here, and so counts as no sync.

What it is to do is said in the file CONTROL, which is read and removed at the next call: `cut KIND N` or `kill KIND N`, as in
shim.c. At the end, by cut or because it is unmounted, IMAGE/tree is what the disk has left and IMAGE/report says what it saw.
"ready" on stdout says that it is mounted.
"""

import errno
import os
import random
import signal
import stat
import sys
from pathlib import Path

import fusepy as fuse

SECTOR = 512
KINDS = ("write", "sync", "truncate", "create", "rename", "unlink", "mkdir")


class File:
    """What its readers see, what was synced, and the changes between the two."""

    def __init__(self, data=b""):
        self.data = bytearray(data)
        self.synced = bytearray(data)
        self.pending = []
        self.links = 1

    def write(self, data, at):
        self.pending.append((at, bytes(data)))
        put(self.data, data, at)

    def truncate(self, length):
        self.pending.append((length, None))
        cut_to(self.data, length)

    def sync(self):
        for at, data in self.pending:
            apply(self.synced, at, data)
        self.pending.clear()

    def lose(self, chance):
        """What a power cut leaves of it: all, nothing, a beginning with a torn end, or sectors by chance."""
        how = chance.choice(("nothing", "all", "beginning", "sectors"))
        if how == "all":
            self.sync()
        kept = chance.randrange(len(self.pending)) if how == "beginning" and self.pending else 0
        lost = len(self.pending) - kept
        for index, (at, data) in enumerate(self.pending):
            if index < kept:
                apply(self.synced, at, data)
            elif how == "sectors" or (how == "beginning" and index == kept):
                tear(self.synced, at, data, chance)
        self.pending.clear()
        return lost


def put(to, data, at):
    if len(to) < at:
        to.extend(bytes(at - len(to)))
    to[at : at + len(data)] = data


def cut_to(to, length):
    del to[length:]
    to.extend(bytes(length - len(to)))


def apply(to, at, data):
    if data is None:
        cut_to(to, at)
    else:
        put(to, data, at)


def tear(to, at, data, chance):
    if data is None:
        if chance.random() < 0.5:
            cut_to(to, at)
        return
    begin = 0
    while begin < len(data):
        end = min(len(data), (at + begin) // SECTOR * SECTOR + SECTOR - at)
        if chance.random() < 0.5:
            put(to, data[begin:end], at + begin)
        begin = end


class Witness(fuse.Operations):
    """`now` and `synced` map paths to files, or to None for a directory."""

    def __init__(self, store, image, control, seed):
        self.image = image
        self.control = control
        self.chance = random.Random(seed)
        self.now = {"/": None}
        for found in sorted(store.rglob("*")):
            path = "/" + str(found.relative_to(store))
            self.now[path] = None if found.is_dir() else File(found.read_bytes())
        self.synced = dict(self.now)
        self.names = []
        self.handles = {}
        self.next = 0
        self.seen = dict.fromkeys(("calls", "syncs", "failed", "unsynced", "lost_writes", "lost_names", *KINDS), 0)
        self.order = None
        self.over = False
        self.goes_on = None

    # What it is told.

    def counted(self, kind):
        if self.over:
            raise fuse.FuseOSError(errno.EIO)
        self.look_at_control()
        self.seen["calls"] += 1
        self.seen[kind] += 1
        if self.order is None or self.order[1] not in ("any", kind):
            return
        self.order[2] -= 1
        if self.order[2] == 0:
            self.make_image(whole=self.order[0] == "kill")
            os.kill(fuse.fuse_get_context()[2], signal.SIGKILL)
            raise fuse.FuseOSError(errno.EIO)

    def look_at_control(self):
        try:
            words = self.control.read_text().split()
        except FileNotFoundError:
            return
        self.control.unlink()
        end, kind, count = words
        if end not in ("cut", "kill") or kind not in ("any", *KINDS):
            sys.exit(f"witness: no such order: {words}")
        self.order = [end, kind, int(count)]

    # What is left.

    def make_image(self, whole):
        if self.over:
            return
        self.over = True
        for file in {id(file): file for file in self.now.values() if file is not None}.values():
            self.seen["unsynced"] += len(file.pending)
            if whole:
                file.sync()
            else:
                self.seen["lost_writes"] += file.lose(self.chance)
        kept = len(self.names) if whole else self.chance.randrange(len(self.names) + 1)
        self.seen["lost_names"] += len(self.names) - kept
        for path, entry in self.names[:kept]:
            self.hold(path, entry)
        tree = self.image / "tree"
        tree.mkdir(parents=True)
        for path, file in sorted(self.synced.items()):
            to = tree / path[1:]
            if file is None:
                to.mkdir(parents=True, exist_ok=True)
            else:
                to.parent.mkdir(parents=True, exist_ok=True)
                to.write_bytes(file.synced)
        report = "".join(f"{name} {count}\n" for name, count in self.seen.items())
        (self.image / "report").write_text(report)

    def hold(self, path, entry):
        if entry == "gone":
            self.synced.pop(path, None)
        else:
            self.synced[path] = entry

    def name(self, path, entry):
        """A change of names, kept until its directory is synced."""
        self.names.append((path, entry))
        if entry == "gone":
            self.now.pop(path)
        else:
            self.now[path] = entry

    def sync_names(self, directory):
        inside = [(path, entry) for path, entry in self.names if os.path.dirname(path) == directory]
        self.names = [change for change in self.names if change not in inside]
        for path, entry in inside:
            self.hold(path, entry)

    # What the kernel asks.

    def find(self, path):
        if path not in self.now:
            raise fuse.FuseOSError(errno.ENOENT)
        return self.now[path]

    def getattr(self, path, fh=None):
        file = self.handles[fh] if fh is not None else self.find(path)
        if file is None:
            return {"st_mode": stat.S_IFDIR | 0o700, "st_nlink": 2, "st_uid": os.getuid(), "st_gid": os.getgid()}
        size = len(file.data)
        mode = stat.S_IFREG | 0o600
        return {"st_mode": mode, "st_nlink": file.links, "st_size": size, "st_blocks": (size + 511) // 512,
                "st_uid": os.getuid(), "st_gid": os.getgid()}

    def readdir(self, path, fh):
        inside = (name for name in self.now if name != "/" and os.path.dirname(name) == path)
        return [".", "..", *map(os.path.basename, inside)]

    def opened(self, file):
        self.next += 1
        self.handles[self.next] = file
        return self.next

    def create(self, path, mode, fi=None):
        self.counted("create")
        file = File()
        self.name(path, file)
        return self.opened(file)

    def open(self, path, flags):
        return self.opened(self.find(path))

    def opendir(self, path):
        self.find(path)
        return 0

    def release(self, path, fh):
        self.handles.pop(fh)

    def read(self, path, size, offset, fh):
        return bytes(self.handles[fh].data[offset : offset + size])

    def write(self, path, data, offset, fh):
        file = self.handles[fh]
        # The kernel hands a long write over page by page; it counts once.
        if self.over or self.goes_on != (file, offset):
            self.counted("write")
        self.goes_on = (file, offset + len(data))
        file.write(data, offset)
        return len(data)

    def truncate(self, path, length, fh=None):
        self.counted("truncate")
        (self.handles[fh] if fh is not None else self.find(path)).truncate(length)

    def fsync(self, path, datasync, fh):
        self.counted("sync")
        self.seen["syncs"] += 1
        self.handles[fh].sync()

    def fsyncdir(self, path, datasync, fh):
        self.counted("sync")
        self.seen["syncs"] += 1
        self.sync_names(path)

    def mkdir(self, path, mode):
        self.counted("mkdir")
        self.name(path, None)

    def unlink(self, path):
        self.counted("unlink")
        self.find(path).links = 0
        self.name(path, "gone")

    def rmdir(self, path):
        self.counted("unlink")
        self.name(path, "gone")

    def rename(self, old, new):
        self.counted("rename")
        self.name(new, self.find(old))
        self.name(old, "gone")

    def statfs(self, path):
        blocks = 1 << 24
        return {"f_bsize": 4096, "f_frsize": 4096, "f_blocks": blocks, "f_bfree": blocks, "f_bavail": blocks}

    def init(self, path):
        print("ready", flush=True)

    def destroy(self, path):
        self.make_image(whole=False)


def main():
    mount, store, image, control, seed = sys.argv[1:]
    witness = Witness(Path(store), Path(image), Path(control), int(seed))
    fuse.FUSE(witness, mount, foreground=True, nothreads=True, big_writes=True, fsname="stafett-witness")


if __name__ == "__main__":
    main()
