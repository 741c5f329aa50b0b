"""What a graph runs on, and what each can run."""

# Names that `toolkit convert --delegate` takes. "external" is a delegate that comes as a library of its own.
DELEGATES = ("cpu", "gpu", "nnapi", "npu", "external")
