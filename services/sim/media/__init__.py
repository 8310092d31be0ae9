"""The media half of the simulated provider: images, sound, video, vectors, as jobs or at once.

Each vendor's file speaks that vendor's wire shape; what is made, when it is ready, what it would
cost and which fault it meets is the same for all of them (`jobs.py`, `knobs.py`).
"""
