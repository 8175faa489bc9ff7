"""Built-in data: OpenMoji's drawings and names (``openmoji``), missing tables (``missing``)."""
