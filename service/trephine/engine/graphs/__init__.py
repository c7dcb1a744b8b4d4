"""Attribution over trained replacement sets: active features, their sweep, their nodes."""
