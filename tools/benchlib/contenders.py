"""Who is measured, and one round of each: a fresh process over an empty store, the page cache dropped."""
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from .measure import Late, Reader, drop_caches, limited
from .origin import REPOSITORY, end, undisturbed

TICK = os.sysconf("SC_CLK_TCK")


class Missing(Exception):
    """The contender cannot run here; the text says what is missing."""


class Bench:
    """What all contenders share: the model, where it is served from, and the work folder."""

    def __init__(self, work, model, registry, web, weightfs, limit):
        self.work, self.model, self.registry, self.web = work, model, registry, web
        self.weightfs, self.limit = weightfs, limit
        self.running = set()
        for name in ("home", "state", "docker"):
            os.makedirs(os.path.join(work, name), exist_ok=True)
        open(os.path.join(work, "empty.toml"), "w").close()

    def environment(self, cache):
        """Nothing of the user's own settings reaches a contender."""
        kept = {name: value for name, value in os.environ.items()
                if not name.startswith(("WEIGHTFS_", "RCLONE_", "XDG_")) and not name.lower().endswith("_proxy")}
        inside = lambda name: os.path.join(self.work, name)
        return {**kept, "HOME": inside("home"), "WEIGHTFS_STORE": cache, "WEIGHTFS_STATE": inside("state"),
                "WEIGHTFS_CONFIG": inside("empty.toml"), "WEIGHTFS_DOCKER_CONFIG": inside("docker")}

    def end(self):
        """Ends what still runs: nothing, unless a signal came at a bad moment."""
        for session in list(self.running):
            session.stop()

    def urls(self):
        return [f"http://{self.registry.host}/v2/{REPOSITORY}/blobs/{shard.digest}" for shard in self.model.shards]


def cool(server):
    """Drops the page cache and brings back what the server sends, since it is the contender that is to be cold."""
    if drop_caches():
        server.warm()


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
        try:
            code = self.process.wait(self.bench.limit)
        except subprocess.TimeoutExpired:
            raise Late(f"not done after {self.bench.limit} s") from None
        if code:
            raise OSError(f"{command[0]} ended with {code}: {self.said()}")
        with open(os.path.join(self.home, "log"), errors="replace") as log:
            return log.read()

    def mounted(self):
        with open("/proc/self/mountinfo") as mounts:
            return any(line.split()[4] == self.mount for line in mounts)

    def wait_ready(self, name):
        """Waits until the mount shows the file `name`; the moment (time.monotonic) at which it did.

        In a process of its own too: a mount that hangs would hold up who asks it.
        """
        limit = min(60, self.bench.limit)
        try:
            return limited(limit, lambda: self.poll_ready(name), self.abort)
        except Late:
            raise Late(f"the mount does not answer within {limit} s") from None
        except OSError:
            raise OSError("the command ended before its mount answered") from None

    def poll_ready(self, name):
        while True:
            with open(f"/proc/{self.process.pid}/stat") as file:
                if file.read().rsplit(")", 1)[1].split()[0] == "Z":
                    raise OSError("ended")
            if self.mounted():
                try:
                    os.stat(os.path.join(self.mount, name))
                    return time.monotonic()
                except OSError:
                    pass
            time.sleep(0.002)

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
            quiet(command, self.bench.environment(self.cache))

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
        quiet(["umount", "-l", self.mount], None)

    def usage(self):
        """CPU seconds (user and system) and peak resident bytes of the process and what it started."""
        ticks = peak = 0
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/stat") as file:
                    fields = file.read().rsplit(")", 1)[1].split()
                if int(fields[3]) != self.process.pid:  # the session that it leads
                    continue
                ticks += sum(map(int, fields[11:15]))
                with open(f"/proc/{pid}/status") as file:
                    peak += sum(int(line.split()[1]) << 10 for line in file if line.startswith("VmHWM:"))
            except (OSError, IndexError):
                continue
        return ticks / TICK, peak


def quiet(command, environment):
    try:
        subprocess.run(command, env=environment, timeout=20, stdin=subprocess.DEVNULL,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        pass


class Mounter:
    """A command that serves a mount from the foreground. `command(mount, cache)` gives its words."""

    kind = "mount"

    def __init__(self, name, server, command, needs=None):
        self.name, self.server, self.command, self.needs = name, server, command, needs

    def round(self, bench, compare):
        found = {}
        with self.session(bench) as (session, reader, ready):
            found["ready_s"] = ready
            found.update(limited(bench.limit, reader.pieces, session.abort))
            peaks = [session.usage()[1]]
        with self.session(bench) as (session, reader, _):
            before = self.server.sent()
            found.update(limited(bench.limit, reader.all, session.abort))
            found["cpu_s"], peak = session.usage()
            peaks.append(peak)
            found["all_fetched"] = self.server.settled() - before
            if compare:
                found["same_bytes"] = limited(bench.limit, reader.digests, session.abort) == digests(bench)
        with self.session(bench) as (session, reader, _):
            found.update(limited(bench.limit, reader.together, session.abort))
            peaks.append(session.usage()[1])
        found["peak_rss"] = max(peaks)
        return found

    def session(self, bench):
        return Mounted(self, bench)


class Mounted:
    """A session with its mount ready: (session, reader, seconds from the command to its answer)."""

    def __init__(self, mounter, bench):
        self.mounter, self.session = mounter, Session(bench)

    def __enter__(self):
        session, mounter = self.session, self.mounter
        try:
            cool(mounter.server)
            start = time.monotonic()
            session.spawn(mounter.command(session.mount, session.cache))
            ready = session.wait_ready(session.bench.model.shards[0].name) - start
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


class Downloader:
    """Commands that fetch everything and end. `steps(folder)` gives them, and who proves what they left there."""

    kind = "download"

    def __init__(self, name, server, steps, proves=None, needs=None):
        self.name, self.server, self.steps, self.proves, self.needs = name, server, steps, proves, needs

    def round(self, bench, compare):
        with Session(bench) as session:
            cool(self.server)
            start = time.monotonic()
            said = [session.run(step) for step in self.steps(session)]
            took = time.monotonic() - start
            found = {"total_s": took, "total_mb_s": bench.model.size / 1e6 / took}
            if self.proves:
                found["same_bytes"] = self.proves(said, session) == digests(bench)
            return found


def digests(bench):
    return [shard.digest for shard in bench.model.shards]


# ---------------------------------------------------------------- the known ones

def summed(said, _):
    """The digests that sha256sum printed, in the order of its files."""
    lines = sorted(said[-1].splitlines(), key=lambda line: line.split()[1])
    return ["sha256:" + line.split()[0] for line in lines]


def written(bench):
    def proves(_, session):
        return limited(bench.limit, Reader(session.mount, bench.model.shards, bench.registry, 0).digests, session.abort)
    return proves


def into(bench, session):
    """The words of curl: each shard's URL, and the file for it."""
    pairs = zip(bench.urls(), bench.model.shards)
    return [word for url, shard in pairs for word in (url, "-o", os.path.join(session.mount, shard.name))]


def known(bench):
    """Every contender, in the order in which the table has them; curl to /dev/null first: it is what the others are held to."""
    weightfs, registry, web = bench.weightfs, bench.registry, bench.web
    curl = ["curl", "-sSfL"]
    nothing = [word for url in bench.urls() for word in (url, "-o", "/dev/null")]
    files = lambda session: [os.path.join(session.mount, shard.name) for shard in bench.model.shards]
    mount = lambda tag: lambda mnt, _: [weightfs, "mount", "--foreground", f"{registry.host}/{REPOSITORY}:{tag}", mnt]
    sums = lambda session: ["sh", "-c", 'for file; do sha256sum "$file" & done; wait', "sh", *files(session)]
    return [
        Downloader("curl-null", registry, lambda _: [curl + nothing], needs="curl"),
        Downloader("curl-file-sha256", registry,
                   lambda session: [curl + into(bench, session), ["sha256sum", *files(session)]], summed, "curl"),
        Downloader("curl-Z4-files-sha256", registry,
                   lambda session: [curl + ["-Z", "--parallel-immediate", "--parallel-max", "4"] + into(bench, session),
                                    sums(session)], summed, "curl"),
        Mounter("weightfs-plain", registry, mount("plain")),
        Mounter("weightfs-packed", registry, mount("packed")),
        Downloader("weightfs-pull", registry, pull(bench), written(bench)),
        Mounter("rclone", web, lambda mnt, cache: [
            "rclone", "mount", ":http:", mnt, "--http-url", f"http://{web.host}/", "--read-only", "--vfs-cache-mode", "full",
            "--cache-dir", cache, "--config", "/dev/null", "--dir-cache-time", "1h", "--no-modtime"], "rclone"),
        Mounter("httpdirfs-cache", web, lambda mnt, cache: [
            "httpdirfs", "-f", "--no-range-check", "--cache", "--cache-location", cache, "-o", "ro", f"http://{web.host}/", mnt], "httpdirfs"),
    ]


def pull(bench):
    def steps(session):
        return [[bench.weightfs, "pull", f"{bench.registry.host}/{REPOSITORY}:packed", "--output", session.mount]]
    return steps


def misuse(text):
    """Ends the program: what was typed cannot be meant."""
    print(f"tools/bench: {text}", file=sys.stderr)
    raise SystemExit(2)


def peer(bench, text):
    """`NAME=COMMAND`, with {mnt}, {cache}, {registry} and {web} filled in; what it sends is counted at both servers."""
    name, _, command = text.partition("=")
    if not name or not command:
        misuse(f"--peer {text}: NAME=COMMAND is meant")
    words = shlex.split(command)
    places = {"{registry}": bench.registry.host, "{web}": f"http://{bench.web.host}"}

    def fill(mnt, cache):
        filled = []
        for word in words:
            for mark, value in {**places, "{mnt}": mnt, "{cache}": cache}.items():
                word = word.replace(mark, value)
            filled.append(word)
        return filled
    return Mounter(name, bench.web if "{web}" in command else bench.registry, fill, words[0])


def check(contender, bench):
    """Raises Missing where the contender's program is not here."""
    if contender.needs and not shutil.which(contender.needs):
        peer = contender.needs not in ("curl", "rclone", "httpdirfs")
        raise Missing(f"{contender.needs} is missing" + ("" if peer else f": apt install {contender.needs}"))
    if contender.name == "weightfs-pull":
        helped = subprocess.run([bench.weightfs, "pull", "--help"], capture_output=True, text=True, timeout=20)
        if helped.returncode or "--output" not in helped.stdout:
            raise Missing("this weightfs has no pull --output")
