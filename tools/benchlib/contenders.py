"""Who is measured, and one round of each: a fresh process over an empty store, the page cache dropped."""
import os
import shlex
import shutil
import subprocess
import sys
import time

from .front import BUCKET
from .measure import Reader, limited
from .origin import REPOSITORY
from .session import Missing, Mounted, Session


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


class Downloader:
    """Commands that fetch everything and end. `steps(folder)` gives them, and who proves what they left there."""

    kind = "download"

    def __init__(self, name, server, steps, proves=None, needs=None):
        self.name, self.server, self.steps, self.proves, self.needs = name, server, steps, proves, needs

    def round(self, bench, compare):
        with Session(bench) as session:
            bench.cool(self.server)
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
    pairs = zip(bench.urls(bench.redirect), bench.model.shards)
    return [word for url, shard in pairs for word in (url, "-o", os.path.join(session.mount, shard.name))]


def known(bench):
    """Every contender, in the order in which the table has them; curl to /dev/null first: it is what the others are held to.

    All but one get blobs from the same server, so that what is compared is who reads. `weightfs-registry` has docker-registry do it.
    """
    weightfs, origin, web = bench.weightfs, bench.redirect, bench.web
    curl = ["curl", "-sSfL"]
    nothing = [word for url in bench.urls(origin) for word in (url, "-o", "/dev/null")]
    files = lambda session: [os.path.join(session.mount, shard.name) for shard in bench.model.shards]
    mount = lambda at, tag: lambda mnt, _: [weightfs, "mount", "--foreground", f"{at.host}/{REPOSITORY}:{tag}", mnt]
    sums = lambda session: ["sh", "-c", 'for file; do sha256sum "$file" & done; wait', "sh", *files(session)]
    return [
        Downloader("curl-null", origin, lambda _: [curl + nothing], needs="curl"),
        Downloader("curl-file-sha256", origin,
                   lambda session: [curl + into(bench, session), ["sha256sum", *files(session)]], summed, "curl"),
        Downloader("curl-Z4-files-sha256", origin,
                   lambda session: [curl + ["-Z", "--parallel-immediate", "--parallel-max", "4"] + into(bench, session),
                                    sums(session)], summed, "curl"),
        Mounter("weightfs-plain", origin, mount(origin, "plain")),
        Mounter("weightfs-packed", origin, mount(origin, "packed")),
        Mounter("weightfs-registry", bench.registry, mount(bench.registry, "packed")),
        Downloader("weightfs-pull", origin, pull(bench), written(bench)),
        Mounter("rclone", web, lambda mnt, cache: [
            "rclone", "mount", ":http:", mnt, "--http-url", f"http://{web.host}/", "--read-only", "--vfs-cache-mode", "full",
            "--cache-dir", cache, "--config", "/dev/null", "--dir-cache-time", "1h", "--no-modtime"], "rclone"),
        Mounter("httpdirfs-cache", web, lambda mnt, cache: [
            "httpdirfs", "-f", "--no-range-check", "--cache", "--cache-location", cache, "-o", "ro", f"http://{web.host}/", mnt],
            "httpdirfs"),
        *(by_nginx(bench) if bench.s3 else []),
    ]


def by_nginx(bench):
    """Mounts of a bucket and of an archive, which only nginx serves here."""
    at = f"http://{bench.s3.host}"
    return [
        Mounter("s3fs", bench.s3, lambda mnt, cache: [
            "s3fs", BUCKET, mnt, "-f", "-o", f"url={at},use_path_request_style,ro,nonempty,use_cache={cache},endpoint=us-east-1"], "s3fs"),
        Mounter("mount-s3", bench.s3, lambda mnt, cache: [
            "mount-s3", BUCKET, mnt, "--read-only", "--foreground", "--endpoint-url", at, "--force-path-style", "--region", "us-east-1",
            "--cache", cache], "mount-s3"),
        Mounter("ratarmount", bench.web, lambda mnt, cache: [
            "ratarmount", "-f", "--index-folders", cache, f"http://{bench.web.host}/tars/model.tar", mnt], "ratarmount"),
    ]


def pull(bench):
    def steps(session):
        return [[bench.weightfs, "pull", f"{bench.redirect.host}/{REPOSITORY}:packed", "--output", session.mount]]
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
        packaged = contender.needs in ("curl", "rclone", "httpdirfs", "s3fs")
        raise Missing(f"{contender.needs} is missing" + (f": apt install {contender.needs}" if packaged else " in PATH"))
    if contender.name == "weightfs-pull":
        helped = subprocess.run([bench.weightfs, "pull", "--help"], capture_output=True, text=True, timeout=20)
        if helped.returncode or "--output" not in helped.stdout:
            raise Missing("this weightfs has no pull --output")
