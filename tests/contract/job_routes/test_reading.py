"""Lists, events, versions, estimates."""

from tests.parts.job_routes import code


def test_lists_turn_pages_without_skipping_or_repeating(house):
    made = [house.submit("sim-image")["id"] for _ in range(5)]
    seen, cursor = [], ""
    while True:
        page = house.call("GET", f"/v1/jobs?limit=2{cursor}")[1]
        seen += [each["id"] for each in page["data"]]
        if not page["has_more"]:
            break
        cursor = f"&cursor={page['next_cursor']}"
        house.submit("sim-image")  # newer than every page
        altered = cursor[:-1] + ("A" if cursor[-1] != "A" else "B")
        for wrong in ("&cursor=bm9uZQ", altered, cursor[:20] + "x" + cursor[21:]):
            answer = house.call("GET", f"/v1/jobs?limit=2{wrong}")
            assert code(answer) == (400, "invalid_param")
    assert seen == made[::-1]


def test_a_list_is_chosen_by_what_jobs_tell_of_themselves(house):
    """Times as they are told, entries of the metadata as they were given."""
    made = []
    for labels in ({"who": "a", "why": "x"}, {"who": "A"}, {"who": 'a"'}, {"ho": "a"}):
        body = {"model": "sim-image", "input": {"prompt": "a fox"}, "metadata": labels}
        made.append(house.call("POST", "/v1/jobs", body)[1])

    def listed(query):
        status, found = house.call("GET", f"/v1/jobs?{query}")
        assert status == 200, found
        return [each["id"] for each in found["data"]]

    ids = [each["id"] for each in made]
    assert listed("metadata.who=a") == ids[:1]
    assert listed("metadata.who=a&metadata.why=x") == ids[:1]
    assert listed("metadata.who=a&metadata.why=y") == []
    assert listed("metadata.who=A") == ids[1:2]
    assert listed("metadata.who=a%22") == ids[2:3]
    assert listed("metadata.who=") == []
    first = made[0]["created_at"]
    assert set(ids[1:]) <= set(listed(f"created_after={first}")) | {ids[0]}
    assert listed(f"created_after={first[:-1]}%2B00:00") == listed(f"created_after={first}")
    assert listed("created_after=2100-01-01T00:00:00Z") == []
    for wrong in ("yesterday", first[:-1]):
        assert code(house.call("GET", f"/v1/jobs?created_after={wrong}")) == (400, "invalid_param")


def test_events_are_numbered_and_the_same_for_everybody(house):
    job = house.wait_for(house.submit("sim-image")["id"])
    events = house.call("GET", f"/v1/jobs/{job['id']}/events")[1]
    assert [each["seq"] for each in events["data"]] == list(range(1, job["version"] + 1))
    states = [each["data"]["state"] for each in events["data"] if each["type"] == "state"]
    assert states == ["queued", "running", "completed"]
    rest = house.call("GET", f"/v1/jobs/{job['id']}/events?after=1")[1]
    assert rest["data"] == events["data"][1:]
    tried = house.call("GET", f"/v1/jobs/{job['id']}/attempts")[1]["data"]
    assert [(each["no"], each["state"]) for each in tried] == [(1, "done")]


def test_an_unchanged_job_is_not_sent_again(house):
    job = house.wait_for(house.submit("sim-image")["id"])
    path = f"/v1/jobs/{job['id']}"
    tag = f'"{job["version"]}"'
    for known in (tag, f"W/{tag}", f'"0", {tag}', "*"):
        assert house.call("GET", path, headers={"if-none-match": known})[0] == 304
    assert house.call("GET", path, headers={"if-none-match": f'"0{job["version"]}"'})[0] == 200


def test_a_redrive_is_a_new_job_and_an_estimate_is_none(house):
    job = house.wait_for(house.submit("sim-image")["id"])
    status, again = house.call("POST", f"/v1/jobs/{job['id']}/redrive")
    assert (status, again["retry_of"]) == (202, job["id"])
    assert house.wait_for(again["id"])["state"] == "completed"
    before = len(house.jobs())
    body = {"model": "sim-video", "input": {"prompt": "a", "duration_seconds": 3}}
    offer = house.call("POST", "/v1/jobs/estimate", body)[1]
    assert offer["cost"]["estimated_nano"] == 31_000_000
    assert offer["units"] == {"calls": 1, "seconds": 3}
    assert len(house.jobs()) == before


def test_names_that_no_database_can_hold_are_nobodys(house):
    """PostgreSQL stores no NUL; SQLite does, and finds nothing."""
    for method, path, body in (
        ("GET", "/v1/tasks/query?out_task_id=a%00b", None),
        ("GET", "/v1/tasks/query?task_id=%00", None),
        ("POST", "/v1/tasks/cancel", {"out_task_id": "a\0b"}),
        ("GET", "/v1/jobs/a%00b", None),
        ("GET", "/v1/jobs/a%00b/events", None),
        ("GET", "/v1/artifacts/a%00b", None),
        ("GET", "/v1/files/a%00b", None),
        ("DELETE", "/v1/files/a%00b", None),
        ("GET", "/v1/batches/batch_a%00b", None),
        ("GET", "/v1/webhooks/endpoints/a%00b", None),
        ("POST", "/v1/webhooks/deliveries/a%00b/redeliver", None),
    ):
        assert house.call(method, path, body)[0] in (400, 404), path
    for query in ("model=%00", "kind=%00", "metadata.a=%00", "metadata.%00=a"):
        status, told = house.call("GET", f"/v1/jobs?{query}")
        assert status == 400 or told["data"] == [], query
    asked = {"ids": ["a\0"], "external_ids": ["a\0"]}
    status, told = house.call("POST", "/v1/jobs/query", asked)
    assert status == 400 or told["data"] == []
    wanted = {"prompt": "a", "duration_seconds": 1, "image_init": "file_a\0"}
    body = {"model": "sim-video", "input": wanted}
    assert code(house.call("POST", "/v1/jobs", body)) == (400, "invalid_param")
