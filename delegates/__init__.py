"""What a graph runs on, and what each can run."""

# How users name that, beside the delegates of `delegates.targets`: what the bundle was converted for, the CPU
# and, before a path, the library of an external delegate.
AUTO, CPU, EXTERNAL = "auto", "cpu", "external:"
