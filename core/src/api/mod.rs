//! What clients see: the gRPC services and the HTTP routes of the client port.
