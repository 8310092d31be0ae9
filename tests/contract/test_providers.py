"""Every provider adapter against the simulated provider that speaks its shape, faults included."""

import base64
import time
import uuid
from pathlib import Path

import msgspec
import pytest

from services.backends.http.client import HttpClient
from services.backends.http.fetch import Fetcher
from services.backends.settings import load
from services.batch.bootstrap import providers
from services.batch.providers.description import BadDescription
from services.batch.providers.fal import Fal
from services.batch.providers.generic import Generic
from services.batch.providers.imagen import Imagen
from services.batch.providers.openai import OpenAI
from services.batch.providers.openai_embeddings import OpenAIEmbeddings
from services.batch.providers.openai_videos import OpenAIVideos
from services.batch.providers.port import (
    Absent,
    Cancelled,
    Done,
    Failed,
    Gone,
    Later,
    NotSent,
    Order,
    Refused,
    Running,
    Submitted,
    Task,
    TooLate,
    Unclear,
    Unsupported,
)
from services.batch.providers.replicate import Replicate
from services.batch.providers.rerank import Rerank
from services.batch.providers.veo import Veo
from services.core.artifacts import ArtifactInvalid, inspect
from services.core.catalog import Channel
from services.core.netguard import Guard
from tests.parts.sim import Sim

HTTP = HttpClient()
GENERIC = Path(__file__).parent.parent / "parts" / "simulated.toml"
VERTEX = "/v1/projects/p/locations/l/publishers/google"
# name -> (adapter, path of the base URL, kind, model)
TASKS = {
    "openai-videos": (OpenAIVideos(), "/v1", "video", "sora-2"),
    "veo": (Veo(), "/v1beta", "video", "veo-3.1"),
    "vertex": (Veo(), VERTEX, "video", "veo-3.1"),
    "replicate": (Replicate(), "/v1", "video", "acme/some-video"),
    "fal": (Fal(), "/fal", "video", "acme/some-video/fast"),
    "generic": (Generic(GENERIC), "/generic/v1", "video", "gen-3"),
}
AT_ONCE = {
    "images": (OpenAI(), "/v1", "image", "gpt-image-2"),
    "imagen": (Imagen(), "/v1beta", "image", "imagen-4"),
    "imagen-vertex": (Imagen(), VERTEX, "image", "imagen-4"),
    "speech": (OpenAI(), "/v1", "speech", "tts-2"),
}
CANCELS = [name for name in TASKS if name not in ("openai-videos", "vertex")]


@pytest.fixture(scope="module")
def sim(tmp_path_factory):
    quick = ("--media-queue-ms", "20", "--media-run-ms", "60")
    running = Sim(tmp_path_factory.mktemp("sim") / "sim.log", *quick)
    yield running
    running.stop()


class Use:
    """One adapter on a channel of the simulated provider."""

    def __init__(self, sim, provider, path, kind, model):
        self.sim, self.provider, self.kind = sim, provider, kind
        self.channel = Channel(
            name="c",
            dialect="",
            base_url=sim.base_url + path,
            credential="sk-1",
            models={model: model},
            groups=("default",),
            provider=provider.name,
        )

    def order(self, prompt="a toll booth", files=None, kind="", model="", **params):
        kind = kind or self.kind
        text = "input" if kind == "speech" else "prompt"
        asked = {text: prompt, **params}
        if kind == "video":
            asked.setdefault("duration_seconds", 2)
        return Order(
            client_ref=uuid.uuid4().hex,
            kind=kind,
            model=model or next(iter(self.channel.models)),
            params=asked,
            files=files or {},
        )

    def create(self, *arguments, **named):
        return self.provider.create(HTTP, self.channel, self.order(*arguments, **named))

    def task(self, prompt="a toll booth", **named):
        order = self.order(prompt, **named)
        taken = self.provider.create(HTTP, self.channel, order)
        assert isinstance(taken, Submitted), taken
        return Task(
            upstream_id=taken.upstream_id,
            client_ref=order.client_ref,
            kind=order.kind,
            model=order.model,
            links=taken.links,
        )

    def poll(self, task):
        return self.provider.poll(HTTP, self.channel, task)

    def end(self, task):
        """The answers of the polls until the task has ended."""
        answers, deadline = [], time.monotonic() + 30
        while not answers or isinstance(answers[-1], Running | Later):
            assert time.monotonic() < deadline, answers[-3:]
            answers.append(self.poll(task))
            time.sleep(0.01)
        return answers

    def cancel(self, task):
        return self.provider.cancel(HTTP, self.channel, task)

    def fetch(self, output):
        """(status, bytes) of an output."""
        if not output.url:
            return 200, output.data
        headers = self.provider.headers(self.channel) if output.authorized else {}
        fetcher = Fetcher(Guard(["127.0.0.1"]))
        with fetcher.get(output.url, headers=headers, limit_bytes=10**8, deadline_s=30) as got:
            return got.status, b"".join(got.chunks())


@pytest.fixture(params=TASKS)
def use(request, sim):
    return Use(sim, *TASKS[request.param])


@pytest.fixture(params=AT_ONCE)
def at_once(request, sim):
    return Use(sim, *AT_ONCE[request.param])


@pytest.fixture(params=CANCELS)
def stoppable(request, sim):
    return Use(sim, *TASKS[request.param])


# -- tasks -----------------------------------------------------------------------------------


def test_a_task_is_made_followed_and_fetched(use):
    answers = use.end(use.task(resolution="720p", aspect_ratio="9:16"))
    done = answers[-1]
    assert isinstance(done, Done)
    assert [type(answer) for answer in answers[:-1]] == [Running] * (len(answers) - 1)
    (output,) = done.outputs
    status, data = use.fetch(output)
    facts = inspect(data, len(data))
    assert (status, output.kind, facts.kind) == (200, "video", "video")
    assert (facts.width, facts.height, facts.duration_ms) == (720, 1280, 2000)


def test_waiting_is_told_from_running(use):
    waiting = use.poll(use.task("sim:queue-ms 60000"))
    assert isinstance(waiting, Running)
    running = use.poll(use.task("sim:queue-ms 0 sim:run-ms 60000"))
    assert isinstance(running, Running)
    assert running.started
    if use.provider.name != "veo":
        assert not waiting.started


@pytest.mark.parametrize(
    "fault", ["create-timeout-1", "create-cut", "create-500-done", "create-no-id", "create-garbage"]
)
def test_a_lost_or_useless_reply_to_a_create_is_unclear(use, fault):
    before = use.sim.get("/sim/media/totals")["creates"]
    answer = use.create(f"lost sim:fault {fault}")
    assert isinstance(answer, Unclear), answer
    assert use.sim.get("/sim/media/totals")["creates"] == before + 1


@pytest.mark.parametrize(
    ("status", "another"),
    [(400, False), (401, True), (402, True), (403, True), (404, True), (422, False)],
)
def test_clear_refusals(use, status, another):
    answer = use.create(f"no sim:fault create-{status}")
    assert isinstance(answer, Refused), answer
    assert (answer.status, answer.another, answer.moderated) == (status, another, False)
    assert answer.message


def test_overload_is_a_refusal_of_the_moment(use):
    prompt = f"busy {uuid.uuid4()} sim:fault create-429"
    answer = use.create(prompt)
    assert isinstance(answer, Refused)
    assert (answer.status, answer.another, answer.retry_after_s) == (429, True, 1.0)
    assert isinstance(use.create(prompt), Submitted)


def test_no_upstream_is_not_sent(use):
    use.channel = msgspec.structs.replace(use.channel, base_url="http://127.0.0.1:9/v1")
    assert isinstance(use.create(), NotSent)
    task = Task(
        upstream_id="x",
        client_ref="r",
        kind="video",
        model="m",
        links=dict.fromkeys(("status", "response", "cancel"), "http://127.0.0.1:9/x"),
    )
    assert isinstance(use.poll(task), Later)


@pytest.mark.parametrize("fault", ["poll-500", "poll-429", "poll-401", "poll-garbage", "poll-cut"])
def test_trouble_of_a_poll_is_no_verdict(use, fault):
    answers = use.end(use.task(f"trouble sim:fault {fault}-2"))
    assert [type(answer) for answer in answers[:2]] == [Later, Later]
    assert isinstance(answers[-1], Done)
    if fault == "poll-429":
        assert answers[0].retry_after_s == 1.0
    assert answers[0].refused is (fault == "poll-401")


def test_a_404_is_gone_and_may_come_back(use):
    task = use.task("hidden sim:fault poll-404-1")
    assert isinstance(use.poll(task), Gone)
    assert isinstance(use.end(task)[-1], Done)
    assert isinstance(use.poll(use.task("sim:fault job-gone")), Gone)


def test_an_unknown_word_keeps_it_running(use):
    answers = use.end(use.task("odd sim:fault job-unknown-state-1"))
    first = answers[0]
    assert isinstance(first, Running)
    assert first.word.upper() == "REBALANCING"
    assert isinstance(answers[-1], Done)


def test_failures(use):
    failed = use.end(use.task("sim:fault job-fail"))[-1]
    assert isinstance(failed, Failed)
    assert not failed.moderated
    assert not failed.cancelled
    assert failed.message


def test_what_was_moderated_is_told_as_such(use):
    ended = use.end(use.task("sim:fault job-moderated"))[-1]
    if isinstance(ended, Done):  # Veo: done, and nothing in it
        assert (ended.outputs, ended.filtered) == ((), True)
    else:
        assert isinstance(ended, Failed)
        assert ended.moderated
    refused = use.create("sim:fault create-moderated")
    assert isinstance(refused, Refused)
    if use.provider.name != "veo":
        assert refused.moderated


def test_a_success_without_output_has_no_outputs(use):
    done = use.end(use.task("sim:fault job-no-output"))[-1]
    assert isinstance(done, Done)
    if use.provider.name == "openai-videos":  # its success names no file; the download tells
        assert use.fetch(done.outputs[0])[0] == 404
    else:
        assert done.outputs == ()


@pytest.mark.parametrize("fault", ["artifact-short", "artifact-wrong-type", "artifact-empty"])
def test_useless_bytes_are_no_artifact(use, fault):
    done = use.end(use.task(f"sim:fault {fault}"))[-1]
    assert isinstance(done, Done)
    for output in done.outputs:
        _, data = use.fetch(output)
        with pytest.raises(ArtifactInvalid):
            inspect(data, len(data))


BYTES_ONLY = ("openai-videos", "veo", "vertex")


def test_a_first_frame_reaches_the_upstream(use):
    frame = b"\x89PNG\r\n\x1a\n" + bytes(range(256))
    use.task(image_init="file_1", files={"image_init": frame})
    sent = use.sim.echo()["body"]
    assert frame in sent or base64.b64encode(frame) in sent
    if use.provider.name != "openai-videos":
        assert b"image/png" in sent


def test_a_first_frame_by_url(use, request):
    answer = use.create(image_init="https://elsewhere.example/frame.png")
    if request.node.callspec.params["use"] in BYTES_ONLY:
        assert isinstance(answer, Refused)
        assert answer.another
        assert "image_init" in answer.message
    else:
        assert isinstance(answer, Submitted)
        assert b'"https://elsewhere.example/frame.png"' in use.sim.echo()["body"]


# -- cancel and look-up ----------------------------------------------------------------------


def test_cancel(stoppable):
    task = stoppable.task("sim:run-ms 60000")
    assert isinstance(stoppable.cancel(task), Cancelled)
    ended = stoppable.poll(task)
    assert isinstance(ended, Failed)
    assert ended.cancelled


def test_a_cancel_that_comes_too_late(stoppable):
    task = stoppable.task()
    stoppable.end(task)
    assert isinstance(stoppable.cancel(task), TooLate)
    raced = stoppable.task("sim:run-ms 60000 sim:fault cancel-too-late")
    assert isinstance(stoppable.cancel(raced), TooLate)
    assert isinstance(stoppable.end(raced)[-1], Done)


def test_a_cancel_in_vain_is_not_confirmed(stoppable):
    task = stoppable.task("sim:run-ms 200 sim:fault late-success-1")
    assert isinstance(stoppable.cancel(task), Unsupported)
    assert isinstance(stoppable.end(task)[-1], Done)


def test_trouble_of_a_cancel(stoppable):
    task = stoppable.task("sim:run-ms 60000 sim:fault cancel-500-1")
    assert isinstance(stoppable.cancel(task), Later)
    assert isinstance(stoppable.cancel(task), Cancelled)
    never = stoppable.task("sim:run-ms 60000 sim:fault cancel-unsupported")
    assert isinstance(stoppable.cancel(never), Unsupported)


@pytest.mark.parametrize("name", ["openai-videos", "vertex"])
def test_providers_without_a_cancel(sim, name):
    use = Use(sim, *TASKS[name])
    task = use.task("sim:run-ms 60000")
    assert isinstance(use.cancel(task), Unsupported)
    assert sim.media_jobs()[-1]["cancels"] == 0


FOUND_BY_URL = providers(load(None, {"TOLLGATE_ARTIFACTS__PUBLIC_URL": "https://gate.example/"}))


@pytest.mark.parametrize("name", ["openai-videos", "veo", "vertex", "replicate", "fal"])
def test_providers_without_a_look_up(sim, name):
    use = Use(sim, *TASKS[name])
    assert isinstance(use.provider.find(HTTP, use.channel, use.order()), Unsupported)


@pytest.mark.parametrize(
    "provider", [Generic(GENERIC), FOUND_BY_URL["replicate"]], ids=["generic", "repl"]
)
def test_a_lost_create_is_found_by_its_reference(sim, provider):
    kind = TASKS["generic" if provider.name == "simulated" else "replicate"]
    use = Use(sim, provider, *kind[1:])
    order = use.order("lost sim:fault create-cut")
    assert isinstance(provider.find(HTTP, use.channel, order), Absent)
    assert isinstance(provider.create(HTTP, use.channel, order), Unclear)
    found = provider.find(HTTP, use.channel, order)
    assert isinstance(found, Submitted)
    (job,) = sim.media_jobs(ref=order.client_ref)
    assert found.upstream_id == job["id"]


def test_a_look_up_reads_on_from_page_to_page(sim):
    use = Use(sim, FOUND_BY_URL["replicate"], *TASKS["replicate"][1:])
    order = use.order()
    taken = use.provider.create(HTTP, use.channel, order)
    for number in range(101):
        use.create(f"newer {number}")
    assert use.provider.find(HTTP, use.channel, order) == Submitted(upstream_id=taken.upstream_id)


def test_the_same_reference_again_makes_nothing_new(sim):
    use = Use(sim, *TASKS["generic"])
    assert use.provider.traits.idempotent
    order = use.order()
    first = use.provider.create(HTTP, use.channel, order)
    assert use.provider.create(HTTP, use.channel, order) == first
    assert len(sim.media_jobs(ref=order.client_ref)) == 1


# -- at once ---------------------------------------------------------------------------------


def test_results_in_the_answer(at_once):
    done = at_once.create()
    assert isinstance(done, Done)
    (output,) = done.outputs
    facts = inspect(output.data, len(output.data))
    assert facts.kind == output.kind == ("audio" if at_once.kind == "speech" else "image")


@pytest.mark.parametrize("fault", ["create-timeout-1", "create-cut", "create-500-done", "job-fail"])
def test_a_lost_answer_stays_unclear(at_once, fault):
    assert isinstance(at_once.create(f"lost sim:fault {fault}"), Unclear)
    assert isinstance(at_once.provider.find(HTTP, at_once.channel, at_once.order()), Unsupported)


def test_moderation_at_once(at_once):
    answer = at_once.create("sim:fault job-moderated")
    if at_once.provider.name == "imagen":
        assert (answer.outputs, answer.filtered) == ((), True)
    else:
        assert isinstance(answer, Refused)
        assert answer.moderated


def test_refusals_at_once(at_once):
    answer = at_once.create("sim:fault create-402")
    assert isinstance(answer, Refused)
    assert answer.another
    assert at_once.create("sim:fault job-no-output").outputs == ()


@pytest.mark.parametrize("name", ["images", "imagen"])
def test_several_images_and_a_partial_result(sim, name):
    use = Use(sim, *AT_ONCE[name])
    done = use.create(n=4)
    assert len({output.data for output in done.outputs}) == 4
    assert len(use.create("sim:fault job-partial-1", n=4).outputs) == 3


def test_an_edit_sends_its_files(sim):
    use = Use(sim, *AT_ONCE["images"])
    plain = use.create(size="64x64").outputs[0].data
    edited = use.create(size="64x64", image="file_1", files={"image": plain})
    assert isinstance(edited, Done)
    assert edited.outputs[0].data != plain
    refused = use.create(image="https://elsewhere.example/a.png")
    assert isinstance(refused, Refused)
    assert "image" in refused.message


def test_images_by_url(sim):
    use = Use(sim, *AT_ONCE["images"])
    done = use.create(size="64x64", response_format="url")
    status, data = use.fetch(done.outputs[0])
    assert (status, inspect(data, len(data)).width) == (200, 64)


def test_speech_and_its_transcription(sim):
    use = Use(sim, *AT_ONCE["speech"])
    sound = use.create("The barrier opens.", format="wav").outputs[0].data
    asked = {"kind": "transcription", "model": "whisper-2", "files": {"file": sound}}
    heard = use.create("", file="file_1", **asked)
    assert msgspec.json.decode(heard.outputs[0].data)["text"] == "The barrier opens."
    assert heard.told == {"seconds": 2}
    for form, begins in (("text", b"The barrier"), ("srt", b"1\n00:00"), ("vtt", b"WEBVTT")):
        done = use.create("", file="file_1", format=form, **asked)
        assert (done.outputs[0].kind, done.told) == ("text", {"seconds": 2})
        assert done.outputs[0].data.startswith(begins)
    assert use.create("x", format="opus").status == 400


def test_embeddings_and_rerank(sim):
    use = Use(sim, OpenAIEmbeddings(), "/v1", "embedding", "sim-embed")
    order = msgspec.structs.replace(use.order(), params={"input": ["a b c d e", "f"]})
    done = use.provider.create(HTTP, use.channel, order)
    assert len(msgspec.json.decode(done.outputs[0].data)["data"]) == 2
    assert done.told == {"input": 4}
    params = {"query": "toll booth", "documents": ["a tree", "a toll booth"], "top_n": 1}
    for path, told in (("/v1", {}), ("/v2", {"calls": 1})):
        use = Use(sim, Rerank(), path, "rerank", "sim-rerank")
        done = use.provider.create(
            HTTP, use.channel, msgspec.structs.replace(use.order(), params=params)
        )
        (result,) = msgspec.json.decode(done.outputs[0].data)["results"]
        assert (result["index"], done.told) == (1, told)


# -- what a reply may not do -----------------------------------------------------------------


def test_the_credential_goes_to_the_channels_own_origin_only(sim):
    """The URLs that fal tells are used, but not those of another host."""
    use = Use(sim, *TASKS["fal"])
    use.channel = msgspec.structs.replace(
        use.channel, base_url=use.channel.base_url.replace("127.0.0.1", "localhost")
    )
    calls_before = sim.last_id()
    task = use.task()
    assert all(url.startswith("http://localhost:") for url in task.links.values())

    class Liar:
        """Tells URLs of another host."""

        def call(self, method, url, **named):
            reply = HTTP.call(method, url, **named)
            lied = reply.body.replace(b"localhost", b"127.0.0.1")
            return msgspec.structs.replace(reply, body=lied)

    answer = use.provider.create(Liar(), use.channel, use.order())
    assert isinstance(answer, Unclear)
    assert len(sim.calls(after=calls_before)) == 2


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'"text"',
        b"1",
        b"\xff\xfe",
        b'{"id": null}',
        b'{"id": {}, "name": [], "request_id": 3, "data": {}, "predictions": 1, "job": 7}',
        b'{"name": "../../secrets", "data": [{"b64_json": "!"}], "results": {}}',
        b'{"status": [], "done": "yes", "output": {"a": 1}, "error": 3, "name": "n", "job": []}',
        b'{"status": "COMPLETED", "done": true, "name": "n", "response": [], "output": 5}',
        b'{"status": "failed", "error": "x", "done": true, "name": "n", "response": null}',
    ],
)
def test_replies_of_any_shape_give_an_answer(sim, body):
    """Never an exception, and never a result out of nothing."""

    class Anything:
        def call(self, method, url, **named):
            real = HTTP.call("GET", sim.base_url + "/sim/media/totals")
            return msgspec.structs.replace(real, body=body, headers={})

    task = Task(
        upstream_id="x",
        client_ref="r",
        kind="video",
        model="m",
        links=dict.fromkeys(("status", "response", "cancel"), "http://127.0.0.1:1/x"),
    )
    for provider, path, kind, model in [*TASKS.values(), *AT_ONCE.values()]:
        use = Use(sim, provider, path, kind, model)
        made = provider.create(Anything(), use.channel, use.order())
        assert isinstance(made, Submitted | Done | Unclear), (provider.name, made)
        if isinstance(made, Done) and provider.name != "openai":
            assert made.outputs == ()
        seen = provider.poll(Anything(), use.channel, task)
        assert isinstance(seen, Running | Done | Failed | Gone | Later), (provider.name, seen)
        provider.cancel(Anything(), use.channel, task)
        provider.find(Anything(), use.channel, use.order())


# -- descriptions ----------------------------------------------------------------------------


def changed(tmp_path, *replacements):
    text = GENERIC.read_text()
    for old, new in replacements:
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / "changed.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ('id = "/job/id"', 'name = "/job/id"', "name"),
        ('"{model}"', '"{modell}"', "modell"),
        ('"{client_ref}"', '"{credential}"', "credential"),
        ('waiting = "waiting"', 'waiting = "asleep"', "asleep"),
        ("[poll]", "[pool]", "pool"),
        ('kinds = ["image"', 'kinds = ["smell"', "kinds"),
    ],
)
def test_a_wrong_description_is_refused_with_what_is_wrong(tmp_path, old, new, what):
    with pytest.raises(BadDescription, match=what):
        Generic(changed(tmp_path, (old, new)))


def test_a_missing_description_is_refused(tmp_path):
    with pytest.raises(BadDescription, match=r"none\.toml"):
        Generic(tmp_path / "none.toml")


def test_a_description_without_cancel_and_find(sim, tmp_path):
    text = GENERIC.read_text()
    path = tmp_path / "short.toml"
    path.write_text(text[: text.index("[cancel]")])
    use = Use(sim, Generic(path), *TASKS["generic"][1:])
    assert isinstance(use.cancel(use.task("sim:run-ms 60000")), Unsupported)
    assert isinstance(use.provider.find(HTTP, use.channel, use.order()), Unsupported)


def test_values_cannot_break_out_of_a_template(sim):
    use = Use(sim, *TASKS["generic"])
    prompt = '"}, {client_ref} {credential} \n \\ ../../../ %2e'
    use.task(prompt)
    assert sim.media_jobs()[-1]["prompt"] == prompt
    evil = Task(upstream_id="../../../v1/videos?x=", client_ref="r", kind="video", model="m")
    assert isinstance(use.poll(evil), Gone)
    assert "jobs/..%2F..%2F..%2Fv1%2Fvideos%3Fx%3D" in sim.calls()[-1]["path"]


def test_numbers_stay_numbers_and_what_is_missing_is_left_out(sim):
    use = Use(sim, *TASKS["generic"])
    use.task(resolution="1080p")
    sent = msgspec.json.decode(sim.echo()["body"])["input"]
    assert sent == {"prompt": "a toll booth", "duration": 2, "resolution": "1080p"}
