"""Results that came after their job had ended: attached free of charge, or let go."""

from services.backends.sql.housekeeping import Housekeeping, Watched
from services.backends.sql.job_records import NewArtifact
from services.batch.deliver import NotNow, Unusable, copy, ordered
from services.batch.parts import Parts
from services.batch.poll import task_of
from services.batch.providers.port import Done, Failed, Gone
from services.core.jobs import AttemptState


def look_again(parts: Parts, housekeeping: Housekeeping, seen: Watched) -> None:
    """One look at a generation whose job has ended."""
    channel = parts.views.view().channel(seen.attempt.channel)
    provider = parts.providers.get(channel.provider) if channel is not None else None
    if channel is None or provider is None or not seen.attempt.upstream_id:
        housekeeping.looked(seen)
        return
    answer = provider.poll(parts.http, channel, task_of(seen.job, seen.attempt))
    if isinstance(answer, Failed | Gone):
        housekeeping.late(seen, AttemptState.FAILED, [])
    elif isinstance(answer, Done):
        attached: list[NewArtifact] = []
        if seen.job.on_late == "attach" and not seen.job.is_erased:
            for output in ordered(seen.job, answer):
                try:
                    attached.append(copy(parts, channel, provider, output))
                except Unusable:
                    continue
                except NotNow:
                    housekeeping.looked(seen)
                    return
        housekeeping.late(seen, AttemptState.DONE, attached)
    else:
        housekeeping.looked(seen)
