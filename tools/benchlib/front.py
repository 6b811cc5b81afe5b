"""nginx over what a registry has: as a registry that redirects who wants a blob, as where it redirects to, as the same where each
connection gets so much and no more, as a web server, as S3.

One process, a port for each, so that what it costs and sends is counted in one place. Where there is no nginx, `files.py`, which is
no S3.
"""
import hashlib
import json
import os
import shutil
import subprocess
import sys

from .origin import HERE, MANIFEST, REPOSITORY, Face, Server, free_port

BUCKET = "models"
# What a connection to a limited store gets, as nginx says it: MiB a second.
LIMIT = "64m"


class Front:
    """The process, and its faces: `redirect`, a registry; `web`, the model's files by name."""

    def __init__(self, folder, storage, model, tags, in_memory):
        self.folder, self.storage = folder, storage
        self.files = os.path.join(folder, "files")
        link_names(os.path.join(self.files, "names"), model, storage)
        link_blobs(os.path.join(self.files, "blobs"), storage)
        if shutil.which("ratarmount"):
            write_tar(os.path.join(self.files, "tars"), os.path.join(self.files, "names"))
        self.ports = {name: free_port() for name in ("redirect", "blobs", "limited", "limited-blobs", "web", "s3")}
        manifests = {f"/v2/{REPOSITORY}/manifests/{name}": found
                     for tag in tags for found in [manifest(storage, tag)] for name in (tag, found[2])}
        nginx = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
        self.name = "nginx" if nginx else "a small server in Python that sends with sendfile, since nginx is missing"
        command = self.by_nginx(nginx, manifests) if nginx else self.by_python(manifests)
        if not nginx:
            for name in ("limited", "limited-blobs", "s3"):
                self.ports.pop(name)
        self.server = Server(command, folder, list(self.ports.values()), None if in_memory else self.files)
        self.redirect, self.web = Face(self.server, self.ports["redirect"]), Face(self.server, self.ports["web"])
        self.slow, self.s3 = (Face(self.server, self.ports[name]) if nginx else None for name in ("limited", "s3"))
        self.end = self.server.end

    def blobs(self, name="blobs"):
        return f"http://127.0.0.1:{self.ports[name]}/blobs/"

    def by_python(self, manifests):
        config = os.path.join(self.folder, "files.json")
        files = [{"port": self.ports[name], "folder": self.files} for name in ("web", "blobs")]
        with open(config, "w") as file:
            json.dump([*files, {"port": self.ports["redirect"], "manifests": manifests, "blobs": self.blobs()}], file)
        return [sys.executable, os.path.join(HERE, "files.py"), config]

    def by_nginx(self, nginx, manifests):
        folder, config = self.folder, os.path.join(self.folder, "nginx.conf")
        answers = "".join(f"location = {path} {{ alias {name}; types {{}} default_type {kind};"
                          f" add_header Docker-Content-Digest {digest}; }}\n"
                          for path, (name, kind, digest) in manifests.items())
        temporary = "".join(f"{kind}_temp_path {folder}/t-{kind}; " for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        lists = write_lists(os.path.join(folder, "lists"), os.path.join(self.files, "names"))
        mapped = "".join(f'"{prefix}" {number}; ' for number, prefix in enumerate(lists))
        with open(config, "w") as file:
            file.write(f"""daemon off; master_process off; pid {folder}/pid;
events {{ worker_connections 1024; }}
http {{
access_log off; sendfile on; tcp_nodelay on; keepalive_timeout 300; keepalive_requests 1000000; {temporary}
types {{}} default_type application/octet-stream; map_hash_bucket_size 128;
map $arg_prefix $listing {{ {mapped} default none; }}
{self.redirecting("redirect", "blobs", answers, "")}{self.redirecting("limited", "limited-blobs", answers, f"limit_rate {LIMIT}; sendfile_max_chunk 1m;")}
server {{ listen 127.0.0.1:{self.ports["web"]};
location /tars/ {{ root {self.files}; }}
location / {{ root {self.files}/names; autoindex on; types {{ text/html html; application/json json; }} }} }}
server {{ listen 127.0.0.1:{self.ports["s3"]};
location = /{BUCKET} {{ rewrite ^ /{BUCKET}/ last; }}
location = /{BUCKET}/ {{ root {folder}/lists; default_type application/xml; try_files /$listing =404; }}
location /{BUCKET}/ {{ alias {self.files}/names/; }} }}
}}
""")
        return [nginx, "-p", folder, "-c", config, "-e", "stderr"]

    def redirecting(self, name, blobs, answers, limit):
        """A registry that redirects who wants a blob, and where to."""
        return f"""server {{ listen 127.0.0.1:{self.ports[name]};
location = /v2/ {{ return 200; }}
{answers}location ~ "^/v2/.+/blobs/(sha256:[0-9a-f]+)$" {{ return 307 {self.blobs(blobs)}$1; }}
location / {{ return 404; }} }}
server {{ listen 127.0.0.1:{self.ports[blobs]}; {limit} location /blobs/ {{ root {self.files}; }} }}
"""


def manifest(storage, tag):
    """The manifest of `tag` as the registry has stored it: its file, media type and digest."""
    base = os.path.join(storage, "docker/registry/v2")
    with open(f"{base}/repositories/{REPOSITORY}/_manifests/tags/{tag}/current/link") as link:
        digest = link.read().strip()
    return blob(storage, digest), MANIFEST, digest


def blob(storage, digest):
    """The file in which the registry keeps a blob."""
    algorithm, _, value = digest.partition(":")
    return os.path.join(storage, "docker/registry/v2/blobs", algorithm, value[:2], value, "data")


def write_lists(folder, names):
    """What S3 lists of the bucket, a file for each prefix that anybody asks for; the prefixes, in the order of the files' names.

    No signature is looked at, and a file's tag is the one that nginx gives it.
    """
    os.makedirs(folder)
    entries = {}
    for name in sorted(os.listdir(names)):
        found = os.stat(os.path.join(names, name))
        tag = f"{int(found.st_mtime):x}-{found.st_size:x}"
        entries[name] = (f"<Contents><Key>{name}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>&quot;{tag}&quot;</ETag>"
                         f"<Size>{found.st_size}</Size><StorageClass>STANDARD</StorageClass></Contents>")
    lists = {"": "".join(entries.values()), **entries}
    for number, (prefix, text) in enumerate([*lists.items(), ("none", "")]):
        with open(os.path.join(folder, prefix if prefix == "none" else str(number)), "w") as file:
            file.write('<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
                       f"<Name>{BUCKET}</Name><KeyCount>{text.count('<Key>')}</KeyCount><MaxKeys>1000</MaxKeys>"
                       f"<IsTruncated>false</IsTruncated>{text}</ListBucketResult>")
    return list(lists)


def link_names(folder, model, storage):
    os.makedirs(folder)
    for shard in model.shards:
        os.link(blob(storage, shard.digest), os.path.join(folder, shard.name))
    config = os.path.join(model.folder, "config.json")
    with open(config, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    os.link(blob(storage, f"sha256:{digest}"), os.path.join(folder, "config.json"))


def write_tar(folder, names):
    """The model as one archive, for who reads nothing else; it takes as much room again."""
    os.makedirs(folder)
    subprocess.run(["tar", "--sort=name", "--format=ustar", "-C", names, "-cf", os.path.join(folder, "model.tar"), "."], check=True)


def link_blobs(folder, storage):
    os.makedirs(folder)
    for place, _, names in os.walk(os.path.join(storage, "docker/registry/v2/blobs/sha256")):
        if "data" in names:
            os.link(os.path.join(place, "data"), os.path.join(folder, f"sha256:{os.path.basename(place)}"))
