#!/usr/bin/env python3
"""Holds what a cluster is given to what it may be.

By Helm's own engine (`helm-python-sdk`) the chart is linted and rendered, with its own values and with all that can be turned on; every
document, also of the examples, is held to the schemas of Kubernetes (`kubernetes-validate`), unknown fields refused. The plain manifests have
to be what the chart gives; `--write` makes them so. Run by the tests (tests/serve/kubernetes.rs) in the Python that
tools/test makes. A ServiceMonitor is no kind of Kubernetes's own: of it only the form is looked at.
"""

import argparse
import pathlib
import sys

import helm_python
import kubernetes_validate
import yaml

HERE = pathlib.Path(__file__).resolve().parent
MANIFESTS = HERE / "manifests"

# The oldest that the chart says it is for, one between, the newest that there are schemas of.
VERSIONS = ("1.25.0", "1.31.0", "1.37.0")

HEAD = "# What the chart gives with {}, for who has no Helm; not written by hand (check.py --write).\n"

# In the order in which each finds what it needs.
ORDER = ("csidriver", "rbac", "configmap", "servicemonitor", "daemonset", "storageclass", "controller")

EVERYTHING = {
    "nodeCredentials": "registry-reader",
    "imagePullSecrets": [{"name": "images"}],
    "csiDriver": {
        "labels": {"security.openshift.io/csi-ephemeral-volume-profile": "restricted"},
        "requiresRepublish": True,
        "tokenRequests": [{"audience": "registry.example", "expirationSeconds": 3600}],
    },
    "controller": {"enabled": True, "replicas": 2},
    "storageClasses": [
        {"name": "plain", "reference": "registry.example/acme/llm:v1"},
        {
            "name": "private",
            "reference": "registry.example/acme/llm:v2",
            "secret": {"name": "registry-reader", "namespace": "default"},
            "parameters": {"weightfs.dev/warm": "all"},
        },
    ],
    "metrics": {"proxy": {"enabled": True}, "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}}},
    "affinity": {"nodeAffinity": {}},
    "extraVolumes": [{"name": "ca", "configMap": {"name": "ca"}}],
    "extraVolumeMounts": [{"name": "ca", "mountPath": "/etc/ca", "readOnly": True}],
}

# Values that must be refused, each with a word of why.
REFUSED = (
    ({"plane": "elsewhere"}, "plane"),
    ({"metrics": {"serviceMonitor": {"enabled": True}}}, "metrics.proxy"),
    ({"storageClasses": [{"name": "m", "reference": "r.example/m:v1"}]}, "controller.enabled"),
    ({"storageClasses": [{"name": "m"}], "controller": {"enabled": True}}, "reference"),
    ({"imagess": {}}, "imagess"),
)


def rendered(chart, values):
    """The documents of the chart as texts, by the names of their templates."""
    chart.validate_schema(values)
    texts = chart.render(values, name="weightfs", namespace="weightfs", is_install=True)
    names = {pathlib.PurePosixPath(path).stem: text.strip("\n") for path, text in texts.items()}
    return {name: names[name] for name in ORDER if names[name].strip()}


def joined(texts):
    return "".join(f"---\n{text}\n" for text in texts.values())


def plain(text, values):
    """The same for who has no Helm, and may have it later: nothing says that Helm manages it."""
    lines = text.splitlines(keepends=True)
    return HEAD.format(values) + "".join(line for line in lines if "app.kubernetes.io/managed-by" not in line)


def invalid(name, text):
    """What is wrong with each document of a text, in words."""
    for document in yaml.safe_load_all(text):
        kind = document.get("kind") if isinstance(document, dict) else None
        if kind is None:
            yield f"{name}: a document has no kind"
        elif document["apiVersion"].startswith("monitoring.coreos.com/"):
            if not document["spec"]["endpoints"] or not document["spec"]["selector"]["matchLabels"]:
                yield f"{name}: {kind} selects nothing"
        else:
            yield from (f"{name}: {kind}: {why}" for why in invalid_fields(document))


def invalid_fields(document):
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            where = "/".join(str(part) for part in error.absolute_path)
            yield f"{where}: {error.message} (Kubernetes {version})"


def lint(path, values):
    report = helm_python.lint(path, values, strict=True, namespace="weightfs")
    yield from report["errors"] or []
    # Without an icon a chart is one all the same.
    found = [message for message in report["messages"] or [] if "icon" not in message["error"]]
    yield from (f"{message['path']}: {message['error']}" for message in found)


def unrefused(chart):
    for values, word in REFUSED:
        try:
            rendered(chart, values)
            yield f"{values} are not refused"
        except helm_python.HelmError as error:
            if word not in str(error):
                yield f"{values} are refused without a word of {word}: {error}"


def check(write):
    chart = helm_python.Chart.load(HERE / "chart")
    own = joined(rendered(chart, {}))
    controller = {"controller": rendered(chart, {"controller": {"enabled": True}})["controller"]}
    manifests = {
        "weightfs.yaml": plain(own, "its own values"),
        "controller.yaml": plain(joined(controller), "controller.enabled beside that"),
    }
    for name, text in manifests.items():
        path = MANIFESTS / name
        if write:
            path.write_text(text)
        if not path.exists() or path.read_text() != text:
            yield f"{name} is not what the chart gives: run this with --write"
    texts = {"chart": own}
    for name, values in {"everything": EVERYTHING, "plane=host": {"plane": "host"}}.items():
        texts[name] = joined(rendered(chart, values))
        yield from (f"lint, {name}: {why}" for why in lint(HERE / "chart", values))
    yield from (f"lint: {why}" for why in lint(HERE / "chart", {}))
    yield from unrefused(chart)
    files = [*HERE.glob("examples/*.yaml"), *HERE.glob("manifests/*.yaml")]
    texts.update((file.name, file.read_text()) for file in files)
    for name, text in texts.items():
        yield from invalid(name, text)
    print(f"{len(texts)} texts, Helm {helm_python.helm_sdk_version()}, Kubernetes {', '.join(VERSIONS)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write the plain manifests anew")
    wrong = list(check(parser.parse_args().write))
    for why in wrong:
        print(why, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
