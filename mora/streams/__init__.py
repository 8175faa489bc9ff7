"""Models of one stream: which token belongs to which modality, and projections that compute by it."""

from mora.streams.calls import Routes, route
from mora.streams.merged import ModalityLinear
from mora.streams.route import Marked, Reader, Route, TextFirst
from mora.streams.site import StreamSite

__all__ = ["Marked", "ModalityLinear", "Reader", "Route", "Routes", "StreamSite", "TextFirst", "route"]
