"""`GET /api/v1/groups/available`: the groups that a new key may have."""

from typing import Any

import falcon

from services.core.prices import PPM
from services.edge.manage.desk import Manager
from services.edge.manage.managed import Managed


class GroupsResource(Managed):
    """Each with its price multiplier and the models that its channels serve."""

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        self._manage(req, resp, self._listed)

    def _listed(self, manager: Manager) -> dict[str, Any]:
        snapshot = self._worker.snapshots.view().snapshot
        items = []
        for name, group in sorted(snapshot.groups.items()):
            served = {
                model
                for channel in snapshot.channels
                if name in channel.groups
                for model in channel.models
                if not group.models or model in group.models
            }
            items.append(
                {
                    "id": name,
                    "name": name,
                    "multiplier": group.multiplier_ppm / PPM,
                    "models": sorted(served),
                }
            )
        return {"items": items}
