"""MoRA's projection: its factors, how it starts, what it shares and what is kept."""
