"""Reading all of the model once, from nothing: caches dropped, an empty store, a fresh mount; against curl just before."""
import os
import shutil

from .. import readers
from ..session import Missing, Session

# A docker-registry answers one connection in one of two modes, and stays in it for a run: by its CPU seconds for a GB.
SLOW_FROM = 0.70


def nothing(bench, at):
    return lambda _: [word for url in bench.urls(at) for word in (url, "-o", "/dev/null")]


def files(bench, at):
    pairs = list(zip(bench.urls(at), bench.model.shards))
    return lambda session: [word for url, shard in pairs for word in (url, "-o", os.path.join(session.mount, shard.name))]


def curl_to_nothing(bench, at, at_once):
    """The figures of curl of every shard to nowhere: one after the other over one connection, or all at once."""
    parallel = ["-Z", "--parallel-immediate"] if at_once else []
    done = bench.curl(at, lambda session: [*parallel, *nothing(bench, at)(session)])
    gigabytes = bench.model.size / 1e9
    return {"base_s": done["s"], "base_mb_s": bench.model.size / 1e6 / done["s"],
            "base_cpu_server": done["cpu_server"] / gigabytes, "base_cpu_reader": done["cpu_reader"] / gigabytes}


def against_curl(bench, face, tag, work, *, at_once=False):
    """A mount of `tag`, read by `work`, in units of curl's rate; `at_once`: over a connection for each shard."""
    at = getattr(bench, face)
    if at is None:
        raise Missing("nginx is missing: apt install nginx-light")
    found = curl_to_nothing(bench, at, at_once)
    with bench.mounted(at, tag) as mount:
        found.update(mount.timed(work), ready_s=mount.ready)
    found["ratio"] = found["mb_s"] / found["base_mb_s"]
    if face == "registry":
        found["curl_mode"] = "slow" if found["base_cpu_server"] >= SLOW_FROM else "fast"
        found[f"ratio_{found['curl_mode']}"] = found["ratio"]
    return found


def read(face, tag):
    return lambda bench: against_curl(bench, face, tag, readers.in_order)


def limited(tag):
    """A store that gives each connection so much and no more."""
    return lambda bench: against_curl(bench, "slow", tag, readers.in_order, at_once=True)


def mapped(face, tag):
    return lambda bench: against_curl(bench, face, tag, readers.touched)


def verified(face, tag):
    """A mount against `curl -o FILE`, then `openssl dgst -sha256 FILE`: what a careful user does."""
    def measure(bench):
        at = getattr(bench, face)
        if not shutil.which("openssl"):
            raise Missing("openssl is missing: apt install openssl")
        with Session(bench) as session:
            bench.cool(at)
            fetched = bench.timed_command(at, session, ["curl", "-sSfL", *files(bench, at)(session)])
            paths = [os.path.join(session.mount, shard.name) for shard in bench.model.shards]
            digested = bench.timed_command(at, session, ["openssl", "dgst", "-sha256", *paths])
        took = fetched["s"] + digested["s"]
        found = {"base_s": took, "base_mb_s": bench.model.size / 1e6 / took, "download_s": fetched["s"], "digest_s": digested["s"]}
        with bench.mounted(at, tag) as mount:
            found.update(mount.timed(readers.in_order))
        return {**found, "ratio": found["mb_s"] / found["base_mb_s"]}
    return measure


def direct(face, tag):
    """O_DIRECT by sixteen threads, against reads of 1 MiB of a mount just before."""
    def measure(bench):
        at = getattr(bench, face)
        with bench.mounted(at, tag) as mount:
            base = mount.timed(readers.in_order)
        with bench.mounted(at, tag) as mount:
            found = mount.timed(readers.direct)
        return {**found, "base_mb_s": base["mb_s"], "ratio": found["mb_s"] / base["mb_s"]}
    return measure


def together(face, tag):
    """Eight processes that map every shard at once, against one of them."""
    def measure(bench):
        at = getattr(bench, face)
        with bench.mounted(at, tag) as mount:
            base = mount.timed(lambda paths: readers.by_processes(paths, 1))
        with bench.mounted(at, tag) as mount:
            found = mount.timed(readers.by_processes)
        return {**found, "base_s": base["s"], "base_mb_s": base["mb_s"],
                "wall_ratio": found["s"] / base["s"], "fetched_ratio": found["fetched"] / base["fetched"]}
    return measure
