"""What all who are measured share: the model, where it is served from, and a mount or a download to measure on."""
import os
import resource
import shutil
import time
from contextlib import contextmanager

from . import origin, processes, readers
from .front import Front
from .measure import Late, limited
from .origin import REPOSITORY, undisturbed
from .session import Missing, Session

# Of nobody: the S3 here looks at no signature.
S3_KEYS = {"AWS_ACCESS_KEY_ID": "loopback", "AWS_SECRET_ACCESS_KEY": "loopback", "AWSACCESSKEYID": "loopback",
           "AWSSECRETACCESSKEY": "loopback", "AWS_REGION": "us-east-1"}


class Bench:
    """The model, packed and plain, in a registry, behind one that redirects, on a web server, and the work folder."""

    def __init__(self, stack, work, model, weightfs, limit, cold):
        """`cold` is what drops the page cache, and says whether it could."""
        self.cold = cold
        self.work, self.model, self.weightfs, self.limit, self.stack = work, model, weightfs, limit, stack
        self.running, self.lines = set(), {}
        for name in ("home", "state", "docker"):
            os.makedirs(os.path.join(work, name))
        open(os.path.join(work, "empty.toml"), "w").close()
        self.file_system = processes.file_system(work)
        self.served, self.in_memory = origin.folder_for(work, model.size)
        stack.callback(shutil.rmtree, self.served, ignore_errors=True)
        self.registry = self.started(lambda: origin.registry(os.path.join(self.served, "registry"), self.in_memory))
        origin.push(self.registry.host, model, "plain")
        try:
            self.pack(model.folder, "packed")
        except (OSError, Late) as error:
            raise SystemExit(f"tools/bench: {error}") from None
        os.makedirs(os.path.join(self.served, "front"))
        storage = os.path.join(self.served, "registry", "storage")
        front = self.started(lambda: Front(os.path.join(self.served, "front"), storage, model, ("plain", "packed"), self.in_memory))
        self.redirect, self.slow, self.web, self.s3 = front.redirect, front.slow, front.web, front.s3
        self.front_name = front.name
        stack.callback(self.end)

    def started(self, start):
        """What `start()` has started; it ends with the bench."""
        with undisturbed():
            server = start()
            self.stack.callback(server.end)
        return server

    @property
    def far(self):
        """The registry behind a far line, from when it is first wanted."""
        if "far" not in self.lines:
            self.lines["far"] = self.started(lambda: origin.Far(os.path.join(self.work, "far"), self.registry))
        return self.lines["far"]

    def pack(self, folder, tag):
        """Packs a folder into the registry."""
        command = [self.weightfs, "pack", folder, self.reference(self.registry, tag)]
        processes.output(command, self.limit, self.environment(self.work))

    def reference(self, at, tag):
        return f"{at.host}/{REPOSITORY}:{tag}"

    def environment(self, cache):
        """Nothing of the user's own settings reaches a contender."""
        kept = {name: value for name, value in os.environ.items()
                if not name.startswith(("WEIGHTFS_", "RCLONE_", "XDG_", "AWS_")) and not name.lower().endswith("_proxy")}
        inside = lambda name: os.path.join(self.work, name)
        return {**kept, "HOME": inside("home"), "WEIGHTFS_STORE": cache, "WEIGHTFS_STATE": inside("state"),
                "WEIGHTFS_CONFIG": inside("empty.toml"), "WEIGHTFS_DOCKER_CONFIG": inside("docker"), **S3_KEYS}

    def end(self):
        """Ends what still runs: nothing, unless a signal came at a bad moment."""
        for session in list(self.running):
            session.stop()

    def urls(self, at=None):
        host = (at or self.registry).host
        return [f"http://{host}/v2/{REPOSITORY}/blobs/{shard.digest}" for shard in self.model.shards]

    def cool(self, server=None):
        """Drops the page cache, and brings back what the server sends and the programs: who reads the model is to be cold."""
        if self.cold():
            if server:
                server.warm()
            for command in ([self.weightfs, "--version"], ["curl", "--version"], ["openssl", "version"]):
                processes.quiet(command)

    def curl(self, at, words):
        """Runs curl, cold, with `words`; seconds, and CPU seconds of curl and of the server."""
        if not shutil.which("curl"):
            raise Missing("curl is missing: apt install curl")
        with Session(self) as session:
            self.cool(at)
            return self.timed_command(at, session, ["curl", "-sSfL", *words(session)])

    def timed_command(self, at, session, command):
        spent = lambda: sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
        before, server, began = spent(), at.cpu(), time.monotonic()
        session.run(command)
        return {"s": time.monotonic() - began, "cpu_reader": spent() - before, "cpu_server": at.cpu() - server}

    def native(self, work, paths=None):
        """What `work` of the files themselves, or of other ones, took, in a process of its own."""
        paths = [shard.path for shard in self.model.shards] if paths is None else paths
        return limited(self.limit, lambda: readers.timed(lambda: work(paths)), lambda: None)["s"]

    @contextmanager
    def mounted(self, at, tag, *options, session=None, name=None, then=None, cold=True):
        """A `Mount` of the model, or of what `tag` names and `name` is a file of; over a new store, if there is no session.

        `then(path)` is done at once by the process that waits for the file; it gives the moment at which it was done.
        """
        held = session or Session(self)
        try:
            if cold:
                self.cool(at)
            start = time.monotonic()
            held.spawn([self.weightfs, "mount", "--foreground", *options, self.reference(at, tag), held.mount])
            name = name or self.model.shards[0].name
            moment, found = held.wait_ready(name, then and (lambda: then(os.path.join(held.mount, name))))
            yield Mount(self, at, held, moment - start, found and found - start)
        except (OSError, Late) as error:
            said = held.said()
            raise type(error)(f"{error}{'; weightfs said: ' + said if said else ''}") from None
        finally:
            held.stop() if session else held.__exit__()


class Mount:
    """A mount of weightfs that answers: after `ready` seconds from the command; what was to be done then was, after `done`."""

    def __init__(self, bench, at, session, ready, done):
        self.bench, self.at, self.session, self.ready, self.done = bench, at, session, ready, done
        self.paths = [os.path.join(session.mount, shard.name) for shard in bench.model.shards]

    def cpu(self):
        return processes.cpu(self.session.pids())

    def peak(self):
        return processes.peak(self.session.pids())

    def anonymous(self):
        return processes.anonymous(self.session.pids())

    def read(self, work):
        """What `work(paths)` gave, in a process of its own."""
        return limited(self.bench.limit, lambda: work(self.paths), self.session.abort)

    def timed(self, work):
        """The figures of reading all of the model by `work`."""
        cpu, server, sent, machine = self.cpu(), self.at.cpu(), self.at.sent(), processes.busy()
        done = self.read(lambda paths: readers.timed(lambda: work(paths)))
        machine, served = processes.busy() - machine, self.at.cpu() - server
        peak, anonymous = self.peak(), self.anonymous()
        fetched = self.at.settled() - sent
        gigabytes = done["found"] / 1e9
        return {"s": done["s"], "mb_s": done["found"] / 1e6 / done["s"], "fetched": fetched, "peak": peak, "anonymous": anonymous,
                "cpu_weightfs": (self.idle() - cpu) / gigabytes, "cpu_server": served / gigabytes,
                "cpu_reader": done["cpu"] / gigabytes, "cpu_all": machine / gigabytes}

    def idle(self):
        """The CPU seconds of weightfs, once it has nothing to do any more: what is proved after the reading costs too."""
        return processes.settled(self.cpu, 20)
