"""The gRPC edge: wire mapping, servicers, interceptors. Thin: validate, call `trephine.app`, answer."""
