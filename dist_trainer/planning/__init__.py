"""How a training would grow: its measured step on more nodes, with their all-reduces, saves and failures."""
