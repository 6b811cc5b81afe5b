"""What processes cost: CPU seconds and memory, as the kernel counts them. Everything here is by process id."""
import os
import select
import subprocess
import tempfile
import threading
import time

from .measure import Late

TICK = os.sysconf("SC_CLK_TCK")


def fields(pid):
    """The fields of /proc/PID/stat that follow the name: the state first."""
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rsplit(")", 1)[1].split()


def in_session(leader):
    """The processes of the session that `leader` leads."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if int(fields(pid)[3]) == leader:
                found.append(int(pid))
        except (OSError, IndexError):
            continue
    return found


def cpu(pids):
    """CPU seconds, user and system, of the processes and of those that they have waited for."""
    ticks = 0
    for pid in pids:
        try:
            ticks += sum(map(int, fields(pid)[11:15]))
        except (OSError, IndexError):
            continue
    return ticks / TICK


def busy():
    """CPU seconds that the whole machine has spent on anything, kernel threads and interrupts among it."""
    with open("/proc/stat") as file:
        user, nice, system, _, _, irq, softirq = map(int, file.readline().split()[1:8])
    return (user + nice + system + irq + softirq) / TICK


def kibibytes(path, name):
    with open(path) as file:
        return next((int(line.split()[1]) << 10 for line in file if line.startswith(name)), 0)


def peak(pids):
    """Peak resident bytes of the processes together."""
    return summed(pids, "status", "VmHWM:")


def anonymous(pids):
    """Resident bytes of the processes that lie in no file."""
    return summed(pids, "smaps_rollup", "Anonymous:")


def summed(pids, file, name):
    total = 0
    for pid in pids:
        try:
            total += kibibytes(f"/proc/{pid}/{file}", name)
        except OSError:
            continue
    return total


def settled(value, limit, quiet=0.3):
    """`value()`, once it has not changed for `quiet` seconds; after `limit` seconds in any case."""
    before, until = value(), time.monotonic() + limit
    while time.monotonic() < until:
        time.sleep(quiet)
        now = value()
        if now == before:
            break
        before = now
    return before


def wait(process, seconds):
    """The exit code of a child, to the moment (`Popen.wait` with a limit looks only every 50 ms). Late after `seconds`."""
    handle = os.pidfd_open(process.pid)
    try:
        if not select.select([handle], [], [], seconds)[0]:
            raise Late(f"not done after {seconds} s")
    finally:
        os.close(handle)
    return process.wait()


def file_system(path):
    """The kind of file system that `path` lies on, as `ext4`."""
    with open("/proc/self/mountinfo") as mounts:
        found = [(line.split()[4], line.split(" - ")[1].split()[0]) for line in mounts]
    above = [(len(place), kind) for place, kind in found if f"{path}/".startswith(f"{place.rstrip('/')}/")]
    return max(above)[1]


def output(command, seconds, environment):
    """What a command printed, errors among it. OSError where it fails, Late after `seconds`; it is ended in any case."""
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=environment)
        try:
            code = wait(process, seconds)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        said.seek(0)
        text = said.read().decode(errors="replace")
    if code:
        raise OSError(f"{command[0]} ended with {code}: {text[-600:]}")
    return text


class Sampler:
    """The most that `value()` was within the `with`, looked at every 20 ms from a thread."""

    def __init__(self, value):
        self.value, self.most = value, 0
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.look, daemon=True)

    def look(self):
        while not self.over.wait(0.02):
            self.most = max(self.most, self.value())

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()
        self.most = max(self.most, self.value())


def quiet(command, environment=None):
    """Runs a command whose failing is no matter."""
    try:
        subprocess.run(command, env=environment, timeout=20, stdin=subprocess.DEVNULL,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        pass
