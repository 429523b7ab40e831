"""What has to be asked of the cluster: the parent of a Scale, the right to break the glass, an object as it is stored.

The official client's raw calls are used, without its generated models, which cost a hundred megabytes. It is imported
when the first question comes. Every question has a time limit; a failure is ClusterUnavailable, with a sentence, and
never an answer. Easy to get wrong: "not found" is an answer.
"""

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from webhook.admission import GroupVersionResource, Object, UserInfo
from webhook.errors import ClusterUnavailable


class Cluster:
    """A connection to the API server. Thread-safe; opened at the first question."""

    def __init__(self, kubeconfig: Path | None = None, *, timeout: timedelta = timedelta(seconds=2)) -> None:
        self._kubeconfig = kubeconfig
        self._timeout = timeout.total_seconds()
        self._client: Any = None
        self._lock = threading.Lock()

    def get(self, resource: GroupVersionResource, namespace: str, name: str) -> Object | None:
        """Return the object as it is stored, or None if it is not there."""
        return self.call("GET", f"{path_of(resource, namespace)}/{quote(name, safe='')}", missing_is_none=True)

    def may_break_glass(self, user: UserInfo, resource: GroupVersionResource, namespace: str, name: str) -> bool:
        """Return whether RBAC gives `user` the verb `break-glass` on this object (SubjectAccessReview)."""
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {
                "user": user.username,
                "uid": user.uid,
                "groups": list(user.groups),
                "resourceAttributes": {
                    "verb": "break-glass",
                    "group": resource.group,
                    "version": resource.version,
                    "resource": resource.resource,
                    "namespace": namespace,
                    "name": name,
                },
            },
        }
        answer = self.call("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", body=review)
        status = (answer or {}).get("status")
        return isinstance(status, dict) and status.get("allowed") is True and not status.get("denied")

    def json_patch(
        self, resource: GroupVersionResource, namespace: str, name: str, patch: Sequence[Mapping[str, Any]]
    ) -> Object | None:
        """Apply a JSON Patch; None if the object is not there, or a `test` in the patch does not fit any more."""
        return self.call(
            "PATCH",
            f"{path_of(resource, namespace)}/{quote(name, safe='')}?fieldManager=driftgate",
            body=list(patch),
            content_type="application/json-patch+json",
            missing_is_none=True,
        )

    def stamped_objects(self, selector: str) -> Iterator[tuple[GroupVersionResource, Object]]:
        """Yield every object in the cluster with a label, whatever its kind; what can't be listed is left out."""
        for resource in self._listable():
            try:
                found = self.call("GET", f"{path_of(resource, '')}?{urlencode({'labelSelector': selector})}")
            except ClusterUnavailable:
                continue  # an aggregated API that is down, or a kind we may not list, must not stop the others
            kind = str((found or {}).get("kind") or "").removesuffix("List")
            version = (found or {}).get("apiVersion")
            for item in (found or {}).get("items") or []:
                yield resource, {"apiVersion": version, "kind": kind, **item}  # items of a list go without

    def _listable(self) -> Iterator[GroupVersionResource]:
        groups = (self.call("GET", "/apis") or {}).get("groups") or []
        named = [(g.get("name"), (g.get("preferredVersion") or {}).get("version")) for g in groups]
        versions = [("", "v1"), *((group, version) for group, version in named if group and version)]
        for group, version in versions:
            path = f"/apis/{group}/{version}" if group else f"/api/{version}"
            try:
                resources = (self.call("GET", path) or {}).get("resources") or []
            except ClusterUnavailable:
                continue
            for found in resources:
                name = found.get("name")
                if name and "/" not in name and {"list", "patch"} <= set(found.get("verbs") or ()):
                    yield GroupVersionResource(group=group, version=version, resource=name)

    def call(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        content_type: str = "application/json",
        missing_is_none: bool = False,
    ) -> Object | None:
        """Return the decoded answer. Raises ClusterUnavailable if there is none in time, or a refusal."""
        headers = {"Accept": "application/json", "Content-Type": content_type}
        try:
            client = self._connected()
            headers.update(_credentials(client))
            content = None if body is None else json.dumps(body).encode()
            url = client.configuration.host + path
            response = _send(client, method, url, headers=headers, body=content, timeout=self._timeout, retries=False)
        except ClusterUnavailable:
            raise
        except Exception as error:
            raise ClusterUnavailable(f"the API server did not answer ({type(error).__name__})") from error
        if response.status == 404 and missing_is_none:
            return None
        if response.status >= 300:
            raise ClusterUnavailable(f"the API server refused {method} {path.partition('?')[0]}: {response.status}")
        try:
            decoded = json.loads(response.data)
        except (ValueError, RecursionError):
            decoded = None
        if not isinstance(decoded, dict):
            raise ClusterUnavailable(
                f"the API server answered {method} {path.partition('?')[0]} with what is no object"
            )
        return decoded

    def _connected(self) -> Any:
        with self._lock:
            if self._client is None:
                self._client = _connect(self._kubeconfig)
            return self._client


def _send(client: Any, method: str, url: str, **options: Any) -> Any:
    """Send a request; once more if the kept connection had been closed meanwhile, for then nobody read it."""
    from urllib3.exceptions import ProtocolError  # noqa: PLC0415 -- comes with the client

    pool = client.rest_client.pool_manager
    try:
        return pool.request(method, url, **options)
    except ProtocolError:
        return pool.request(method, url, **options)


def _credentials(client: Any) -> dict[str, str]:
    """Return the headers that say who we are, with a service account's token as fresh as it is on disk."""
    found = client.configuration.auth_settings().values()
    return {entry["key"]: entry["value"] for entry in found if entry.get("in") == "header"}


def _connect(kubeconfig: Path | None) -> Any:
    from kubernetes import config  # noqa: PLC0415 -- half a second that only some writes need
    from kubernetes.client.api_client import ApiClient  # noqa: PLC0415
    from kubernetes.client.configuration import Configuration  # noqa: PLC0415

    settings = Configuration()
    try:
        _load(config, kubeconfig, settings)
    except config.ConfigException as error:
        raise ClusterUnavailable(f"there is no way to reach the cluster: {error}") from None
    settings.retries = False
    return ApiClient(settings)


def _load(config: Any, kubeconfig: Path | None, settings: Any) -> None:
    """Take the kubeconfig that is named, else a pod's service account, else kubectl's own."""
    if kubeconfig is not None:
        config.load_kube_config(config_file=str(kubeconfig), client_configuration=settings)
        return
    try:
        config.load_incluster_config(client_configuration=settings)
    except config.ConfigException:
        config.load_kube_config(client_configuration=settings)


def path_of(resource: GroupVersionResource, namespace: str) -> str:
    """Return the URL path of a resource's collection."""
    base = f"/apis/{quote(resource.group)}/{quote(resource.version)}" if resource.group else f"/api/{resource.version}"
    inside = f"/namespaces/{quote(namespace, safe='')}" if namespace and resource.resource != "namespaces" else ""
    return f"{base}{inside}/{quote(resource.resource)}"
