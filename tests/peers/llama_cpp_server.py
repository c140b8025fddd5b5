"""Runs llama.cpp's own server tests against Outrider: a pytest plugin that starts Outrider where they start llama-server.

    cd CHECKOUT-OF-LLAMA.CPP/tools/server/tests
    OUTRIDER=/path/to/outrider PYTHONPATH=/path/to/outrider/tests/peers \
        python -m pytest -p llama_cpp_server unit/test_basic.py unit/test_chat_completion.py unit/test_completion.py \
        unit/test_security.py unit/test_speculative.py unit/test_tokenize.py unit/test_ctx_shift.py

What differs from their runs, and nothing else: the model is the shipped pair (theirs is downloaded); options of
llama-server become options of `outrider serve`, or are left out where there is none; a route or a field that has another
name here is renamed, both ways; the model's name, which they make up, is left out. The checks are theirs.
"""

import os
import subprocess
import tempfile
import time

# Their names of routes and fields, and ours.
ROUTES = {
    "/completion": "/v1/completions",
    "/completions": "/v1/completions",
    "/chat/completions": "/v1/chat/completions",
    "/models": "/v1/models",
}
FIELDS = {"n_predict": "max_tokens", "n_probs": "logprobs"}
# Fields of theirs that only choose where or how fast something runs.
WITHOUT_MEANING = ("model", "cache_prompt", "id_slot", "timings_per_token")
# Most tokens of one draft here.
DEPTH_MAX = 15
# Positions that the shipped pair was trained for; a longer context is refused.
POSITIONS = 512


def arguments(server):
    """Options of llama-server as options of outrider."""
    given = ["serve", "--host", server.server_host, "--port", str(server.server_port), "--log", "warn"]
    slots = server.n_slots or 1
    given += ["--parallel", str(slots)]
    if server.n_ctx:
        given += ["--context", str(min(server.n_ctx // slots, POSITIONS))]
    if server.api_key:
        given += ["--api-key", server.api_key]
    if server.spec_draft_n_max:
        given += ["--mode", "sequential", "--draft-tokens", str(min(server.spec_draft_n_max, DEPTH_MAX))]
    elif server.model_draft is None:
        given += ["--mode", "plain"]
    return given


def request(server, path, data):
    """A request in our words. What the server would fill in by its own options is put in here."""
    path = ROUTES.get(path, path)
    if not isinstance(data, dict) or not path.startswith("/v1/"):
        return path, data
    data = {FIELDS.get(name, name): value for name, value in data.items() if name not in WITHOUT_MEANING}
    if server.n_predict and server.n_predict > 0:
        data.setdefault("max_tokens", server.n_predict)
    if data.get("max_tokens") == -1:
        del data["max_tokens"]
    data.setdefault("temperature", server.temperature)
    data.setdefault("seed", server.seed)
    if data.pop("return_tokens", False):
        data["speculative"] = {"mark_tokens": True}
    return path, data


def answer(path, body):
    """An answer to their own completion route in their words."""
    if path not in ("/completion", "/completions") or not isinstance(body, dict) or "choices" not in body:
        return body
    for choice in body["choices"]:
        body["content"] = choice.get("text", "")
        body["tokens"] = [token["id"] for token in choice.get("tokens") or []]
        body["stop"] = choice.get("finish_reason") is not None
    return body


def start(server, timeout_seconds=60):
    # A folder without a configuration file.
    folder = tempfile.mkdtemp()
    command = [os.environ["OUTRIDER"], *arguments(server)]
    server.process = subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL)
    utils.server_instances.add(server)
    until = time.time() + timeout_seconds
    while time.time() < until:
        try:
            if plain_request(server, "GET", "/health").status_code == 200:
                server.ready = True
                return
        except utils.requests.ConnectionError:
            pass
        if server.process.poll() is not None:
            raise RuntimeError(f"{' '.join(command)} ended with {server.process.returncode}")
        time.sleep(0.02)
    raise TimeoutError("it did not start")


def make_request(server, method, path, data=None, headers=None, timeout=60, host=None):
    asked, body = request(server, path, data)
    told = plain_request(server, method, asked, body, headers, timeout, host)
    told.body = answer(path, told.body)
    return told


def make_stream_request(server, method, path, data=None, headers=None, host=None):
    asked, body = request(server, path, data)
    for part in plain_stream(server, method, asked, body, headers, host):
        yield answer(path, part)


def without_model(create):
    """The openai package insists on a model's name."""
    def asked(self, **words):
        words["model"] = "outrider-en-de"
        return create(self, **words)
    return asked


def pytest_configure(config):
    global utils, plain_request, plain_stream
    import sys
    sys.path.insert(0, os.getcwd())
    import utils
    import openai.resources.chat.completions as chat
    import openai.resources.completions as completion
    server = utils.ServerProcess
    plain_request, plain_stream = server.make_request, server.make_stream_request
    server.start, server.make_request, server.make_stream_request = start, make_request, make_stream_request
    utils.ServerPreset.load_all = staticmethod(lambda: None)
    utils.download_file = lambda url, *_: url
    chat.Completions.create = without_model(chat.Completions.create)
    completion.Completions.create = without_model(completion.Completions.create)
