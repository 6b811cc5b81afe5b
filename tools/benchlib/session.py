"""One process over an empty store, and its mount where it has one."""
import os
import shutil
import signal
import subprocess
import tempfile
import time

from . import processes
from .measure import Late, Reader, limited
from .origin import end, undisturbed


class Missing(Exception):
    """The contender cannot run here; the text says what is missing."""


class Session:
    """The folders of one process; gone at the end, with the process and the mount."""

    def __init__(self, bench):
        self.bench, self.process = bench, None
        self.home = tempfile.mkdtemp(prefix="session-", dir=bench.work)
        self.mount, self.cache = os.path.join(self.home, "mnt"), os.path.join(self.home, "cache")
        for folder in (self.mount, self.cache):
            os.mkdir(folder)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()
        if not self.mounted():  # else it would be emptied
            shutil.rmtree(self.home, ignore_errors=True)

    def spawn(self, command):
        with open(os.path.join(self.home, "log"), "wb") as log, undisturbed():
            self.bench.running.add(self)
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.home,
                                            env=self.bench.environment(self.cache), start_new_session=True)

    def said(self):
        with open(os.path.join(self.home, "log"), errors="replace") as log:
            return " ".join(log.read()[-600:].split())

    def run(self, command):
        """Runs a command to its end; what it printed."""
        self.spawn(command)
        code = processes.wait(self.process, self.bench.limit)
        if code:
            raise OSError(f"{command[0]} ended with {code}: {self.said()}")
        with open(os.path.join(self.home, "log"), errors="replace") as log:
            return log.read()

    def mounted(self):
        with open("/proc/self/mountinfo") as mounts:
            return any(line.split()[4] == self.mount for line in mounts)

    def wait_ready(self, name, then=None):
        """Waits until the mount shows the file `name`: the moment (time.monotonic) at which it did, and what `then()` gave after.

        In a process of its own too: a mount that hangs would hold up who asks it.
        """
        limit = min(60, self.bench.limit)
        try:
            return limited(limit, lambda: (self.poll_ready(name), then() if then else None), self.abort)
        except Late:
            raise Late(f"the mount does not answer within {limit} s") from None

    def poll_ready(self, name):
        while True:
            if processes.fields(self.process.pid)[0] == "Z":
                raise OSError("the command ended before its mount answered")
            if self.mounted():
                try:
                    os.stat(os.path.join(self.mount, name))
                    return time.monotonic()
                except OSError:
                    pass
            time.sleep(0.001)

    def stop(self):
        """Takes the mount away and ends the process, the kind way first."""
        with undisturbed():
            self.unmount()
            self.end()
            self.bench.running.discard(self)

    def unmount(self):
        weightfs = [self.bench.weightfs, "unmount", self.mount]
        for command in (weightfs, ["fusermount3", "-u", self.mount], ["umount", "-l", self.mount], ["fusermount3", "-uz", self.mount]):
            if not self.mounted():
                break
            if command is weightfs and os.path.basename(self.process.args[0]) != os.path.basename(self.bench.weightfs):
                continue
            if command[0] == "umount" and self.process:
                end(self.process)  # a mount that is in use, or hangs, is let go with its server
            processes.quiet(command, self.bench.environment(self.cache))

    def end(self):
        if self.process:
            end(self.process)
            try:
                os.killpg(self.process.pid, signal.SIGKILL)  # what it started itself
            except ProcessLookupError:
                pass

    def abort(self):
        """Frees who waits in the mount."""
        if self.process:
            self.process.kill()
        processes.quiet(["umount", "-l", self.mount], None)

    def pids(self):
        """The process and what it started."""
        return processes.in_session(self.process.pid)

    def usage(self):
        """CPU seconds (user and system) and peak resident bytes of the process and what it started."""
        pids = self.pids()
        return processes.cpu(pids), processes.peak(pids)


class Mounted:
    """A session with its mount ready: (session, reader, seconds from the command to its answer)."""

    def __init__(self, mounter, bench):
        self.mounter, self.session = mounter, Session(bench)

    def __enter__(self):
        session, mounter = self.session, self.mounter
        try:
            session.bench.cool(mounter.server)
            start = time.monotonic()
            session.spawn(mounter.command(session.mount, session.cache))
            ready = session.wait_ready(session.bench.model.shards[0].name)[0] - start
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return session, Reader(session.mount, session.bench.model.shards, mounter.server, start), ready

    def __exit__(self, _, error, __):
        ended = self.session.process and self.session.process.poll()
        said = self.session.said()
        self.session.__exit__()
        if isinstance(error, (OSError, Late)):
            state = "" if ended is None else f"; its server had ended with {ended}"
            raise type(error)(f"{error}{state}{'; it said: ' + said if said else ''}")
