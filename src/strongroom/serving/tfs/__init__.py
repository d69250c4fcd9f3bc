"""The API of TensorFlow Serving: REST and gRPC, without TensorFlow."""
