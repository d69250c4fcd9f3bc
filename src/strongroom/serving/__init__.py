"""A model server for sealed models: TensorFlow Serving's protocols and the Open Inference Protocol."""
