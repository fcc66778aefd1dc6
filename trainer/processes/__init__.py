"""The processes of a run: how they meet, watch each other, agree on an end, and end."""
