"""What the errors of jobs tell. The last file of its folder: a refused credential, which is one of
them, lets its channel rest, and other tests would wait for it."""

from tests.parts.job_routes import query_task

FREE_ENDS = [
    ("sim-video", "create-400"),
    ("sim-video", "create-401"),
    ("sim-video", "create-500-done"),
    ("sim-video", "create-cut"),
    ("sim-image", "create-garbage"),
    ("veo-3.1", "job-fail"),
    ("veo-3.1", "artifact-404"),
    ("veo-3.1", "artifact-private"),
    ("veo-3.1", "artifact-wrong-type"),
]


def test_the_error_of_a_job_tells_nothing_of_where_and_how_it_was_made(house, media_sim):
    made = {}
    # Last what lets the channel rest: the others would wait for it.
    for model, fault in sorted(FREE_ENDS, key=lambda each: each[1] == "create-401"):
        given = {} if model == "sim-image" else {"duration_seconds": 1}
        if fault == "create-401":
            for each in made.values():
                house.wait_for(each["id"])
        made[fault] = house.submit(model, prompt=f"a fox sim:fault {fault}", **given)
    hidden = ["127.0.0.1", str(media_sim.port), "169.254", "http:", "Connection", "Error(", "Pool"]
    hidden += [str(house.folder), *(each.name for each in house.channels)]
    for fault, job in made.items():
        told = house.wait_for(job["id"])
        assert told["state"] == "failed", (fault, told)
        tries = house.call("GET", f"/v1/jobs/{job['id']}/attempts")[1]["data"]
        words = [told["error"]["message"], *(each["message"] or "" for each in tries)]
        task = query_task(house, task_id=job["id"].replace("job_", "task_"))[1]
        words.append(task["error_message"])
        shown = " | ".join(words)
        assert told["error"]["message"]
        assert not [each for each in hidden if each in shown], (fault, shown)
    for event in house.events():
        assert not [each for each in hidden[:7] if each in getattr(event, "message", "")], event
