"""A study: reading it, planning it, running it on Ray, keeping its record, giving its answer.

Imports `trainers`, never the reverse. Each folder is a room; a room uses only rooms below it (`tests/test_rooms.py`).
"""
