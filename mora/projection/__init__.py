"""An adapted projection, whatever the method: alone at its place, or one of several that take turns."""
