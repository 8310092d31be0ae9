from tests.parts.job_routes import edge_url, house, media_sim, receiver, running

__all__ = ["edge_url", "house", "media_sim", "receiver", "running"]
