"""A server in this process that speaks as much of the hub's protocol as models need.

Repositories are dicts of files; each `put` and each commit of a client is a new commit. Files are
plain: what the hub keeps in other storage is left to its library.
"""

import base64
import contextlib
import hashlib
import http.server
import json
import threading
from urllib.parse import unquote, urlsplit

from videoar_jax.interop import hub

TOKEN = "hf_token_of_the_tests"


class Hub:
  """The server, and what it was asked.

  Attributes:
    address: for $HF_ENDPOINT.
    commits: by repository, a list of (commit, files), the newest last.
    closed: by repository, how it is refused to who sends no token: "private" or "gated"; a client
      may create private ones.
    is_breaking: whether files end in the middle, and are refused afterwards.
    created: the requests to create repositories.
    messages: of clients' commits.
    downloaded: the paths of all files that were sent.
  """

  def __init__(self):
    self.commits, self.closed, self.is_breaking = {}, {}, False
    self.created, self.messages, self.downloaded = [], [], []
    self._has_broken = False
    handler = type("Handler", (_Handler,), {"hub": self})
    self._server = _Server(("127.0.0.1", 0), handler)
    self.address = f"http://127.0.0.1:{self._server.server_address[1]}"

  @contextlib.contextmanager
  def running(self):
    thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
      yield self
    finally:
      self._server.shutdown()
      self._server.server_close()

  def put(self, repository, files):
    """Makes a commit with these files; returns it."""
    history = self.commits.setdefault(repository, [])
    text = repr((repository, len(history), sorted(files.items())))
    history.append((hashlib.sha1(text.encode()).hexdigest(), dict(files)))
    return history[-1][0]

  def put_folder(self, repository, folder):
    """Makes a commit with the files of a folder; returns it."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    contents = {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}
    return self.put(repository, contents)

  def files(self, repository):
    """Returns the newest files of a repository."""
    return self.commits[repository][-1][1]

  def environment(self, home):
    """Returns the environment of a process that uses this server, and a cache of its own."""
    return {
      "HF_ENDPOINT": self.address,
      "HF_HOME": str(home),
      "HF_HUB_DISABLE_PROGRESS_BARS": "1",
      "NO_PROXY": "127.0.0.1",
    }

  def use(self, patch, home):
    """Makes this process use this server, and a cache of its own; the library asks no variables."""
    from huggingface_hub import constants
    from huggingface_hub.utils import disable_progress_bars

    patch.setenv("NO_PROXY", "127.0.0.1")
    patch.delenv("HF_TOKEN", raising=False)
    patch.setattr(constants, "ENDPOINT", self.address)
    template = self.address + "/{repo_id}/resolve/{revision}/{filename}"
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    patch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    patch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    disable_progress_bars()
    self.forget(patch)

  @staticmethod
  def forget(patch):
    """Makes this process look repositories up again, as a new one does."""
    for name in ("_commits", "_used", "_snapshots"):
      patch.setattr(hub, name, {})
    hub._download.cache_clear()


class _Server(http.server.ThreadingHTTPServer):
  daemon_threads = True

  def handle_error(self, request, client_address):
    """Says nothing where a client closes a connection that it does not need any more."""


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = "HTTP/1.1"
  hub: Hub

  def log_message(self, *_):
    pass

  def do_HEAD(self):
    self._read()

  def do_GET(self):
    self._read()

  def do_POST(self):
    body = self.rfile.read(int(self.headers["Content-Length"]))
    parts = unquote(urlsplit(self.path).path).strip("/").split("/")
    if not self._has_token():
      self._answer({"error": "no token"}, 401)
    elif parts == ["api", "repos", "create"]:
      self._create(json.loads(body))
    elif parts == ["api", "validate-yaml"]:
      self._answer({"errors": [], "warnings": []})
    elif parts[:2] == ["api", "models"] and parts[4] == "preupload":
      files = json.loads(body)["files"]
      modes = [{"uploadMode": "regular", "shouldIgnore": False, "path": x["path"]} for x in files]
      self._answer({"files": modes})
    elif parts[:2] == ["api", "models"] and parts[4] == "commit":
      self._commit("/".join(parts[2:4]), [json.loads(line) for line in body.splitlines()])
    else:
      self._answer({"error": "unknown"}, 404)

  def _create(self, wanted):
    self.hub.created.append(wanted)
    name = f"{wanted['organization']}/{wanted['name']}"
    status = 409 if name in self.hub.commits else 200
    if status == 200:
      self.hub.put(name, {".gitattributes": b""})
      if wanted.get("private") or wanted.get("visibility") == "private":
        self.hub.closed[name] = "private"
    self._answer({"url": f"{self.hub.address}/{name}"}, status)

  def _commit(self, name, lines):
    newest, files = self.hub.commits[name][-1]
    files = dict(files)
    for line in lines:
      if line["key"] == "header":
        if line["value"].get("parentCommit", newest) != newest:
          return self._answer({"error": "another commit came between"}, 412)
        self.hub.messages.append(line["value"]["summary"])
      elif line["key"] == "deletedFile":
        del files[line["value"]["path"]]
      else:
        files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
    commit = self.hub.put(name, files)
    address = f"{self.hub.address}/{name}/commit/{commit}"
    return self._answer({"success": True, "commitOid": commit, "commitUrl": address})

  def _read(self):
    parts = unquote(urlsplit(self.path).path).strip("/").split("/")
    is_api = parts[:2] == ["api", "models"]
    owner, name, *rest = parts[2:] if is_api else parts
    name, (what, *rest) = f"{owner}/{name}", rest or ("revision", "main")
    closed = self.hub.closed.get(name)
    if name not in self.hub.commits or (closed == "private" and not self._has_token()):
      return self._refuse(401 if closed else 404, "RepoNotFound")
    if closed == "gated" and not self._has_token() and not (is_api and what == "revision"):
      return self._refuse(403, "GatedRepo")
    history = self.hub.commits[name]
    revision = rest[0]
    found = [each for each in history if revision in ("main", each[0])]
    if not found:
      return self._refuse(404, "RevisionNotFound")
    commit, files = found[-1]
    if is_api and what == "revision":
      siblings = [{"rfilename": path} for path in files]
      facts = {"id": name, "sha": commit, "siblings": siblings, "private": closed == "private"}
      return self._answer(facts)
    if is_api:
      return self._answer(
        [
          {"type": "file", "path": path, "size": len(content), "oid": _oid(content)}
          for path, content in files.items()
        ]
      )
    path = "/".join(rest[1:])
    if path not in files:
      return self._refuse(404, "EntryNotFound")
    return self._send_file(path, files[path], commit)

  def _send_file(self, path, content, commit):
    if self.command == "GET" and self.hub.is_breaking and self.hub._has_broken:
      return self._refuse(503, "Unavailable")
    self.send_response(200)
    for field, value in {
      "Content-Length": str(len(content)),
      "ETag": f'"{_oid(content)}"',
      "X-Repo-Commit": commit,
      "Accept-Ranges": "none",
    }.items():
      self.send_header(field, value)
    self.end_headers()
    if self.command == "HEAD":
      return
    self.hub.downloaded.append(path)
    if self.hub.is_breaking:
      self.hub._has_broken = True
      content, self.close_connection = content[: len(content) // 2], True
    self.wfile.write(content)

  def _has_token(self):
    return self.headers.get("Authorization") == f"Bearer {TOKEN}"

  def _refuse(self, status, code):
    self._answer({"error": code}, status, {"X-Error-Code": code, "X-Error-Message": code})

  def _answer(self, value, status=200, fields=()):
    text = json.dumps(value).encode()
    self.send_response(status)
    for field, content in dict(fields, **{"Content-Type": "application/json"}).items():
      self.send_header(field, content)
    self.send_header("Content-Length", str(len(text)))
    self.end_headers()
    if self.command != "HEAD":
      self.wfile.write(text)


def _oid(content):
  return hashlib.sha1(content).hexdigest()
