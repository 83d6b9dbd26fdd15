//! Listeners: accepts client connections and routes them to gRPC services and HTTP routes.
