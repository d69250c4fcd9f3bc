"""How fast a model server answers: load over both protocols, by REST and gRPC."""
