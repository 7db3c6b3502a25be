"""What a study is: reading it, planning it, running it on Ray, keeping its record, saying what came out.

Imports `trainers`, never the reverse. Each folder is a room; a room uses only rooms below it (`tests/test_rooms.py`).
"""
